"""Saliency maps of every grey kind are read, others named; a mask is opened where it disagrees with them."""

import numpy as np
import pytest
from PIL import Image

from ribray.errors import ImageError
from ribray.masks.saliency import BINARY, NOTHING, mark_conflicts, read_saliency

GREY = np.array([[0, 127, 128, 255], [1, 126, 200, 254]], np.uint8)
EXPECTED = [[False, False, True, True]] * 2  # from half of 255 on


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def read(folder, id, size, **options):
    return read_saliency(folder, id, size, **options)[0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".tif", ".tiff"])
def test_every_ending_is_found(tmp_path, suffix):
    grey = np.zeros((16, 24), np.uint8)
    grey[:, 8:] = 255
    save(tmp_path / f"x{suffix}", Image.fromarray(grey))
    np.testing.assert_array_equal(read(tmp_path, "x", (16, 24)), grey > 0)


def test_an_image_in_a_subfolder_has_its_saliency_map_there(tmp_path):
    save(tmp_path / "beach" / "one.png", Image.fromarray(GREY))
    assert read(tmp_path, "beach/one", (2, 4)).tolist() == EXPECTED


def test_grey_is_read_however_it_is_stored(tmp_path):
    save(tmp_path / "16.png", Image.fromarray(GREY.astype(np.uint16) * 257))
    save(tmp_path / "rgb.png", Image.fromarray(GREY).convert("RGB"))
    palette = Image.fromarray(GREY).convert("P")
    save(tmp_path / "palette.png", palette)
    for id in ("16", "rgb", "palette"):
        assert read(tmp_path, id, (2, 4)).tolist() == EXPECTED, id
    save(tmp_path / "1.png", Image.fromarray(GREY > 127))
    assert read(tmp_path, "1", (2, 4)).tolist() == EXPECTED


def test_the_threshold_is_a_share_of_full_brightness_and_belongs_to_the_salient(tmp_path):
    save(tmp_path / "x.png", Image.fromarray(GREY))
    assert read(tmp_path, "x", (2, 4), threshold=1.0).tolist() == [[False] * 3 + [True], [False] * 4]
    assert read(tmp_path, "x", (2, 4), threshold=0.0).all()


SHAPE = np.array([[0, 0, 1, 1], [0, 1, 1, 0]], bool)


def binary_maps():
    """The same mask in every way in which programs write one."""
    palette = Image.fromarray(SHAPE.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    dim = Image.fromarray(SHAPE.astype(np.uint8)).convert("P")
    dim.putpalette([0, 0, 0, 1, 1, 1])
    yield "palette.png", palette
    yield "dim-palette.png", dim
    yield "bits.png", Image.fromarray(SHAPE)
    for white in (1, 255):
        grey = SHAPE.astype(np.uint8) * white
        yield f"grey{white}.png", Image.fromarray(grey)
        yield f"rgb{white}.png", Image.fromarray(np.dstack([grey] * 3))
        yield f"opaque{white}.png", Image.fromarray(np.dstack([grey, np.full_like(grey, 255)]))
        yield f"grey{white}.tif", Image.fromarray(grey)
        yield f"wide{white}.tif", Image.fromarray(grey.astype(np.int32))
    for white in (1, 255, 65535):
        yield f"deep{white}.png", Image.fromarray(SHAPE.astype(np.uint16) * white)
    for white in (1, 255):
        yield f"float{white}.tif", Image.fromarray(SHAPE.astype(np.float32) * white)


def test_a_mask_means_the_same_however_it_is_stored(tmp_path):
    mask = np.array([[0, 3, 3, 3], [0, 3, 0, 0]], np.uint8)
    expected = mark_conflicts(mask, SHAPE)
    for name, picture in binary_maps():
        save(tmp_path / name, picture)
        id = name.split(".")[0]
        salient, note = read_saliency(tmp_path, id, (2, 4))
        np.testing.assert_array_equal(mark_conflicts(mask, salient), expected, name)
        assert note == (BINARY if id in ("grey1", "rgb1", "opaque1", "wide1", "deep1", "dim-palette") else None), name
        (tmp_path / name).unlink()


def test_maps_of_one_value_are_read_as_the_others_of_their_set(tmp_path):
    for name, value, salient, note in (
        ("none", 0, False, NOTHING),
        ("all-1", 1, True, BINARY),
        ("all-255", 255, True, None),
        ("weak", 3, False, NOTHING),
    ):
        save(tmp_path / f"{name}.png", Image.new("L", (4, 2), value))
        found, told = read_saliency(tmp_path, name, (2, 4))
        assert (found == salient).all(), name
        assert told == note, name


def test_a_weak_map_stays_weak(tmp_path):
    for place, picture in enumerate((GREY // 100, GREY.astype(np.uint16) * 16, GREY.astype(np.uint16) * 3)):
        save(tmp_path / f"{place}.png", Image.fromarray(picture))
        salient, note = read_saliency(tmp_path, f"{place}", (2, 4))
        assert not salient.any()
        assert note == NOTHING
    save(tmp_path / "half.png", Image.fromarray(GREY.astype(np.uint16) * 128))  # up to half of 65535
    assert read(tmp_path, "half", (2, 4), threshold=0.25).tolist() == EXPECTED


def test_maps_with_transparent_places_are_refused(tmp_path):
    grey = SHAPE.astype(np.uint8) * 255
    save(tmp_path / "la.png", Image.fromarray(np.dstack([grey, grey])))
    save(tmp_path / "key.png", Image.fromarray(grey), transparency=0)  # white over transparent black
    for id in ("la", "key"):
        with pytest.raises(ImageError, match=rf"{id}\.png is transparent in places"):
            read_saliency(tmp_path, id, (2, 4))


def test_what_cannot_serve_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"missing has no saliency map: none of .*missing\.png, .*missing\.jpg"):
        read_saliency(tmp_path, "missing", (2, 4))
    save(tmp_path / "x.png", Image.fromarray(GREY))
    with pytest.raises(ImageError, match=r"x\.png is 4 × 2 pixels, but its image is 2 × 4"):
        read(tmp_path, "x", (4, 2))
    coloured = np.stack([GREY, GREY, 255 - GREY], axis=-1)
    save(tmp_path / "colour.png", Image.fromarray(coloured))
    with pytest.raises(ImageError, match=r"colour\.png is coloured, where a saliency map is grey"):
        read_saliency(tmp_path, "colour", (2, 4))
    (tmp_path / "damaged.png").write_bytes((tmp_path / "x.png").read_bytes()[:-25])  # ends within the pixels
    with pytest.raises(ImageError, match=r"damaged\.png"):
        read_saliency(tmp_path, "damaged", (2, 4))
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty"):
        read_saliency(tmp_path, "empty", (2, 4))


def test_pixels_where_mask_and_saliency_disagree_become_ignored():
    mask = np.array([[0, 0, 7, 7, 255, 255]], np.uint8)
    salient = np.array([[False, True, False, True, False, True]])
    assert mark_conflicts(mask, salient).tolist() == [[0, 255, 255, 7, 255, 255]]
    assert mask.tolist() == [[0, 0, 7, 7, 255, 255]]


def test_a_saliency_map_of_another_size_than_the_mask_is_refused():
    with pytest.raises(ValueError, match="does not go with"):
        mark_conflicts(np.zeros((2, 3), np.uint8), np.zeros((3, 2), bool))
