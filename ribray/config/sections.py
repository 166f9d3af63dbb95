"""The sections of an experiment, in its order; that of the methods is in `ribray.config.methods`."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ribray.config.base import (
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
    Thresholds,
    given,
    require_backbone,
    require_range,
    require_shares,
)

BOTH = "both"
"""The source of masks that stands for a method's maps and plain CAMs."""


class SyntheticConfig(Section):
    """The drawn world of ``data.kind: synthetic``."""

    image_size: Annotated[Integer, Field(ge=48, le=2048)] = 112
    """Side of the square images, in pixels."""
    classes: Annotated[Integer, Field(ge=2, le=200)] = 6
    """Kinds of head, which are the classes."""
    train_images: Count = 400
    """Images of split ``train``."""
    eval_images: Count = 200
    """Images of split ``val``."""


class DataConfig(Section):
    """Which images, which labels, and how they are split."""

    kind: Literal["voc", "coco", "folder", "synthetic"]
    """Layout of the data root."""
    root: str | None = None
    """Data root: a folder or URL; ``synthetic`` draws its world there (default: inside the run directory)."""
    train_split: str = "train"
    """Split the classifier learns from, whose images are refined and which extra samples are drawn from."""
    eval_split: str = "val"
    """Held-out split: validation of the classifier and of the segmentation network."""
    image_list: str | None = None
    """File with one image id a line: only these images of ``train_split`` are refined."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Class names of data in VOC layout, in the order of the mask values 1, 2, …; default: the root's classes.txt, or
    else VOC's 20."""
    least_readable: Share = 0.5
    """Share of its images that a training must be able to read; with fewer it fails, and is made anew next time."""
    seed: Seed = 0
    """Seed of the synthetic world."""
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "DataConfig":
        if self.root is None and self.kind != "synthetic":
            raise ValueError(f"data.root is missing: set it to the folder that holds the {self.kind} data")
        if self.classes is not None and self.kind != "voc":
            elsewhere = {
                "coco": "classes are the categories of its annotations",
                "folder": "classes stand in classes.txt",
                "synthetic": "data.synthetic.classes is their number",
            }
            raise ValueError(f"data.classes belongs to kind: voc; of kind: {self.kind}, {elsewhere[self.kind]}")
        return self


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
    """Arithmetic of training; auto: bfloat16 where a worker's hardware has fast units for it."""
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


class SeedEvalConfig(Section):
    """mIoU of the initial seed over thresholds."""

    thresholds: Thresholds = tuple(round(0.2 + step / 100, 2) for step in range(30))
    """Background thresholds to try: a list, or {start, stop, step} with stop included."""
    split: str | None = None
    """Split whose images count (those that have a map); default: data.train_split."""


class CamConfig(Section):
    """Thresholds where masks are made from plain CAMs; what is left out is as for RIB."""

    fg_threshold: Share | None = None
    """In place of masks.fg_threshold."""
    bg_threshold: Share | None = None
    """In place of masks.bg_threshold."""
    pseudo_threshold: Share | None = None
    """In place of pseudo.threshold, and of pseudo.ignore_band unless the next key gives another band."""
    ignore_band: tuple[Share, Share] | None = None
    """In place of pseudo.ignore_band."""

    @model_validator(mode="after")
    def _fits_together(self) -> "CamConfig":
        require_range(self.ignore_band, "ignore_band")
        return self


def _names(source: Any) -> Any:
    names = [source] if isinstance(source, str) else source
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("source is the name of a map or a list of names")
    if len(set(names)) < len(names):
        raise ValueError("source names a map twice")
    return source


class MasksConfig(Section):
    """Which maps become masks, and the confident labels that IRN learns from (docs/method.md, section 4)."""

    source: Annotated[str | tuple[str, ...], BeforeValidator(_names)] = "rib"
    """Maps by name: rib, refined ones; cam, plain CAMs (the paper's IRN row), made in variants/cam; or a list of names;
    both: the method's and cam. Default: the (first) method's."""
    crf: Literal["dense", "none"] = "dense"
    """Dense CRF on the confident labels; it needs the extra ribray[crf]."""
    crf_srgb: Positive = 5.0
    """Width of the CRF's colour kernel on labels, in grey levels."""
    fg_threshold: Share = 0.35
    """Above it a pixel is confident foreground."""
    bg_threshold: Share = 0.17
    """Below it a pixel is confident background; between both it is unknown."""
    saliency: str | None = None
    """Folder of saliency maps ID.png (RIB-Sal): where a pseudo mask disagrees, its pixels become unknown."""
    saliency_threshold: Share = 0.5
    """A pixel is salient from this share of 255 on."""
    cam: CamConfig = CamConfig()
    """Thresholds for masks.source cam."""

    @model_validator(mode="after")
    def _fits_together(self) -> "MasksConfig":
        own = self.model_dump(include={"bg_threshold", "fg_threshold"})
        on_cams = own | given(bg_threshold=self.cam.bg_threshold, fg_threshold=self.cam.fg_threshold)
        for values in (own, on_cams):
            if values["bg_threshold"] > values["fg_threshold"]:
                raise ValueError(
                    "bg_threshold {bg_threshold} must not be above fg_threshold {fg_threshold}".format(**values)
                )
        return self


class IrnConfig(Section):
    """IRN: class boundaries and displacements, learnt from confident labels (docs/method.md, section 4)."""

    backbone: Backbone | None = None
    """Network below the heads, frozen; default: classifier.backbone."""
    weights: str | None = None
    """Where it comes from: imagenet, none, synthetic, classifier, or a path; default: classifier.weights."""
    epochs: Count = 3
    """Passes over the confident labels."""
    batch_size: Count = 32
    """Images per step over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The paper's is sgd."""
    lr: Positive = 0.1
    """Learning rate of the boundary head; polynomial decay with power 0.9."""
    displacement_lr_factor: Positive = 10.0
    """The displacement head's learning rate over the boundary head's."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty (sgd), or decoupled weight decay (adamw)."""
    displacement_width: Annotated[Integer, Field(ge=64, multiple_of=64)] = 256
    """Channels inside the displacement head."""
    crop_size: Annotated[Integer, Field(ge=32)] = 512
    """Side of the random crop, in pixels."""
    scale_range: tuple[Positive, Positive] = (0.5, 1.5)
    """Range of the random scale."""
    radius: Annotated[Integer, Field(ge=2, le=40)] = 10
    """Pairs of cells (stride 4) closer than this enter the loss."""
    all_pairs: bool | None = None
    """Every pair inside the crop; false: the reference's, whose sources keep a margin to the border, and which is
    the default where the crop is large enough for any."""
    precision: Precision = "auto"
    """Arithmetic of training; auto: bfloat16 where a worker's hardware has fast units for it."""
    workers: Count = 1
    """Workers, which share each batch; several are Ray Train's."""
    seed: Seed = 0
    """Seed of the heads' weights, of the order of images and of augmentation."""

    def draw_scale(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(*self.scale_range))

    @model_validator(mode="after")
    def _fits_together(self) -> "IrnConfig":
        require_range(self.scale_range, "scale_range")
        require_shares("irn", self.batch_size, self.workers)
        if self.all_pairs is False and -(-self.crop_size // 4) <= 2 * (self.radius - 1):
            raise ValueError(
                f"a crop_size of {self.crop_size} leaves no source that keeps the margin of radius {self.radius}: "
                "set irn.all_pairs to true or leave it out, or make the crop larger"
            )
        return self


class PseudoConfig(Section):
    """Random walk on IRN's boundaries, and the pseudo masks cut from it (docs/method.md, section 4)."""

    beta: Positive = 10.0
    """Exponent of the affinities."""
    exp_times: Annotated[Integer, Field(ge=0, le=12)] = 8
    """t: the walk takes 2^t steps."""
    power: Positive = 1.3
    """p: maps are raised to it before the walk."""
    radius: Annotated[Integer, Field(ge=2, le=40)] = 5
    """Cells (stride 4) closer than this are neighbours."""
    threshold: Share = 0.27
    """Pixels whose best class scores no more are background."""
    ignore_band: tuple[Share, Share] | None = None
    """[low, high], in place of threshold: background below, foreground above, unknown (255) between."""
    crf: Literal["dense", "none"] = "none"
    """Dense CRF on the walk's result."""
    batch_images: Count = 4
    """Images of one walk; no result depends on it."""

    @model_validator(mode="after")
    def _fits_together(self) -> "PseudoConfig":
        require_range(self.ignore_band, "ignore_band")
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
    """Arithmetic of training; auto: bfloat16 where a worker's hardware has fast units for it."""
    workers: Count = 1
    """Workers, which share each batch; several are Ray Train's."""
    seed: Seed = 0
    """Seed of the ASPP's weights, of the order of images and of augmentation."""

    def draw_scale(self, rng: np.random.Generator) -> float:
        return self.random_scales[int(rng.integers(len(self.random_scales)))]

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


class ClusterConfig(Section):
    """How the work is spread. No result depends on any of these keys."""

    workers: Annotated[Integer, Field(ge=0)] | None = None
    """Actors in a pool; default: GPUs over gpus_per_worker, without GPU as many as cores and memory allow; 0: no Ray,
    pools and trainings work in the command's own process."""
    gpus_per_worker: NotNegative | None = None
    """GPUs of one worker, fractions allowed; default: 1 where the cluster has GPUs, otherwise 0."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray reserves for one worker."""
    threads_per_worker: Count = 1
    """Threads of one worker's arithmetic; maps are the same bytes only at one number of threads."""
    loader_threads: Count | None = None
    """Threads of one worker that decode the images to come; default: 2, with a GPU as many as its machine has cores, at
    most 6. Of a training on a GPU: processes, by default 2."""
    memory_gb_per_worker: Positive = 3.0
    """Memory that a CPU worker is taken to need, in GB, when `workers` is left to default."""
    checkpoint_steps: Count = 500
    """Steps of a training from one checkpoint to the next."""
    tries: Count = 3
    """How often an image may kill its worker before it is given up."""
    seconds_per_image: Positive | None = 3600.0
    """A worker that is longer at an image hangs: it is replaced, and a try counted; null: no limit."""
    address: str | None = None
    """A running Ray cluster (auto, HOST:PORT, ray://…); default: RAY_ADDRESS, else a cluster of this machine."""


class TrackingConfig(Section):
    """Experiment tracking beside the run's own plain files."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """W&B: offline needs no key and no network."""
    project: str = "ribray"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; default: the account's own."""
    group: str | None = None
    """W&B group of this run."""
    tags: tuple[str, ...] = ()
    """W&B tags of this run."""
