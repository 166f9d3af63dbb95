"""Confusion matrices and IoU by hand and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import confusion_matrix, jaccard_score

from ribray.errors import ImageError
from ribray.evaluation.confusion import IGNORED, confusion, iou, miou

CLASSES = 5
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@st.composite
def mask_pairs(draw):
    size = draw(SIZES)
    values = st.integers(0, CLASSES - 1)
    truth = draw(hnp.arrays(np.uint8, size, elements=values | st.just(IGNORED)))
    return truth, draw(hnp.arrays(np.uint8, size, elements=values))


@given(mask_pairs())
def test_counts_agree_with_scikit_learn(masks):
    truth, prediction = masks
    known = truth != IGNORED
    matrix = confusion(truth, prediction, CLASSES)
    assert matrix.dtype == np.int64
    assert matrix.sum() == known.sum()
    if known.any():
        expected = confusion_matrix(truth[known], prediction[known], labels=range(CLASSES))
        np.testing.assert_array_equal(matrix, expected)


@given(mask_pairs())
def test_iou_agrees_with_scikit_learns_jaccard_score(masks):
    truth, prediction = masks
    known = truth != IGNORED
    result = iou(confusion(truth, prediction, CLASSES))
    held = np.union1d(truth[known], prediction[known])
    assert np.flatnonzero(~np.isnan(result)).tolist() == held.tolist()
    if held.size:
        expected = jaccard_score(truth[known], prediction[known], labels=held, average=None)
        np.testing.assert_allclose(result[held], 100 * expected)
        np.testing.assert_allclose(miou(confusion(truth, prediction, CLASSES)), 100 * expected.mean())


def test_iou_of_a_matrix_by_hand():
    matrix = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
    # background: 6 of 6+2+1+4; class 1: 3 of 3+1+2; class 2 is never found; class 3 in neither
    np.testing.assert_allclose(iou(matrix), [100 * 6 / 13, 100 * 3 / 6, 0.0, np.nan])
    assert miou(matrix) == pytest.approx(100 * (6 / 13 + 3 / 6 + 0) / 3)


def test_a_class_that_is_only_predicted_counts_as_zero():
    truth, prediction = np.zeros((1, 4), np.uint8), np.array([[0, 0, 0, 2]], np.uint8)
    np.testing.assert_allclose(iou(confusion(truth, prediction, 3)), [75.0, np.nan, 0.0])


def test_predictions_on_ignored_pixels_count_nowhere():
    truth = np.array([[0, IGNORED, IGNORED]], np.uint8)
    assert confusion(truth, np.array([[0, 1, 200]], np.uint8), 2).tolist() == [[1, 0], [0, 0]]


def test_several_matrices_at_once():
    matrices = np.random.default_rng(0).integers(0, 9, (4, 3, 3))
    np.testing.assert_array_equal(miou(matrices), [miou(matrix) for matrix in matrices])


def test_no_pixel_has_no_mean_iou():
    assert np.isnan(miou(np.zeros((3, 3), np.int64)))


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (
            np.zeros((2, 3), np.uint8),
            np.zeros((3, 2), np.uint8),
            r"shape \(2, 3\) and the predicted one \(3, 2\)",
        ),
        (np.zeros(4, np.uint8), np.zeros(4, np.uint8), r"must be \(height, width\)"),
        (np.full((1, 1), 5, np.uint8), np.zeros((1, 1), np.uint8), "true mask holds the value 5.* 0 to 4"),
        (np.zeros((1, 1), np.uint8), np.full((1, 1), 255, np.uint8), "predicted mask holds the value 255"),
        (np.full((1, 1), -1), np.zeros((1, 1), np.uint8), "true mask holds the value -1"),
        (np.zeros((1, 1)), np.zeros((1, 1), np.uint8), "true mask holds float64"),
    ],
)
def test_masks_that_cannot_be_compared_are_refused(truth, prediction, message):
    with pytest.raises(ImageError, match=message):
        confusion(truth, prediction, CLASSES)


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"not \(2, 3\)"):
        iou(np.zeros((2, 3), np.int64))
