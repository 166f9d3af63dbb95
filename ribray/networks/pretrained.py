"""A network by its name, with its head: timm's or torchvision's, as it was trained on ImageNet or as a file has it."""

import contextlib
from collections.abc import Callable
from pathlib import Path

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
    pretrained_network,
    read_state,
    torchvision_file,
)

STRIDES = (16, 32)
"""Output strides in the order in which they are tried: the finer map, and what every network has."""


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
    is_timm = name.startswith(TIMM_PREFIX)
    build = _timm_builder(name) if is_timm else _torchvision_builder(name)
    if weights == NONE:
        with drawn_with(0):
            return build(None).eval(), "drawn at random: its maps mean nothing"
    if weights != IMAGENET:
        return _with_file(build, storage.path(weights)).eval(), str(weights)
    if is_timm:
        network, place = pretrained_network(name, _stride_of(name), key)
        return network.eval(), f"ImageNet's, from {place}"
    network, location = build(None), torchvision_file(name, key)
    load_network(network, location)
    return network.eval(), f"ImageNet's, from torchvision ({location})"


Builder = Callable[[int | None], nn.Module]
"""From a number of classes (None: ImageNet's) to a network with random weights."""


def _timm_builder(name: str) -> Builder:
    require_name(name)

    def build(classes: int | None) -> nn.Module:
        network = create_timm(name, _stride_of(name))
        if classes is not None:
            network.reset_classifier(classes)  # type: ignore[operator]
        return network

    return build


def _stride_of(name: str) -> int:
    """Return the first of `STRIDES` that a network of timm has."""
    for stride in STRIDES[:-1]:
        with contextlib.suppress(UsageError):
            create_timm(name, stride)
            return stride
    return STRIDES[-1]


def _torchvision_builder(name: str) -> Builder:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UsageError(
            f"There is no network '{name}'{nearest(name, known)}: give timm/NAME, the name of one of torchvision's, or "
            "the directory of a run."
        )

    def build(classes: int | None) -> nn.Module:
        options = {} if classes is None else {"num_classes": classes}
        with contextlib.suppress(TypeError, ValueError, NotImplementedError):  # only ResNets of bottlenecks have it
            return torchvision.models.get_model(
                name, weights=None, replace_stride_with_dilation=[False, False, True], **options
            )
        return torchvision.models.get_model(name, weights=None, **options)

    return build


def _with_file(build: Builder, location: Path) -> nn.Module:
    """Return a network with the weights of a file, and as many classes as they have.

    Raises:
        UsageError: the file cannot be read, or belongs to another network.
    """
    state = read_state(location)
    network = build(None)
    heads = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if heads:
        name, head = heads[-1]
        weight = state.get(f"{name}.weight")
        if weight is not None and weight.ndim == 2 and len(weight) != head.out_features:
            network = build(len(weight))
    load_network(network, location)
    return network
