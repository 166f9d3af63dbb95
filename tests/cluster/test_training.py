"""Ray Train, distributed for real: the number of workers and an interruption leave no trace in the weights."""

import json
import math
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from ribray.cluster.session import connect
from ribray.cluster.training import (
    CHECKPOINT_FILE,
    LOG_FILE,
    WORK_FOLDER,
    TrainingPlan,
    _require_bounded,
    read_log,
    run_training,
)
from ribray.config import ClusterConfig, load_experiment
from ribray.data import open_dataset
from ribray.demo.world import make_world
from ribray.errors import DivergedError, RibrayError, UnreadableError, UsageError
from ribray.networks import build_classifier
from ribray.networks.weights import load_backbone_weights, save_network
from ribray.stages.classifier import ClassifierTask
from tests.cluster.test_warm import fill
from tests.training import KilledOnce, train

pytestmark = pytest.mark.usefixtures("ray_session")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SETTINGS = [
    "data.synthetic.train_images=21",
    "data.synthetic.eval_images=9",
    "data.synthetic.image_size=64",
    "classifier.crop_size=64",
    "classifier.resize_long=[48, 80]",
    "classifier.batch_size=4",
    "classifier.epochs=2",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny drawn world and a place for the starting weights."""
    root = tmp_path_factory.mktemp("world")
    config = load_experiment("quickstart", SETTINGS).data
    make_world(root / "data", config.synthetic, config.seed)
    return root


def task(world: Path, settings: list[str] | None = None, of: type[ClassifierTask] = ClassifierTask) -> ClassifierTask:
    experiment = load_experiment("quickstart", [*SETTINGS, *(settings or [])])
    train, held_out = (open_dataset(experiment.data, split, world / "data") for split in ("train", "val"))
    torch.manual_seed(0)
    model = build_classifier("small", len(train.classes), 8)
    load_backbone_weights(model.backbone, experiment.classifier.weights)
    save_network(model, world / "start.safetensors")
    return of(experiment.classifier, train, held_out, world / "start.safetensors", 0)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    return train(task(world), tmp_path_factory.mktemp("one") / "run", 1)


def test_two_workers_take_the_same_steps_as_one(world, undisturbed, tmp_path):
    weights, log = undisturbed
    with connect(ClusterConfig()):
        fill()  # what it leaves has the cluster's CPUs
        shared, shared_log = train(task(world), tmp_path / "two", 2)
    steps = [line["loss"] for line in log if "loss" in line]
    assert len(steps) == 10
    np.testing.assert_allclose([line["loss"] for line in shared_log if "loss" in line], steps, rtol=2e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(shared[name], tensor, rtol=1e-4, atol=2e-6)
    for line, shared_line in zip(log, shared_log, strict=True):
        if "validation" in line:
            assert shared_line["validation"]["images"] == 9
            assert shared_line["validation"]["loss"] == pytest.approx(line["validation"]["loss"], rel=1e-4)


def test_training_moves_what_learns_and_only_that(world, undisturbed):
    weights, _ = undisturbed
    start = load_file(world / "start.safetensors")
    model = build_classifier("small", 6, 8)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    for name in dict(model.named_parameters()):
        assert torch.equal(weights[name], start[name]) == (name in frozen), name
    for name, _buffer in model.named_buffers():
        if "running" in name:
            torch.testing.assert_close(weights[name], start[name], rtol=0, atol=0)


def test_a_training_in_this_process_is_that_of_one_worker(world, undisturbed, tmp_path):
    weights, log = train(task(world), tmp_path / "run", 0)
    for name, tensor in undisturbed[0].items():
        assert torch.equal(weights[name], tensor), name
    assert log == undisturbed[1]
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [LOG_FILE, "weights.safetensors"]


def test_a_training_in_this_process_ends_at_the_next_step_and_goes_on_from_there(world, undisturbed, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    asked = iter([False, False, True])
    plan = TrainingPlan(folder, "weights.safetensors", 0, 1, 0, 1)
    assert run_training(task(world), plan, lambda: next(asked)) is None
    assert [line["step"] for line in read_log(folder)] == [0, 1, 2]
    assert (folder / WORK_FOLDER / CHECKPOINT_FILE).exists()
    assert run_training(task(world), plan) == undisturbed[1]
    for name, tensor in load_file(folder / "weights.safetensors").items():
        assert torch.equal(undisturbed[0][name], tensor), name


def test_automatic_precision_is_what_the_hardware_is_fast_in_and_is_noted(world, undisturbed, tmp_path, monkeypatch):
    losses = {}
    for fast in ("float32", "bfloat16"):
        monkeypatch.setattr("ribray.cluster.training.best_precision", lambda on_gpu, fast=fast: fast)
        _, log = train(task(world, ["classifier.precision=auto"]), tmp_path / fast, 0)
        assert log[-1]["precision"] == fast
        losses[fast] = [line["loss"] for line in log if "loss" in line]
    assert losses["float32"] == [line["loss"] for line in undisturbed[1] if "loss" in line] != losses["bfloat16"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


class Buggy(ClassifierTask):
    def batches(self, first_step, rank, world):
        raise ZeroDivisionError("a bug")


def test_a_bug_in_a_training_in_this_process_is_shown_with_its_traceback(world, tmp_path, caplog):
    with pytest.raises(RibrayError, match="Training failed: ZeroDivisionError: a bug"):
        train(task(world, of=Buggy), tmp_path / "run", 0)
    assert caplog.text.count('raise ZeroDivisionError("a bug")') == 1


class ClassifierKilledOnce(KilledOnce, ClassifierTask):
    """In the second epoch."""

    killed_at = 8


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_steps", [500, 3])
def test_a_killed_worker_goes_on_from_the_last_checkpoint_with_the_same_weights(
    checkpoint_steps, world, undisturbed, tmp_path
):
    """Every 500 steps means: after the first epoch of 5. Every 3: in the middle of one."""
    disturbed = task(world, of=ClassifierKilledOnce)
    disturbed.marker = tmp_path / "killed"
    weights, log = train(disturbed, tmp_path / "run", 1, checkpoint_steps)
    assert disturbed.marker.exists()
    for name, tensor in undisturbed[0].items():
        assert torch.equal(weights[name], tensor), name
    assert log == undisturbed[1]


class Elsewhere(ClassifierTask):
    """Writes down in which process it trains."""

    pids: Path

    def batches(self, first_step, rank, world):
        with self.pids.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return super().batches(first_step, rank, world)


def test_one_worker_trains_in_the_process_of_a_pool(world, undisturbed, tmp_path):
    told = task(world, of=Elsewhere)
    told.pids = tmp_path / "pids"
    starts = []
    with connect(ClusterConfig()):
        pids, _, _ = fill(workers=1)
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            plan = TrainingPlan(tmp_path / name, "weights.safetensors", 1, 1, 0, 1)
            assert run_training(told, plan, on_started=starts.append) == undisturbed[1]
        assert fill(workers=1)[0] == pids
    assert set(map(int, told.pids.read_text().split())) == pids
    assert starts[1] < starts[0]
    assert (tmp_path / "first" / plan.weights).read_bytes() == (tmp_path / "second" / plan.weights).read_bytes()


class ElsewhereKilledOnce(ClassifierKilledOnce, Elsewhere):
    pass


@pytest.mark.slow
def test_the_workers_of_ray_train_stay_for_the_next_training_unless_one_was_lost(world, tmp_path):
    """A pool that takes all of the cluster runs in between."""
    expected, log = train(task(world), tmp_path / "expected", 2)
    pids, before = {}, threading.enumerate()
    with connect(ClusterConfig()):
        for name in ("first", "second", "killed", "last"):
            told = task(world, of=ElsewhereKilledOnce if name == "killed" else Elsewhere)
            told.pids, told.marker = tmp_path / f"{name}.pids", tmp_path / "marker"
            (tmp_path / name).mkdir()
            plan = TrainingPlan(tmp_path / name, "weights.safetensors", 2, 1, 0, 1, owns_cluster=True)
            assert run_training(told, plan) == log
            pids[name] = told.pids.read_text().split()
            weights = load_file(tmp_path / name / plan.weights)
            assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())
            assert fill()[2].done == 8
    assert not [thread for thread in threading.enumerate() if thread.name == "ray-train" and thread not in before]
    assert told.marker.exists()
    assert len(pids["first"]) == 2
    assert set(pids["first"]) == set(pids["second"])
    assert len(pids["killed"]) == 4
    assert set(pids["killed"]) > set(pids["first"])
    assert set(pids["last"]).isdisjoint(pids["killed"])


class Unmounted(ClassifierTask):
    """Its pictures are gone once the second epoch has begun."""

    root: Path

    def batches(self, first_step, rank, world):
        for step, batch in enumerate(super().batches(first_step, rank, world), start=first_step):
            if step == 5:
                self.root.rename(self.root.with_name("away"))
            yield batch


@pytest.mark.slow
def test_a_training_whose_pictures_went_away_goes_on_from_before_once_they_are_back(world, undisturbed, tmp_path):
    disturbed = task(world, of=Unmounted)
    disturbed.root, disturbed.least_readable = world / "data", 0.5
    with pytest.raises(UnreadableError, match=r"data\.least_readable=0\.5 asks for 11, as with train_00") as raised:
        train(disturbed, tmp_path / "run", 1)
    (world / "away").rename(world / "data")
    assert raised.value.can_go_on
    assert len(raised.value.unreadable) == 16
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    weights, log = train(task(world), tmp_path / "run", 1)
    for name, tensor in undisturbed[0].items():
        assert torch.equal(weights[name], tensor), name
    assert log == undisturbed[1]


class Unreadable(ClassifierTask):
    def batches(self, first_step, rank, world):
        raise RibrayError("The data is gone.")


def test_an_error_for_the_user_comes_out_as_it_is(world, tmp_path):
    with pytest.raises(RibrayError, match="The data is gone"):
        train(task(world, of=Unreadable), tmp_path / "run", 2)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_leaves_the_numbers_is_said(loss):
    with pytest.raises(DivergedError, match=f"loss is {loss} at step 3"):
        _require_bounded(loss, 3, math.inf)


def test_a_loss_beyond_its_bound_ends_as_diverged_with_its_log(world, tmp_path):
    with pytest.raises(DivergedError, match=r"loss is -\S+ at step \d, beyond 40"):
        train(
            task(world, ["classifier.loss=rib", "classifier.lr=0.5", "classifier.divergence_bound=40"]),
            tmp_path / "run",
            1,
        )
    losses = [line["loss"] for line in read_log(tmp_path / "run")]
    assert losses[-1] < -40
    assert all(abs(loss) <= 40 for loss in losses[:-1])
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_counts_as_none(world, undisturbed, tmp_path):
    folder = tmp_path / "run"
    (folder / WORK_FOLDER).mkdir(parents=True)
    (folder / WORK_FOLDER / CHECKPOINT_FILE).write_bytes(b"PK\x03\x04 cut off")
    (folder / LOG_FILE).write_text(json.dumps({"epoch": 0, "step": 0, "loss": 7.0, "lr": 0.01}) + "\n")
    weights, log = train(task(world), folder, 1)
    for name, tensor in undisturbed[0].items():
        assert torch.equal(weights[name], tensor), name
    assert log == undisturbed[1]


def test_a_batch_larger_than_the_data_is_refused(world):
    with pytest.raises(UsageError, match="batch_size=64 is more than the 21 images"):
        task(world, ["classifier.batch_size=64"])
