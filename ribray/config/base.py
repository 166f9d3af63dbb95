"""What all sections of a configuration are made of: their base class, their types, and checks that several share."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ribray.config.sentences import nearest

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2", "small")
TIMM_PREFIX = "timm/"
"""Before the name of a network of timm."""
MOST_THRESHOLDS = 10_000


class Section(BaseModel):
    """Typed keys with defaults; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _number_if_one(value: Any) -> Any:
    """YAML 1.1 reads ``3e4`` as text; pydantic takes text for a fraction, but for an integer only without exponent."""
    try:
        return float(value) if isinstance(value, str) and "e" in value.lower() else value
    except ValueError:
        return value


def _known_backbone(name: str) -> str:
    if name not in BACKBONES and not name.startswith(TIMM_PREFIX):
        raise ValueError(
            f"a backbone is one of {', '.join(BACKBONES)}, or {TIMM_PREFIX}NAME for a convolutional network of timm"
            f"{nearest(name, BACKBONES)}"
        )
    return name


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


Integer = Annotated[int, BeforeValidator(_number_if_one)]
Count = Annotated[Integer, Field(ge=1)]
Seed = Annotated[Integer, Field(ge=0)]
Pixels = Annotated[Integer, Field(ge=8)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Scales = Annotated[tuple[Positive, ...], Field(min_length=1)]
Thresholds = Annotated[
    tuple[Share, ...], Field(min_length=1), AfterValidator(_increasing), BeforeValidator(_expand_range)
]
Precision = Literal["float32", "bfloat16", "auto"]
OutputStride = Literal[8, 16, 32]
Backbone = Annotated[str, AfterValidator(_known_backbone)]


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def require_range(bounds: tuple[float, float] | None, key: str) -> None:
    if bounds is not None and bounds[0] > bounds[1]:
        raise ValueError(f"{key} must be [smallest, largest], not {list(bounds)}")


def require_shares(section: str, batch_size: int, workers: int) -> None:
    if batch_size % workers:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {workers} workers: "
            f"set {section}.batch_size to a multiple of {section}.workers"
        )


def require_backbone(section: str, backbone: str, output_stride: int, weights: str) -> None:
    if backbone == "small" and output_stride != 8:
        raise ValueError("the small backbone has output_stride 8 only")
    if weights == "synthetic" and backbone != "small":
        raise ValueError("weights: synthetic belong to backbone: small")
    if weights == "imagenet" and backbone == "small":
        raise ValueError(f"the small backbone has no ImageNet weights: set {section}.weights to synthetic or none")
