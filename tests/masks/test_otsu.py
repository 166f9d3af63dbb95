import numpy as np
import pytest

from ribray.masks.otsu import otsu_threshold


def test_two_groups_are_parted_in_the_middle_between_them() -> None:
    scores = np.concatenate([np.full(300, 0.1), np.full(100, 0.9)])
    assert otsu_threshold(scores.reshape(20, 20)) == pytest.approx(0.5, abs=0.01)


def test_it_is_the_threshold_that_leaves_the_least_variance_within_the_groups() -> None:
    scores = np.random.default_rng(0).beta(0.6, 2.0, 20_000)
    edges = np.arange(8, 240) / 256
    within = [
        scores[scores < edge].var() * (scores < edge).mean() + scores[scores >= edge].var() * (scores >= edge).mean()
        for edge in edges
    ]
    assert otsu_threshold(scores) == pytest.approx(edges[np.argmin(within)], abs=2 / 256)


def test_scores_that_cannot_be_parted_are_one_group() -> None:
    assert otsu_threshold(np.full((4, 5), 0.7)) == 0.0
