"""Tables of masks as they appear on a terminal of 80 columns."""

import pytest
from rich.console import Console, Group

from ribray.data.voc import VOC_CLASSES
from ribray.evaluation.published import MEAN, table
from ribray.report.tables import chain_table, evaluation_tables
from ribray.runs.metrics import RunMetrics
from ribray.stages import STAGES

PETS = ("background", "cat", "dog")
VOC = ("background", *VOC_CLASSES)
COCO = tuple(name for name in table("S3").columns if name != MEAN)


def shown(renderable, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text


def chain_of(metrics, own="rib", **more):
    return chain_table(RunMetrics(**metrics), STAGES, own, **more)


def evaluation_of(metrics, splits, **more):
    return evaluation_tables(RunMetrics(**metrics), STAGES, "rib", splits, **more)


def cells_of(text, start):
    """Return the words of each line that starts with `start`, after it."""
    lines = [line.strip() for line in text.splitlines()]
    return [line.removeprefix(start).split() for line in lines if line.startswith(start)]


def numbers(miou, names=PETS, images=400, **more):
    return {"miou": miou, "per_class": dict.fromkeys(names, miou), "images": images, "failed": 0, **more}


def chain(first, names=PETS, images=400, held_out=200, retrain=False, crf="none"):
    """Return metrics of a chain whose numbers gain two points each."""
    evaluate = numbers(first + 6, names, held_out, crf=crf)
    if retrain:
        evaluate = numbers(first + 8, names, held_out, crf=crf, before_retraining=evaluate)
    return {
        "confident": {"images": images, "seed_crf": numbers(first, names, images, unknown=33.3)},
        "pseudo": numbers(first + 4, names, images, unknown=0.0, walk=numbers(first + 2, names, images)),
        "evaluate": evaluate,
    }


SEED = {"seed": {"cam": numbers(48.0, threshold=0.2), "rib": numbers(56.2, threshold=0.3)}}


def test_labels_without_a_crf_are_not_called_its_work():
    metrics = {**SEED, **chain(58.0)}
    metrics["confident"]["crf"] = "none"
    text = shown(chain_of(metrics))
    assert "seed, confident labels" in text and "seed + CRF" not in text


def test_the_chain_leads_from_the_seed_to_the_segmentation_trained_again():
    metrics = {**SEED, **chain(58.0, retrain=True), "variants": {"cam": chain(50.0, images=399, retrain=True)}}
    text = shown(chain_of(metrics))
    assert cells_of(text, "seed, best threshold") == [["48.0", "56.2", "+8.2", "400", "training"]]
    assert cells_of(text, "seed + CRF, confident labels") == [["50.0", "58.0", "+8.0", "399/400", "training"]]
    assert cells_of(text, "random walk, best threshold") == [["52.0", "60.0", "+8.0", "399/400", "training"]]
    assert cells_of(text, "pseudo masks") == [["54.0", "62.0", "+8.0", "399/400", "training"]]
    assert cells_of(text, "segmentation ") == [["56.0", "64.0", "+8.0", "200", "held", "out"]]
    assert cells_of(text, "re-trained") == [["58.0", "66.0", "+8.0", "200", "held", "out"]]
    below = " ".join(text[text.index("unknown pixels") :].split())
    assert below == "unknown pixels, read as background: 33.3 / 33.3 % of the confident labels"


def test_without_a_variant_plain_cam_has_its_seed_alone():
    text = shown(chain_of({**SEED, **chain(58.0, crf="dense")}, splits=("val",)))
    assert cells_of(text, "seed, best threshold") == [["48.0", "56.2", "+8.2", "400", "training"]]
    assert cells_of(text, "pseudo masks") == [["–", "62.0", "–", "400", "training"]]
    assert cells_of(text, "segmentation ") == [["–", "64.0", "–", "200", "val"]]
    assert not cells_of(text, "re-trained")
    assert "predictions passed through a dense CRF" in text


def test_masks_of_plain_cam_alone_are_not_taken_for_rib():
    text = shown(chain_of({"variants": {"cam": chain(50.0)}}))
    assert "plain CAM" in text
    assert "RIB" not in text
    assert "gain" not in text
    assert shown(chain_of(chain(50.0), own="cam")) == text


def test_a_chain_that_ends_early_has_no_rows_for_what_is_missing():
    metrics = {**SEED, **chain(58.0)}
    metrics["evaluate"] = {"images": 200, "failed": 0, "crf": "dense"}  # no truth there
    text = shown(chain_of(metrics))
    assert cells_of(text, "pseudo masks")
    assert "segmentation" not in text


def test_there_is_no_chain_of_the_seed_alone():
    assert chain_of(SEED) is None
    assert chain_of({**SEED, "confident": {"images": 400, "failed": 0}}) is None


def test_the_largest_chain_fits():
    cam = chain(50.0, images=82_782, held_out=40_503, retrain=True)
    shown(chain_of({**chain(58.0, images=82_783, held_out=40_504, retrain=True), "variants": {"cam": cam}}))


def test_classes_without_published_numbers_show_this_run_only():
    metrics = {**chain(58.0, retrain=True), "variants": {"cam": chain(50.0, retrain=True)}}
    text = shown(Group(*evaluation_of(metrics, ("val",))))
    assert "published" not in text
    # Of plain CAM the last network only; RIB before and after.
    assert cells_of(text, "cat") == [["58.0", "64.0", "66.0"]]
    assert cells_of(text, "mean IoU") == [["58.0", "64.0", "66.0"]]
    assert cells_of(text, "images") == [["200", "200", "200"]]


def test_the_interval_stands_below_the_mean_where_it_is_known():
    metrics = {**chain(58.0, VOC, retrain=True), "variants": {"cam": chain(50.0, VOC, retrain=True)}}
    assert "interval" not in shown(Group(*evaluation_of(metrics, ("val",))))
    metrics["evaluate"]["miou_interval"] = [65.04, 67.0]
    text = shown(Group(*evaluation_of(metrics, ("val",))))
    assert cells_of(text, "95 % interval") == [["–", "–", "65.0", "to", "67.0"]]
    for network in (metrics["evaluate"]["before_retraining"], metrics["variants"]["cam"]["evaluate"]):
        network["miou_interval"] = [49.0, 51.0]
    text = shown(Group(*evaluation_of(metrics, ("val",))))
    assert cells_of(text, "95 % interval") == [["49.0", "to", "51.0", "49.0", "to", "51.0", "65.0", "to", "67.0"]]


def test_voc_stands_among_the_published_means_in_their_order():
    text = shown(Group(*evaluation_of(chain(60.0, VOC, held_out=1449, crf="dense"), ("val",))))
    rows = [line.split("  ") for line in text.splitlines() if "1,449" in line]
    means = [(words[0], float(next(word for word in words[1:] if word)), words[-1].strip()) for words in rows[:10]]
    assert means == [
        ("PSA", 61.7, "published"),
        ("CIAN", 64.3, "published"),
        ("SEAM", 64.5, "published"),
        ("FickleNet", 64.9, "published"),
        ("SSDD", 64.9, "published"),
        ("RIB", 66.0, "this run"),
        ("RIB, without re-training", 67.8, "published"),
        ("RIB", 68.3, "published"),
        ("RIB-Sal", 70.2, "published"),
        ("BBAM", 73.7, "published"),
    ]
    lines = [line.strip() for line in text.splitlines()]
    assert "published: VOC 2012 val, 1,449 images (RIB paper, Table S2)" in lines
    assert "this run: 1,449 images of val, with dense CRF" in lines


def test_voc_classes_stand_beside_rib_as_published():
    text = shown(Group(*evaluation_of(chain(60.0, VOC, held_out=1449), ("val",))))
    for name in VOC:
        own, rib, rib_saliency = cells_of(text, f"{name} ")[0]
        assert float(own) == 66.0
        assert float(rib) == table("S2").value("RIB (Ours)", name, "val")
        assert float(rib_saliency) == table("S2").value("RIB-Sal (Ours)", name, "val")
    assert cells_of(text, "mean IoU") == [["66.0", "68.3", "70.2"]]
    assert cells_of(text, "images ") == [["1,449", "1,449", "1,449"]]


def test_fewer_images_of_another_split_are_told():
    text = shown(Group(*evaluation_of(chain(60.0, VOC, held_out=14), ("train",))))
    note = " ".join(text[text.index("this run: 14") :].split())
    assert note.startswith("this run: 14 images of train, without dense CRF; not val, fewer than the published 1,449")


def test_of_coco_the_classes_with_the_largest_and_smallest_gain_stand_beside_irn_and_rib():
    metrics = {**chain(40.0, COCO, held_out=40_504), "variants": {"cam": chain(38.0, COCO, held_out=40_504)}}
    for rank, name in enumerate(COCO):
        metrics["evaluate"]["per_class"][name] = 44.0 + rank
    text = shown(Group(*evaluation_of(metrics, ("val2014",))))
    assert "10 of 81 classes, those where RIB gains most and least" in text
    assert "not val" not in text
    values = [str(table("S3").value(method, "person")) for method in ("IRN", "RIB (Ours)")]
    assert cells_of(text, "person") == [["44.0", "45.0", *values]]
    assert not cells_of(text, COCO[40])
    assert all(cells_of(text, name) for name in COCO[-5:])
    everything = shown(Group(*evaluation_of(metrics, ("val",), all_classes=True)))
    assert all(cells_of(everything, name) for name in COCO)
    assert cells_of(text, "mean IoU") == [["44.0", "46.0", "41.4", "43.8"]]


def test_the_widest_table_fits():
    cam = chain(50.0, VOC, held_out=1449, retrain=True)
    metrics = {**chain(58.0, VOC, held_out=1449, retrain=True), "variants": {"cam": cam}}
    text = shown(Group(*evaluation_of(metrics, ("val",))))
    assert len(cells_of(text, "diningtable")[0]) == 5


@pytest.mark.parametrize("metrics", [{}, SEED, {"evaluate": {"images": 3, "failed": 0, "crf": "none"}}])
def test_where_nothing_was_judged_there_is_no_table(metrics):
    assert evaluation_of(metrics, ("val",)) == []
