"""What of a run is tracked: losses, numbers, curves, tables and pictures, all of which stand in the run's files."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ribray.errors import DivergedError
from ribray.pipeline.artifacts import FIRST_FOLDER
from ribray.pipeline.stage import Context
from ribray.pipeline.training import log_training
from ribray.report.tables import BEFORE_RETRAINING, CAM, METHOD_NAMES, RIB, SEED_CRF
from ribray.stages import classifier, confident, evaluate, irn, pseudo, seed, segmentation
from ribray.tracking import Curves, Results, Table

TRAININGS = (
    classifier.FOLDER,
    irn.FOLDER,
    f"{segmentation.FOLDER}/{FIRST_FOLDER}",
    segmentation.FOLDER,
)
"""Folders of a run with the log of a training."""
JUDGED = {
    confident.NAME: {SEED_CRF: ""},
    pseudo.NAME: {pseudo.WALK: ", random walk", "": ""},
    evaluate.NAME: {BEFORE_RETRAINING: ", before re-training", "": ""},
}
"""Parts of a stage's metrics that have an IoU per class, and what follows the method in the heading of a column."""


@contextlib.contextmanager
def tracked(contexts: Sequence[Context]) -> Iterator[None]:
    """Track runs for the length of a ``with`` block; an error in it, unless a training diverged, ends them as failed.

    Raises:
        UsageError: W&B is wanted online, and there is no key.
        RibrayError: W&B is wanted online and cannot be had, which is found out at the beginning.
    """
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
    """Log what a run has come to, and what an earlier process did not come to log."""
    for folder in TRAININGS:
        log_training(context, context.run.directory / folder)
    metrics, source = context.run.metrics(), context.experiment.masks.source
    tables = {**_per_class(metrics, source), "throughput": _throughput(metrics["timing"])}
    pictures = {figure.stem: figure for figure in figures}
    context.tracker.log_results(Results(metrics, tables, _curves(metrics, source), pictures))


def _per_class(metrics: Mapping[str, Any], source: str) -> dict[str, Table]:
    """Return a table of the IoU per class for every stage that was judged, a column per method."""
    seeds = metrics.get(seed.NAME, {})
    columns = {seed.NAME: {METHOD_NAMES[method]: seeds[method]["per_class"] for method in seed.METHODS if seeds}}
    sources = {source: metrics, **metrics.get("variants", {})}
    for stage, parts in JUDGED.items():
        columns[stage] = {
            f"{METHOD_NAMES[name]}{heading}": result["per_class"]
            for name in sorted(sources, key=(CAM, RIB).index)
            for part, heading in parts.items()
            if "per_class" in (result := _part(sources[name].get(stage, {}), part))
        }
    return {stage: _class_table(found) for stage, found in columns.items() if found}


def _class_table(columns: Mapping[str, Mapping[str, float | None]]) -> Table:
    names = dict.fromkeys(name for per_class in columns.values() for name in per_class)
    rows = [[name, *(per_class.get(name) for per_class in columns.values())] for name in names]
    return Table(["class", *columns], rows)


def _part(result: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return result.get(part, {}) if part else result


def _throughput(timing: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = ("images", "seconds", "images_per_second", "workers")
    return Table(["stage", *columns], [[stage, *map(cost.get, columns)] for stage, cost in timing.items() if cost])


def _curves(metrics: Mapping[str, Any], source: str) -> dict[str, Curves]:
    """Return the mIoU over what decides about it: thresholds, and steps."""
    curves = {}
    if seed.NAME in metrics:
        judged = metrics[seed.NAME]
        found = {METHOD_NAMES[method]: judged[method]["curve"] for method in seed.METHODS if "curve" in judged[method]}
        if found:
            curves[seed.NAME] = _over_thresholds("Seed mIoU in percent", found)
        if by_step := metrics[seed.NAME][RIB].get("by_step"):
            steps, values = [one["step"] for one in by_step], [one["miou"] for one in by_step]
            curves["seed_by_step"] = Curves("Seed mIoU in percent", "step", steps, {METHOD_NAMES[RIB]: values})
    if walk := metrics.get(pseudo.NAME, {}).get(pseudo.WALK, {}).get("curve"):
        curves["random_walk"] = _over_thresholds("Random walk's mIoU in percent", {METHOD_NAMES[source]: walk})
    return curves


def _over_thresholds(title: str, curves: Mapping[str, Mapping[str, list[float]]]) -> Curves:
    thresholds = next(iter(curves.values()))["thresholds"]
    return Curves(title, "threshold", thresholds, {name: curve["miou"] for name, curve in curves.items()})
