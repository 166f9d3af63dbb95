"""A stage that could read too little, or whose every item failed, is not done: it says why and is tried again."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ribray.commands.run import read_status
from ribray.config import ClassifierConfig, DataConfig, IrnConfig, SegmentationConfig, load_experiment
from ribray.data import open_dataset
from ribray.data.dataset import Dataset
from ribray.errors import StageError, UnreadableError
from ribray.networks import build_classifier
from ribray.networks.weights import save_network
from ribray.pipeline.stage import Context
from ribray.pipeline.tasks import require_share
from ribray.pipeline.training import look_ahead
from ribray.runs.metrics import ConfidentMetrics
from ribray.runs.records import Failure
from ribray.runs.run import Run
from ribray.stages import STAGES
from ribray.stages.classifier import ClassifierTask
from ribray.stages.irn import IrnTask
from ribray.stages.segmentation import SegmentationTask
from ribray.tracking import Tracker
from tests.drawn import CLASSES, folder, recipe

ONLY_MAPS = ("--stages", "classifier,refine,seed")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def failed(run: Path) -> dict[str, str]:
    """Stage by image."""
    lines = (run / "failures.jsonl").read_text().splitlines()
    return {line["id"]: line["stage"] for line in map(json.loads, lines)}


def spoil(root: Path, count: int) -> None:
    """Leave nothing but text in the first pictures of a folder."""
    for file in sorted(root.glob("img*.jpg"))[:count]:
        file.write_text("no picture")


# --- counting, without Ray ---------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path) -> Dataset:
    folder(tmp_path / "data")
    return open_dataset(DataConfig(kind="folder", root=str(tmp_path / "data")), "all")


def of_classifier(dataset: Dataset, epochs: int, least: float = 0.5) -> ClassifierTask:
    config = ClassifierConfig(backbone="small", output_stride=8, weights="none", batch_size=4, epochs=epochs)
    return ClassifierTask(config, dataset, dataset, Path("start"), 0, least)


def test_a_training_knows_how_many_images_it_asks_for(pictures, tmp_path):
    assert of_classifier(pictures, 1).wanted() == 8  # of nine in batches of four
    assert of_classifier(pictures, 20).wanted() == 9
    irn = IrnTask(IrnConfig(batch_size=4, epochs=1), ("small", 8), pictures, tmp_path, pictures.ids, tmp_path, 0)
    assert irn.wanted() == 9  # the mean displacement is of all of them
    for iterations, wanted in ((2, 8), (3, 9)):
        config = SegmentationConfig(iterations=iterations, batch_size=4)
        assert SegmentationTask(config, pictures, tmp_path, pictures.ids, tmp_path, 0).wanted() == wanted


@pytest.mark.parametrize(
    ("unreadable", "least", "sentence"),
    [
        (4, 0.5, None),
        (
            5,
            0.5,
            "cannot read 5 of the 8 images to learn from, and data.least_readable=0.5 asks for 4, as with img00: ",
        ),
        (7, 0.0, None),
        (8, 0.0, "cannot read any of the 8 images to learn from, as with img00: img00.jpg is missing; mend them"),
        (0, 1.0, None),
        (1, 1.0, "data.least_readable=1 asks for 8"),
    ],
)
def test_a_training_counts_from_a_share_of_readable_images_on(unreadable, least, sentence):
    errors = {f"img{number:02d}": f"img{number:02d}.jpg is missing." for number in range(unreadable)}
    if sentence is None:
        require_share("irn", 8, errors, least)
        return
    with pytest.raises(UnreadableError) as raised:
        require_share("irn", 8, errors, least)
    assert sentence in str(raised.value)
    assert raised.value.unreadable == errors


def test_held_out_images_that_cannot_be_read_are_not_held_against_a_training(pictures, tmp_path):
    spoil(tmp_path / "data", 9)
    task = of_classifier(pictures, 1)
    model = build_classifier("small", len(CLASSES), 8).eval()
    with torch.no_grad():
        part = task.validate(model, 2, 0, 1, torch.device("cpu"))
    task.require_readable()
    numbers = task.conclude(model, [part])
    assert (numbers["loss"], numbers["map"], numbers["images"], len(numbers["unreadable"])) == (None, None, 0, 9)
    list(task.batches(0, 0, 1))
    with pytest.raises(UnreadableError, match="any of the 8 images"):
        task.require_readable()


@pytest.fixture
def context(pictures, tmp_path) -> Context:
    experiment = load_experiment(str(recipe(tmp_path / "recipe.yaml", tmp_path / "data")))
    run = Run(tmp_path / "run")
    return Context(experiment, run, STAGES, Console(quiet=True), Tracker(experiment, run))


def test_an_empty_folder_is_found_before_anything_starts(context, pictures, tmp_path):
    spoil(tmp_path / "data", 8)
    look_ahead(context, "classifier", pictures, pictures.ids)  # one is enough to begin
    spoil(tmp_path / "data", 9)
    with pytest.raises(
        UnreadableError, match=r"cannot read any of the 9 images to learn from, as with img0\d: .*img0\d.jpg"
    ):
        look_ahead(context, "classifier", pictures, pictures.ids)
    assert failed(tmp_path / "run") == dict.fromkeys(pictures.ids, "classifier")
    many = [f"{id}{number}" for id in pictures.ids for number in range(100)]
    looks = []
    pictures.image_path = lambda id: looks.append(id) or tmp_path / id
    with pytest.raises(UnreadableError, match="any of the 40 images that it looked at, of 900,"):
        look_ahead(context, "classifier", pictures, many)
    assert len(set(looks)) == 40


def test_a_stage_whose_every_item_failed_is_forgotten_but_for_its_failures(context):
    run = context.run
    failures = {id: Failure(id, "confident", f"{id} is bad.") for id in context.training_set.ids}
    run.begin("confident", context.key("confident"))
    run.write_metrics("confident", ConfidentMetrics(images=3))
    context.require_any_done("confident", 10, 1, failures)
    assert run.has_metrics("confident")
    with pytest.raises(
        StageError, match=r"'confident' has done none of its 9 images, as with img00: img00 is bad; mend"
    ):
        context.require_any_done("confident", 9, 0, failures, is_empty=False)  # what it did for other wishes stays
    assert not run.has_metrics("confident")
    assert context.has("confident")
    with pytest.raises(StageError):
        context.require_any_done("confident", 9, 0, failures)
    assert not context.has("confident")
    assert len(run.failures()) == 9


# --- the command line --------------------------------------------------------------------------------------------


def with_classifier(root: Path, **sections) -> Path:
    """Write a recipe that takes a classifier as it is."""
    torch.manual_seed(3)
    save_network(build_classifier("small", len(CLASSES), 8), root / "classifier.safetensors")
    sections["classifier"] = {"checkpoint": str(root / "classifier.safetensors")}
    return recipe(root / "recipe.yaml", root / "data", **sections)


@pytest.mark.usefixtures("ray_session")
def test_pictures_that_are_all_gone_are_told_with_the_reason_and_made_once_they_are_back(tmp_path, ribray, capsys):
    folder(tmp_path / "data")
    file, run = with_classifier(tmp_path), tmp_path / "run"
    shutil.copytree(tmp_path / "data", tmp_path / "sound")
    for picture in (tmp_path / "data").glob("*.jpg"):
        picture.unlink()

    assert ribray("run", file, "--out", run, *ONLY_MAPS) == 1
    shown = capsys.readouterr()
    text = " ".join(shown.out.split())
    assert "9 failed img00 (refine)" in text
    assert "and 8 more of the kind: img01, img02, img03, img04, img05 and 3 more" in text
    assert "seed: not begun, as stage 'refine' failed" in text
    assert shown.err.startswith("error: Stage 'refine' has done none of its 9 images, as with img00: ")
    assert failed(run) == {f"img{number:02d}": "refine" for number in range(9)}
    assert not (run / "metrics" / "refine.json").exists()
    stages = [(one.stage, one.done, one.failed) for one in read_status(run)[1]]
    assert stages == [("classifier", 1, 0), ("refine", 0, 9)]

    shutil.copytree(tmp_path / "sound", tmp_path / "data", dirs_exist_ok=True)
    assert ribray("run", file, "--out", run, *ONLY_MAPS) == 0
    assert "refine: 9 of 9 images in" in capsys.readouterr().out
    assert failed(run) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_stages_that_need_no_truth_run_where_no_truth_can_be_read(tmp_path, ribray, capsys):
    folder(tmp_path / "data")
    file, run = with_classifier(tmp_path), tmp_path / "run"
    shutil.copytree(tmp_path / "data" / "masks", tmp_path / "sound")
    for mask in (tmp_path / "data" / "masks").iterdir():
        mask.write_text("no mask")
    stages = ("--stages", "classifier,refine,seed,confident")

    assert ribray("run", file, "--out", run, *stages) == 1
    shown = capsys.readouterr()
    assert "error: Stage 'seed' has done none of its 9 images, as with img00: " in shown.err
    assert "18 failed" in shown.out
    assert len(list((run / "confident").glob("*/*.png"))) == 9
    assert not (run / "seed").exists()

    shutil.copytree(tmp_path / "sound", tmp_path / "data" / "masks", dirs_exist_ok=True)
    assert ribray("run", file, "--out", run, *stages) == 0
    assert failed(run) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_classifier_that_could_read_too_few_pictures_is_made_by_the_same_command_once_they_are_mended(
    tmp_path, ribray, capsys
):
    """And is the same then, byte for byte, as one that had nothing but sound pictures from the start."""
    folder(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "sound")
    spoil(tmp_path / "data", 6)
    file = recipe(tmp_path / "recipe.yaml", tmp_path / "data", classifier={"epochs": 2})
    assert ribray("run", file, "--out", tmp_path / "run", "--stages", "classifier") == 1
    shown = capsys.readouterr()
    assert "and data.least_readable=0.5 asks for 5, as with img0" in shown.err
    assert "5 failed" in shown.out  # what was met in the first epoch is too much already
    assert not (tmp_path / "run" / "classifier").exists()
    assert set(failed(tmp_path / "run").values()) == {"classifier"}

    shutil.copytree(tmp_path / "sound", tmp_path / "data", dirs_exist_ok=True)
    weights = []
    for out in ("run", "sound_run"):
        assert ribray("run", file, "--out", tmp_path / out, "--stages", "classifier") == 0
        weights.append(digest(tmp_path / out / "classifier" / "weights.safetensors"))
    assert failed(tmp_path / "run") == {}
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_training_goes_on_where_few_pictures_are_bad_and_says_which(tmp_path, ribray, capsys):
    folder(tmp_path / "data")
    spoil(tmp_path / "data", 2)
    file = recipe(tmp_path / "recipe.yaml", tmp_path / "data", classifier={"epochs": 2})
    assert ribray("run", file, "--out", tmp_path / "run", "--stages", "classifier") == 0
    assert "2 image(s) could not be read and were left out; see events/. The first: " in capsys.readouterr().out
    numbers = json.loads((tmp_path / "run" / "metrics" / "classifier.json").read_text())
    assert (numbers["images"], numbers["left_out"]) == (7, 2)
    assert "failed" not in numbers
