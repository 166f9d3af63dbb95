"""Networks: backbones, the classifier and its weights. Pure torch."""

import functools
from collections.abc import Callable

from ribray.config import TIMM_PREFIX
from ribray.data.transforms import IMAGENET, Normalisation
from ribray.demo.network import SmallBackbone
from ribray.errors import UsageError
from ribray.networks.backbone import Backbone, ResNet
from ribray.networks.classifier import Classifier
from ribray.networks.residual import ARCHITECTURES
from ribray.networks.timm_backbone import build_timm, timm_normalisation

BACKBONES: dict[str, Callable[[int], Backbone]] = {
    **{name: functools.partial(ResNet, name) for name in ARCHITECTURES},
    "small": SmallBackbone,
}


def build_backbone(name: str, output_stride: int) -> Backbone:
    """Build the backbone called ``name``, or ``timm/NAME``, with random weights.

    Raises:
        UsageError: there is no such backbone, it is of a kind that has no class activation maps, or it has no such
            output stride.
    """
    if name.startswith(TIMM_PREFIX):
        return build_timm(name, output_stride)
    if name not in BACKBONES:
        raise UsageError(f"There is no backbone {name!r}; choose one of {', '.join(BACKBONES)}, or {TIMM_PREFIX}NAME.")
    try:
        return BACKBONES[name](output_stride)
    except ValueError as error:
        raise UsageError(str(error)) from None


def normalisation_of(name: str) -> Normalisation:
    """Return the normalisation of the pixels that the backbone called ``name`` was trained on.

    Raises:
        UsageError: timm is needed and not installed, or has no such network.
    """
    return timm_normalisation(name) if name.startswith(TIMM_PREFIX) else IMAGENET


def build_classifier(backbone: str, classes: int, output_stride: int) -> Classifier:
    """Build a classifier of ``classes`` foreground classes with random weights.

    Raises:
        UsageError: there is no such backbone, or it has no such output stride.
    """
    return Classifier(build_backbone(backbone, output_stride), classes)


__all__ = ["BACKBONES", "Backbone", "Classifier", "build_backbone", "build_classifier", "normalisation_of"]
