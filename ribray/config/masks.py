"""How maps become masks."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ribray.config.section import (
    Backbone,
    Count,
    Integer,
    NotNegative,
    Positive,
    Precision,
    Section,
    Seed,
    Share,
    given,
    require_range,
    require_shares,
)

BOTH = "both"
"""The source of masks that stands for a method's maps and plain CAMs."""


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
    """Arithmetic of training; auto: bfloat16 on a GPU, float32 on a CPU."""
    workers: Count = 1
    """Workers, which share each batch; several are Ray Train's."""
    seed: Seed = 0
    """Seed of the heads' weights, of the order of images and of augmentation."""

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
