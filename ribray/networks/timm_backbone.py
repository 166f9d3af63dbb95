"""Any convolutional network of timm as a backbone (extra ``ribray[timm]``).

It is taken apart into layers that follow one another (`ribray.networks.layered`); timm's ``feature_info`` says where
its stages end.
"""

import difflib
import os
from typing import Any

import torch
from torch import Tensor, nn

from ribray.config import TIMM_PREFIX
from ribray.data.transforms import Normalisation
from ribray.errors import UsageError
from ribray.networks.layered import (
    Layered,
    behind_pooling,
    cannot_run,
    layers_in_a_row,
    not_in_a_row,
    sample_image,
    strides_of,
)

_LEVELS = 5
_STEM_LEVEL = 2  # which ends at stride 8


def import_timm() -> Any:
    """Return the package timm.

    Raises:
        UsageError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import timm
    except ImportError:
        raise UsageError("A backbone of timm needs the package timm: pip install 'ribray[timm]'.") from None
    return timm


def require_name(name: str) -> str:
    """Return timm's own name of ``timm/NAME``.

    Raises:
        UsageError: timm has no such network, or is not installed.
    """
    timm, own = import_timm(), name.removeprefix(TIMM_PREFIX)
    if timm.is_model(own):
        return own
    known = timm.list_models(exclude_filters="")
    close = [f"{TIMM_PREFIX}{each}" for each in difflib.get_close_matches(own, known, n=3, cutoff=0.6)]
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise UsageError(f"timm has no network '{own}'{hint}.")


def timm_normalisation(name: str) -> Normalisation:
    """Return the mean and deviation that ``timm/NAME`` was trained with.

    Raises:
        UsageError: timm has no such network, or is not installed.
    """
    settings = import_timm().get_pretrained_cfg(require_name(name))
    return Normalisation(settings.mean, settings.std)


class TimmBackbone(Layered):
    """A network of timm without its classification layer."""

    def __init__(self, network: Any, name: str) -> None:
        """Take a network apart, which is this backbone's from then on.

        Args:
            network: as ``timm.create_model`` returns it; it loses its classification layer.
            name: what to call it.

        Raises:
            UsageError: it has no maps, a layer behind the pooling, or layers that do not follow one another.
        """
        was_training = network.training
        network.eval()
        with torch.no_grad():
            expected = _features_of(network, name)
            _require_linear_head(network, expected, name)
        layers = layers_in_a_row(network, lambda features: torch.equal(features, expected))
        if layers is None:
            raise not_in_a_row(name)
        ends = _ends(network, layers, name)
        settings = network.pretrained_cfg
        network.reset_classifier(0, "")
        network.train(was_training)
        normalisation = Normalisation(settings["mean"], settings["std"])
        super().__init__(network, layers, ends[_STEM_LEVEL] + 1, name, normalisation, ends)


def create_timm(name: str, output_stride: int) -> nn.Module:
    """Return timm's own network ``timm/NAME`` with random weights.

    Raises:
        UsageError: timm is not installed or has no such network, or not at this output stride.
    """
    own = require_name(name)
    options = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        return import_timm().create_model(own, pretrained=False, **options)
    except (TypeError, NotImplementedError, AssertionError, ValueError, RuntimeError, KeyError):
        if not options:
            raise
        TimmBackbone(import_timm().create_model(own, pretrained=False), name)  # what else is wrong says more
        raise UsageError(f"{name} has no output stride {output_stride} in timm: set output_stride to 32.") from None


def build_timm(name: str, output_stride: int) -> TimmBackbone:
    """Build the backbone ``timm/NAME`` with random weights.

    Raises:
        UsageError: as `create_timm`, or the network is of a kind that has no class activation maps.
    """
    backbone = TimmBackbone(create_timm(name, output_stride), name)
    if backbone.strides[-1] != output_stride:
        raise UsageError(f"{name} has output stride {backbone.strides[-1]}, not {output_stride}.")
    return backbone


# --- taking a network apart --------------------------------------------------------------------------------------


def _features_of(network: Any, name: str) -> Tensor:
    """Return what is pooled, (1, C, h, w), or refuse what is no map."""
    try:
        features = network.forward_features(sample_image())
    except Exception as error:  # noqa: BLE001 - an assertion on the image's size, as of networks of patches
        raise cannot_run(name, error) from None
    if not isinstance(features, Tensor) or features.ndim != 4 or features.shape[1] != network.num_features:
        raise UsageError(
            f"{name} has no maps of features (channels, height, width) before its head, from which a class activation "
            "map could be made: a convolutional network is needed."
        )
    return features


def _require_linear_head(network: Any, features: Tensor, name: str) -> None:
    """Refuse a network whose logits are not a linear layer on the mean of its features."""
    classifier = network.get_classifier()
    pooled = network.forward_head(features, pre_logits=True).flatten(1)
    mean = features.mean((2, 3))
    known = nn.Linear | nn.Conv2d | nn.Identity | nn.Sequential  # which `adopt` looks into
    is_linear = isinstance(classifier, known) and pooled.shape == mean.shape
    if not is_linear or not torch.allclose(pooled, mean, rtol=1e-4, atol=1e-6):
        raise behind_pooling(name)


def _ends(network: Any, names: list[str], name: str) -> list[int]:
    """Return the place of the layer with which each of the five levels ends; the last one is the last layer.

    A network that begins with a stride of 4 has that as its first level, too, as a ResNet's max-pool is one. One whose
    stages have other strides, or end inside a layer, is refused.
    """
    strides = strides_of(network, names)
    stages = [info["module"] for info in network.feature_info if info["reduction"] > 1]
    ends = [*(_end_of(stage, names) for stage in stages[:-1]), len(names) - 1][-_LEVELS:]
    if len(ends) == _LEVELS - 1 and 4 in strides:
        ends.insert(0, strides.index(4))
    found = [strides[end] for end in ends if end is not None]
    if len(found) != _LEVELS or found[1:3] != [4, 8] or found[0] not in (2, 4) or any(stride % 1 for stride in found):
        told = ", ".join(f"{stride:g}" for stride in found) or "none"
        raise UsageError(
            f"{name} has stages of strides {told}, where five of 2 or 4, 4, 8, and then up to 32 are needed."
        )
    return [end for end in ends if end is not None]


def _end_of(stage: str, names: list[str]) -> int | None:
    """Return the place of a stage's last layer; None of a stage that ends inside a layer."""
    places = [place for place, name in enumerate(names) if name == stage or name.startswith(f"{stage}.")]
    return places[-1] if places else None
