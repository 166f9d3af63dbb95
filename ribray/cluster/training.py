"""Distributed training on Ray Train: data parallel, checkpointed each epoch, resumable.

A stage describes its training as a `TrainingTask`, written without Ray. The loop here gives every rank its share of
each global batch, so that the sequence of steps does not depend on the number of workers, and lets rank 0 write the
log and the final weights.
"""

import contextlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from torch import Tensor, nn

from ribray import storage
from ribray.errors import RibrayError

LOG_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.pt"
REFUSAL_FILE = "refusal.txt"
WORK_FOLDER = "train"
POLL_SECONDS = 0.5
RESTARTS = 2
"""How often a training whose worker died starts again from its last checkpoint."""


class TrainingTask(Protocol):
    """What a stage hands over. Everything is deterministic in (task, epoch, step), whatever the number of workers."""

    epochs: int
    precision: str
    """float32, bfloat16, or auto: bfloat16 on a GPU."""

    def model(self) -> nn.Module:
        """Return the network with its starting weights."""

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Return the optimiser; its groups carry the starting learning rates."""

    def steps_per_epoch(self) -> int:
        """Return the number of steps of one epoch."""

    def decay(self, step: int) -> float:
        """Return the factor on every group's starting learning rate at global step ``step``."""

    def batches(self, epoch: int, first_step: int, rank: int, world: int) -> Iterable[Any]:
        """Yield this rank's share of the epoch's batches, from step ``first_step`` of the epoch on."""

    def loss(self, model: nn.Module, batch: Any, device: torch.device) -> Tensor:
        """Return the mean loss over this rank's share; the shares are equal, so ranks' gradients are averaged."""

    def validate(self, model: Any, rank: int, world: int, device: torch.device) -> Any:
        """Return this rank's part of the validation."""

    def validation_metrics(self, parts: list[Any]) -> dict[str, float]:
        """Turn all ranks' parts into numbers."""

    def save(self, model: Any, destination: Path) -> None:
        """Write the final weights."""


@dataclass(frozen=True)
class TrainingPlan:
    """Where a training keeps its files and what it runs on."""

    folder: Path
    """The stage's folder: log, weights, and Ray Train's own files while it lasts."""
    weights: str
    """Name of the final weights in the folder."""
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads_per_worker: int


def run_training(
    task: TrainingTask, plan: TrainingPlan, stop_requested: Callable[[], bool] = lambda: False
) -> list[dict[str, Any]] | None:
    """Train, or go on from the last checkpoint in the folder.

    Returns:
        the log's lines; None where a stop request ended the training, which then goes on from its last epoch.

    Raises:
        RibrayError: as the task raised it in a worker, or one sentence on why the training failed.
    """
    import ray.train.torch  # takes a second, which the workers of a pool need not spend

    resources = {"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})
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
            storage_path=str(plan.folder),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )
    refusal = plan.folder / REFUSAL_FILE
    refusal.unlink(missing_ok=True)
    try:
        if not (plan.folder / plan.weights).exists() and not _fit(trainer, stop_requested):
            return None
    except ray.train.WorkerGroupError as error:
        rank, failure = min(error.worker_failures.items())
        raise RibrayError(f"Training worker {rank} failed: {_last_line(failure)}") from error
    except ray.train.TrainingFailedError as error:
        raise RibrayError(f"Training failed: {_last_line(error)}") from error
    if refusal.exists():
        raise RibrayError(refusal.read_text(encoding="utf-8"))
    if not (plan.folder / plan.weights).exists():
        raise RibrayError(f"Training ended without writing {plan.folder / plan.weights}; start it again to go on.")
    shutil.rmtree(plan.folder / WORK_FOLDER, ignore_errors=True)
    return read_log(plan.folder)


def _fit(trainer: Any, stop_requested: Callable[[], bool]) -> bool:
    """Run a trainer to its end; return False where a stop request came first.

    In the main thread Ray Train would take Ctrl-C for itself and end the process. What still runs after a stop
    request ends with this process's connection to Ray.
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
    return False


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the finished lines of a training log: steps (with ``loss``) and epochs (with ``validation``)."""
    location = folder / LOG_FILE
    if not location.exists():
        return []
    lines = location.read_text(encoding="utf-8").split("\n")[:-1]  # a last line without its end is still being written
    return [json.loads(line) for line in lines if line]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# --- in a worker -------------------------------------------------------------------------------------------------


def _train_worker(config: dict[str, Any]) -> None:
    """Train; an error for the user ends the worker quietly, since starting again would only repeat it."""
    import ray.train.torch

    task: TrainingTask = config["task"]
    plan: TrainingPlan = config["plan"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    try:
        _train(task, plan, rank, world)
    except RibrayError as error:
        storage.write_text(plan.folder / REFUSAL_FILE, str(error))


def _train(task: TrainingTask, plan: TrainingPlan, rank: int, world: int) -> None:
    torch.set_num_threads(plan.threads_per_worker)
    device = ray.train.torch.get_device()
    model = task.model()
    module = ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})
    optimizer = task.optimizer(model)
    starting_rates = [group["lr"] for group in optimizer.param_groups]
    first_epoch = _restore(model, optimizer, device)
    steps = task.steps_per_epoch()
    for epoch in range(first_epoch, task.epochs):
        with _log(plan.folder, rank, epoch * steps) as log:
            module.train()
            for step, batch in enumerate(task.batches(epoch, 0, rank, world), start=epoch * steps):
                for group, rate in zip(optimizer.param_groups, starting_rates, strict=True):
                    group["lr"] = rate * task.decay(step)
                with _autocast(task.precision, device):
                    loss = task.loss(module, batch, device)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                value = _mean_over_ranks(loss.detach(), world)
                log({"epoch": epoch, "step": step, "loss": value, "lr": optimizer.param_groups[0]["lr"]})
                _require_finite(value, step)
            module.eval()
            with torch.no_grad(), _autocast(task.precision, device):
                part = task.validate(model, rank, world, device)
            metrics = task.validation_metrics(_gather(part, world))
            log({"epoch": epoch, "step": (epoch + 1) * steps - 1, "validation": metrics})
        if rank == 0 and epoch + 1 == task.epochs:
            task.save(model, plan.folder / plan.weights)
        _report(metrics, model, optimizer, epoch + 1, rank)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Load the last checkpoint, if there is one, and return the epoch to go on with."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / CHECKPOINT_FILE, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"]


def _report(
    metrics: dict[str, float], model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, rank: int
) -> None:
    """Register a checkpoint of rank 0; every rank has to report."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, Path(folder) / CHECKPOINT_FILE)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"epoch": epoch, **metrics}, checkpoint=checkpoint)


@contextlib.contextmanager
def _log(folder: Path, rank: int, first_step: int) -> Iterator[Any]:
    """Give a function that writes a line of the log (on rank 0); lines of steps to be done again are dropped."""
    if rank != 0:
        yield lambda line: None
        return
    kept = [line for line in read_log(folder) if line["step"] < first_step]
    storage.write_text(folder / LOG_FILE, "".join(json.dumps(line) + "\n" for line in kept))
    with open(folder / LOG_FILE, "a", encoding="utf-8", buffering=1) as stream:
        yield lambda line: stream.write(json.dumps(line) + "\n")


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def _mean_over_ranks(value: Tensor, world: int) -> float:
    if world > 1:
        torch.distributed.all_reduce(value)
    return float(value) / world


def _gather(part: Any, world: int) -> list[Any]:
    if world == 1:
        return [part]
    parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(parts, part)
    return parts


def _require_finite(loss: float, step: int) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise RibrayError(
            f"The training loss is {loss} at step {step}: the learning rate is too high for these weights, "
            "or the data holds something unexpected."
        )
