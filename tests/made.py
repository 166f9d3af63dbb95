"""Runs that tests copy and go on with; and a small folder of photographs, with the command line in this process."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ribray.cli import main
from ribray.networks import build_classifier
from ribray.networks.weights import save_network
from tests.tiny import EVERYTHING, RETRAINED, chain

# --- a drawn world (tests.tiny) ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its classifier and nothing else; not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    chain(out, stages="classifier")
    return out


@pytest.fixture(scope="session")
def undisturbed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run, made by one worker; not to be changed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(trained, out)
    chain(out)
    return out


@pytest.fixture(scope="session")
def whole(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two workers with all stages and re-training, and on plain CAMs up to pseudo masks; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(undisturbed, out)
    chain(out, [*RETRAINED, "cluster.workers=2"], stages=EVERYTHING)
    chain(out, [*RETRAINED, "masks.source=cam"], stages="confident,irn,pseudo")
    return out


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a run, to go on with."""

    def copy(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "copy" / run.parent.name))

    return copy


# --- a folder of photographs -------------------------------------------------------------------------------------

CLASSES = ("cat", "dog", "sea")
COLOURS = {"cat": (200, 60, 40), "dog": (40, 180, 60), "sea": (30, 60, 220)}
SMALL_NETWORK = {"backbone": "small", "output_stride": 8, "weights": "none", "epochs": 1, "batch_size": 4}
SMALL_STEPS = {
    "iterations": 3,
    "batch_size": 4,
    "lr": 1e-3,
    "crop_size": 48,
    "resize_long": [40, 64],
    "scales": [1.0, 0.5],
    "loss_scales": [1.0],
    "explode_ratio": 1.0,
    "stop_threshold": 1e6,
    "precision": "float32",
}

Ribray = Callable[..., int]
"""Runs the command line in this process and returns its exit code."""


@pytest.fixture
def ribray() -> Iterator[Ribray]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def save_picture(path: Path, seed: int, name: str, size: tuple[int, int] = (44, 60)) -> None:
    """Write noise with a patch of the class's colour, (height, width) pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    pixels[8:30, 10:40] = COLOURS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A ``folder`` data root: five images of each of three classes, with masks."""
    root = tmp_path / "photographs"
    rows = ["id,classes"]
    for number in range(5):
        for place, name in enumerate(CLASSES):
            id = f"{name}{number}"
            save_picture(root / f"{id}.jpg", 10 * number + place, name)
            mask = np.zeros((44, 60), np.uint8)
            mask[8:30, 10:40] = place + 1
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{id}.png")
            rows.append(f"{id},{name}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A classifier of three classes with a head drawn at random."""
    torch.manual_seed(3)
    model = build_classifier("small", len(CLASSES), 8)
    save_network(model, tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors"


@pytest.fixture
def recipe(tmp_path: Path, photographs: Path, checkpoint: Path) -> Path:
    """A recipe that refines the photographs from the checkpoint in a second or two."""
    values = {
        "data": {"kind": "folder", "root": str(photographs), "train_split": "all", "eval_split": "all"},
        "classifier": {**SMALL_NETWORK, "crop_size": 48, "resize_long": [40, 64], "checkpoint": str(checkpoint)},
        "refine": SMALL_STEPS,
        "seed_eval": {"thresholds": [0.2, 0.4]},
        "cluster": {"workers": 1},
        "tracking": {"wandb": "disabled"},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file
