"""The classifier as its refinement computes it: batch norm folded into convolutions, gradients by hand.

Batch norm never leaves its running statistics, so that with the convolution before it, it is one convolution:

    γ (W ∗ x − mean) / σ + β  =  W' ∗ x + b      with  W' = γ/σ · W,  b = β − γ/σ · mean  (per output channel)

The classifier keeps W, γ and β, which are what learns; W' and b are copies of them in the precision that is computed
in, made once after every update (`Folded.refresh`). Gradients with respect to W' and b are summed up in float32 over
any number of backward passes, and turned into those of W, γ and β once (`Folded.give_gradients`):

    dW = γ/σ · dW',   dγ = (Σ dW' · W − mean · db) / σ,   dβ = db

Nothing passes over the features but convolutions and, on the way back, the zeros of a ReLU; what has to be kept for
the way back are the outputs of the ReLUs.

Shapes: N images, C classes, H W pixels, c channels, h w cells.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ribray.networks.backbone import ConvNorm, Residual, ResidualBackbone
from ribray.networks.classifier import Classifier

Geometry = tuple[list[int], list[int], list[int]]
"""A convolution's padding, stride and dilation, each for rows and columns."""


class Folded:
    """The stem and the class activation maps of a classifier, whose weights they follow after every `refresh`.

    Args:
        classifier: its parameters stay the ones that learn, on whichever device they are.
        dtype: what features and convolutions are computed in; head and sums of gradients are never less than float32.
    """

    def __init__(self, classifier: Classifier, dtype: torch.dtype) -> None:
        backbone = classifier.backbone
        if not isinstance(backbone, ResidualBackbone) or not backbone.can_fold:
            raise ValueError("Only a residual network of ungrouped convolutions and batch norm can be folded.")
        self.dtype = dtype
        self._head = classifier.head
        self._entry = _Layer(backbone.entry(), dtype, learns=False)
        self._stem = [_Block(block, dtype, learns=False) for block in backbone.stem_blocks()]
        self._trunk = [_Block(block, dtype, learns=True) for block in backbone.trunk_blocks()]
        for layer in [self._entry, *_layers(self._stem), *_layers(self._trunk)]:
            layer.refresh()

    @torch.no_grad()
    def stem(self, images: Tensor) -> Tensor:
        """Return the frozen part's output for ``images`` (N, 3, H, W) float32: channels-last, without gradient."""
        features = self._entry(images.to(self.dtype, memory_format=torch.channels_last))
        features = functional.max_pool2d(features, kernel_size=3, stride=2, padding=1)
        for block in self._stem:
            features = block(features)
        return features

    def cams(self, stem: Tensor) -> Tensor:
        """Return raw class activation maps (N, C, h, w), float32 and without ReLU, from the stem's output."""
        if torch.is_grad_enabled():
            features = _Trunk.apply(stem, self._trunk, self._trunk[-1].main[-1].weight)
        else:
            features = stem
            for block in self._trunk:
                features = block(features)
        return self._head(features.to(self._head.weight.dtype))

    @torch.no_grad()
    def give_gradients(self) -> None:
        """Set the gradients of the backbone's parameters from all backward passes since the last `refresh`."""
        for layer in _layers(self._trunk):
            layer.give_gradients()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the parameters as they are now and forget gradients."""
        for layer in _layers(self._trunk):
            layer.refresh()
        torch._foreach_zero_([gradient for layer in _layers(self._trunk) for gradient in layer.gradients])


class _Layer:
    """A convolution with the batch norm behind it, and with the sum and the ReLU that may follow."""

    def __init__(self, parts: ConvNorm, dtype: torch.dtype, learns: bool) -> None:
        self.conv, self.norm = parts
        assert not isinstance(self.conv.padding, str)
        self.geometry = (list(self.conv.padding), list(self.conv.stride), list(self.conv.dilation))
        self.is_fused = has_fused_convolution(self.conv.weight.device, dtype)
        self.fuses_relu = has_fused_relu(self.conv.weight.device, dtype)
        self.is_product = self.is_fused and self.conv.kernel_size == (1, 1) and self.conv.stride == (1, 1)
        with torch.no_grad():
            mean, variance = self.norm.running_mean, self.norm.running_var
            assert mean is not None and variance is not None
            self.mean, self.over_deviation = mean, (variance + self.norm.eps).rsqrt()  # (c,) each
            self.weight = torch.empty_like(self.conv.weight, dtype=dtype, memory_format=torch.channels_last)
            self.bias = torch.empty_like(self.norm.bias, dtype=dtype)
        self.weight.requires_grad_(learns)  # tells autograd that a pass through the trunk has a gradient
        # Of W', of b and of γ, kept from step to step: fresh memory costs time, and a recording needs them in place.
        learning = (self.conv.weight, self.norm.bias, self.norm.weight) if learns else ()
        self.gradients = [torch.zeros_like(each, requires_grad=False) for each in learning]

    def refresh(self) -> None:
        scale = self.norm.weight * self.over_deviation  # (c,)
        self.weight.detach().copy_(self.conv.weight * scale[:, None, None, None])
        self.bias.copy_(self.norm.bias - self.mean * scale)

    def __call__(self, x: Tensor, added: Tensor | None = None, relu: bool = True) -> Tensor:
        """Return ReLU(W' ∗ x + b + added)."""
        weight, (padding, stride, dilation) = self.weight.detach(), self.geometry
        if relu and self.fuses_relu:
            if added is None:
                return torch.cudnn_convolution_relu(x, weight, self.bias, stride, padding, dilation, 1)
            return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, self.bias, stride, padding, dilation, 1)
        # Else the ReLU stays apart: oneDNN's own makes a zero of what is not a number, and hides that it was none.
        if self.is_fused:
            out = fused_convolution(x, weight, self.bias, self.geometry, added)
        else:
            out = functional.conv2d(x, weight, self.bias, stride, padding, dilation)
            if added is not None:
                out += added
        return out.relu_() if relu else out

    def learn(self, gradient: Tensor, x: Tensor) -> None:
        """Sum up the gradients of W' and b.

        Args:
            gradient: with respect to what the convolution put out, (N, c, h, w).
            x: what it saw.
        """
        if self.is_product:  # a product of matrices is faster than the gradient of a convolution
            rows, seen = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (gradient, x))  # (N·h·w, channels)
            self._add((rows.t() @ seen)[:, :, None, None], rows.sum(0, dtype=self.norm.bias.dtype))
        else:
            self._add(*self._convolution_backward(gradient, x, [False, True, True])[1:])

    def backward(self, gradient: Tensor, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the gradient of ``x``, plus ``added``, from that of the convolution's output."""
        if self.is_product:  # the gradient of a 1×1 convolution is one with the weight transposed
            return fused_convolution(gradient, self.weight.detach().transpose(0, 1), None, self.geometry, added)
        of_x = self._convolution_backward(gradient, x, [True, False, False])[0]
        return of_x if added is None else of_x.add_(added)

    def _convolution_backward(self, gradient: Tensor, x: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, W' and b, as far as they are ``wanted``."""
        padding, stride, dilation = self.geometry
        return torch.ops.aten.convolution_backward(
            gradient, x, self.weight.detach(), [len(self.bias)], stride, padding, dilation, False, [0, 0], 1, wanted
        )

    def _add(self, of_weight: Tensor, of_bias: Tensor) -> None:
        for gradient, added in zip(self.gradients[:2], (of_weight, of_bias), strict=True):
            gradient.add_(added)

    def give_gradients(self) -> None:
        of_weight, of_bias, of_scale = self.gradients
        along = (of_weight * self.conv.weight).sum((1, 2, 3))  # (c,)
        of_scale.copy_((along - self.mean * of_bias) * self.over_deviation)
        of_weight.mul_((self.norm.weight * self.over_deviation)[:, None, None, None])
        self.conv.weight.grad, self.norm.bias.grad, self.norm.weight.grad = self.gradients


class _Block:
    """A residual block: ReLU(main(x) + shortcut(x))."""

    def __init__(self, parts: Residual, dtype: torch.dtype, learns: bool) -> None:
        self.main = [_Layer(layer, dtype, learns) for layer in parts.main]
        self.shortcut = _Layer(parts.shortcut, dtype, learns) if parts.shortcut is not None else None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return self.run(x).pop()

    def run(self, x: Tensor) -> list[Tensor]:
        """Return what every layer of the main path puts out, the block's output last."""
        outputs = [x]
        for layer in self.main[:-1]:
            outputs.append(layer(outputs[-1]))
        shortcut = x if self.shortcut is None else self.shortcut(x, relu=False)
        outputs.append(self.main[-1](outputs[-1], added=shortcut))
        return outputs[1:]

    def learn(self, gradient: Tensor, inputs: list[Tensor]) -> Tensor:
        """Sum up the layers' gradients; return that of what the first layer of the main path puts out.

        Args:
            gradient: with respect to what the last ReLU sees.
            inputs: what every layer of the main path saw.
        """
        if self.shortcut is not None:
            self.shortcut.learn(gradient, inputs[0])
        for layer, x in zip(self.main[:0:-1], inputs[:0:-1], strict=True):
            layer.learn(gradient, x)
            gradient = _behind_relu(layer.backward(gradient, x), x)
        self.main[0].learn(gradient, inputs[0])
        return gradient

    def backward(self, gradient: Tensor, inner: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of the block's input ``x``, itself a ReLU's output, as that ReLU's input gets it.

        Args:
            gradient: with respect to what the last ReLU sees.
            inner: what `learn` returned.
            x: the block's input.
        """
        outer = gradient if self.shortcut is None else self.shortcut.backward(gradient, x)
        return _behind_relu(self.main[0].backward(inner, x, outer), x)


class _Trunk(torch.autograd.Function):
    """The learning blocks as one step of autograd: what it keeps and what it adds up is up to us."""

    @staticmethod
    def forward(ctx: Any, stem: Tensor, blocks: list[_Block], _: Tensor) -> Tensor:
        ctx.blocks, ctx.kept = blocks, []
        features = stem
        for block in blocks:
            *inner, output = block.run(features)
            ctx.kept.append([features, *inner])
            features = output
        ctx.save_for_backward(features)
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (output,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        while ctx.kept:
            block, inputs = ctx.blocks[len(ctx.kept) - 1], ctx.kept.pop()
            inner = block.learn(gradient, inputs)
            if ctx.kept:  # behind the stem nothing wants a gradient
                gradient = block.backward(gradient, inner, inputs[0])
        return None, None, None


def _behind_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """Set ``gradient`` to zero, in place, where a ReLU's ``output`` is zero."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)


def _layers(blocks: list[_Block]) -> Iterator[_Layer]:
    for block in blocks:
        yield from block.main
        if block.shortcut is not None:
            yield block.shortcut


def fused_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    added: Tensor | None = None,
    groups: int = 1,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Return weight ∗ x + bias + added, computed by oneDNN at any number of threads and of channels.

    Without ``added`` it may be clamped to ``bounds``, which makes a number of NaN.
    """
    convolution: Any = torch.ops.mkldnn._convolution_pointwise
    if added is not None:
        return convolution.binary(x, added, weight, bias, *geometry, groups, "add", None, None, [], "")
    clamp = ("hardtanh", [*bounds]) if bounds else ("none", [])
    return convolution(x, weight, bias, *geometry, groups, *clamp, "")


def has_fused_convolution(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes a convolution and a sum at once."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_fused_relu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether cuDNN computes a convolution, a sum and a ReLU at once; NaN stays NaN."""
    return device.type == "cuda" and torch.version.hip is None and dtype in (torch.float32, torch.bfloat16)
