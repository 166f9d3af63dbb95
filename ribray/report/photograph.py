"""The picture of one photograph's maps, as the command ``map`` and `ribray.Result` show them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ribray.data.dataset import colour_map
from ribray.report.figures import ImageRow, growth_figure


def draw_photograph(
    image: np.ndarray,
    names: Sequence[str],
    cams: np.ndarray,
    maps: np.ndarray,
    mask: np.ndarray,
    threshold: float,
    destination: Path,
) -> None:
    """Draw a row per class: the image, its CAM, its map and its part of the mask; write a PNG.

    Args:
        image: (H, W, 3) uint8.
        names: of the classes; of synonyms that are set apart by commas, the first one is shown.
        cams: (P, H, W) float32, the plain class activation maps.
        maps: (P, H, W) float32, the localization maps.
        mask: (H, W) uint8; a class's pixels are those at which its map is the largest one.
        threshold: of the mask, which the picture states.
        destination: the PNG to write.
    """
    heading, owner = f"RIB ≥ {threshold:.2f} (Otsu)", maps.argmax(0)
    rows = [
        ImageRow(
            image,
            [name.partition(",")[0]],
            {"CAM": cams[[place]], "RIB": maps[[place]]},
            colour_map(),
            masks={heading: np.where(owner == place, mask, 0).astype(np.uint8)},
        )
        for place, name in enumerate(names)
    ]
    growth_figure(rows, destination, most_across=1)
