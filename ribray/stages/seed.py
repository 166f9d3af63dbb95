"""Stage ``seed``: the mIoU of the initial seed at every threshold, for all maps of a run, in one pass."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ribray import storage
from ribray.config import CAM, RIB
from ribray.data.dataset import Dataset
from ribray.data.truth import Tally, compare
from ribray.errors import ImageError, StageError
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import winner
from ribray.methods.maps import MapRecord, Which, localization_maps
from ribray.methods.method import Maps
from ribray.methods.stop_reasons import StopTally
from ribray.pipeline import judging
from ribray.pipeline.artifacts import read_map
from ribray.pipeline.maps import REFINE, map_path, refine_stage, refined_ids, wanted_ids
from ribray.pipeline.per_image import StagePool
from ribray.pipeline.stage import Context, Stage, Work, coverage, per_second
from ribray.report.comparison import ordered
from ribray.runs.metrics import SeedJudgement, SeedMetrics
from ribray.runs.records import Failure
from ribray.runs.stage_facts import Judged

NAME = "seed"
CURVE_FILE, STEPS_FILE = "curve.csv", "steps.csv"  # the second one of RIB; of other maps ``steps_NAME.csv``
CHUNK = 8  # images of one call: a map takes some five milliseconds, and an image has two, or one for every step


class SeedWorker:
    """Counts the pixels of an image for all its maps, and for every step where asked to.

    ``folders`` hold the map files of every method, by its name; of the first one the plain maps are judged, too.
    """

    def __init__(
        self, dataset: Dataset, folders: Mapping[str, Path], thresholds: Sequence[float], by_step: Sequence[str] = ()
    ):
        self._dataset, self._folders, self._by_step = dataset, folders, by_step
        self._curve = ThresholdCurve(len(dataset.classes) + 1, thresholds)

    def process(self, item: str) -> dict[str, Any]:
        """Return a sparse threshold curve per map and per step, how each refinement ended, and the truth's values.

        Steps are those that the image has; None where their maps were not kept.
        """
        truth = self._dataset.mask(item)
        if truth is None:
            raise ImageError(f"{item} has no mask, so its seed cannot be judged.")
        size = (truth.shape[0], truth.shape[1])
        curves: dict[str, dict[str, Any]] = {}
        steps: dict[str, list[dict[str, Any]] | None] = {}
        ended: dict[str, tuple[str, int]] = {}
        for method, folder in self._folders.items():
            record = read_map(map_path(folder, item), item, self._dataset, size)
            judged = {name: self._count(record, name, truth) for name in record.maps if name not in curves}
            for name in record.maps if method in self._by_step else ():
                if name != CAM:
                    steps[name] = self._steps(record, name, truth, judged)
            curves |= judged
            ended[method] = (record.stop_reason, record.steps)
        return {"curves": curves, "steps": steps, "ended": ended, "truth": compare(self._dataset, item, truth).record}

    def _steps(
        self, record: MapRecord, name: str, truth: np.ndarray, judged: Mapping[str, dict[str, Any]]
    ) -> list[dict[str, Any]] | None:
        if not len(record.classes):
            return [judged[name]]
        if name not in record.by_step:
            return None

        def count(step: int, sums: Maps) -> dict[str, Any]:
            """The first step's map may be the plain one, and the last one's is the method's: they are judged."""
            same = (each for each in judged if all(map(np.array_equal, sums, record.maps[each])))
            return judged[each] if (each := next(same, None)) is not None else self._count(record, (name, step), truth)

        return [count(step, sums) for step, sums in enumerate(record.by_step[name])]

    def _count(self, record: MapRecord, which: Which, truth: np.ndarray) -> dict[str, Any]:
        self._curve.clear()
        self._curve.add(*winner(localization_maps(record, which), record.classes), truth)
        return self._curve.to_sparse()


def merge_steps(curves: list[ThresholdCurve], records: Sequence[Mapping[str, Any]] | None) -> None:
    """Add an image's curve of each step; None, where its maps were not kept, leaves nothing to be told.

    An image that stopped early keeps its last map for all later steps.
    """
    if records is None:
        return curves.clear()
    for step, curve in enumerate(curves):
        curve.merge_sparse(records[min(step, len(records) - 1)])


def step_scores(curves: Iterable[ThresholdCurve]) -> list[dict[str, Any]]:
    """Return each step's best threshold and its mIoU in percent, from 1 (the plain map); none without foreground."""
    best = (curve.best() for curve in curves if curve.has_foreground)
    return [{"step": step, "miou": one.miou, "threshold": one.threshold} for step, one in enumerate(best, start=1)]


def _fingerprints(context: Context) -> dict[str, str]:
    return {"ids or labels of the evaluated split": judging.evaluated_split(context).fingerprint()}


def _ids(context: Context) -> list[str]:
    """The images that count: the wanted ones that have a map by every method."""
    return judging.judged(context, refined_ids(context, *_stages(context)))


def _stages(context: Context) -> list[str]:
    return [refine_stage(method) for method in context.experiment.methods]


def _covered(context: Context, ids: Iterable[str]) -> list[str]:
    """Return what numbers are about: images, and the maps of further methods, which the stage's key leaves out."""
    return [*ids, *(context.key(stage).digest for stage in _stages(context)[1:])]


def _work(context: Context) -> Work:
    if not judging.evaluated_split(context).has_masks:
        return Work(0, 0)
    if not (ids := _ids(context)):  # nothing is refined yet: as many as refinement will make
        return Work(len(judging.judged(context, wanted_ids(context))), 0)
    is_done = context.run.record(NAME).get("covers") == coverage(_covered(context, ids))
    return Work(len(ids), len(ids) if is_done else 0)


class _Counts:
    def __init__(self, context: Context, dataset: Dataset):
        config, classes = context.experiment, len(dataset.classes) + 1
        self.thresholds = config.seed_eval.thresholds
        self.curves = {name: Bootstrapped(ThresholdCurve(classes, self.thresholds)) for name in config.maps}
        self.steps = {
            name: [ThresholdCurve(classes, self.thresholds) for _ in range(method.steps)]
            for method in config.methods.values()
            for name in (method.maps if method.keep_steps else ())
        }
        self.ended = {name: StopTally(method) for name, method in config.methods.items()}
        self.truth, self._dataset = Tally(dataset), dataset

    def add(self, id: str, record: Mapping[str, Any]) -> None:
        for name, curve in self.curves.items():
            curve.merge(id, record["curves"][name])
        for name, steps in self.steps.items():
            merge_steps(steps, record["steps"][name])
        for method, ended in record["ended"].items():
            self.ended[method].add(*ended)
        self.truth.add(id, record["truth"], self._dataset.labels[self._dataset.index(id)])


def _execute(context: Context) -> None:
    experiment, dataset, stages = context.experiment, judging.evaluated_split(context), _stages(context)
    folders = {method: context.require(stage, NAME) for method, stage in zip(experiment.methods, stages, strict=True)}
    ids = _ids(context)
    context.begin(NAME)
    if not dataset.has_masks:
        context.say(f"{NAME}: {dataset.name} has no masks, so there is no mIoU to compute.")
        return
    counts, failures = _Counts(context, dataset), dict[str, Failure]()
    kept = [name for name, method in experiment.methods.items() if method.keep_steps]
    arguments = {"dataset": dataset, "folders": folders, "thresholds": counts.thresholds, "by_step": kept}
    pool = StagePool(context, NAME, failures, chunk_size=CHUNK, gpu=False)
    result = pool.run(SeedWorker, arguments, ids, counts.add, len(ids))
    if result.stopped:
        return
    context.replace_failures(NAME, failures)
    context.require_any_done(NAME, len(ids), counts.curves[CAM].images, failures)
    if not ids:
        raise StageError(f"No image of {dataset.name} has a map, so there is no seed to judge.")
    judging.tell_agreement(context, counts.truth)
    wanted = set(judging.judged(context, wanted_ids(context)))
    unrefined = {failure.id for failure in context.run.failures() if failure.stage in stages and failure.id in wanted}
    judged = _judge(context, counts, ["background", *dataset.classes], len(failures) + len(unrefined))
    timing = per_second(result.done, result.seconds, result.start_seconds)
    metrics = SeedMetrics.model_validate({**judged, "timing": timing})
    context.finish(NAME, metrics, _covered(context, (id for id in ids if id not in failures)))


def _judge(context: Context, counts: _Counts, names: Sequence[str], failed: int) -> dict[str, SeedJudgement]:
    """Return the numbers of each map, and write their curves."""
    folder, curves, rows = context.own_folder(NAME), counts.curves, []
    parts = {
        name: {**judging.summarise(context, NAME, curve, names), "failed": failed} for name, curve in curves.items()
    }
    for name, method in context.experiment.maps.items():
        if name != CAM:
            parts[name]["refinement_ended"] = counts.ended[method].counts
    means = {f"{name}_miou": curve.counts.miou().tolist() for name, curve in curves.items()}
    if curves[CAM].counts.has_foreground:
        points = zip(counts.thresholds, *means.values(), strict=True)
        rows = [(f"{threshold:g}", *(f"{value:.6f}" for value in values)) for threshold, *values in points]
    _write_csv(folder / CURVE_FILE, ("threshold", *means), rows)
    for name, steps in counts.steps.items():
        if by_step := step_scores(steps):
            parts[name]["by_step"] = by_step
            rows = [(str(one["step"]), f"{one['threshold']:g}", f"{one['miou']:.6f}") for one in by_step]
            file = STEPS_FILE if name == RIB else f"steps_{name}.csv"
            _write_csv(folder / file, ("step", "threshold", "miou"), rows)
    return {name: SeedJudgement(**part) for name, part in parts.items()}


def _write_csv(location: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    storage.write_text(location, text.getvalue())


def _headline(metrics: SeedMetrics) -> str | None:
    names = ordered(metrics.maps)
    return judging.mean_ious(*(metrics.maps[name] for name in names)) if len(names) > 1 else None


STAGE = Stage(
    name=NAME,
    upstream=(REFINE,),
    section="seed_eval",
    format=1,
    fingerprints=_fingerprints,
    work=_work,
    execute=_execute,
    writes=("cam.miou", "cam.threshold", "rib.miou", "rib.threshold"),
    check=judging.require_truth_of_wanted,
    headline=_headline,
    judged=lambda metrics: [Judged("seed, best threshold", part, source=name) for name, part in metrics.maps.items()],
)
