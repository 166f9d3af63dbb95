"""Trainings by several workers, on Ray Train, whose workers run the loop of `ribray.cluster.training`.

Ray Train takes many seconds to start. So on a cluster that only this command computes on (`TrainingPlan.owns_cluster`)
its workers stay for the next training, which they find in a folder of this machine. They claim no CPU there: the
command never trains while a pool works.
"""

import contextlib
import gc
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import ray.cloudpickle
import ray.train.torch
import torch

from ribray import storage
from ribray.cluster import warm
from ribray.cluster.session import in_thread
from ribray.cluster.training import WORK_FOLDER, Place, TrainingPlan, TrainingTask, train_as_worker
from ribray.errors import RibrayError

LOOK_SECONDS = 0.1  # how often a worker without work looks for a training
END_SECONDS = 5.0  # how long it is waited for a run of Ray Train whose workers were sent away; it takes half a second
TRAINING, ATTEMPT = ".training", ".attempt"
"""Endings of files in a group's folder: one is there while a training lasts, one is added each time it begins."""


def train_on_ray(task: TrainingTask, plan: TrainingPlan, stop_requested: Callable[[], bool]) -> bool:
    """Train; return False where a stop request ended it."""
    if not plan.owns_cluster:
        warm.clear_the_way()
    group = warm.take(_Group, plan) or _Group(task, plan)
    is_done = False
    try:
        is_done = group.train(task, plan, stop_requested)
    except ray.train.WorkerGroupError as error:
        rank, failure = min(error.worker_failures.items())
        raise RibrayError(f"Training worker {rank} failed: {warm.last_line(failure)}") from error
    except ray.train.TrainingFailedError as error:
        raise RibrayError(f"Training failed: {warm.last_line(error)}") from error
    finally:
        if is_done and group.can_go_on(plan):
            warm.keep(group)
        else:
            group.end()
    return is_done


class _Group:
    """A run of Ray Train: for one training, or where it shares a folder with this process for one after the other."""

    is_in_the_way = False

    def __init__(self, task: TrainingTask, plan: TrainingPlan):
        self._workers, self._count, self._is_at_work = plan.workers, 0, False
        self._folder = tempfile.TemporaryDirectory(prefix="ribray-training-") if plan.owns_cluster else None
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # workers that are done leave sooner
        config: dict[str, Any] = {"task": task, "plan": plan}
        resources = {"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})
        place = storage.for_ray(plan.folder)
        if self._folder is not None:
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process that has nothing to watch
            config, resources = {"folder": self._folder.name}, {"CPU": 0, "memory": 1}
            place = storage.for_ray(Path(self._folder.name))
        trainer = ray.train.torch.TorchTrainer(
            _train_worker,
            train_loop_config=config,
            # NCCL refuses two workers on one GPU.
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if plan.gpus_per_worker == 1 else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=plan.workers, use_gpu=plan.gpus_per_worker > 0, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=WORK_FOLDER, failure_config=ray.train.FailureConfig(max_failures=warm.RESTARTS), **place
            ),
        )
        self._outcome = in_thread(trainer.fit, "ray-train")

    def serves(self, plan: TrainingPlan) -> bool:
        return plan.owns_cluster and plan.workers == self._workers and not self._outcome.done()

    def train(self, task: TrainingTask, plan: TrainingPlan, stop_requested: Callable[[], bool]) -> bool:
        """Wait until one of the files that end a training is there; return False where a stop request came first.

        What still runs after a stop request ends with this process's connection to Ray. Nor is Ray Train waited for
        here once such a file is written: without a dashboard it takes ten seconds to find out that a helper is done.
        """
        ends, self._is_at_work = (plan.final, plan.refusal), True
        with contextlib.nullcontext() if self._folder is None else self._tell(Path(self._folder.name), task, plan):
            while not stop_requested():
                if wait([self._outcome], timeout=warm.POLL_SECONDS).done:
                    self._outcome.result()
                    return True
                if any(end.exists() for end in ends):
                    self._is_at_work = False
                    return True
        return False

    @contextlib.contextmanager
    def _tell(self, folder: Path, task: TrainingTask, plan: TrainingPlan) -> Iterator[None]:
        self._count += 1
        written, told = (folder / f"{self._count}{ending}" for ending in (".new", TRAINING))
        written.write_bytes(ray.cloudpickle.dumps((task, plan)))
        written.rename(told)
        yield
        told.unlink()

    def can_go_on(self, plan: TrainingPlan) -> bool:
        """Whether the workers wait for the next training, after one in which none of them was lost."""
        if self._folder is None or self._outcome.done() or not plan.final.exists():
            return False
        return len(list(Path(self._folder.name).glob(f"*{ATTEMPT}"))) == self._count

    def end(self) -> None:
        """Send the workers away; the thread that waits for them must not ask Ray while this process disconnects.

        That would end the process, by Ray's own code, in one of several cases.
        """
        if self._folder is not None:
            self._folder.cleanup()
            if not self._is_at_work:
                wait([self._outcome], timeout=END_SECONDS)


# --- in a worker -------------------------------------------------------------------------------------------------


def _train_worker(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    place = Place(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), _wrap, ray.train.report
    )
    trainings = _told(Path(config["folder"]), place.rank) if "folder" in config else [(config["task"], config["plan"])]
    for task, plan in trainings:
        torch.set_num_threads(plan.threads_per_worker)
        train_as_worker(task, plan, place)


def _told(folder: Path, rank: int) -> Iterator[tuple[TrainingTask, TrainingPlan]]:
    """Yield the trainings that the command tells of while they last, the one that was interrupted first."""
    begun = max((int(file.name.partition("-")[0]) for file in folder.glob(f"*{ATTEMPT}")), default=0)
    number = begun if (folder / f"{begun}{TRAINING}").exists() else begun + 1
    while folder.exists():
        if not (file := folder / f"{number}{TRAINING}").exists():
            time.sleep(LOOK_SECONDS)
            continue
        if rank == 0:
            (folder / f"{number}-{uuid.uuid4().hex}{ATTEMPT}").touch()
        yield ray.cloudpickle.loads(file.read_bytes())
        gc.collect()
        number += 1


def _wrap(model: torch.nn.Module) -> torch.nn.Module:
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})
