"""A sweep: a base run, trials that reuse what they can of it, and what came of each.

A trial writes what came of it into its directory, which is a run's; the ledger ``sweep.json`` is the view of these
files. The same command goes on from there: finished trials are not run again, and one that was cut off continues from
its finished images.
"""

import hashlib
import json
import shlex
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ribray import storage
from ribray.cluster.session import connect, require_shared
from ribray.cluster.sweep import Searched, require_optuna, run_sweep
from ribray.commands.run import Request, parse_stages, run_chain, serves
from ribray.commands.trial import TrialRunner, last_line, log_file
from ribray.config import Experiment, flatten, nearest, to_values
from ribray.errors import UsageError
from ribray.machine import usable_cores
from ribray.pipeline.finished_run import FinishedRun
from ribray.pipeline.maps import REFINE
from ribray.pipeline.stage import training_workers
from ribray.progress import Bar, show_progress
from ribray.report.ledger import FORMAT, TrialRecord, read_ledger, read_trial
from ribray.report.sweep_results import write_results
from ribray.runs.directory import EXPERIMENT_FILE, LEDGER_FILE, SWEEP_FILE, TRIALS_FOLDER, hold
from ribray.runs.keys import differences
from ribray.runs.run import Run
from ribray.stages import MASK_STAGES, STAGES, asked_for, feeds, stages_of
from ribray.sweep_file import SweepFile, Trial, base_experiment, base_run, metric_of, shipped_sweeps, trials_of
from ribray.tracking import WANDB_FOLDER, sync_command

METHOD = "refine.method"
BASE_FOLDER, TUNE_FOLDER = "base", "tune"
LASTING = ("finished", "diverged", "stopped")  # what a trial stays when the sweep is started again; others are run
NO_PART_OF_A_RESULT = ("cluster.", "tracking.", "data.least_readable")


@dataclass(frozen=True)
class SweepRequest:
    sweep: SweepFile
    source: Path  # the sweep file
    title: str  # what it is, in a line
    out: Path
    overrides: Sequence[str] = ()  # ``key=value`` strings that change the base and so every trial
    break_lock: bool = False

    @property
    def name(self) -> str:
        return self.source.stem


@dataclass(frozen=True)
class SweepResult:
    ledger: dict[str, Any]
    files: list[Path]  # table and plots
    sync_command: str | None  # uploads the offline W&B files of all trials
    stopped: bool  # by the user

    @property
    def failed(self) -> bool:
        return any(trial["status"] == "failed" or trial["failed_images"] for trial in self.ledger["trials"])


def sweep(request: SweepRequest, console: Console, stop: threading.Event) -> SweepResult:
    """Run a sweep, or what is left of it; an error means that no trial was started."""
    definition, out = request.sweep, storage.absolute(request.out)
    base = base_experiment(definition, request.overrides)
    base = base.with_values({"tracking.group": base.tracking.group or request.name})
    trials = trials_of(definition, base)
    touched = check(request, base, trials)
    needed = _needed(definition, base)
    shared = tuple(name for name in needed if name not in touched)
    own = tuple(name for name in needed if name in touched or name in definition.stages)
    if METHOD in definition.space:  # whose stages differ from trial to trial
        own = tuple(dict.fromkeys(REFINE if name.startswith(REFINE) else name for name in own))
    with ExitStack() as held:
        held.callback(hold(out, "sweep", request.break_lock).release)
        ledger = Ledger(out, request, base, trials)
        session = held.enter_context(connect(base.cluster, training_workers(base, STAGES), stop))
        wanted = (definition.workers_per_trial or 0) * base.cluster.cpus_per_worker
        cpus = usable_cores() if session.is_local else session.cpus
        if wanted > cpus:
            raise UsageError(
                f"workers_per_trial={definition.workers_per_trial} needs {wanted:g} CPUs, and the cluster has {cpus:g}."
            )
        require_shared(out, session)
        storage.write_text(out / SWEEP_FILE, request.source.read_text(encoding="utf-8-sig"))
        ledger.write()
        directory = _base_run(request, base, shared, out, console, stop)
        runner = TrialRunner(definition, base, directory, own, out, ledger.key)
        if not stop.is_set():
            run_trials(request, ledger, runner, console, stop)
        values, command = ledger.values(), None
        if base.tracking.wandb != "disabled":
            command = sync_command(out / record.directory for record in ledger.records.values())
        if command is not None and storage.is_local(out):  # a pattern, as there may be many
            command = f"wandb sync {shlex.quote(str(out))}/{TRIALS_FOLDER}/*/{WANDB_FOLDER}"
        return SweepResult(values, write_results(values, out), command, stop.is_set())


# --- before anything starts --------------------------------------------------------------------------------------


def check(request: SweepRequest, base: Experiment, trials: Sequence[Trial]) -> set[str]:
    """Refuse what cannot work; return the stages that some trial has to do for itself."""
    definition = request.sweep
    parse_stages(",".join(definition.stages))
    chain, needed = stages_of(base), _needed(definition, base)
    if base.cluster.workers == 0:
        raise UsageError(
            f"{request.source}: a sweep's trials are processes of their own, on Ray, so they need a pool each: set "
            "cluster.workers=1 in place of cluster.workers=0."
        )
    if definition.is_suggested:
        require_optuna()
    known = _flat(base)
    for key in definition.space:
        if key not in known:
            raise UsageError(f"{request.source}: there is no configuration key '{key}' to vary{nearest(key, known)}.")
    changed, metrics = {"refine.limit"} if definition.scheduler is not None else set(), dict[str, Experiment]()
    for trial in trials:
        experiment = base.with_values(trial.settings, definition.base.recipe)
        values = _flat(experiment)
        changed |= {key for key in values.keys() | known.keys() if values.get(key) != known.get(key)}
        metrics.setdefault(metric_of(definition.metric, trial.settings), experiment)
    touched = {name for name, stage in chain.items() if any(_lies_under(key, stage.reads) for key in changed)}
    if any(_chooses_data(key, base) for key in changed):
        touched = set(chain)
    touched |= {name for name in chain if any(feeds(other, (name,), chain=chain) for other in touched)}
    reads = [chain[name].reads for name in needed]
    for key in definition.space:
        is_read = key == "seed" or _chooses_data(key, base) or any(_lies_under(key, prefixes) for prefixes in reads)
        if not is_read:
            raise UsageError(
                f"{request.source}: none of the stages {', '.join(definition.stages)} depends on {key}, so there is "
                "nothing to compare."
            )
    for metric, experiment in metrics.items():
        _check_metric(request, metric, experiment, touched)
    return touched


def _flat(experiment: Experiment) -> dict[str, Any]:
    """Return every key; that of the methods also where it goes without saying."""
    return {METHOD: list(experiment.methods), **flatten(to_values(experiment))}


def _needed(definition: SweepFile, base: Experiment) -> list[str]:
    """Return the stages that a trial is made of: those that are asked for, and those before them."""
    chain = stages_of(base)
    wanted = asked_for(definition.stages, chain)
    return [name for name in chain if name in wanted or feeds(name, wanted, chain=chain)]


def _chooses_data(key: str, base: Experiment) -> bool:
    """Whether a key says which data is read; stages know the data by its fingerprint, not by such keys."""
    of_the_drawn_world = _lies_under(key, ("data.seed", "data.synthetic"))
    return _lies_under(key, ("data",)) and (base.data.kind == "synthetic" or not of_the_drawn_world)


def _lies_under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _check_metric(request: SweepRequest, metric: str, experiment: Experiment, touched: set[str]) -> None:
    definition, chain = request.sweep, stages_of(experiment)
    own = [f"{name}.{number}" for name in asked_for(definition.stages, chain) for number in chain[name].writes]
    on_masks = [each for each in own if each.partition(".")[0] in MASK_STAGES]
    others = [source for source in experiment.maps if source != experiment.own_source]
    if metric not in own + [f"variants.{source}.{each}" for source in others for each in on_masks]:
        raise UsageError(
            f"{request.source}: the stages {', '.join(definition.stages)} write no metric '{metric}'"
            f"{nearest(metric, own)}; they write {', '.join(own)}."
        )
    stage = metric.split(".")[2 if metric.startswith("variants.") else 0]
    if not {stage, REFINE if stage.startswith(REFINE) else ""}.intersection(touched):
        raise UsageError(
            f"{request.source}: {metric} does not depend on {', '.join(definition.space)}: every trial would be equal."
        )


def _base_run(
    request: SweepRequest, base: Experiment, shared: tuple[str, ...], out: Path, console: Console, stop: threading.Event
) -> Path:
    """Return the run that trials reuse: one that was named, if it has what they need, or one of the sweep's own."""
    named = base_run(request.sweep)
    if named is None:
        own = Request(base, request.sweep.base.recipe, out / BASE_FOLDER, shared, break_lock=request.break_lock)
        run_chain(own, console, stop)
        return own.out
    run, own_base = Run.read(named), base.on_own_source()
    context = FinishedRun(run, own_base, stages_of(own_base)).context()
    for name in shared:
        key, stage = context.key(name), context.stages[name]
        record = run.record(stage.folder)
        if record and record["key"] != key.digest and context.artifact(name).parent == run.directory:
            phrases = differences(record["inputs"], key.inputs) or [f"an earlier {', '.join(key.upstream)}"]
            raise UsageError(
                f"The base run {run.directory} has stage '{name}' with other settings than the sweep expects: "
                f"{'; '.join(phrases)}."
            )
        if not (context.has(name) and serves(stage, stage.work(context))):
            raise UsageError(
                f"The base run {run.directory} has not finished stage '{name}': "
                f"ribray run {run.directory / EXPERIMENT_FILE} --out {run.directory} --stages {name}."
            )
    return run.directory


# --- trials ------------------------------------------------------------------------------------------------------


def run_trials(
    request: SweepRequest, ledger: "Ledger", runner: TrialRunner, console: Console, stop: threading.Event
) -> None:
    definition, search = request.sweep, request.sweep.search if request.sweep.is_suggested else None
    done = [record for record in ledger.records.values() if record.status in LASTING]
    left = [record for record in ledger.records.values() if record.status not in LASTING]
    finished, total = sum(record.draws for record in done), search.samples if search else len(ledger.records)
    if finished >= total:
        console.print(f"[bold]{escape(request.name)}[/bold]: {total} of {total} trials, done already", highlight=False)
        return
    if finished and definition.scheduler is not None:
        console.print(f"The scheduler starts anew: the {finished} finished trials are not compared with those to come.")
    if finished and search is not None:
        console.print(f"The search is told of the {finished} finished trials.", highlight=False)
    trials, searched = [Trial(record.id, record.settings) for record in left], None
    if search is not None:
        base = flatten(to_values(runner.experiment))
        space = {key: axis.without_factors(key, base) for key, axis in definition.space.items()}
        evaluated = [(record.settings, record.value) for record in done]
        integers = [key for key in space if isinstance(base[key], int) and not isinstance(base[key], bool)]
        searched = Searched(search, space, finished, evaluated, [record.settings for record in left], integers)
    with show_progress(console, request.name, total, finished, unit="trials") as bar:
        watcher = _Watcher(ledger, console, bar)
        run_sweep(request.name, definition, trials, runner, ledger.out / TUNE_FOLDER, watcher, stop.is_set, searched)


@dataclass(frozen=True)
class _Watcher:
    ledger: "Ledger"
    console: Console
    bar: Bar

    def begun(self, trial: Trial) -> None:
        self.ledger.put(TrialRecord.of(trial, "running"))

    def ended(self, trial: Trial) -> None:
        record = read_trial(trial, self.ledger.out, self.ledger.key)
        if record is not None and record.status == "running":  # more images were to come, and it was ended all the same
            record.status = "stopped"
            record.write(self.ledger.out, self.ledger.key)
        self._take(record or TrialRecord.of(trial, "failed", error="it left no result"))

    def died(self, trial: Trial, error: str) -> None:
        self._take(TrialRecord.of(trial, "failed", error=error))

    def _take(self, record: TrialRecord) -> None:
        self.ledger.put(record)
        has_failed = record.status == "failed"
        if has_failed:
            self.console.print(f"[red]{escape(record.id)} failed:[/red] {escape(record.error or '')}", highlight=False)
        self.bar.advance(int(not has_failed), int(has_failed))

    def drawn_again(self, trial: Trial) -> None:
        self.ledger.records[trial.id].draws += 1
        self.ledger.write()
        self.bar.advance(1, 0)

    def waiting(self) -> None:
        running = [record for record in self.ledger.records.values() if record.status == "running"]
        if running:
            line = last_line(log_file(self.ledger.out / running[-1].directory))
            self.bar.note = f"{running[-1].id}: {line}" if line else running[-1].id
        self.bar.refresh()


# --- the ledger --------------------------------------------------------------------------------------------------


class Ledger:
    """What the sweep is, and every trial with what came of it; written as ``sweep.json`` whenever that changes."""

    def __init__(self, out: Path, request: SweepRequest, base: Experiment, trials: Sequence[Trial]):
        definition, named = request.sweep, base_run(request.sweep)
        configuration, self.out = flatten(to_values(base)).items(), out
        self._head: dict[str, Any] = {
            "format": FORMAT,
            "name": request.name,
            "title": request.title,
            "source": request.name if shipped_sweeps().get(request.name) == request.source else str(request.source),
            "overrides": list(request.overrides),
            "base": {"recipe": definition.base.recipe, "directory": str(named) if named else BASE_FOLDER},
            "metric": definition.metric,
            "mode": definition.mode,
            "axes": definition.axes,
            "repeats": list(definition.repeated()),
            "published": definition.published.model_dump() if definition.published else None,
            "stages": list(definition.stages),
            "configuration": {key: value for key, value in configuration if not key.startswith(NO_PART_OF_A_RESULT)},
        }
        what = [self._head[name] for name in ("metric", "stages", "configuration")]
        self.key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        """What a trial's results depend on besides its settings."""
        known = {entry["id"]: TrialRecord(**entry) for entry in self._earlier().get("trials", ())}
        if definition.is_suggested:
            suggested = [record for record in known.values() if set(record.settings) == set(definition.space)]
            trials = [Trial(record.id, record.settings) for record in suggested]
        has_trials = (out / TRIALS_FOLDER).is_dir()
        self.records: dict[str, TrialRecord] = {}
        for trial in trials:
            record = earlier = known.get(trial.id)
            if has_trials and (earlier is None or earlier.status not in LASTING):
                record = read_trial(trial, out, self.key)
            if record is None or record.status not in LASTING:
                record = TrialRecord.of(trial, "waiting")
            elif earlier is not None:
                record.draws = earlier.draws
            self.records[trial.id] = record

    def _earlier(self) -> dict[str, Any]:
        location = self.out / LEDGER_FILE
        if not location.exists():
            return {}
        earlier = read_ledger(location)
        both = [(name, earlier.get(name), self._head[name]) for name in ("metric", "mode", "stages")]
        phrases = [f"{name} (there {there}, now {now})" for name, there, now in both if there != now]
        old, new = ({"configuration": each.get("configuration", {}), "format": 0} for each in (earlier, self._head))
        if phrases := phrases + differences(old, {**new, "data": {}}):
            raise UsageError(
                f"{self.out} holds a sweep with other settings: {'; '.join(phrases)}; choose another --out."
            )
        return earlier

    def put(self, record: TrialRecord) -> None:
        if record.id in self.records:
            record.draws = self.records[record.id].draws
        self.records[record.id] = record
        self.write()

    def values(self) -> dict[str, Any]:
        return {**self._head, "trials": [asdict(record) for record in self.records.values()]}

    def write(self) -> None:
        storage.write_json(self.out / LEDGER_FILE, self.values())
