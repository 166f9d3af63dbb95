"""The seed's mIoU at 30 thresholds: one pass over the images against 30 separate evaluations.

ribray bench threshold-curve
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import figure, interleave, ratios
from numpy.typing import NDArray

from ribray.data.dataset import BACKGROUND, IGNORE
from ribray.evaluation.confusion import confusion, miou
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import seed, winner

THRESHOLDS = [round(0.20 + 0.01 * step, 2) for step in range(30)]
CLASSES = 21
COARSEST = 16
"""Pixels of a photograph per cell of the drawn noise, as in localization maps of stride 16."""

Seed = Callable[[NDArray[np.float32], NDArray[np.int64], float], NDArray[np.uint8]]


class Image(NamedTuple):
    """Localization maps (P, H, W) float32 of the present classes (P,), and the true mask (H, W) uint8."""

    maps: NDArray[np.float32]
    present: NDArray[np.int64]
    truth: NDArray[np.uint8]


def run(*, images: int = 20, size: tuple[int, int] = (375, 500), repeats: int = 9) -> dict[str, Any]:
    """Return the figures: each round times all ways one after the other.

    Args:
        images: number of drawn images.
        size: their (height, width) in pixels.
        repeats: rounds, after one that does not count.

    Raises:
        RuntimeError: the ways do not agree to the last digit.
    """
    drawn = [draw(index, size) for index in range(images)]
    ways: dict[str, Callable[[], NDArray[np.float64]]] = {
        "one pass": lambda: one_pass(drawn),
        "30 evaluations, ribray's seed": lambda: separately(drawn, seed),
        "30 evaluations, plain argmax": lambda: separately(drawn, plain_argmax),
    }
    curves = [way() for way in ways.values()]
    difference = max(float(np.abs(curve - curves[0]).max()) for curve in curves[1:])
    if difference:
        raise RuntimeError("The threshold curves of one pass and of separate evaluations differ.")
    seconds = interleave(ways, repeats)
    figures = {name: figure(found, "s") for name, found in seconds.items()}
    first, *others = seconds.values()
    figures["times faster than ribray's seed"] = figure(ratios(others[0], first), "", at_least=15)
    figures["times faster than plain argmax"] = figure(ratios(others[1], first), "")
    figures["largest difference"] = figure(difference, "points", at_most=0)
    return {
        "settings": {"images": images, "pixels": list(size), "classes": CLASSES, "thresholds": THRESHOLDS},
        "figures": figures,
        "notes": [
            f"Baseline: an evaluation for each threshold. {images} drawn images of {size[0]}×{size[1]} with 1 to 3 of "
            f"{CLASSES - 1} classes; the mIoUs of all ways are equal to the last digit at every threshold. Ratios are "
            "taken within a round."
        ],
    }


def one_pass(images: list[Image]) -> NDArray[np.float64]:
    """Return the mIoU at every threshold: (T,) in percent."""
    curve = ThresholdCurve(CLASSES, THRESHOLDS)
    for maps, present, truth in images:
        curve.add(*winner(maps, present), truth)
    return curve.miou()


def separately(images: list[Image], seed_of: Seed) -> NDArray[np.float64]:
    """Return the same from a loop over the images for each threshold."""
    curve = []
    for threshold in THRESHOLDS:
        counts = sum(confusion(truth, seed_of(maps, present, threshold), CLASSES) for maps, present, truth in images)
        curve.append(miou(counts))
    return np.array(curve)


def plain_argmax(maps: NDArray[np.float32], present: NDArray[np.int64], threshold: float) -> NDArray[np.uint8]:
    """Return the seed as its definition has it: argmax over [threshold, maps]. `present` is in rising order."""
    background = np.full((1, *maps.shape[1:]), threshold, np.float32)
    values = np.array([BACKGROUND, *(present + 1)], np.uint8)
    return values[np.concatenate([background, maps]).argmax(axis=0)]


def draw(index: int, size: tuple[int, int]) -> Image:
    """Return an image of 1 to 3 classes: smooth blobs, and a truth that they match in part."""
    rng = np.random.default_rng(index)
    present = np.sort(rng.choice(CLASSES - 1, 1 + index % 3, replace=False))
    maps = _smooth(rng, len(present), size).clip(min=0)
    maps /= maps.max(axis=(1, 2), keepdims=True) + 1e-5
    truth = seed(maps + 0.2 * _smooth(rng, len(present), size), present, 0.35)
    truth[_smooth(rng, 1, size)[0] > 1] = IGNORE
    return Image(maps, present, truth)


def _smooth(rng: np.random.Generator, number: int, size: tuple[int, int]) -> NDArray[np.float32]:
    coarse = rng.standard_normal((1, number, *(side // COARSEST + 1 for side in size)), dtype=np.float32)
    return torch.nn.functional.interpolate(torch.from_numpy(coarse), size=size, mode="bilinear")[0].numpy()
