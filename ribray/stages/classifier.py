"""Stage ``classifier``: a multi-label classifier, trained by Ray Train or taken from a checkpoint."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ribray import storage
from ribray.cluster.training import Total, read_log
from ribray.config import ClassifierConfig
from ribray.data.dataset import Dataset
from ribray.data.transforms import Box, Normalisation, augment, keyed_rng, normalise_crops, shuffled
from ribray.errors import DamagedError, ImageError, UsageError
from ribray.networks import Classifier, build_classifier, normalisation_of
from ribray.networks.weights import drawn_with, load_backbone_weights, load_classifier, reorder_head, save_network
from ribray.pipeline.artifacts import WEIGHTS_FILE, record_weights
from ribray.pipeline.judging import number
from ribray.pipeline.stage import Context, Stage, Work
from ribray.pipeline.training import (
    START_FILE,
    ReadingTask,
    Trained,
    hash_file,
    loader_workers,
    look_ahead,
    polynomial_decay,
    train,
    weights_fingerprint,
)
from ribray.runs.metrics import ClassifierMetrics

NAME = "classifier"
FOLDER = "classifier"
FORMAT = 1


# --- the training, without Ray -----------------------------------------------------------------------------------


def start_network(config: ClassifierConfig, classes: int) -> tuple[Classifier, str | None]:
    """Return the network before training: the configured weights below a head of random ones, drawn with the seed.

    With it comes a phrase that says where the weights are from, where the configuration does not say it all.

    Raises:
        UsageError: the backbone's weights cannot be had.
    """
    own = keyed_rng("classifier", "backbone", config.seed)  # other numbers than the head's
    with drawn_with(int(own.integers(2**63))):
        model = build_classifier(config.backbone, classes, config.output_stride)
    with drawn_with(config.seed):
        nn.init.kaiming_uniform_(model.head.weight, a=5**0.5)
    return model, load_backbone_weights(model.backbone, config.weights)


@dataclass(frozen=True)
class Sample:
    """One image of a batch, cut out and still uint8; of an unreadable one the weight is 0."""

    pixels: np.ndarray
    box: Box
    labels: np.ndarray
    weight: float
    error: tuple[str, str] | None = None


class _Samples(TorchDataset[Sample]):
    """Images by (epoch, place); a negative epoch means validation: no resizing at random."""

    def __init__(self, dataset: Dataset, config: ClassifierConfig):
        self._dataset, self._config = dataset, config

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, place = key
        config, id, labels = self._config, self._dataset.ids[place], self._dataset.labels[place]
        size = config.crop_size
        try:
            image = self._dataset.image(id)
        except ImageError as error:
            return Sample(np.zeros((size, size, 3), np.uint8), (0, 0, 0, 0), labels, 0.0, (id, str(error)))
        rng = keyed_rng("classifier", config.seed, epoch, id)
        whole = min(max(image.shape[:2]), size)  # held-out images: only what would not fit is made smaller
        resize = config.resize_long if epoch >= 0 else (whole, whole)
        return Sample(*augment(image, rng, resize, size), labels, 1.0)


@dataclass
class Batch:
    """Shapes: pixels (n, S, S, 3) uint8, boxes per image, labels (n, C) float32, weights (n,)."""

    pixels: Tensor
    boxes: list[Box]
    labels: Tensor
    weights: Tensor
    errors: dict[str, str]

    @classmethod
    def of(cls, samples: list[Sample]) -> "Batch":
        """Stack samples."""
        return cls(
            torch.from_numpy(np.stack([sample.pixels for sample in samples])),
            [sample.box for sample in samples],
            torch.from_numpy(np.stack([sample.labels for sample in samples]).astype(np.float32)),
            torch.tensor([sample.weight for sample in samples]),
            dict(sample.error for sample in samples if sample.error is not None),
        )

    def images(self, device: torch.device, normalisation: Normalisation) -> Tensor:
        """Return the normalised crops, (n, 3, S, S) float32 on ``device``."""
        return normalise_crops(self.pixels.to(device, non_blocking=True), self.boxes, normalisation)


class ClassifierTask(ReadingTask):
    """docs/method.md, section 1: SGD with polynomial decay on randomly resized, flipped and cropped images.

    The order of images is a permutation keyed by (seed, epoch); each rank takes every ``world``-th image of a batch.
    An epoch has whole batches only; the images left over sit it out.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        train: Dataset,
        held_out: Dataset,
        start: Path,
        loader_workers: int,
        least_readable: float = 0.0,
    ):
        require_enough(train, config)
        super().__init__(NAME, least_readable)
        self.period, self.precision = len(train) // config.batch_size, config.precision
        self.steps = self.period * config.epochs
        self.divergence_bound = config.divergence_bound
        self._config, self._train, self._held_out, self._start = config, train, held_out, start
        self._loader_workers = loader_workers
        self._held_out_errors: dict[str, str] = {}
        self._normalisation = normalisation_of(config.backbone)

    def model(self) -> Classifier:
        """Return the network with the weights to start from."""
        config = self._config
        model = build_classifier(config.backbone, len(self._train.classes), config.output_stride)
        load_classifier(model, self._start)
        return model

    def optimizer(self, model: Classifier) -> torch.optim.Optimizer:
        """Return SGD, the head at a multiple of the backbone's rate."""
        config = self._config
        backbone, head = model.learnable_groups()
        groups = [
            {"params": backbone, "lr": config.lr},
            {"params": head, "lr": config.lr * config.head_lr_factor},
        ]
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)

    def decay(self, step: int) -> float:
        """Return the polynomial decay."""
        return polynomial_decay(step, self.steps)

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[Batch]:
        """Yield this rank's share of each batch."""
        shares = (self._share(step, rank, world) for step in range(first_step, self.steps))
        yield from self._load(self._train, shares, self.unreadable)

    def wanted(self) -> int:
        """Return the number of different images in all epochs' whole batches."""
        asked = np.zeros(len(self._train), bool)
        for epoch in range(self._config.epochs):
            asked[self._order(epoch)[: self.period * self._config.batch_size]] = True
            if asked.all():
                break
        return int(asked.sum())

    def _order(self, epoch: int) -> np.ndarray:
        return shuffled("order", self._config.seed, epoch, len(self._train))

    def _share(self, step: int, rank: int, world: int) -> list[tuple[int, int]]:
        epoch, place = divmod(step, self.period)
        size = self._config.batch_size
        return [(epoch, int(place)) for place in self._order(epoch)[place * size : (place + 1) * size][rank::world]]

    def loss(self, model: nn.Module, batch: Batch, device: torch.device, total: Total) -> Tensor:
        """Return the share's part of the mean loss over the batch; an unreadable image adds nothing."""
        logits = model(batch.images(device, self._normalisation)).float()
        labels, weights = batch.labels.to(device), batch.weights.to(device)
        if self._config.loss == "rib":
            per_image = -(logits * labels).sum(1)
        else:
            per_image = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        return (per_image * weights).sum() / self._config.batch_size

    def validate(self, model: Classifier, step: int, rank: int, world: int, device: torch.device) -> dict[str, Any]:
        """Return logits (n, C) and labels (n, C) of this rank's share of the held-out images, and unreadable images."""
        size = max(1, self._config.batch_size // world)
        places = [(-1, place) for place in range(rank, len(self._held_out), world)]
        shares = [places[start : start + size] for start in range(0, len(places), size)]
        logits, labels = [], []
        for batch in self._load(self._held_out, shares, self._held_out_errors):
            readable = batch.weights > 0
            logits.append(model(batch.images(device, self._normalisation)).float().cpu()[readable].numpy())
            labels.append(batch.labels[readable].numpy())
        classes = len(self._train.classes)
        return {
            "logits": np.concatenate([np.empty((0, classes), np.float32), *logits]),
            "labels": np.concatenate([np.empty((0, classes), np.float32), *labels]),
            "errors": dict(self._held_out_errors),
        }

    def conclude(self, model: Classifier, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Return loss and mAP (percent; over classes that occur) of the held-out images.

        There is no mAP where every image shows every class: nothing could be ranked wrongly.
        """
        from sklearn.metrics import average_precision_score  # a second that refinement's workers need not spend

        logits = np.concatenate([part["logits"] for part in parts])
        labels = np.concatenate([part["labels"] for part in parts])
        errors = {id: error for part in parts for id, error in part["errors"].items()} | self.unreadable
        occurring = labels.any(0)
        if not occurring.any():
            return {"loss": None, "map": None, "images": len(labels), "unreadable": errors}
        loss = functional.binary_cross_entropy_with_logits(
            torch.from_numpy(logits).double(), torch.from_numpy(labels).double()
        )
        precision = average_precision_score(labels[:, occurring], logits[:, occurring], average="macro")
        return {
            "loss": float(loss),
            "map": None if labels.all() else 100 * float(precision),
            "images": len(labels),
            "unreadable": errors,
        }

    def save(self, model: Classifier, destination: Path) -> None:
        """Write the weights as safetensors."""
        save_network(model, destination)

    def _load(
        self, dataset: Dataset, shares: Iterable[list[tuple[int, int]]], errors: dict[str, str]
    ) -> Iterator[Batch]:
        """Yield batches, and note what cannot be read."""
        loader: Iterable[Batch] = DataLoader(
            _Samples(dataset, self._config),
            batch_sampler=shares,
            num_workers=self._loader_workers,
            collate_fn=Batch.of,
        )
        for batch in loader:
            errors |= batch.errors
            yield batch


def require_enough(train: Dataset, config: ClassifierConfig) -> None:
    """Check that there is something to learn from.

    Raises:
        UsageError: there is no whole batch, or no label.
    """
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
        return prints | {"contents of classifier.checkpoint": hash_file(config.checkpoint, "classifier.checkpoint")}
    prints["ids or labels of data.eval_split"] = context.dataset(context.experiment.data.eval_split).fingerprint()
    return prints | weights_fingerprint(config.weights, "classifier.weights")


def _work(context: Context) -> Work:
    finished = context.has(NAME) and (context.artifact(NAME) / WEIGHTS_FILE).exists()
    if context.experiment.classifier.checkpoint is not None:
        return Work(1, int(finished), "checkpoint")
    epochs = context.experiment.classifier.epochs
    return Work(epochs, epochs if finished else _epochs_done(context.artifact(NAME)), "epochs")


def _epochs_done(folder: Path) -> int:
    try:
        return sum("validation" in line for line in read_log(folder))
    except DamagedError:  # its training can only be done again
        return 0


def _execute(context: Context) -> None:
    config, run, folder = context.experiment.classifier, context.run, context.own_folder(NAME)
    training_set = context.training_set
    if config.checkpoint is not None:
        model = build_classifier(config.backbone, len(training_set.classes), config.output_stride)
        load_classifier(model, storage.absolute(config.checkpoint))
        if config.checkpoint_classes is not None:
            reorder_head(model, config.checkpoint_classes, training_set.classes, "classifier.checkpoint_classes")
        run.begin(FOLDER, context.key(NAME))
        save_network(model, folder / WEIGHTS_FILE)
        record_weights(context, NAME, WEIGHTS_FILE)
        context.replace_failures(NAME, {})
        run.write_metrics(NAME, ClassifierMetrics(checkpoint=config.checkpoint))
        return
    require_enough(training_set, config)  # said before a cluster starts
    model, source = start_network(config, len(training_set.classes))
    if source is not None:
        context.console.print(f"{NAME}: {source}", highlight=False)
    look_ahead(context, NAME, training_set, training_set.ids)
    task = ClassifierTask(
        config,
        training_set,
        context.dataset(context.experiment.data.eval_split),
        folder / START_FILE,
        loader_workers(context),
        context.experiment.data.least_readable,
    )
    run.begin(FOLDER, context.key(NAME))
    save_network(model, folder / START_FILE)
    trained = train(context, NAME, task, folder, config.workers)
    if trained is None:
        return
    (folder / START_FILE).unlink(missing_ok=True)
    record_weights(context, NAME, WEIGHTS_FILE)
    _finish(context, trained)


def _finish(context: Context, trained: Trained) -> None:
    """Turn the training log into metrics and events."""
    config, log = context.experiment.classifier, trained.log
    epochs = [line for line in log if "validation" in line]
    last = epochs[-1]["validation"]
    unreadable = {id: error for line in epochs for id, error in line["validation"]["unreadable"].items()}
    for id, error in unreadable.items():
        context.run.event(NAME, "image left out", id=id, error=error)
    context.replace_failures(NAME, {})  # one line per bad image is enough, and refinement writes it
    metrics = ClassifierMetrics(
        loss=trained.loss,
        validation_loss=last["loss"],
        map=last["map"],
        epochs=config.epochs,
        images=sum(id not in unreadable for id in context.training_set.ids),
        validation_images=last["images"],
        left_out=len(unreadable),
        classes=list(context.training_set.classes),
        timing=trained.timing(config.batch_size),
    )
    context.run.write_metrics(NAME, metrics)
    text = "" if last["map"] is None else f", mAP {last['map']:.1f} on {last['images']} held-out images"
    context.console.print(f"  final loss {trained.loss:.4f}{text}", highlight=False)
    if unreadable:
        reason = next(iter(unreadable.values()))
        what = f"{len(unreadable):,} image(s) could not be read and were left out; see events/. The first: {reason}"
        context.console.print(f"  {what}", highlight=False, markup=False, soft_wrap=True)
    if not last["images"]:
        split = context.dataset(context.experiment.data.eval_split).name
        text = f"  Note: no image of {split} could be read, so nothing is known of the classifier on held-out images."
        context.console.print(text, highlight=False, markup=False, soft_wrap=True)


STAGE = Stage(
    name=NAME,
    folder=FOLDER,
    upstream=(),
    section="classifier",
    also_reads=("data.kind",),
    format=FORMAT,
    fingerprints=_fingerprints,
    work=_work,
    execute=_execute,
    writes=("loss", "validation_loss", "map"),
    trainings=("",),
    headline=lambda metrics: None if metrics.loss is None else f"mAP {number(metrics.map)}",
)
