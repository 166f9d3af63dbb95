"""Batch norm folded into the convolutions before it, in any network, and their gradients as a CPU computes them fast.

Batch norm that never leaves its running statistics is, with the convolution before it, one convolution: weight
γ/σ · W and bias β + γ/σ · (b − mean) per output channel. Autograd sees both as functions of W, γ and β.

Which batch norm stands behind which convolution is seen by running the network once on a small image; what the folded
network gives there must be what the network gave.

Shapes: N images, c channels, h w cells, k side of a kernel.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ribray.networks.classifier import Classifier
from ribray.networks.layered import sample_image

_CLAMPS = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}
"""Activations that are computed in place, so that only their output is kept."""

_COLUMNS = 3
"""Of a depthwise kernel: as many as oneDNN's fast gradient takes."""

_SAME = 1e-3
"""Of the largest value: how far the maps of the folded network may be off on the small image."""


def fold_norms(classifier: Classifier) -> Classifier:
    """Return a classifier with the same parameters whose batch norms are part of its convolutions where they can be.

    Args:
        classifier: in evaluation mode; stays as it is.
    """
    tensors = [*classifier.parameters(), *classifier.buffers()]
    folded = copy.deepcopy(classifier, {id(tensor): tensor for tensor in tensors})
    image = sample_image().to(classifier.head.weight)
    with torch.no_grad():
        expected = classifier.cams(classifier.stem(image))
        for norm, conv in _pairs(folded, image).items():
            layer: Any = folded.get_submodule(norm)
            act = getattr(layer, "act", nn.Identity())  # timm's batch norm has its activation within
            bounds = _CLAMPS.get(type(act))
            convolution: Any = folded.get_submodule(conv)
            folded.set_submodule(conv, _ConvNorm(convolution, layer, bounds))
            folded.set_submodule(norm, nn.Identity() if bounds else act)
        found = folded.cams(folded.stem(image))
    tolerance = _SAME * float(expected.abs().max())
    return folded if torch.allclose(found, expected, rtol=0.0, atol=tolerance) else classifier


def _pairs(classifier: Classifier, image: Tensor) -> dict[str, str]:
    """Return the name of the convolution in front of each batch norm."""
    convolution_of: dict[int, str] = {}
    found: dict[str, str] = {}
    outputs = []  # kept, so that no two have one id

    def behind(name: str, output: Tensor) -> None:
        outputs.append(output)
        convolution_of[id(output)] = name

    def before(name: str, x: Tensor) -> None:
        if id(x) in convolution_of:
            found[name] = convolution_of.pop(id(x))

    hooks = []
    for name, module in classifier.named_modules():
        if type(module) is nn.Conv2d and not isinstance(module.padding, str) and module.padding_mode == "zeros":
            hooks.append(module.register_forward_hook(lambda _, inputs, output, name=name: behind(name, output)))
        elif isinstance(module, nn.BatchNorm2d) and module.affine and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: before(name, inputs[0])))
    try:
        classifier.cams(classifier.stem(image))
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _ConvNorm(nn.Module):
    """A convolution and the batch norm behind it as one convolution; what does not learn is folded once."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, bounds: tuple[float, float] | None) -> None:
        super().__init__()
        self.conv, self.norm, self.bounds = conv, norm, bounds
        learns = any(parameter.requires_grad for parameter in self.parameters())
        self._fixed = None if learns else self._fold()

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._fixed or self._fold()
        if torch.is_autocast_enabled(x.device.type):
            x, weight, bias = (each.to(torch.get_autocast_dtype(x.device.type)) for each in (x, weight, bias))
        return _Convolution.apply(x, weight, bias, self.conv, self.bounds)

    def _fold(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one convolution."""
        conv, norm = self.conv, self.norm
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        scale = norm.weight * (variance + norm.eps).rsqrt()  # (c,)
        bias = norm.bias + scale * (-mean if conv.bias is None else conv.bias - mean)
        return conv.weight * scale[:, None, None, None], bias


class _Convolution(torch.autograd.Function):
    """A convolution whose gradients are computed in the way that is fastest on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, bounds: tuple[float, float] | None
    ) -> Tensor:
        out = functional.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        if bounds:
            out.clamp_(*bounds)
        ctx.save_for_backward(x, weight, out if bounds else None)
        ctx.conv, ctx.bounds = conv, bounds
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, out = ctx.saved_tensors
        conv, (wants_x, wants_weight, wants_bias, *_) = ctx.conv, ctx.needs_input_grad
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if out is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, out, *ctx.bounds)
        of_bias = gradient.sum((0, 2, 3)) if wants_bias else None  # in oneDNN's it takes many times as long
        geometry = [conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups]
        of_x = of_weight = None
        if _is_depthwise(conv):
            if wants_x:  # a convolution with the kernel turned around
                of_x = functional.conv2d(gradient, weight.flip(2, 3), None, 1, conv.padding, conv.dilation, conv.groups)
            if wants_weight:
                of_weight = depthwise_weight_gradient(x, gradient, weight, conv.dilation[0])
        elif conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1:
            of_x = functional.conv2d(gradient, weight.transpose(0, 1)) if wants_x else None
            if wants_weight:
                rows, seen = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (gradient, x))  # (N·h·w, channels)
                of_weight = (rows.t() @ seen)[:, :, None, None]
        elif wants_x or wants_weight:
            wanted = [wants_x, wants_weight, False]
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, wanted)
        return of_x, of_weight, of_bias, None, None


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether every channel is convolved on its own, with a square kernel, to a map of the same size."""
    side, dilation = conv.kernel_size[0], conv.dilation[0]
    reach = dilation * (side - 1) // 2
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.stride == (1, 1)
        and (conv.kernel_size, conv.dilation) == ((side, side), (dilation, dilation))
        and side % 2 == 1
        and conv.padding == (reach, reach)
    )


def depthwise_weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Return the gradient (c, 1, k, k) of a depthwise kernel.

    oneDNN is fast where a kernel is at most three columns wide and not dilated. So the columns are taken in parts, each
    on an input that is moved aside, and of a dilated kernel each of the grids that do not touch one another is an image
    of its own.
    """
    x, gradient = _grids(x, dilation), _grids(gradient, dilation)
    side = weight.shape[2]
    reach = side // 2

    def of(kernel: Tensor, x: Tensor, reach_x: int) -> Tensor:
        geometry = [[1, 1], [reach, reach_x], [1, 1], False, [0, 0], len(weight)]
        return torch.ops.aten.convolution_backward(gradient, x, kernel, None, *geometry, [False, True, False])[1]

    if side <= _COLUMNS or x.shape[3] < side:
        return of(weight, x, reach)
    parts = [weight[..., first : first + _COLUMNS] for first in range(0, side, _COLUMNS)]
    firsts = range(-reach, reach + 1, _COLUMNS)
    ends = [first + part.shape[3] - 1 for first, part in zip(firsts, parts, strict=True)]
    moved = [functional.pad(x, (-first, end)) for first, end in zip(firsts, ends, strict=True)]
    return torch.cat([of(part, each, 0) for part, each in zip(parts, moved, strict=True)], 3)


def _grids(maps: Tensor, step: int) -> Tensor:
    """Return every step-th cell of ``maps`` (N, c, h, w), from each of the step² first ones on, as an image."""
    if step == 1:
        return maps
    height, width = maps.shape[2:]
    maps = functional.pad(maps, (0, -width % step, 0, -height % step))
    cells = maps.permute(0, 2, 3, 1).unflatten(2, (-1, step)).unflatten(1, (-1, step))  # (N, h/s, s, w/s, s, c)
    return cells.permute(2, 4, 0, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
