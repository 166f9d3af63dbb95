"""Stage ``classifier``: a multi-label classifier, trained by Ray Train or taken from a checkpoint."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ribray import storage
from ribray.cluster.training import Total
from ribray.config import ClassifierConfig
from ribray.data.dataset import Dataset
from ribray.data.transforms import augment, keyed_rng, shuffled
from ribray.errors import UsageError
from ribray.networks import Classifier, build_classifier, normalisation_of
from ribray.networks.weights import drawn_with, load_backbone_weights, load_classifier, reorder_head, save_network
from ribray.pipeline import training
from ribray.pipeline.artifacts import WEIGHTS_FILE, record_weights
from ribray.pipeline.batches import Batch, Place, Sample, Samples
from ribray.pipeline.judging import number
from ribray.pipeline.stage import Context, Stage, Work
from ribray.pipeline.tasks import ReadingTask
from ribray.pipeline.training import Trained
from ribray.runs.metrics import ClassifierMetrics

NAME = "classifier"
HELD_OUT = -1  # in place of an epoch: an image is not resized at random

# --- the training, without Ray -----------------------------------------------------------------------------------


def start_network(config: ClassifierConfig, classes: int) -> tuple[Classifier, str | None]:
    """Return the network before training: the configured weights below a head of random ones, drawn with the seed.

    With it comes a phrase that says where the weights are from, where the configuration does not say it all.
    """
    own = keyed_rng("classifier", "backbone", config.seed)  # other numbers than the head's
    with drawn_with(int(own.integers(2**63))):
        model = build_classifier(config.backbone, classes, config.output_stride)
    with drawn_with(config.seed):
        nn.init.kaiming_uniform_(model.head.weight, a=5**0.5)
    return model, load_backbone_weights(model.backbone, config.weights)


class LabelledImages(Samples):
    """Images and their labels (C,) bool."""

    def __init__(self, dataset: Dataset, config: ClassifierConfig):
        super().__init__(dataset, dataset.ids, config.crop_size)
        self._seed, self._resize_long = config.seed, config.resize_long

    def cut(self, id: str, epoch: int) -> Sample:
        image = self.dataset.image(id)
        whole = min(max(image.shape[:2]), self.size)  # held-out images: only what would not fit is made smaller
        resize = (whole, whole) if epoch == HELD_OUT else self._resize_long
        cut = augment(image, keyed_rng("classifier", self._seed, epoch, id), resize, self.size)
        return Sample(*cut, self.labels_of_unreadable(id))

    def labels_of_unreadable(self, id: str) -> np.ndarray:
        return self.dataset.labels[self.dataset.index(id)]


class ClassifierTask(ReadingTask):
    """docs/method.md, section 1: SGD with polynomial decay on randomly resized, flipped and cropped images.

    The order of images is a permutation keyed by (seed, epoch); each rank takes every ``world``-th image of a batch.
    An epoch has whole batches only; the images left over sit it out.
    """

    def __init__(self, config: ClassifierConfig, train: Dataset, held_out: Dataset, *reading: Any):
        """``reading`` is what `training.reading` returns."""
        require_enough(train, config)
        super().__init__(NAME, config, normalisation_of(config.backbone), *reading)
        self.period = len(train) // config.batch_size
        self.steps, self.divergence_bound = self.period * config.epochs, config.divergence_bound
        self._config, self._classes = config, len(train.classes)
        self._train, self._held_out = LabelledImages(train, config), LabelledImages(held_out, config)
        self._held_out_errors: dict[str, str] = {}

    def model(self) -> Classifier:
        model = build_classifier(self._config.backbone, self._classes, self._config.output_stride)
        load_classifier(model, self.start)
        return model

    def optimizer(self, model: Classifier) -> torch.optim.Optimizer:
        config = self._config
        backbone, head = model.learnable_groups()
        groups = [{"params": backbone, "lr": config.lr}, {"params": head, "lr": config.lr * config.head_lr_factor}]
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[Batch]:
        size = self._config.batch_size

        def share(step: int) -> list[Place]:
            epoch, place = divmod(step, self.period)
            return [(epoch, int(index)) for index in self._order(epoch)[place * size : (place + 1) * size][rank::world]]

        return self.load(self._train, map(share, range(first_step, self.steps)), self.unreadable)

    def wanted(self) -> int:
        """Return the number of different images in all epochs' whole batches."""
        whole = self.period * self._config.batch_size
        return len(np.unique([self._order(epoch)[:whole] for epoch in range(self._config.epochs)]))

    def _order(self, epoch: int) -> np.ndarray:
        return shuffled("order", self._config.seed, epoch, len(self._train.ids))

    def loss(self, model: nn.Module, batch: Batch, device: torch.device, total: Total) -> Tensor:
        """Return the share's part of the mean loss over the batch; an unreadable image adds nothing."""
        logits = model(batch.images(device, self.normalisation)).float()
        labels, readable = batch.labels.to(device).float(), batch.readable.to(device)
        if self._config.loss == "rib":
            per_image = -(logits * labels).sum(1)
        else:
            per_image = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        return (per_image * readable).sum() / self._config.batch_size

    def validate(self, model: Classifier, step: int, rank: int, world: int, device: torch.device) -> dict[str, Any]:
        """Return logits (n, C) and labels (n, C) of this rank's share of the held-out images, and unreadable images."""
        size = max(1, self._config.batch_size // world)
        places = [(HELD_OUT, place) for place in range(rank, len(self._held_out.ids), world)]
        shares = [places[start : start + size] for start in range(0, len(places), size)]
        logits, labels = [np.empty((0, self._classes), np.float32)], [np.empty((0, self._classes), bool)]
        for batch in self.load(self._held_out, shares, self._held_out_errors):
            found = model(batch.images(device, self.normalisation)).float().cpu()
            logits.append(found[batch.readable].numpy())
            labels.append(batch.labels[batch.readable].numpy())
        errors = dict(self._held_out_errors)
        return {"logits": np.concatenate(logits), "labels": np.concatenate(labels), "errors": errors}

    def conclude(self, model: Classifier, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Return loss and mAP (percent; over classes that occur) of the held-out images.

        There is no mAP where every image shows every class: nothing could be ranked wrongly.
        """
        from sklearn.metrics import average_precision_score  # a second that refinement's workers need not spend

        logits, labels = (np.concatenate([part[name] for part in parts]) for name in ("logits", "labels"))
        errors = {id: error for part in parts for id, error in part["errors"].items()} | self.unreadable
        told = {"images": len(labels), "unreadable": errors}
        occurring = labels.any(0)
        if not occurring.any():
            return {"loss": None, "map": None, **told}
        exact = torch.from_numpy(logits).double(), torch.from_numpy(labels).double()
        loss = functional.binary_cross_entropy_with_logits(*exact)
        precision = average_precision_score(labels[:, occurring], logits[:, occurring], average="macro")
        return {"loss": float(loss), "map": None if labels.all() else 100 * float(precision), **told}


def require_enough(train: Dataset, config: ClassifierConfig) -> None:
    if len(train) < config.batch_size:
        raise UsageError(
            f"classifier.batch_size={config.batch_size} is more than the {len(train)} images of {train.name}; "
            "make it smaller."
        )
    if not train.labels.any():
        raise UsageError(f"No image of {train.name} has a label, so there is nothing to learn.")


# --- in the driver -----------------------------------------------------------------------------------------------


def _fingerprints(context: Context) -> dict[str, str]:
    config = context.experiment.classifier
    prints = {"ids or labels of data.train_split": context.training_set.fingerprint()}
    if config.checkpoint is not None:
        return prints | training.weights_fingerprint(config.checkpoint, "classifier.checkpoint")
    prints["ids or labels of data.eval_split"] = context.held_out.fingerprint()
    return prints | training.weights_fingerprint(config.weights, "classifier.weights")


def _work(context: Context) -> Work:
    finished = context.has(NAME) and (context.artifact(NAME) / WEIGHTS_FILE).exists()
    if context.experiment.classifier.checkpoint is not None:
        return Work(1, int(finished), "checkpoint")
    epochs = context.experiment.classifier.epochs
    logged = training.logged(context.artifact(NAME), "validation")
    return Work(epochs, epochs if finished else min(len(logged), epochs - 1), "epochs")


def _execute(context: Context) -> None:
    config, training_set = context.experiment.classifier, context.training_set
    if config.checkpoint is not None:
        return _take_checkpoint(context, config.checkpoint)
    require_enough(training_set, config)  # said before a cluster starts
    model, source = start_network(config, len(training_set.classes))
    if source is not None:
        context.console.print(f"{NAME}: {source}", highlight=False)
    training.look_ahead(context, NAME, training_set, training_set.ids)
    task = ClassifierTask(config, training_set, context.held_out, *training.reading(context, NAME))
    context.begin(NAME)
    save_network(model, context.own_folder(NAME) / training.START_FILE)
    if (trained := training.train(context, task, NAME)) is not None:
        _finish(context, trained)


def _take_checkpoint(context: Context, checkpoint: str) -> None:
    config, classes = context.experiment.classifier, context.training_set.classes
    model = build_classifier(config.backbone, len(classes), config.output_stride)
    load_classifier(model, storage.absolute(checkpoint))
    if config.checkpoint_classes is not None:
        reorder_head(model, config.checkpoint_classes, classes, "classifier.checkpoint_classes")
    context.begin(NAME)
    save_network(model, context.own_folder(NAME) / WEIGHTS_FILE)
    record_weights(context, NAME, WEIGHTS_FILE)
    context.replace_failures(NAME, {})
    context.run.write_metrics(NAME, ClassifierMetrics(checkpoint=checkpoint))


def _finish(context: Context, trained: Trained) -> None:
    config, last, unreadable = context.experiment.classifier, trained.validation, trained.unreadable
    for id, error in unreadable.items():
        context.run.event(NAME, "image left out", id=id, error=error)
    context.replace_failures(NAME, {})  # one line per bad image is enough, and refinement writes it
    metrics = ClassifierMetrics(
        loss=trained.loss,
        validation_loss=last["loss"],
        map=last["map"],
        epochs=config.epochs,
        precision=trained.precision,
        images=sum(id not in unreadable for id in context.training_set.ids),
        validation_images=last["images"],
        left_out=len(unreadable),
        classes=list(context.training_set.classes),
        timing=trained.timing(config.batch_size),
    )
    context.run.write_metrics(NAME, metrics)
    is_apart = set(context.held_out.ids).isdisjoint(context.training_set.ids)
    where = "held-out images" if is_apart else "images, of which some or all were trained on"
    text = "" if last["map"] is None else f", mAP {last['map']:.1f} on {last['images']} {where}"
    context.console.print(f"  final loss {trained.loss:.4f}{text}", highlight=False)
    if unreadable:
        left_out = f"{len(unreadable):,} image(s) could not be read and were left out"
        context.say(f"  {left_out}; see events/. The first: {next(iter(unreadable.values()))}")
    if not last["images"]:
        unread = f"no image of {context.held_out.name} could be read"
        context.say(f"  Note: {unread}, so nothing is known of the classifier on held-out images.")


STAGE = Stage(
    name=NAME,
    section="classifier",
    upstream=(),
    also_reads=("data.kind",),
    format=1,
    fingerprints=_fingerprints,
    work=_work,
    execute=_execute,
    writes=("loss", "validation_loss", "map"),
    trainings=("",),
    headline=lambda metrics: None if metrics.loss is None else f"mAP {number(metrics.map)}",
)
