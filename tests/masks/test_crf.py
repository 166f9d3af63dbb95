"""The dense CRF against recorded outputs of the reference, and what it asks of its arguments."""

import sys

import numpy as np
import pytest

from ribray.errors import UsageError
from ribray.masks.crf import LABEL_CRF, PREDICTION_CRF, Crf, crf_from_probabilities, require_crf

RECORDED = ["dense_crf_ir_label.npz", "dense_crf_ir_label_2.npz"]


def two_halves(height=30, width=40):
    """A picture with a dark left and a bright right half, and the right half as label 1."""
    labels = np.zeros((height, width), np.int64)
    labels[:, width // 2 :] = 1
    image = np.where(labels[..., None] == 1, 200, 50).repeat(3, axis=-1)
    return (image + np.random.default_rng(0).integers(-3, 4, image.shape)).astype(np.uint8), labels


def with_errors(labels, share=0.2):
    wrong = np.random.default_rng(1).random(labels.shape) < share
    return np.where(wrong, 1 - labels, labels)


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("reading", ["fg", "bg"])
def test_the_recorded_labels_are_met_exactly(shared_dir, name, reading):
    case = np.load(shared_dir / "golden" / name)
    threshold = np.full((1, *case["cam"].shape[1:]), case[f"conf_{reading}_threshold"], np.float32)
    labels = np.concatenate([threshold, case["cam"]]).argmax(axis=0)
    refined = Crf(case["image"], len(case["keys"]), LABEL_CRF).from_labels(labels)
    assert refined.dtype == np.uint8
    np.testing.assert_array_equal(refined, case[f"crf_{reading}_labels"])


def test_one_crf_answers_for_several_labellings_as_one_of_each_would():
    image, labels = two_halves()
    readings = [with_errors(labels), labels, np.zeros_like(labels), with_errors(labels)]
    crf = Crf(image, 2, LABEL_CRF)
    for reading in readings:
        np.testing.assert_array_equal(crf.from_labels(reading), Crf(image, 2, LABEL_CRF).from_labels(reading))


@pytest.mark.parametrize("name", RECORDED)
def test_probabilities_of_the_same_labels_give_the_recorded_marginals(shared_dir, name):
    case = np.load(shared_dir / "golden" / name)
    keys = len(case["keys"])
    threshold = np.full((1, *case["cam"].shape[1:]), case["conf_fg_threshold"], np.float32)
    labels = np.concatenate([threshold, case["cam"]]).argmax(axis=0)
    probabilities = np.where(labels == np.arange(keys)[:, None, None], 0.7, 0.3 / (keys - 1)).astype(np.float32)
    marginals = crf_from_probabilities(case["image"], probabilities, LABEL_CRF)
    assert marginals.dtype == np.float32
    np.testing.assert_allclose(marginals, case["crf_fg_marginals"], atol=1e-3)  # recorded in float16
    np.testing.assert_allclose(marginals.sum(axis=0), 1, atol=1e-4)


def test_wrong_labels_are_repaired_along_the_edge_of_the_picture():
    image, labels = two_halves()
    spoilt = with_errors(labels)
    assert (spoilt != labels).mean() > 0.15
    np.testing.assert_array_equal(Crf(image, 2, LABEL_CRF).from_labels(spoilt), labels)


def test_wrong_predictions_are_repaired_along_the_edge_of_the_picture():
    image, labels = two_halves()
    spoilt = with_errors(labels)
    probabilities = np.where(spoilt == np.arange(2)[:, None, None], 0.8, 0.2).astype(np.float32)
    marginals = crf_from_probabilities(image, probabilities, PREDICTION_CRF)
    np.testing.assert_array_equal(marginals.argmax(axis=0), labels)


def test_label_0_is_a_key_like_any_other():
    """Exchanging the two keys exchanges the result: 0 does not mean "unknown"."""
    image, labels = two_halves()
    spoilt = with_errors(labels, share=0.45)
    refined = Crf(image, 2, LABEL_CRF).from_labels(spoilt)
    np.testing.assert_array_equal(Crf(image, 2, LABEL_CRF).from_labels(1 - spoilt), 1 - refined)


def test_with_one_key_labels_stay_as_they_are():
    image, labels = two_halves()
    np.testing.assert_array_equal(Crf(image, 1, LABEL_CRF).from_labels(np.zeros_like(labels)), np.zeros_like(labels))


def test_probabilities_of_0_and_1_stay_finite():
    image, labels = two_halves()
    certain = (labels == np.arange(3)[:, None, None]).astype(np.float32)
    marginals = crf_from_probabilities(image, certain, PREDICTION_CRF)
    assert np.isfinite(marginals).all()
    np.testing.assert_array_equal(marginals.argmax(axis=0), labels)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1)])
def test_the_smallest_pictures_pass(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    refined = Crf(image, 3, LABEL_CRF).from_labels(np.ones(size, np.int64))
    np.testing.assert_array_equal(refined, np.ones(size))


def test_read_only_and_turned_arrays_give_the_same_and_stay_as_they_were():
    image, labels = two_halves()
    spoilt = with_errors(labels)
    expected = Crf(image, 2, LABEL_CRF).from_labels(spoilt)
    turned = np.asfortranarray(image)
    turned.flags.writeable = spoilt.flags.writeable = False
    before = turned.copy()
    np.testing.assert_array_equal(Crf(turned, 2, LABEL_CRF).from_labels(np.asfortranarray(spoilt)), expected)
    np.testing.assert_array_equal(turned, before)


@pytest.mark.parametrize(
    ("image_shape", "labels", "keys", "message"),
    [
        ((4, 5, 3), np.zeros((4, 6), int), 2, "does not go with"),
        ((4, 5), np.zeros((4, 5), int), 2, "does not go with"),
        ((0, 5, 3), np.zeros((0, 5), int), 2, "does not go with"),
        ((4, 5, 3), np.full((4, 5), 2), 2, "Labels 2 to 2 do not go with 2 keys"),
        ((4, 5, 3), np.full((4, 5), -1), 2, "Labels -1 to -1"),
        ((4, 5, 3), np.zeros((4, 5), int), 0, "0 keys"),
    ],
)
def test_labels_that_do_not_fit_are_refused(image_shape, labels, keys, message):
    with pytest.raises(ValueError, match=message):
        Crf(np.zeros(image_shape, np.uint8), keys, LABEL_CRF).from_labels(labels)


def test_probabilities_that_do_not_fit_are_refused():
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="does not go with"):
        crf_from_probabilities(image, np.full((2, 5, 4), 0.5, np.float32), PREDICTION_CRF)
    with pytest.raises(ValueError, match=r"\(keys, height, width\)"):
        crf_from_probabilities(image, np.full((4, 5), 0.5, np.float32), PREDICTION_CRF)
    with pytest.raises(ValueError, match="finite"):
        crf_from_probabilities(image, np.full((2, 4, 5), np.nan, np.float32), PREDICTION_CRF)
    with pytest.raises(ValueError, match="uint8"):
        crf_from_probabilities(image.astype(np.float32), np.full((2, 4, 5), 0.5, np.float32), PREDICTION_CRF)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    require_crf()
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)  # an import of it now fails
    with pytest.raises(UsageError, match=r'pip install "ribray\[crf\]".*masks\.crf: none'):
        require_crf()
    image, labels = two_halves()
    with pytest.raises(UsageError):
        Crf(image, 2, LABEL_CRF).from_labels(labels)
