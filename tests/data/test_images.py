"""Photographs of every kind are read as a viewer shows them; what cannot be read is named."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribray.data.depth import Scale
from ribray.data.images import (
    LOW_CONTRAST,
    SINGLE_VALUE,
    TRANSPARENT,
    image_size,
    read_image,
    read_mask,
    read_picture,
    tell_readings,
)
from ribray.errors import ImageError
from tests.data.conftest import gradient, png, save, tiff

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def test_a_real_photograph_equals_pillows_pixels(shared_dir: Path) -> None:
    path = shared_dir / "data/voc-mini/JPEGImages/2017_000030.jpg"
    image = read_image(path)
    assert image.shape == (334, 500, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    with Image.open(path) as expected:
        np.testing.assert_array_equal(image, np.asarray(expected))
    assert image_size(path) == (334, 500)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = gradient(16, 40)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # shown after a quarter turn to the right
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.png", "x.jpg", "x.webp", "x.tif"):
        path = tmp_path / name
        options = {"quality": 100, "subsampling": 0} if name == "x.jpg" else {"lossless": True}
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
        image = read_image(path)
        assert image.shape == upright.shape
        assert np.abs(image.astype(int) - upright).max() <= 6, name  # JPEG loses a little
        assert image_size(path) == (16, 40)


def test_palette_and_grey_become_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    picture.putpalette([*RED, *GREEN])
    picture.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").tolist() == [[list(RED), list(GREEN)]]
    grey = read_image(save(tmp_path / "grey.png", np.array([[0, 77, 255]], np.uint8)))
    assert grey.tolist() == [[[0] * 3, [77] * 3, [255] * 3]]
    Image.new("1", (3, 2), 1).save(tmp_path / "black-and-white.png")
    assert (read_image(tmp_path / "black-and-white.png") == 255).all()


def test_grey_jpegs_become_colours(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "grey.jpg", np.full((8, 8), 90, np.uint8)))
    assert image.shape == (8, 8, 3)
    assert np.abs(image.astype(int) - 90).max() <= 1


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    image = read_image(tmp_path / "cmyk.jpg").astype(int)
    assert np.abs(image - RED).max() <= 4


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values).save(tmp_path / "grey.tif")
    for name in ("grey.png", "grey.tif"):
        assert read_image(tmp_path / name)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bit_colour_is_scaled_as_sixteen_bit_grey_is(tmp_path: Path) -> None:
    values = [0, 255, 256, 32768, 65535]
    row = b"\0" + b"".join(struct.pack(">HHH", value, value, value) for value in values)
    (tmp_path / "colour.png").write_bytes(png(5, 1, 16, 2, row))
    assert read_image(tmp_path / "colour.png")[0, :, 1].tolist() == [0, 0, 1, 128, 255]


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[(*RED, 255), (*RED, 0), (*RED, 51)]], np.uint8)
    assert read_image(save(tmp_path / "rgba.png", pixels)).tolist() == [[[255, 0, 0], [255] * 3, [255, 204, 204]]]
    grey = np.array([[(100, 255), (100, 0)]], np.uint8)
    assert read_image(save(tmp_path / "la.png", grey)).tolist() == [[[100] * 3, [255] * 3]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([*RED, *GREEN])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "palette.png").tolist() == [[list(RED), list(WHITE)]]


def test_extreme_shapes_are_read(tmp_path: Path) -> None:
    for height, width in ((1, 1), (1, 5000), (5000, 1)):
        path = save(tmp_path / f"{height}x{width}.png", np.zeros((height, width, 3), np.uint8))
        assert read_image(path).shape == (height, width, 3)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "x.gif") == RED).all()


# --- what cannot be read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"x{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=f"x{suffix} is damaged: "):
        read_image(path)


def test_missing_empty_and_text_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg does not exist\.$"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg is empty \(0 bytes\)\.$"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="is empty"):
        image_size(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    with pytest.raises(ImageError, match=r"text\.jpg is a text file"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "noise.jpg").write_bytes(bytes(range(256)))
    with pytest.raises(ImageError, match="damaged or of another format"):
        read_image(tmp_path / "noise.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match=r"folder\.jpg cannot be read"):
        read_image(tmp_path / "folder.jpg")


def test_a_damaged_checksum_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", gradient(32, 32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.png is damaged: "):
        read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("sides", [(60_000, 60_000), (9_500, 9_500)])
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, sides: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*sides, 1, 0, b""))
    with pytest.raises(ImageError, match="too large"):
        read_image(path)
    with pytest.raises(ImageError, match="too large"):
        image_size(path)


def test_pictures_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="is a text file"):
        read_image(tmp_path / "x.jpg")


def test_tiffs_of_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(ImageError, match=r"x\.tif is a TIFF that is damaged or has pixels of a kind that is not read"):
        read_image(path)


# --- what a person should know ---------------------------------------------------------------------------------


def test_ordinary_pictures_need_no_remark(tmp_path: Path) -> None:
    for name in ("x.jpg", "x.png", "x.webp", "x.tif", "x.gif"):
        assert read_picture(save(tmp_path / name, gradient(16, 24))).remarks == ()


def test_the_first_of_several_frames_or_pages_is_read_and_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture) for picture in (gradient(16, 24), np.zeros((16, 24, 3), np.uint8))]
    for name in ("x.gif", "x.webp", "x.png", "x.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        picture = read_picture(tmp_path / name)
        assert picture.readings == ("several pictures in one file, of which the first is read",), name
        assert picture.blank is None, name


def test_a_later_frame_that_is_damaged_does_not_matter(tmp_path: Path) -> None:
    frames = [Image.fromarray(gradient(16, 24)), Image.fromarray(gradient(16, 24)[::-1])]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "x.gif").read_bytes()
    (tmp_path / "x.gif").write_bytes(content[:-40])
    assert read_image(tmp_path / "x.gif").shape == (16, 24, 3)


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGB", (9, 90, 200)), ("L", 0), ("L", 255), ("1", 1), ("P", 3), ("I;16", 900)]
)
def test_a_picture_of_one_value_is_read_and_told(tmp_path: Path, mode: str, colour: int | tuple[int, ...]) -> None:
    Image.new(mode, (30, 20), colour).save(tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png")
    assert picture.blank == SINGLE_VALUE
    assert picture.pixels.shape == (20, 30, 3)
    Image.new("RGB", (30, 20), "navy").save(tmp_path / "x.jpg")
    assert read_picture(tmp_path / "x.jpg").blank == SINGLE_VALUE


def test_one_other_pixel_is_enough_for_a_picture(tmp_path: Path) -> None:
    for place in ((0, 0), (19, 29), (7, 11)):
        pixels = np.full((20, 30), 40, np.uint8)
        pixels[place] = 45
        assert read_picture(save(tmp_path / "x.png", pixels)).blank is None


def test_a_picture_saved_as_0_and_1_is_told(tmp_path: Path) -> None:
    pixels = (gradient(20, 30) / 255).astype(np.uint8)  # a picture from 0 to 1, made uint8
    pixels[3:9] = 1
    assert read_picture(save(tmp_path / "x.png", pixels)).blank == LOW_CONTRAST


@pytest.mark.parametrize(("alpha", "blank"), [(0, TRANSPARENT), (1, TRANSPARENT), (255, None)])
def test_a_picture_that_is_transparent_everywhere_is_told(tmp_path: Path, alpha: int, blank: str | None) -> None:
    pixels = np.dstack([gradient(20, 30), np.full((20, 30), alpha, np.uint8)])
    for name in ("x.png", "x.webp", "x.tif"):
        assert read_picture(save(tmp_path / name, pixels)).blank == blank, name
    grey = read_picture(save(tmp_path / "grey.png", pixels[..., [0, 3]]))
    assert grey.blank == blank


def test_a_fourth_channel_without_a_name_is_told(tmp_path: Path) -> None:
    bands = np.dstack([gradient(20, 30), gradient(20, 30)[::-1, :, 0]])
    (tmp_path / "x.tif").write_bytes(tiff(bands))
    assert read_picture(tmp_path / "x.tif").readings == (
        "a fourth channel that the file does not name, which is read as opacity",
    )
    (tmp_path / "x.tif").write_bytes(tiff(bands, tags={338: 0}))
    picture = read_picture(tmp_path / "x.tif")
    assert picture.readings == ()
    np.testing.assert_array_equal(picture.pixels, bands[..., :3])


def test_what_goes_for_many_pictures_is_said_in_one_sentence() -> None:
    twelve, ten = Scale("16-bit", 4095), Scale("16-bit", 1023)
    assert tell_readings({}) == []
    assert tell_readings({twelve: 9}, " of 'train'") == [
        "9 images of 'train' hold 16-bit values, of which 0 to 4095 are read as black to white."
    ]
    sentences = tell_readings({ten: 1, twelve: 8, TRANSPARENT: 2})
    assert [sentence.split(" hold")[0] for sentence in sentences[:3]] == ["8 images", "2 images", "1 image"]
    assert "the brightness of these images" in sentences[3].lower()


# --- masks -------------------------------------------------------------------------------------------------


def test_masks_hold_values_not_colours(tmp_path: Path) -> None:
    values = np.array([[0, 1, 20, 255]], np.uint8)
    assert read_mask(save(tmp_path / "grey.png", values)).tolist() == values.tolist()
    palette = Image.fromarray(values, "L").convert("P")
    palette.putdata(values.flatten().tolist())
    palette.putpalette([9] * 768)
    palette.save(tmp_path / "palette.png")
    mask = read_mask(tmp_path / "palette.png")
    assert mask.tolist() == values.tolist()
    assert mask.dtype == np.uint8


@pytest.mark.parametrize(("depth", "byte", "expected"), [(1, 0b10100000, [1, 0, 1]), (2, 0b00011000, [0, 1, 2])])
@pytest.mark.parametrize("is_palette", [False, True])
def test_masks_of_few_bits_hold_values_too(
    tmp_path: Path, depth: int, byte: int, expected: list[int], is_palette: bool
) -> None:
    (tmp_path / "x.png").write_bytes(png(3, 1, depth, 3 if is_palette else 0, bytes((0, byte))))
    assert read_mask(tmp_path / "x.png").tolist() == [expected]


def test_four_bit_grey_masks_hold_values_too(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(4, 1, 4, 0, bytes((0, 0x01, 0x2F))))
    assert read_mask(tmp_path / "x.png").tolist() == [[0, 1, 2, 15]]


@pytest.mark.parametrize(
    ("first", "second", "is_doubtful"),
    [((255,) * 3, (0,) * 3, True), ((0,) * 3, (255,) * 3, False), ((255,) * 3, (0, 0, 99), False)],
)
def test_a_palette_with_a_white_background_is_refused(
    tmp_path: Path, first: tuple[int, ...], second: tuple[int, ...], is_doubtful: bool
) -> None:
    values = np.array([[0, 0, 1, 1]], np.uint8)
    picture = Image.fromarray(values).convert("P")
    picture.putpalette([*first, *second])
    picture.save(tmp_path / "x.png")
    if is_doubtful:
        with pytest.raises(ImageError, match="its palette shows 0, which is background, white and all else black"):
            read_mask(tmp_path / "x.png")
    else:
        assert read_mask(tmp_path / "x.png").tolist() == values.tolist()


def test_masks_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="its pixels are RGB, where a mask is a palette or 8-bit grey PNG"):
        read_mask(save(tmp_path / "colour.png", gradient(4, 4)))
    with pytest.raises(ImageError, match="its pixels are 16-bit"):
        read_mask(save(tmp_path / "deep.png", np.zeros((4, 4), np.uint16)))
    with pytest.raises(ImageError, match=r"lossy\.jpg is damaged or of another format, not a PNG"):
        read_mask(save(tmp_path / "lossy.jpg", np.zeros((4, 4), np.uint8)))
    with pytest.raises(ImageError, match="does not exist"):
        read_mask(tmp_path / "gone.png")
