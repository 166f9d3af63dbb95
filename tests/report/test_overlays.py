"""An overlay shows the mask on the image to the pixel, and names the classes found, no others."""

import numpy as np
import pytest

from ribray.data.dataset import colour_map
from ribray.report.overlays import legend_overlay, mask_overlay

NAMES = ["cat", "dog", "sea", "a name of very many letters indeed, longer than any"]


def example(height: int, width: int, *values: int) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for place, value in enumerate(values):
        mask[: (place + 1) * 5, place * 8 : place * 8 + 8] = value
    return image, mask


def colours_of(strip: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(strip.reshape(-1, 3), axis=0).tolist()}


@pytest.mark.parametrize(("height", "width"), [(120, 160), (300, 40), (40, 300)])
def test_the_image_is_untouched_and_the_legend_names_what_is_there(height, width):
    palette = colour_map()
    image, mask = example(height, width, 1, 3, 255)
    picture = legend_overlay(image, mask, NAMES, palette)
    assert np.array_equal(picture[:height, :width], mask_overlay(image, mask, palette))
    shown = colours_of(picture[height:])
    assert {tuple(palette[value].tolist()) for value in (1, 3)} <= shown
    assert tuple(palette[2].tolist()) not in shown
    assert tuple(palette[255].tolist()) not in shown
    assert (picture[-1] == 255).all()  # nothing is cut off


def test_the_largest_class_comes_first():
    palette = colour_map()
    image, mask = example(60, 300, 1, 2)  # 5 and 10 rows
    strip = legend_overlay(image, mask, NAMES, palette)[60:]
    columns = [np.nonzero((strip == palette[value]).all(2))[1].min() for value in (2, 1)]
    assert columns == sorted(columns)


def test_a_long_legend_takes_more_lines_and_a_long_name_more_width():
    palette = colour_map()
    strips = [legend_overlay(*example(100, 80, *values), NAMES, palette)[100:] for values in ((1,), (1, 2, 3), (4,))]
    assert strips[0].shape[1] == strips[1].shape[1] == 80
    assert strips[1].shape[0] > strips[0].shape[0]
    assert strips[2].shape[1] > 80
    assert (strips[2][:, -1] == 255).all()


def test_an_image_without_objects_says_so():
    image, mask = example(60, 80)
    picture = legend_overlay(image, mask, NAMES, colour_map())
    assert (picture[60:] < 128).any()
