"""Which extra samples a target gets, and in which order."""

from itertools import islice

import numpy as np
import pytest

from ribray.methods import extras
from ribray.methods.extras import ExtraOrder

IDS = [f"2007_{number:06d}" for number in range(60)]


@pytest.fixture
def labels() -> np.ndarray:
    drawn = np.random.default_rng(0).random((len(IDS), 5)) < 0.25
    drawn[7] = drawn[8] = False  # images without any object
    drawn[3] = [True, True, False, False, False]
    return drawn


def take(order: ExtraOrder, target: str, present: list[int], count: int) -> list[int]:
    return list(islice(order.draw(target, present), count))


def test_extra_samples_share_no_class_with_the_target(labels: np.ndarray) -> None:
    order = ExtraOrder(IDS, labels, seed=0)
    expected = {
        index for index in range(len(IDS)) if labels[index].any() and not labels[index, 0] and not labels[index, 1]
    }
    assert set(order.candidates(IDS[3], [0, 1]).tolist()) == expected
    assert len(order.candidates(IDS[3], [0, 1])) == len(expected)
    assert set(take(order, IDS[3], [0, 1], len(expected))) == expected


def test_images_without_object_are_no_extra_samples_where_others_can_be(labels: np.ndarray) -> None:
    assert not {7, 8} & set(ExtraOrder(IDS, labels, seed=0).candidates(IDS[3], [0, 1]).tolist())


def test_the_target_is_never_its_own_extra_sample(labels: np.ndarray) -> None:
    order = ExtraOrder(IDS, labels, seed=0)
    present = [int(np.flatnonzero(~labels[3])[0])]  # other labels than the pool's: only its id tells it apart
    assert 3 not in order.candidates(IDS[3], present)
    assert 3 in order.candidates("an image outside the pool", present)


def test_every_candidate_comes_once_before_any_comes_again_in_a_new_order(labels: np.ndarray) -> None:
    order = ExtraOrder(IDS, labels, seed=0)
    count = len(order.candidates(IDS[3], [0, 1]))
    drawn = take(order, IDS[3], [0, 1], 3 * count)
    passes = [drawn[start : start + count] for start in range(0, 3 * count, count)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_the_order_depends_on_seed_and_target_and_on_nothing_else(labels: np.ndarray) -> None:
    order = ExtraOrder(IDS, labels, seed=0)
    first = take(order, IDS[3], [0, 1], 20)
    take(order, IDS[4], [2], 5)
    assert take(order, IDS[3], [0, 1], 20) == first
    assert take(ExtraOrder(IDS, labels, seed=0), IDS[3], [0, 1], 20) == first
    assert take(ExtraOrder(IDS, labels, seed=1), IDS[3], [0, 1], 20) != first
    assert take(order, "another target", [0, 1], 20) != first


def test_images_that_leave_the_data_set_do_not_reorder_the_others(labels: np.ndarray) -> None:
    order = ExtraOrder(IDS, labels, seed=5)
    count = len(order.candidates(IDS[3], [0, 1]))
    before = [IDS[index] for index in take(order, IDS[3], [0, 1], 2 * count)]
    gone = {before[2], before[7]}
    kept = [index for index, image_id in enumerate(IDS) if image_id not in gone]
    smaller = ExtraOrder([IDS[index] for index in kept], labels[kept], seed=5)
    after = [IDS[kept[index]] for index in take(smaller, IDS[3], [0, 1], 2 * (count - 2))]
    assert after == [image_id for image_id in before if image_id not in gone]


def test_the_first_few_of_many_come_in_the_order_of_all(labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    order = ExtraOrder(IDS, labels, seed=2)
    count = 2 * len(order.candidates(IDS[3], [0, 1]))
    sorted_at_once = take(order, IDS[3], [0, 1], count)
    monkeypatch.setattr(extras, "FIRST", 4)
    assert take(order, IDS[3], [0, 1], count) == sorted_at_once


def test_the_order_is_the_same_on_every_platform() -> None:
    order = ExtraOrder(["a", "b", "c", "d", "e"], np.eye(5, dtype=bool), seed=0)
    assert take(order, "a", [0], 12) == [3, 2, 4, 1, 4, 3, 2, 1, 4, 2, 1, 3]


def test_no_candidate_gives_no_sample() -> None:
    order = ExtraOrder(["a", "b"], np.array([[True], [True]]), seed=0)
    assert len(order.candidates("a", [0])) == 0
    assert take(order, "a", [0], 3) == []


def test_images_without_object_are_drawn_where_every_other_shares_a_class() -> None:
    order = ExtraOrder(["a", "b", "c", "d"], np.array([[True], [False], [True], [False]]), seed=0)
    assert order.candidates("a", [0]).tolist() == [1, 3]
    drawn = take(order, "a", [0], 6)
    assert [sorted(drawn[start : start + 2]) for start in (0, 2, 4)] == [[1, 3]] * 3
    assert order.candidates("b", [0]).tolist() == [3]  # never the target itself


def test_positions_are_uniform() -> None:
    """Over many targets every candidate comes first about equally often."""
    count = 10
    labels = np.tile([False, True], (count, 1))  # disjoint from every target
    order = ExtraOrder([f"x{index}" for index in range(count)], labels, seed=0)
    first = np.bincount([take(order, f"target {index}", [0], 1)[0] for index in range(3000)], minlength=count)
    assert (np.abs(first - 300) < 5 * np.sqrt(300)).all()
