"""Masks cut at two thresholds: against recorded outputs, and against their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ribray.masks.confident import cut, foreground_reading
from ribray.masks.crf import LABEL_CRF, Crf
from ribray.masks.seed import seed

SCORES = st.sampled_from([np.float32(value) for value in (0.0, 0.1, 0.17, 0.2, 0.35, 0.5, 1.0)])


@st.composite
def maps_and_classes(draw):
    present = draw(st.lists(st.integers(0, 253), max_size=4, unique=True))
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return draw(hnp.arrays(np.float32, (len(present), *size), elements=SCORES)), present


def picture(height=24, width=32):
    """A bright disc before a dark ground, and the map of one class that is strong at its centre."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2)
    image = np.where(distance[..., None] < 8, 220, 40).repeat(3, axis=-1).astype(np.uint8)
    return image, np.clip(1 - distance / 12, 0, 1)[None].astype(np.float32)


@pytest.mark.parametrize("name", ["dense_crf_ir_label.npz", "dense_crf_ir_label_2.npz"])
def test_the_recorded_confident_labels_are_met_exactly(shared_dir, name):
    case = np.load(shared_dir / "golden" / name)
    high, low = float(case["conf_fg_threshold"]), float(case["conf_bg_threshold"])
    mask = cut(case["image"], case["cam"], case["keys"][1:] - 1, high, low, LABEL_CRF)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, case["ir_label"])


@given(maps_and_classes(), SCORES, SCORES)
def test_without_crf_a_pixel_is_its_class_above_the_high_threshold_and_background_below_the_low(case, one, other):
    maps, present = case
    low, high = sorted((one, other))
    mask = cut(None, maps, present, high, low, None)
    best = maps.max(axis=0, initial=0)
    np.testing.assert_array_equal(mask == 0, best <= low)
    np.testing.assert_array_equal(mask == 255, (best > low) & (best <= high))
    np.testing.assert_array_equal(mask[best > high], seed(maps, present, high)[best > high])
    np.testing.assert_array_equal(foreground_reading(mask), seed(maps, present, high))
    assert not ((low == high) and (mask == 255).any())


def test_the_foreground_reading_is_the_seed_at_the_high_threshold_through_the_crf(shared_dir):
    case = np.load(shared_dir / "golden" / "dense_crf_ir_label.npz")
    mask = cut(case["image"], case["cam"], case["keys"][1:] - 1, 0.35, 0.17, LABEL_CRF)
    assert (mask == 255).any()
    np.testing.assert_array_equal(foreground_reading(mask), case["keys"][case["crf_fg_labels"]])


def test_equal_thresholds_are_one_pass_through_the_crf():
    image, maps = picture()
    mask = cut(image, maps, [6], 0.4, 0.4, LABEL_CRF)
    refined = Crf(image, 2, LABEL_CRF).from_labels((maps[0] > np.float32(0.4)).astype(int))
    np.testing.assert_array_equal(mask, refined * 7)
    assert set(np.unique(mask)) == {0, 7}


def test_the_order_of_the_classes_does_not_matter(shared_dir):
    case = np.load(shared_dir / "golden" / "dense_crf_ir_label.npz")
    backwards = cut(case["image"], case["cam"][::-1], case["keys"][:0:-1] - 1, 0.35, 0.17, LABEL_CRF)
    np.testing.assert_array_equal(backwards, case["ir_label"])


@pytest.mark.parametrize("crf", [None, LABEL_CRF])
def test_without_present_classes_all_is_background(crf):
    image, maps = picture()
    assert not cut(image, maps[:0], [], 0.35, 0.17, crf).any()


def test_without_a_confident_pixel_all_is_ignored():
    image, maps = picture()
    assert (cut(image, np.full_like(maps, 0.25), [3], 0.35, 0.17, LABEL_CRF) == 255).all()


def test_the_maps_are_left_as_they_were():
    image, maps = picture()
    before = image.copy(), maps.copy()
    mask = cut(image, maps, [0], 0.35, 0.17, LABEL_CRF)
    open_pixels = mask.copy()
    foreground_reading(mask)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(maps, before[1])
    np.testing.assert_array_equal(mask, open_pixels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    image, maps = picture()
    maps[0, 3, 4] = value
    with pytest.raises(ValueError, match="finite"):
        cut(image, maps, [0], 0.35, 0.17, LABEL_CRF)


def test_arguments_that_do_not_belong_together_are_refused():
    image, maps = picture()
    with pytest.raises(ValueError, match="above the foreground threshold"):
        cut(image, maps, [0], 0.17, 0.35, LABEL_CRF)
    with pytest.raises(ValueError, match="do not go with an image"):
        cut(image[:-1], maps, [0], 0.35, 0.17, LABEL_CRF)
    with pytest.raises(ValueError, match="needs the image"):
        cut(None, maps, [0], 0.35, 0.17, LABEL_CRF)
    with pytest.raises(ValueError, match="do not go with 2 present classes"):
        cut(image, maps, [0, 1], 0.35, 0.17, LABEL_CRF)
