"""Stage ``seed``: the mIoU of the initial seed at every threshold, for plain CAM and for RIB, in one pass."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ribray import storage
from ribray.data.dataset import Dataset
from ribray.data.truth import Tally, compare
from ribray.errors import ImageError, StageError
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import winner
from ribray.methods.maps import MapRecord, Which, localization_maps
from ribray.methods.stop_reasons import StopTally
from ribray.pipeline import judging
from ribray.pipeline.artifacts import read_map
from ribray.pipeline.judging import mean_ious
from ribray.pipeline.maps import REFINE, map_path, refined_ids, wanted_ids
from ribray.pipeline.per_image import StagePool
from ribray.pipeline.stage import Context, Stage, Work, coverage, per_second
from ribray.runs.metrics import SeedJudgement, SeedMetrics
from ribray.runs.records import Failure
from ribray.runs.stage_facts import Judged

NAME = "seed"
CURVE_FILE, STEPS_FILE = "curve.csv", "steps.csv"
CHUNK = 8
"""Images of one call: a map takes some five milliseconds, and an image has two, or one for every step."""

METHODS: dict[str, Which] = {"cam": "cam", "rib": "rib"}
"""What is compared, and which maps of a map file it is made of."""


class SeedWorker:
    """Counts the pixels of an image for both methods, and for every step where asked to."""

    def __init__(self, dataset: Dataset, folder: Path, thresholds: Sequence[float], by_step: bool = False):
        self._dataset, self._folder, self._by_step = dataset, folder, by_step
        self._curve = ThresholdCurve(len(dataset.classes) + 1, thresholds)

    def process(self, item: str) -> dict[str, Any]:
        """Return one sparse threshold curve per method and per step, how the refinement ended, and the truth's values.

        Steps are those that the image has; None where their maps were not asked for or not kept.
        """
        truth = self._dataset.mask(item)
        if truth is None:
            raise ImageError(f"{item} has no mask, so its seed cannot be judged.")
        size = (truth.shape[0], truth.shape[1])
        record = read_map(map_path(self._folder, item), item, self._dataset, size)
        curves = {method: self._count(record, which, truth) for method, which in METHODS.items()}
        steps = None
        kept = len(record.by_step.get("rib", ()))
        if self._by_step and (kept or not len(record.classes)):
            # The first step's map is the plain one and the last step's the refined one.
            between = [self._count(record, ("rib", step), truth) for step in range(1, kept - 1)]
            steps = [curves["cam"], *between, curves["rib"]][: max(kept, 1)]
        return {
            "curves": curves,
            "steps": steps,
            "stop_reason": record.stop_reason,
            "refined": record.steps,
            "truth": compare(self._dataset, item, truth).record,
        }

    def _count(self, record: MapRecord, which: Which, truth: np.ndarray) -> dict[str, Any]:
        self._curve.clear()
        self._curve.add(*winner(localization_maps(record, which), record.classes), truth)
        return self._curve.to_sparse()


class StepCurves:
    """The mIoU of the map after every step; an image that stopped early keeps its last map for all later ones."""

    def __init__(self, curves: Iterable[ThresholdCurve]):
        """Start with the empty curves of step 1, 2, …; without any where steps are not asked for."""
        self._curves = list(curves)

    def merge(self, records: Sequence[Mapping[str, Any]] | None) -> None:
        """Add an image's curve of each step; None, where its maps were not kept, leaves nothing to be told."""
        if records is None:
            self._curves = []
            return
        for step, curve in enumerate(self._curves):
            curve.merge_sparse(records[min(step, len(records) - 1)])

    def summary(self) -> list[dict[str, Any]]:
        """Return each step's number from 1 (the plain map), its best threshold, and the mIoU there in percent.

        Nothing where the truth has no foreground.
        """
        best = (curve.best() for curve in self._curves if curve.has_foreground)
        return [{"step": step, "miou": one.miou, "threshold": one.threshold} for step, one in enumerate(best, start=1)]


def _ids(context: Context) -> list[str]:
    """The images that count: as for the masks, the wanted ones that have a map."""
    return judging.judged(context, refined_ids(context))


def _work(context: Context) -> Work:
    ids = _ids(context)
    if not ids:  # nothing is refined yet: as many as refinement will make
        return Work(len(judging.judged(context, wanted_ids(context))), 0)
    record = context.run.record(STAGE.folder)
    return Work(len(ids), len(ids) if record.get("covers") == coverage(ids) else 0)


class _Counts:
    """Adds up what workers have counted."""

    def __init__(self, context: Context, dataset: Dataset):
        config, classes = context.experiment, len(dataset.classes) + 1
        self.thresholds = config.seed_eval.thresholds
        self.curves = {method: Bootstrapped(ThresholdCurve(classes, self.thresholds)) for method in METHODS}
        steps = config.refine.iterations if config.refine.keep_steps else 0
        self.steps = StepCurves(ThresholdCurve(classes, self.thresholds) for _ in range(steps))
        self.ended = StopTally(config.refine)
        self.truth = Tally(dataset)
        self._dataset = dataset

    def add(self, id: str, record: Mapping[str, Any]) -> None:
        for method, curve in self.curves.items():
            curve.merge(id, record["curves"][method])
        self.steps.merge(record["steps"])
        self.truth.add(id, record["truth"], self._dataset.labels[self._dataset.index(id)])
        self.ended.add(record["stop_reason"], record["refined"])


def _execute(context: Context) -> None:
    experiment, dataset = context.experiment, judging.evaluated_split(context)
    folder, ids = context.require(REFINE, NAME), _ids(context)
    context.begin(NAME)
    if not dataset.has_masks:
        context.say(f"{NAME}: {dataset.name} has no masks, so there is no mIoU to compute.")
        return
    counts, failures = _Counts(context, dataset), dict[str, Failure]()
    kept, thresholds = experiment.refine.keep_steps, counts.thresholds
    arguments = {"dataset": dataset, "folder": folder, "thresholds": thresholds, "by_step": kept}
    pool = StagePool(context, NAME, failures, chunk_size=CHUNK, gpu=False)
    result = pool.run(SeedWorker, arguments, ids, counts.add, len(ids))
    if result.stopped:
        return
    context.replace_failures(NAME, failures)
    context.require_any_done(NAME, len(ids), counts.curves["cam"].images, failures)
    if not ids:
        raise StageError(f"No image of {dataset.name} has a map, so there is no seed to judge.")
    judging.tell_agreement(context, counts.truth)
    wanted = set(judging.judged(context, wanted_ids(context)))
    unrefined = sum(failure.stage == REFINE and failure.id in wanted for failure in context.run.failures())
    judged = _judge(context, counts, ["background", *dataset.classes], len(failures) + unrefined)
    timing = per_second(result.done, result.seconds, result.start_seconds)
    context.finish(
        NAME, SeedMetrics.model_validate({**judged, "timing": timing}), [id for id in ids if id not in failures]
    )


def _judge(context: Context, counts: _Counts, names: Sequence[str], failed: int) -> dict[str, SeedJudgement]:
    """Return the numbers of each method, and write their curves."""
    folder, curves, rows = context.own_folder(NAME), counts.curves, []
    parts = {
        method: {**judging.summarise(context, NAME, curve, names), "failed": failed} for method, curve in curves.items()
    }
    parts["rib"]["refinement_ended"] = counts.ended.counts
    means = {f"{method}_miou": curve.counts.miou().tolist() for method, curve in curves.items()}
    if curves["cam"].counts.has_foreground:
        points = zip(counts.thresholds, *means.values(), strict=True)
        rows = [(f"{threshold:g}", *(f"{value:.6f}" for value in values)) for threshold, *values in points]
    _write_csv(folder / CURVE_FILE, ("threshold", *means), rows)
    if by_step := counts.steps.summary():
        parts["rib"]["by_step"] = by_step
        rows = [(str(one["step"]), f"{one['threshold']:g}", f"{one['miou']:.6f}") for one in by_step]
        _write_csv(folder / STEPS_FILE, ("step", "threshold", "miou"), rows)
    return {method: SeedJudgement(**part) for method, part in parts.items()}


def _write_csv(location: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    storage.write_text(location, text.getvalue())


STAGE = Stage(
    name=NAME,
    upstream=(REFINE,),
    section="seed_eval",
    format=1,
    fingerprints=lambda context: {
        "ids or labels of the evaluated split": judging.evaluated_split(context).fingerprint()
    },
    work=_work,
    execute=_execute,
    writes=("cam.miou", "cam.threshold", "rib.miou", "rib.threshold"),
    check=judging.require_truth_of_wanted,
    headline=lambda metrics: mean_ious(*metrics.maps.values()) if len(metrics.maps) > 1 else None,
    judged=lambda metrics: [
        Judged("seed, best threshold", part, source=method) for method, part in metrics.maps.items()
    ],
)
