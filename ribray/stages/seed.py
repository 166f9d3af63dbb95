"""Stage ``seed``: the mIoU of the initial seed at every threshold, for plain CAM and for RIB, in one pass."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ribray import storage
from ribray.cluster.pool import Pool, PoolPlan
from ribray.data.dataset import Dataset
from ribray.errors import ImageError, RibrayError
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import winner
from ribray.progress import show_progress
from ribray.rib.maps import MapRecord, Which, localization_maps
from ribray.run import Failure
from ribray.stages import refine
from ribray.stages.stage import Context, Stage, Work, per_second

NAME = "seed"
FOLDER = "seed"
FORMAT = 1
CURVE_FILE = "curve.csv"
CHUNK = 8
"""Images of one call: an image takes some ten milliseconds."""

METHODS: dict[str, Which] = {"cam": "initial", "rib": "refined"}
"""What is compared, and which maps of a map file it is made of."""


class SeedWorker:
    """Counts the pixels of an image for both methods."""

    def __init__(self, dataset: Dataset, folder: Path, thresholds: Sequence[float]):
        self._dataset, self._folder, self._thresholds = dataset, folder, thresholds

    def process(self, item: str) -> dict[str, Any]:
        """Return one sparse threshold curve per method, and how the refinement ended.

        Raises:
            ImageError: no truth, a truth of another size, or a damaged map file.
        """
        truth = self._dataset.mask(item)
        if truth is None:
            raise ImageError(f"{item} has no mask, so its seed cannot be judged.")
        try:
            record = MapRecord.read(refine.map_path(self._folder, item))
        except RibrayError as error:
            raise ImageError(str(error)) from None
        curves: dict[str, Any] = {}
        for method, which in METHODS.items():
            curve = ThresholdCurve(len(self._dataset.classes) + 1, self._thresholds)
            curve.add(*winner(localization_maps(record, which), record.classes), truth)
            curves[method] = curve.to_sparse()
        return {"curves": curves, "stop_reason": record.stop_reason, "classes": len(record.classes)}


def evaluated_split(context: Context) -> Dataset:
    """Return the data whose truth maps and masks of training images are judged by."""
    config = context.experiment
    return context.dataset(config.seed_eval.split or config.data.train_split)


def _ids(context: Context) -> list[str]:
    """The images that count: those of the evaluated split that have a map."""
    finished = refine.finished_ids(context.artifact(refine.NAME))
    return [id for id in evaluated_split(context).ids if id in finished]


def _coverage(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def _work(context: Context) -> Work:
    ids = _ids(context)
    if not ids:  # nothing is refined yet: as many as refinement will make
        return Work(len(set(refine.wanted_ids(context)).intersection(evaluated_split(context).ids)), 0)
    record = context.run.record(FOLDER) or {}
    return Work(len(ids), len(ids) if record.get("covers") == _coverage(ids) else 0)


def _execute(context: Context) -> None:
    experiment, run, dataset = context.experiment, context.run, evaluated_split(context)
    context.require(refine.NAME, NAME)
    ids = _ids(context)
    run.begin(FOLDER, context.key(NAME))
    if not dataset.has_masks:
        context.console.print(
            f"{NAME}: {dataset.name} has no masks, so there is no mIoU to compute.", highlight=False, markup=False
        )
        return
    curves = {method: ThresholdCurve(len(dataset.classes) + 1, experiment.seed_eval.thresholds) for method in METHODS}
    ended: Counter[str] = Counter()
    failures: dict[str, Failure] = {}
    plan = PoolPlan.of(NAME, experiment.cluster, context.session, chunk_size=CHUNK, gpu=False)
    arguments = {
        "dataset": dataset,
        "folder": context.artifact(refine.NAME),
        "thresholds": experiment.seed_eval.thresholds,
    }

    def on_done(id: str, record: Mapping[str, Any]) -> None:
        for method, curve in curves.items():
            curve.merge_sparse(record["curves"][method])
        if record["classes"]:
            ended[record["stop_reason"]] += 1

    def on_failed(id: str, error: str, tries: int) -> None:
        failures[id] = Failure(id, NAME, error, tries)
        run.event(NAME, "failed", id=id, error=error)

    with show_progress(context.console, NAME, len(ids)) as bar:
        result = Pool(plan, SeedWorker, arguments).run(ids, on_done, on_failed, bar, context.stop.is_set)
    if result.stopped:
        return
    context.replace_failures(NAME, failures)
    if not curves["cam"].images:
        raise RibrayError("No image could be evaluated: none of them has both a map and a readable mask.")
    unrefined = sum(failure.stage == refine.NAME and failure.id in dataset for failure in run.failures())
    failed = len(failures) + unrefined
    names = ["background", *dataset.classes]
    metrics = {method: {**curve.summary(names), "failed": failed} for method, curve in curves.items()}
    metrics["rib"]["refinement_ended"] = {reason: ended[reason] for reason in sorted(ended)}
    _write_curve(run.directory / FOLDER / CURVE_FILE, curves)
    run.write_metrics(NAME, {**metrics, "timing": per_second(result.done, result.seconds)})
    run.update_record(FOLDER, covers=_coverage([id for id in ids if id not in failures]))
    for index, threshold in enumerate(experiment.seed_eval.thresholds):
        values = {f"{method}_miou": float(curve.miou()[index]) for method, curve in curves.items()}
        context.tracker.log_step(NAME, index, {"threshold": threshold, **values})


def _write_curve(location: Path, curves: Mapping[str, ThresholdCurve]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["threshold", *(f"{method}_miou" for method in curves)])
    columns = [curve.miou() for curve in curves.values()]
    thresholds = next(iter(curves.values())).thresholds
    for threshold, *values in zip(thresholds, *columns, strict=True):
        writer.writerow([f"{threshold:g}", *(f"{value:.6f}" for value in values)])
    storage.write_text(location, text.getvalue())


STAGE = Stage(
    name=NAME,
    folder=FOLDER,
    upstream=(refine.NAME,),
    reads=("seed_eval",),
    leaves_out=(),
    format=FORMAT,
    fingerprints=lambda context: {"ids or labels of the evaluated split": evaluated_split(context).fingerprint()},
    work=_work,
    execute=_execute,
)
