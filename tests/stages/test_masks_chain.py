"""From maps to masks, end to end on the drawn world: artifacts, resume, invariance, bad files on the way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribray import storage
from ribray.commands.run import read_status
from ribray.data import open_dataset
from ribray.data.mask_files import list_masks, mask_path, read_mask_file, write_mask
from ribray.errors import UnreadableError, UsageError
from ribray.runs.run import Run
from tests.tiny import BAND, EVERYTHING, RETRAINED, chain, experiment

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]


def masks(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("??/*.png")}


def training_set(run: Path):
    config = experiment().data
    return open_dataset(config, config.train_split, next((run / "data").iterdir()))


@pytest.mark.slow
def test_every_artifact_is_there_and_readable(whole):
    dataset = training_set(whole)
    made = {"confident": 10, "pseudo": 10, "segmentation/filled": 10, "predictions": 6}
    made |= {"predictions/before_retraining": 6, "variants/cam/confident": 10, "variants/cam/pseudo": 10}
    for folder, count in made.items():
        files = list((whole / folder).glob("??/*.png"))
        assert len(files) == count, folder
        for file in files:
            mask, counts = read_mask_file(file)
            assert mask.shape == (64, 64)
            assert set(np.unique(mask)) <= {*range(7), 255}
            assert counts["mask"]["images"] == [1]
    assert not any((read_mask_file(file)[0] == 255).any() for file in (whole / "segmentation/filled").glob("*/*.png"))
    for weights in ("irn", "segmentation", "segmentation/first", "variants/cam/irn"):
        assert (whole / weights / "weights.safetensors").stat().st_size > 0
    metrics = storage.read_json(whole / "metrics.json")
    for numbers in (metrics, metrics["variants"]["cam"]):
        assert numbers["pseudo"]["images"] == numbers["confident"]["seed_crf"]["images"] == 10
        assert 0 < numbers["pseudo"]["unknown"] < 100
        assert numbers["pseudo"]["walk"]["miou"] > 0
        assert len(numbers["irn"]["displacement_mean"]) == 2
        for judged in (numbers["confident"]["seed_crf"], numbers["pseudo"], numbers["pseudo"]["walk"]):
            low, high = judged["miou_interval"]
            assert 0 < low < high < 100
    for judged in (metrics["evaluate"], metrics["evaluate"]["before_retraining"]):
        assert judged["images"] == 6
        assert judged["miou_interval"][0] < judged["miou_interval"][1]
    assert set(metrics["evaluate"]["per_class"]) == {"background", *dataset.classes}
    assert set(metrics["timing"]) == set(EVERYTHING.split(","))
    assert (whole / "figures" / "masks.png").exists()
    assert not (whole / "variants/cam/maps").exists()  # the parent's are used


@pytest.mark.slow
def test_the_numbers_are_those_of_the_files(whole):
    """mIoU anew, from the written masks alone and by another way of counting."""
    dataset = training_set(whole)
    known, wrong = np.zeros(7), np.zeros(7)
    for file in (whole / "pseudo").glob("*/*.png"):
        mask, truth = np.array(Image.open(file)), dataset.mask(file.stem)
        mask[mask == 255] = 0
        for value in range(7):
            known[value] += ((mask == value) & (truth == value)).sum()
            wrong[value] += ((mask == value) ^ (truth == value)).sum()
    per_class = [100 * k / (k + w) for k, w in zip(known, wrong, strict=True) if k + w]
    assert storage.read_json(whole / "metrics.json")["pseudo"]["miou"] == pytest.approx(np.mean(per_class))


@pytest.mark.slow
def test_the_same_command_again_does_nothing(whole):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.suffix in (".png", ".safetensors")}
    _, text = chain(whole, RETRAINED, stages=EVERYTHING)
    assert text.count("done already") == 8
    assert all(file.stat().st_mtime_ns == time for file, time in before.items() if "figures" not in file.parts)
    _, statuses = read_status(whole)
    assert [status.variant for status in statuses] == [None] * 8 + ["cam"] * 3
    assert all(status.done == status.total and not status.failed for status in statuses)


@pytest.mark.on_demand
def test_what_is_missing_is_made_again_with_the_same_bytes_and_numbers(whole, tmp_path):
    """One worker, other batches of images on their walk; damaged and lost files."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    mask_path(out / "confident", "train_0000").unlink()
    mask_path(out / "pseudo", "train_0001").write_bytes(b"half a file")
    for number in (2, 3, 4):
        mask_path(out / "pseudo", f"train_000{number}").unlink()
    mask_path(out / "predictions", "val_0000").unlink()
    chain(out, [*RETRAINED, "cluster.workers=1", "pseudo.batch_images=2"], stages="confident,evaluate")
    (out / "metrics" / "pseudo.json").unlink()
    chain(out, [*RETRAINED, "cluster.workers=1", "pseudo.batch_images=2"], stages="pseudo")
    for folder in ("confident", "pseudo", "predictions"):
        assert masks(out / folder) == masks(whole / folder), folder
    ours, theirs = (storage.read_json(run / "metrics.json") for run in (out, whole))
    for stage in ("confident", "pseudo", "evaluate"):
        assert ours[stage] == theirs[stage]


def test_cam_alone_goes_into_the_variant_and_other_thresholds_are_refused(undisturbed, copy_of, monkeypatch):
    drawn = []
    monkeypatch.setattr("ribray.commands.run.draw_masks", lambda blocks, destination: drawn.extend(blocks))
    out = copy_of(undisturbed)
    chain(out, ["masks.source=cam", "masks.crf=none", BAND], stages="confident")
    assert not (out / "confident").exists()
    made = masks(out / "variants/cam/confident")
    assert len(made) == 10
    with pytest.raises(UsageError, match=r"masks.fg_threshold \(there 0.08, now 0.2\)"):
        chain(out, ["masks.source=cam", "masks.crf=none", "masks.cam.fg_threshold=0.2"], stages="confident")
    chain(out, ["masks.crf=none"], stages="confident")
    assert masks(out / "confident") != made
    assert [set(block.folders) for block in drawn] == [{"confident labels, plain CAM"}, {"confident labels, RIB"}]
    assert [(block.maps, len(block.map_files)) for block in drawn] == [("cam", 10), ("rib", 10)]

    for file in (out / "confident").glob("*/*.png"):  # as earlier versions left them
        file.rename(out / "confident" / file.name)
    (out / "confident" / "train_0002.png").unlink()
    _, text = chain(out, ["masks.crf=none"], stages="confident")
    assert "confident: 10 of 10 images" in text
    assert len(masks(out / "confident")) == 1
    assert len(list_masks(out / "confident")) == 10


@pytest.mark.on_demand
def test_more_images_continue_and_a_training_says_what_it_knows(whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    more = [*RETRAINED, "refine.limit=12"]
    _, text = chain(out, more, stages="refine,seed,confident,irn,pseudo,segmentation")
    assert "irn was trained on 10 images, and 12 have masks now; --redo irn" in text
    assert len(masks(out / "pseudo")) == 12
    assert masks(whole / "pseudo").items() <= masks(out / "pseudo").items()
    assert storage.read_json(out / "metrics.json")["pseudo"]["images"] == 12


@pytest.mark.slow
def test_a_fork_uses_what_still_fits(whole, tmp_path):
    fork = tmp_path / "fork"
    _, text = chain(whole, [*RETRAINED, "evaluate.crf=dense"], stages="segmentation,evaluate", fork=fork)
    assert f"done already in {whole}" in text
    assert len(masks(fork / "predictions")) == 6
    assert not (fork / "segmentation").exists()
    assert storage.read_json(fork / "metrics.json")["evaluate"]["crf"] == "dense"
    on_cams = [*RETRAINED, "masks.source=cam", "pseudo.beta=5"]
    _, text = chain(fork, on_cams, stages="irn,pseudo")
    assert f"done already in {whole / 'variants/cam'}" in text
    assert len(masks(fork / "variants/cam/pseudo")) == 10


@pytest.mark.on_demand
def test_what_cannot_be_read_is_left_out_and_told(whole, tmp_path):
    """A saliency map that is missing, one of another size; a pseudo mask of another size, one with foreign values."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    dataset, saliency = training_set(whole), tmp_path / "saliency"
    saliency.mkdir()
    for id in dataset.ids[:10]:
        Image.fromarray(np.uint8(dataset.mask(id) > 0) * 255).save(saliency / f"{id}.png")
    (saliency / "train_0000.png").unlink()
    Image.new("L", (9, 5)).save(saliency / "train_0001.png")
    settings = [f"masks.saliency={saliency}", "segmentation.batch_size=8", "segmentation.iterations=3"]
    result, _ = chain(out, settings, stages="pseudo", redo="pseudo")
    assert [(failure.id, failure.stage) for failure in result.failures] == [
        ("train_0000", "pseudo"),
        ("train_0001", "pseudo"),
    ]
    assert "9 × 5" in result.failures[1].error
    for id in dataset.ids[2:10]:
        mask, _ = read_mask_file(mask_path(out / "pseudo", id))
        known = mask != 255
        assert ((mask > 0) == (dataset.mask(id) > 0))[known].all()

    palette = dataset.palette
    write_mask(mask_path(out / "pseudo", "train_0002"), np.zeros((5, 9), np.uint8), palette, {"id": "train_0002"})
    write_mask(mask_path(out / "pseudo", "train_0003"), np.full((64, 64), 77, np.uint8), palette, {"id": "train_0003"})
    nothing_known = np.full((64, 64), 255, np.uint8)  # and so no loss
    write_mask(mask_path(out / "pseudo", "train_0004"), nothing_known, palette, {"id": "train_0004"})
    result, _ = chain(out, settings, stages="segmentation,evaluate", redo="segmentation")
    failures = {failure.id: failure.error for failure in result.failures if failure.stage == "segmentation"}
    assert set(failures) == {"train_0002", "train_0003"}
    assert "9 × 5 pixels, but its image is 64 × 64" in failures["train_0002"]
    assert "holds the value 77" in failures["train_0003"]
    log = [json.loads(line) for line in (out / "segmentation" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)


def test_what_a_stage_needs_is_said_before_anything_starts(undisturbed, copy_of, monkeypatch):
    out = copy_of(undisturbed)
    with pytest.raises(UsageError, match=r"masks.saliency=nowhere is no folder"):
        chain(out, ["masks.saliency=nowhere"], stages=EVERYTHING)
    with pytest.raises(UsageError, match="'pseudo' needs stage 'confident'"):
        chain(out, stages="pseudo")
    with pytest.raises(UsageError, match="ImageNet weights"):
        chain(out, ["segmentation.backbone=resnet18", "segmentation.weights=imagenet"], stages=EVERYTHING)
    assert not (out / "confident").exists()
    assert Run.read(out).variants() == {}


@pytest.mark.on_demand
def test_a_truth_that_was_mended_is_judged_and_a_redo_forgets_variants_too(whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    for folder in ("confident", "variants/cam/confident"):
        assert len(masks(out / folder)) == 10
    truth = next((out / "data").iterdir()) / "SegmentationClass" / "train_0005.png"
    content = truth.read_bytes()
    Image.open(truth).resize((32, 32), Image.Resampling.NEAREST).save(truth)  # the same classes, another size
    result, _ = chain(out, RETRAINED, stages="confident", redo="confident")
    assert [(failure.id, failure.stage) for failure in result.failures] == [("train_0005", "confident")]
    assert "not judged" in result.failures[0].error
    assert masks(out / "confident").keys() == masks(whole / "confident").keys()
    assert masks(out / "variants/cam/confident") == {}
    truth.write_bytes(content)
    result, _ = chain(out, RETRAINED, stages="confident")
    assert not result.failures
    assert masks(out / "confident") == masks(whole / "confident")
    ours, theirs = (storage.read_json(run / "metrics.json") for run in (out, whole))
    assert ours["confident"] == theirs["confident"]


@pytest.mark.slow
def test_splits_that_share_images_are_refused(whole):
    with pytest.raises(UsageError, match="'val_0000' is in more than one of"):
        chain(whole, [*RETRAINED, "evaluate.splits=[val,val]"], stages="evaluate")


@pytest.mark.on_demand
@pytest.mark.parametrize(
    ("training", "source", "met"), [("irn", "confident", "8 of"), ("segmentation", "pseudo", "any of")]
)
def test_a_training_whose_masks_are_damaged_is_made_by_the_same_command(training, source, met, whole, tmp_path):
    """The first start sets them aside and fails; the second one makes them again, and the same network from them.

    IRN's two steps ask for eight masks, and for ten images in the end.
    """
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for mask in (out / source).glob("*/*.png"):
        mask.write_bytes(b"no mask")
    with pytest.raises(UnreadableError, match=f"'{training}' cannot read {met} the 10 images to learn from") as raised:
        chain(out, RETRAINED, stages=EVERYTHING, redo=training)
    result = raised.value.result
    assert {failure.stage for failure in result.failures} == {training}
    assert len(result.failures) == (8 if training == "irn" else 10)
    assert training not in result.metrics
    assert result.metrics["seed"] == storage.read_json(whole / "metrics.json")["seed"]
    assert not (out / training).exists()

    result, _ = chain(out, RETRAINED, stages=EVERYTHING)
    assert not result.failures
    for weights in ("irn", "segmentation/first", "segmentation"):
        name = f"{weights}/weights.safetensors"
        assert (out / name).read_bytes() == (whole / name).read_bytes()
