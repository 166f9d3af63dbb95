"""The image classifier whose last features give class activation maps (docs/method.md, section 1).

Shapes: N images, C classes, H W pixels, h w cells of the last level.
"""

import torch
from torch import Tensor, nn

from ribray.networks.backbone import Backbone


class Classifier(nn.Module):
    """A backbone with a frozen stem and a 1×1 convolution without bias as its head.

    Because global average pooling and the head are both linear, the mean of a class activation map *is* that class's
    logit: ``forward`` pools what ``cams`` returns.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"A classifier needs at least one class, not {classes}.")
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.channels[-1], classes, kernel_size=1, bias=False)
        for module in backbone.stem_modules():
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def classes(self) -> int:
        """Number of foreground classes."""
        return self.head.out_channels

    def stem(self, images: Tensor) -> Tensor:
        """Return the frozen part's output for ``images`` (N, 3, H, W); it never takes part in a gradient."""
        with torch.no_grad():
            return self.backbone.stem(images)

    def cams(self, stem: Tensor) -> Tensor:
        """Return raw class activation maps (N, C, h, w), float32 and without ReLU, from the stem's output.

        The head runs in float32 under autocast too: its inputs are summed over thousands of channels.
        """
        features = self.backbone.trunk(stem)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(self.head.weight.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) of ``images`` (N, 3, H, W)."""
        return self.cams(self.stem(images)).mean((2, 3))

    def learnable_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters that learn: the backbone's, and the head's, which has a higher rate."""
        backbone = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        return backbone, list(self.head.parameters())
