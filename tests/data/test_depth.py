"""Pictures with more than eight bits look as the same pictures with eight, whichever of their bits are used."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribray.data.depth import Scale
from ribray.data.images import read_image, read_picture
from ribray.errors import ValuesError
from tests.data.conftest import chunk, gradient, png, save, tiff

EIGHT = gradient(20, 30)
GREY = EIGHT[..., 0] // 2 + EIGHT[..., 1] // 2 + 1  # from 1 to 255


def deep(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The same picture as a camera with so many bits gives it."""
    return np.rint(pixels / 255 * (2**bits - 1)).astype(np.uint16)


def write_png(path: Path, pixels: np.ndarray, extra: bytes = b"") -> Path:
    """Write 16-bit grey, grey with alpha, RGB or RGBA."""
    height, width = pixels.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[pixels[0, 0].size]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(png(width, height, 16, colour_type, rows, extra))
    return path


def assert_alike(path: Path, expected: np.ndarray) -> None:
    expected = expected if expected.ndim == 3 else np.dstack([expected] * 3)
    difference = np.abs(read_image(path).astype(int) - expected)
    assert difference.max() <= 1, path.name


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_pictures_of_few_significant_bits_look_as_those_of_eight(tmp_path: Path, bits: int) -> None:
    opaque = np.full((20, 30), 65535, np.uint16)
    grey, colour = deep(GREY, bits), deep(EIGHT, bits)
    assert_alike(save(tmp_path / "grey.png", grey), GREY)
    assert_alike(write_png(tmp_path / "colour.png", colour), EIGHT)
    assert_alike(write_png(tmp_path / "colour-alpha.png", np.dstack([colour, opaque])), EIGHT)
    assert_alike(write_png(tmp_path / "grey-alpha.png", np.dstack([grey, opaque])), GREY)
    assert_alike(write_png(tmp_path / "alpha-as-deep.png", np.dstack([colour, np.full_like(grey, 2**bits - 1)])), EIGHT)
    for order in "<>":
        (tmp_path / f"grey{order}.tif").write_bytes(tiff(grey, order=order))
        assert_alike(tmp_path / f"grey{order}.tif", GREY)
        (tmp_path / f"colour{order}.tif").write_bytes(tiff(colour, order=order))
        assert_alike(tmp_path / f"colour{order}.tif", EIGHT)
    for name, numbers in (("int", np.int32), ("unsigned", np.uint32), ("float", np.float32)):
        (tmp_path / f"{name}.tif").write_bytes(tiff(grey.astype(numbers)))
        assert_alike(tmp_path / f"{name}.tif", GREY)
    Image.fromarray(grey).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    assert_alike(tmp_path / "lzw.tif", GREY)
    assert read_picture(tmp_path / "grey.png").scale == Scale("16-bit", 2**bits - 1)
    assert read_picture(tmp_path / "colour.png").scale == Scale("16-bit", 2**bits - 1)


def test_dark_pictures_of_a_camera_stay_dark(tmp_path: Path) -> None:
    dim = deep(GREY, 12) * 3 // 4  # no value beyond 3071, as the scene was
    assert_alike(save(tmp_path / "dim.png", dim), GREY.astype(float) * 3 / 4)


def test_what_a_file_says_of_its_bits_counts(tmp_path: Path) -> None:
    dark = deep(GREY, 12) // 8  # as a 10-bit picture it would be four times as bright
    assert read_picture(save(tmp_path / "silent.png", dark)).scale == Scale("16-bit", 1023)
    stated = chunk(b"sBIT", bytes([12]))
    assert_alike(write_png(tmp_path / "grey.png", dark, stated), GREY // 8)
    in_colour = chunk(b"sBIT", bytes([12, 12, 12]))
    assert_alike(write_png(tmp_path / "colour.png", deep(EIGHT, 12) // 8, in_colour), EIGHT // 8)
    for tag in (281, 341):
        (tmp_path / "x.tif").write_bytes(tiff(dark, tags={tag: 4095}))
        assert_alike(tmp_path / "x.tif", GREY // 8)
    (tmp_path / "x.tif").write_bytes(tiff(dark, tags={281: 65535}))  # written whatever there is
    assert read_picture(tmp_path / "x.tif").scale == Scale("16-bit", 1023)


def test_significant_bits_that_are_the_high_ones_are_read_as_before(tmp_path: Path) -> None:
    """PNG's standard asks for it: a 12-bit value v is stored as 16 v."""
    dark = deep(GREY, 12) // 8 * 16
    path = write_png(tmp_path / "x.png", dark, chunk(b"sBIT", bytes([12])))
    np.testing.assert_array_equal(read_image(path)[..., 0], dark >> 8)


def test_floating_point_from_0_to_1_is_black_to_white(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff((GREY / 255).astype(np.float32)))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[..., 0], GREY)
    assert read_picture(tmp_path / "x.tif").scale == Scale("floating-point", 1)


def test_floating_point_up_to_255_is_as_eight_bits(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff((GREY - 0.25).astype(np.float32)))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[..., 0], GREY)
    assert read_picture(tmp_path / "x.tif").scale == Scale("floating-point", 255)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0, 0.5, 1.5], "from 0 to 1.5"),  # either range
        ([-0.5, 0.5, 1], "from -0.5 to 1"),
        ([0, 300.5, 1], "from 0 to 300.5"),
        ([0, 1e6, 1], "from 0 to 1e\\+06"),
        ([0, np.nan, 1], "no numbers"),
        ([0, np.inf, 1], "no numbers"),
    ],
)
def test_values_without_agreed_brightness_are_refused(tmp_path: Path, values: list[float], reason: str) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(np.array([values], np.float32)))
    with pytest.raises(ValuesError, match=rf"x\.tif holds floating-point pixels .*{reason}"):
        read_image(tmp_path / "x.tif")


def test_whole_numbers_beyond_16_bits_and_below_0_are_refused(tmp_path: Path) -> None:
    for numbers in (np.array([[0, 70_000]], np.int32), np.array([[-3, 900]], np.int16)):
        (tmp_path / "x.tif").write_bytes(tiff(numbers))
        with pytest.raises(ValuesError, match="no agreed brightness: save it with 8 bits"):
            read_image(tmp_path / "x.tif")


def test_deep_colours_in_planes_are_refused_where_they_would_be_misread(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(EIGHT, is_planar=True))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), EIGHT)
    (tmp_path / "x.tif").write_bytes(tiff(deep(EIGHT, 16), is_planar=True))
    with pytest.raises(ValuesError, match="in a plane each"):
        read_image(tmp_path / "x.tif")


def test_white_may_be_zero(tmp_path: Path) -> None:
    for bits in (8, 12, 16):
        (tmp_path / "x.tif").write_bytes(tiff(deep(255 - GREY, bits), tags={262: 0}))
        assert_alike(tmp_path / "x.tif", GREY)


def test_the_transparent_value_of_deep_pictures_is_white(tmp_path: Path) -> None:
    for bits in (12, 16):
        grey, colour = deep(GREY, bits), deep(EIGHT, bits)
        expected = GREY.copy()
        expected[grey == grey[3, 4]] = 255
        assert_alike(write_png(tmp_path / "grey.png", grey, chunk(b"tRNS", struct.pack(">H", grey[3, 4]))), expected)
        expected = EIGHT.copy()
        expected[(colour == colour[3, 4]).all(2)] = 255
        assert_alike(
            write_png(tmp_path / "colour.png", colour, chunk(b"tRNS", struct.pack(">HHH", *colour[3, 4]))), expected
        )


def test_deep_pictures_are_turned_as_exif_says(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(deep(np.rot90(EIGHT, 1), 12), tags={274: 6}))
    assert_alike(tmp_path / "x.tif", EIGHT)
