"""Stage ``irn``: class boundaries and displacements, learnt from the confident labels on Ray Train."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ribray.cluster.training import Total
from ribray.config import IrnConfig
from ribray.data.dataset import Dataset
from ribray.data.transforms import normalise
from ribray.errors import ImageError, UsageError
from ribray.irn.loss import irn_loss
from ribray.networks import build_classifier, normalisation_of
from ribray.networks.irnet import IRNet, build_irnet
from ribray.networks.weights import drawn_with, load_backbone_weights, load_classifier, load_network
from ribray.pipeline import training
from ribray.pipeline.artifacts import trained_weights
from ribray.pipeline.batches import Batch
from ribray.pipeline.maps import source_stage, wanted_ids
from ribray.pipeline.masks import masked_ids
from ribray.pipeline.stage import Context, Stage, Work
from ribray.pipeline.tasks import MaskTask
from ribray.runs.metrics import IrnMetrics

NAME = "irn"
CONFIDENT = "confident"  # the stage whose labels it learns from
STRIDE = 4  # pixels per cell of boundaries and displacements

# --- the training, without Ray -----------------------------------------------------------------------------------


class IrnTask(MaskTask):
    """docs/method.md, section 4. Validation is the mean displacement over the training images, at the end."""

    def __init__(
        self,
        config: IrnConfig,
        backbone: tuple[str, int],
        dataset: Dataset,
        labels: Path,
        ids: Sequence[str],
        *reading: Any,
    ):
        """``reading`` is what `training.reading` returns."""
        super().__init__(NAME, config, dataset, labels, ids, normalisation_of(backbone[0]), *reading)
        self.steps, self.period = _steps(config, ids), max(1, len(ids) // config.batch_size)
        self._config, self._backbone = config, backbone
        has_room = -(-config.crop_size // STRIDE) > 2 * (config.radius - 1)
        self._all_pairs = not has_room if config.all_pairs is None else config.all_pairs

    def model(self) -> IRNet:
        model = build_irnet(*self._backbone, self._config.displacement_width)
        load_network(model, self.start)
        return model

    def optimizer(self, model: IRNet) -> torch.optim.Optimizer:
        config = self._config
        groups = [
            {"params": model.boundary_parameters(), "lr": config.lr},
            {"params": model.displacement_parameters(), "lr": config.lr * config.displacement_lr_factor},
        ]
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.SGD
        return kind(groups, weight_decay=config.weight_decay)

    def loss(self, model: nn.Module, batch: Batch, device: torch.device, total: Total) -> Tensor:
        boundary, displacement = model(batch.images(device, self.normalisation))
        size = boundary.shape[2:]
        labels = functional.interpolate(batch.labels[:, None].to(device), size, mode="nearest-exact")[:, 0]
        return irn_loss(boundary, displacement, labels, self._config.radius, self._all_pairs, total).loss

    def wanted(self) -> int:
        """Return the number of all images: the mean displacement asks for every one."""
        return len(self.images.ids)

    def validate(self, model: IRNet, step: int, rank: int, world: int, device: torch.device) -> dict[str, Any]:
        """Return, at the end, the sum of this rank's images' mean displacements (2,), and how many images these are."""
        displacements, images = np.zeros(2), 0
        if step == self.steps:
            model.displacement_mean.zero_()
            for id in self.images.ids[rank::world]:
                try:
                    image = self.images.dataset.image(id)
                except ImageError as error:
                    self.unreadable.setdefault(id, str(error))
                    continue
                _, displacement = model(normalise(image, self.normalisation)[None].to(device))
                displacements += displacement[0].double().mean((1, 2)).cpu().numpy()
                images += 1
        return {"displacements": displacements, "images": images, "is_last": step == self.steps}

    def conclude(self, model: IRNet, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Give the network the mean displacement that evaluation takes off, and return it."""
        found = super().conclude(model, parts)
        if parts[0]["is_last"]:
            mean = sum(part["displacements"] for part in parts) / sum(part["images"] for part in parts)
            model.displacement_mean.copy_(torch.from_numpy(mean))
            found["displacement_mean"] = mean.tolist()
        return found


# --- in the driver -----------------------------------------------------------------------------------------------


def _weights_of(context: Context) -> tuple[str, str]:
    own = context.experiment.irn.weights
    return (own, "irn.weights") if own else (context.experiment.classifier.weights, "classifier.weights")


def _start(context: Context) -> IRNet:
    config, classifier = context.experiment.irn, context.experiment.classifier
    with drawn_with(config.seed):
        model = build_irnet(*context.experiment.irn_backbone, config.displacement_width)
    weights, key = _weights_of(context)
    if weights != "classifier":
        load_backbone_weights(model.backbone, weights, key)
        return model
    trained = build_classifier(classifier.backbone, len(context.training_set.classes), classifier.output_stride)
    load_classifier(trained, trained_weights(context, "classifier", NAME))
    model.backbone.load_state_dict(trained.backbone.state_dict())
    return model


def _check(context: Context) -> None:
    config, classifier = context.experiment.irn, context.experiment.classifier
    if _weights_of(context)[0] != "classifier":
        _start(context)
    elif context.experiment.irn_backbone[0] != classifier.backbone:
        raise UsageError(f"irn.weights=classifier needs irn.backbone={classifier.backbone}, not {config.backbone}.")
    elif context.imported(source_stage(context.experiment)) is not None and not context.has("classifier"):
        raise UsageError("irn.weights=classifier needs a classifier, and maps that were imported have none.")


def _fingerprints(context: Context) -> dict[str, str]:
    weights, key = _weights_of(context)
    if weights == "classifier":
        return {"classifier": context.key("classifier").digest}
    return training.weights_fingerprint(weights, key)


def _work(context: Context) -> Work:
    folder = context.artifact(NAME)
    steps = _steps(context.experiment.irn, training.known_ids(folder) or wanted_ids(context))
    return Work(steps, training.done(folder, steps), "steps")


def _steps(config: IrnConfig, ids: Sequence[str]) -> int:
    return max(1, config.epochs * len(ids) // config.batch_size)


def _execute(context: Context) -> None:
    labels, experiment = context.require(CONFIDENT, NAME), context.experiment
    ids = masked_ids(context, CONFIDENT)
    if not ids:
        raise UsageError(f"No image has confident labels in {labels}; there is nothing for stage '{NAME}' to learn.")
    ids = training.begin_on_masks(context, NAME, ids, _start)
    backbone, reading = experiment.irn_backbone, training.reading(context, NAME)
    task = IrnTask(experiment.irn, backbone, context.training_set, labels, ids, *reading)
    if (trained := training.train(context, task, NAME)) is None:
        return
    failures = training.report_unreadable(context, NAME, [trained])
    metrics = IrnMetrics(
        loss=trained.loss,
        displacement_mean=trained.validation["displacement_mean"],
        iterations=task.steps,
        precision=trained.precision,
        images=len(ids) - len(failures),
        failed=len(failures),
        timing=trained.timing(experiment.irn.batch_size),
    )
    context.run.write_metrics(NAME, metrics)
    context.console.print(f"  final loss {trained.loss:.4f}", highlight=False)


STAGE = Stage(
    name=NAME,
    section="irn",
    upstream=(CONFIDENT,),
    also_reads=("classifier.backbone", "classifier.output_stride", "classifier.weights"),
    format=1,
    fingerprints=_fingerprints,
    work=_work,
    execute=_execute,
    writes=("loss",),
    trainings=("",),
    headline=training.final_loss,
    check=_check,
    remark=lambda context: training.outgrown(context, NAME, masked_ids(context, CONFIDENT)),
)
