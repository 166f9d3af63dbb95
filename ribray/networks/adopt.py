"""From anybody's trained network to the classifier that methods work on: where its features, head and stem are.

The network is copied, never changed. Networks of timm and torchvision are known; of any other one the head is its last
linear layer, unless features and head are named.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ribray.data.transforms import IMAGENET, Normalisation
from ribray.errors import UsageError
from ribray.networks.backbone import Backbone, ResNet
from ribray.networks.classifier import Classifier
from ribray.networks.layered import (
    Layered,
    behind_pooling,
    cannot_run,
    layers_in_a_row,
    not_in_a_row,
    sample_image,
    strides_of,
)
from ribray.networks.timm_backbone import TimmBackbone

STEM_STRIDE = 8
"""Pixels per cell at which the stem of a network ends, unless it is said otherwise."""

Part = nn.Module | str
"""A module of the network, or its dotted name."""


def adopt(
    model: nn.Module,
    *,
    features: Part | None = None,
    head: Part | None = None,
    frozen: Sequence[str] | None = None,
    normalisation: Normalisation | None = None,
) -> Classifier:
    """Return a classifier with copies of a network's weights.

    The bias of its head is left out: it has no place in a class activation map. Where the network is known to have
    been trained with a softmax, whose logits are known up to a common number only, the head is centred: the mean over
    classes is taken off.

    Args:
        model: maps images (N, 3, H, W) to logits (N, C): a linear head on globally averaged features.
        features: what gives the features (N, F, h, w); default: the layers before the head.
        head: the linear layer, or 1×1 convolution, behind the average.
        frozen: dotted names of modules that do not learn; default: what comes before the features of stride 8 are left.
        normalisation: of the pixels that it was trained on; default: timm's own, else ImageNet's.

    Raises:
        UsageError: the network is not built so, is not in float32, or has batch norm in training mode.
    """
    if isinstance(model, Classifier):
        return copy.deepcopy(model)
    model = _unwrapped(model)
    name = type(model).__name__
    _require_ready(model, name)
    network = _copied(model, name)
    linear = _head_of(network, model, head)
    weight, bias = _head_weight(linear, name).clone(), linear.bias
    logits = _logits(network, name)
    if features is None and head is None and frozen is None:
        backbone = _known(network, name) or _row(network, None, linear, None, name)
    else:
        layers = None if features is None else [_name_of(network, model, features, "features")]
        backbone = _row(network, layers, linear, frozen, name)
    if normalisation is not None:
        backbone.normalisation = normalisation
    if weight.shape[1] != backbone.channels[-1]:
        raise behind_pooling(name)
    classifier = Classifier(backbone, len(weight)).eval()
    with torch.no_grad():
        classifier.head.weight.copy_(weight)
        found = classifier(sample_image()) + (0 if bias is None else bias)
        if not _agree(found, logits):
            raise UsageError(
                f"{name} gives other logits than its head on the average of its features: its layers were changed, or "
                "have hooks, in a way that a class activation map does not show."
            )
        if is_softmax(model):
            classifier.head.weight.sub_(weight.mean(0))
    return classifier


def _known(network: Any, name: str) -> Backbone | None:
    """Return the backbone of a network of timm, or of torchvision's ResNets; None of any other."""
    origin = type(network).__module__
    if origin.startswith("timm."):
        return TimmBackbone(network, name)
    if origin == "torchvision.models.resnet":
        strides = strides_of(network, ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"))
        return ResNet(name, int(strides[-1]), network)
    return None


def _row(
    network: nn.Module, layers: list[str] | None, head: nn.Module, frozen: Sequence[str] | None, name: str
) -> Layered:
    """Return a network as the row of its layers, those that were named or those before its head."""
    vector, is_average = _seen_by(network, head, name)
    if layers is None:
        layers = layers_in_a_row(network, lambda features: _is_averaged(features, vector))
        if layers is None:
            raise not_in_a_row(name) if is_average else behind_pooling(name)
    stem_layers, layers = _stem_of(network, layers, frozen, name)
    backbone = Layered(network, layers, stem_layers, name, _normalisation_of(network))
    with torch.no_grad():
        features = backbone.trunk(backbone.stem(sample_image()))
    if not _is_averaged(features, vector):
        raise UsageError(
            f"The head of {name} does not see the average of these features, of shape {tuple(features.shape)}: a "
            "network is needed whose head is one linear layer on globally averaged features."
        )
    # What the features do not need, such as the head itself, must not be decayed.
    needed = {id(each) for module in backbone.layers() for each in module.parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in needed)
    return backbone


def is_softmax(model: nn.Module) -> bool:
    """Whether a network's classes are known to be ImageNet's, of which an image has one."""
    return class_names(model) is not None


def class_names(model: nn.Module) -> list[str] | None:
    """Return the names of a network's classes, where it is one of timm's or torchvision's for ImageNet."""
    origin = type(model).__module__.partition(".")[0]
    if origin == "timm" and getattr(model, "num_classes", None) == IMAGENET_CLASSES:
        from timm.data import ImageNetInfo

        names = ImageNetInfo()
        return [names.index_to_description(index) for index in range(IMAGENET_CLASSES)]
    last = _last_linear(model)
    if origin == "torchvision" and last is not None and last.out_features == IMAGENET_CLASSES:
        import torchvision

        return list(torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"])
    return None


def trained_side(model: nn.Module) -> int | None:
    """Return the side in pixels of the images that a network of timm's or torchvision's for ImageNet was trained on."""
    if class_names(model) is None:
        return None
    settings = getattr(model, "pretrained_cfg", None)
    return int(settings["input_size"][-1]) if isinstance(settings, dict) else _TORCHVISION_SIDE


IMAGENET_CLASSES = 1000
_TORCHVISION_SIDE = 224
_AGREEMENT = 1e-3  # relative


def _classifying(model: Any) -> nn.Module:
    """Return the part of a network that its head is in, where that is known: else all of it."""
    origin = type(model).__module__
    if origin.startswith("timm."):
        return model.get_classifier()
    return model.fc if origin == "torchvision.models.resnet" else model


def _last_linear(model: nn.Module) -> nn.Linear | None:
    layers = reversed(list(_classifying(model).modules()))
    return next((module for module in layers if isinstance(module, nn.Linear)), None)


def _normalisation_of(model: Any) -> Normalisation:
    settings = getattr(model, "pretrained_cfg", None)
    if type(model).__module__.startswith("timm.") and isinstance(settings, dict):
        return Normalisation(settings["mean"], settings["std"])
    return IMAGENET


def _unwrapped(model: Any) -> Any:
    """Return the network itself of one that is compiled, or spread over devices."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)


def _copied(model: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(model).cpu().float().requires_grad_(True)
    except RuntimeError:  # torch's reason is about tensors and autograd
        raise UsageError(
            f"{name} has weights that are computed from others: remove what computes them first, for instance by "
            "torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove."
        ) from None


def _logits(network: nn.Module, name: str) -> Tensor:
    try:
        with torch.no_grad():
            logits = network(sample_image())
    except Exception as error:  # noqa: BLE001 - an assertion on the image's size, as of networks of patches
        raise cannot_run(name, error) from None
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 4):
        raise UsageError(f"{name} is no classifier whose head gives logits (images, classes) from a vector per image.")
    return logits.flatten(1)


def _require_ready(model: nn.Module, name: str) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(f"{name} is scripted or traced: hand over the network that it was made of.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError(f"{name} has weights without values, on the device meta: load them first.")
    kinds = {parameter.dtype for parameter in model.parameters()}
    if kinds - {torch.float32, torch.float64}:
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise UsageError(f"{name} has {found} weights: hand over model.float(); precision is a setting of its own.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()):
        raise UsageError(
            f"{name} has batch norm in training mode, which would change what it gives: call model.eval()."
        )


# --- where things are --------------------------------------------------------------------------------------------


def _name_of(network: nn.Module, model: nn.Module, part: Part, argument: str) -> str:
    """Return the dotted name of a module of the network, of which ``network`` is a copy."""
    if isinstance(part, str):
        try:
            network.get_submodule(part)
        except AttributeError:
            names = ", ".join(name for name, _ in network.named_children())
            raise UsageError(f"{argument}='{part}' is no module of {type(model).__name__}; it has {names}.") from None
        return part
    for name, module in model.named_modules():
        if module is part:
            return name
    raise UsageError(f"{argument} is no module of {type(model).__name__}.")


def _head_of(network: nn.Module, model: nn.Module, head: Part | None) -> nn.Module:
    """Return the head in the copy: what was named, or the last linear layer."""
    if head is not None:
        return network.get_submodule(_name_of(network, model, head, "head"))
    if isinstance(own := _classifying(network), nn.Conv2d):
        return own
    if (last := _last_linear(network)) is None:
        raise UsageError(
            f"{type(model).__name__} has no linear layer: name the 1×1 convolution that classifies by head=."
        )
    return last


def _head_weight(head: nn.Module, name: str) -> Tensor:
    """Return the weight in the shape of a 1×1 convolution (C, F, 1, 1)."""
    if isinstance(head, nn.Linear):
        return head.weight.detach()[:, :, None, None]
    if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) and head.groups == 1:
        return head.weight.detach()
    raise UsageError(f"The head of {name} is a {type(head).__name__}: it must be a linear layer or a 1×1 convolution.")


def _seen_by(network: nn.Module, head: nn.Module, name: str) -> tuple[Tensor, bool]:
    """Return what the head is given for the sample image, and whether some module puts out maps of that average.

    What it is given is (1, F), averaged over the cells of maps.
    """
    given: list[Tensor] = []
    averages: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module is head:
            given.append(inputs[0])
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            averages.append(output.mean((2, 3)))

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        logits = _logits(network, name)
    finally:
        for hook in hooks:
            hook.remove()
    if not given or given[-1].ndim not in (2, 4):
        raise UsageError(f"{name} is no classifier whose head gives logits (images, classes) from a vector per image.")
    is_map = given[-1].ndim == 4
    with torch.no_grad():
        expected = head(given[-1]).mean((2, 3)) if is_map else head(given[-1])
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-3, atol=1e-6):
        raise UsageError(f"{name} gives other logits than its head does: no layer may follow the head.")
    vector = given[-1].mean((2, 3)) if is_map else given[-1]
    return vector, any(_agree(average, vector) for average in averages)


def _is_averaged(features: Tensor, vector: Tensor) -> bool:
    """Whether these are maps, not averaged yet, whose average is this vector (1, F)."""
    return features.ndim == 4 and min(features.shape[2:]) > 1 and _agree(features.mean((2, 3)), vector)


def _agree(found: Tensor, vector: Tensor) -> bool:
    """Whether this is the vector (1, F)."""
    return found.shape == vector.shape and bool((found - vector).norm() <= _AGREEMENT * vector.norm())


def _stem_of(network: nn.Module, layers: list[str], frozen: Sequence[str] | None, name: str) -> tuple[int, list[str]]:
    """Return how many layers are the stem, and the layers: those of a container one by one where that divides it."""
    layers = [each for layer in layers for each in _spread(network, layer)]
    if frozen is None:
        strides = [int(stride) for stride in strides_of(network, layers)]
        most = STEM_STRIDE if strides[-1] > STEM_STRIDE else strides[-1] - 1  # something has to learn
        return next((place for place, stride in enumerate(strides) if stride > most), len(layers)), layers
    for each in frozen:
        _name_of(network, network, each, "frozen")
    held = [place for place, layer in enumerate(layers) if any(f"{layer}.".startswith(f"{each}.") for each in frozen)]
    if held != list(range(len(held))) or (frozen and not held):
        raise UsageError(f"frozen={list(frozen)} must be the first layers of {name}: {', '.join(layers)}.")
    return len(held), layers


def _spread(network: nn.Module, layer: str) -> list[str]:
    module = network.get_submodule(layer)
    if type(module) is nn.Sequential:
        return [f"{layer}.{each}" if layer else each for each, _ in module.named_children()]
    return [layer]
