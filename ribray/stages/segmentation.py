"""Stage ``segmentation``: DeepLab-v2 learns from the pseudo masks on Ray Train, and again from filled ones."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ribray.cluster.training import Total
from ribray.config import SegmentationConfig
from ribray.data.dataset import IGNORE, Dataset
from ribray.data.mask_files import mask_path
from ribray.errors import UsageError
from ribray.networks import normalisation_of
from ribray.networks.deeplab import DeepLab, Predictor, build_deeplab, segmentation_loss
from ribray.networks.weights import drawn_with, load_backbone_weights, load_network
from ribray.pipeline import training
from ribray.pipeline.artifacts import FIRST_FOLDER, FIRST_WEIGHTS, read_own_mask
from ribray.pipeline.batches import Batch
from ribray.pipeline.masks import MasksResult, MaskWorker, NewMask, masked_ids, run_masks
from ribray.pipeline.stage import Context, Stage, Work
from ribray.pipeline.tasks import MaskTask, require_share
from ribray.pipeline.training import Trained
from ribray.runs.metrics import SegmentationMetrics
from ribray.runs.records import Failure

NAME = "segmentation"
PSEUDO = "pseudo"  # the stage whose masks it learns from
LEAST_PERIOD = 500  # steps between two looks at what could not be read, where an epoch is shorter
FILLED_FOLDER = "filled"  # with re-training: pseudo masks whose unknown pixels are filled

# --- the training, without Ray -----------------------------------------------------------------------------------


class SegmentationTask(MaskTask):
    """docs/method.md, section 5; held-out images are the next stage's."""

    def __init__(self, config: SegmentationConfig, dataset: Dataset, masks: Path, ids: Sequence[str], *reading: Any):
        """``reading`` is what `training.reading` returns."""
        super().__init__(NAME, config, dataset, masks, ids, normalisation_of(config.backbone), *reading)
        self.steps, self.period = config.iterations, max(LEAST_PERIOD, len(ids) // config.batch_size)
        self._config, self._classes = config, len(dataset.classes)

    def model(self) -> DeepLab:
        model = build_deeplab(self._config, self._classes)
        load_network(model, self.start)
        return model

    def optimizer(self, model: DeepLab) -> torch.optim.Optimizer:
        config = self._config
        groups = model.parameter_groups(config.lr, config.weight_decay, config.head_lr_factor)
        if config.optimizer == "adamw":
            return torch.optim.AdamW(groups)
        return torch.optim.SGD(groups, momentum=config.momentum)

    def loss(self, model: nn.Module, batch: Batch, device: torch.device, total: Total) -> Tensor:
        return segmentation_loss(model(batch.images(device, self.normalisation)), batch.labels.to(device), total)


# --- in a worker -------------------------------------------------------------------------------------------------


class FillWorker(MaskWorker):
    """Fills the unknown pixels of pseudo masks with a network's predictions."""

    def __init__(self, dataset: Dataset, folder: Path, masks: Path, weights: Path, config: SegmentationConfig):
        super().__init__(dataset, folder)
        self._masks, self._predict = masks, Predictor(config, len(dataset.classes), weights)

    def make(self, id: str) -> NewMask:
        image = self.dataset.image(id)
        mask = read_own_mask(mask_path(self._masks, id), id, self.dataset, (image.shape[0], image.shape[1]))
        unknown = mask == IGNORE
        if unknown.any():
            mask[unknown] = self._predict(image).argmax(0).astype(np.uint8)[unknown]
        return NewMask(mask)


# --- in the driver -----------------------------------------------------------------------------------------------


def weights_of(context: Context) -> tuple[str, str]:
    """Return what the backbone starts from, as configured or as the classifier's, and the key that says so."""
    config, classifier, key = context.experiment.segmentation, context.experiment.classifier, "segmentation.weights"
    if config.weights is not None:
        return config.weights, key
    if classifier.weights in ("imagenet", "none") or config.backbone == classifier.backbone:
        return classifier.weights, "classifier.weights"
    return "imagenet", key


def _start(context: Context) -> DeepLab:
    config = context.experiment.segmentation
    with drawn_with(config.seed):
        model = build_deeplab(config, len(context.training_set.classes))
    load_backbone_weights(model.backbone, *weights_of(context))
    return model


def _fingerprints(context: Context) -> dict[str, str]:
    weights, key = weights_of(context)
    return {"backbone's starting weights": weights} | training.weights_fingerprint(weights, key)


def _work(context: Context) -> Work:
    config, folder = context.experiment.segmentation, context.artifact(NAME)
    folders = [folder / FIRST_FOLDER, folder] if config.retrain else [folder]
    return Work(
        config.iterations * len(folders), sum(training.done(each, config.iterations) for each in folders), "steps"
    )


def _execute(context: Context) -> None:
    masks = context.require(PSEUDO, NAME)
    ids = masked_ids(context, PSEUDO)
    if not ids:
        raise UsageError(f"There is no pseudo mask in {masks}; there is nothing for stage '{NAME}' to learn.")
    ids = training.begin_on_masks(context, NAME, ids, _start)
    before, lost, title = list[Trained](), dict[str, Failure](), NAME
    if context.experiment.segmentation.retrain:
        first = _learn(context, masks, ids, f"{NAME}, first network", FIRST_FOLDER)
        if first is None or (filled := _fill(context, masks, ids)).stopped:
            return
        before, lost = [first], filled.without
        context.replace_failures(NAME, lost)
        missing = {id: failure.error for id, failure in lost.items()}
        require_share(NAME, len(ids), missing, context.experiment.data.least_readable)
        ids = [id for id in ids if id not in missing]
        masks, title = context.own_folder(NAME) / FILLED_FOLDER, f"{NAME}, re-training"
    if (last := _learn(context, masks, ids, title)) is not None:
        _write_metrics(context, [*before, last], ids, lost)


def _learn(context: Context, masks: Path, ids: Sequence[str], title: str, subfolder: str = "") -> Trained | None:
    config, dataset, reading = context.experiment.segmentation, context.training_set, training.reading(context, NAME)
    return training.train(context, SegmentationTask(config, dataset, masks, ids, *reading), title, subfolder)


def _fill(context: Context, masks: Path, ids: Sequence[str]) -> MasksResult:
    folder, config = context.own_folder(NAME), context.experiment.segmentation
    files = {"folder": folder / FILLED_FOLDER, "masks": masks, "weights": folder / FIRST_WEIGHTS}
    arguments = {"dataset": context.training_set, "config": config, **files}
    return run_masks(context, NAME, FillWorker, arguments, ids, {}, gpu=True, title=f"{NAME}, filling")


def _write_metrics(
    context: Context, trainings: Sequence[Trained], ids: Sequence[str], lost: dict[str, Failure]
) -> None:
    """Write the numbers of one training, or of two; ``ids`` of the last, ``lost`` before it."""
    config, dataset, last = context.experiment.segmentation, context.training_set, trainings[-1]
    failures = training.report_unreadable(context, NAME, trainings, lost)
    sums = {name: sum(getattr(each, name) for each in trainings) for name in ("seconds", "start_seconds", "steps")}
    first: dict[str, Any] = {"first_loss": trainings[0].loss} if config.retrain else {}
    metrics = SegmentationMetrics(
        **first,
        loss=last.loss,
        iterations=config.iterations,
        precision=last.precision,
        retrain=config.retrain,
        images=len(ids) - len(failures.keys() - lost.keys()),
        failed=len(failures),
        classes=list(dataset.classes),
        colours=[f"#{colour.tobytes().hex()}" for colour in dataset.palette[: len(dataset.classes) + 1]],
        timing=dataclasses.replace(last, **sums).timing(config.batch_size),
    )
    context.run.write_metrics(NAME, metrics)
    context.console.print(f"  final loss {last.loss:.4f}", highlight=False)


STAGE = Stage(
    name=NAME,
    section="segmentation",
    upstream=(PSEUDO,),
    format=1,
    fingerprints=_fingerprints,
    work=_work,
    execute=_execute,
    writes=("loss", "first_loss"),
    trainings=(FIRST_FOLDER, ""),
    headline=training.final_loss,
    check=_start,
    remark=lambda context: training.outgrown(context, NAME, masked_ids(context, PSEUDO)),
)
