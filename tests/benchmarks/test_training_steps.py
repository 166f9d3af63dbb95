"""Benchmarks ``classifier``, ``irn`` and ``segmentation`` at a tiny size, one of them on Ray Train."""

import contextlib

import pytest
import torch

from ribray.commands import bench
from ribray.config import load_experiment
from ribray.data import open_dataset
from ribray.data.transforms import IMAGENET
from ribray.pipeline.batches import Batch
from tests.benchmarks.figures import values

SMALL = ["classifier.backbone=small", "classifier.output_stride=8"]
TINY = {
    "classifier": [*SMALL, "classifier.batch_size=4", "classifier.crop_size=48", "classifier.resize_long=[40,60]"],
    "irn": [*SMALL, "irn.batch_size=4", "irn.crop_size=48", "irn.displacement_width=64"],
    "segmentation": [
        "segmentation.backbone=small",
        "segmentation.rates=[1,2]",
        "segmentation.hidden=8",
        "segmentation.batch_size=4",
        "segmentation.crop_size=48",
    ],
}


def take_steps(task, plan):
    """What Ray Train's loop does with a training, as far as this benchmark is concerned; returns the precisions."""
    model = task.model()
    optimizer = task.optimizer(model)
    precisions = []
    for batch in task.batches(0, 0, 1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.precision == "bfloat16"):
            loss = task.loss(model, batch, torch.device("cpu"), lambda counts: counts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        precisions.append(task.precision)
    task.save(model, plan.folder / plan.weights)
    assert len(precisions) == task.steps
    return precisions


@pytest.mark.slow
def test_the_classifiers_training_is_measured_on_ray_train(ray_session):
    result = bench.load("classifier").run(steps=1, rounds=2, item=TINY["classifier"], size=(48, 64))
    found = values(result)
    assert {figure["runs"] for figure in result["figures"].values()} == {2}
    assert all(value > 0 for value in found.values())
    assert result["settings"]["batch_size"] == 4
    assert "Baseline" in result["notes"][0]


@pytest.mark.parametrize("name", ["classifier", "irn", "segmentation"])
def test_a_training_and_its_steps_in_memory_take_turns(companion, name, monkeypatch):
    training_steps, runs = companion("training_steps"), []
    monkeypatch.setattr(training_steps, "connect", lambda config: contextlib.nullcontext(type("", (), {"gpus": 0})))
    monkeypatch.setattr(training_steps, "run_training", lambda task, plan: runs.append(take_steps(task, plan)))
    result = bench.load(name).run(steps=2, rounds=1, item=TINY[name], size=(48, 64))
    found = values(result)
    assert runs == [["float32", "float32", "bfloat16", "bfloat16"] * 2 + ["bfloat16"]]
    share = 100 * found["training, float32"] / found["steps on tensors in memory, float32"]
    assert found["share of the steps in memory, float32"] == pytest.approx(share)


def test_the_settings_for_a_cpu_are_valid(companion, tmp_path):
    pictures = companion("pictures")
    data, _ = pictures.data_settings(tmp_path, (48, 64))
    for name in TINY:
        experiment = load_experiment("voc12", [*data, *bench.load(name).ON_CPU])
        assert len(open_dataset(experiment.data, experiment.data.train_split)) >= experiment.classifier.batch_size


def test_a_batch_in_memory_gives_the_same_images_without_work(companion):
    training_steps = companion("training_steps")
    pixels = torch.randint(0, 255, (2, 8, 8, 3), dtype=torch.uint8)
    boxes = [(0, 0, 8, 8), (0, 0, 4, 8)]
    batch = Batch(pixels, boxes, torch.ones(2, 3), torch.ones(2), {})
    device = torch.device("cpu")
    held = training_steps.in_memory(batch, device)
    assert torch.equal(held.images(device, IMAGENET), batch.images(device, IMAGENET))
    assert held.images(device, IMAGENET) is held.images(device, IMAGENET)
