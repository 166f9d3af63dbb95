"""Networks taken apart into layers that follow one another.

That they do is not read off a network's code but computed once: on a small image the layers in a row must give what the
network itself gives.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ribray.data.transforms import IMAGENET, Normalisation
from ribray.errors import UsageError
from ribray.networks.backbone import Backbone

SIDE = 64
"""Of the image, in pixels, that shows how a network is built."""


class Layered(Backbone):
    """A network as a row of its layers, the first few of which are the stem.

    Attributes:
        network: as its author built it, so that its weights load under the author's names.
    """

    outer = "network."

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        stem_layers: int,
        name: str,
        normalisation: Normalisation = IMAGENET,
        ends: Sequence[int] = (),
    ) -> None:
        """Take a network over.

        Args:
            network: its layers are used in place.
            layers: their names, in order.
            stem_layers: how many of them are the stem.
            name: what to call the network.
            normalisation: of the pixels that it was trained on.
            ends: the place of the last layer of each level; by default the last layer is the only level.
        """
        super().__init__()
        self.network, self.name, self.normalisation = network, name, normalisation
        self._names, self._stem_layers = list(layers), stem_layers
        self._ends = list(ends) or [len(layers) - 1]
        was_training = network.training
        self.eval()
        with torch.no_grad():
            levels = self.features(sample_image())
        self.strides = tuple(SIDE // level.shape[2] for level in levels)  # type: ignore[assignment]
        self.channels = tuple(level.shape[1] for level in levels)  # type: ignore[assignment]
        self.train(was_training)

    def stem_modules(self) -> list[nn.Module]:
        """Return the layers of the stem."""
        return self.layers()[: self._stem_layers]

    def stem(self, images: Tensor) -> Tensor:
        """Return what the last layer of the stem gives for ``images`` (N, 3, H, W)."""
        for layer in self.layers()[: self._stem_layers]:
            images = layer(images)
        return images

    def trunk(self, stem: Tensor) -> Tensor:
        """Return the last level from the output of the stem."""
        for layer in self.layers()[self._stem_layers :]:
            stem = layer(stem)
        return stem

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the output of the last layer of every level."""
        levels: list[Tensor] = []
        for place, layer in enumerate(self.layers()):
            images = layer(images)
            levels += [images] * self._ends.count(place)
        return levels

    def layers(self) -> list[nn.Module]:
        """Return the layers in order."""
        return [self.network.get_submodule(name) for name in self._names]


def sample_image() -> Tensor:
    """Return an image (1, 3, S, S) that is not the same everywhere."""
    image = torch.zeros(1, 3, SIDE, SIDE)
    image[..., ::3, ::5] = 1.0
    return image


def layers_in_a_row(network: nn.Module, is_end: Callable[[Tensor], bool]) -> list[str] | None:
    """Return the names of the layers that, one after the other, turn `sample_image` into what is looked for.

    Args:
        network: in evaluation mode; its children are its layers in order, those of a container in its place.
        is_end: whether this is what is looked for.

    Returns:
        None where there are no such layers.
    """
    layers: list[tuple[str, nn.Module]] = []
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            layers += [(f"{name}.{each}", layer) for each, layer in child.named_children()]
        else:
            layers.append((name, child))
    names: list[str] = []
    features = end = sample_image()
    wanted = 0
    with torch.no_grad():
        for name, layer in layers:
            try:
                features = layer(features)
            except Exception:  # noqa: BLE001 - a layer that follows another one may raise anything
                break
            if not isinstance(features, Tensor) or features.ndim != 4 or (wanted and features.shape != end.shape):
                break
            names.append(name)
            if is_end(features):
                # A residual block may change nothing before it has learnt: it is one of the layers all the same.
                wanted, end = wanted if wanted and not list(layer.parameters()) else len(names), features
            elif wanted:
                break
    return names[:wanted] or None


def not_in_a_row(name: str) -> UsageError:
    """Return the refusal of a network without such layers."""
    return UsageError(
        f"{name} is not built of layers that follow one another, so it cannot be divided into a frozen stem and what "
        "learns: choose a network such as a ResNet, RegNet or EfficientNet."
    )


def behind_pooling(name: str) -> UsageError:
    """Return the refusal of a network that does more than average its features before it classifies them."""
    return UsageError(
        f"{name} does more than to average its maps of features before its head (a layer behind the pooling, say), so "
        "that its head on them is no class activation map: a network is needed whose head is one linear layer on "
        "globally averaged features."
    )


def cannot_run(name: str, error: Exception) -> UsageError:
    """Return the refusal of a network that takes images of one size, or larger ones, or of another kind."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UsageError(
        f"{name} cannot run on a colour image of {SIDE} × {SIDE} pixels ({reason}): a convolutional network for images "
        "of any size is needed."
    )


def strides_of(network: nn.Module, layers: Sequence[str]) -> list[float]:
    """Return how many pixels of `sample_image` a cell of every layer's output has."""
    image, strides = sample_image(), []
    with torch.no_grad():
        for name in layers:
            image = network.get_submodule(name)(image)
            strides.append(SIDE / image.shape[2])
    return strides
