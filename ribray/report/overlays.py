"""A mask laid over its image, pixel for pixel, with a legend below."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ribray.data.dataset import BACKGROUND, IGNORE
from ribray.report.figures import INK, mask_overlay

FONT = "fonts/ttf/DejaVuSans.ttf"
"""In matplotlib's data folder; it has the letters of most alphabets."""
TEXT_SHARE = 1 / 26
"""Height of the letters over the image's shorter side, within `TEXT_PIXELS`."""
TEXT_PIXELS = (10, 48)
NAME_LETTERS = 32
NOTHING = "no object"


def legend_overlay(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], classes: Sequence[str], palette: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Lay a mask over the greyed image, and name the classes found, the largest first, in a strip below.

    Args:
        image: (height, width, 3) uint8.
        mask: (height, width) uint8.
        classes: names of the mask values 1, 2, …
        palette: (256, 3) uint8, a colour per mask value.

    Returns:
        (height + strip, width, 3) uint8, wider than the image where a name needs it.
    """
    height, width = mask.shape
    pixels = np.bincount(mask.ravel(), minlength=palette.shape[0])
    pixels[[BACKGROUND, IGNORE]] = 0
    found = [int(value) for value in np.argsort(-pixels, kind="stable") if pixels[value]]
    letters = int(np.clip(round(min(height, width) * TEXT_SHARE), *TEXT_PIXELS))
    font = ImageFont.truetype(Path(mpl.get_data_path()) / FONT, letters)
    names = [_shortened(classes[value - 1]) for value in found] or [NOTHING]
    places, (strip_width, strip_height) = _arrange(names, font, letters, width)

    canvas = Image.new("RGB", (max(width, strip_width), height + strip_height), "white")
    canvas.paste(Image.fromarray(mask_overlay(image, mask, palette)), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for name, value, (x, y) in zip(names, found or [BACKGROUND], places, strict=True):
        top = height + y
        colour = tuple(palette[value].tolist()) if found else "white"
        draw.rectangle((x, top, x + letters - 1, top + letters - 1), fill=colour, outline=INK)
        draw.text((x + letters + _gap(letters), top + letters / 2), name, fill=INK, font=font, anchor="lm")
    return np.array(canvas)


def _arrange(
    names: Sequence[str], font: ImageFont.FreeTypeFont, letters: int, width: int
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return the upper left corner of each entry, in lines no wider than ``width`` if that can be, and the size."""
    gap = _gap(letters)
    places, right, line, x = [], 0, 0, gap
    for name in names:
        entry = letters + gap + int(font.getlength(name) + 1)
        if x > gap and x + entry + gap > width:
            line, x = line + 1, gap
        places.append((x, gap + line * (letters + gap)))
        right = max(right, x + entry + gap)
        x += entry + 2 * gap
    return places, (right, (line + 1) * (letters + gap) + gap)


def _gap(letters: int) -> int:
    return letters // 2


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 1] + "…"
