"""One pass with integer sums against a bootstrap that draws and evaluates every replicate on its own."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from ribray.evaluation.bootstrap import REPLICATES, Bootstrap, Bootstrapped, gain_interval, image_weights
from ribray.evaluation.confusion import IGNORED, Overlaps, confusion, miou
from ribray.evaluation.mask_counts import MaskCounts
from ribray.evaluation.threshold_curve import ThresholdCurve
from ribray.masks.seed import seed, winner

CLASSES = 6
NAMES = ["background", "cat", "dog", "sea", "sky", "sun"]
THRESHOLDS = [0.0, 0.2, 0.35, 0.5, 0.9]


def random_images(seed_of_all, count=30):
    """Draw maps, the classes they are of, and truths with unknown pixels; one image has no object."""
    rng = np.random.default_rng(seed_of_all)
    found = {}
    for number in range(count):
        size = tuple(rng.integers(3, 9, 2))
        present = np.sort(rng.choice(CLASSES - 1, rng.integers(1, 3), replace=False)) if number else np.zeros(0, int)
        truth = rng.choice([0, *(present + 1), rng.integers(0, CLASSES), IGNORED], size).astype(np.uint8)
        found[f"image {number}"] = (rng.random((len(present), *size), np.float32), present, truth)
    return found


def curve_record(maps, present, truth):
    curve = ThresholdCurve(CLASSES, THRESHOLDS)
    curve.add(*winner(maps, present), truth)
    return curve.to_sparse()


def mask_record(mask, truth):
    counts = MaskCounts(CLASSES)
    counts.add(mask, truth)
    return counts.to_sparse()


def replicate_mious(matrices):
    """The plain way: every replicate's own confusion matrix, an image as often as its weight says."""
    weights = np.stack([image_weights(id) for id in matrices], axis=1)
    return np.array([miou(sum(w * one for w, one in zip(row, matrices.values(), strict=True))) for row in weights])


@pytest.mark.parametrize("number", range(3))
def test_every_replicate_of_every_threshold_is_that_of_a_plain_bootstrap(number):
    images = random_images(number)
    bootstrap, curve = Bootstrap(CLASSES, len(THRESHOLDS)), ThresholdCurve(CLASSES, THRESHOLDS)
    for id, image in images.items():
        bootstrap.add(id, curve.overlaps(curve_record(*image)))
    for place, threshold in enumerate(THRESHOLDS):
        matrices = {
            id: confusion(truth, seed(maps, present, threshold), CLASSES)
            for id, (maps, present, truth) in images.items()
        }
        expected = replicate_mious(matrices)
        np.testing.assert_array_equal(bootstrap.miou(place), expected)
        assert bootstrap.interval(place) == tuple(np.percentile(expected, [2.5, 97.5]))


def test_a_masks_unknown_pixels_are_read_as_background():
    rng = np.random.default_rng(0)
    counts = Bootstrapped(MaskCounts(CLASSES))
    matrices = {}
    for number in range(20):
        truth, mask = (rng.choice([0, 1, 4, IGNORED], (7, 9)).astype(np.uint8) for _ in range(2))
        counts.merge(str(number), mask_record(mask, truth))
        matrices[str(number)] = confusion(truth, np.where(mask == IGNORED, 0, mask), CLASSES)
    summary = counts.summary(NAMES)
    assert summary["miou"] == miou(sum(matrices.values()))
    assert summary["miou_interval"] == np.percentile(replicate_mious(matrices), [2.5, 97.5]).tolist()
    assert list(summary)[:2] == ["miou", "miou_interval"]


def test_the_interval_of_a_curve_is_that_of_its_best_threshold():
    images = random_images(3)
    curve = Bootstrapped(ThresholdCurve(CLASSES, THRESHOLDS))
    for id, image in images.items():
        curve.merge(id, curve_record(*image))
    summary = curve.summary(NAMES)
    best = {
        id: confusion(truth, seed(maps, present, summary["threshold"]), CLASSES)
        for id, (maps, present, truth) in images.items()
    }
    assert summary["miou_interval"] == np.percentile(replicate_mious(best), [2.5, 97.5]).tolist()
    assert summary["miou_interval"][0] < summary["miou"] < summary["miou_interval"][1]
    assert curve.images == summary["images"] == 30


def test_the_order_of_the_images_changes_nothing():
    records = {id: curve_record(*image) for id, image in random_images(4).items()}
    one, other = (Bootstrapped(ThresholdCurve(CLASSES, THRESHOLDS)) for _ in range(2))
    for id in records:
        one.merge(id, records[id])
    for id in np.random.default_rng(0).permutation(list(records)):
        other.merge(str(id), records[id])
    assert one.summary(NAMES) == other.summary(NAMES)


def test_weights_belong_to_the_image_and_are_poisson():
    assert image_weights("2007_000032").tolist() == image_weights("2007_000032").tolist()
    drawn = np.stack([image_weights(str(number)) for number in range(200)])
    assert drawn.shape == (200, REPLICATES)
    assert len({tuple(row) for row in drawn}) == 200
    expected = stats.poisson.pmf(range(5), 1.0)
    np.testing.assert_allclose([(drawn == value).mean() for value in range(5)], expected, atol=0.01)
    unrelated = np.corrcoef(drawn)[np.triu_indices(200, 1)]
    assert abs(unrelated.mean()) < 0.01


def overlaps_of(classes, intersection, union):
    columns = [np.array(values)[:, None] for values in (intersection, union)]
    return Overlaps(np.array(classes), *columns)


def test_a_class_that_a_replicate_does_not_hold_is_not_averaged():
    bootstrap = Bootstrap(3)
    bootstrap.add("common", overlaps_of([0, 1], [6, 1], [8, 4]))
    bootstrap.add("rare", overlaps_of([2], [1], [10]))
    common, rare = image_weights("common") > 0, image_weights("rare") > 0
    expected = np.select([common & rare, common, rare], [(75 + 25 + 10) / 3, (75 + 25) / 2, 10.0], np.nan)
    np.testing.assert_allclose(bootstrap.miou(), expected)
    assert np.isnan(expected).any()
    assert bootstrap.interval() == pytest.approx((10.0, 50.0))


def test_there_is_no_interval_without_anything_to_resample():
    bootstrap = Bootstrap(2)
    assert bootstrap.interval() is None
    bootstrap.add("one", overlaps_of([0], [1], [2]))
    assert bootstrap.interval() is None
    counts = Bootstrapped(MaskCounts(2))
    for id in ("one", "two"):
        counts.merge(id, mask_record(np.zeros((2, 2), np.uint8), np.full((2, 2), IGNORED, np.uint8)))
    assert counts.summary(["background", "cat"])["miou_interval"] is None


def draw_overlaps(rng, count):
    """Draw images of one class and background: (count, 2) pixels in both and in either, of clearly varying quality."""
    union = rng.integers(50, 400, (count, 2))
    return rng.binomial(union, rng.beta([8, 3], [2, 3], (count, 2))), union


def test_the_interval_is_that_of_scipy():
    intersection, union = draw_overlaps(np.random.default_rng(1), 300)
    bootstrap = Bootstrap(2)
    for number in range(300):
        bootstrap.add(str(number), overlaps_of([0, 1], intersection[number], union[number]))

    def mean_iou(places):
        return 100 * (intersection[places].sum(0) / union[places].sum(0)).mean()

    theirs = stats.bootstrap(
        (np.arange(300),), mean_iou, n_resamples=4000, vectorized=False, method="percentile", rng=0
    ).confidence_interval
    width = theirs.high - theirs.low
    np.testing.assert_allclose(bootstrap.interval(), theirs, atol=0.1 * width)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    intersection, union = draw_overlaps(np.random.default_rng(2), 100_000)
    truth = 100 * (intersection.sum(0) / union.sum(0)).mean()
    held = 0
    for world in range(200):
        bootstrap = Bootstrap(2)
        for number in range(60 * world, 60 * world + 60):
            bootstrap.add(str(number), overlaps_of([0, 1], intersection[number], union[number]))
        low, high = bootstrap.interval()
        held += low <= truth <= high
    assert 0.89 <= held / 200 <= 0.99


def test_memory_is_bounded_for_the_largest_data():
    tracemalloc.start()
    both = [Bootstrap(classes=81, readings=30) for _ in ("cam", "rib")]
    empty, _ = tracemalloc.get_traced_memory()
    pixels = np.full((3, 30), 10**5)
    for number in range(200):
        for bootstrap in both:
            bootstrap.add(str(number), Overlaps(np.array([0, 3, 70]), pixels, 2 * pixels))
    used, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 60e6
    assert used < empty + 1e5


def test_the_interval_of_a_gain_is_that_of_the_differences_of_replicates():
    """Each replicate counts an image as often for both, so that its difference is that of a plain bootstrap."""
    images = random_images(7)
    before, after, pairs = Bootstrapped(MaskCounts(CLASSES)), Bootstrapped(MaskCounts(CLASSES)), {}
    for id, (maps, present, truth) in images.items():
        masks = [seed(maps, present, threshold) for threshold in (0.5, 0.9)]
        for counts, mask in zip((before, after), masks, strict=True):
            counts.merge(id, mask_record(mask, truth))
        pairs[id] = [confusion(truth, mask, CLASSES) for mask in masks]
    first, second = (replicate_mious({id: pair[side] for id, pair in pairs.items()}) for side in (0, 1))
    found = gain_interval(*(counts.summary(NAMES)["miou_replicates"] for counts in (before, after)))
    assert found == pytest.approx(np.percentile(second - first, [2.5, 97.5]), abs=1e-3)
    assert found[1] - found[0] < np.ptp(np.percentile(first, [2.5, 97.5])) + np.ptp(np.percentile(second, [2.5, 97.5]))


def test_replicates_without_a_pixel_do_not_count_in_the_interval_of_a_gain():
    assert gain_interval([1.0, None, 3.0], [2.0, 9.0, 4.0]) == (1.0, 1.0)
    assert gain_interval([None], [2.0]) is None
