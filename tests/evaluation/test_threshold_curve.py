"""One pass over the images against a separate evaluation of every threshold."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import confusion_matrix, jaccard_score

from ribray.errors import ImageError
from ribray.evaluation.confusion import IGNORED, confusion, iou, miou
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import seed, winner

CLASSES = 4
VOC_THRESHOLDS = [round(0.20 + 0.01 * step, 2) for step in range(30)]
UNIT = st.floats(0, 1, width=32)


@st.composite
def rising_thresholds(draw):
    chosen = draw(st.lists(UNIT, min_size=1, max_size=8, unique=True))
    return sorted(
        set(chosen) | ({np.nextafter(np.float32(chosen[0]), np.float32(2))} if draw(st.booleans()) else set())
    )


@st.composite
def images(draw, thresholds):
    """Draw a few images: maps whose scores often equal a threshold or lie next to it, classes, truth."""
    edges = np.float32(thresholds)
    near = np.concatenate([edges, np.nextafter(edges, np.float32(2)), np.nextafter(edges, np.float32(-1))])
    scores = st.sampled_from([*near.tolist(), 0.0, -0.0, -0.5, 1.0]) | UNIT
    found = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        present = draw(st.lists(st.integers(0, CLASSES - 2), max_size=3, unique=True))
        maps = draw(hnp.arrays(np.float32, (len(present), *size), elements=scores.map(np.float32)))
        truth = draw(hnp.arrays(np.uint8, size, elements=st.integers(0, CLASSES - 1) | st.just(IGNORED)))
        found.append((maps, present, truth))
    return found


@st.composite
def worlds(draw):
    thresholds = draw(rising_thresholds())
    return thresholds, draw(images(thresholds))


def curve_of(thresholds, found):
    curve = ThresholdCurve(CLASSES, thresholds)
    for maps, present, truth in found:
        curve.add(*winner(maps, present), truth)
    return curve


def plausible_image(rng, size=(75, 100), classes=21):
    present = rng.choice(classes - 1, 3, replace=False)
    truth = rng.choice([0, *(present[:2] + 1), rng.integers(1, classes), IGNORED], size).astype(np.uint8)
    return rng.random((3, *size), np.float32), present, truth


def assert_same(one, other):
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.thresholds, other.thresholds)
    assert (one.classes, one.images) == (other.classes, other.images)


@given(worlds())
def test_every_threshold_has_the_counts_of_its_own_evaluation(world):
    thresholds, found = world
    curve = curve_of(thresholds, found)
    for index, threshold in enumerate(thresholds):
        separate = sum(confusion(truth, seed(maps, present, threshold), CLASSES) for maps, present, truth in found)
        np.testing.assert_array_equal(curve.confusion(index), separate)
        np.testing.assert_array_equal(curve.miou()[index], miou(separate))


@given(worlds(), st.randoms(use_true_random=False))
def test_parts_merge_in_any_order(world, random):
    thresholds, found = world
    parts = [curve_of(thresholds, [image]) for image in found]
    random.shuffle(parts)
    merged = ThresholdCurve(CLASSES, thresholds)
    for part in parts:
        merged.merge_sparse(part.to_sparse())
    assert_same(merged, curve_of(thresholds, found))


def of_record(record):
    curve = ThresholdCurve(int(record["classes"]), record["thresholds"])
    curve.merge_sparse(record)
    return curve


@given(worlds())
def test_a_sparse_record_gives_the_curve_again(world):
    curve = curve_of(*world)
    assert_same(of_record(curve.to_sparse()), curve)


def test_a_sparse_record_fits_into_an_npz_without_pickle():
    curve = ThresholdCurve(81, np.linspace(0.02, 0.98, 50))
    curve.add(*winner(*plausible_image(np.random.default_rng(1), classes=81)[:2]), np.zeros((75, 100), np.uint8))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **curve.to_sparse())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as record:
        assert_same(of_record(record), curve)
    assert curve.counts.nbytes < 3e6
    assert sum(array.nbytes for array in curve.to_sparse().values()) < 10_000


def test_a_whole_scan_agrees_with_scikit_learn():
    rng = np.random.default_rng(3)
    found = [plausible_image(rng) for _ in range(3)]
    curve = ThresholdCurve(21, VOC_THRESHOLDS)
    for maps, present, truth in found:
        curve.add(*winner(maps, present), truth)
    for index in (0, 13, 29):
        labels = np.concatenate([seed(maps, present, VOC_THRESHOLDS[index]).ravel() for maps, present, _ in found])
        truth = np.concatenate([truth.ravel() for *_, truth in found])
        labels, truth = labels[truth != IGNORED], truth[truth != IGNORED]
        np.testing.assert_array_equal(curve.confusion(index), confusion_matrix(truth, labels, labels=range(21)))
        held = np.union1d(labels, truth)
        expected = jaccard_score(truth, labels, labels=held, average="macro")
        assert curve.miou()[index] == pytest.approx(100 * expected)


def test_an_image_larger_than_a_chunk_is_counted_whole():
    maps, present, truth = plausible_image(np.random.default_rng(4), size=(375, 500))
    curve = ThresholdCurve(21, VOC_THRESHOLDS)
    curve.add(*winner(maps, present), truth)
    curve.add(*winner(maps[:, ::2], present), truth[::2])  # a smaller image after it
    expected = confusion(truth, seed(maps, present, 0.3), 21) + confusion(
        truth[::2], seed(maps[:, ::2], present, 0.3), 21
    )
    np.testing.assert_array_equal(curve.confusion(10), expected)


def test_thresholds_closer_than_a_bucket_are_told_apart():
    crowded = [float(np.float32(0.3) + np.float32(step) * np.float32(2e-7)) for step in range(20)]
    crowded = [low for low, high in pairwise(crowded) if np.float32(low) < np.float32(high)]
    scores = np.float32(crowded)[None]
    curve = ThresholdCurve(2, crowded)
    curve.add(np.ones(scores.shape, np.uint8), scores, np.ones(scores.shape, np.uint8))
    found = [curve.confusion(index)[1, 1] for index in range(len(crowded))]
    assert found == [int((scores > np.float32(threshold)).sum()) for threshold in crowded]


def test_a_curve_by_hand():
    # scores 0.1 (right), 0.3 (right), 0.5 (wrong: truth is background), 0.9 on an ignored pixel
    curve = ThresholdCurve(3, [0.0, 0.2, 0.4, 0.6])
    winners, scores = np.array([[1, 1, 1, 1]], np.uint8), np.array([[0.1, 0.3, 0.5, 0.9]], np.float32)
    curve.add(winners, scores, np.array([[1, 1, 0, IGNORED]], np.uint8))
    assert curve.confusion(1).tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(curve.miou(), [100 * (0 + 2 / 3) / 2, 100 * (0 + 1 / 3) / 2, 0, 100 * (1 / 3 + 0) / 2])
    best = curve.best()
    assert best.threshold == 0.0
    np.testing.assert_allclose(best.per_class, [0.0, 200 / 3, np.nan])


def test_the_lowest_of_equally_good_thresholds_is_the_best():
    curve = ThresholdCurve(2, [0.1, 0.2, 0.3])
    curve.add(np.ones((1, 1), np.uint8), np.full((1, 1), 0.9, np.float32), np.ones((1, 1), np.uint8))
    assert curve.best()[:2] == (0.1, 100.0)


def test_an_image_without_present_classes_is_evaluated_as_background():
    curve = ThresholdCurve(3, [0.0, 0.5])
    curve.add(*winner(np.zeros((0, 1, 2), np.float32), []), np.array([[0, 2]], np.uint8))
    assert curve.images == 1
    assert curve.confusion(0).tolist() == curve.confusion(1).tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_the_summary_is_json_with_thresholds_as_they_were_given():
    curve = ThresholdCurve(3, VOC_THRESHOLDS)
    curve.add(*winner(np.full((1, 1, 2), 0.255, np.float32), [0]), np.array([[1, 1]], np.uint8))
    summary = json.loads(json.dumps(curve.summary(["background", "cat", "dog"]), allow_nan=False))
    assert summary["curve"]["thresholds"] == VOC_THRESHOLDS
    assert len(summary["curve"]["miou"]) == 30
    assert (summary["miou"], summary["threshold"], summary["images"]) == (100.0, 0.2, 1)
    assert summary["per_class"] == {"background": None, "cat": 100.0, "dog": None}
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        curve.summary(["cat", "dog"])


def one_pixel(winner=0, score=0.5, truth=0, kind=np.float32, size=(1, 1)):
    return np.full(size, winner, np.uint8), np.full((1, 1), score, kind), np.full((1, 1), truth, np.uint8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (one_pixel(truth=3), "true mask holds the value 3"),
        (one_pixel(truth=254), "true mask holds the value 254"),
        (one_pixel(winner=3), "predicted mask holds the value 3"),
        (one_pixel(score=np.nan), "finite"),
        (one_pixel(score=np.inf), "finite"),
        (one_pixel(kind=np.float64), "float32"),
        (one_pixel(size=(1, 2)), "same image"),
    ],
)
def test_an_image_that_cannot_be_counted_leaves_no_trace(image, message):
    curve = ThresholdCurve(3, [0.2, 0.4])
    with pytest.raises(ImageError, match=message):
        curve.add(*image)
    assert curve.images == 0
    assert not curve.counts.any()
    with pytest.raises(ValueError, match="no best threshold"):
        curve.best()


@pytest.mark.parametrize("thresholds", [[], [0.3, 0.2], [0.2, 0.2], [0.2, 0.2 + 1e-12], [-0.1, 0.2], [np.nan], [[0.1]]])
def test_thresholds_that_make_no_scan_are_refused(thresholds):
    with pytest.raises(ValueError, match="Thresholds must"):
        ThresholdCurve(3, thresholds)


def test_curves_of_other_thresholds_or_classes_do_not_merge():
    curve = ThresholdCurve(3, [0.2, 0.4])
    for other in (ThresholdCurve(3, [0.2, 0.5]), ThresholdCurve(4, [0.2, 0.4])):
        with pytest.raises(ValueError, match="other classes or thresholds"):
            curve.merge_sparse(other.to_sparse())


def test_per_class_is_the_iou_at_the_best_threshold():
    rng = np.random.default_rng(5)
    curve = ThresholdCurve(21, VOC_THRESHOLDS)
    maps, present, truth = plausible_image(rng)
    curve.add(*winner(maps, present), truth)
    best = curve.best()
    assert best.miou == curve.miou().max()
    np.testing.assert_array_equal(best.per_class, iou(confusion(truth, seed(maps, present, best.threshold), 21)))
