"""One class: photographs that show it, and perhaps photographs known to show nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ribray.config import ClassifierConfig, DataConfig, RIBConfig
from ribray.data import open_dataset
from ribray.data.dataset import Dataset
from ribray.errors import ImageError
from ribray.methods.worker import RefineWorker
from ribray.networks import build_classifier
from ribray.networks.weights import save_network
from ribray.pipeline.maps import map_path
from ribray.stages.classifier import ClassifierTask
from tests.drawn import Item, folder, recipe

CLASSES = ("polyp",)
SHOWN: list[Item] = [(f"has{number}", CLASSES) for number in range(4)]
EMPTY: list[Item] = [(f"not{number}", ()) for number in range(3)]
STEPS = {
    "iterations": 3,
    "lr": 1e-3,
    "crop_size": 48,
    "resize_long": [40, 64],
    "scales": [1.0, 0.5],
    "loss_scales": [1.0],
    "explode_ratio": 1.0,
    "stop_threshold": 1e6,
}


def opened(root: Path, items: list[Item], classes: tuple[str, ...] = CLASSES) -> Dataset:
    folder(root, items, classes=classes)
    return open_dataset(DataConfig(kind="folder", root=str(root)), "all")


def checkpoint(root: Path, classes: int = 1) -> Path:
    torch.manual_seed(3)
    save_network(build_classifier("small", classes, 8), root / f"{classes}.safetensors")
    return root / f"{classes}.safetensors"


def refined(dataset: Dataset, out: Path, id: str = "has0", **changes: object) -> tuple[dict, bytes]:
    """Return the record and the map file of an image."""
    out.mkdir(exist_ok=True)
    network, config = {"backbone": "small", "output_stride": 8}, RIBConfig(**STEPS | changes)
    weights = checkpoint(out, len(dataset.classes))
    record = RefineWorker(dataset, network, weights, config, "float32", out, loader_threads=1).process(id)
    return record, map_path(out, id).read_bytes()


def test_empty_images_add_nothing_to_l_rib_so_none_is_drawn(tmp_path):
    dataset = opened(tmp_path / "data", [*SHOWN, *EMPTY])
    alone, expected = refined(dataset, tmp_path / "alone", batch_size=1)
    record, maps = refined(dataset, tmp_path / "beside", batch_size=3)
    assert maps == expected
    assert (record["extras"], record["only_empty"]) == (0, True)
    assert (alone["extras"], alone["only_empty"]) == (0, False)


@pytest.mark.parametrize("loss", ["bce_sigmoid", "bce_tanh", "bce_softsign"])
def test_empty_images_are_drawn_for_a_loss_that_learns_from_them(tmp_path, loss):
    dataset = opened(tmp_path / "data", [*SHOWN, *EMPTY])
    _, alone = refined(dataset, tmp_path / "alone", batch_size=1, loss=loss)
    record, maps = refined(dataset, tmp_path / "beside", batch_size=3, loss=loss)
    assert maps != alone
    assert (record["extras"], record["only_empty"]) == (2, True)


def test_an_image_with_disjoint_others_has_these_and_no_empty_ones(tmp_path):
    items = [("both", ("cat", "dog")), ("cat", ("cat",)), ("dog", ("dog",)), ("none", ())]
    dataset = opened(tmp_path / "data", items, ("cat", "dog"))
    record, _ = refined(dataset, tmp_path / "out", "cat", batch_size=4)
    assert (record["extras"], record["only_empty"]) == (1, False)
    record, _ = refined(dataset, tmp_path / "out", "both", batch_size=4)
    assert (record["extras"], record["only_empty"]) == (0, True)


def test_the_reason_of_an_image_without_any_other_is_true(tmp_path):
    items = [("both", ("cat", "dog")), ("cat", ("cat",)), ("dog", ("dog",))]
    dataset = opened(tmp_path / "data", items, ("cat", "dog"))
    with pytest.raises(ImageError, match=r"both has .* every other one shares a class with it; .*refine.batch_size=1"):
        refined(dataset, tmp_path / "out", "both", batch_size=2)


@pytest.mark.parametrize("classes", [CLASSES, ("cat", "polyp")])
def test_a_class_on_every_image_is_refused_before_anything_starts(tmp_path, ribray, capsys, classes):
    items = [*SHOWN, *([("more", classes)] if len(classes) > 1 else [])]
    folder(tmp_path / "data", items, classes=classes)
    file = recipe(tmp_path / "one.yaml", tmp_path / "data")
    assert ribray("run", file, "--out", tmp_path / "run", "--stages", "classifier,refine") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "Every image of split 'all'" in error
    assert "shows the class 'polyp', so none can serve as an extra sample of another" in error
    assert "set refine.batch_size=1" in error
    assert not (tmp_path / "run" / "classifier").exists()


@pytest.mark.usefixtures("ray_session")
def test_what_empty_images_mean_is_said_once(tmp_path, ribray, capsys):
    folder(tmp_path / "data", [*SHOWN, *EMPTY], classes=CLASSES)
    settings = {"checkpoint": str(checkpoint(tmp_path))}
    file = recipe(tmp_path / "one.yaml", tmp_path / "data", classifier=settings)
    assert ribray("run", file, "--out", tmp_path / "run", "--stages", "classifier,refine") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("no others without their classes") == 1
    assert "For 4 image(s) there were no others without their classes but those that show no class at all" in shown
    assert "add nothing to L_RIB, so these were refined as with refine.batch_size=1" in shown


def test_without_a_negative_there_is_no_map_of_the_classifier(tmp_path):
    config = ClassifierConfig(backbone="small", output_stride=8, weights="none", batch_size=2, epochs=1)

    def concluded(dataset: Dataset) -> dict:
        task = ClassifierTask(config, dataset, dataset, tmp_path / "start", 0)
        logits = np.linspace(1, -1, len(dataset), dtype=np.float32)[:, None]
        part = {"logits": logits, "labels": dataset.labels.astype(np.float32), "errors": {}}
        return task.conclude(task, [part])  # type: ignore[arg-type] - the network does not enter

    ranked = concluded(opened(tmp_path / "some", [*SHOWN, *EMPTY]))
    assert ranked["map"] == 100.0
    unranked = concluded(opened(tmp_path / "all", SHOWN))
    assert unranked["map"] is None
    assert unranked["loss"] > 0
