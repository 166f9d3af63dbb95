"""The whole configuration of an experiment: typed models, read from YAML, changed by dotted overrides.

A recipe is a YAML file with any of the keys below; what it leaves out keeps its default. ``--set refine.lr=1e-5``
changes one key. Unknown keys and values out of range are refused with a sentence.
"""

import copy
import difflib
import math
import reprlib
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ribray import storage
from ribray.errors import UsageError
from ribray.yaml_text import MOST_CHARACTERS, YamlError, parse_yaml

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Pixels = Annotated[int, Field(ge=8)]
Precision = Literal["float32", "bfloat16", "auto"]
OutputStride = Literal[8, 16, 32]
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2", "small")
TIMM_PREFIX = "timm/"
"""Before the name of a network of timm."""


def _known_backbone(name: str) -> str:
    if name not in BACKBONES and not name.startswith(TIMM_PREFIX):
        raise ValueError(
            f"a backbone is one of {', '.join(BACKBONES)}, or {TIMM_PREFIX}NAME for a convolutional network of timm"
            f"{nearest(name, BACKBONES)}"
        )
    return name


Backbone = Annotated[str, AfterValidator(_known_backbone)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _exponents(cls, values: Any) -> Any:
        """YAML 1.1 reads ``3e4`` as text, and so it is left but where a whole number belongs (fractions take text)."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields.items()
        whole = [name for name, field in fields if isinstance(values.get(name), str) and _has(field.annotation, int)]
        return {**values, **{name: _number_if_one(values[name]) for name in whole}}


MOST_THRESHOLDS = 10_000


def _expand_range(value: Any) -> Any:
    """Turn ``{start: 0.2, stop: 0.49, step: 0.01}`` (stop included) into the list of its values."""
    if not isinstance(value, Mapping) or set(value) != {"start", "stop", "step"}:
        return value
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in value.values()):
        raise ValueError("start, stop and step of a range are numbers")
    start, stop, step = (float(value[key]) for key in ("start", "stop", "step"))
    if step <= 0 or stop < start or (stop - start) / step > MOST_THRESHOLDS:
        raise ValueError(f"a range needs start <= stop, step > 0 and at most {MOST_THRESHOLDS} values")
    return [round(float(number), 6) for number in start + step * np.arange(int((stop - start) / step + 1.5))]


def _increasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if (np.diff(np.array(values, np.float32)) <= 0).any():  # maps are float32, and are compared so
        raise ValueError("thresholds must increase")
    return values


Thresholds = Annotated[
    tuple[Share, ...], Field(min_length=1), AfterValidator(_increasing), BeforeValidator(_expand_range)
]


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _require_range(bounds: tuple[float, float], key: str) -> None:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{key} must be [smallest, largest], not {list(bounds)}")


def _require_shares(section: str, batch_size: int, workers: int) -> None:
    if batch_size % workers:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {workers} workers: "
            f"set {section}.batch_size to a multiple of {section}.workers"
        )


def _require_backbone(section: str, backbone: str, output_stride: int, weights: str) -> None:
    if backbone == "small" and output_stride != 8:
        raise ValueError("the small backbone has output_stride 8 only")
    if weights == "synthetic" and backbone != "small":
        raise ValueError("weights: synthetic belong to backbone: small")
    if weights == "imagenet" and backbone == "small":
        raise ValueError(f"the small backbone has no ImageNet weights: set {section}.weights to synthetic or none")


class SyntheticConfig(_Section):
    """The drawn world of ``data.kind: synthetic``."""

    image_size: Annotated[int, Field(ge=48, le=2048)] = 112
    """Side of the square images, in pixels."""
    classes: Annotated[int, Field(ge=2, le=200)] = 6
    """Kinds of head, which are the classes."""
    train_images: Annotated[int, Field(ge=1)] = 400
    """Images of split ``train``."""
    eval_images: Annotated[int, Field(ge=1)] = 200
    """Images of split ``val``."""


class DataConfig(_Section):
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
    def _needs_root(self) -> "DataConfig":
        if self.root is None and self.kind != "synthetic":
            raise ValueError(f"data.root is missing: set it to the folder that holds the {self.kind} data")
        return self

    @model_validator(mode="after")
    def _names_classes_of_voc(self) -> "DataConfig":
        if self.classes is not None and self.kind != "voc":
            elsewhere = {
                "coco": "classes are the categories of its annotations",
                "folder": "classes stand in classes.txt",
                "synthetic": "data.synthetic.classes is their number",
            }
            raise ValueError(f"data.classes belongs to kind: voc; of kind: {self.kind}, {elsewhere[self.kind]}")
        return self


class ClassifierConfig(_Section):
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
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over ``data.train_split``."""
    batch_size: Annotated[int, Field(ge=1)] = 16
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
    workers: Annotated[int, Field(ge=1)] = 1
    """Ray Train workers; they share each batch."""
    seed: Seed = 0
    """Seed of the head's weights, of the order of images and of augmentation."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ClassifierConfig":
        _require_range(self.resize_long, "resize_long")
        _require_shares("classifier", self.batch_size, self.workers)
        if self.checkpoint_classes is not None and self.checkpoint is None:
            raise ValueError("checkpoint_classes are those of classifier.checkpoint, which is not set")
        weights = "none" if self.weights == "imagenet" and self.checkpoint is not None else self.weights
        _require_backbone("classifier", self.backbone, self.output_stride, weights)
        return self


class RefineConfig(_Section):
    """RIB refinement of one image (paper section 3)."""

    iterations: Annotated[int, Field(ge=1)] = 10
    """K, the steps per image."""
    batch_size: Annotated[int, Field(ge=1)] = 20
    """B: the target image and B-1 extra samples without any of its classes."""
    lr: NotNegative = 8e-6
    """Learning rate of the backbone; polynomial decay with power 0.9 over the K steps."""
    head_lr_factor: Positive = 10.0
    """The head's learning rate over the backbone's."""
    momentum: Share = 1e-4
    """SGD momentum; the reference's value, in effect none."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty of SGD."""
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 0.5, 1.5, 2.0)
    """Scales of the target's views; the first must be 1.0, whose map the explosion test looks at."""
    loss_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 1.5, 2.0)
    """The scales whose logits enter the loss."""
    pooling: Literal["gndrp", "gap"] = "gndrp"
    """gndrp: over non-discriminative regions only; gap: plain global average."""
    pooling_threshold: Share = 0.4
    """tau of GNDRP: cells at or above this share of a map's maximum do not count."""
    pooling_first_classes: Annotated[int, Field(ge=0)] | None = None
    """GNDRP only for classes below this index; 20 repeats the reference's defect on COCO."""
    stop_threshold: Positive = 600.0
    """m: refinement stops once the target's absolute summed logits pass it."""
    explode_threshold: Positive = 0.3
    """A cell is covered where a present class's map exceeds this share of its maximum."""
    explode_ratio: Positive = 0.7
    """Refinement stops once more than this share of cells is covered."""
    loss: Literal["rib", "bce_sigmoid", "bce_tanh", "bce_softsign"] = "rib"
    """rib: no final activation; bce_*: cross entropy under the named activation, mapped to (0, 1)."""
    crop_size: Pixels = 512
    """Side of an extra sample's random crop, in pixels."""
    resize_long: tuple[Pixels, Pixels] = (320, 640)
    """Range of an extra sample's long side, in pixels."""
    precision: Precision = "auto"
    """float32 is the reference; auto: bfloat16 where hardware has fast units for it, float32 for networks of timm."""
    deterministic: bool = False
    """Deterministic GPU kernels: the same bytes from run to run, slower; a CPU always is."""
    keep_steps: bool = False
    """Keep the maps after every step in the map files (figures, curves over K)."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Refine at most so many images; more can follow later in the same run."""
    seed: Seed = 0
    """Seed of the extra samples and their augmentation."""

    @model_validator(mode="after")
    def _fits_together(self) -> "RefineConfig":
        _require_range(self.resize_long, "resize_long")
        if self.scales[0] != 1.0:
            raise ValueError("scales must begin with 1.0")
        if len(set(self.scales)) != len(self.scales):
            raise ValueError("scales must differ from each other")
        if unknown := [scale for scale in self.loss_scales if scale not in self.scales]:
            raise ValueError(f"loss_scales {unknown} are not among scales {list(self.scales)}")
        return self


class SeedEvalConfig(_Section):
    """mIoU of the initial seed over thresholds."""

    thresholds: Thresholds = Field(default_factory=lambda: _expand_range({"start": 0.2, "stop": 0.49, "step": 0.01}))
    """Background thresholds to try: a list, or {start, stop, step} with stop included."""
    split: str | None = None
    """Split whose images count (those that have a map); default: data.train_split."""


class CamConfig(_Section):
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
        if self.ignore_band is not None:
            _require_range(self.ignore_band, "ignore_band")
        return self


class MasksConfig(_Section):
    """Which maps become masks, and the confident labels that IRN learns from (docs/method.md, section 4)."""

    source: Literal["rib", "cam", "both"] = "rib"
    """rib: refined maps; cam: plain CAMs (the paper's IRN row), made in variants/cam; both: one after the other."""
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
        on_cams = own | _given(bg_threshold=self.cam.bg_threshold, fg_threshold=self.cam.fg_threshold)
        for values in (own, on_cams):
            if values["bg_threshold"] > values["fg_threshold"]:
                raise ValueError(
                    "bg_threshold {bg_threshold} must not be above fg_threshold {fg_threshold}".format(**values)
                )
        return self


class IrnConfig(_Section):
    """IRN: class boundaries and displacements, learnt from confident labels (docs/method.md, section 4)."""

    backbone: Backbone | None = None
    """Network below the heads, frozen; default: classifier.backbone."""
    weights: str | None = None
    """Where it comes from: imagenet, none, synthetic, classifier, or a path; default: classifier.weights."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over the confident labels."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per step over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The paper's is sgd."""
    lr: Positive = 0.1
    """Learning rate of the boundary head; polynomial decay with power 0.9."""
    displacement_lr_factor: Positive = 10.0
    """The displacement head's learning rate over the boundary head's."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty (sgd), or decoupled weight decay (adamw)."""
    displacement_width: Annotated[int, Field(ge=64, multiple_of=64)] = 256
    """Channels inside the displacement head."""
    crop_size: Annotated[int, Field(ge=32)] = 512
    """Side of the random crop, in pixels."""
    scale_range: tuple[Positive, Positive] = (0.5, 1.5)
    """Range of the random scale."""
    radius: Annotated[int, Field(ge=2, le=40)] = 10
    """Pairs of cells (stride 4) closer than this enter the loss."""
    all_pairs: bool | None = None
    """Every pair inside the crop; false: the reference's, whose sources keep a margin to the border, and which is
    the default where the crop is large enough for any."""
    precision: Precision = "auto"
    """Arithmetic of training; auto: bfloat16 on a GPU, float32 on a CPU."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Ray Train workers; they share each batch."""
    seed: Seed = 0
    """Seed of the heads' weights, of the order of images and of augmentation."""

    @model_validator(mode="after")
    def _fits_together(self) -> "IrnConfig":
        _require_range(self.scale_range, "scale_range")
        _require_shares("irn", self.batch_size, self.workers)
        if self.all_pairs is False and -(-self.crop_size // 4) <= 2 * (self.radius - 1):
            raise ValueError(
                f"a crop_size of {self.crop_size} leaves no source that keeps the margin of radius {self.radius}: "
                "set irn.all_pairs to true or leave it out, or make the crop larger"
            )
        return self


class PseudoConfig(_Section):
    """Random walk on IRN's boundaries, and the pseudo masks cut from it (docs/method.md, section 4)."""

    beta: Positive = 10.0
    """Exponent of the affinities."""
    exp_times: Annotated[int, Field(ge=0, le=12)] = 8
    """t: the walk takes 2^t steps."""
    power: Positive = 1.3
    """p: maps are raised to it before the walk."""
    radius: Annotated[int, Field(ge=2, le=40)] = 5
    """Cells (stride 4) closer than this are neighbours."""
    threshold: Share = 0.27
    """Pixels whose best class scores no more are background."""
    ignore_band: tuple[Share, Share] | None = None
    """[low, high], in place of threshold: background below, foreground above, unknown (255) between."""
    crf: Literal["dense", "none"] = "none"
    """Dense CRF on the walk's result."""
    batch_images: Annotated[int, Field(ge=1)] = 4
    """Images of one walk; no result depends on it."""

    @model_validator(mode="after")
    def _fits_together(self) -> "PseudoConfig":
        if self.ignore_band is not None:
            _require_range(self.ignore_band, "ignore_band")
        return self


class SegmentationConfig(_Section):
    """DeepLab-v2 trained on the pseudo masks (docs/method.md, section 5)."""

    backbone: Backbone = "resnet101"
    """Network below the ASPP."""
    output_stride: OutputStride = 8
    """Pixels of the image per cell of the last level."""
    weights: str | None = None
    """Where the backbone starts: imagenet, none, synthetic, or the path of a state dict; default: as
    classifier.weights, but imagenet where that is a path and the backbones differ."""
    rates: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (6, 12, 18, 24)
    """Dilations of the ASPP's convolutions."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Channels between the ASPP and the classes, joined by a skip from stride 4; null: DeepLab-v2, without."""
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 0.75, 0.5)
    """Scales of the input, in training and prediction; the logits' maximum decides."""
    iterations: Annotated[int, Field(ge=1)] = 30_000
    """Steps of one training."""
    batch_size: Annotated[int, Field(ge=1)] = 10
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
    crop_size: Annotated[int, Field(ge=32)] = 321
    """Side of the random crop, in pixels."""
    random_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """Scales of which one is drawn per training image."""
    retrain: bool = False
    """Train a second time, with unknown pixels filled by the first network's predictions."""
    precision: Precision = "auto"
    """Arithmetic of training; auto: bfloat16 on a GPU, float32 on a CPU."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Ray Train workers; they share each batch."""
    seed: Seed = 0
    """Seed of the ASPP's weights, of the order of images and of augmentation."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SegmentationConfig":
        _require_shares("segmentation", self.batch_size, self.workers)
        _require_backbone("segmentation", self.backbone, self.output_stride, self.weights or "none")
        if self.scales[0] != 1.0 or len(set(self.scales)) != len(self.scales):
            raise ValueError("scales must begin with 1.0 and differ from each other")
        return self


class EvaluateConfig(_Section):
    """Predictions of the segmentation network, and their mIoU."""

    splits: tuple[str, ...] | None = None
    """Splits to predict; default: data.eval_split. Those with masks are judged together."""
    crf: Literal["dense", "none"] = "dense"
    """Dense CRF on the predicted probabilities."""


class ClusterConfig(_Section):
    """How the work is spread. No result depends on any of these keys."""

    workers: Annotated[int, Field(ge=0)] | None = None
    """Actors in a pool; default: GPUs over gpus_per_worker, without GPU as many as cores and memory allow; 0: no Ray,
    pools and trainings work in the command's own process."""
    gpus_per_worker: NotNegative | None = None
    """GPUs of one worker, fractions allowed; default: 1 where the cluster has GPUs, otherwise 0."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray reserves for one worker."""
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """Threads of one worker's arithmetic; maps are the same bytes only at one number of threads."""
    loader_threads: Annotated[int, Field(ge=1)] = 2
    """Threads of one worker that decode the images to come."""
    memory_gb_per_worker: Positive = 3.0
    """Memory that a CPU worker is taken to need, in GB, when `workers` is left to default."""
    checkpoint_steps: Annotated[int, Field(ge=1)] = 500
    """Steps of a training from one checkpoint to the next."""
    tries: Annotated[int, Field(ge=1)] = 3
    """How often an image may kill its worker before it is given up."""
    seconds_per_image: Positive | None = 3600.0
    """A worker that is longer at an image hangs: it is replaced, and a try counted; null: no limit."""
    address: str | None = None
    """A running Ray cluster (auto, HOST:PORT, ray://…); default: RAY_ADDRESS, else a cluster of this machine."""


class TrackingConfig(_Section):
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


class Experiment(_Section):
    """Everything that decides the results of a run, and how it is carried out."""

    seed: Seed = 0
    """Default of the seeds of data, classifier, refine, irn and segmentation; ``--set seed=N`` changes those of a
    recipe that equal its own ``seed``, and leaves others as they are."""
    data: DataConfig
    classifier: ClassifierConfig = ClassifierConfig()
    refine: RefineConfig = RefineConfig()
    seed_eval: SeedEvalConfig = SeedEvalConfig()
    masks: MasksConfig = MasksConfig()
    irn: IrnConfig = IrnConfig()
    pseudo: PseudoConfig = PseudoConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _spread_seed(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        spread = dict(values)
        for name in _seeded_sections():
            section = spread.get(name, {})
            if isinstance(section, Mapping):
                spread[name] = {**section, "seed": section.get("seed", values.get("seed", 0))}
        return spread

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if self.refine.resize_long[1] < 16:
            raise ValueError("refine.resize_long must reach at least 16 pixels")
        return self

    @property
    def irn_backbone(self) -> tuple[str, int]:
        """The name and the output stride of IRNet's backbone: by default the classifier's."""
        name = self.irn.backbone or self.classifier.backbone
        return name, 8 if name == "small" else self.classifier.output_stride

    def on_first_source(self) -> "Experiment":
        """Return this experiment as a run's own directory holds it: of ``both`` sources of masks with the first."""
        if self.masks.source != "both":
            return self
        return self.model_copy(update={"masks": self.masks.model_copy(update={"source": "rib"})})

    def on_cams(self) -> "Experiment":
        """Return this experiment with masks made from plain CAMs, at thresholds of their own."""
        cam = self.masks.cam
        masks = {"source": "cam", **_given(fg_threshold=cam.fg_threshold, bg_threshold=cam.bg_threshold)}
        pseudo = _given(threshold=cam.pseudo_threshold, ignore_band=cam.ignore_band)
        if "threshold" in pseudo:  # which a band would hide
            pseudo.setdefault("ignore_band", None)
        return self.model_copy(
            update={"masks": self.masks.model_copy(update=masks), "pseudo": self.pseudo.model_copy(update=pseudo)}
        )


def _seeded_sections() -> list[str]:
    """Return the names of the sections with a seed of their own."""
    sections = {name: field.annotation for name, field in Experiment.model_fields.items()}
    return [
        name
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, _Section) and "seed" in section.model_fields
    ]


# --- reading -----------------------------------------------------------------------------------------------------


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    folder = Path(str(resources.files("ribray") / "recipes"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_experiment(recipe: str, overrides: Iterable[str | Mapping[str, Any]] = ()) -> Experiment:
    """Read a recipe and apply overrides (see `change`).

    Args:
        recipe: a shipped name (``voc12``) or the path of a YAML file.
        overrides: ``key.path=value`` strings, or mappings of key paths to values.

    Raises:
        UsageError: no such recipe, broken YAML, an unknown key, or a value of the wrong type or range.
    """
    return validate_experiment(change(read_recipe(recipe), overrides), str(recipe))


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return the raw values of a recipe, given by its shipped name or its path.

    Raises:
        UsageError: no such recipe, or broken YAML.
    """
    values = read_yaml(find_recipe(recipe))
    values.pop("provenance", None)  # a run's experiment.yaml is a recipe too
    return values


def change(values: Mapping[str, Any], overrides: Iterable[str | Mapping[str, Any]]) -> dict[str, Any]:
    """Return the raw values of a recipe with overrides applied; later ones win.

    Args:
        values: of the recipe.
        overrides: ``key.path=value`` strings, their values parsed as YAML, and mappings of key paths to values that
            are taken as they are. One of ``seed`` also stands for the sections' seeds that the recipe has from its own
            (see `Experiment.seed`).

    Raises:
        UsageError: a string of another form, broken YAML, or a key below a value.
    """
    changed = copy.deepcopy(dict(values))
    settings: list[tuple[str, Any, str]] = []
    for override in overrides:
        if isinstance(override, str):
            settings.append(_parse_override(override))
        else:
            settings += [(key, copy.deepcopy(value), key) for key, value in override.items()]
    if any(key == "seed" for key, _, _ in settings):
        _forget_spread_seeds(changed)
    for key, value, shown in settings:
        _apply_override(changed, key, value, shown)
    return changed


def _forget_spread_seeds(values: dict[str, Any]) -> None:
    """Remove the sections' seeds that equal the recipe's own: a resolved recipe has them all written out."""
    for name in _seeded_sections() if "seed" in values else ():
        section = values.get(name)
        if isinstance(section, dict) and "seed" in section and section["seed"] == values["seed"]:
            del section["seed"]


def find_recipe(recipe: str) -> Path:
    """Return the file of a recipe.

    Raises:
        UsageError: neither a shipped name nor a file.
    """
    shipped = shipped_recipes()
    if recipe in shipped:
        return shipped[recipe]
    location = storage.absolute(recipe)
    if location.is_file():
        return location
    hint = nearest(location.stem, shipped)
    raise UsageError(
        f"There is no recipe '{recipe}'{hint}; shipped are {', '.join(shipped)}, or give the path of a YAML file."
    )


def read_yaml(location: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UsageError: the file cannot be read, is no YAML, is too large (see `ribray.yaml_text`), or holds something else.
    """
    try:
        with location.open("rb") as stream:
            content = stream.read(4 * MOST_CHARACTERS + 1)
        values = parse_yaml(content.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{location} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{location} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except YamlError as error:
        raise UsageError(f"{location} is not valid YAML: {error}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{location} must hold keys and values, for example 'refine: {{batch_size: 20}}'.")
    return values


def validate_experiment(values: Mapping[str, Any], source: str) -> Experiment:
    """Check raw values against the model.

    Raises:
        UsageError: names ``source``, the key's path and the value; one sentence for the first error.
    """
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {explain_invalid(error, Experiment)}") from None
    except RecursionError:
        raise UsageError(f"{source}: the values are nested too deeply.") from None


def _parse_override(override: str) -> tuple[str, Any, str]:
    """Return key and value of ``key.path=value``, and the text to show in messages."""
    key, separator, text = override.partition("=")
    key, shown = key.strip(), _short_text(" ".join(override.split()))
    if not separator or not key:
        raise UsageError(f"--set {shown}: write it as key=value, for example --set refine.batch_size=30.")
    try:
        value = parse_yaml(text)
    except YamlError as error:
        raise UsageError(f"--set {shown}: the value is not valid YAML: {error}.") from None
    return key, value, f"--set {shown}"


def _apply_override(values: dict[str, Any], key: str, value: Any, shown: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{shown}: '{section}' is a value, not a section.")
        values = inner
    values[last] = value


def _number_if_one(text: str) -> str | float:
    try:
        return float(text) if any(digit in text for digit in "0123456789") else text
    except ValueError:
        return text


def _has(annotation: Any, kind: type) -> bool:
    """Whether a type is, or is a union or the like of, ``kind``."""
    return annotation is kind or any(_has(part, kind) for part in typing.get_args(annotation))


def explain_invalid(error: ValidationError, model: type[BaseModel]) -> str:
    """Say in a phrase what is wrong with the first value that ``model`` refuses, and where it stands."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(location[:-1], model)
        hint = nearest(location[-1], valid)
        return f"unknown key '{key}'{hint}; valid here: {', '.join(valid)}."
    if first["type"] == "missing":
        return f"the key '{key}' is missing."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "value_error" and isinstance(first["input"], (Mapping, BaseModel)):
        return f"{key + ': ' if key else ''}{message}."
    is_other = first["type"] == "string_type" and not isinstance(first["input"], (Mapping, list, type(None)))
    hint = "; what YAML takes for a number, a date, or on and off is text in quotes" if is_other else ""
    return f"{key}: {message[0].lower() + message[1:]}, not {_shorten(first['input'])}{hint}."


def _shorten(value: Any) -> str:
    return _short_text(_BRIEF.repr(value), 60)


def _short_text(text: str, letters: int = 200) -> str:
    return text if len(text) <= letters else f"{text[: letters - 3]}..."


_BRIEF = reprlib.Repr()
"""Shows the beginning of any value, however large or deep."""
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict, _BRIEF.maxstring, _BRIEF.maxother = 3, 20, 20, 100, 100


def _valid_keys(section: list[str], model: type[BaseModel]) -> list[str]:
    for name in section:
        field = model.model_fields.get(name)
        if field is None:  # a key of a mapping, whose values are such a section
            continue
        models = [kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def _kinds(annotation: Any) -> list[type]:
    """Return the classes among an annotation and the parts of a union."""
    parts = [annotation, *typing.get_args(annotation)]
    return [part for part in parts if isinstance(part, type)]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return a hint at the most similar candidates, empty where none is similar."""
    close = difflib.get_close_matches(name, list(candidates), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


# --- looking up and printing -------------------------------------------------------------------------------------


def to_values(experiment: Experiment) -> dict[str, Any]:
    """Return the resolved configuration as plain YAML/JSON values."""
    return experiment.model_dump(mode="json")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into ``{"refine.lr": 8e-06, …}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def to_yaml(experiment: Experiment) -> str:
    """Return the resolved configuration as YAML text."""
    return yaml.safe_dump(to_values(experiment), sort_keys=False, default_flow_style=None, width=120)
