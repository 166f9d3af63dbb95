"""A mask and its counts come back from one file, other programs read the mask as it is, damage is found."""

import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from torchvision.io import decode_image
from torchvision.io import read_image as torchvision_read_image
from torchvision.transforms.functional import pil_to_tensor

from ribray.data.dataset import colour_map
from ribray.data.images import read_mask
from ribray.data.mask_files import list_masks, mask_path, read_mask_file, write_mask
from ribray.errors import ImageError

COUNTS = {"images": 1, "truth × mask": [[12, 0, 3], [4, 5, 0]], "skipped": None}


def every_value(height=23, width=37):
    return (np.arange(height * width).reshape(height, width) % 256).astype(np.uint8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "masks" / "beach" / "one.png"


def save_with_text(path, text, **options):
    """A palette PNG of another writer, with `text` where the counts stand."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("ribray", text, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(every_value()).convert("P").save(path, pnginfo=chunks)


@pytest.mark.parametrize("counts", [COUNTS, {}, None])
def test_mask_and_counts_come_back(path, counts):
    write_mask(path, every_value(), colour_map(), counts)
    mask, found = read_mask_file(path)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, every_value())
    assert found == counts


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
def test_masks_are_spread_over_subfolders_and_found_where_earlier_versions_left_them(tmp_path):
    of_subfolder = f"{mask_path(tmp_path, 'two').parent.name}/two"  # an id that looks like the place of another
    for id in ("one", "sub/one", of_subfolder):
        write_mask(mask_path(tmp_path, id), every_value(), colour_map(), {"id": id})
    assert list_masks(tmp_path) == {"one", "sub/one", of_subfolder}
    write_mask(mask_path(tmp_path, "two"), every_value(), colour_map(), {"id": "two"})
    assert {read_mask_file(mask_path(tmp_path, id), id)[1]["id"] for id in list_masks(tmp_path)} == {
        "one", "sub/one", of_subfolder, "two"
    }  # fmt: skip
    mask_path(tmp_path, "sub/one").rename(tmp_path / "sub-one.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub-one.png").rename(tmp_path / "sub/one.png")
    assert mask_path(tmp_path, "sub/one") == tmp_path / "sub/one.png"
    assert list_masks(tmp_path) == {"one", "sub/one", of_subfolder, "two"}


@pytest.mark.parametrize("mask", [every_value(), np.zeros((3, 5), np.uint8), np.full((1, 1), 255, np.uint8)])
def test_other_programs_read_the_mask_values(path, mask):
    write_mask(path, mask, colour_map(), COUNTS)
    np.testing.assert_array_equal(torchvision_read_image(str(path)).numpy(), mask[None])
    np.testing.assert_array_equal(decode_image(str(path)).numpy(), mask[None])
    with Image.open(path) as picture:  # as mmsegmentation's loader does
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), mask)
        np.testing.assert_array_equal(pil_to_tensor(picture).numpy(), mask[None])
    np.testing.assert_array_equal(read_mask(path), mask)


def test_a_viewer_shows_the_palette(path):
    write_mask(path, every_value(), colour_map())
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.array(picture.convert("RGB")), colour_map()[every_value()])


def test_the_bytes_depend_on_the_content_alone(path, tmp_path):
    write_mask(path, every_value(), colour_map(), COUNTS)
    write_mask(tmp_path / "two.png", every_value(), colour_map(), COUNTS)
    assert path.read_bytes() == (tmp_path / "two.png").read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["one.png"]


def test_a_mask_of_another_program_has_no_counts(shared_dir):
    file = next((shared_dir / "data/voc-mini/SegmentationClass").iterdir())
    mask, counts = read_mask_file(file)
    assert counts is None
    np.testing.assert_array_equal(mask, read_mask(file))


def test_any_flipped_bit_is_found_or_changes_nothing(path):
    write_mask(path, every_value(8, 8), colour_map(), COUNTS)
    sound = path.read_bytes()
    found = 0
    for place in range(len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            mask, counts = read_mask_file(path)
        except ImageError as error:
            assert str(path) in str(error)
            found += 1
        else:
            np.testing.assert_array_equal(mask, every_value(8, 8))
            assert counts == COUNTS
    assert found > 0.9 * len(sound)


def test_a_file_cut_short_is_found(path):
    write_mask(path, every_value(), colour_map(), COUNTS)
    sound = path.read_bytes()
    for length in range(0, len(sound) - 12, 7):  # the last 12 bytes say only that the file ends
        path.write_bytes(sound[:length])
        with pytest.raises(ImageError, match="remove it so that it is made again"):
            read_mask_file(path)


def test_a_file_that_is_not_there_is_named(path):
    with pytest.raises(ImageError, match=r"one\.png does not exist"):
        read_mask_file(path)
    path.mkdir(parents=True)
    with pytest.raises(ImageError, match=r"one\.png cannot be read"):
        read_mask_file(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_a_png_without_palette_is_no_mask_of_a_run(path, mode):
    path.parent.mkdir(parents=True)
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(ImageError, match="is no mask of a run"):
        read_mask_file(path)


@pytest.mark.parametrize(
    "text", ["not JSON", "", "[1, 2]", "12", "[" * 100_000], ids=["text", "empty", "list", "number", "nested"]
)
@pytest.mark.parametrize("zip", [False, True])
def test_counts_that_are_no_json_object_are_refused(path, text, zip):
    save_with_text(path, text, zip=zip)
    with pytest.raises(ImageError, match="are no JSON object"):
        read_mask_file(path)


def test_a_text_that_would_fill_the_memory_is_refused(path):
    save_with_text(path, json.dumps({"x": "a" * 50_000_000}), zip=True)
    assert path.stat().st_size < 100_000
    with pytest.raises(ImageError, match="damaged"):
        read_mask_file(path)


@pytest.mark.parametrize(
    ("mask", "palette", "counts", "message"),
    [
        (np.zeros((3, 4), np.int64), colour_map(), None, "uint8, not"),
        (np.zeros((3, 4, 1), np.uint8), colour_map(), None, "uint8, not"),
        (np.zeros((0, 4), np.uint8), colour_map(), None, "uint8, not"),
        (np.zeros((3, 4), np.uint8), colour_map()[:21], None, "A palette is"),
        (np.zeros((3, 4), np.uint8), colour_map(), {"x": float("nan")}, "JSON compliant"),
        (np.zeros((3, 4), np.uint8), colour_map(), {"x": "a" * 2_000_000}, "characters long"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(path, mask, palette, counts, message):
    with pytest.raises(ValueError, match=message):
        write_mask(path, mask, palette, counts)
    assert not path.exists()
