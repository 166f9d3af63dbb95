"""AdvCAM of one image (Lee, Kim and Yoon, CVPR 2021; docs/method.md, section 6).

RIB moves the weights for one image; AdvCAM moves the image and leaves the weights alone. A *climb* takes the pair of
views of one scale, small step by small step, along the gradient that raises the score of one present class, so that
parts of the object begin to matter that did not matter before. The attributions of all steps are summed up; a
regulariser holds back cells that already score high. Every (scale, class) is a climb of its own, which starts from the
unchanged pair.

Shapes:
    B climbs at once, each of a pair of views (the image and its horizontal flip, which are two separate images after
    the first step); T steps of a climb, C classes of the classifier, P present classes of the image, H W pixels of a
    view, h w cells of a map.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ribray.config import CAM, AdvCAMConfig
from ribray.errors import ImageError
from ribray.methods.method import Extras, Maps, Method, Passes, Refined, merge_views, to_maps
from ribray.networks.engine import Frozen

_NAME = "advcam"
_GUARD = 1e-12
_SHORTENED = 1
"""The place of the scale with fewer steps, whichever scale stands there."""
_MANY, _FEW = 10, 5
"""Above so many iterations the shortened scale takes half of them; from 6 to 10 it takes five."""
_PIXELS_AT_ONCE = {"cpu": 2**18, "cuda": 4_000_000}
"""Of a batch of climbs; a batch has one in any case."""


def steps_of(iterations: int, scales: int) -> list[int]:
    """Return T of every scale: all iterations, but fewer at the second one."""
    shortened = iterations // 2 if iterations > _MANY else min(iterations, _FEW)
    return [shortened if place == _SHORTENED else iterations for place in range(scales)]


def map_weight(iterations: int) -> int:
    """Return what the sums of all scales are multiplied by; the published code means the shortened one alone."""
    return 2 if iterations > _MANY else 1


@dataclass(frozen=True)
class Climbed:
    """What the climbs of one image leave behind, at the network's own stride and in the classifier's precision.

    Attributes:
        plain: per scale (P, h, w), the plain class activation map of the unchanged pair.
        sums: ``sums[i][t]`` (P, h, w), the weighted sum of scale i's attributions up to step t.
    """

    plain: list[Tensor]
    sums: list[list[Tensor]]


@dataclass
class Trace:
    """Inner values, to be compared with recorded ones.

    Attributes:
        values: ``values[scale, class][name]``, a list over the steps of that climb: ``cam`` (h, w), ``pooled`` (2, C),
            ``objective``, ``distance``, ``masked``, ``gradient_max``, and ``manipulated``, the pair (2, 3, H, W) after
            the step.
    """

    values: defaultdict[tuple[int, int], defaultdict[str, list[np.ndarray]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def note(self, scale: int, classes: Tensor, **values: Tensor) -> None:
        """Keep what a step of B climbs had, each of (B, …)."""
        for climb, index in enumerate(classes.tolist()):
            for name, value in values.items():
                self.values[scale, index][name].append(value[climb].detach().cpu().numpy())


@dataclass(frozen=True)
class _Look:
    """What the network sees in B pairs, each with the class that it climbs for."""

    classes: Tensor
    """(B,)"""
    attribution: Tensor
    """A (B, h, w)"""
    scores: Tensor
    """g (B, 2, C): per view the mean over all cells of ReLU(map)."""


class AdvCAM(Method):
    """Climbs on images one after the other; maps depend on the weights, the settings and the image alone.

    With bfloat16, which is autocast's, images, head, scores and maps keep the precision of the classifier.
    """

    Settings = AdvCAMConfig
    per_class = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        weights = self.classifier.head.weight.detach()
        self.dtype = weights.dtype
        self.positive_weights = (weights > 0).sum((1, 2, 3)).clamp(min=1)  # q, (C,)
        self.frozen = Frozen(self.classifier, self.computed_in)

    def refine(
        self, views: Sequence[Tensor], present: Sequence[int], extras: Extras | None = None, trace: Trace | None = None
    ) -> Refined:
        """Return the maps of one image; see `climb`. There are no extra samples."""
        self.check(views, present)
        climbed = self.climb(views, present, trace)
        steps = self.config.iterations

        def after(step: int) -> Maps:
            return to_maps([sums[min(step, len(sums) - 1)].float() for sums in climbed.sums])

        return Refined(
            classes=np.array(sorted(present), dtype=np.int64),
            maps={CAM: to_maps([each.float() for each in climbed.plain]), _NAME: after(steps - 1)},
            steps=steps,
            by_step={_NAME: [after(step) for step in range(steps)]} if self.config.keep_steps else {},
        )

    @classmethod
    def cost(cls, config: AdvCAMConfig, area: float, classes: float, extras: int) -> Passes:
        """Return the pixels of every climb; the first pass is shared, and the last one does not go backward.

        There are no gradients of weights, which are half of a backward pass, and of a call; the stem's backward pass
        is about its forward one.
        """
        climbs = steps_of(config.iterations, len(config.scales))
        pixels = [2 * scale**2 * area for scale in config.scales]
        backward = classes * sum(each * (steps - 1) for each, steps in zip(pixels, climbs, strict=True))
        forward, calls = sum(pixels) + backward, len(pixels) + classes * sum(each - 1 for each in climbs)
        return Passes(forward + backward, forward, backward / 2, calls / 2)

    def climb(self, views: Sequence[Tensor], present: Sequence[int], trace: Trace | None = None) -> Climbed:
        """Climb for every scale and present class of one image.

        Args:
            views: per scale (2, 3, H, W) float32, the normalised image and its horizontal flip.
            present: the image's classes.
            trace: collects inner values; the last step of a climb, of which nothing is used, is then taken, too.

        Raises:
            ImageError: no score depends on the pixels, or a map is not finite.
        """
        classes = torch.tensor(sorted(present), device=self.device)  # (P,)
        weight = map_weight(self.config.iterations)
        plain, sums, slopes = [], [], []
        with self.exact_float32():
            for scale, steps in enumerate(steps_of(self.config.iterations, len(views))):
                pair = views[scale].to(self.device, self.dtype, non_blocking=True)
                cam, attributions, slope = self._climb_scale(pair, classes, steps, scale, trace)
                plain.append(cam)
                sums.append([weight * total for total in itertools.accumulate(attributions)])
                slopes.append(slope)
        self._require_sense([each[-1] for each in sums], slopes)
        return Climbed(plain, sums)

    def _climb_scale(
        self, pair: Tensor, classes: Tensor, steps: int, scale: int, trace: Trace | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the plain map (P, h, w), the attributions of every step (P, h, w), and the first max |G| (P,)."""
        start = pair[None].requires_grad_()
        cams = self._cams(start)  # (1, 2, C, h, w), of which every class takes its own gradient
        looks = [self._look(cams, own) for own in classes.split(1)]
        first = torch.cat([look.attribution.detach() for look in looks])
        moved, slopes = [], []
        for look in looks:
            initial = look.attribution.detach()
            pairs, slope = self._step(start, look, initial, scale, trace, retain=look is not looks[-1])
            moved.append(pairs)
            slopes.append(slope)
        at_once = max(1, _PIXELS_AT_ONCE.get(self.device.type, 0) // pair[:, 0].numel())
        parts = [
            self._go_on(*part, steps, scale, trace)
            for part in zip(torch.cat(moved).split(at_once), classes.split(at_once), first.split(at_once), strict=True)
        ]
        attributions = [first, *(torch.cat(added) for added in zip(*parts, strict=True))]
        return merge_views(cams[0].detach()[:, classes]), attributions, torch.cat(slopes)

    def _go_on(
        self, pairs: Tensor, classes: Tensor, first: Tensor, steps: int, scale: int, trace: Trace | None
    ) -> list[Tensor]:
        """Return the attributions (B, h, w) of all steps after the first one, which has led to ``pairs``."""
        attributions = []
        for step in range(1, steps):
            moves = step < steps - 1 or trace is not None
            look = self._look(self._cams(pairs.requires_grad_(moves)), classes)
            attributions.append(look.attribution.detach())
            if moves:
                pairs, _ = self._step(pairs, look, first, scale, trace)
        return attributions

    def _cams(self, pairs: Tensor) -> Tensor:
        """Return z, the raw class activation maps (B, 2, C, h, w)."""
        return self.frozen.cams(pairs.flatten(0, 1)).unflatten(0, (-1, 2))

    def _look(self, cams: Tensor, classes: Tensor) -> _Look:
        """Return attributions and scores from ``cams`` (B, 2, C, h, w).

        The attribution is Grad-CAM's of Σ ReLU(own map), whose gradient with respect to the last features is known
        where the head is linear: the weights of the class wherever its map is positive.
        """
        positive = cams.relu()
        own = positive[torch.arange(len(classes), device=self.device), :, classes]  # (B, 2, h, w)
        counts = (own > 0).sum((2, 3))  # p, (B, 2)
        shares = counts / counts.sum(1, keepdim=True).clamp(min=1).to(self.dtype)
        factors = shares / self.positive_weights[classes, None]  # without gradient
        return _Look(classes, merge_views((own * factors[..., None, None]).transpose(0, 1)), positive.mean((3, 4)))

    def _step(
        self, pairs: Tensor, look: _Look, first: Tensor, scale: int, trace: Trace | None, retain: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Move pairs (B, 2, 3, H, W) along the gradient of their objectives; return them, and max |G| (B,).

        Args:
            pairs: what ``look`` was computed from.
            look: with gradient.
            first: the attributions at the start of the climbs, A₀ (B, h, w).
            scale: its place, for the trace.
            trace: collects inner values.
            retain: whether the forward pass is needed for another class.
        """
        config, attribution = self.config, look.attribution
        own = look.scores[torch.arange(len(first), device=self.device), :, look.classes]  # (B, 2)
        rise = (2 * own - look.scores.sum(2)).sum(1)  # the own class up, all others down
        seen = attribution.detach()
        mask = seen / seen.amax((1, 2), keepdim=True) > config.score_threshold  # 0/0 is not
        distance = (mask * (attribution - first).abs()).sum((1, 2))
        objective = rise - config.regularizer * distance  # J, (B,)
        (gradient,) = torch.autograd.grad(objective.sum(), pairs, retain_graph=retain)
        with torch.no_grad():
            largest = gradient.abs().amax((1, 2, 3, 4))
            lowest, highest = (each.float().to(self.dtype) for each in pairs.flatten(1).aminmax(dim=1))
            along = (config.step_size / (largest + _GUARD), lowest, highest)
            rate, lowest, highest = (each[:, None, None, None, None] for each in along)
            moved = torch.clamp(pairs + rate * gradient, lowest, highest)
        if trace is not None:
            values = {"cam": seen, "pooled": look.scores, "objective": objective, "distance": distance}
            values |= {"masked": mask.sum((1, 2)), "gradient_max": largest, "manipulated": moved}
            trace.note(scale, look.classes, **values)
        return moved, largest

    def _require_sense(self, sums: list[Tensor], slopes: list[Tensor]) -> None:
        """Read from the device, once an image, whether the climbs made sense; refuse the image where they did not."""
        numbers = torch.stack([torch.stack([each.sum() for each in sums]).sum(), torch.cat(slopes).amax()])
        total, slope = numbers.tolist()
        if not math.isfinite(total):
            raise ImageError("A map of AdvCAM is not finite: the network's activations are too large for this image.")
        if slope == 0:
            raise ImageError(
                "No class's score depends on this image's pixels (no class activation map is positive anywhere), so "
                "that AdvCAM has no gradient to follow."
            )
