"""The networks that learn: the classifier before the method, the segmentation network behind it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ribray.config.section import (
    Backbone,
    Count,
    Integer,
    NotNegative,
    OutputStride,
    Pixels,
    Positive,
    Precision,
    Scales,
    Section,
    Seed,
    Share,
    require_backbone,
    require_range,
    require_shares,
)


class ClassifierConfig(Section):
    """The multi-label classifier that every refinement starts from (docs/method.md, section 1)."""

    backbone: Backbone = "resnet50"
    """Network below the classification head: a ResNet of torchvision, small, or timm/NAME (extra ribray[timm])."""
    output_stride: OutputStride = 16
    """Pixels of the image per cell of a map."""
    weights: str = "imagenet"
    """Where the backbone starts: imagenet, none, synthetic, or the path of a state dict with torchvision's, or for a
    network of timm with timm's, names."""
    checkpoint: str | None = None
    """A classifier trained elsewhere (head included); nothing is trained then."""
    checkpoint_classes: tuple[str, ...] | None = None
    """Class names in the order of the checkpoint's head; default: the data's own order."""
    epochs: Count = 5
    """Passes over ``data.train_split``."""
    batch_size: Count = 16
    """Images per step over all workers together."""
    lr: Positive = 0.1
    """Learning rate of the backbone; polynomial decay with power 0.9."""
    head_lr_factor: Positive = 10.0
    """The head's learning rate over the backbone's."""
    momentum: Share = 1e-4
    """SGD momentum; the reference's value, in effect none."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty of SGD, on all learnable parameters."""
    crop_size: Pixels = 512
    """Side of the random crop, in pixels."""
    resize_long: tuple[Pixels, Pixels] = (320, 640)
    """Range of the image's long side after the random resize, in pixels."""
    loss: Literal["bce", "rib"] = "bce"
    """bce: multi-label soft margin; rib: the unbounded L_RIB (it diverges from scratch, figure S1a)."""
    divergence_bound: Positive = 1e6
    """Training ends as diverged once the absolute loss passes it."""
    precision: Precision = "auto"
    """Arithmetic of training; auto: bfloat16 on a GPU, float32 on a CPU."""
    workers: Count = 1
    """Workers, which share each batch; several are Ray Train's."""
    seed: Seed = 0
    """Seed of the head's weights, of the order of images and of augmentation."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ClassifierConfig":
        require_range(self.resize_long, "resize_long")
        require_shares("classifier", self.batch_size, self.workers)
        if self.checkpoint_classes is not None and self.checkpoint is None:
            raise ValueError("checkpoint_classes are those of classifier.checkpoint, which is not set")
        weights = "none" if self.weights == "imagenet" and self.checkpoint is not None else self.weights
        require_backbone("classifier", self.backbone, self.output_stride, weights)
        return self


class SegmentationConfig(Section):
    """DeepLab-v2 trained on the pseudo masks (docs/method.md, section 5)."""

    backbone: Backbone = "resnet101"
    """Network below the ASPP."""
    output_stride: OutputStride = 8
    """Pixels of the image per cell of the last level."""
    weights: str | None = None
    """Where the backbone starts: imagenet, none, synthetic, or the path of a state dict; default: as
    classifier.weights, but imagenet where that is a path and the backbones differ."""
    rates: Annotated[tuple[Count, ...], Field(min_length=1)] = (6, 12, 18, 24)
    """Dilations of the ASPP's convolutions."""
    hidden: Count | None = None
    """Channels between the ASPP and the classes, joined by a skip from stride 4; null: DeepLab-v2, without."""
    scales: Scales = (1.0, 0.75, 0.5)
    """Scales of the input, in training and prediction; the logits' maximum decides."""
    iterations: Count = 30_000
    """Steps of one training."""
    batch_size: Count = 10
    """Images per step over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The paper's is sgd."""
    lr: Positive = 2e-4
    """Learning rate of the backbone's weights; polynomial decay with power 0.9. Its biases learn at twice that."""
    head_lr_factor: Positive = 10.0
    """The ASPP's learning rate over the backbone's; of its biases, twice that."""
    momentum: Share = 0.9
    """SGD momentum."""
    weight_decay: NotNegative = 5e-4
    """L2 penalty on weights (sgd), or decoupled weight decay (adamw); biases have none."""
    crop_size: Annotated[Integer, Field(ge=32)] = 321
    """Side of the random crop, in pixels."""
    random_scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """Scales of which one is drawn per training image."""
    retrain: bool = False
    """Train a second time, with unknown pixels filled by the first network's predictions."""
    precision: Precision = "auto"
    """Arithmetic of training; auto: bfloat16 on a GPU, float32 on a CPU."""
    workers: Count = 1
    """Workers, which share each batch; several are Ray Train's."""
    seed: Seed = 0
    """Seed of the ASPP's weights, of the order of images and of augmentation."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SegmentationConfig":
        require_shares("segmentation", self.batch_size, self.workers)
        require_backbone("segmentation", self.backbone, self.output_stride, self.weights or "none")
        if self.scales[0] != 1.0 or len(set(self.scales)) != len(self.scales):
            raise ValueError("scales must begin with 1.0 and differ from each other")
        return self


class EvaluateConfig(Section):
    """Predictions of the segmentation network, and their mIoU."""

    splits: tuple[str, ...] | None = None
    """Splits to predict; default: data.eval_split. Those with masks are judged together."""
    crf: Literal["dense", "none"] = "dense"
    """Dense CRF on the predicted probabilities."""
