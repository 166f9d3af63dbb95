"""Masks cut from localization maps at two thresholds, with the pixels between them left open (IRN, section 4.1).

Above the high threshold a pixel is surely its class, below the low one surely background; what lies between is
"ignored". The same cut makes IRN's confident labels and pseudo masks with an ignored band.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ribray.data.dataset import BACKGROUND, IGNORE
from ribray.masks.crf import Crf, CrfParameters
from ribray.masks.seed import seed


def cut(
    image: NDArray[np.uint8] | None,
    maps: NDArray[np.float32],
    present: ArrayLike,
    fg_threshold: float,
    bg_threshold: float,
    crf: CrfParameters | None,
) -> NDArray[np.uint8]:
    """Return the mask (height, width) uint8 that two readings of the same maps agree upon.

    A reading is the seed at a threshold, passed through the CRF over background and the present classes. The
    mask holds the class where the reading at `fg_threshold` has one, background where both readings have
    background, and "ignored" where only the reading at `bg_threshold` has a class.

    Args:
        image: (height, width, 3) uint8; None if there is no CRF.
        maps: (present classes, height, width) float32, at the image's size.
        present: (present classes,) class indices of the maps, each once; without any all is background.
        fg_threshold: score above which a pixel is foreground.
        bg_threshold: score up to which it is background, at most `fg_threshold`; if equal, nothing is ignored.
        crf: the CRF of each reading; None: the seeds as they are.

    Raises:
        UsageError: the CRF is not installed.
        ValueError: maps are not finite, or maps, classes, image, CRF and thresholds do not belong together.
    """
    if not bg_threshold <= fg_threshold:
        raise ValueError(f"The background threshold {bg_threshold} is above the foreground threshold {fg_threshold}.")
    if not np.isfinite(maps).all():
        raise ValueError("The localization maps are not all finite numbers.")
    if image is not None and image.shape[:2] != maps.shape[1:]:
        raise ValueError(f"Localization maps of shape {maps.shape} do not go with an image of {image.shape[:2]}.")
    if crf is not None and image is None:
        raise ValueError("The CRF needs the image.")
    keys = np.array([BACKGROUND, *np.sort(np.asarray(present, dtype=np.int64)) + 1], dtype=np.uint8)
    follow = Crf(image, len(keys), crf) if crf is not None and image is not None else None

    def reading(threshold: float) -> NDArray[np.uint8]:
        mask = seed(maps, present, threshold)
        return mask if follow is None else keys[follow.from_labels(np.searchsorted(keys, mask))]

    mask = reading(fg_threshold)
    if bg_threshold < fg_threshold:
        low = reading(bg_threshold)
        mask[(mask == BACKGROUND) & (low != BACKGROUND)] = IGNORE
    return mask


def foreground_reading(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the reading at the high threshold: a mask (height, width) of `cut` with ignored pixels as background.

    `cut` opens only pixels that this reading calls background and leaves all others as they are, so nothing
    was lost: the result is the seed at `fg_threshold` after the CRF, and its mIoU tells what the CRF gave.
    """
    return np.where(mask == IGNORE, np.uint8(BACKGROUND), mask)
