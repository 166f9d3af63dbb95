"""The small backbone of the synthetic world: stride 8, 140k parameters, a short reach.

Behind the first block every second kernel is 1×1: with 3×3 throughout, cells on the body would see the head,
and its class activation map would spread without RIB.
"""

from torch import Tensor, nn
from torch.nn import functional

from ribray.networks.backbone import ConvNorm, Residual, ResidualBackbone


class Block(nn.Module):
    """A residual block of two convolutions; the shortcut is a 1×1 convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int, second_kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, second_kernel, 1, second_kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, h, w) → (N, channels, ⌈h / stride⌉, ⌈w / stride⌉)."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.bn3(self.shortcut(x)))

    def parts(self) -> Residual:
        return Residual([(self.conv1, self.bn1), (self.conv2, self.bn2)], (self.shortcut, self.bn3))


class SmallBackbone(ResidualBackbone):
    """Five levels: convolution, max-pool and three residual blocks. The stem ends with the first block."""

    name = "small"
    channels = (16, 16, 32, 64, 128)
    strides = (2, 4, 4, 8, 8)

    def __init__(self, output_stride: int = 8) -> None:
        super().__init__()
        if output_stride != self.strides[-1]:
            raise ValueError(f"The small backbone has output stride {self.strides[-1]}, not {output_stride}.")
        self.conv1 = nn.Conv2d(3, 16, 5, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.block1 = Block(16, 32, 1, 3)
        self.block2 = Block(32, 64, 2, 1)
        self.block3 = Block(64, 128, 1, 1)
        self.train(self.training)

    def features(self, x: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) → five levels (N, channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        first = functional.relu(self.bn1(self.conv1(x)))
        pooled = functional.max_pool2d(first, 3, 2, 1)
        block1 = self.block1(pooled)
        block2 = self.block2(block1)
        return [first, pooled, block1, block2, self.block3(block2)]

    def stem(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) → the last frozen level (N, 32, ⌈H/4⌉, ⌈W/4⌉)."""
        first = functional.relu(self.bn1(self.conv1(x)))
        return self.block1(functional.max_pool2d(first, 3, 2, 1))

    def trunk(self, stem: Tensor) -> Tensor:
        """The stem's output → the last level (N, 128, ⌈H/8⌉, ⌈W/8⌉)."""
        return self.block3(self.block2(stem))

    def stem_modules(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.block1]

    def entry(self) -> ConvNorm:
        return self.conv1, self.bn1

    def stem_blocks(self) -> list[Residual]:
        return [self.block1.parts()]

    def trunk_blocks(self) -> list[Residual]:
        return [self.block2.parts(), self.block3.parts()]
