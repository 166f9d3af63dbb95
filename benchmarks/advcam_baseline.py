"""AdvCAM of one image as docs/method.md, section 6, reads when it is written down as it stands.

Contiguous float32, a climb for every scale and class, and in every step a forward pass and two backward passes of the
whole network: Grad-CAM's, for the attribution, and the objective's. As in the published code all weights but those of
the first convolution and its batch norm take part in both backward passes, and their gradients are thrown away. It is
what the product is compared with, in time and in numbers; both see the same weights and views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ribray.config import AdvCAMConfig
from ribray.networks import Classifier


class Baseline:
    """Climbs on images one after the other.

    Args:
        classifier: its own from here on.
        config: settings of the climbs.
        device: where to compute.
    """

    def __init__(self, classifier: Classifier, config: AdvCAMConfig, device: torch.device) -> None:
        self.classifier = classifier.to(device).eval().requires_grad_(True)
        for kind in (nn.Conv2d, nn.BatchNorm2d):
            next(module for module in self.classifier.modules() if isinstance(module, kind)).requires_grad_(False)
        self.config, self.device = config, device

    def climb(self, views: Sequence[Tensor], steps: int, index: int) -> list[list[Tensor]]:
        """Return per scale the attributions (h, w) of so many steps for one class, the last step with its update.

        Args:
            views: per scale (2, 3, H, W) float32, the normalised image and its horizontal flip.
            steps: of every scale.
            index: the class.
        """
        return [self._climb(view.to(self.device), steps, index) for view in views]

    def _climb(self, pair: Tensor, steps: int, index: int) -> list[Tensor]:
        config, attributions = self.config, []
        for _ in range(steps):
            pair = pair.detach().requires_grad_()
            features = self.classifier.backbone.features(pair)[-1]  # (2, features, h, w)
            features.retain_grad()
            cams = self.classifier.head(features)  # (2, C, h, w)

            self._clear()
            cams[:, index].relu().sum().backward(retain_graph=True)
            gradient = features.grad
            importance = gradient.sum((2, 3)) / ((gradient > 0).sum() + 1e-12)  # (2, features)
            view, flipped = (importance[:, :, None, None] * features).sum(1).relu()
            attribution = view + flipped.flip(-1)  # (h, w)
            attributions.append(attribution.detach())

            first = attributions[0]
            mask = attributions[-1] / attributions[-1].max() > config.score_threshold
            scores = cams.relu().mean((2, 3))  # (2, C)
            others = scores.sum() - scores[:, index].sum()
            distance = (mask * (attribution - first).abs()).sum()
            objective = scores[:, index].sum() - others - config.regularizer * distance

            self._clear()
            pair.grad = None
            objective.backward()
            with torch.no_grad():
                lowest, highest = pair.min().item(), pair.max().item()
                step = config.step_size * pair.grad / (pair.grad.abs().max() + 1e-12)
                pair = torch.clamp(pair + step, lowest, highest)
        return attributions

    def _clear(self) -> None:
        for parameter in self.classifier.parameters():
            parameter.grad = None
