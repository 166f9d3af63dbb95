"""IRNet: class boundaries and a displacement field from the features of a frozen backbone (docs/method.md, section 4).

Source: Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019.

Shapes: N images, H W pixels, C_l channels of level l, h w cells at stride 4, h = ⌈H / 4⌉ and w = ⌈W / 4⌉.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ribray.networks import build_backbone
from ribray.networks.backbone import Backbone

STRIDE = 4
"""Input pixels per cell of both outputs."""

_BOUNDARY_WIDTH, _BOUNDARY_GROUPS = 32, 4
_DISPLACEMENT_GROUPS = (8, 16, 16, 16, 16)


class IRNet(nn.Module):
    """Two heads on the five levels of a backbone that never learns and is always in evaluation mode.

    The heads share nothing that learns: either could be trained without the other.

    Attributes:
        displacement_mean: (2,) float32, cells; taken off the displacement in evaluation mode. It is 0 at first and to
            be set, after training, to the mean displacement over the training images.
    """

    def __init__(self, backbone: Backbone, displacement_width: int = 256) -> None:
        """Put new heads on ``backbone``, which is frozen.

        Args:
            backbone: of any kind whose third level has a stride of 4 or more.
            displacement_width: channels inside the displacement head, a multiple of 64; the published network has 256,
                a narrower one is several times as fast on a small backbone.
        """
        super().__init__()
        if displacement_width < 64 or displacement_width % 64:
            raise ValueError(f"The width of the displacement head is a multiple of 64, not {displacement_width}.")
        self.register_buffer("displacement_mean", torch.zeros(2))
        self.displacement_mean: Tensor
        self.backbone = backbone.requires_grad_(False)
        self.boundary_levels = nn.ModuleList(
            nn.Sequential(_projection(channels, _BOUNDARY_WIDTH, _BOUNDARY_GROUPS), nn.ReLU())
            for channels in backbone.channels
        )
        self.boundary_output = nn.Conv2d(_BOUNDARY_WIDTH * len(backbone.channels), 1, kernel_size=1)
        width = displacement_width
        widths = (width // 4, width // 2, width, width, width)
        self.displacement_levels = nn.ModuleList(
            nn.Sequential(_projection(*sizes), nn.ReLU())
            for sizes in zip(backbone.channels, widths, _DISPLACEMENT_GROUPS, strict=True)
        )
        groups = _DISPLACEMENT_GROUPS[-1]
        self.displacement_upper = _projection(sum(widths[2:]), width, groups)
        self.displacement_output = nn.Sequential(
            _projection(sum(widths[:2]) + width, width, groups),
            nn.ReLU(),
            nn.Conv2d(width, 2, kernel_size=1, bias=False),
        )
        self.train(self.training)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boundary logits (N, 1, h, w) and displacements (N, 2, h, w), in cells, of ``images`` (N, 3, H, W)."""
        levels, size = self._levels(images)
        displacement = self._displacement(levels, size)
        if not self.training:
            displacement = displacement - self.displacement_mean[:, None, None]
        return self._boundary(levels, size), displacement

    @torch.no_grad()
    def boundary_probability(self, views: Tensor) -> Tensor:
        """Return the probability (h, w) float32, in 0…1, that a cell lies on a boundary between classes.

        Args:
            views: (2, 3, H, W), an image and its horizontal flip, normalised.
        """
        logits, flipped = self._boundary(*self._levels(views)).float()[:, 0]
        return ((logits + flipped.flip(-1)) / 2).sigmoid()

    def boundary_parameters(self) -> list[nn.Parameter]:
        """The parameters of the boundary head."""
        return [*self.boundary_levels.parameters(), *self.boundary_output.parameters()]

    def displacement_parameters(self) -> list[nn.Parameter]:
        """The parameters of the displacement head."""
        heads = (self.displacement_levels, self.displacement_upper, self.displacement_output)
        return [parameter for head in heads for parameter in head.parameters()]

    def train(self, mode: bool = True) -> "IRNet":
        """Switch the mode of the heads; the backbone never leaves evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def _levels(self, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Return the backbone's levels, without gradient, and the size (h, w) of the outputs."""
        with torch.no_grad():
            levels = self.backbone.features(images)
        height, width = images.shape[2:]
        return levels, (-(-height // STRIDE), -(-width // STRIDE))

    def _boundary(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        maps = [
            _at_stride(head(level), stride, STRIDE, size)
            for head, level, stride in zip(self.boundary_levels, levels, self.backbone.strides, strict=True)
        ]
        return self.boundary_output(torch.cat(maps, 1))

    def _displacement(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        strides = self.backbone.strides
        maps = [head(level) for head, level in zip(self.displacement_levels, levels, strict=True)]
        middle = (maps[2].shape[2], maps[2].shape[3])
        upper = [_at_stride(maps[level], strides[level], strides[2], middle) for level in (2, 3, 4)]
        joined = _at_stride(self.displacement_upper(torch.cat(upper, 1)), strides[2], STRIDE, size).relu()
        lower = [_at_stride(maps[level], strides[level], STRIDE, size) for level in (0, 1)]
        return self.displacement_output(torch.cat([*lower, joined], 1))


def _projection(channels: int, width: int, groups: int) -> nn.Sequential:
    """A 1×1 convolution without bias, normalised in groups of channels."""
    return nn.Sequential(nn.Conv2d(channels, width, kernel_size=1, bias=False), nn.GroupNorm(groups, width))


def _at_stride(maps: Tensor, stride: int, wanted: int, size: tuple[int, int]) -> Tensor:
    """Bring ``maps`` from ``stride`` to the ``wanted`` stride, and crop them to ``size``.

    Upwards bilinearly; downwards by the mean over the cells that a wanted cell covers, which at half the size is the
    bilinear value too, and which unlike it covers the last cell of an odd side.
    """
    if stride > wanted:
        maps = functional.interpolate(maps, scale_factor=stride / wanted, mode="bilinear", align_corners=False)
    elif stride < wanted:
        maps = functional.avg_pool2d(maps, wanted // stride, ceil_mode=True)
    return maps[:, :, : size[0], : size[1]]


def build_irnet(backbone: str, output_stride: int, displacement_width: int) -> IRNet:
    """Build IRNet on the backbone called so, with random weights.

    Raises:
        UsageError: there is no such backbone, or it has no such output stride.
    """
    return IRNet(build_backbone(backbone, output_stride), displacement_width)
