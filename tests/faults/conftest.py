"""A run that has its classifier, and the same run refined and judged without any fault."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ribray.networks import build_classifier
from ribray.networks.weights import load_backbone_weights, save_network
from tests.faults.cases import IMAGES, refined
from tests.tiny import chain, experiment, map_bytes


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What makes a run small: besides tests.tiny, a classifier that needs no training, its head drawn at random."""
    torch.manual_seed(1)
    model = build_classifier("small", experiment().data.synthetic.classes, 8)
    load_backbone_weights(model.backbone, "synthetic")
    file = tmp_path_factory.mktemp("checkpoint") / "classifier.safetensors"
    save_network(model, file)
    return [
        f"classifier.checkpoint={file}",
        f"refine.limit={IMAGES}",
        "refine.precision=float32",
        "refine.explode_ratio=1.0",
        "refine.stop_threshold=1e6",
    ]


@pytest.fixture(scope="session")
def trained(settings: list[str], ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its classifier and nothing else; not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    chain(out, settings, stages="classifier")
    return out


@pytest.fixture(scope="session")
def undisturbed(settings: list[str], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with its maps and its seed, made by one worker; not to be changed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(trained, out)
    chain(out, [*settings, "cluster.workers=1"])
    assert len(map_bytes(out)) == IMAGES
    return out


@pytest.fixture
def half_done(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the run in which the maps of two images out of three are still to be made."""
    out = tmp_path / "half_done"
    shutil.copytree(undisturbed, out)
    for number, id in enumerate(sorted(refined(out))):
        if number % 3:
            refined(out)[id].unlink()
    return out


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a run, to go on with."""

    def copy(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "copies" / run.parent.name))

    return copy
