"""How an image is refined, and how its maps are judged."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ribray.config.section import (
    Count,
    Integer,
    NotNegative,
    Pixels,
    Positive,
    Precision,
    Scales,
    Section,
    Seed,
    Share,
    Thresholds,
    require_range,
)


class RefineConfig(Section):
    """RIB refinement of one image (paper section 3)."""

    iterations: Count = 10
    """K, the steps per image."""
    batch_size: Count = 20
    """B: the target image and B-1 extra samples without any of its classes."""
    lr: NotNegative = 8e-6
    """Learning rate of the backbone; polynomial decay with power 0.9 over the K steps."""
    head_lr_factor: Positive = 10.0
    """The head's learning rate over the backbone's."""
    momentum: Share = 1e-4
    """SGD momentum; the reference's value, in effect none."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty of SGD."""
    scales: Scales = (1.0, 0.5, 1.5, 2.0)
    """Scales of the target's views; the first must be 1.0, whose map the explosion test looks at."""
    loss_scales: Scales = (1.0, 1.5, 2.0)
    """The scales whose logits enter the loss."""
    pooling: Literal["gndrp", "gap"] = "gndrp"
    """gndrp: over non-discriminative regions only; gap: plain global average."""
    pooling_threshold: Share = 0.4
    """tau of GNDRP: cells at or above this share of a map's maximum do not count."""
    pooling_first_classes: Annotated[Integer, Field(ge=0)] | None = None
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
    limit: Count | None = None
    """Refine at most so many images; more can follow later in the same run."""
    seed: Seed = 0
    """Seed of the extra samples and their augmentation."""

    @model_validator(mode="after")
    def _fits_together(self) -> "RefineConfig":
        require_range(self.resize_long, "resize_long")
        if self.scales[0] != 1.0:
            raise ValueError("scales must begin with 1.0")
        if len(set(self.scales)) != len(self.scales):
            raise ValueError("scales must differ from each other")
        if unknown := [scale for scale in self.loss_scales if scale not in self.scales]:
            raise ValueError(f"loss_scales {unknown} are not among scales {list(self.scales)}")
        return self


class SeedEvalConfig(Section):
    """mIoU of the initial seed over thresholds."""

    thresholds: Thresholds = tuple(round(0.2 + step / 100, 2) for step in range(30))
    """Background thresholds to try: a list, or {start, stop, step} with stop included."""
    split: str | None = None
    """Split whose images count (those that have a map); default: data.train_split."""
