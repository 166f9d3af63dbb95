"""Training, data parallel: checkpointed every so many steps, resumable; on Ray Train, or in this process.

A stage describes its training as a `TrainingTask`, written without Ray. The loop here gives every rank its share of
each global batch, so that the sequence of steps does not depend on the number of workers, and lets rank 0 write the
log and the final weights.
"""

import contextlib
import functools
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ribray import storage
from ribray.cluster.pool import as_worker, told
from ribray.errors import DamagedError, DivergedError, RibrayError, UnreadableError
from ribray.machine import best_precision

logger = logging.getLogger(__name__)

LOG_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.pt"
WORK_FOLDER = "train"  # below a training's folder: what lasts no longer than the training
REMEDY = "start the training again"

Total = Callable[[Tensor], Tensor]
"""Sums a small tensor of counts over all ranks; what it returns takes part in no gradient."""


class TrainingTask(Protocol):
    """What a stage hands over. Everything is deterministic in (task, step), whatever the number of workers."""

    steps: int  # length of the training
    period: int  # steps from one validation to the next; there is another at the end
    precision: str  # float32, bfloat16, or auto, which becomes what the worker's hardware is faster in
    divergence_bound: float = math.inf  # a loss beyond it, up or down, or one that is not finite, ends the training
    unreadable: dict[str, str]
    """Images that could not be read so far, and why: this rank's; at a validation or checkpoint those of all ranks."""

    def require_readable(self) -> None: ...

    def model(self) -> nn.Module: ...

    def optimizer(self, model: Any) -> torch.optim.Optimizer: ...

    def decay(self, step: int) -> float:
        """Return the factor on every group's starting learning rate at ``step``."""

    def batches(self, first_step: int, rank: int, world: int) -> Iterable[Any]:
        """Yield this rank's share of each step's batch, from ``first_step`` on."""

    def loss(self, model: nn.Module, batch: Any, device: torch.device, total: Total) -> Tensor:
        """Return this rank's part of the loss of the global batch: the parts of all ranks add up to it.

        A mean over pixels therefore has this rank's sum above, and the count of all ranks, from ``total``, below.
        """

    def validate(self, model: Any, step: int, rank: int, world: int, device: torch.device) -> Any:
        return None

    def conclude(self, model: Any, parts: list[Any]) -> dict[str, Any]:
        """Turn all ranks' parts into numbers; on every rank, so that the network may take something from them too."""
        return {"unreadable": dict(self.unreadable)}

    def save(self, model: Any, destination: Path) -> None: ...


@dataclass(frozen=True)
class TrainingPlan:
    folder: Path  # the stage's folder: log, weights, and `WORK_FOLDER`
    weights: str  # name of the final weights in the folder
    workers: int  # ranks; 0: one, in this process
    cpus_per_worker: float
    gpus_per_worker: float
    threads_per_worker: int
    checkpoint_steps: int = 500  # steps from one checkpoint to the next; every validation has one too
    identity: str = ""  # of what is trained; a checkpoint of anything else is not gone on from
    owns_cluster: bool = False  # whether nobody else computes on the cluster's CPUs while this training does

    @property
    def final(self) -> Path:
        return self.folder / self.weights

    @property
    def refusal(self) -> Path:
        """Where a worker leaves an error for the user."""
        return self.folder / "refusal.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / WORK_FOLDER / CHECKPOINT_FILE

    @property
    def start(self) -> Path:
        """Says when the first step began."""
        return self.folder / WORK_FOLDER / "start.json"


def run_training(
    task: TrainingTask,
    plan: TrainingPlan,
    stop_requested: Callable[[], bool] = lambda: False,
    on_started: Callable[[float], None] = lambda seconds: None,
) -> list[dict[str, Any]] | None:
    """Train, or go on from the last checkpoint; return the log's lines, None where a stop request ended the training.

    ``on_started`` is told how many seconds it took until the first step began. A training that fails is a
    `RibrayError`: a `DivergedError`, an `UnreadableError`, as the task raised it in a worker, or a sentence on why.
    """
    asked = time.time()
    plan.refusal.unlink(missing_ok=True)
    plan.start.unlink(missing_ok=True)
    if not plan.final.exists():
        if not plan.workers:
            with as_worker(plan.threads_per_worker), told("Training failed"):
                is_finished = train(task, plan, alone(plan, stop_requested))
        elif plan.workers == 1:
            from ribray.cluster.warm import train_in_crew

            is_finished = train_in_crew(task, plan, stop_requested)
        else:
            from ribray.cluster.distributed import train_on_ray

            is_finished = train_on_ray(task, plan, stop_requested)
        if plan.refusal.exists():
            raise _refused(storage.read_object(plan.refusal, REMEDY))
        if not is_finished:
            return None
    if not plan.final.exists():
        raise RibrayError(f"Training ended without writing {plan.final}; start it again to go on.")
    if plan.start.exists():
        on_started(max(0.0, storage.read_object(plan.start, REMEDY)["time"] - asked))
    storage.remove_folder(plan.folder / WORK_FOLDER)
    return read_log(plan.folder)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the finished lines of a training log: steps (with ``loss``) and epochs (with ``validation``)."""
    location = folder / LOG_FILE
    try:
        content = storage.read_bytes(location)
    except FileNotFoundError:
        return []
    remedy = "use --redo to train again"
    whole = content[: content.rfind(b"\n") + 1]  # a last line without its end is still being written
    lines = storage.parse_lines(whole, location, remedy)
    for number, line in enumerate(lines, start=1):
        is_step = "loss" in line and isinstance(line["loss"], int | float | None)
        if not isinstance(line.get("step"), int) or not (is_step or isinstance(line.get("validation"), dict)):
            raise DamagedError(f"{location} is damaged (line {number} is of no step); {remedy}.")
    return lines


# --- what trains -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    rank: int
    world: int
    device: torch.device
    wrap: Callable[[nn.Module], nn.Module]  # to the device, and among several ranks with averaged gradients
    report: Callable[[dict[str, Any]], None] = lambda numbers: None  # called with the numbers of every checkpoint
    stop_requested: Callable[[], bool] = lambda: False  # after every step: whether to end it with a checkpoint


def alone(plan: TrainingPlan, stop_requested: Callable[[], bool] = lambda: False) -> Place:
    device = torch.device("cuda:0" if plan.gpus_per_worker else "cpu")
    return Place(0, 1, device, lambda model: model.to(device), stop_requested=stop_requested)


def train_as_worker(task: TrainingTask, plan: TrainingPlan, place: Place) -> None:
    """Train; an error for the user is left in a file, since starting again would only repeat it."""
    try:
        train(task, plan, place)
    except RibrayError as error:
        said: dict[str, Any] = {"sentence": str(error), "diverged": isinstance(error, DivergedError)}
        if isinstance(error, UnreadableError):
            said |= {"unreadable": dict(error.unreadable), "can_go_on": error.can_go_on}
        storage.write_json(plan.refusal, said)


def _refused(said: Mapping[str, Any]) -> RibrayError:
    sentence, unreadable = str(said.get("sentence")), said.get("unreadable")
    if isinstance(unreadable, dict):
        return UnreadableError(sentence, unreadable, said.get("can_go_on") is True)
    return DivergedError(sentence) if said.get("diverged") is True else RibrayError(sentence)


def train(task: TrainingTask, plan: TrainingPlan, place: Place) -> bool:
    """Take this rank's part in a training; return False where a stop request ended it."""
    rank, world, device = place.rank, place.world, place.device
    model = task.model()
    module = place.wrap(model)
    optimizer = task.optimizer(model)
    starting_rates = [group["lr"] for group in optimizer.param_groups]
    first_step, missed = _restore(plan.checkpoint, plan.identity, model, optimizer, device)
    task.unreadable |= missed
    can_go_on = first_step > 0 and not missed
    if task.precision == "auto":
        task.precision = best_precision(on_gpu=device.type == "cuda")
    module.train()
    if rank == 0 and not plan.start.exists():
        storage.write_json(plan.start, {"time": time.time()})
    with contextlib.closing(_open_log(plan.folder, rank, first_step)) as log:
        for step, batch in enumerate(task.batches(first_step, rank, world), start=first_step):
            for group, rate in zip(optimizer.param_groups, starting_rates, strict=True):
                group["lr"] = rate * task.decay(step)
            with _autocast(task.precision, device):
                part = task.loss(module, batch, device, functools.partial(_sum_over_ranks, world=world))
            optimizer.zero_grad(set_to_none=True)
            (part * world).backward()  # the ranks' gradients are averaged
            optimizer.step()
            loss = float(_sum_over_ranks(part.detach(), world))
            finite = loss if math.isfinite(loss) else None
            line = {"epoch": step // task.period, "step": step}
            log.add(json.dumps(line | {"loss": finite, "lr": optimizer.param_groups[0]["lr"]}))
            _require_bounded(loss, step, task.divergence_bound)
            done, metrics = step + 1, {}
            is_last = done == task.steps
            validates = is_last or done % task.period == 0
            is_stopped = place.stop_requested()
            saves = validates or done % plan.checkpoint_steps == 0 or is_stopped
            if validates:
                module.eval()
                with torch.no_grad(), _autocast(task.precision, device):
                    seen = task.validate(model, done, rank, world, device)
            if saves:
                _look_at_unreadable(task, world, can_go_on)
            if validates:
                with torch.no_grad(), _autocast(task.precision, device):
                    metrics = task.conclude(model, _gather(seen, world))
                module.train()
                log.add(json.dumps(line | {"precision": task.precision, "validation": metrics}))
            if is_last:
                if rank == 0:
                    task.save(model, plan.final)
            elif saves:
                log.flush()  # the lines of steps that a checkpoint spares
                can_go_on = not task.unreadable
                if rank == 0:
                    _save(plan, model, optimizer, done, task.unreadable)
                place.report({"step": done, **metrics})
                if is_stopped:
                    return False
    return True


def _restore(
    location: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[int, dict[str, str]]:
    """Load the last checkpoint, if there is one of use; return the step to go on with, and what could not be read."""
    try:
        state = torch.load(io.BytesIO(storage.read_bytes(location)), map_location=device, weights_only=True)
        _require_fitting(state, identity, model, optimizer)
    except FileNotFoundError:
        return 0, {}
    except Exception as error:  # noqa: BLE001  (on damaged bytes torch raises almost anything)
        reason = storage.reason(error)
        logger.warning("%s is of no use (%s): the training starts from its beginning", location, reason)
        return 0, {}
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state.get("unreadable", {})


def _require_fitting(state: Any, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if state["training"] != identity or not isinstance(state["step"], int):
        raise ValueError("it is of another training")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if {name: tensor.shape for name, tensor in state["model"].items()} != shapes:
        raise ValueError("it is of another network")
    if [len(group["params"]) for group in state["optimizer"]["param_groups"]] != sizes:
        raise ValueError("it is of another optimiser")


def _save(
    plan: TrainingPlan, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, unreadable: Mapping[str, str]
) -> None:
    """Write a checkpoint in place of the one before, whole or not at all.

    Ray Train's own register of checkpoints is a file that a kill can leave half-written, and then nothing resumes.
    """
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state = {"training": plan.identity, **states, "step": step, "unreadable": dict(unreadable)}
    with storage.replacing(plan.checkpoint) as stream:
        torch.save(state, stream)


def _look_at_unreadable(task: TrainingTask, world: int, can_go_on: bool) -> None:
    for missed in _gather(task.unreadable, world):
        task.unreadable |= missed
    try:
        task.require_readable()
    except UnreadableError as error:
        error.can_go_on = can_go_on
        raise


def _open_log(folder: Path, rank: int, first_step: int) -> storage.LineFile:
    """Open the training's log, which rank 0 writes; lines of steps to be done again are dropped from it first."""
    if rank:
        return storage.LineFile(Path(os.devnull))
    kept = [line for line in read_log(folder) if line["step"] < first_step]
    storage.write_text(folder / LOG_FILE, "".join(json.dumps(line) + "\n" for line in kept))
    return storage.LineFile(folder / LOG_FILE)


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _sum_over_ranks(value: Tensor, world: int) -> Tensor:
    if world > 1:
        value = value.detach().clone()
        torch.distributed.all_reduce(value)
    return value


def _gather(part: Any, world: int) -> list[Any]:
    if world == 1:
        return [part]
    parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(parts, part)
    return parts


def _require_bounded(loss: float, step: int, bound: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"The training loss is {loss} at step {step}: the learning rate is too high for these weights, "
            "or the data holds something unexpected."
        )
    if abs(loss) > bound:
        raise DivergedError(f"The training loss is {loss:.6g} at step {step}, beyond {bound:g}: the training diverged.")
