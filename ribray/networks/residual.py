"""The layers of ResNets (He et al., CVPR 2016, with the stride on the 3×3 convolution; ResNeXt, Wide ResNet).

Their names, their order and their random weights are torchvision's, which need not be installed for them.
"""

from torch import Tensor, nn

ARCHITECTURES = {
    "resnet18": ("basic", (2, 2, 2, 2), 1, 64),
    "resnet34": ("basic", (3, 4, 6, 3), 1, 64),
    "resnet50": ("bottleneck", (3, 4, 6, 3), 1, 64),
    "resnet101": ("bottleneck", (3, 4, 23, 3), 1, 64),
    "resnext50_32x4d": ("bottleneck", (3, 4, 6, 3), 32, 4),
    "wide_resnet50_2": ("bottleneck", (3, 4, 6, 3), 1, 128),
}
"""Kind and number of blocks per stage, groups of the 3×3 convolutions, and channels of a group in the first stage."""
_IMAGENET_CLASSES = 1000


class Network(nn.Module):
    """A ResNet of `ARCHITECTURES` with random weights: its layers alone, which a backbone puts together."""

    def __init__(self, name: str) -> None:
        super().__init__()
        kind, counts, groups, width = ARCHITECTURES[name]
        block = Basic if kind == "basic" else Bottleneck
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = 64
        for stage, count in enumerate(counts):
            planes = 64 * 2**stage
            blocks: list[nn.Module] = []
            for place in range(count):
                stride = 2 if stage and not place else 1
                blocks.append(block(channels, planes, stride, groups, width))
                channels = planes * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, _IMAGENET_CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _Block(nn.Module):
    """A residual block: ReLU(main path + shortcut)."""

    expansion: int
    relu: nn.Module
    downsample: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        out = self._main(x)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def _main(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Basic(_Block):
    """Two 3×3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, planes: int, stride: int, groups: int, width: int) -> None:
        super().__init__()
        downsample = _shortcut(channels, planes, stride)  # drawn first, as in torchvision
        self.conv1, self.bn1 = _convolution(channels, planes, 3, stride), nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _convolution(planes, planes, 3), nn.BatchNorm2d(planes)
        self.downsample = downsample

    def _main(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(_Block):
    """A 3×3 convolution between two 1×1 ones; it has the stride."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int, groups: int, width: int) -> None:
        super().__init__()
        downsample = _shortcut(channels, planes * self.expansion, stride)
        inner, outer = planes * width // 64 * groups, planes * self.expansion
        self.conv1, self.bn1 = _convolution(channels, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _convolution(inner, inner, 3, stride, groups), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = _convolution(inner, outer, 1), nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def _main(self, x: Tensor) -> Tensor:
        inner = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.bn3(self.conv3(inner))


def _convolution(channels: int, outer: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, outer, size, stride, padding=size // 2, groups=groups, bias=False)


def _shortcut(channels: int, outer: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == outer:
        return None
    return nn.Sequential(_convolution(channels, outer, 1, stride), nn.BatchNorm2d(outer))
