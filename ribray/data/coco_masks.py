"""The outlines of COCO's annotations: polygons and run lengths, checked and drawn."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rasteriser

from ribray.data.dataset import BACKGROUND
from ribray.errors import ImageError

_POLYGON_COORDINATES = 6  # three corners; pycocotools takes four numbers for a box
_MAX_RUN_DIGITS = 7  # of five bits each, more than any image needs


def draw_mask(instances: Sequence[tuple[int, Any]], height: int, width: int, where: str) -> np.ndarray:
    """Draw instances (mask value, segmentation), the largest first; (H, W) uint8. ``where`` is an instance's name."""
    outlines = [_to_rle(segmentation, height, width, where) for _, segmentation in instances]
    areas = np.array([int(rasteriser.area(outline)) for outline in outlines], dtype=np.int64)
    mask = np.full((height, width), BACKGROUND, dtype=np.uint8)
    for place in np.argsort(-areas, kind="stable"):
        mask[rasteriser.decode(outlines[place]).astype(bool)] = instances[place][0]
    return mask


def is_blank(segmentation: Any, height: int, width: int) -> bool:
    """Whether run lengths hold no pixel; polygons always mean some, even those of less than one pixel."""
    return isinstance(segmentation, dict) and not rasteriser.area(_to_rle(segmentation, height, width, "an object"))


def reach(segmentations: Iterable[Any]) -> tuple[float, float]:
    """Return how far outlines reach down and to the right, pixels: of run lengths, the size of their picture."""
    down = right = 0.0
    for segmentation in segmentations:
        if isinstance(segmentation, dict):
            height, width = _size(segmentation) or (0, 0)
            down, right = max(down, height), max(right, width)
        elif isinstance(segmentation, list):
            polygons = [polygon for polygon in segmentation if isinstance(polygon, list) and _are_finite(polygon)]
            down = max([down, *(number for polygon in polygons for number in polygon[1::2])])
            right = max([right, *(number for polygon in polygons for number in polygon[::2])])
    return down, right


def _to_rle(segmentation: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """Check a segmentation and return it as pycocotools' run lengths; its C code trusts what it is given."""
    if isinstance(segmentation, dict) and segmentation:
        return _from_runs(segmentation, height, width, where)
    fault, polygons = None, []
    if not segmentation:
        what = "no" if segmentation is None else "an empty"
        fault = f"has {what} segmentation: without an outline it would count as background"
    elif not isinstance(segmentation, list) or not all(
        isinstance(polygon, list) and len(polygon) % 2 == 0 and _are_finite(polygon) for polygon in segmentation
    ):
        fault = "has a segmentation that is neither polygons ([[x1, y1, x2, y2, …], …]) nor run lengths"
    elif any(abs(number) > 2 * max(height, width) for polygon in segmentation for number in polygon):
        fault = f"has corners far outside its {width} × {height} pixels"
    elif max(reach((segmentation,))) <= 1 < max(height, width):
        fault = "has corners between 0 and 1: an outline is in pixels, not in parts of the image"
    elif not (polygons := [polygon for polygon in segmentation if len(polygon) >= _POLYGON_COORDINATES]):
        fault = "has a segmentation without a polygon of three corners (x1, y1, x2, y2, x3, y3)"
    if fault is not None:
        raise ImageError(f"{where[:1].upper()}{where[1:]} {fault}.")
    return rasteriser.merge(rasteriser.frPyObjects(polygons, height, width))


def _from_runs(segmentation: dict[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    size, lengths = _size(segmentation), run_lengths(segmentation.get("counts"))
    if size is not None and size != (height, width):
        unfilled = f"they do not fill its {width} × {height}"
        raise ImageError(f"The run lengths of {where} are of {size[1]} × {size[0]} pixels: {unfilled}.")
    if size is None or lengths is None or sum(lengths) != height * width:
        raise ImageError(f"The run lengths of {where} are broken: they do not fill its {width} × {height} pixels.")
    return rasteriser.frPyObjects({"size": [height, width], "counts": lengths}, height, width)


def _size(segmentation: dict[str, Any]) -> tuple[int, int] | None:
    size = segmentation.get("size")
    if isinstance(size, list) and len(size) == 2 and _are_finite(size) and size == [int(side) for side in size]:
        return int(size[0]), int(size[1])
    return None


def _are_finite(numbers: list[Any]) -> bool:
    return all(type(number) in (int, float) and abs(number) < math.inf for number in numbers)


def run_lengths(counts: Any) -> list[int] | None:
    """Return COCO run lengths (of zeros, ones, zeros, … down the columns) as numbers, or None where they are broken.

    They are a list of numbers, or the compressed text: five bits a character from the lowest on, the sixth says that
    more follow, and from the fourth number on the difference to the last but one is kept.
    """
    if isinstance(counts, list):
        return counts if all(type(count) is int and count >= 0 for count in counts) else None
    if not isinstance(counts, str):
        return None
    lengths: list[int] = []
    number = digits = 0
    for character in counts:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or digits >= _MAX_RUN_DIGITS:
            return None
        number |= (bits & 31) << (5 * digits)
        digits += 1
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << (5 * digits)
        number += lengths[-2] if len(lengths) > 2 else 0
        if number < 0:
            return None
        lengths.append(number)
        number = digits = 0
    return None if digits else lengths
