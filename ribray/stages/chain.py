"""Runs the stages of an experiment in a run directory: checks first, then one stage after the other."""

import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ribray import storage
from ribray.config import Experiment
from ribray.data.synthetic import make_world
from ribray.errors import UsageError
from ribray.report.pictures import draw_curve, draw_growth
from ribray.run import Failure, Run
from ribray.stages import STAGES, refine
from ribray.stages.import_maps import TITLE, import_maps
from ribray.stages.stage import Context, Estimate, Stage, Work
from ribray.tracking import Tracker


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    experiment: Experiment
    recipe: str
    out: Path
    stages: Sequence[str] = tuple(STAGES)
    redo: str | None = None
    fork: Path | None = None

    @property
    def directory(self) -> Path:
        """The run directory that is worked in."""
        return self.fork or self.out


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    metrics: dict[str, Any]
    failures: list[Failure]
    figures: list[Path]
    sync_command: str | None
    """Uploads the W&B files of an offline run."""
    stopped: bool
    """Whether the user stopped it."""


@dataclass(frozen=True)
class Planned:
    """What would become of one stage."""

    stage: str
    total: int
    done: int
    unit: str
    source: str
    """``here``, ``new``, or the directory of the run that it is reused from."""
    estimate: Estimate | None
    """Of what is left; None where it cannot be known beforehand."""


@dataclass(frozen=True)
class StageStatus:
    """How far one stage of a run is."""

    stage: str
    total: int
    done: int
    unit: str
    failed: int
    metrics: dict[str, Any]


def parse_stages(text: str | None) -> tuple[str, ...]:
    """Return the stages named in ``a,b``, in the order of the chain; all of them for None.

    Raises:
        UsageError: an unknown name.
    """
    if text is None:
        return tuple(STAGES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in STAGES]:
        raise UsageError(f"There is no stage '{unknown[0]}'; the stages are {', '.join(STAGES)}.")
    if not names:
        raise UsageError(f"--stages names none; the stages are {', '.join(STAGES)}.")
    return tuple(name for name in STAGES if name in names)


def run_chain(request: Request, console: Console, stop: threading.Event) -> Result:
    """Do what the request asks for.

    Raises:
        UsageError: something is wrong; nothing was started.
        RibrayError: a stage failed as a whole.
    """
    with _opened(request, console, stop) as context:
        _check(context, request)
        run = context.run
        run.write_experiment(request.experiment, request.recipe)
        for name in request.stages:
            if (reason := _import_spares(context, name)) is not None:
                console.print(f"[bold]{name}[/bold]: {reason}", highlight=False)
            else:
                _run_stage(context, STAGES[name])
            if stop.is_set():
                break
        metrics = run.metrics()
        context.tracker.log_summary(metrics)
        figures = [] if stop.is_set() else _draw(context, metrics)
        return Result(metrics, run.failures(), figures, context.tracker.sync_command, stop.is_set())


def run_import(request: Request, source: Path, console: Console, stop: threading.Event) -> Result:
    """Take maps made elsewhere in place of stage ``refine``.

    Raises:
        UsageError: something is wrong; nothing was started.
    """
    with _opened(request, console, stop) as context:
        run = context.run
        with run.timed(TITLE):
            import_maps(context, storage.absolute(source))
        run.write_experiment(request.experiment, request.recipe)
        return Result(run.metrics(), run.failures(), [], context.tracker.sync_command, stop.is_set())


def _import_spares(context: Context, name: str) -> str | None:
    """Say why an import leaves nothing to do for a stage; None where there is."""
    if context.imported(name) is not None:
        work = STAGES[name].work(context)
        return f"{work.done} of {work.total} {work.unit}, imported"
    readers = [stage for stage, definition in STAGES.items() if name in definition.upstream]
    if readers and all(context.imported(stage) is not None for stage in readers):
        return f"not needed, stage {' and '.join(readers)} was imported"
    return None


def _run_stage(context: Context, stage: Stage) -> None:
    work, folder = stage.work(context), context.artifact(stage.name)
    # A process that was killed between the last item and the end of its stage has left no metrics.
    if context.has(stage.name) and not work.left and (folder.parent / "metrics" / f"{stage.name}.json").exists():
        where = "" if folder.parent == context.run.directory else f" in {escape(str(folder.parent))}"
        text = f"[bold]{stage.name}[/bold]: {work.done} of {work.total} {work.unit}, done already{where}"
        context.console.print(text, highlight=False, soft_wrap=True)
        return
    with context.run.timed(stage.name):
        stage.execute(context)


def _draw(context: Context, metrics: dict[str, Any]) -> list[Path]:
    """Draw the run's pictures anew."""
    figures, folder = [], context.run.directory / "figures"
    if context.has(refine.NAME):
        maps = context.artifact(refine.NAME)
        files = {id: refine.map_path(maps, id) for id in refine.refined_ids(context)}
        figures.append(draw_growth(context.training_set, files, folder / "maps.png"))
    if "seed" in metrics:
        figures.append(draw_curve(metrics["seed"], folder / "seed_curve.png"))
    return [figure for figure in figures if figure is not None]


def plan_chain(request: Request, console: Console) -> list[Planned]:
    """Return what `run_chain` would do, without doing it or starting a cluster.

    Raises:
        UsageError: as `run_chain` would.
    """
    with _opened(request, console, threading.Event()) as context:
        _check(context, request, redo=False)
        plan = []
        remade = _from(request.redo) if request.redo is not None else ()
        for name in request.stages:
            if not remade and _import_spares(context, name) is not None:
                continue
            stage, folder = STAGES[name], context.artifact(name)
            work, source = (
                stage.work(context),
                "here" if folder.parent == context.run.directory else str(folder.parent),
            )
            if name in remade or not context.has(name):
                work, source = replace(work, done=0), "new"
            estimate = stage.estimate(context, work) if stage.estimate and work.left else None
            plan.append(Planned(name, work.total, work.done, work.unit, source, estimate))
        return plan


def read_status(directory: Path) -> tuple[bool, list[StageStatus]]:
    """Return whether a process works in the run now, and how far each stage is that the run has begun.

    Raises:
        UsageError: it is no run directory, or its data cannot be opened.
    """
    run = Run.read(directory)
    experiment = run.read_experiment()
    context = Context(experiment, run, STAGES, Console(quiet=True), Tracker(experiment, run))
    metrics, failures = run.metrics(), Counter(failure.stage for failure in run.failures())
    statuses = []
    for name, stage in STAGES.items():
        if context.has(name):
            work = stage.work(context)
            statuses.append(StageStatus(name, work.total, work.done, work.unit, failures[name], metrics.get(name, {})))
    return run.is_held, statuses


@contextlib.contextmanager
def _opened(request: Request, console: Console, stop: threading.Event) -> Iterator[Context]:
    """Hold the run directory, with its data at hand, for the length of a ``with`` block."""
    parent = None
    directory = request.out
    if request.fork is not None:
        parent, directory = Run.read(request.out), request.fork
        if parent.directory == directory.expanduser().absolute():
            raise UsageError(f"--fork {directory} must be another directory than the run it starts from.")
    with Run.open(directory, parent) as run:
        context = Context(request.experiment, run, STAGES, console, Tracker(request.experiment, run), stop)
        with context.resources:
            if request.experiment.data.kind == "synthetic":
                _draw_world(context)
            try:
                yield context
            finally:
                context.tracker.close()


def _draw_world(context: Context) -> None:
    data = context.experiment.data
    with context.console.status("drawing the synthetic world"):
        make_world(context.data_root, data.synthetic, data.seed)


def _check(context: Context, request: Request, redo: bool = True) -> None:
    """Refuse whatever can be refused before anything starts, and forget what is to be made again."""
    remade = _from(request.redo) if request.redo is not None else ()
    imported = {name for name in STAGES if name not in remade and context.imported(name) is not None}
    needed = [name for name in STAGES if name in request.stages or _feeds(name, request.stages, imported)]
    for name in needed:
        if name not in remade:
            context.run.refuse_other_settings(STAGES[name].folder, context.key(name))
    works = {name: STAGES[name].work(context) for name in needed}  # whatever is wrong with lists or files is said here
    for name in needed:
        if name not in request.stages and (
            name in remade or not context.has(name) or not _serves(STAGES[name], works[name])
        ):
            raise UsageError(
                f"Stage '{request.stages[0]}' needs stage '{name}', which {context.run.directory} does not have; "
                f"add it: --stages {','.join([*needed])}."
            )
    if redo:
        for name in remade:
            context.run.remove_stage(name, STAGES[name].folder)
        context.forget_keys()
        for name in remade:  # an artifact of this run's own from here on, also where it was forked from another
            if context.run.parent is not None:
                context.run.begin(STAGES[name].folder, context.key(name))


def _serves(stage: Stage, work: Work) -> bool:
    """Whether later stages can go on with what a stage has done so far."""
    return work.done > 0 if stage.serves_in_part else work.left == 0


def _feeds(name: str, stages: Sequence[str], imported: Collection[str] = ()) -> bool:
    """Whether one of ``stages`` builds on stage ``name``, directly or not; imported ones build on none."""
    return any(
        name in STAGES[stage].upstream or _feeds(name, STAGES[stage].upstream, imported)
        for stage in stages
        if stage not in imported
    )


def _from(stage: str) -> tuple[str, ...]:
    """Return a stage and all that build on it.

    Raises:
        UsageError: there is no such stage.
    """
    if stage not in STAGES:
        raise UsageError(f"--redo {stage}: there is no such stage; the stages are {', '.join(STAGES)}.")
    return tuple(name for name in STAGES if name == stage or _feeds(stage, (name,)))
