"""Stage ``evaluate``: the segmentation network's masks of held-out images, and their mIoU."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ribray.config import Experiment
from ribray.data.dataset import Dataset, shared_ids
from ribray.errors import UsageError
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.mask_counts import MaskCounts
from ribray.masks.crf import PREDICTION_CRF, crf_from_probabilities, require_crf
from ribray.networks.deeplab import Predictor
from ribray.pipeline import judging
from ribray.pipeline.artifacts import FIRST_WEIGHTS, trained_weights
from ribray.pipeline.masks import MASK, MasksResult, MaskWorker, NewMask, mask_work, require_any_mask, run_masks
from ribray.pipeline.stage import Context, Stage, per_second
from ribray.runs.metrics import EvaluateMetrics, MaskJudgement, Timing
from ribray.runs.stage_facts import Judged

NAME = "evaluate"
SEGMENTATION = "segmentation"  # the stage whose network predicts
BEFORE_FOLDER = "before_retraining"  # below the stage's folder: the first network's masks


class EvaluateWorker(MaskWorker):
    def __init__(self, dataset: Dataset, folder: Path, weights: Path, experiment: Experiment, labels: Dataset):
        super().__init__(dataset, folder, labels=labels)
        self._predict = Predictor(experiment.segmentation, len(dataset.classes), weights)
        self._uses_crf = experiment.evaluate.crf == "dense"

    def make(self, id: str) -> NewMask:
        image = self.dataset.image(id)
        probabilities = self._predict(image)
        if self._uses_crf:
            probabilities = crf_from_probabilities(image, probabilities, PREDICTION_CRF)
        return NewMask(probabilities.argmax(0).astype(np.uint8))


def splits(context: Context) -> dict[str, Dataset]:
    return {split: context.dataset(split, labelled=False) for split in context.experiment.predicted_splits}


def _labelled(context: Context) -> list[Dataset]:
    """Return the data that is predicted with its labels, as far as they are known."""
    return [judging.with_labels(context, dataset, split) for split, dataset in splits(context).items()]


def _ids(context: Context) -> list[str]:
    datasets = [context.dataset(split, labelled=False) for split in context.experiment.predicted_splits]
    ids = [id for dataset in datasets for id in dataset.ids]
    if twice := next((id for id, count in Counter(ids).items() if count > 1), None):
        what = f"'{twice}' is in more than one of {', '.join(dataset.name for dataset in datasets)}"
        raise UsageError(f"evaluate.splits: {what}; choose splits that share no image.")
    return ids


def _check(context: Context) -> None:
    for dataset in _labelled(context):
        judging.require_truth(context, dataset, dataset.ids)
    if context.experiment.evaluate.crf == "dense":
        require_crf()


def _execute(context: Context) -> None:
    trained = trained_weights(context, SEGMENTATION, NAME)
    retrain = context.experiment.segmentation.retrain
    first = trained_weights(context, SEGMENTATION, NAME, FIRST_WEIGHTS) if retrain else None
    context.begin(NAME)
    if (predicted := _predict(context, trained)) is None:
        return
    numbers, results = predicted
    ids = [id for result in results for id in result.ids]
    without = {id: failure for result in results for id, failure in result.without.items()}
    require_any_mask(context, NAME, len(ids), without)
    if first is not None:
        if (predicted := _predict(context, first, BEFORE_FOLDER, f"{NAME}, before re-training")) is None:
            return
        numbers["before_retraining"] = MaskJudgement(**predicted[0])
        results += predicted[1]
    failures = {id: failure for result in results for id, failure in result.failures.items()}
    context.replace_failures(NAME, failures)
    trained_on = sum(len(shared_ids(dataset, context.training_set)) for dataset in splits(context).values())
    if trained_on:
        context.say(f"  {trained_on:,} of these {len(ids):,} images were trained on, so they are not held out.")
    timing = _sum([result.timing for result in results])
    metrics = EvaluateMetrics(**numbers, crf=context.experiment.evaluate.crf, timing=timing)
    context.finish(NAME, metrics, [id for id in ids if id not in failures])


def _predict(
    context: Context, weights: Path, subfolder: str = "", title: str = NAME
) -> tuple[dict[str, Any], list[MasksResult]] | None:
    """Predict all images by one network; return its numbers, and what came of each split; None where it was stopped."""
    names = ["background", *context.training_set.classes]
    counts, results = Bootstrapped(MaskCounts(len(names))), list[MasksResult]()
    shared = {"folder": context.own_folder(NAME) / subfolder, "weights": weights, "experiment": context.experiment}
    for dataset, labels in zip(splits(context).values(), _labelled(context), strict=True):
        arguments, added = {"dataset": dataset, "labels": labels, **shared}, {MASK: counts}
        result = run_masks(context, NAME, EvaluateWorker, arguments, dataset.ids, added, gpu=True, title=title)
        if result.stopped:
            return None
        results.append(result)
    failed = sum(len(result.failures) for result in results)
    numbers: dict[str, Any] = {"images": sum(len(result.ids) for result in results) - failed, "failed": failed}
    if counts.images:
        numbers |= judging.summarise(context, NAME, counts, names)
    return numbers, results


def _sum(timings: Sequence[Timing]) -> Timing:
    names = ("images", "seconds", "start_seconds")
    return per_second(*(sum(getattr(timing, name) for timing in timings) for name in names))


def _judged(metrics: EvaluateMetrics) -> list[Judged]:
    first = metrics.before_retraining
    if first is None:
        judged = [Judged("segmentation", metrics, is_held_out=True)]
    else:
        before = Judged("segmentation", first, ", before re-training", is_held_out=True)
        judged = [before, Judged("re-trained", metrics, is_held_out=True)]
    return [part for part in judged if part.numbers.per_class]


STAGE = Stage(
    name=NAME,
    folder="predictions",
    upstream=(SEGMENTATION,),
    section="evaluate",
    leaves_out=("evaluate.splits",),
    format=2,
    work=lambda context: mask_work(context, NAME, _ids(context)),
    execute=_execute,
    writes=("miou", "before_retraining.miou"),
    check=_check,
    headline=lambda metrics: judging.mean_ious(*(part.numbers for part in _judged(metrics))),
    judged=_judged,
    serves_in_part=True,
)
