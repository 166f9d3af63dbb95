"""``ribray predict``: the network's own masks, for any photographs, from the run directory alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ribray.config import SegmentationConfig
from ribray.data.dataset import colour_map
from ribray.data.images import read_image
from ribray.data.mask_files import read_mask_file
from ribray.demo.world import palette
from ribray.masks.crf import PREDICTION_CRF, crf_from_probabilities
from ribray.networks.deeplab import build_deeplab, predict
from ribray.networks.weights import save_network
from ribray.report.overlays import mask_overlay
from ribray.runs.metrics import ClassifierMetrics, SegmentationMetrics
from ribray.runs.run import Run
from tests.by_hand import begin, empty_run, key
from tests.made import CLASSES, save_picture

pytestmark = pytest.mark.usefixtures("ray_session")

SEGMENTATION = {"backbone": "small", "weights": "none", "rates": [1, 2], "hidden": 8, "scales": [1.0, 0.5]}
VALUES: dict[str, Any] = {
    "data": {"kind": "folder", "root": "gone", "train_split": "all", "eval_split": "all"},
    "segmentation": SEGMENTATION,
    "evaluate": {"crf": "none"},
    "cluster": {"workers": 2},
}


def network(seed: int = 0):
    """A network whose masks are no single class."""
    torch.manual_seed(seed)
    model = build_deeplab(SegmentationConfig(**SEGMENTATION), len(CLASSES)).eval()
    for name, parameter in model.head.named_parameters():
        torch.nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else 0.5)
    return model


def with_network(directory: Path, values: dict[str, Any] = VALUES, seed: int = 0, **options: Any) -> Run:
    run = empty_run(directory, values)
    folder = begin(run, "segmentation", **options)
    save_network(network(seed), folder / "weights.safetensors")
    Run(directory).write_metrics("segmentation", SegmentationMetrics(loss=1.0, classes=CLASSES))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return with_network(tmp_path / "run").directory


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three photographs of different sizes, in two folders; a text and a hidden file beside them."""
    root = tmp_path / "album"
    save_picture(root / "one.jpg", 1, "cat", (44, 60))
    save_picture(root / "beach" / "day 2" / "two.PNG", 2, "sea", (50, 52))
    save_picture(root / "beach" / "three.webp", 3, "dog", (64, 48))
    (root / "notes.txt").write_text("no image")
    (root / "._one.jpg").write_bytes(b"no image")
    return root


FILES = {"one": "one.jpg", "beach/day 2/two": "beach/day 2/two.PNG", "beach/three": "beach/three.webp"}


def files_below(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_same(mask: np.ndarray, expected: np.ndarray) -> None:
    """But for ties: a worker has another number of threads."""
    assert (mask == expected).mean() > 0.999


def failures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


def test_every_image_of_a_folder_gets_the_networks_mask_and_an_overlay(run, album, tmp_path, ribray, capsys):
    out = tmp_path / "out"
    assert ribray("predict", run, album, "--out", out) == 0, capsys.readouterr()
    expected = {f"{folder}/{id}.png" for folder in ("masks", "overlays") for id in FILES}
    assert set(files_below(out)) == {*expected, "predict.json"}
    model = network()
    for id, name in FILES.items():
        image = read_image(album / name)
        mask, _ = read_mask_file(out / "masks" / f"{id}.png")
        assert_same(mask, predict(model, image, "cpu").argmax(0).numpy())
        assert len(np.unique(mask)) > 1
        overlay = np.array(Image.open(out / "overlays" / f"{id}.png"))
        height, width = mask.shape
        assert overlay.shape[0] > height
        assert np.array_equal(overlay[:height, :width], mask_overlay(image, mask, colour_map()))
    assert "3 of 3 images" in capsys.readouterr().out


def test_what_is_done_is_kept_and_what_failed_is_tried_again(run, album, tmp_path, ribray, capsys):
    out = tmp_path / "out"
    sound = (album / "one.jpg").read_bytes()
    (album / "one.jpg").write_bytes(sound[:-300])
    (album / "beach" / "empty.jpg").write_bytes(b"")
    assert ribray("predict", run, album, "--out", out) == 1
    assert [failure["id"] for failure in failures(out)] == ["beach/empty.jpg", "one.jpg"]
    assert all(failure["stage"] == "predict" and failure["tries"] == 1 for failure in failures(out))
    assert "is empty" in failures(out)[0]["error"]
    assert "2 of 4 images, 2 failed" in capsys.readouterr().out

    (out / "overlays" / "beach" / "three.png").unlink()
    (album / "one.jpg").write_bytes(sound)
    (album / "beach" / "empty.jpg").unlink()
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    assert ribray("predict", run, album, "--out", out) == 0
    assert failures(out) == []
    assert (out / "masks" / "one.png").exists()
    assert (out / "overlays" / "beach" / "three.png").exists()
    changed = {file.name for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed == {"three.png"}
    content = files_below(out)
    assert ribray("predict", run, album, "--out", out) == 0
    assert files_below(out) == content


@pytest.mark.usefixtures("ray_session")
def test_a_pool_writes_the_same_files_as_the_commands_own_process(run, album, tmp_path, ribray):
    for name, workers in (("here", 0), ("pool", 2)):
        assert ribray("predict", run, album, "--out", tmp_path / name, "--workers", workers) == 0
    assert files_below(tmp_path / "here") == files_below(tmp_path / "pool")


def test_one_image_and_the_crf_of_the_run(album, tmp_path, ribray):
    pytest.importorskip("pydensecrf")
    run = with_network(tmp_path / "crf", {**VALUES, "evaluate": {"crf": "dense"}}).directory
    out = tmp_path / "out"
    assert ribray("predict", run, album / "beach" / "three.webp", "--out", out) == 0
    mask, _ = read_mask_file(out / "masks" / "three.png")
    image = read_image(album / "beach" / "three.webp")
    probabilities = predict(network(), image, "cpu").numpy()
    assert_same(mask, crf_from_probabilities(image, probabilities, PREDICTION_CRF).argmax(0))
    assert not np.array_equal(mask, probabilities.argmax(0))


def test_names_come_from_the_classifier_or_the_data_where_training_wrote_none(
    run, album, tmp_path, photographs, ribray
):
    names = []
    kinds = {"segmentation": SegmentationMetrics, "classifier": ClassifierMetrics, "data": None}
    for place, (source, kind) in enumerate(kinds.items()):
        for file in (run / "metrics").iterdir():
            file.unlink()
        if kind is None:
            empty_run(run, {**VALUES, "data": {**VALUES["data"], "root": str(photographs)}})
        else:
            Run(run).write_metrics(source, kind(loss=1.0, classes=CLASSES))
        out = tmp_path / f"out{place}"
        assert ribray("predict", run, album / "one.jpg", "--out", out) == 0
        names.append(json.loads((out / "predict.json").read_text())["classes"])
    assert names == [list(CLASSES)] * 3


def test_settings_changed_since_training_do_not_matter(run, album, tmp_path, ribray):
    changed = {**VALUES, "segmentation": {**SEGMENTATION, "hidden": 16}}
    empty_run(run, changed)
    assert ribray("predict", run, album / "one.jpg", "--out", tmp_path / "out") == 0


def test_a_fork_uses_the_network_of_the_run_it_was_made_from(album, tmp_path, ribray, capsys):
    older = empty_run(tmp_path / "older", VALUES)
    upstream = {"pseudo": key(older.read_experiment(), "pseudo").digest}
    begin(older, "pseudo")
    older = with_network(tmp_path / "older", upstream=upstream)
    same = empty_run(tmp_path / "same", {**VALUES, "evaluate": {"crf": "none", "splits": ["all"]}}, older)
    assert ribray("predict", same.directory, album / "one.jpg", "--out", tmp_path / "out") == 0
    other = empty_run(tmp_path / "other", {**VALUES, "pseudo": {"threshold": 0.9}}, older)
    assert ribray("predict", other.directory, album / "one.jpg", "--out", tmp_path / "out2") == 2
    assert "pseudo,segmentation`" in capsys.readouterr().err


def test_a_drawn_world_keeps_its_colours(album, tmp_path, ribray):
    values = {**VALUES, "data": {"kind": "synthetic", "root": str(tmp_path / "gone")}}
    run = with_network(tmp_path / "world", values).directory
    assert ribray("predict", run, album / "one.jpg", "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "masks" / "one.png") as mask:
        assert mask.getpalette()[:12] == palette(len(CLASSES)).ravel()[:12].tolist()
    assert not (tmp_path / "gone").exists()


def test_the_colours_are_those_of_the_runs_data(run, album, tmp_path, ribray):
    colours = ["#000000", "#c80a14", "#00ff00", "#0000ff"]
    Run(run).write_metrics("segmentation", SegmentationMetrics(loss=1.0, classes=CLASSES, colours=colours))
    assert ribray("predict", run, album / "one.jpg", "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "masks" / "one.png") as mask:
        assert mask.getpalette()[:12] == [0, 0, 0, 200, 10, 20, 0, 255, 0, 0, 0, 255]


def test_how_deep_photographs_were_read_is_said(run, tmp_path, ribray, capsys):
    save_picture(tmp_path / "album" / "one.png", 1, "cat")
    grey = np.array(Image.open(tmp_path / "album" / "one.png").convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / "album" / "one.png")
    assert ribray("predict", run, tmp_path / "album", "--out", tmp_path / "out") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Note: 1 image holds 16-bit values, of which 0 to 4095 are read as black to white." in shown


def test_what_cannot_be_predicted_is_said_in_a_sentence(run, album, tmp_path, ribray, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    out = tmp_path / "out"

    def refused(*arguments: object) -> str:
        assert ribray("predict", *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.strip().splitlines()) == 1
        return error

    assert "no run directory" in refused(album, album, "--out", out)
    untrained = empty_run(tmp_path / "untrained", VALUES)
    chain = "classifier,refine,confident,irn,pseudo,segmentation"
    assert f"--stages {chain}`" in refused(untrained.directory, album, "--out", out)
    begin(untrained, "segmentation")  # begun, not finished
    assert f"--stages {chain}`" in refused(untrained.directory, album, "--out", out)
    assert "does not exist" in refused(run, album / "none.jpg", "--out", out)
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(run, tmp_path / "empty", "--out", out)
    save_picture(album / "one.png", 4, "cat")
    assert "the same mask" in refused(run, album, "--out", out)
    (album / "one.png").unlink()
    assert not out.exists()
    assert "other files" in refused(run, album, "--out", run)
    assert "other files" in refused(run, album, "--out", album)
    assert "other files" in refused(run, album / "beach", "--out", album)


def test_masks_of_another_network_or_other_images_are_not_mixed_in(run, album, tmp_path, ribray, capsys):
    out = album / "out"  # inside the folder: what is written is no image to predict
    for _ in range(2):
        assert ribray("predict", run, album, "--out", out) == 0
    assert "3 of 3 images" in capsys.readouterr().out
    other = with_network(tmp_path / "other", seed=1).directory
    assert ribray("predict", other, album, "--out", out) == 2
    assert ribray("predict", run, album / "beach", "--out", out) == 2
    assert "another network or of other images" in capsys.readouterr().err
