"""DeepLab-v2, the network that learns from pseudo masks, and its balanced loss (docs/method.md, section 5).

Source: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", TPAMI 2018.

Shapes: N images, K classes with background, H W pixels, h w cells of an output.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ribray.config import SegmentationConfig
from ribray.data.dataset import BACKGROUND, IGNORE
from ribray.data.transforms import normalise
from ribray.networks import build_backbone
from ribray.networks.backbone import Backbone
from ribray.networks.weights import load_network

SKIP_STRIDE = 4
"""Input pixels per cell of the outputs of a network with a hidden layer."""

_INIT_STD = 0.01


class DeepLab(nn.Module):
    """A backbone that learns as a whole, and parallel dilated convolutions (ASPP), at several sizes of the image.

    Batch norm always uses its running statistics. Without ``hidden`` the ASPP gives the logits, as published, at the
    backbone's output stride. With it, which a small backbone needs, the ASPP gives that many channels; they are
    upsampled to stride 4, joined with a projection of the last level at that stride, and give the logits there.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes_with_background: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        hidden: int | None = None,
        scales: Sequence[float] = (1.0, 0.75, 0.5),
    ) -> None:
        """Put a new head on ``backbone``.

        Args:
            backbone: of output stride 8, as published.
            classes_with_background: K.
            rates: dilations of the ASPP's convolutions, whose outputs are summed.
            hidden: channels between the ASPP and the logits, or None.
            scales: sizes of the image at which the network runs, as factors of its sides; 1 is among them.
        """
        super().__init__()
        if 1.0 not in scales:
            raise ValueError(f"The scales of DeepLab must have 1.0 among them, which {list(scales)} do not.")
        self.scales = tuple(scales)
        self.backbone = backbone.requires_grad_(True)
        self.head = _AsppHead(backbone, classes_with_background, rates, hidden)
        self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor] | Tensor:
        """Return the logits, float32, of ``images`` (N, 3, H, W).

        Returns:
            in training mode a list: the logits of every scale, each (N, K, h_s, w_s), and, of several scales, last
            their maximum per cell, at the size (h, w) of scale 1; in evaluation mode that maximum (N, K, h, w) alone.
        """
        logits = [self._at_scale(images, scale) for scale in self.scales]
        if len(logits) == 1:
            return logits if self.training else logits[0]
        size = logits[self.scales.index(1.0)].shape[2:]
        maximum = torch.stack([_resized(scale, size) for scale in logits]).amax(0)
        return [*logits, maximum] if self.training else maximum

    def parameter_groups(self, lr: float, weight_decay: float, head_factor: float = 10.0) -> list[dict[str, Any]]:
        """Return the parameters in four groups for an optimiser, each with its ``lr`` and ``weight_decay``.

        In this order: the backbone's weights at ``lr``; its biases, batch norm's shifts among them, at twice that and
        without decay; the head's weights at ``head_factor`` times ``lr``; its biases at twice that and without decay.
        """
        groups = []
        for part, factor in ((self.backbone, 1.0), (self.head, head_factor)):
            named = list(part.named_parameters())
            weights = [parameter for name, parameter in named if not name.endswith("bias")]
            biases = [parameter for name, parameter in named if name.endswith("bias")]
            groups.append({"params": weights, "lr": lr * factor, "weight_decay": weight_decay})
            groups.append({"params": biases, "lr": 2 * lr * factor, "weight_decay": 0.0})
        return groups

    def _at_scale(self, images: Tensor, scale: float) -> Tensor:
        size = [max(round(side * scale), 1) for side in images.shape[2:]]
        return self.head(self.backbone.features(_resized(images, size))).float()


class _AsppHead(nn.Module):
    """From the five levels of a backbone to logits (N, K, h, w)."""

    def __init__(self, backbone: Backbone, classes: int, rates: Sequence[int], hidden: int | None) -> None:
        super().__init__()
        self.aspp = nn.ModuleList(
            nn.Conv2d(backbone.channels[-1], hidden or classes, kernel_size=3, padding=rate, dilation=rate)
            for rate in rates
        )
        for name, parameter in self.aspp.named_parameters():
            nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else _INIT_STD)
        self.upsampling = backbone.strides[-1] // SKIP_STRIDE
        self.skip_level = max(level for level, stride in enumerate(backbone.strides) if stride == SKIP_STRIDE)
        self.skip: nn.Conv2d | None = None
        if hidden is not None:
            self.skip = nn.Conv2d(backbone.channels[self.skip_level], hidden, kernel_size=1)
            self.output = nn.Conv2d(2 * hidden, classes, kernel_size=1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        context = torch.stack([convolution(levels[-1]) for convolution in self.aspp]).sum(0)
        if self.skip is None:
            return context
        fine = self.skip(levels[self.skip_level])
        coarse = functional.interpolate(
            context.relu(), scale_factor=float(self.upsampling), mode="bilinear", align_corners=False
        )[:, :, : fine.shape[2], : fine.shape[3]]
        return self.output(torch.cat([coarse, fine.relu()], 1))


# --- the loss -----------------------------------------------------------------------------------------------


def segmentation_loss(
    logits: Sequence[Tensor], labels: Tensor, total: Callable[[Tensor], Tensor] = lambda counts: counts
) -> Tensor:
    """Return the balanced cross entropy, summed over all outputs of a network in training mode: a float32 scalar.

    It is the mean over background plus the mean over foreground pixels; where there are no such pixels, it is 0. The
    pixels are counted over all ranks and the sums taken over this one's, so that the losses of all ranks add up to that
    of the whole batch, and so do their gradients.

    Args:
        logits: outputs (N, K, h, w), each of its own size and of any floating type.
        labels: (N, H, W), 0 background, 255 in neither mean; brought to the size of every output by nearest neighbour.
        total: gives the sum of a tensor over all ranks; called once.
    """
    reduced = [_reduced(labels, output.shape[2:]) for output in logits]  # (N, h, w) int64 each
    background = [of_output == BACKGROUND for of_output in reduced]
    foreground = [(of_output != BACKGROUND) & (of_output != IGNORE) for of_output in reduced]
    counts = torch.stack([torch.stack([kind.sum() for kind in kinds]) for kinds in (background, foreground)])
    shares = 1 / total(counts).clamp(min=1).float()  # (2, outputs): what a pixel of background, of foreground counts
    loss = torch.zeros((), device=counts.device)
    for place, (output, of_output) in enumerate(zip(logits, reduced, strict=True)):
        weights = background[place] * shares[0, place] + foreground[place] * shares[1, place]  # (N, h, w)
        losses = functional.cross_entropy(output.float(), of_output, ignore_index=IGNORE, reduction="none")
        loss = loss + (losses * weights).sum()
    return loss


def _reduced(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Bring labels (N, H, W) to ``size`` by nearest neighbour: a cell gets the label in its middle."""
    return functional.interpolate(labels[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()


# --- prediction and files -----------------------------------------------------------------------------------


@torch.no_grad()
def predict(model: DeepLab, image: np.ndarray, device: torch.device | str) -> Tensor:
    """Return the probabilities (K, H, W), float32 and on ``device``, of the classes of every pixel.

    The logits, the maximum over the network's scales, are brought to the image's size before the softmax.

    Args:
        model: in evaluation mode, on ``device``.
        image: (H, W, 3) uint8.
        device: where the network runs.
    """
    logits = model(normalise(image, model.backbone.normalisation)[None].to(device))
    return _resized(logits, image.shape[:2])[0].softmax(0)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (N, C, h, w) bilinearly."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def build_deeplab(config: SegmentationConfig, classes: int) -> DeepLab:
    """Build DeepLab-v2 as configured, for ``classes`` foreground classes, with random weights."""
    backbone = build_backbone(config.backbone, config.output_stride)
    return DeepLab(backbone, classes + 1, config.rates, config.hidden, config.scales)


class Predictor:
    """A trained network in a worker."""

    def __init__(self, config: SegmentationConfig, classes: int, weights: Path):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = build_deeplab(config, classes)
        load_network(self._network, weights)
        self._network.to(self._device).eval()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return class probabilities (K, H, W) of an image (H, W, 3) uint8."""
        return predict(self._network, image, self._device).cpu().numpy()
