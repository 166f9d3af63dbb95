"""The seed against its definition: argmax over [threshold, maps], background first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ribray.masks.seed import seed, winner

# Few different scores, so that ties among classes and with the threshold are frequent.
SCORES = st.sampled_from([np.float32(value) for value in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)])


@st.composite
def maps_and_classes(draw):
    present = draw(st.lists(st.integers(0, 253), max_size=4, unique=True))
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return draw(hnp.arrays(np.float32, (len(present), *size), elements=SCORES)), np.array(present, dtype=np.int64)


def seed_by_definition(maps, present, threshold):
    order = np.argsort(present)
    stack = np.concatenate([np.full((1, *maps.shape[1:]), threshold, np.float32), maps[order]])
    return np.array([0, *(present[order] + 1)])[stack.argmax(axis=0)]


@given(maps_and_classes(), SCORES)
def test_the_seed_is_the_argmax_over_threshold_and_maps(case, threshold):
    maps, present = case
    result = seed(maps, present, threshold)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, seed_by_definition(maps, present, threshold))


@given(maps_and_classes(), SCORES, st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(case, threshold, random):
    maps, present = case
    order = random.sample(range(len(present)), len(present))
    np.testing.assert_array_equal(seed(maps, present, threshold), seed(maps[order], present[order], threshold))


def test_a_score_equal_to_the_threshold_is_background():
    maps = np.array([[[0.2, np.nextafter(np.float32(0.2), np.float32(1))]]], np.float32)
    assert seed(maps, [4], 0.2).tolist() == [[0, 5]]


def test_ties_go_to_the_lowest_class():
    maps = np.full((3, 1, 1), 0.7, np.float32)
    values, scores = winner(maps, [9, 2, 5])
    assert (values.item(), scores.item()) == (3, np.float32(0.7))


def test_an_image_without_present_classes_is_all_background():
    values, scores = winner(np.zeros((0, 2, 3), np.float32), [])
    assert values.shape == scores.shape == (2, 3)
    assert not values.any()
    assert not scores.any()
    assert not seed(np.zeros((0, 2, 3), np.float32), [], 0.0).any()


def test_the_maps_are_left_as_they_were():
    maps = np.random.default_rng(0).random((3, 4, 5), np.float32)
    before = maps.copy()
    winner(maps, [0, 1, 2])
    np.testing.assert_array_equal(maps, before)


@pytest.mark.parametrize(
    ("shape", "present", "message"),
    [
        ((2, 3, 3), [1], r"\(1, height, width\) would"),
        ((3, 3), [1, 2, 3], "do not go with"),
        ((2, 3, 3), [1, 1], "name a class twice"),
        ((1, 3, 3), [254], "leave the range 0 to 253"),
        ((1, 3, 3), [-1], "leave the range"),
    ],
)
def test_maps_and_classes_that_do_not_belong_together_are_refused(shape, present, message):
    with pytest.raises(ValueError, match=message):
        seed(np.zeros(shape, np.float32), present, 0.3)
