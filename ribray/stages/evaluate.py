"""Stage ``evaluate``: the segmentation network's masks of held-out images, and their mIoU."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ribray.config import Experiment
from ribray.data.dataset import Dataset
from ribray.errors import UsageError
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.mask_counts import MaskCounts
from ribray.masks.crf import PREDICTION_CRF, crf_from_probabilities, require_crf
from ribray.networks.deeplab import Predictor
from ribray.pipeline import judging
from ribray.pipeline.artifacts import FIRST_WEIGHTS, trained_weights
from ribray.pipeline.judging import mean_ious
from ribray.pipeline.masks import MASK, MaskWorker, NewMask, mask_work, require_any_mask, run_masks, write_covers
from ribray.pipeline.stage import Context, Stage, Work, per_second
from ribray.runs.metrics import EvaluateMetrics, MaskJudgement
from ribray.runs.records import Failure
from ribray.runs.stage_facts import Judged

NAME = "evaluate"
FOLDER = "predictions"
FORMAT = 2
SEGMENTATION = "segmentation"
"""The stage whose network predicts."""
BEFORE_FOLDER = "before_retraining"
"""Below the stage's folder: the first network's masks."""


class EvaluateWorker(MaskWorker):
    """Predicts an image."""

    def __init__(self, dataset: Dataset, folder: Path, weights: Path, experiment: Experiment, labels: Dataset):
        super().__init__(dataset, folder, labels=labels)
        self._predict = Predictor(experiment.segmentation, len(dataset.classes), weights)
        self._uses_crf = experiment.evaluate.crf == "dense"

    def make(self, id: str) -> NewMask:
        """Return the mask of the most probable classes."""
        image = self.dataset.image(id)
        probabilities = self._predict(image)
        if self._uses_crf:
            probabilities = crf_from_probabilities(image, probabilities, PREDICTION_CRF)
        return NewMask(probabilities.argmax(0).astype(np.uint8))


def splits(context: Context) -> list[Dataset]:
    """Return the data that is predicted."""
    return [context.images(split) for split in _names(context)]


def _names(context: Context) -> tuple[str, ...]:
    return context.experiment.evaluate.splits or (context.experiment.data.eval_split,)


def _labelled(context: Context) -> list[Dataset]:
    """Return the data that is predicted with its labels, as far as they are known."""
    return [
        judging.with_labels(context, dataset, name)
        for dataset, name in zip(splits(context), _names(context), strict=True)
    ]


def _ids(context: Context) -> list[str]:
    """Return the images to predict.

    Raises:
        UsageError: an id occurs twice, so that masks would overwrite each other.
    """
    ids = [id for dataset in splits(context) for id in dataset.ids]
    if len(set(ids)) < len(ids):
        twice = next(id for id, count in Counter(ids).items() if count > 1)
        names = ", ".join(dataset.name for dataset in splits(context))
        raise UsageError(
            f"evaluate.splits: '{twice}' is in more than one of {names}; choose splits that share no image."
        )
    return ids


def _check(context: Context) -> None:
    for dataset in _labelled(context):
        judging.require_truth(context, dataset, dataset.ids)
    if context.experiment.evaluate.crf == "dense":
        require_crf()


def _execute(context: Context) -> None:
    run, experiment, datasets = context.run, context.experiment, splits(context)
    trained = trained_weights(context, SEGMENTATION, NAME)
    run.begin(FOLDER, context.key(NAME))
    folder = context.own_folder(NAME)
    networks = {MASK: (folder, trained, NAME)}
    if experiment.segmentation.retrain:
        first = trained_weights(context, SEGMENTATION, NAME, FIRST_WEIGHTS)
        networks[BEFORE_FOLDER] = (folder / BEFORE_FOLDER, first, f"{NAME}, before re-training")
    names = ["background", *context.training_set.classes]
    failures: dict[str, Failure] = {}
    metrics: dict[str, Any] = {}
    made, seconds, start_seconds = 0, 0.0, 0.0
    for network, (where, weights, title) in networks.items():
        counts = Bootstrapped(MaskCounts(len(names)))
        failed: dict[str, Failure] = {}
        without: dict[str, Failure] = {}
        for dataset, labels in zip(datasets, _labelled(context), strict=True):
            arguments = {
                "dataset": dataset,
                "folder": where,
                "weights": weights,
                "experiment": experiment,
                "labels": labels,
            }
            result = run_masks(
                context, NAME, EvaluateWorker, arguments, dataset.ids, {MASK: counts}, gpu=True, title=title
            )
            if result.stopped:
                return
            failed |= result.failures
            without |= result.without
            made += result.timing.images or 0
            seconds += result.timing.seconds or 0.0
            start_seconds += result.timing.start_seconds or 0.0
        summary: dict[str, Any] = {"images": sum(map(len, datasets)) - len(failed), "failed": len(failed)}
        if counts.images:
            summary |= judging.summarise(context, NAME, counts, names)
        failures |= failed
        if network == MASK:
            require_any_mask(context, NAME, sum(map(len, datasets)), without)
            metrics |= summary
        else:
            metrics["before_retraining"] = MaskJudgement(**summary)
    context.replace_failures(NAME, failures)
    timing = per_second(made, seconds, start_seconds)
    run.write_metrics(NAME, EvaluateMetrics(**metrics, crf=experiment.evaluate.crf, timing=timing))
    write_covers(context, NAME, [id for id in _ids(context) if id not in failures])


def _work(context: Context) -> Work:
    return mask_work(context, NAME, _ids(context))


def _judged(metrics: EvaluateMetrics) -> list[Judged]:
    first, parts = metrics.before_retraining, [metrics] if metrics.per_class else []
    if first is None:
        return [Judged("segmentation", part, is_held_out=True) for part in parts]
    before = [Judged("segmentation", first, ", before re-training", is_held_out=True)] if first.per_class else []
    return before + [Judged("re-trained", part, is_held_out=True) for part in parts]


STAGE = Stage(
    name=NAME,
    folder=FOLDER,
    upstream=(SEGMENTATION,),
    section="evaluate",
    leaves_out=("evaluate.splits",),
    format=FORMAT,
    work=_work,
    execute=_execute,
    writes=("miou", "before_retraining.miou"),
    check=_check,
    headline=lambda metrics: mean_ious(*(part.numbers for part in _judged(metrics))),
    judged=_judged,
    serves_in_part=True,
)
