"""What of a run is tracked: losses, numbers, curves, tables and pictures, all of which stand in the run's files."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ribray.config import label
from ribray.errors import DivergedError
from ribray.pipeline.stage import Context
from ribray.pipeline.training import log_training
from ribray.report.comparison import chains, ordered
from ribray.runs.metrics import Curve, RunMetrics
from ribray.stages import STAGES
from ribray.tracking import curves, table


@contextlib.contextmanager
def open_trackers(contexts: Sequence[Context]) -> Iterator[None]:
    """Track runs for the length of a ``with`` block; an error in it, but a training's divergence, marks them failed."""
    failed = True
    try:
        for context in contexts:
            if context.tracker.is_live:
                context.tracker.open()
        yield
        failed = False
    except DivergedError:
        failed = False
        raise
    finally:
        for context in contexts:
            context.tracker.close(failed)
            if context.tracker.trouble is not None:
                context.console.print(f"Note: {context.tracker.trouble}", highlight=False, markup=False)


def log_run(context: Context, figures: Sequence[Path]) -> None:
    for stage in STAGES.values():
        for training in stage.trainings:
            log_training(context, context.run.directory / stage.folder / training)
    metrics, source = context.run.read_metrics(), context.own_maps

    def media() -> dict[str, Any]:
        columns = ("images", "seconds", "images_per_second", "start_seconds", "workers")
        timed = {stage: cost for stage, cost in metrics.timing.items() if cost.seconds is not None}
        rows = [[stage, *(getattr(cost, name) for name in columns)] for stage, cost in timed.items()]
        throughput = {"tables/throughput": table(["stage", *columns], rows)}
        return {**_per_class(metrics, source), **throughput, **_curves(metrics, source)}

    context.tracker.log_results(context.run.metrics(), {figure.stem: figure for figure in figures}, media)


def _per_class(metrics: RunMetrics, source: str) -> dict[str, Any]:
    tables = {}
    for stage in STAGES.values():
        columns = {
            f"{label(part.source or maps)}{part.heading}": part.numbers.per_class
            for maps, chain in chains(metrics, source).items()
            if (numbers := chain.stages().get(stage.name)) is not None
            for part in stage.judged(numbers)
        }
        if columns:
            classes = dict.fromkeys(name for per_class in columns.values() for name in per_class)
            rows = [[name, *(per_class.get(name) for per_class in columns.values())] for name in classes]
            tables[f"tables/{stage.name}"] = table(["class", *columns], rows)
    return tables


def _curves(metrics: RunMetrics, source: str) -> dict[str, Any]:
    charts, seeds = {}, metrics.seeds
    if found := {label(maps): curve for maps in ordered(seeds) if (curve := seeds[maps].curve)}:
        charts["curves/seed"] = _over_thresholds("Seed mIoU in percent", found)
    if grown := {label(maps): by_step for maps in ordered(seeds) if (by_step := seeds[maps].by_step)}:
        steps = [one.step for one in max(grown.values(), key=len)]
        lines = {  # of one x-axis
            name: [by_step[place].miou if place < len(by_step) else None for place in range(len(steps))]
            for name, by_step in grown.items()
        }
        charts["curves/seed_by_step"] = curves("Seed mIoU in percent", "step", steps, lines)
    walk = metrics.pseudo and metrics.pseudo.walk
    if walk and walk.curve:
        charts["curves/random_walk"] = _over_thresholds("Random walk's mIoU in percent", {label(source): walk.curve})
    return charts


def _over_thresholds(title: str, found: Mapping[str, Curve]) -> Any:
    thresholds = next(iter(found.values())).thresholds
    return curves(title, "threshold", thresholds, {name: curve.miou for name, curve in found.items()})
