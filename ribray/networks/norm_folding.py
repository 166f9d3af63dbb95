"""Batch norm folded into the convolutions before it, in any network, and their gradients, on a CPU computed fast.

Batch norm that never leaves its running statistics is, with the convolution before it, one convolution: weight
γ/σ · W and bias β + γ/σ · (b − mean) per output channel. Autograd sees both as functions of W, γ and β.

Which batch norm stands behind which convolution is seen by running the network once on a small image; what the folded
network gives there must be what the network gave.

Shapes: N images, c channels, h w cells, k side of a kernel.
"""

import contextlib
import copy
import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ribray.networks.classifier import Classifier
from ribray.networks.folded import fused_convolution, has_fused_convolution
from ribray.networks.layered import sample_image

_CLAMPS = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}
"""Activations that are computed in place, so that only their output is kept."""

_COLUMNS = 3
"""Of a depthwise kernel: as many as oneDNN's fast gradient takes."""

_TAME = 1e6
"""Of a weight: with none above it, no sum of products in front of a clamp comes near infinity."""

_IS_OF = "_is_gradient_of"
"""Attribute of a gradient: the address of the tensor whose whole gradient it is."""

SAME = 1e-3
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
        refresh(folded)
        found = folded.cams(folded.stem(image))
    tolerance = SAME * float(expected.abs().max())
    return folded if torch.allclose(found, expected, rtol=0.0, atol=tolerance) else classifier


def _pairs(classifier: Classifier, image: Tensor) -> dict[str, str]:
    """Return the name of the convolution in front of each batch norm."""
    convolution_of: dict[int, str] = {}
    found: dict[str, str] = {}
    outputs = []  # kept, so that no two have one id

    def behind(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)
        convolution_of[id(output)] = name

    def before(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in convolution_of:
            found[name] = convolution_of.pop(id(inputs[0]))

    with contextlib.ExitStack() as hooks:
        for name, module in classifier.named_modules():
            if _can_fold(module, image.device.type == "cpu"):
                hooks.enter_context(module.register_forward_hook(functools.partial(behind, name)))
            elif isinstance(module, nn.BatchNorm2d) and module.affine and module.running_mean is not None:
                hooks.enter_context(module.register_forward_pre_hook(functools.partial(before, name)))
        classifier.cams(classifier.stem(image))
    return found


def _can_fold(module: nn.Module, is_on_cpu: bool) -> bool:
    """Whether it is a convolution that `_ConvNorm` can do: torch's, or on a CPU timm's "same" one with a stride.

    That one becomes a kernel with an even number of columns; an H100 did not get through nine images in 50 s with it.
    """
    if type(module) is nn.Conv2d:
        return not isinstance(module.padding, str) and module.padding_mode == "zeros"
    return is_on_cpu and _is_same(module) and module.dilation == (1, 1)


def _is_same(module: nn.Module) -> bool:
    """Whether it is a convolution of timm that pads as TensorFlow does: one more behind than in front."""
    timm = sys.modules.get("timm.layers")
    return timm is not None and type(module) is timm.Conv2dSame


def refresh(folded: Classifier) -> None:
    """Fold the parameters of what `fold_norms` returned as they are now."""
    layers = [layer for layer in folded.modules() if isinstance(layer, _ConvNorm)]
    for layer in layers:
        layer.refresh()
    if folded.head.weight.device.type != "cpu":  # where nothing is fused, and nobody waits for a number
        return
    weights = [*folded.parameters(), *(each for layer in layers for each in layer.folded)]
    is_tame = bool(nn.utils.get_total_norm([each.detach() for each in weights], math.inf) <= _TAME)
    for layer in layers:
        layer.may_fuse = is_tame and layer.bounds is not None and math.isfinite(layer.bounds[1])


def give_gradients(folded: Classifier) -> None:
    """Set the gradients of the parameters from all backward passes through what `fold_norms` returned."""
    for layer in folded.modules():
        if isinstance(layer, _ConvNorm):
            layer.give_gradients()


class _ConvNorm(nn.Module):
    """A convolution and the batch norm behind it as one convolution, whose weight and bias are leaves of autograd."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, bounds: tuple[float, float] | None) -> None:
        super().__init__()
        self.conv, self.norm, self.bounds = conv, norm, bounds
        self.may_fuse = False  # convolution and clamp: nothing before the clamp can be infinite or NaN
        # These and their gradients stay where they are in memory, as `ribray.networks.recording` needs it.
        self.folded = [each.detach().clone().requires_grad_(each.requires_grad) for each in self._fold()]
        self.learning = [leaf for leaf in self.folded if leaf.requires_grad]
        for leaf in self.learning:
            leaf.grad = torch.zeros_like(leaf)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the parameters as they are now and forget gradients."""
        for leaf, value in zip(self.folded, self._fold(), strict=True):
            leaf.copy_(value)
        for gradient in self._gradients():
            gradient.zero_()

    def give_gradients(self) -> None:
        """Turn the gradients of weight and bias into those of the parameters."""
        if self.learning:
            torch.autograd.backward([own for own in self._fold() if own.requires_grad], [*self._gradients()])

    def _gradients(self) -> Iterator[Tensor]:
        for leaf in self.learning:
            assert leaf.grad is not None
            yield leaf.grad

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.folded
        padding = self.conv.padding
        if _is_same(self.conv):
            weight, padding = self._same(weight, x)
        if torch.is_autocast_enabled(x.device.type):
            x, weight, bias = (each.to(torch.get_autocast_dtype(x.device.type)) for each in (x, weight, bias))
        return _Convolution.apply(x, weight, bias, self, padding)

    def _same(self, weight: Tensor, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return a kernel and a padding, as wide in front as behind, that do what the "same" convolution does to ``x``.

        Where it pads one cell more behind, the kernel gets a zero in front: cheaper than a padded copy of ``x``.
        """
        sides = zip(x.shape[2:], self.conv.kernel_size, self.conv.stride, strict=True)
        padding = [max((math.ceil(size / stride) - 1) * stride + side - size, 0) for size, side, stride in sides]
        high, wide = (total % 2 for total in padding)
        return functional.pad(weight, (wide, 0, high, 0)), (math.ceil(padding[0] / 2), math.ceil(padding[1] / 2))

    @torch.enable_grad()
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
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: _ConvNorm, padding: tuple[int, int]
    ) -> Tensor:
        conv, bounds = layer.conv, layer.bounds
        if layer.may_fuse and x.dtype == torch.float32 and has_fused_convolution(x.device, x.dtype):
            geometry = [*padding], [*conv.stride], [*conv.dilation]
            out = fused_convolution(x, weight, bias, geometry, groups=conv.groups, bounds=bounds)
        else:
            out = functional.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
            if bounds:
                out.clamp_(*bounds)
        ctx.save_for_backward(x, weight, out if bounds else None)
        ctx.conv, ctx.padding, ctx.bounds = conv, padding, bounds
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, out = ctx.saved_tensors
        conv, (wants_x, wants_weight, wants_bias, *_) = ctx.conv, ctx.needs_input_grad
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if out is not None:
            if getattr(gradient, _IS_OF, None) == out.data_ptr():  # made below, for this layer alone: used again
                torch.ops.aten.hardtanh_backward.grad_input(gradient, out, *ctx.bounds, grad_input=gradient)
            else:
                gradient = torch.ops.aten.hardtanh_backward(gradient, out, *ctx.bounds)
        rows = _rows(gradient)
        of_bias = (rows.new_ones(1, len(rows)) @ rows)[0] if wants_bias else None  # faster than a sum, or oneDNN's
        geometry = [conv.stride, ctx.padding, conv.dilation, False, [0, 0], conv.groups]
        of_x = of_weight = None
        if _is_depthwise(conv) and x.device.type == "cpu":
            if wants_x:  # a convolution with the kernel turned around
                of_x = functional.conv2d(gradient, weight.flip(2, 3), None, 1, conv.padding, conv.dilation, conv.groups)
            if wants_weight:
                of_weight = depthwise_weight_gradient(x, gradient, weight, conv.dilation[0])
        elif conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1:
            of_x = functional.conv2d(gradient, weight.transpose(0, 1)) if wants_x else None
            if wants_weight:
                of_weight = _product(rows, _rows(x))[:, :, None, None]
        elif wants_x or wants_weight:
            wanted = [wants_x, wants_weight, False]
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, wanted)
        if of_x is not None:
            setattr(of_x, _IS_OF, x.data_ptr())
        return of_x, of_weight, of_bias, None, None


def _rows(maps: Tensor) -> Tensor:
    """Return ``maps`` (N, c, h, w) as (N·h·w, c)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return aᵀ·b: a product is faster with the fewer columns in front."""
    return a.t() @ b if a.shape[1] <= b.shape[1] else (b.t() @ a).t()


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
    side = weight.shape[2]
    reach = side // 2
    in_parts = side > _COLUMNS
    seen, gradient = _grids(x, dilation, reach if in_parts else 0), _grids(gradient, dilation)

    def of(x: Tensor, kernel: Tensor, reach_x: int) -> Tensor:
        geometry = [[1, 1], [reach, reach_x], [1, 1], False, [0, 0], len(weight)]
        return torch.ops.aten.convolution_backward(gradient, x, kernel, None, *geometry, [False, True, False])[1]

    if not in_parts:
        return of(seen, weight, reach)
    size = (*seen.shape[:3], gradient.shape[3] + _COLUMNS - 1)
    channels, kernel = seen.shape[1], weight.new_empty(len(weight), 1, side, _COLUMNS)  # only its shape counts
    firsts = [*range(0, side - _COLUMNS, _COLUMNS), side - _COLUMNS]  # the last part may see columns once more
    parts = [
        of(seen.as_strided(size, seen.stride(), seen.storage_offset() + (first - reach) * channels), kernel, 0)
        for first in firsts
    ]
    parts[-1] = parts[-1][..., firsts[-2] + _COLUMNS - firsts[-1] :]
    return torch.cat(parts, 3)


def _grids(maps: Tensor, step: int, apart: int = 0) -> Tensor:
    """Return every step-th cell of ``maps`` (N, c, h, w), from each of the step² first ones on, as an image.

    Behind each row stand ``apart`` columns of zeros, and as many cells before the first row and behind the last one in
    memory: an image that begins so many cells earlier or later is the image moved aside.
    """
    if step == 1 and not apart:
        return maps
    count, channels, height, width = maps.shape
    shape = (step, step, count, math.ceil(height / step), math.ceil(width / step) + apart, channels)
    cells = maps.new_empty(math.prod(shape) + 2 * apart * channels)
    cells[: apart * channels], cells[len(cells) - apart * channels :] = 0, 0
    grids = cells[apart * channels : len(cells) - apart * channels].view(shape)
    for top in range(step):
        for left in range(step):
            grid, seen = grids[top, left], maps.permute(0, 2, 3, 1)[:, top::step, left::step]
            grid[:, seen.shape[1] :], grid[:, :, seen.shape[2] :] = 0, 0
            grid[:, : seen.shape[1], : seen.shape[2]] = seen
    return grids.flatten(0, 2).permute(0, 3, 1, 2)
