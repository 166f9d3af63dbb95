"""Maps after the random walk become scores at the image's size."""

import numpy as np
import pytest
import torch

from ribray.masks.confident import cut
from ribray.masks.pseudo import walk_scores


def walked(classes=2, height=5, width=7):
    return np.random.default_rng(0).random((classes, height, width), np.float32) * 3


def bilinear(maps, height, width):
    """Bilinear upsampling by 4, written out: pixel i lies at (i + 0.5) / 4 − 0.5 cells, clamped to the map."""
    for axis, pixels in ((1, height), (2, width)):
        place = np.clip((np.arange(pixels) + 0.5) / 4 - 0.5, 0, maps.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, maps.shape[axis] - 1)
        share = (place - low).reshape([-1 if dimension == axis else 1 for dimension in range(3)])
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


@pytest.mark.parametrize("size", [(20, 28), (17, 25), (18, 27)])
def test_scores_are_the_upsampled_maps_over_the_largest_value_of_all_classes(size):
    scores = walk_scores(walked(), size)
    expected = bilinear(walked(), *size)
    assert scores.shape == (2, *size)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected / expected.max(), atol=1e-6)
    assert scores.max() == 1
    assert scores.max(axis=(1, 2)).min() < 1  # the weaker class is not brought up


def test_the_largest_value_is_that_of_the_crop():
    maps = np.zeros((1, 2, 2), np.float32)
    maps[0, 0, 0], maps[0, 0, 1] = 1, 5
    assert walk_scores(maps, (5, 5)).max() == 1


def test_maps_that_are_zero_everywhere_stay_zero():
    scores = walk_scores(np.zeros((2, 5, 7), np.float32), (20, 28))
    assert not scores.any()
    assert not cut(None, scores, [0, 1], 0.3, 0.3, None).any()


def test_no_class_gives_no_scores():
    assert walk_scores(torch.zeros(0, 5, 7), (20, 28)).shape == (0, 20, 28)


def test_tensors_and_arrays_give_the_same_and_stay_as_they_were():
    maps = walked()
    np.testing.assert_array_equal(walk_scores(torch.from_numpy(maps), (20, 28)), walk_scores(maps, (20, 28)))
    np.testing.assert_array_equal(maps, walked())


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(classes, 5, 8\) would"):
        walk_scores(walked(), (20, 29))
    with pytest.raises(ValueError, match="do not go with"):
        walk_scores(walked()[0], (20, 28))
    spoilt = walked()
    spoilt[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        walk_scores(spoilt, (20, 28))
