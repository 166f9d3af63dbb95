"""A network by its name, with its head: timm's or torchvision's, as it was trained on ImageNet or as a file has it."""

import functools
from pathlib import Path
from typing import Any

from torch import nn

from ribray import storage
from ribray.config import TIMM_PREFIX
from ribray.data.dataset import nearest
from ribray.errors import UsageError
from ribray.networks.timm_backbone import create_timm, require_name
from ribray.networks.weights import (
    IMAGENET,
    NONE,
    drawn_with,
    load_network,
    load_pretrained,
    read_state,
    torchvision_file,
)

FINE_STRIDE, STRIDE = 16, 32
"""Output strides: that of the finer map, which is tried first, and what every network has."""


def open_network(name: str, weights: str, key: str) -> tuple[nn.Module, str]:
    """Return a network in evaluation mode, and a phrase that says where its weights are from.

    Args:
        name: ``timm/NAME``, or the name of a network of torchvision's. It gets an output stride of 16 where it can.
        weights: "imagenet", "none" (random ones), or the path of a state dict with the network's own names, whose head
            may have another number of classes.
        key: what to call ``weights`` in messages.

    Raises:
        UsageError: there is no such network, or its weights cannot be had or are another network's.
    """
    _require_known(name)
    if weights == NONE:
        with drawn_with(0):
            return _build(name).eval(), "drawn at random: its maps mean nothing"
    if weights != IMAGENET:
        return _with_file(name, storage.path(weights)).eval(), str(weights)
    network = _build(name)
    if name.startswith(TIMM_PREFIX):
        return network.eval(), f"ImageNet's, from {load_pretrained(network, name, key)}"
    location = torchvision_file(name, key)
    load_network(network, location)
    return network.eval(), f"ImageNet's, from torchvision ({location})"


def _require_known(name: str) -> None:
    if name.startswith(TIMM_PREFIX):
        require_name(name)
        return
    import torchvision  # two seconds

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UsageError(
            f"There is no network '{name}'{nearest(name, known)}: give timm/NAME, the name of one of torchvision's, or "
            "the directory of a run."
        )


def _build(name: str, classes: int | None = None) -> Any:
    """Return a network with random weights and a number of classes (None: ImageNet's)."""
    if name.startswith(TIMM_PREFIX):
        try:
            network: Any = create_timm(name, FINE_STRIDE)
        except UsageError:
            network = create_timm(name, STRIDE)
        if classes is not None:
            network.reset_classifier(classes)
        return network
    import torchvision

    options = {} if classes is None else {"num_classes": classes}
    build = functools.partial(torchvision.models.get_model, name, weights=None, **options)
    try:
        return build(replace_stride_with_dilation=[False, False, True])
    except (TypeError, ValueError, NotImplementedError):  # only ResNets of bottlenecks have it
        return build()


def _with_file(name: str, location: Path) -> Any:
    """Return a network with the weights of a file, and as many classes as they have."""
    state = read_state(location)
    network = _build(name)
    heads = [(each, module) for each, module in network.named_modules() if isinstance(module, nn.Linear)]
    if heads:
        weight, head = state.get(f"{heads[-1][0]}.weight"), heads[-1][1]
        if weight is not None and weight.ndim == 2 and len(weight) != head.out_features:
            network = _build(name, len(weight))
    load_network(network, location)
    return network
