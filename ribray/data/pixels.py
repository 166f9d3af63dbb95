"""One photograph in any form that Python has for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ribray import storage
from ribray.data.images import read_image
from ribray.errors import UsageError

Photograph = str | Path | Image.Image | np.ndarray | torch.Tensor
"""A file, a PIL image, (H, W, 3) uint8, or a float tensor (3, H, W) or (1, 3, H, W) with values in 0…1."""


def read_pixels(image: Photograph) -> np.ndarray:
    """Return the pixels of a photograph, (H, W, 3) uint8."""
    if isinstance(image, str | Path):
        return read_image(storage.path(image))
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(f"An image array is (height, width, 3) uint8, not {image.shape} {image.dtype}.")
        return image
    if not isinstance(image, torch.Tensor):
        raise UsageError(f"An image is a path, a PIL image, an array or a tensor, not {type(image).__name__}.")
    pixels = image.detach().cpu()
    pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
    if pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.is_floating_point():
        raise UsageError(f"An image tensor is (3, height, width) float, not {tuple(image.shape)} {image.dtype}.")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 1):  # what is no number is not either
        values = f"values in 0…1, not {low:.3g} to {high:.3g}"
        raise UsageError(f"An image tensor has {values}: hand it over before it is normalised.")
    return (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
