"""Runs the stages of an experiment in a run directory: checks first, then one stage after the other."""

import contextlib
import importlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ribray import storage
from ribray.cluster.pool import PoolPlan
from ribray.cluster.session import in_thread
from ribray.commands.import_maps import TITLE, import_maps
from ribray.commands.tracking import log_run, open_trackers
from ribray.config import Experiment, label
from ribray.demo.world import is_drawn, make_world
from ribray.errors import StageError, UsageError
from ribray.methods.worker import Imports
from ribray.pipeline.finished_run import FinishedRun
from ribray.pipeline.maps import REFINE, map_files, refine_stage, wanted_ids
from ribray.pipeline.stage import Context, Estimate, Stage, Work
from ribray.report.charts import draw_curve
from ribray.report.pictures import MapFiles, MaskBlock, draw_growth, draw_masks
from ribray.report.stage_tables import headline, stage_title
from ribray.report.tables import seed_table
from ribray.runs.metrics import RunMetrics
from ribray.runs.records import Failure
from ribray.runs.run import Run
from ribray.stages import MASK_STAGES, STAGES, asked_for, confident, evaluate, feeds, pseudo, seed, stages_of
from ribray.tracking import Tracker, sync_command


@dataclass
class Request:
    experiment: Experiment
    recipe: str
    out: Path
    stages: Sequence[str] = tuple(STAGES)
    redo: str | None = None
    fork: Path | None = None
    break_lock: bool = False  # whether to take the place of a process that left its lock on an object store

    def __post_init__(self) -> None:
        self.stages = asked_for(self.stages, stages_of(self.experiment))
        self.directory = self.fork or self.out


@dataclass(frozen=True)
class Result:
    metrics: dict[str, Any]
    failures: list[Failure]
    figures: list[Path]
    sync_command: str | None  # uploads the offline W&B files of the run and its variants
    stopped: bool  # whether the user stopped it


@dataclass(frozen=True)
class Planned:
    stage: str
    total: int
    done: int
    unit: str
    source: str  # ``here``, ``new``, or the directory of the run that it is reused from
    estimate: Estimate | None  # of what is left; None where it cannot be known beforehand


@dataclass(frozen=True)
class StageStatus:
    stage: str
    total: int
    done: int
    unit: str
    failed: int
    result: str  # its numbers in a few words
    variant: str | None = None


@dataclass(frozen=True)
class Part:
    """The run itself, or a variant of it on other maps, and the stages that it holds."""

    context: Context
    stages: tuple[str, ...]
    redo: str | None
    variant: str | None = None

    @cached_property
    def remade(self) -> tuple[str, ...]:
        """The stage that is to be made again and all that build on it."""
        chain, redo = self.context.stages, self.redo
        if redo is None:
            return ()
        if redo not in chain:
            raise UsageError(f"--redo {redo}: there is no such stage; the stages are {', '.join(chain)}.")
        return tuple(name for name in chain if name == redo or feeds(redo, (name,), chain=chain))


def parse_stages(text: str | None) -> tuple[str, ...]:
    """Return the stages named in ``a,b``, in the order of the chain; all of them for None."""
    if text is None:
        return tuple(STAGES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in STAGES and not name.startswith(f"{REFINE}_")]:
        raise UsageError(f"There is no stage '{unknown[0]}'; the stages are {', '.join(STAGES)}.")
    if not names:
        raise UsageError(f"--stages names none; the stages are {', '.join(STAGES)}.")
    return tuple(dict.fromkeys([*(name for name in STAGES if name in names), *names]))


def run_chain(request: Request, console: Console, stop: threading.Event) -> Result:
    """Do what the request asks for; a `StageError` holds the result of the stages beside those that came to nothing."""
    with _opened(request, console, stop, connects=len(request.stages) > 1) as parts:
        _check(parts, request)
        main, *others = contexts = [part.context for part in parts]
        main.run.write_experiment(request.experiment, request.recipe)
        for context in others:
            context.run.write_experiment(context.experiment, request.recipe)
        with open_trackers(contexts):
            errors = _run_stages(parts, request, stop)
            disconnected = in_thread(main.resources.close, "disconnect")  # Ray takes seconds to end
            main.run.rewrite_metrics()
            metrics = main.run.metrics()
            figures = [] if stop.is_set() else _draw(parts, main.run.read_metrics())
            for context in contexts:
                log_run(context, figures if context is main else [])
            disconnected.result()
            failures = [failure for context in contexts for failure in context.run.failures()]
            is_tracked = request.experiment.tracking.wandb != "disabled"
            command = sync_command(context.run.directory for context in contexts) if is_tracked else None
            result = Result(metrics, failures, figures, command, stop.is_set())
            if errors and not stop.is_set():
                errors[0].result = result
                raise errors[0]
        return result


def _run_stages(parts: Sequence[Part], request: Request, stop: threading.Event) -> list[StageError]:
    """Run the stages that do not need one that came to nothing; return the errors of those that did."""
    errors: list[StageError] = []
    failed_before: list[str] = []
    for part in parts:
        failed = [name for name in failed_before if name not in part.stages]  # a variant has its own of the others
        for name in request.stages:
            if name not in part.stages or stop.is_set():
                continue
            title, console = f"[bold]{stage_title(name, part.variant)}[/bold]", part.context.console
            if missing := [other for other in failed if feeds(other, (name,), chain=part.context.stages)]:
                console.print(f"{title}: not begun, as stage '{missing[0]}' failed", highlight=False)
                continue
            try:
                _run_stage(part, part.context.stages[name], title)
                metrics = part.context.run.read_metrics().seed
                if name == seed.NAME != request.stages[-1] and metrics is not None:  # later stages take longer
                    console.print("", seed_table(metrics.maps), "")
            except StageError as error:
                console.print(f"{title}: [red]failed[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
                errors.append(error)
                failed.append(name)
        failed_before += failed
    return errors


def run_import(request: Request, source: Path, console: Console, stop: threading.Event) -> Result:
    with _opened(request, console, stop) as parts:
        context = parts[0].context
        run = context.run
        try:
            with run.timed(TITLE):
                import_maps(context, storage.absolute(source))
        except StageError as error:
            error.result = Result(run.metrics(), run.failures(), [], None, stop.is_set())
            raise
        run.write_experiment(request.experiment, request.recipe)
        return Result(run.metrics(), run.failures(), [], None, stop.is_set())


def _import_spares(context: Context, name: str) -> str | None:
    if context.imported(name) is not None:
        work = context.stages[name].work(context)
        return f"{work.done} of {work.total} {work.unit}, imported"
    readers = [stage for stage, definition in context.stages.items() if name in definition.upstream]
    if readers and all(context.imported(stage) is not None for stage in readers):
        return f"not needed, stage {' and '.join(readers)} was imported"
    return None


def _run_stage(part: Part, stage: Stage, title: str) -> None:
    context, console = part.context, part.context.console
    if (reason := _import_spares(context, stage.name)) is not None:
        console.print(f"{title}: {reason}", highlight=False)
        return
    work, made_in = stage.work(context), context.artifact(stage.name).parent
    # A process that was killed between the last item and the end of its stage has left no metrics.
    has_metrics = Run(made_in).has_metrics(stage.name)
    if context.has(stage.name) and not work.left and not work.is_stale and has_metrics:
        where = "" if made_in == context.run.directory else f" in {escape(str(made_in))}"
        text = f"{title}: {work.done} of {work.total} {work.unit}, done already{where}"
        console.print(text, highlight=False, soft_wrap=True)
        if stage.remark is not None and (remark := stage.remark(context)) is not None:
            console.print(f"  {remark}", highlight=False)
        return
    if part.variant:
        console.print(f"{title}:", highlight=False)
    with context.run.timed(stage.name):
        stage.execute(context)


DRAWN_FROM = 20_000  # images that those of a picture are chosen from: a million would take the driver half a gigabyte


def _draw(parts: Sequence[Part], metrics: RunMetrics) -> list[Path]:
    context = parts[0].context
    figures, folder = [], context.run.directory / "figures"
    stages = map(refine_stage, context.experiment.methods)
    if folders := [context.artifact(name) for name in stages if context.has(name)]:
        files = map_files(folders, wanted_ids(context)[:DRAWN_FROM])
        figures.append(draw_growth(context.training_set, files, folder / "maps.png"))
        figures.append(draw_masks(_mask_blocks(parts, files), folder / "masks.png"))
    figures.append(draw_curve(metrics.seeds, folder / "seed_curve.png"))
    return [figure for figure in figures if figure is not None]


def _mask_blocks(parts: Sequence[Part], files: MapFiles) -> list[MaskBlock]:
    context, sources = parts[0].context, []
    training: dict[str, Path] = {}
    predictions: dict[str, Path] = {}
    for part in parts:
        for name, folders, title in (
            (confident.NAME, training, "confident labels"),
            (pseudo.NAME, training, "pseudo mask"),
            (evaluate.NAME, predictions, "prediction"),
        ):
            if name in part.stages and part.context.has(name):
                folders[f"{title}, {label(part.context.own_maps)}"] = part.context.artifact(name)
                sources.append(part.context.own_maps)
    blocks = []
    if training:
        blocks.append(MaskBlock("training images", context.training_set, list(files), training, files, sources[0]))
    if predictions:
        for split, predicted in evaluate.splits(context).items():
            blocks.append(MaskBlock(f"predicted images ({split})", predicted, predicted.ids, predictions))
    return blocks


def plan_chain(request: Request, console: Console) -> list[Planned]:
    """Return what `run_chain` would do, without starting a cluster; nothing is written, and nothing held."""
    parts = _parts(request, Run.look, console, threading.Event())
    _check(parts, request, redo=False)
    planned = []
    for part in parts:
        context = part.context
        for name in request.stages:
            if name not in part.stages or (request.redo is None and _import_spares(context, name) is not None):
                continue
            stage, made_in = context.stages[name], context.artifact(name).parent
            work, source = stage.work(context), "here" if made_in == context.run.directory else str(made_in)
            if name in part.remade or not context.has(name):
                work, source = replace(work, done=0), "new"
            estimate = stage.estimate(context, work) if stage.estimate and work.left else None
            title = stage_title(name, part.variant)
            planned.append(Planned(title, work.total, work.done, work.unit, source, estimate))
    return planned


def read_status(directory: Path) -> tuple[bool, list[StageStatus]]:
    """Return whether a process works in the run now, and how far each stage is that the run has begun."""
    main = Run.read(directory)
    is_held, statuses = main.is_held, []
    runs: list[tuple[str | None, Run]] = [(None, main), *main.variants().items()]
    for variant, run in runs:
        experiment = run.read_experiment()
        experiment = experiment.on_own_source() if variant is None else experiment.on_source(variant)
        context = FinishedRun(run, experiment, stages_of(experiment)).context()
        numbers, failures = run.read_metrics().stages(), Counter(failure.stage for failure in run.failures())
        for name, stage in context.stages.items():
            if (variant is None or name in MASK_STAGES) and (context.has(name) or failures[name]):
                work = stage.work(context)
                result = headline(numbers.get(name), stage)
                statuses.append(StageStatus(name, work.total, work.done, work.unit, failures[name], result, variant))
    return is_held, statuses


@contextlib.contextmanager
def _opened(request: Request, console: Console, stop: threading.Event, connects: bool = False) -> Iterator[list[Part]]:
    with contextlib.ExitStack() as held:

        def open_run(directory: Path, parent: Run | None) -> Run:
            return held.enter_context(Run.open(directory, parent, request.break_lock))

        parts = _parts(request, open_run, console, stop)
        with parts[0].context.resources:
            _draw_world(parts[0].context, connects)
            yield parts


def _parts(
    request: Request, open_run: Callable[[Path, Run | None], Run], console: Console, stop: threading.Event
) -> list[Part]:
    """Return the run, and after it the variants on further maps where such are asked for.

    A run directory that is a variant itself goes on as one.
    """
    experiment, parent = request.experiment, None if request.fork is None else Run.read(request.out)
    if parent is not None and parent.directory == storage.absolute(request.directory):
        raise UsageError(f"--fork {request.fork} must be another directory than the run it starts from.")
    run, on_own, own = open_run(request.directory, parent), experiment.on_own_source(), experiment.own_source
    main = Context(on_own, run, stages_of(on_own), console, Tracker(experiment, run), stop)
    has_masks = run.variant is not None or own in experiment.sources
    parts = [Part(main, tuple(name for name in main.stages if has_masks or name not in MASK_STAGES), request.redo)]
    if run.variant is not None or not set(request.stages).intersection(MASK_STAGES):
        return parts
    for source in experiment.sources:
        if source != own:
            on_source, sub_run = experiment.on_source(source), open_run(run.variant_directory(source), run)
            stages, tracker = stages_of(on_source), Tracker(on_source, sub_run)
            variant = replace(main, experiment=on_source, run=sub_run, stages=stages, tracker=tracker, session_of=main)
            parts.append(Part(variant, MASK_STAGES, request.redo, source))
    return parts


def _draw_world(context: Context, connects: bool) -> None:
    """Draw the world that the data is of where it is not there yet: such a run is new, so Ray is started meanwhile.

    What takes seconds to import is imported while others wait: here for Ray, and by a pool's actors for Ray Train.
    """
    data = context.experiment.data
    if data.kind != "synthetic" or is_drawn(context.data_root, data.synthetic, data.seed):
        return
    with ThreadPoolExecutor(1) as drawer:
        drawn = drawer.submit(make_world, context.data_root, data.synthetic, data.seed)
        if connects:
            session, cluster = context.session, context.experiment.cluster
            plan = PoolPlan.of("refinement", cluster, session)
            if session.is_local and plan.workers and not plan.gpus_per_worker:
                from ribray.cluster import warm

                drawer.submit(importlib.import_module, "ribray.cluster.distributed")
                warm.prepare(plan, Imports)
        with context.console.status("drawing the synthetic world"):
            drawn.result()


def _check(parts: Sequence[Part], request: Request, redo: bool = True) -> None:
    """Refuse whatever can be refused before anything starts, and forget what is to be made again (not for a plan)."""
    main = parts[0].context
    if parts[0].remade and request.redo not in request.stages:
        raise UsageError(
            f"--redo {request.redo} is not among --stages {','.join(request.stages)}: add it, or it would be removed "
            "and not made again."
        )
    needed: list[str] = []
    for part in parts:
        chain = part.context.stages
        imported = {name for name in main.stages if name not in part.remade and main.imported(name) is not None}
        needed += [name for name in chain if name in request.stages or feeds(name, request.stages, imported, chain)]
    here = [(part, part.context, name) for part in parts for name in part.stages if name in needed]
    for part, context, name in here:
        if name not in part.remade:
            context.run.refuse_other_settings(context.stages[name].folder, context.key(name))
    for part, context, name in here:
        stage = context.stages[name]
        work = stage.work(context)  # whatever is wrong with lists or files is said here
        is_there = name not in part.remade and context.has(name)
        if name in request.stages:
            if redo and stage.check is not None and (work.left or not is_there):
                stage.check(context)
        elif not is_there or not serves(stage, work):
            raise UsageError(
                f"Stage '{request.stages[0]}' needs stage '{name}', which {context.run.directory} does not have; "
                f"add it: --stages {','.join(dict.fromkeys(needed))}."
            )
    if redo and request.redo is not None:
        _forget(parts, request)


def _forget(parts: Sequence[Part], request: Request) -> None:
    for part in parts:
        run, context = part.context.run, part.context
        own = [name for name in part.remade if name in part.stages]
        for name in own:
            run.remove_stage(name, context.stages[name].folder)
        context.forget_keys()
        for name in own if run.parent is not None else ():
            context.begin(name)  # an artifact of this run's own from here on, also where it was forked from another
    experiment = request.experiment
    for source, variant in parts[0].context.run.variants().items():  # one that is not worked on now: its maps are gone
        if variant.directory not in [part.context.run.directory for part in parts]:
            chain = stages_of(experiment.on_source(source) if source in experiment.maps else experiment)
            for name in MASK_STAGES:
                if name == request.redo or feeds(request.redo or "", (name,), chain=chain):
                    variant.remove_stage(name, chain[name].folder)


def serves(stage: Stage, work: Work) -> bool:
    """Whether later stages can go on with what a stage has done so far."""
    return work.done > 0 if stage.serves_in_part else work.left == 0
