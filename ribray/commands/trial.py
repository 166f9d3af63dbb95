"""One trial of a sweep: a run forked from the base, in a process of its own, that writes down what came of it."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from ribray import storage
from ribray.cluster.training import read_log
from ribray.commands.run import Request, Result, run_chain
from ribray.config import Experiment, flatten
from ribray.errors import DivergedError, HeldError, RibrayError
from ribray.report.ledger import TrialRecord, read_trial
from ribray.runs.directory import TRIALS_FOLDER
from ribray.runs.run import Run
from ribray.stages import STAGES
from ribray.sweep_file import SweepFile, Trial, metric_of

LOCK_SECONDS = 60.0  # how long a trial waits for the process of an interrupted sweep to let go of its directory
LOG_END = 4096  # bytes of a trial's log that are looked at for its last line


@dataclass(frozen=True)
class TrialRunner:
    definition: SweepFile
    experiment: Experiment  # the base's
    base: Path  # directory of the run that trials reuse
    stages: tuple[str, ...]  # of a trial, with those before them that the base cannot lend
    out: Path  # the sweep's folder
    key: str  # of the sweep, see `TrialRecord.write`

    def __call__(self, trial: Trial, images: int | None, is_last: bool) -> float | None:
        """Run a trial, on so many images where a scheduler says so; return the metric where it goes well."""
        began, values = time.monotonic(), dict(trial.settings)
        if images is not None:
            values["refine.limit"] = images
        if self.definition.workers_per_trial is not None:
            values["cluster.workers"] = self.definition.workers_per_trial
        recipe, directory = self.definition.base.recipe, self.out / TRIALS_FOLDER / trial.id
        experiment = self.experiment.with_values(values, recipe)
        request = Request(experiment, recipe, self.base, self.stages, fork=directory)
        with _appending(log_file(directory)) as log:
            record = self._run(trial, request, Console(file=log, width=120, soft_wrap=True))
        if record.status == "finished" and not is_last:
            record.status = "running"
        earlier = read_trial(trial, self.out, self.key)  # on fewer images, or until it failed
        record.seconds = round(time.monotonic() - began + (earlier.seconds if earlier else 0.0), 3)
        record.write(self.out, self.key)
        return record.value

    def _run(self, trial: Trial, request: Request, console: Console) -> TrialRecord:
        try:
            result = _run_when_free(request, console)
        except DivergedError as error:
            numbers = _diverged_numbers(request.directory)
            return TrialRecord.of(trial, "diverged", metrics=numbers, error=str(error))
        except RibrayError as error:
            return TrialRecord.of(trial, "failed", error=str(error))
        own, *older = (run.metrics() for run in Run.read(request.directory).lineage)
        for name in self.definition.stages:
            own |= next(({name: metrics[name]} for metrics in [own, *older] if name in metrics), {})
        numbers = {name: value for name, value in flatten(own).items() if _is_noted(name, value)}
        metric = metric_of(self.definition.metric, trial.settings)
        made: dict[str, Any] = {"metrics": numbers, "failed_images": len(result.failures)}
        if (value := numbers.get(metric)) is None:
            made["error"] = f"It wrote no {metric}: is there a truth, with pixels of classes?"
        return TrialRecord.of(trial, "failed" if value is None else "finished", value=value, **made)


def _run_when_free(request: Request, console: Console) -> Result:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return run_chain(request, console, threading.Event())
        except HeldError:
            if request.break_lock:
                raise
            if time.monotonic() > deadline:  # its node has died; the sweep's own lock keeps other sweeps out
                request = replace(request, break_lock=True)
            time.sleep(1)


def _is_noted(name: str, value: Any) -> bool:
    """Whether a trial notes a value of its metrics: a number or an interval, but of no single class and no timing."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (is_number or name.endswith("_interval")) and not {"per_class", "timing"}.intersection(name.split("."))


def _diverged_numbers(directory: Path) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name in (name for name, stage in STAGES.items() if stage.trainings):
        losses = [line["loss"] for line in read_log(directory / STAGES[name].folder) if "loss" in line]
        if losses and not Run(directory).has_metrics(name):
            finite = [loss for loss in losses if loss is not None]
            numbers |= {f"{name}.steps": len(losses)} | ({f"{name}.last_loss": finite[-1]} if finite else {})
    return numbers


def log_file(directory: Path) -> Path:
    return directory.parent / f"{directory.name}.log"


@contextmanager
def _appending(location: Path) -> Iterator[TextIO]:
    """Yield a stream that adds to a text file: line by line, on an object store at the end."""
    if storage.is_local(location):
        location.parent.mkdir(parents=True, exist_ok=True)
        with open(location, "a", encoding="utf-8", buffering=1) as stream:
            yield stream
        return
    buffer = io.StringIO()
    try:
        yield buffer
    finally:
        earlier = location.read_text(encoding="utf-8") if location.exists() else ""
        storage.write_text(location, earlier + buffer.getvalue())


def last_line(log: Path) -> str:
    """Return the last line of a trial's log, from its end; on an object store it is written when the trial ends."""
    if not storage.is_local(log) or not log.exists():
        return ""
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - LOG_END))
        lines = stream.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
