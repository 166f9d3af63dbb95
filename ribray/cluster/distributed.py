"""Trainings on Ray Train, whose workers run the loop of `ribray.cluster.training`."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray.train.torch
import torch

from ribray import storage
from ribray.cluster.training import REFUSAL_FILE, WORK_FOLDER, Place, TrainingPlan, TrainingTask, train
from ribray.errors import DivergedError, RibrayError, UnreadableError

POLL_SECONDS = 0.5
RESTARTS = 2
"""How often a training whose worker died starts again from its last checkpoint."""


def train_on_ray(task: TrainingTask, plan: TrainingPlan, stop_requested: Callable[[], bool]) -> bool:
    """Train; return False where a stop request ended it.

    Raises:
        RibrayError: as `ribray.cluster.training.run_training` does.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # workers that are done leave their place sooner
    resources = {"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})
    storage_path, filesystem = storage.for_ray(plan.folder)
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"task": task, "plan": plan},
        # NCCL refuses two workers on one GPU.
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if plan.gpus_per_worker == 1 else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=WORK_FOLDER,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )
    weights, refusal = plan.folder / plan.weights, plan.folder / REFUSAL_FILE
    try:
        if not _fit(trainer, (weights, refusal), stop_requested):
            return False
    except ray.train.WorkerGroupError as error:
        rank, failure = min(error.worker_failures.items())
        raise RibrayError(f"Training worker {rank} failed: {_last_line(failure)}") from error
    except ray.train.TrainingFailedError as error:
        raise RibrayError(f"Training failed: {_last_line(error)}") from error
    if refusal.exists():
        raise _refused(storage.read_object(refusal, "start the training again"))
    return True


def _refusal(error: RibrayError) -> dict[str, Any]:
    """Return an error for the user as JSON values."""
    said: dict[str, Any] = {"sentence": str(error), "diverged": isinstance(error, DivergedError)}
    if isinstance(error, UnreadableError):
        said |= {"unreadable": dict(error.unreadable), "can_go_on": error.can_go_on}
    return said


def _refused(said: Mapping[str, Any]) -> RibrayError:
    """Return the error that `_refusal` was made of."""
    sentence, unreadable = str(said.get("sentence")), said.get("unreadable")
    if isinstance(unreadable, dict):
        return UnreadableError(sentence, unreadable, said.get("can_go_on") is True)
    return DivergedError(sentence) if said.get("diverged") is True else RibrayError(sentence)


def _fit(trainer: Any, ends: Sequence[Path], stop_requested: Callable[[], bool]) -> bool:
    """Run a trainer until one of the files that end it is there; return False where a stop request came first.

    In the main thread Ray Train would take Ctrl-C for itself and end the process. What still runs after a stop
    request ends with this process's connection to Ray. Nor is Ray Train waited for once such a file is written: on
    a cluster without a dashboard it takes ten seconds to find out that one of its helpers is done.
    """
    outcome: Future[None] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001  (raised again where the outcome is asked for)
            outcome.set_exception(error)

    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    while not stop_requested():
        if wait([outcome], timeout=POLL_SECONDS).done:
            outcome.result()
            return True
        if any(end.exists() for end in ends):
            return True
    return False


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# --- in a worker -------------------------------------------------------------------------------------------------


def _train_worker(config: dict[str, Any]) -> None:
    """Train; an error for the user ends the worker quietly, since starting again would only repeat it."""
    task: TrainingTask = config["task"]
    plan: TrainingPlan = config["plan"]
    context = ray.train.get_context()
    torch.set_num_threads(plan.threads_per_worker)
    place = Place(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), _wrap, ray.train.report
    )
    try:
        train(task, plan, place)
    except RibrayError as error:
        storage.write_json(plan.folder / REFUSAL_FILE, _refusal(error))


def _wrap(model: torch.nn.Module) -> torch.nn.Module:
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})
