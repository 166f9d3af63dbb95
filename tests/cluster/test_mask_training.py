"""IRN and segmentation on Ray Train: two workers take one worker's steps, and an interruption leaves no trace."""

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from ribray.data import open_dataset
from ribray.data.mask_files import read_mask_file, write_mask
from ribray.demo.world import make_world
from ribray.errors import ImageError
from ribray.networks.deeplab import build_deeplab
from ribray.networks.irnet import build_irnet
from ribray.networks.weights import load_backbone_weights, save_network
from ribray.pipeline.artifacts import read_own_mask
from ribray.stages.irn import IrnTask
from ribray.stages.segmentation import SegmentationTask
from tests.tiny import experiment
from tests.training import KilledOnce, train

pytestmark = pytest.mark.usefixtures("ray_session")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SETTINGS = [
    "data.synthetic.train_images=9",
    "segmentation.iterations=6",
    "irn.epochs=3",
    "irn.lr=0.005",
    "segmentation.lr=3e-4",
    "segmentation.scales=[1.0,0.5]",
    "segmentation.precision=float32",  # in which several workers differ from one by little
]
IDS = [f"train_000{number}" for number in range(9)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Images with masks that differ much in what is known of them: from everything to nothing."""
    root = tmp_path_factory.mktemp("world")
    data = experiment(SETTINGS).data
    make_world(root / "data", data.synthetic, data.seed)
    dataset = open_dataset(data, "train", root / "data")
    for number, id in enumerate(IDS):
        mask = dataset.mask(id)
        mask[:, 8 * number :] = 255
        if number % 3 == 0:
            mask[mask == 0] = 255
        write_mask(root / "masks" / f"{id}.png", mask, dataset.palette, {"id": id})
    assert (read_mask_file(root / "masks" / f"{IDS[0]}.png")[0] == 255).all()
    return root


def irn_task(world: Path, of: type = IrnTask) -> IrnTask:
    config = experiment(SETTINGS)
    torch.manual_seed(0)
    model = build_irnet("small", 8, config.irn.displacement_width)
    load_backbone_weights(model.backbone, "synthetic")
    save_network(model, world / "irn.safetensors")
    dataset = open_dataset(config.data, "train", world / "data")
    return of(config.irn, ("small", 8), dataset, world / "masks", IDS, world / "irn.safetensors", 0)


def segmentation_task(world: Path, of: type = SegmentationTask) -> SegmentationTask:
    config = experiment(SETTINGS)
    dataset = open_dataset(config.data, "train", world / "data")
    torch.manual_seed(0)
    model = build_deeplab(config.segmentation, len(dataset.classes))
    load_backbone_weights(model.backbone, "synthetic")
    save_network(model, world / "deeplab.safetensors")
    return of(config.segmentation, dataset, world / "masks", IDS, world / "deeplab.safetensors", 0)


TASKS = {"irn": irn_task, "segmentation": segmentation_task}


@pytest.fixture(scope="module", params=list(TASKS))
def undisturbed(request, world, tmp_path_factory):
    return request.param, *train(TASKS[request.param](world), tmp_path_factory.mktemp("one") / "run", 1)


def losses(log: list[dict]) -> list[float]:
    return [line["loss"] for line in log if "loss" in line]


def test_two_workers_take_the_same_steps_as_one(world, undisturbed, tmp_path):
    """Also where one rank knows nothing of its images: the losses are divided by what all ranks know."""
    name, weights, log = undisturbed
    task = TASKS[name](world)
    known = [
        [(batch.labels != 255).sum().item() for batch in itertools.islice(task.batches(0, rank, 2), 6)]
        for rank in (0, 1)
    ]
    assert max(max(a, b) / max(1, min(a, b)) for a, b in zip(*known, strict=True)) > 1.5
    shared, shared_log = train(task, tmp_path / "two", 2)
    assert len(losses(log)) == 6
    np.testing.assert_allclose(losses(shared_log), losses(log), rtol=5e-5)
    for tensor_name, tensor in weights.items():
        torch.testing.assert_close(shared[tensor_name], tensor, rtol=2e-3, atol=2e-4)


def test_it_learns_and_leaves_alone_what_is_frozen(world, undisturbed):
    name, weights, log = undisturbed
    start = load_file(world / f"{'irn' if name == 'irn' else 'deeplab'}.safetensors")
    assert np.mean(losses(log)[-2:]) < np.mean(losses(log)[:2])
    for tensor_name in weights:
        same = torch.equal(weights[tensor_name], start[tensor_name])
        is_frozen = "running" in tensor_name or "num_batches" in tensor_name
        if name == "irn":
            is_frozen = tensor_name.startswith("backbone.")
        assert same == is_frozen, tensor_name


class IrnKilledOnce(KilledOnce, IrnTask):
    killed_at = 4


class SegmentationKilledOnce(KilledOnce, SegmentationTask):
    killed_at = 4


@pytest.mark.slow
def test_a_killed_worker_goes_on_in_the_middle_with_the_same_weights(world, undisturbed, tmp_path):
    name, weights, log = undisturbed
    disturbed = TASKS[name](world, of=IrnKilledOnce if name == "irn" else SegmentationKilledOnce)
    disturbed.marker = tmp_path / "killed"
    again, log_again = train(disturbed, tmp_path / "run", 1, checkpoint_steps=3)
    assert disturbed.marker.exists()
    assert log_again == log
    for tensor_name, tensor in weights.items():
        assert torch.equal(again[tensor_name], tensor), tensor_name


def test_an_unreadable_mask_is_told_and_counts_nothing(world, tmp_path):
    task = segmentation_task(world)
    task.images._masks = tmp_path / "nowhere"
    batch = next(task.batches(0, 0, 1))
    assert (batch.labels == 255).all()
    assert not batch.readable.any()
    assert task.unreadable == batch.errors
    assert len(batch.errors) == 4
    assert all("does not exist" in error for error in batch.errors.values())


def test_a_mask_with_foreign_values_is_named_by_its_file(world, tmp_path):
    file = tmp_path / "mask.png"
    dataset = segmentation_task(world).images.dataset
    write_mask(file, np.full((64, 64), 77, np.uint8), dataset.palette, {"id": "mask"})
    with pytest.raises(ImageError, match=rf"^{re.escape(str(file))} holds the value 77, ") as caught:
        read_own_mask(file, "mask", dataset, (64, 64))
    assert "built-in" not in str(caught.value)
