"""Views, crops and normalisation (docs/method.md, sections 1 and 2.1)."""

import numpy as np
import pytest
import torch
from PIL import Image

from ribray.data.transforms import (
    augment,
    augment_pair,
    keyed_rng,
    normalise,
    normalise_crops,
    rescaled,
    target_views,
)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 noise without zeros, so that zeros in a crop are padding."""
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def test_normalisation_is_imagenets() -> None:
    image = np.array([[[0, 128, 255]]], dtype=np.uint8)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert normalise(image).flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("sides", "scale", "expected"),
    [
        ((333, 500), 0.5, (166, 250)),  # 166.5 goes to the even neighbour
        ((335, 500), 0.5, (168, 250)),  # 167.5 too
        ((375, 501), 1.5, (562, 752)),  # 562.5 and 751.5
        ((1, 1), 0.5, (1, 1)),
        ((1, 5000), 0.5, (1, 2500)),
    ],
)
def test_sizes_are_rounded_half_to_even(sides: tuple[int, int], scale: float, expected: tuple[int, int]) -> None:
    assert rescaled(photograph(*sides), scale).shape == (*expected, 3)


def test_rescaling_is_pillows_bicubic() -> None:
    image = photograph(30, 41)
    expected = np.asarray(Image.fromarray(image).resize((62, 45), Image.Resampling.BICUBIC))  # 61.5 to even
    np.testing.assert_array_equal(rescaled(image, 1.5), expected)


def test_every_view_comes_with_its_flip() -> None:
    image = photograph(24, 33)
    views = target_views(image, (1.0, 0.5, 2.0))
    assert [tuple(view.shape) for view in views] == [(2, 3, 24, 33), (2, 3, 12, 16), (2, 3, 48, 66)]
    for view in views:
        assert torch.equal(view[1], view[0].flip(-1))
    assert torch.equal(views[0][0], normalise(image))
    assert torch.equal(views[1][0], normalise(rescaled(image, 0.5)))


@pytest.mark.parametrize("sides", [(50, 80), (80, 50), (64, 64), (1, 1), (1, 300), (300, 2)])
@pytest.mark.parametrize("crop_size", [16, 60, 200])
def test_the_box_holds_the_image_and_nothing_lies_outside(sides: tuple[int, int], crop_size: int) -> None:
    image = photograph(*sides)
    for seed in range(8):
        crop, (top, left, bottom, right) = augment(image, keyed_rng(seed), (40, 70), crop_size)
        assert crop.shape == (crop_size, crop_size, 3)
        assert 0 <= top < bottom <= crop_size
        assert 0 <= left < right <= crop_size
        outside = np.ones((crop_size, crop_size), dtype=bool)
        outside[top:bottom, left:right] = False
        assert not crop[outside].any()
        long_side = round((right - left) if sides[1] >= sides[0] else (bottom - top))
        assert long_side == crop_size or 40 <= long_side <= 70


def test_a_crop_is_a_window_of_the_resized_image_perhaps_flipped() -> None:
    image = photograph(50, 80)
    resized = np.asarray(Image.fromarray(image).resize((64, 40), Image.Resampling.BICUBIC))
    seen = set()
    for seed in range(40):
        crop, (top, left, bottom, right) = augment(image, keyed_rng(seed), (64, 64), 48)
        assert (bottom - top, left, right) == (40, 0, 48)  # rows are padded, columns are cut
        real = crop[top:bottom]
        places = [
            (is_flipped, start)
            for is_flipped in (False, True)
            for start in range(64 - 48 + 1)
            if np.array_equal(real[:, ::-1] if is_flipped else real, resized[:, start : start + 48])
        ]
        assert len(places) == 1
        seen.add((*places[0], top))
    assert {is_flipped for is_flipped, _, _ in seen} == {False, True}
    assert len({start for _, start, _ in seen}) > 8
    assert len({top for _, _, top in seen}) > 4


def test_long_sides_cover_the_whole_range_and_keep_the_aspect() -> None:
    image = photograph(30, 60)
    long_sides = set()
    for seed in range(200):
        _, (top, left, bottom, right) = augment(image, keyed_rng(seed), (40, 50), 64)
        long_sides.add(right - left)
        assert abs((bottom - top) - (right - left) / 2) <= 0.5
    assert long_sides == set(range(40, 51))


def test_every_place_in_the_padded_crop_is_reached() -> None:
    image = photograph(4, 4)
    boxes = [augment(image, keyed_rng(seed), (4, 4), 8)[1] for seed in range(300)]
    assert {box[0] for box in boxes} == set(range(5))
    assert {box[1] for box in boxes} == set(range(5))


def test_padding_is_zero_after_normalisation() -> None:
    pixels, box = augment(photograph(20, 40), keyed_rng(3), (32, 32), 48)
    (top, left, bottom, right), crop = box, normalise_crops(pixels[None], [box])[0]
    outside = torch.ones(48, 48, dtype=torch.bool)
    outside[top:bottom, left:right] = False
    assert crop.dtype == torch.float32
    assert (crop[:, outside] == 0).all()
    assert (crop[:, ~outside] != 0).all()


def test_crops_normalised_together_equal_crops_normalised_alone() -> None:
    images = [photograph(30 + n, 50 - n, n) for n in range(6)]
    pairs = [augment(image, keyed_rng("x", n), (32, 64), 48) for n, image in enumerate(images)]
    alone = torch.cat([normalise_crops(crop[None], [box]) for crop, box in pairs])
    crops = np.stack([crop for crop, _ in pairs])
    boxes = [box for _, box in pairs]
    assert torch.equal(normalise_crops(crops, boxes), alone)
    assert torch.equal(normalise_crops(torch.from_numpy(crops), boxes), alone)


def test_images_that_cannot_be_written_to_are_read_all_the_same() -> None:
    image = photograph(20, 30)
    image.setflags(write=False)
    assert torch.equal(normalise(image), normalise(image.copy()))
    np.testing.assert_array_equal(
        augment(image, keyed_rng(1), (16, 32), 24)[0], augment(image.copy(), keyed_rng(1), (16, 32), 24)[0]
    )


def coded(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of dark and bright blocks, 8 pixels wide, and the mask that is 3 on the bright ones."""
    mask = 3 * np.random.default_rng(0).integers(0, 2, (-(-height // 8), -(-width // 8)), dtype=np.uint8)
    mask = mask.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.stack([20 + 60 * mask] * 3, -1), mask


@pytest.mark.parametrize("sides", [(50, 80), (64, 64), (120, 90), (1, 300)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.75])
def test_a_mask_is_cropped_as_its_image_and_ignored_outside(sides: tuple[int, int], scale: float) -> None:
    image, mask = coded(*sides)
    scaled = [max(round(side * scale), 1) for side in sides]
    for seed in range(20):
        crop, mask_crop, box = augment_pair(image, mask, keyed_rng(seed), scale, 64)
        top, left, bottom, right = box
        assert crop.shape == (64, 64, 3)
        assert crop.dtype == mask_crop.dtype == np.uint8
        assert mask_crop.shape == (64, 64)
        assert [bottom - top, right - left] == [min(side, 64) for side in scaled]
        outside = np.ones((64, 64), bool)
        outside[top:bottom, left:right] = False
        assert (mask_crop[outside] == 255).all()
        assert not crop[outside].any()
        assert np.isin(mask_crop[~outside], mask).all(), "a mask has no values between those of its classes"
        agreement = ((crop[..., 0] > 110) == (mask_crop == 3))[~outside].mean()
        assert agreement == 1 if scale == 1 else agreement > 0.97  # filters part on a few pixels of the edges


def test_a_pair_is_flipped_half_of_the_time_and_reaches_every_place() -> None:
    image = photograph(4, 6)
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6)
    flips, windows, places = [], set(), set()
    for seed in range(300):
        _, mask_crop, box = augment_pair(image, mask, keyed_rng(seed), 1.0, 5)
        window = mask_crop[box[0] : box[2]]
        flips.append(bool(window[0, 0] > window[0, 1]))
        windows.add(int(window[0].min()))
        places.add(box[0])
    assert 0.4 < np.mean(flips) < 0.6
    assert windows == {0, 1}
    assert places == {0, 1}


def test_a_pair_is_cropped_as_augment_crops() -> None:
    image, mask = photograph(40, 60), np.zeros((40, 60), np.uint8)
    for seed in range(10):
        rng = keyed_rng(seed)
        rng.integers(90, 91)  # augment draws a length first
        crop, mask_crop, box = augment_pair(image, mask, rng, 1.5, 48)
        expected, expected_box = augment(image, keyed_rng(seed), (90, 90), 48)
        np.testing.assert_array_equal(crop, expected)
        assert box == expected_box
        assert not mask_crop[box[0] : box[2], box[1] : box[3]].any()


def test_a_keyed_generator_depends_on_its_key_alone() -> None:
    assert keyed_rng(0, "2007_000032", 4).integers(2**32) == keyed_rng(0, "2007_000032", 4).integers(2**32)
    keys = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), ("0", "a", 1), (0, "a1"), (0, "a", "1"), ()]
    assert len({int(keyed_rng(*key).integers(2**62)) for key in keys}) == len(keys)
    assert keyed_rng(np.int64(5)).integers(2**62) == keyed_rng(5).integers(2**62)


def test_a_keyed_generator_is_the_same_on_every_machine() -> None:
    assert keyed_rng(7, "2007_000032", 3).integers(0, 1000, 4).tolist() == [654, 627, 62, 733]
