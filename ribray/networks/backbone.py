"""Backbones: networks that turn an image into five levels of features.

Every backbone looks the same from outside (`Backbone`), so that the classifier, the IRN heads and DeepLab
work on any of them. The ResNets keep torchvision's parameter names, hence its state dicts load without
renaming. Networks of timm are in `ribray.networks.timm_backbone`.

Shapes: N images, H W pixels, C_l channels and h_l w_l cells of level l.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ribray.data.transforms import IMAGENET, Normalisation
from ribray.networks import residual

ConvNorm = tuple[nn.Conv2d, nn.BatchNorm2d]
"""A convolution without bias and the batch norm behind it."""
_DILATIONS: dict[int, dict[str, int]] = {32: {}, 16: {"layer4": 1}, 8: {"layer3": 2, "layer4": 4}}
"""By output stride the stages of a ResNet that run at stride 1, and their dilations."""


@dataclass(frozen=True)
class Residual:
    """The parts of a residual block: ReLU(main(x) + shortcut(x)), with a ReLU between the layers of ``main``.

    Attributes:
        main: the layers of the main path in order.
        shortcut: the layer beside them; None: the identity.
    """

    main: list[ConvNorm]
    shortcut: ConvNorm | None


class Backbone(nn.Module, ABC):
    """A feature extractor whose first part, the *stem*, is frozen while a classifier learns.

    Batch norm always uses its running statistics, also in training mode: docs/method.md, section 1 trains with batches
    whose crops are padded with zeros, and a refinement sees one image at a time.

    Attributes:
        name: as a configuration writes it.
        channels: channels of the five levels.
        strides: input pixels per cell of the five levels.
        normalisation: of the pixels that it was trained on.
        outer: what its parameters' names begin with where the network's author has nothing.
    """

    name: str
    normalisation: Normalisation = IMAGENET
    outer: str = ""
    channels: tuple[int, int, int, int, int]
    strides: tuple[int, int, int, int, int]

    @abstractmethod
    def stem_modules(self) -> list[nn.Module]:
        """Return the modules that make up the stem."""

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Return the output of the frozen part for ``images`` (N, 3, H, W)."""

    @abstractmethod
    def trunk(self, stem: Tensor) -> Tensor:
        """Return the last level (N, C_5, h_5, w_5) from the output of the stem."""

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """Return the five levels of ``images`` (N, 3, H, W), each (N, C_l, h_l, w_l)."""

    def start_at_identity(self) -> None:
        """Let every residual branch begin at zero, where the network has branches that can.

        Random weights under batch norm that never normalises would make the signal grow from block to block.
        """

    def train(self, mode: bool = True) -> "Backbone":
        """Switch the mode of every module but batch norm, which never leaves evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class ResidualBackbone(Backbone):
    """A backbone of residual blocks, whose batch norm can be folded into convolutions (`ribray.networks.folded`)."""

    @abstractmethod
    def entry(self) -> ConvNorm:
        """Return the first layer; a ReLU and a max-pool (3×3, stride 2, padding 1) follow it."""

    @abstractmethod
    def stem_blocks(self) -> list[Residual]:
        """Return the frozen blocks between the max-pool and the stem's output."""

    @abstractmethod
    def trunk_blocks(self) -> list[Residual]:
        """Return the blocks behind the stem."""

    @property
    def can_fold(self) -> bool:
        """Whether its layers are of the kinds that can be; `engine_for` looks at what they give."""
        return all(map(_is_plain, self.modules()))


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        has_zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return type(module) is nn.Conv2d and module.groups == 1 and module.bias is None and has_zeros
    if isinstance(module, nn.BatchNorm2d):
        return type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats
    return type(module) in (nn.ReLU, nn.MaxPool2d) or any(True for _ in module.children())


class ResNet(ResidualBackbone):
    """A torchvision ResNet without its pooling and fully connected layer, at output stride 32, 16 or 8.

    Args:
        name: torchvision's name of the architecture, such as "resnet50".
        output_stride: pixels per cell of the last level.
        network: its own layers are used where it is given, which have that output stride.

    Output stride 32: as torchvision has it.
    Output stride 16: the last stage runs at stride 1, without dilation (docs/method.md, section 1).
    Output stride 8: the last two stages run at stride 1 with dilations 2 and 4 (DeepLab-v2, Chen et al.).
    """

    def __init__(self, name: str, output_stride: int, network: Any = None) -> None:
        super().__init__()
        if output_stride not in _DILATIONS:
            raise ValueError(f"A ResNet has output stride 32, 16 or 8, not {output_stride}.")
        if network is None:
            network = residual.Network(name)
            for stage, dilation in _DILATIONS[output_stride].items():
                _set_stride_one(getattr(network, stage), dilation)
        self.name, self.strides = name, (4, 4, 8, min(output_stride, 16), output_stride)
        self.conv1, self.bn1, self.relu, self.maxpool = network.conv1, network.bn1, network.relu, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        last = [each for each in network.layer4.modules() if isinstance(each, nn.Conv2d)][-1].out_channels
        self.channels = (network.conv1.out_channels, last // 8, last // 4, last // 2, last)
        self.train(self.training)

    def stem_modules(self) -> list[nn.Module]:
        """Return the first convolution and everything up to the second stage."""
        return [self.conv1, self.bn1, self.layer1, self.layer2]

    def stem(self, images: Tensor) -> Tensor:
        """Return the second stage's output for ``images`` (N, 3, H, W): stride 8."""
        return self.layer2(self.layer1(self._entry(images)))

    def trunk(self, stem: Tensor) -> Tensor:
        """Return the last stage's output from that of the second one."""
        return self.layer4(self.layer3(stem))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the levels after max-pooling and after each of the four stages."""
        levels = [self._entry(images)]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            levels.append(stage(levels[-1]))
        return levels

    def entry(self) -> ConvNorm:
        """Return the convolution of stride 2."""
        return self.conv1, self.bn1

    def stem_blocks(self) -> list[Residual]:
        """Return the blocks of the first two stages."""
        return [_parts(block) for block in (*self.layer1, *self.layer2)]

    def trunk_blocks(self) -> list[Residual]:
        """Return the blocks of the last two stages."""
        return [_parts(block) for block in (*self.layer3, *self.layer4)]

    def start_at_identity(self) -> None:
        """Start every residual block as its shortcut alone: the last batch norm of a block scales by 0."""
        for block in (*self.stem_blocks(), *self.trunk_blocks()):
            nn.init.zeros_(block.main[-1][1].weight)

    def _entry(self, images: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (N, 64, H/4, W/4)


def _parts(block: Any) -> Residual:
    """Return the parts of a basic block or of a bottleneck, which has a third convolution."""
    main = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if hasattr(block, "conv3"):
        main.append((block.conv3, block.bn3))
    return Residual(main, None if block.downsample is None else (block.downsample[0], block.downsample[1]))


def _set_stride_one(stage: nn.Module, dilation: int) -> None:
    """Give every convolution of a ResNet stage stride 1 and every 3×3 convolution ``dilation``."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
