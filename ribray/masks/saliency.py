"""Saliency maps made by another program, and what they say against a mask (RIB-Sal)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ribray import storage
from ribray.data.dataset import BACKGROUND, IGNORE
from ribray.data.depth import FULL, SIXTEEN_BITS
from ribray.data.images import Picture, read_picture
from ribray.errors import ImageError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Endings of saliency maps, in the order in which they are looked for."""
SALIENT = 0.5
"""Share of full brightness from which a pixel is salient."""
BINARY = "a saliency map of the values 0 and 1 alone, of which 1 is read as salient"
NOTHING = "no salient pixel in the saliency map"
"""What a person should know of a map."""
LEAST_AGREEMENT = 0.25
"""Share of the pixels in which maps and masks say the same; with less, inverted maps would agree far better."""


def saliency_folder(given: str | None) -> Path | None:
    """Return the folder of ``masks.saliency``; a worker may have another working directory."""
    folder = None if given is None else storage.absolute(given)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"masks.saliency={given} is no folder; it must hold a saliency map ID.png per image.")
    return folder


def read_saliency(
    folder: Path, id: str, size: tuple[int, int], threshold: float = SALIENT
) -> tuple[NDArray[np.bool_], str | None]:
    """Read which pixels of an image are salient, from the grey picture ``folder/id`` with one of `SUFFIXES`.

    Grey may be stored with 1, 8 or 16 bits, as numbers from 0 to 1, or as equal red, green and blue; a pixel is salient
    from the share `threshold` of full brightness on. A map of the values 0 and 1 alone is a mask: a soft map whose
    strongest pixel has 1 of 255 is far rarer.

    Returns:
        (height, width) bool, of the image's `size`, and what a person should know: `BINARY`, `NOTHING` or None.

    Raises:
        ImageError: there is no such file, or it is damaged, coloured, transparent, or of another size than the image.
    """
    candidates = [folder / f"{id}{suffix}" for suffix in SUFFIXES]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ImageError(f"{id} has no saliency map: none of {', '.join(map(str, candidates))} exists.")
    picture = read_picture(path)
    grey = picture.pixels[..., 0]
    if (picture.pixels != grey[..., None]).any():
        raise ImageError(f"{path} is coloured, where a saliency map is grey: 255 is salient, 0 is not.")
    if picture.opacity is not None and picture.opacity[0] < np.iinfo(np.uint8).max:
        raise ImageError(f"{path} is transparent in places, which may mean either: save it as grey without alpha.")
    if grey.shape != size:
        raise ImageError(f"{path} is {grey.shape[1]} × {grey.shape[0]} pixels, but its image is {size[1]} × {size[0]}.")
    white = _white(picture)
    if white == np.iinfo(np.uint8).max and grey.max() == 1:
        return grey > 0, BINARY
    salient = grey >= threshold * white
    return salient, None if salient.any() else NOTHING


def _white(picture: Picture) -> float:
    """Return the grey that means full saliency.

    A weak map need not reach it: values of 16 bits are a share of 65535, unless they end at 255 or are 0 and 1.
    """
    white, scale, top = np.iinfo(np.uint8).max, picture.scale, picture.pixels.max()
    if scale is None or scale.kind != SIXTEEN_BITS or (scale.white == white and top in (1, white)):
        return white
    return white * FULL / scale.white


def agreement(mask: NDArray[np.uint8], salient: NDArray[np.bool_]) -> tuple[int, int]:
    """Return in how many pixels a mask and a saliency map say the same, and of how many; ignored ones do not count."""
    counts = mask != IGNORE
    return int((((mask != BACKGROUND) == salient) & counts).sum()), int(counts.sum())


def mark_conflicts(mask: NDArray[np.uint8], salient: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the mask (height, width) uint8 with "ignored" where it and the saliency map (height, width) bool disagree.

    They disagree where foreground is not salient and where background is. Ignored pixels stay ignored.

    Raises:
        ValueError: mask and saliency map differ in size.
    """
    if mask.shape != salient.shape:
        raise ValueError(f"A mask of shape {mask.shape} does not go with a saliency map of shape {salient.shape}.")
    return np.where((mask != BACKGROUND) == salient, mask, np.uint8(IGNORE))
