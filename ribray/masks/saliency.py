"""Saliency maps made by another program, and what they say against a mask (RIB-Sal)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ribray.data.dataset import BACKGROUND, IGNORE
from ribray.data.images import read_image
from ribray.errors import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Endings of saliency maps, in the order in which they are looked for."""

SALIENT = 0.5
"""Share of full brightness from which a pixel is salient."""


def read_saliency(folder: Path, id: str, size: tuple[int, int], threshold: float = SALIENT) -> NDArray[np.bool_]:
    """Read which pixels of an image are salient, from the grey picture ``folder/id`` with one of `SUFFIXES`.

    Grey may be stored with 1, 8 or 16 bits (of which the high byte counts), or as equal red, green and blue;
    what is transparent is white.

    Args:
        folder: the saliency maps of a data set.
        id: the image, with its subfolder where it has one.
        size: height and width of the image.
        threshold: share of full brightness from which a pixel is salient.

    Returns:
        (height, width) bool.

    Raises:
        ImageError: there is no such file, or it is damaged, coloured, or of another size than the image.
    """
    candidates = [folder / f"{id}{suffix}" for suffix in SUFFIXES]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ImageError(f"{id} has no saliency map: none of {', '.join(map(str, candidates))} exists.")
    picture = read_image(path)
    grey = picture[..., 0]
    if (picture != grey[..., None]).any():
        raise ImageError(f"{path} is coloured, where a saliency map is grey.")
    if grey.shape != size:
        raise ImageError(f"{path} is {grey.shape[1]} × {grey.shape[0]} pixels, but its image is {size[1]} × {size[0]}.")
    return grey >= threshold * np.iinfo(np.uint8).max


def mark_conflicts(mask: NDArray[np.uint8], salient: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the mask with "ignored" where it and the saliency map disagree.

    They disagree where foreground is not salient and where background is. Ignored pixels stay ignored.

    Args:
        mask: (height, width) uint8.
        salient: (height, width) bool.

    Returns:
        (height, width) uint8 mask.

    Raises:
        ValueError: mask and saliency map differ in size.
    """
    if mask.shape != salient.shape:
        raise ValueError(f"A mask of shape {mask.shape} does not go with a saliency map of shape {salient.shape}.")
    return np.where((mask != BACKGROUND) == salient, mask, np.uint8(IGNORE))
