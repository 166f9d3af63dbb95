"""Truth that disagrees with the labels: masks whose numbers mean something else, or nothing."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ribray.commands import check
from ribray.commands.check import CheckWorker
from ribray.config import DataConfig, load_experiment
from ribray.data import Dataset, open_dataset, truth
from ribray.data.dataset import values_of
from ribray.errors import UsageError
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.mask_counts import MaskCounts
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.pipeline.stage import Context
from ribray.report.charts import curves_of
from ribray.report.stage_tables import headline
from ribray.report.tables import chain_table, evaluation_tables, seed_table
from ribray.runs.metrics import RunMetrics
from ribray.runs.run import Run
from ribray.stages import STAGES
from ribray.tracking import Tracker
from tests import drawn

Spoil = Callable[[np.ndarray], np.ndarray]


def open_folder(root: Path) -> Dataset:
    return open_dataset(DataConfig(kind="folder", root=str(root), train_split="all", eval_split="all"), "all")


def spoil(root: Path, change: Spoil) -> None:
    """Change every mask of a folder of photographs."""
    for file in sorted((root / "masks").glob("*.png")):
        drawn.save(change(np.array(Image.open(file))).astype(np.uint8), file)


def looked_at(dataset: Dataset) -> tuple[Counter[str], truth.Tally, list[str]]:
    """Return findings by kind, the tally, and the sentences that a check of a data set would make."""
    worker, tally = CheckWorker({"all": dataset}), truth.Tally(dataset)
    kinds, sentences = Counter(), []
    for id in reversed(dataset.ids):
        record = worker.process(f"all{check.TAB}{id}")
        kinds.update(kind for kind, _ in record["problems"])
        sentences += [sentence for _, sentence in record["problems"]]
        if record["truth"] is not None:
            tally.add(id, record["truth"], dataset.labels[dataset.index(id)])
    return kinds, tally, sentences


def moved(table: dict[int, int]) -> Spoil:
    """Return what writes other values in a mask's place."""
    values = np.arange(256, dtype=np.uint8)
    values[list(table)] = list(table.values())
    return lambda mask: values[mask]


def resized(mask: np.ndarray) -> np.ndarray:
    """A mask as smooth resizing makes it."""
    smaller = Image.fromarray(mask).resize((40, 30), Image.Resampling.NEAREST)
    return np.array(smaller.resize(mask.shape[::-1], Image.Resampling.BILINEAR))


# --- what check finds ----------------------------------------------------------------------------------------------

CASES: dict[str, tuple[Spoil, dict[str, int], str | None]] = {
    "sound": (lambda mask: mask, {}, None),
    "0 and 255": (moved({1: 255, 2: 255, 3: 255}), {truth.UNWRITTEN: 9}, None),
    "nothing": (np.zeros_like, {truth.UNSEEN: 9}, None),
    "nothing that counts": (lambda mask: np.full_like(mask, 255), {truth.UNWRITTEN: 9}, None),
    "counted from 0, background 255": (
        moved({0: 255, 1: 0, 2: 1, 3: 2}),
        {truth.UNWRITTEN: 3, truth.UNLABELLED: 6, truth.UNSEEN: 6},
        "one too low: 0 stands for 'cat' (1), 1 stands for 'dog' (2), 2 stands for 'sea' (3)",
    ),
    "counted from 0, background 0": (
        moved({1: 0, 2: 1, 3: 2}),
        {truth.UNSEEN: 9, truth.UNLABELLED: 6},
        "one too low: 1 stands for 'dog' (2), 2 stands for 'sea' (3)",
    ),
    "background counted as the first class": (
        lambda mask: mask + 1,
        {"mask values": 3, truth.UNLABELLED: 6, truth.UNSEEN: 3},
        "one too high: 2 stands for 'cat' (1), 3 stands for 'dog' (2), 4 stands for 'sea' (3)",
    ),
    "two classes swapped": (
        moved({1: 2, 2: 1}),
        {truth.UNLABELLED: 6, truth.UNSEEN: 6},
        "go with other classes: 2 stands for 'cat' (1), 1 stands for 'dog' (2). Write",
    ),
    "background last": (
        moved({0: 3, 1: 0, 2: 1, 3: 2}),
        {truth.UNLABELLED: 9, truth.UNSEEN: 6},
        "one too low: 0 stands for 'cat' (1)",
    ),
    "one value for all classes": (
        moved({2: 1, 3: 1}),
        {truth.UNLABELLED: 6, truth.UNSEEN: 6},
        "one value, 1, for all classes in the masks. Where a class is, write its number: 1 for 'cat', 2 for 'dog', ",
    ),
    "grey of 128": (moved({1: 128, 2: 128, 3: 128}), {"mask values": 9}, "one value, 128, for all classes"),
    "greys of the classes": (
        moved({1: 80, 2: 160, 3: 240}),
        {"mask values": 9},
        "80 stands for 'cat' (1), 160 stands for 'dog' (2), 240 stands for 'sea' (3)",
    ),
    "smooth resize": (resized, {truth.RIMS: 6}, None),
    "smooth resize of 0 and 255": (
        lambda mask: resized(np.where(mask > 0, 255, 0).astype(np.uint8)),
        {"mask values": 9, truth.RIMS: 9},
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_masks_that_do_not_speak_of_the_labels_are_found(name, tmp_path):
    change, expected, told = CASES[name]
    drawn.folder(tmp_path)
    spoil(tmp_path, change)
    kinds, tally, _ = looked_at(open_folder(tmp_path))
    assert dict(kinds) == expected
    numbering = tally.numbering()
    assert (told is None and numbering is None) or told in numbering
    assert (tally.sentence() is None) == (not tally.kinds)


def test_each_disagreement_is_a_sentence_that_says_what_would_be_right(tmp_path):
    items = [("p0", ["polyp"]), ("p1", ["polyp"]), ("not", [])]
    drawn.folder(tmp_path, items, classes=("polyp",))
    drawn.save(np.eye(*drawn.SIZE, dtype=np.uint8) * 255, tmp_path / "masks" / "p0.png")
    drawn.save(np.zeros(drawn.SIZE, np.uint8), tmp_path / "masks/p1.png")
    drawn.save(np.ones(drawn.SIZE, np.uint8), tmp_path / "masks/not.png")
    dataset = open_folder(tmp_path)
    _, tally, sentences = looked_at(dataset)
    assert sorted(sentences) == [
        "The mask of not shows 'polyp' (1), which the image is not labelled with: it has no label.",
        "The mask of p0 holds only 0 and 255: 0 is background and 255 says that a pixel does not count. Where 'polyp' "
        "is, write 1.",
        "The mask of p1 has no pixel of 'polyp' (1), which the image is labelled with.",
    ]
    assert tally.sentence() == (
        f"In 3 of 3 images of {dataset.name} the mask disagrees with the labels (1 × a mask of 0 and 255 only, such as "
        "p0, 1 × a class that is not labelled, such as not, 1 × a label without a pixel, such as p1): see ribray check."
    )


@pytest.mark.parametrize("empties", [0, 1])
@pytest.mark.parametrize("ring", [False, True])
def test_numbers_of_objects_are_no_other_numbering_of_the_classes(empties, ring, tmp_path):
    items = [(f"p{number}", ["polyp"]) for number in range(9)] + [("not", [])][:empties]
    drawn.folder(tmp_path, items, classes=("polyp",))
    for number, (id, kinds) in enumerate(items):
        mask = drawn.picture(number, kinds, ("polyp",))[1] * np.uint8(number % 3 + 1)
        if ring and kinds:
            mask[0] = 255
        drawn.save(mask, tmp_path / "masks" / f"{id}.png")
    kinds, tally, _ = looked_at(open_folder(tmp_path))
    assert kinds["mask values"] == 6
    assert tally.numbering() == (
        "The values of the masks run from 1 to 3, but there is 1 class, 'polyp'. If they number the objects, write the "
        "number of its class on each object (or add the classes that are missing)."
    )
    assert tally.no_background() is None


def test_a_mask_filled_by_its_object_makes_no_class_of_0(tmp_path):
    items = [(f"p{number:02d}", ["polyp"]) for number in range(20)]
    drawn.folder(tmp_path, items, classes=("polyp",))
    spoil(tmp_path, moved({1: 7}))
    drawn.save(np.full(drawn.SIZE, 1, np.uint8), tmp_path / "masks" / "p00.png")
    _, tally, _ = looked_at(open_folder(tmp_path))
    assert "0 stands for" not in (tally.numbering() or "")


def test_one_wrong_mask_among_many_is_no_other_order_of_the_classes(tmp_path):
    drawn.folder(tmp_path)
    file = tmp_path / "masks" / "img04.png"
    drawn.save(moved({2: 1})(np.array(Image.open(file))), file)
    kinds, tally, _ = looked_at(open_folder(tmp_path))
    assert dict(kinds) == {truth.UNLABELLED: 1, truth.UNSEEN: 1}
    assert tally.numbering() is None
    assert not tally.is_large


def test_an_object_of_a_class_that_is_not_labelled_is_no_rim(tmp_path):
    drawn.folder(tmp_path, [("one", ["cat", "sea"]), ("two", ["dog"])])
    file = tmp_path / "masks" / "one.png"
    mask = np.array(Image.open(file))
    mask[2:8, 2:8] = 2
    drawn.save(mask, file)
    kinds, _, _ = looked_at(open_folder(tmp_path))
    assert dict(kinds) == {truth.UNLABELLED: 1}
    assert truth.rim_values(mask, np.array([2])).size == 0
    mask[2:8, 2:8] = 0
    rim = (mask[:, 1:] > 0) & (mask[:, :-1] == 0)
    mask[:, 1:][rim & (mask[:, 1:] == 3)] = 2
    assert truth.rim_values(mask, np.array([2])).tolist() == [2]


# --- what a data set explains ----------------------------------------------------------------------------------------


def test_a_class_of_crowds_or_behind_another_object_may_be_without_a_pixel(tmp_path):
    def crowd(one, number, mask):
        rows, columns = mask.shape
        box = [[0, 0, columns, 0, columns, rows, 0, rows]]
        return {**one, "iscrowd": 1, "segmentation": box} if number == 0 and one["category_id"] == 1 else one

    content = drawn.coco(tmp_path, instance=crowd)
    behind = {**content["annotations"][1], "id": 99, "category_id": 3}  # drawn first, and all of it covered
    content["annotations"].insert(1, behind)
    file = tmp_path / "annotations" / "instances_train2014.json"
    file.write_text(json.dumps(content))
    config = DataConfig(kind="coco", root=str(tmp_path), train_split="train", eval_split="train")
    dataset = open_dataset(config, "train")
    assert dataset.hidden_classes("img00").tolist() == [True, False, False]
    assert dataset.hidden_classes("img01").tolist() == [False, True, True]
    assert dataset.hidden_classes("img02").tolist() == [False, False, True]
    kinds, tally, _ = looked_at(dataset)
    assert not kinds
    assert tally.numbering() is None


def test_objects_that_voc_marks_difficult_need_no_outline(tmp_path):
    first, second, *_ = drawn.voc(tmp_path)
    for id, mark in ((first, 1), (second, 0)):
        drawn.save(np.eye(*drawn.SIZE, dtype=np.uint8) * 255, tmp_path / "SegmentationClass" / f"{id}.png")
        file = tmp_path / "Annotations" / f"{id}.xml"
        file.write_text(file.read_text().replace("</name>", f"</name><difficult>{mark}</difficult>"))
    dataset = open_dataset(DataConfig(kind="voc", root=str(tmp_path), train_split="train", eval_split="train"), "train")
    kinds, _, sentences = looked_at(dataset)
    assert dict(kinds) == {truth.UNWRITTEN: 1}
    assert f"The mask of {second} holds only" in sentences[0]


class Crowds(Dataset):
    """Images whose objects are all crowds, one class in each image but the last."""

    def __init__(self, count: int = 4) -> None:
        labels = np.ones((count, 1), bool)
        labels[-1] = False
        super().__init__("crowds", ["cow"], [str(number) for number in range(count)], labels)

    has_masks = True

    def image_path(self, id):
        raise NotImplementedError

    def hidden_classes(self, id):
        return self.labels[self.index(id)]

    def mask(self, id):
        return np.full((4, 4), 255 if self.hidden_classes(id).any() else 0, np.uint8)

    _read_mask = mask


def test_truth_of_crowds_only_is_neither_refused_nor_found():
    dataset = Crowds()
    truth.require_foreground(dataset, dataset.ids, lambda: False)
    tally = truth.Tally(dataset)
    for id in dataset.ids:
        tally.add(id, truth.compare(dataset, id, dataset.mask(id)).record, dataset.labels[dataset.index(id)])
    assert tally.sentence() is None
    assert tally.numbering() is None  # 255 does not stand for the class, though they always come together


# --- what run refuses ------------------------------------------------------------------------------------------------


def context_of(root: Path, folder: Path) -> Context:
    experiment = load_experiment(str(drawn.recipe(folder / "recipe.yaml", root)), [])
    run = Run(folder / "run")
    return Context(experiment, run, STAGES, Console(quiet=True), Tracker(experiment, run))


@pytest.mark.parametrize("stage", ["seed", "confident", "pseudo", "evaluate"])
@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (
            moved({1: 255, 2: 255, 3: 255}),
            "hold only 0 and 255, where 0 is background and 255 says that a pixel does not",
        ),
        (np.zeros_like, "hold only 0, where 0 is background. Where a class is, write its number: 1 for 'cat'"),
    ],
)
def test_truth_without_any_foreground_is_refused_before_anything_starts(stage, change, phrase, tmp_path):
    root = tmp_path / "data"
    drawn.folder(root, [*drawn.nine(), ("none", [])])
    spoil(root, change)
    context = context_of(root, tmp_path)
    with pytest.raises(
        UsageError, match="show no class, so nothing can be judged by them: those of 9 labelled"
    ) as refused:
        STAGES[stage].check(context)
    assert phrase in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_one_mask_with_foreground_is_enough_and_no_more_are_read(tmp_path, monkeypatch):
    drawn.folder(tmp_path)
    dataset = open_folder(tmp_path)
    looked = []
    monkeypatch.setattr(truth, "values_of", lambda mask: looked.append(1) or values_of(mask))
    truth.require_foreground(dataset, dataset.ids, lambda: False)
    assert len(looked) == 1
    for number in range(8):
        drawn.save(np.zeros(drawn.SIZE, np.uint8), tmp_path / "masks" / f"img0{number}.png")
    truth.require_foreground(dataset, dataset.ids, lambda: False)
    with pytest.raises(UsageError, match="those of 8 labelled"):
        truth.require_foreground(dataset, dataset.ids[:8], lambda: False)
    truth.require_foreground(dataset, dataset.ids[:8], lambda: True)


def test_images_known_to_be_empty_and_masks_that_are_not_there_say_nothing(tmp_path):
    drawn.folder(tmp_path, [("none", []), ("some", ["cat"])])
    (tmp_path / "masks" / "some.png").unlink()
    dataset = open_folder(tmp_path)
    truth.require_foreground(dataset, dataset.ids, lambda: False)


def test_a_run_with_masks_of_0_and_255_says_so_and_makes_nothing(tmp_path, ribray, capsys):
    drawn.folder(tmp_path / "data", [(f"p{number}", ["polyp"]) for number in range(3)], classes=("polyp",))
    spoil(tmp_path / "data", moved({1: 255}))
    recipe = drawn.recipe(tmp_path / "white.yaml", tmp_path / "data", refine={"batch_size": 1})
    assert ribray("run", recipe, "--out", tmp_path / "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "hold only 0 and 255, where 0 is background and 255 says that a pixel does not count" in said
    assert "Where 'polyp' is, write 1" in said
    assert not (tmp_path / "run" / "classifier").exists()


@pytest.mark.lengthy
def test_a_run_says_what_its_numbers_cannot_show(tmp_path, ribray, capsys):
    drawn.folder(tmp_path / "data")
    spoil(tmp_path / "data", moved({0: 255}))
    small = {"batch_size": 4, "crop_size": 48}
    sections = {
        "cluster": {"workers": 0},
        "masks": {"crf": "none"},
        "irn": {"epochs": 1, **small},
        "pseudo": {"crf": "none", "exp_times": 2},
        "segmentation": {"iterations": 1, "hidden": 8, "scales": [1.0], **small},
        "evaluate": {"crf": "none"},
    }
    assert (
        ribray("run", drawn.recipe(tmp_path / "x.yaml", tmp_path / "data", **sections), "--out", tmp_path / "run") == 0
    )
    shown = " ".join(capsys.readouterr().out.split())
    for stage in ("seed", "confident", "pseudo", "evaluate"):
        lacking = f"Warning: {stage}: no pixel of background counts in the truth of the 9 images judged"
        assert f"{lacking}, so covering too much of it costs nothing: write 0, not 255, where" in shown
    assert "9 of these 9 images were trained on, so they are not held out." in shown


# --- images without a mask -------------------------------------------------------------------------------------------


def test_images_without_a_mask_are_named_where_others_have_one():
    without = [f"img{number}" for number in (7, 3, 9, 1, 5)]
    assert truth.note_on_missing("split 'all'", [], 4) is None
    assert truth.note_on_missing("split 'all'", without, 0) is None
    assert truth.note_on_missing("split 'all'", without, 4) == (
        "5 of 9 images of split 'all' have no mask, so they are not judged: img1, img3, img5, …."
    )


@pytest.mark.usefixtures("ray_session")
def test_check_tells_of_a_set_that_counts_from_0_and_of_images_without_a_mask(tmp_path, ribray, capsys):
    root = tmp_path / "data"
    drawn.folder(root, [*drawn.nine(), ("one", ["cat"]), ("two", ["dog"])])
    spoil(root, moved({0: 255, 1: 0, 2: 1, 3: 2}))
    for id in ("one", "two"):
        (root / "masks" / f"{id}.png").unlink()
    assert ribray("check", drawn.recipe(tmp_path / "recipe.yaml", root), "--out", tmp_path / "out") == 1
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    kinds = Counter(finding["kind"] for finding in report["findings"])
    assert kinds == {truth.NUMBERS: 1, truth.UNWRITTEN: 3, truth.UNLABELLED: 6, truth.UNSEEN: 6}
    missing, shared = report["notes"]
    assert missing == f"2 of 11 images of split 'all' of {root} have no mask, so they are not judged: one, two."
    assert shared.startswith(f"11 of the 11 images of split 'all' of {root}, which results are judged on, are trained")
    assert "mask numbers: 1" in capsys.readouterr().out


# --- headlines -------------------------------------------------------------------------------------------------------


def test_a_mean_over_images_without_foreground_is_none():
    empty, found = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    found[0] = 1
    curve = Bootstrapped(ThresholdCurve(2, [0.2, 0.4]))
    counts = Bootstrapped(MaskCounts(2))
    for number, predicted in enumerate((empty, found)):
        one, mask = ThresholdCurve(2, [0.2, 0.4]), MaskCounts(2)
        one.add(predicted, predicted.astype(np.float32), empty)
        mask.add(predicted, empty)
        curve.merge(str(number), one.to_sparse())
        counts.merge(str(number), mask.to_sparse())
    names = ["background", "polyp"]
    nothing = dict.fromkeys(names)
    assert curve.summary(names) == {
        "miou": None, "miou_interval": None, "threshold": None, "per_class": nothing, "images": 2
    }  # fmt: skip
    assert counts.summary(names) == {
        "miou": None, "miou_interval": None, "per_class": nothing, "unknown": 0.0, "miou_known": None, "images": 2
    }  # fmt: skip
    one = MaskCounts(2)
    one.add(found, found)
    counts.merge("2", one.to_sparse())
    assert counts.summary(names)["miou"] == pytest.approx((100 * 40 / 44 + 100 * 4 / 8) / 2)


def test_tables_of_a_run_without_a_mean_show_none():
    nothing = {
        "miou": None,
        "miou_interval": None,
        "per_class": {"background": None, "polyp": None},
        "images": 2,
        "failed": 1,
    }
    judged = {"cam": {**nothing, "threshold": None}, "rib": {**nothing, "threshold": None}}
    metrics = RunMetrics(seed=judged, confident={"seed_crf": nothing}, evaluate=nothing)
    told = {name: headline(numbers, STAGES[name]) for name, numbers in metrics.stages().items()}
    assert told == {"seed": "mIoU – → –", "confident": "mIoU –", "evaluate": "mIoU –"}
    assert any(seed_table(metrics.seed.maps).groups)
    assert chain_table(metrics, STAGES, "rib") is None
    assert evaluation_tables(metrics, STAGES, "rib", ["val"]) == []
    assert curves_of(metrics.seed.maps) == {}
