"""Maps made elsewhere, in the form of a maps file."""

import numpy as np
import pytest

from ribray.errors import ImageError
from ribray.methods.imported import fit_to_cells, imported_arrays, is_stretched
from ribray.methods.maps import MapRecord, localization_maps

CLASSES = ("cat", "dog", "sea")


def imported(given, present=(0,), size=(44, 60)):
    return MapRecord.from_arrays(imported_arrays(given, CLASSES, present, size, "photo", ("cam", "rib")))


@pytest.mark.parametrize("size", [(44, 60), (375, 500), (1, 1), (1, 50), (16, 32)])
def test_a_map_at_full_size_comes_back_as_it_was(size):
    cells = np.random.default_rng(0).random(size).astype(np.float32)
    record = imported({"cat": cells}, size=size)
    for which in ("cam", "rib"):
        np.testing.assert_allclose(localization_maps(record, which)[0], cells / (cells.max() + 1e-5), rtol=1e-6)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_a_cell_of_a_strided_map_keeps_its_pixels(stride):
    height, width = 375, 500
    cells = np.zeros(((height - 1) // stride + 1, (width - 1) // stride + 1), np.float32)
    row, column = cells.shape[0] // 2, cells.shape[1] * 3 // 4
    cells[row, column] = 1
    whole = localization_maps(imported({"cat": cells}, size=(height, width)))[0]
    rows, columns = np.nonzero(whole > 0.6)
    middle = (stride - 1) / 2
    assert abs(rows.mean() - (row * stride + middle)) < 1e-6
    assert abs(columns.mean() - (column * stride + middle)) < 1e-6


def test_a_map_of_odd_size_covers_exactly_the_image():
    cells = np.zeros((10, 10), np.float32)
    cells[:, 5:] = 1
    whole = localization_maps(imported({"cat": cells}, size=(70, 90)))[0]
    assert np.flatnonzero(whole[35] >= 0.5)[0] == 45


def test_only_present_classes_are_kept_in_the_order_of_the_data():
    given = {name: np.full((44, 60), value, np.float64) for name, value in zip(CLASSES, (1, 2, 3), strict=True)}
    record = imported(dict(reversed(given.items())), present=(0, 2))
    assert record.classes.tolist() == [0, 2]
    assert record.maps["rib"][0].dtype == np.float32
    assert record.maps["rib"][0][:, 0, 0].tolist() == [1, 3]
    assert record.steps == 0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dgo": np.ones((44, 60))}, r"one of 'dgo', which is no class \(did you mean 'dog'\?\)"),
        ({"dog": np.ones((44, 60))}, "none of 'cat', which the image is labelled with"),
        ({"cat": np.ones((1, 44, 60))}, r"float64 of shape \(1, 44, 60\)"),
        ({"cat": np.ones((0, 60))}, r"shape \(0, 60\)"),
        ({"cat": np.full((44, 60), "x")}, "numbers are needed"),
        ({"cat": np.full((44, 60), np.inf)}, "negative or not finite"),
        ({"cat": np.full((44, 60), -1e-3)}, "negative or not finite"),
        ({"cat": np.ones((44, 60)), "dog": np.ones((3, 4))}, "of different sizes"),
    ],
)
def test_what_is_no_map_is_named(given, sentence):
    with pytest.raises(ImageError, match=sentence):
        imported(given, present=(0, 1) if len(given) > 1 else (0,))


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_a_map_with_its_sides_swapped_is_refused(stride):
    cells = np.ones((72, 96))[::stride, ::stride]
    imported({"cat": cells}, size=(72, 96))
    width, height = cells.shape
    with pytest.raises(
        ImageError, match=f"'cat' of photo is {width} × {height} cells, the image 96 × 72 pixels: .* are swapped"
    ):
        imported({"cat": cells.T}, size=(72, 96))
    imported({"cat": np.ones((2, 2))}, size=(17, 32))  # whose every 16th pixel is 2 × 2 either way


@pytest.mark.parametrize(
    ("shape", "stretched"),
    [((72, 96), False), ((37, 50), False), ((3, 3), False), ((14, 14), False), ((64, 64), True), ((50, 37), True)],
)
def test_a_map_of_other_proportions_is_known_unless_cells_round_to_them(shape, stretched):
    assert is_stretched(shape, (72, 96)) == is_stretched(shape[::-1], (96, 72)) == stretched


def test_strided_maps_are_continued_up_to_the_pixels_a_maps_file_covers():
    cells = np.arange(12, dtype=np.float32).reshape(3, 4)
    fitted = fit_to_cells(cells, (17, 25))  # stride 8; a maps file covers 32 x 32 pixels
    assert fitted.shape == (4, 4)
    np.testing.assert_array_equal(fitted[:3], cells)
    np.testing.assert_array_equal(fitted[3], cells[2])
