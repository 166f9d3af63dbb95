"""What the stages that train a network share: where to begin, a bar that follows the log, and what came of it."""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ribray import storage
from ribray.cluster.training import LOG_FILE, WORK_FOLDER, TrainingPlan, read_log, run_training
from ribray.data.dataset import Dataset
from ribray.data.transforms import shuffled
from ribray.errors import DamagedError, ImageError, RibrayError, UnreadableError
from ribray.machine import LOADERS
from ribray.networks.weights import save_network
from ribray.pipeline.artifacts import WEIGHTS_FILE, WEIGHTS_KEY, hash_file, record_weights
from ribray.pipeline.stage import MENDED, Context, example, per_second
from ribray.pipeline.tasks import ReadingTask
from ribray.progress import Bar, show_progress
from ribray.runs.metrics import IrnMetrics, SegmentationMetrics, Timing
from ribray.runs.records import Failure

START_FILE = "start.safetensors"
IDS_FILE = "ids.json"  # the images that a training began with
NAMED_WEIGHTS = ("imagenet", "none", "synthetic", "classifier")  # any others are the path of a file
POLL_SECONDS = 0.5
TRACK_SECONDS = 10.0
LOOKS = 20
"""A look at the first images takes this number over ``data.least_readable`` of them: where that share is readable, the
chance to meet none of it is below exp(-20)."""


@dataclass(frozen=True)
class Trained:
    log: list[dict[str, Any]]  # lines of steps (with ``loss``) and of validations (with ``validation``)
    seconds: float  # of this process's part of it, from its first step on
    start_seconds: float  # until then
    steps: int  # done in these seconds
    workers: int  # that trained; 0: this process

    @property
    def loss(self) -> float:
        return self.log[-2]["loss"]

    @property
    def validation(self) -> dict[str, Any]:
        return self.log[-1]["validation"]

    @property
    def unreadable(self) -> dict[str, str]:
        validations = [line["validation"]["unreadable"] for line in self.log if "validation" in line]
        return {id: error for unreadable in validations for id, error in unreadable.items()}

    @property
    def precision(self) -> str | None:
        """That it ended in; None of a training that was made before this was noted."""
        return self.log[-1].get("precision")

    def timing(self, batch_size: int) -> Timing:
        return per_second(self.steps * batch_size, self.seconds, self.start_seconds, workers=self.workers)


def look_ahead(context: Context, stage: str, dataset: Dataset, ids: Sequence[str]) -> None:
    """Look for an image that can be read, before a cluster starts and hours are spent on a folder that is empty."""
    least = context.experiment.data.least_readable
    looks = min(len(ids), math.ceil(LOOKS / least)) if least else len(ids)
    unreadable: dict[str, str] = {}
    for place in shuffled("look", 0, 0, len(ids))[:looks]:
        try:
            dataset.image(ids[place])
            return
        except ImageError as error:
            unreadable[ids[place]] = str(error)
    context.replace_failures(stage, _failures(stage, unreadable))
    first = example(*next(iter(unreadable.items())))
    of_all = f" that it looked at, of {len(ids):,}," if looks < len(ids) else ""
    raise UnreadableError(
        f"Stage '{stage}' cannot read any of the {looks:,} images{of_all} to learn from{first}; {MENDED}.", unreadable
    )


def _failures(stage: str, unreadable: Mapping[str, str]) -> dict[str, Failure]:
    return {id: Failure(id, stage, error) for id, error in unreadable.items()}


def train(context: Context, task: ReadingTask, title: str, subfolder: str = "") -> Trained | None:
    """Train with a progress bar, or go on where an earlier process stopped; None where the user stopped it.

    The weights go into the stage's folder; of a training before the stage's last one, into a ``subfolder``.
    """
    folder, workers = context.own_folder(task.stage) / subfolder, task.workers
    cluster, session = context.experiment.cluster, context.session
    gpus = session.gpus_per_training_worker(cluster, workers)
    if session.in_process and workers > 1:
        context.tell(
            f"{task.stage}.workers={workers} counts for nothing with cluster.workers=0, where one worker trains: its "
            "weights differ in rounding."
        )
    place = folder.relative_to(context.run.directory).as_posix()
    plan = TrainingPlan(
        folder,
        WEIGHTS_FILE,
        0 if session.in_process else workers,
        cluster.cpus_per_worker,
        gpus,
        cluster.threads_per_worker,
        cluster.checkpoint_steps,
        f"{context.run.record(context.stages[task.stage].folder).get('key', '')} {place}",
        owns_cluster=session.is_local and not gpus,
    )
    began, starts = time.monotonic(), list[float]()
    log_news = functools.partial(log_training, context, folder)
    live = _repeating(log_news, TRACK_SECONDS) if context.tracker.is_live else contextlib.nullcontext()
    try:
        with (
            show_progress(context.console, title, task.steps, len(logged(folder)), unit="steps") as bar,
            _repeating(_follow(folder, bar), POLL_SECONDS),
            live,
        ):
            bar.note = "starting Ray Train" if plan.workers > 1 else ""
            log = run_training(task, plan, context.stop.is_set, starts.append)
    except UnreadableError as error:
        _forget(context, task.stage, folder, error)
        raise
    finally:
        log_news()
    if log is None:
        done = len(logged(folder))
        context.console.print(f"  stopped after {done} of {task.steps} steps", highlight=False)
        return None
    if len(log) < 2 or "validation" not in log[-1] or log[-1]["step"] != task.steps - 1 or "loss" not in log[-2]:
        raise RibrayError(
            f"{folder / LOG_FILE} is damaged (it does not end with step {task.steps - 1}); use --redo to train again."
        )
    start = sum(starts)
    trained = Trained(log, time.monotonic() - began - start, start, task.steps - bar.earlier, plan.workers)
    context.run.event(task.stage, "waited for workers", seconds=round(start, 3))
    record_weights(context, task.stage, f"{subfolder}/{WEIGHTS_FILE}" if subfolder else WEIGHTS_FILE)
    if not subfolder:
        task.start.unlink(missing_ok=True)
    return trained


def _forget(context: Context, stage: str, folder: Path, error: UnreadableError) -> None:
    """Forget a training on too few images, but for why: the next one begins anew, or before the first was missed."""
    if not error.can_go_on:
        storage.remove_folder(folder / WORK_FOLDER)
        if not context.run.record(context.stages[stage].folder).get(WEIGHTS_KEY):
            context.run.remove_stage(stage, context.stages[stage].folder)
    context.replace_failures(stage, _failures(stage, error.unreadable))


def final_loss(metrics: IrnMetrics | SegmentationMetrics) -> str:
    steps = "" if metrics.iterations is None else f", {metrics.iterations:,} steps"
    return f"loss {metrics.loss:.2f}{steps}"


def logged(folder: Path, kind: str = "loss") -> list[dict[str, Any]]:
    """Return a log's lines of steps, or of another kind; of a damaged log none: its training can only be done again."""
    try:
        return [line for line in read_log(folder) if kind in line]
    except DamagedError:
        return []


def done(folder: Path, steps: int) -> int:
    """Return how many of the steps of a training are done; without its weights, the last one is to be done again."""
    return steps if (folder / WEIGHTS_FILE).exists() else min(len(logged(folder)), steps - 1)


def reading(context: Context, stage: str) -> tuple[Path, int, float]:
    """Return what a training reads from and how: file of the first weights, loading processes, least readable share.

    On a CPU, where the training needs the cores, or in this process, nothing else loads data.
    """
    session, experiment = context.session, context.experiment
    loaders = (experiment.cluster.loader_threads or LOADERS) if session.gpus and not session.in_process else 0
    return context.own_folder(stage) / START_FILE, loaders, experiment.data.least_readable


def begin_on_masks(
    context: Context, stage: str, ids: Sequence[str], start: Callable[[Context], nn.Module]
) -> list[str]:
    """Begin, or go on with, a stage that learns from masks; return the images that its training is about."""
    look_ahead(context, stage, context.training_set, ids)
    context.begin(stage)
    folder = context.own_folder(stage)
    if not (known := _read_ids(folder)):
        known = list(ids)
        storage.write_json(folder / IDS_FILE, known)
    if not (folder / WEIGHTS_FILE).exists():
        save_network(start(context), folder / START_FILE)
    return known


def log_training(context: Context, folder: Path) -> None:
    """Track what is new in a training's log: every number of a step, such as loss and rate, and of a validation."""
    points = []
    for line in logged(folder, "step"):
        validation = {f"validation_{name}": value for name, value in line.get("validation", {}).items()}
        points.append({name: value for name, value in {**line, **validation}.items() if isinstance(value, int | float)})
    context.tracker.log_training(folder, points)


def weights_fingerprint(weights: str, key: str) -> dict[str, str]:
    """Return the fingerprint of a file of weights given under a configuration key; of a name there is none."""
    if weights in NAMED_WEIGHTS:
        return {}
    return {f"contents of {key}": hash_file(storage.absolute(weights), f"{key}={weights}")}


def report_unreadable(
    context: Context, stage: str, trained: Sequence[Trained], others: Mapping[str, Failure] | None = None
) -> dict[str, Failure]:
    """Write images that trainings could not read, and others lost before, into ``failures.jsonl``; return them."""
    errors = {id: error for each in trained for id, error in each.unreadable.items()}
    again = f"so {stage} has not learnt from it; once it is mended, --redo {stage} trains again"
    failures = dict(others or {})
    failures |= {id: Failure(id, stage, f"{error.removesuffix('.')}, {again}.") for id, error in errors.items()}
    context.replace_failures(stage, failures)
    return failures


def known_ids(folder: Path) -> list[str]:
    """Return the images that the training in ``folder`` is about; none where it never began, or nobody knows."""
    try:
        return _read_ids(folder)
    except DamagedError:
        return []


def _read_ids(folder: Path) -> list[str]:
    location = folder / IDS_FILE
    return storage.read_json(location, "use --redo to train again") if location.exists() else []


def outgrown(context: Context, name: str, ids: Sequence[str]) -> str | None:
    """Say so where a training knows other images than there are now."""
    known = known_ids(context.artifact(name))
    if not known or set(known) == set(ids):
        return None
    trained_on = f"{name} was trained on {len(known)} images, and {len(ids)} have masks now"
    return f"Note: {trained_on}; --redo {name} trains it again."


@contextlib.contextmanager
def _repeating(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do something every so often, in a thread, for the length of a ``with`` block, and once more at its end."""
    end = threading.Event()

    def repeat() -> None:
        while not end.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        action()


def _follow(folder: Path, bar: Bar) -> Callable[[], None]:
    """Return what moves a bar on as the training log grows; Ray Train itself says nothing while it runs."""
    location = folder / LOG_FILE
    seen = location.stat().st_size if location.exists() else 0

    def look() -> None:
        """Take up what was written since; steps that are done again after a crash are not counted twice."""
        nonlocal seen
        if not location.exists():
            return
        start = seen if location.stat().st_size >= seen else 0
        with location.open("rb") as stream:
            stream.seek(start)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        seen = start + len(whole)
        try:
            steps = [line for line in storage.parse_lines(whole, location, "") if "loss" in line]
        except DamagedError:  # told at the end, when the log is read as a whole
            return
        if steps:
            loss = steps[-1]["loss"]
            bar.note = "diverged" if loss is None else f"loss {loss:.3f}"
            bar.advance(max(0, steps[-1]["step"] + 1 - bar.done), 0)

    return look
