"""Pictures whose values carry little: read as what they show, said once, or found by the check."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ribray.commands.check import TAB, CheckWorker
from ribray.config import DataConfig, RIBConfig, load_experiment
from ribray.data import open_dataset
from ribray.data.depth import Scale
from ribray.data.images import read_mask
from ribray.data.mask_files import mask_path
from ribray.masks.saliency import BINARY
from ribray.methods.worker import RefineWorker
from ribray.networks import build_classifier
from ribray.networks.irnet import build_irnet
from ribray.networks.weights import save_network
from ribray.stages.pseudo import PseudoWorker
from tests.drawn import folder, nine, picture, recipe, save

SAID = "9 images of 'all' hold 16-bit values, of which 0 to 4095 are read as black to white."


def grey_folder(root: Path, top: int, suffix: str = ".png", dtype: type = np.uint16) -> None:
    """Nine grey pictures whose white is ``top``."""
    for number, (id, kinds) in enumerate(folder(root)):
        (root / f"{id}.jpg").unlink()
        grey = picture(number, kinds)[0].astype(float).mean(2)
        scaled = grey / 255 * top
        save((scaled.round() if dtype is not np.float32 else scaled).astype(dtype), root / f"{id}{suffix}")


def records(root: Path) -> dict[str, dict]:
    dataset = open_dataset(DataConfig(kind="folder", root=str(root)), "all")
    worker = CheckWorker({"all": dataset})
    return {id: worker.process(f"all{TAB}{id}") for id in dataset.ids}


@pytest.mark.parametrize(
    ("top", "suffix", "dtype", "scale"),
    [
        (255, ".png", np.uint16, Scale("16-bit", 255)),
        (1023, ".tif", np.uint16, Scale("16-bit", 1023)),
        (4095, ".png", np.uint16, Scale("16-bit", 4095)),
        (65535, ".png", np.uint16, Scale("16-bit", 65535)),
        (4095, ".tif", np.int32, Scale("32-bit", 4095)),
        (1, ".tif", np.float32, Scale("floating-point", 1)),
        (255, ".tif", np.float32, Scale("floating-point", 255)),
    ],
)
def test_deep_pictures_equal_those_of_eight_bits_and_are_sound(tmp_path, top, suffix, dtype, scale):
    grey_folder(tmp_path / "eight", 255, dtype=np.uint8)
    grey_folder(tmp_path / "deep", top, suffix, dtype)
    eight, deep = (
        open_dataset(DataConfig(kind="folder", root=str(tmp_path / name)), "all") for name in ("eight", "deep")
    )
    for id, _ in nine():
        difference = np.abs(deep.image(id).astype(int) - eight.image(id))
        assert difference.max() <= 1
    told = Counter(reading for record in records(tmp_path / "deep").values() for reading in record["readings"])
    assert told == {scale: 9}
    assert not any(record["problems"] for record in records(tmp_path / "deep").values())
    assert not any(record["readings"] or record["problems"] for record in records(tmp_path / "eight").values())


def test_pictures_that_show_nothing_are_findings(tmp_path):
    root = tmp_path / "data"
    folder(root)
    height, width = picture(0, [])[0].shape[:2]
    blank = {"img01": Image.new("L", (width, height), 90), "img02": Image.new("RGBA", (width, height), (9, 90, 200, 0))}
    ones = (picture(3, ["cat"])[0] / 150).astype(np.uint8)
    blank["img03"] = Image.fromarray(ones)
    for id, image in blank.items():
        (root / f"{id}.jpg").unlink()
        image.save(root / f"{id}.png")
    found = {id: record["problems"] for id, record in records(root).items() if record["problems"]}
    assert {id: kind for id, [(kind, _)] in found.items()} == {
        "img01": "single value",
        "img02": "transparent",
        "img03": "low contrast",
    }
    for id, [(_, sentence)] in found.items():
        assert f"{id}.png holds " in sentence


def test_values_of_no_agreed_brightness_are_not_called_truncated(tmp_path):
    grey_folder(tmp_path, 4095, ".tif", np.float32)
    problems = [problem for record in records(tmp_path).values() for problem in record["problems"]]
    assert {kind for kind, _ in problems} == {"values"}
    assert "which have no agreed brightness" in problems[0][1]


def test_saliency_maps_of_0_and_1_give_the_pseudo_masks_of_those_of_0_and_255(tmp_path):
    """One worker in this process, with random networks and saliency maps that are the truth."""
    folder(tmp_path / "data", nine()[:3])
    dataset = open_dataset(DataConfig(kind="folder", root=str(tmp_path / "data")), "all")
    torch.manual_seed(3)
    save_network(build_classifier("small", 3, 8), tmp_path / "classifier.safetensors")
    config = RIBConfig(iterations=1, batch_size=1, scales=(1.0,), loss_scales=(1.0,))
    network = {"backbone": "small", "output_stride": 8}
    weights = tmp_path / "classifier.safetensors"
    RefineWorker(dataset, network, weights, config, "float32", tmp_path / "maps", 1).process("img00")
    experiment = load_experiment(
        str(recipe(tmp_path / "r.yaml", tmp_path / "data", pseudo={"crf": "none", "threshold": 0.0, "exp_times": 2}))
    )
    save_network(build_irnet("small", 8, experiment.irn.displacement_width), tmp_path / "irn.safetensors")
    masks, notes = [], []
    for white in (1, 255):
        saliency, out = tmp_path / f"saliency{white}", tmp_path / f"pseudo{white}"
        save((dataset.mask("img00") > 0).astype(np.uint8) * white, saliency / "img00.png")
        worker = PseudoWorker(
            dataset, out, dataset, tmp_path / "maps", tmp_path / "irn.safetensors", ("small", 8), experiment, saliency
        )
        notes.append(worker.process("img00")["note"])
        masks.append(mask_path(out, "img00").read_bytes())
    assert masks[0] == masks[1]
    mask = read_mask(mask_path(tmp_path / "pseudo1", "img00"))
    assert set(np.unique(mask)) == {1, 255}  # a pixel is the class where the map is salient, and unknown elsewhere
    assert notes == [BINARY, None]


@pytest.mark.usefixtures("ray_session")
def test_how_deep_pictures_were_read_is_said_once(tmp_path, ribray, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    grey_folder(tmp_path / "data", 4095)
    file = recipe(tmp_path / "twelve.yaml", tmp_path / "data")
    assert ribray("check", file, "--out", tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Nothing wrong was found." in shown
    assert shown.count("16-bit") == 1
    assert SAID in shown
