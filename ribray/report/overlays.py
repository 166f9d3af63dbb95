"""Maps and masks laid over their image, pixel for pixel; and a legend of a mask's classes below."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ribray.data.dataset import BACKGROUND, IGNORE

HEAT = "inferno"
HEAT_OPACITY, HEAT_GAMMA = 0.88, 0.6
"""The strongest score has this opacity, a score of 0 none; it rises as score ** gamma, so that weak ones are seen."""
MASK_OPACITY = 0.7
IGNORED_SHADE = 235
LUMA = (0.299, 0.587, 0.114)
GREY_RANGE = (40, 225)  # the greyed image below an overlay keeps clear of black and white
FONT, INK = "fonts/ttf/DejaVuSans.ttf", "#1b1b1f"
"""The font is in matplotlib's data folder; it has the letters of most alphabets."""
TEXT_SHARE, TEXT_PIXELS = 1 / 26, (10, 48)  # height of the letters over the image's shorter side, and its bounds
NAME_LETTERS = 32


def heat_overlay(image: NDArray[np.uint8], maps: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Lay localization maps (present classes, height, width) over the greyed image, as a share of the largest score."""
    heat = maps.max(axis=0, initial=0.0)  # (height, width)
    heat = heat / max(float(heat.max()), float(np.finfo(np.float32).eps))
    return _blend(image, 255.0 * mpl.colormaps[HEAT](heat)[..., :3], HEAT_OPACITY * heat**HEAT_GAMMA)


def mask_overlay(image: NDArray[np.uint8], mask: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a mask (height, width) in its colours over the greyed image; unknown pixels are pale."""
    colours = palette[mask].astype(float)
    colours[mask == IGNORE] = IGNORED_SHADE
    return _blend(image, colours, np.where(mask == BACKGROUND, 0.0, MASK_OPACITY))


def mask_colour(value: int, palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colour (3,) that a mask value has over a middling grey of an image."""
    return mask_overlay(np.full((1, 1, 3), 128, np.uint8), np.full((1, 1), value, np.uint8), palette)[0, 0]


def _blend(image: NDArray[np.uint8], above: NDArray, opacity: NDArray) -> NDArray[np.uint8]:
    low, high = GREY_RANGE
    grey = np.repeat((low + (image @ np.array(LUMA)) * (high - low) / 255.0)[..., None], 3, axis=2)
    share = opacity[..., None]
    return np.rint(grey * (1.0 - share) + above * share).astype(np.uint8)


def legend_overlay(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], classes: Sequence[str], palette: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Lay a mask over the greyed image, and name the classes found, the largest first, in a strip below.

    ``classes`` are the names of the mask values 1, 2, …; the picture is wider than the image where a name needs it.
    """
    height, width = mask.shape
    pixels = np.bincount(mask.ravel(), minlength=palette.shape[0])
    pixels[[BACKGROUND, IGNORE]] = 0
    found = [int(value) for value in np.argsort(-pixels, kind="stable") if pixels[value]]
    names = [classes[value - 1] for value in found] or ["no object"]
    names = [name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…" for name in names]
    letters = int(np.clip(round(min(height, width) * TEXT_SHARE), *TEXT_PIXELS))
    font, gap = ImageFont.truetype(Path(mpl.get_data_path()) / FONT, letters), letters // 2

    places, right, line, x = [], 0, 0, gap
    for name in names:  # in lines no wider than the image, if that can be
        entry = letters + gap + int(font.getlength(name) + 1)
        if x > gap and x + entry + gap > width:
            line, x = line + 1, gap
        places.append((x, height + gap + line * (letters + gap)))
        right = max(right, x + entry + gap)
        x += entry + 2 * gap
    canvas = Image.new("RGB", (max(width, right), height + (line + 1) * (letters + gap) + gap), "white")
    canvas.paste(Image.fromarray(mask_overlay(image, mask, palette)), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for name, value, (x, top) in zip(names, found or [BACKGROUND], places, strict=True):
        colour = tuple(palette[value].tolist()) if found else "white"
        draw.rectangle((x, top, x + letters - 1, top + letters - 1), fill=colour, outline=INK)
        draw.text((x + letters + gap, top + letters / 2), name, fill=INK, font=font, anchor="lm")
    return np.array(canvas)
