"""The initial seed: localization maps of the present classes cut at a threshold.

Mask values are 0 for background and class index + 1 for a class.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ribray.data.dataset import BACKGROUND, IGNORE

HIGHEST_CLASS = IGNORE - 2
"""The last class index a mask can hold: its value, the index + 1, is the last below that of ignored pixels."""


def winner(maps: NDArray[np.float32], present: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the mask value of each pixel's strongest class, and its score: every threshold's seed follows from them.

    Args:
        maps: (present classes, height, width) float32, one localization map per present class.
        present: (present classes,) their class indices, each once.

    Returns:
        (height, width) uint8, of equally strong classes the lowest, and (height, width) float32. Without any present
        class: all background with a score of 0.

    Raises:
        ValueError: maps and classes do not belong together.
    """
    classes = np.asarray(present, dtype=np.int64)
    if maps.ndim != 3 or classes.shape != maps.shape[:1]:
        raise ValueError(
            f"Localization maps of shape {maps.shape} do not go with {classes.size} present classes; "
            f"({classes.size}, height, width) would."
        )
    if len(np.unique(classes)) != len(classes):
        raise ValueError(f"The present classes {classes.tolist()} name a class twice.")
    if len(classes) and not 0 <= classes.min() <= classes.max() <= HIGHEST_CLASS:
        raise ValueError(f"The present classes {classes.tolist()} leave the range 0 to {HIGHEST_CLASS} of a mask.")
    size = maps.shape[1:]
    if not len(classes):
        return np.full(size, BACKGROUND, np.uint8), np.zeros(size, np.float32)
    first, *others = np.argsort(classes)
    values = np.full(size, classes[first] + 1, np.uint8)
    scores = maps[first].astype(np.float32)
    for row in others:  # a few classes at most; numpy's argmax over the first axis is ten times slower
        np.copyto(values, np.uint8(classes[row] + 1), where=maps[row] > scores)
        np.maximum(scores, maps[row], out=scores)
    return values, scores


def seed(maps: NDArray[np.float32], present: ArrayLike, threshold: float) -> NDArray[np.uint8]:
    """Return the seed, a mask (height, width) uint8: argmax over [threshold, maps] at each pixel, background first.

    A pixel belongs to a class only where the class's score is above `threshold`, compared in float32; of
    equal scores the lowest class wins. Maps and present classes are as `winner` has them, and are refused as there.
    """
    values, scores = winner(maps, present)
    return np.where(scores > np.float32(threshold), values, np.uint8(BACKGROUND))
