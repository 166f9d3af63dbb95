"""What computes a classifier while its weights move: one small interface, two engines behind it.

The *plain* engine is autograd on any classifier, with batch norm folded into convolutions
(`ribray.networks.norm_folding`). The *folded* one (`ribray.networks.folded`) writes all gradients by hand, too; it
takes residual networks only. It is the default where it was measured to be the faster one (`benchmarks/README.md`): on
a CPU by 1 to 10 % in either precision with AMX, with AVX-512 alone and with AVX2, on an H100 by 13 % in bfloat16. In
float32 the plain one was faster there, by 5 %.

Where the image moves and the weights do not, `Frozen` computes: the gradient goes on through the stem to the pixels.

Shapes: N images, C classes, H W pixels, h w cells of a map.
"""

import copy
from typing import Literal

import torch
from torch import Tensor

from ribray.networks import norm_folding
from ribray.networks.backbone import ResidualBackbone
from ribray.networks.classifier import Classifier
from ribray.networks.folded import Folded
from ribray.networks.layered import sample_image
from ribray.networks.norm_folding import SAME

Kind = Literal["plain", "folded"]


class Plain:
    """Autograd on any classifier; bfloat16 by autocast.

    Args:
        classifier: on any device.
        dtype: bfloat16, or what its parameters have.
    """

    def __init__(self, classifier: Classifier, dtype: torch.dtype) -> None:
        self._is_on_cpu = classifier.head.weight.device.type == "cpu"
        self._classifier = norm_folding.fold_norms(classifier)
        self._reduced = dtype if dtype != classifier.head.weight.dtype else None

    def stem(self, images: Tensor) -> Tensor:
        """Return the frozen part's output for ``images`` (N, 3, H, W) float32: channels-last, without gradient."""
        images = images.contiguous(memory_format=torch.channels_last)
        with self._autocast(images):
            if not self._is_on_cpu:
                return self._classifier.stem(images)
            # What the stem computes of one image at a time stays in a CPU's cache.
            return torch.cat([self._classifier.stem(image) for image in images.split(1)])

    def cams(self, stem: Tensor) -> Tensor:
        """Return raw class activation maps (N, C, h, w), float32 and without ReLU, from the stem's output."""
        with self._autocast(stem):
            return self._classifier.cams(stem)

    def give_gradients(self) -> None:
        """Autograd has left them where they belong, but for convolutions with batch norm in them."""
        norm_folding.give_gradients(self._classifier)

    def refresh(self) -> None:
        """Fold batch norm anew, where it is folded."""
        norm_folding.refresh(self._classifier)

    def _autocast(self, tensor: Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, dtype=torch.bfloat16, enabled=self._reduced is not None)


class Frozen:
    """Autograd to the images through a copy of a classifier whose weights never change; bfloat16 by autocast.

    Args:
        classifier: on any device; it stays as it is.
        dtype: bfloat16, or what its parameters have.
    """

    def __init__(self, classifier: Classifier, dtype: torch.dtype) -> None:
        own = copy.deepcopy(classifier).requires_grad_(False)
        self._classifier = norm_folding.fold_norms(own) if own.head.weight.device.type == "cpu" else own
        self._reduced = dtype != own.head.weight.dtype

    def cams(self, images: Tensor) -> Tensor:
        """Return raw class activation maps (N, C, h, w), without ReLU, of ``images`` (N, 3, H, W)."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self._reduced):
            return self._classifier.cams(self._classifier.backbone.stem(images))


Engine = Plain | Folded
"""A classifier in one precision. Its parameters are the classifier's, which an optimiser moves."""


def engine_for(classifier: Classifier, dtype: torch.dtype, kind: Kind | None = None) -> Engine:
    """Return an engine for a classifier.

    Args:
        classifier: on the device to compute on, channels-last.
        dtype: bfloat16, or what its parameters have.
        kind: which one; default: what was measured to be the faster one, of those that can do the network.

    Raises:
        ValueError: the network cannot be folded.
    """
    backbone = classifier.backbone
    if kind is None:
        can_fold = isinstance(backbone, ResidualBackbone) and backbone.can_fold
        folds = can_fold and folded_is_faster(classifier.head.weight.device, dtype) and _folds_well(classifier)
    else:
        folds = kind == "folded"
    return Folded(classifier, dtype) if folds else Plain(classifier, dtype)


@torch.no_grad()
def _folds_well(classifier: Classifier) -> bool:
    """Whether the folded network gives what the network does: another stem or activation, or a hook, is not folded."""
    image, folded = sample_image().to(classifier.head.weight), Folded(classifier, classifier.head.weight.dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected, found = classifier.cams(classifier.stem(image)), folded.cams(folded.stem(image))
    return found.shape == expected.shape and bool((found - expected).abs().max() <= SAME * expected.abs().max())


def folded_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the folded engine was measured to be faster than the plain one."""
    return device.type == "cpu" or dtype == torch.bfloat16
