"""A sweep: a base run, trials that reuse what they can of it, and the ledger of what came of each.

The ledger ``sweep.json`` is the only thing a sweep goes on from: finished trials stand in it, and a trial that was cut
off is a run directory like any other, which continues from its finished images.
"""

import io
import shlex
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from ribray import storage
from ribray.cluster.session import Session, connect, require_shared, usable_cores
from ribray.cluster.sweep import Outcome, Searched, SweepPlan, require_optuna, run_sweep
from ribray.cluster.training import read_log
from ribray.commands.run import Request, parse_stages, run_chain, serves
from ribray.config import Experiment, flatten, nearest, to_values
from ribray.errors import DivergedError, HeldError, RibrayError, UsageError
from ribray.pipeline.stage import CAM, Context, training_workers
from ribray.progress import Bar, show_progress
from ribray.report.ledger import FORMAT, read_ledger
from ribray.report.sweep_results import write_results
from ribray.runs.directory import EXPERIMENT_FILE, LEDGER_FILE, hold
from ribray.runs.keys import differences
from ribray.runs.run import Run
from ribray.stages import MASK_STAGES, STAGES, feeds
from ribray.sweep_file import Axis, SweepFile, Trial, base_experiment, base_run, read_base, scaled, trials_of
from ribray.tracking import TRIALS_FOLDER, WANDB_FOLDER, Tracker, sync_command

BASE_FOLDER, TUNE_FOLDER, SWEEP_FILE = "base", "tune", "sweep.yaml"
LASTING = ("finished", "diverged", "stopped")
"""What a trial stays when the sweep is started again; others are run."""
LOCK_SECONDS = 60.0
"""How long a trial waits for the process of an interrupted sweep to let go of its directory."""
LOG_END = 4096
"""Bytes of a trial's log that are looked at for its last line."""
NO_PART_OF_A_RESULT = ("cluster.", "tracking.", "data.least_readable")


@dataclass(frozen=True)
class SweepRequest:
    """What a user asked for."""

    sweep: SweepFile
    source: Path
    """The sweep file."""
    title: str
    """What it is, in a line."""
    out: Path
    overrides: tuple[str, ...] = ()
    """``key=value`` strings that change the base and so every trial."""
    break_lock: bool = False

    @property
    def name(self) -> str:
        """Of the sweep, and of its trials' group in W&B."""
        return self.source.stem


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to."""

    ledger: dict[str, Any]
    files: list[Path]
    """Table and plots."""
    sync_command: str | None
    """Uploads the offline W&B files of all trials."""
    stopped: bool
    """Whether the user stopped it."""

    @property
    def failed(self) -> bool:
        """Whether a trial, or an image of one, failed."""
        trials = self.ledger["trials"]
        return any(trial["status"] == "failed" or trial["failed_images"] for trial in trials)


@dataclass(frozen=True)
class _Job:
    """What a trial needs to know wherever it runs."""

    request: SweepRequest
    out: Path
    recipe: Mapping[str, Any]
    """Raw values of the base's recipe, as they were when the sweep was started."""
    base: Path
    """Directory of the run that trials reuse."""
    stages: tuple[str, ...]
    """Of a trial, with those before them that the base cannot lend."""


def sweep(request: SweepRequest, console: Console, stop: threading.Event) -> SweepResult:
    """Run a sweep, or what is left of it.

    Raises:
        UsageError: something is wrong with the sweep, or with the base run; no trial was started.
        RibrayError: the base run failed.
    """
    definition, out = request.sweep, storage.absolute(request.out)
    recipe = read_base(definition)
    experiment = base_experiment(definition, request.overrides, recipe=recipe)
    trials = trials_of(definition, experiment)
    touched = _check(request, experiment, trials, recipe)
    needed = [name for name in STAGES if name in definition.stages or feeds(name, definition.stages)]
    shared = tuple(name for name in needed if name not in touched)
    with ExitStack() as held:
        lock = hold(out, "sweep", request.break_lock)
        held.callback(lock.release)
        ledger = _Ledger(out, request, experiment, trials)
        session = held.enter_context(connect(experiment.cluster, training_workers(experiment, STAGES), stop))
        _require_workers(definition, experiment, session)
        require_shared(out, session)
        storage.write_text(out / SWEEP_FILE, request.source.read_text(encoding="utf-8-sig"))
        ledger.write()
        base = _base_run(request, experiment, shared, out, console, stop)
        own = tuple(name for name in needed if name not in shared or name in definition.stages)
        job = _Job(request, out, recipe, base, own)
        if not stop.is_set():
            _run_trials(job, ledger, experiment, console, stop)
        command = None if experiment.tracking.wandb == "disabled" else _sync_command(ledger, out)
        return SweepResult(ledger.values, write_results(ledger.values, out), command, stop.is_set())


def _sync_command(ledger: "_Ledger", out: Path) -> str | None:
    """Return what uploads the W&B files of all trials, as a pattern: there may be many."""
    command = sync_command(ledger.directory(trial) for trial in ledger.trials)
    if command is None or not storage.is_local(out):
        return command
    return f"wandb sync {shlex.quote(str(out))}/{TRIALS_FOLDER}/*/{WANDB_FOLDER}"


# --- before anything starts --------------------------------------------------------------------------------------


def _check(request: SweepRequest, base: Experiment, trials: Sequence[Trial], recipe: Mapping[str, Any]) -> set[str]:
    """Refuse what cannot work; return the stages that some trial has to do for itself."""
    definition = request.sweep
    parse_stages(",".join(definition.stages))
    if base.cluster.workers == 0:
        raise UsageError(
            f"{request.source}: a sweep's trials are processes of their own, on Ray, so they need a pool each: set "
            "cluster.workers=1 in place of cluster.workers=0."
        )
    if _is_search(definition):
        require_optuna()
    known = flatten(to_values(base))
    for key in definition.space:
        if key not in known:
            raise UsageError(f"{request.source}: there is no configuration key '{key}' to vary{nearest(key, known)}.")
    changed: set[str] = set()
    for trial in trials:
        values = flatten(to_values(base_experiment(definition, request.overrides, trial.settings, recipe)))
        changed |= {key for key, value in values.items() if value != known[key]}
    if definition.scheduler is not None:
        changed.add("refine.limit")
    touched = {name for name, stage in STAGES.items() if any(_lies_under(key, stage.reads) for key in changed)}
    if any(_chooses_data(key, base) for key in changed):
        touched = set(STAGES)
    touched |= {name for name in STAGES if any(feeds(other, (name,)) for other in touched)}
    reading = {name for name in STAGES if name in definition.stages or feeds(name, definition.stages)}
    for key in definition.space:
        is_read = key == "seed" or _chooses_data(key, base)
        if not is_read and not any(_lies_under(key, STAGES[name].reads) for name in reading):
            raise UsageError(
                f"{request.source}: none of the stages {', '.join(definition.stages)} depends on {key}, so there is "
                "nothing to compare."
            )
    _check_metric(request, touched)
    return touched


def _chooses_data(key: str, base: Experiment) -> bool:
    """Whether a key says which data is read; stages know the data by its fingerprint, not by such keys."""
    of_the_drawn_world = _lies_under(key, ("data.seed", "data.synthetic"))
    return _lies_under(key, ("data",)) and (base.data.kind == "synthetic" or not of_the_drawn_world)


def _lies_under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _check_metric(request: SweepRequest, touched: set[str]) -> None:
    definition = request.sweep
    own = [f"{name}.{number}" for name in definition.stages for number in STAGES[name].writes]
    variant = [f"variants.{CAM}.{number}" for number in own if number.partition(".")[0] in MASK_STAGES]
    if definition.metric not in [*own, *variant]:
        raise UsageError(
            f"{request.source}: the stages {', '.join(definition.stages)} write no metric '{definition.metric}'"
            f"{nearest(definition.metric, own)}; they write {', '.join(own)}."
        )
    stage = definition.metric.removeprefix(f"variants.{CAM}.").partition(".")[0]
    if stage not in touched:
        keys = ", ".join(definition.space)
        raise UsageError(
            f"{request.source}: {definition.metric} does not depend on {keys}: every trial would be equal."
        )


def _require_workers(definition: SweepFile, experiment: Experiment, session: Session) -> None:
    wanted = definition.workers_per_trial
    cpus = usable_cores() if session.is_local else session.cpus
    if wanted is not None and wanted * experiment.cluster.cpus_per_worker > cpus:
        raise UsageError(
            f"workers_per_trial={wanted} needs {wanted * experiment.cluster.cpus_per_worker:g} CPUs, and the cluster "
            f"has {cpus:g}."
        )


# --- the base run ------------------------------------------------------------------------------------------------


def _base_run(
    request: SweepRequest,
    experiment: Experiment,
    shared: tuple[str, ...],
    out: Path,
    console: Console,
    stop: threading.Event,
) -> Path:
    """Return the run that trials reuse: one that was named, as it is, or one of the sweep's own.

    Raises:
        UsageError: the run that was named lacks a stage, or has other settings.
    """
    named = base_run(request.sweep)
    if named is None:
        directory = out / BASE_FOLDER
        grouped = experiment.model_copy(
            update={"tracking": experiment.tracking.model_copy(update=_tracking(request, experiment))}
        )
        base = Request(grouped, request.sweep.base.recipe, directory, shared, break_lock=request.break_lock)
        run_chain(base, console, stop)
        return directory
    run = Run.read(named)
    context = Context(experiment.on_first_source(), run, STAGES, Console(quiet=True), Tracker(experiment, run))
    for name in shared:
        key, stage = context.key(name), STAGES[name]
        record = run.record(stage.folder)
        if record is not None and record.get("key") != key.digest and context.artifact(name).parent == run.directory:
            phrases = differences(record.get("inputs", {}), key.inputs) or [f"an earlier {', '.join(key.upstream)}"]
            raise UsageError(
                f"The base run {run.directory} has stage '{name}' with other settings than the sweep expects: "
                f"{'; '.join(phrases)}."
            )
        if context.has(name) and serves(stage, stage.work(context)):
            continue
        raise UsageError(
            f"The base run {run.directory} has not finished stage '{name}': "
            f"ribray run {run.directory / EXPERIMENT_FILE} --out {run.directory} --stages {name}."
        )
    return run.directory


def _tracking(request: SweepRequest, experiment: Experiment) -> dict[str, Any]:
    return {"group": experiment.tracking.group or request.name}


# --- trials ------------------------------------------------------------------------------------------------------


def _run_trials(job: _Job, ledger: "_Ledger", experiment: Experiment, console: Console, stop: threading.Event) -> None:
    request, definition = job.request, job.request.sweep
    left = [trial for trial in ledger.trials if ledger.entry(trial)["status"] not in LASTING]
    searched = _searched(definition, experiment, ledger) if _is_search(definition) else None
    total = len(ledger.trials) if searched is None else searched.search.samples
    finished = ledger.draws
    if finished >= total:
        console.print(f"[bold]{escape(request.name)}[/bold]: {total} of {total} trials, done already", highlight=False)
        return
    if finished and definition.scheduler is not None:
        console.print(f"The scheduler starts anew: the {finished} finished trials are not compared with those to come.")
    if finished and searched is not None:
        console.print(f"The search is told of the {finished} finished trials.", highlight=False)
    plan = SweepPlan(
        request.name, definition.mode, definition.max_concurrent, job.out / TUNE_FOLDER, definition.scheduler
    )
    with show_progress(console, request.name, total, finished, unit="trials") as bar:

        def on_change(trial: Trial, outcome: Outcome) -> None:
            ledger.take(trial, outcome)
            if outcome.status == "failed":
                console.print(f"[red]{escape(trial.id)} failed:[/red] {escape(outcome.error or '')}", highlight=False)
            if outcome.status != "running":
                bar.advance(int(outcome.status != "failed"), int(outcome.status == "failed"))

        def on_equal(trial: Trial) -> None:
            ledger.draw_again(trial)
            bar.advance(1, 0)

        run_sweep(
            left,
            _TrialRunner(job),
            plan,
            on_change,
            stop.is_set,
            lambda: _show_running(bar, ledger),
            searched,
            on_equal,
        )


def _is_search(definition: SweepFile) -> bool:
    return definition.search is not None and definition.search.kind == "optuna"


def _searched(definition: SweepFile, experiment: Experiment, ledger: "_Ledger") -> Searched:
    flat = flatten(to_values(experiment))
    assert definition.search is not None
    entries = [ledger.entry(trial) for trial in ledger.trials]
    return Searched(
        definition.search,
        {key: _resolved(key, axis, flat) for key, axis in definition.space.items()},
        ledger.draws,
        [(entry["settings"], entry["value"]) for entry in entries if entry["status"] in LASTING],
        [entry["settings"] for entry in entries if entry["status"] not in LASTING],
        [key for key in definition.space if isinstance(flat[key], int) and not isinstance(flat[key], bool)],
    )


def _resolved(key: str, axis: Axis, flat: Mapping[str, Any]) -> Axis:
    """Return an axis with its factors turned into values."""
    if axis.times is None:
        return axis
    name, values = next((name, values) for name, values in axis.times if values is not None)
    return Axis.model_validate({name: [scaled(key, value, flat) for value in values]})


def _show_running(bar: Bar, ledger: "_Ledger") -> None:
    """Tell what the last line in the log of a running trial tells."""
    running = [trial for trial in ledger.trials if ledger.entry(trial)["status"] == "running"]
    if running:
        trial = running[-1]
        line = _last_line(_log_file(ledger.directory(trial)))
        bar.note = f"{trial.id}: {line}" if line else trial.id
    bar.refresh()


def _last_line(log: Path) -> str:
    """Return the last line of a trial's log, from its end; on an object store it is written when the trial ends."""
    if not storage.is_local(log) or not log.exists():
        return ""
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - LOG_END))
        lines = stream.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass(frozen=True)
class _TrialRunner:
    """Runs trials, in whatever process."""

    job: _Job

    def __call__(self, trial: Trial, limit: int | None) -> Outcome:
        """Run the stages of a trial in its directory; with a limit on that many images."""
        request, began = self.job.request, time.monotonic()
        directory = self.job.out / TRIALS_FOLDER / trial.id
        more: dict[str, Any] = {} if limit is None else {"refine.limit": limit}
        if request.sweep.workers_per_trial is not None:
            more["cluster.workers"] = request.sweep.workers_per_trial
        settings = {**trial.settings, **more}
        experiment = base_experiment(request.sweep, request.overrides, settings, self.job.recipe)
        tracking = experiment.tracking.model_copy(update=_tracking(request, experiment))
        experiment = experiment.model_copy(update={"tracking": tracking})
        chain = Request(experiment, request.sweep.base.recipe, self.job.base, self.job.stages, fork=directory)
        with _appending(_log_file(directory)) as log:
            outcome = self._outcome(chain, Console(file=log, width=120))
        return replace(outcome, seconds=round(time.monotonic() - began, 3))

    def _outcome(self, request: Request, console: Console) -> Outcome:
        metric = self.job.request.sweep.metric
        try:
            result = _run_when_free(request, console)
        except DivergedError as error:
            return Outcome("diverged", metrics=_diverged_numbers(request.directory), error=str(error))
        except RibrayError as error:
            return Outcome("failed", error=str(error))
        numbers = dict(_numbers(_metrics(request.directory, self.job.request.sweep.stages)))
        value = numbers.get(metric)
        if value is None:
            reason = f"It wrote no {metric}: is there a truth, with pixels of classes?"
            return Outcome("failed", None, numbers, len(result.failures), reason)
        return Outcome("finished", value, numbers, len(result.failures))


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


def _log_file(directory: Path) -> Path:
    """Return what a trial prints into: beside its directory, which is a run's."""
    return directory.parent / f"{directory.name}.log"


def _run_when_free(request: Request, console: Console) -> Any:
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


def _metrics(directory: Path, stages: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of a trial's stages; of one that it reuses, those of the run that it was made in."""
    lineage = Run.read(directory).lineage
    merged = lineage[0].metrics()
    for name in stages:
        for run in lineage[1:]:
            if name not in merged and name in (older := run.metrics()):
                merged[name] = older[name]
    return merged


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number, and every pair of numbers that is an interval, by dotted name."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            if name not in ("per_class", "timing"):
                yield from _numbers(value, f"{prefix}{name}.")
        elif (isinstance(value, int | float) and not isinstance(value, bool)) or name.endswith("_interval"):
            yield f"{prefix}{name}", value


def _diverged_numbers(directory: Path) -> dict[str, Any]:
    """Return how far the training that diverged came, from its log."""
    numbers: dict[str, Any] = {}
    for name in (name for name, stage in STAGES.items() if stage.trainings):
        losses = [line["loss"] for line in read_log(directory / STAGES[name].folder) if "loss" in line]
        if losses and not (directory / "metrics" / f"{name}.json").exists():
            finite = [loss for loss in losses if loss is not None]
            numbers |= {f"{name}.steps": len(losses)} | ({f"{name}.last_loss": finite[-1]} if finite else {})
    return numbers


# --- the ledger --------------------------------------------------------------------------------------------------


class _Ledger:
    """The file ``sweep.json``: what the sweep is, and every trial with what came of it."""

    def __init__(self, out: Path, request: SweepRequest, base: Experiment, trials: Sequence[Trial]):
        """Read the ledger, if there is one, and bring it in line with the trials there are to be.

        Raises:
            UsageError: it is that of another sweep, or of other settings.
        """
        definition = request.sweep
        self._out, self._location = out, out / LEDGER_FILE
        named, values = base_run(definition), flatten(to_values(base))
        self.values: dict[str, Any] = {
            "format": FORMAT,
            "name": request.name,
            "title": request.title,
            "base": {"recipe": definition.base.recipe, "directory": str(named) if named else BASE_FOLDER},
            "metric": definition.metric,
            "mode": definition.mode,
            "axes": definition.axes,
            "repeats": list(definition.repeated()),
            "published": definition.published.model_dump() if definition.published else None,
            "stages": list(definition.stages),
            "configuration": {k: v for k, v in values.items() if not k.startswith(NO_PART_OF_A_RESULT)},
            "trials": [],
        }
        earlier = self._read()
        self._entries: dict[str, dict[str, Any]] = {}
        known = {entry["id"]: entry for entry in earlier.get("trials", ())}
        suggested = [id for id, entry in known.items() if set(entry["settings"]) == set(definition.space)]
        wanted = suggested if _is_search(definition) else [trial.id for trial in trials]
        for id in wanted:
            settings = known[id]["settings"] if id in known else next(t.settings for t in trials if t.id == id)
            self._add(Trial(id, settings))
            if id in known and known[id]["status"] in LASTING:
                self._entries[id].update(known[id])

    def _read(self) -> dict[str, Any]:
        if not self._location.exists():
            return {}
        earlier = read_ledger(self._location)
        phrases = [
            f"{name} (there {earlier.get(name)}, now {self.values[name]})"
            for name in ("metric", "mode", "stages")
            if earlier.get(name) != self.values[name]
        ]
        old, new = (
            {"configuration": each.get("configuration", {}), "data": {}, "format": 0} for each in (earlier, self.values)
        )
        phrases += differences(old, new)
        if phrases:
            raise UsageError(
                f"{self._out} holds a sweep with other settings: {'; '.join(phrases)}; choose another --out."
            )
        return earlier

    @property
    def trials(self) -> list[Trial]:
        """All trials so far."""
        return [Trial(id, entry["settings"]) for id, entry in self._entries.items()]

    @property
    def draws(self) -> int:
        """How many of the samples trials that need not be run again were drawn for; equal draws are one trial."""
        return sum(entry["draws"] for entry in self._entries.values() if entry["status"] in LASTING)

    def entry(self, trial: Trial) -> dict[str, Any]:
        """Return the line of a trial."""
        return self._entries[trial.id]

    def directory(self, trial: Trial) -> Path:
        """Return where a trial lies."""
        return self._out / TRIALS_FOLDER / trial.id

    def _add(self, trial: Trial) -> None:
        self._entries[trial.id] = {
            "id": trial.id,
            "directory": f"{TRIALS_FOLDER}/{trial.id}",
            "settings": dict(trial.settings),
            "draws": 1,
            **asdict(Outcome("waiting")),
        }
        self.values["trials"] = list(self._entries.values())

    def take(self, trial: Trial, outcome: Outcome) -> None:
        """Write down what came of a trial."""
        if trial.id not in self._entries:
            self._add(trial)
        self._entries[trial.id].update(asdict(outcome))
        self.write()

    def draw_again(self, trial: Trial) -> None:
        """Count a draw that equals one before."""
        self._entries[trial.id]["draws"] += 1
        self.write()

    def write(self) -> None:
        """Write the file."""
        storage.write_json(self._location, self.values)
