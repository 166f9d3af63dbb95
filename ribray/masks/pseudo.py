"""Scores of pseudo masks: localization maps after the random walk, brought to the image's size.

A pseudo mask is `ribray.masks.confident.cut` of these scores at one threshold, or at two with a band of ignored
pixels between them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

_STRIDE = 4  # pixels from one cell of the walk to the next


def walk_scores(walked: Tensor | NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return every present class's score at each pixel: (present classes, height, width) float32, the maximum 1.

    The maps are upsampled by 4 bilinearly, cropped to the image, and divided by the largest value of all
    classes together, so that the classes of one image keep their proportions; zeros where the walk left nothing.

    Args:
        walked: (present classes, h, w) float32, the maps at stride 4 after the random walk, none below 0.
        size: height and width of the image; h = ⌈height / 4⌉, w = ⌈width / 4⌉.

    Raises:
        ValueError: maps of another size, or numbers among them that are not finite.
    """
    maps = torch.as_tensor(walked, dtype=torch.float32)
    height, width = ((pixels - 1) // _STRIDE + 1 for pixels in size)
    if maps.ndim != 3 or maps.shape[1:] != (height, width):
        raise ValueError(
            f"Walked maps of shape {tuple(maps.shape)} do not go with an image of {size}; "
            f"(classes, {height}, {width}) would."
        )
    if not maps.isfinite().all():
        raise ValueError("The walked maps are not all finite numbers.")
    if not len(maps):
        return np.zeros((0, *size), np.float32)
    scores = interpolate(maps[None], scale_factor=_STRIDE, mode="bilinear", align_corners=False)
    scores = scores[0, :, : size[0], : size[1]]
    largest = scores.max()
    return (scores / largest if largest > 0 else scores).cpu().numpy()
