"""Networks: backbones, the classifier and its weights. Pure torch."""

from collections.abc import Callable

from ribray.errors import UsageError
from ribray.models.backbone import Backbone, resnet
from ribray.models.classifier import Classifier
from ribray.models.small import SmallBackbone


def _small(output_stride: int) -> Backbone:
    if output_stride != SmallBackbone.strides[-1]:
        raise ValueError(f"The small backbone has output stride {SmallBackbone.strides[-1]}, not {output_stride}.")
    return SmallBackbone()


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "resnet18": resnet("resnet18"),
    "resnet34": resnet("resnet34"),
    "resnet50": resnet("resnet50"),
    "resnet101": resnet("resnet101"),
    "small": _small,
}


def build_backbone(name: str, output_stride: int) -> Backbone:
    """Build the backbone called ``name`` with random weights.

    Raises:
        UsageError: there is no such backbone, or it has no such output stride.
    """
    if name not in BACKBONES:
        raise UsageError(f"There is no backbone {name!r}; choose one of {', '.join(BACKBONES)}.")
    try:
        return BACKBONES[name](output_stride)
    except ValueError as error:
        raise UsageError(str(error)) from None


def build_classifier(backbone: str, classes: int, output_stride: int) -> Classifier:
    """Build a classifier of ``classes`` foreground classes with random weights.

    Raises:
        UsageError: there is no such backbone, or it has no such output stride.
    """
    return Classifier(build_backbone(backbone, output_stride), classes)


__all__ = ["BACKBONES", "Backbone", "Classifier", "build_backbone", "build_classifier"]
