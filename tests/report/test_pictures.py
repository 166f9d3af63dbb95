"""Which images are shown with their masks, and what stands beside them."""

import numpy as np
import pytest
from PIL import Image

from ribray.data.mask_files import write_mask
from ribray.data.voc import VocDataset
from ribray.methods.maps import empty_arrays, to_arrays, write_maps
from ribray.methods.method import Refined
from ribray.report.overlays import mask_colour
from ribray.report.pictures import MaskBlock, draw_masks


@pytest.fixture
def photographs(shared_dir) -> VocDataset:
    return VocDataset(shared_dir / "data" / "voc-mini", "val")


@pytest.fixture
def truths(photographs, tmp_path):
    """A folder of masks that are the truth itself."""
    for id in photographs.ids:
        write_mask(tmp_path / "masks" / f"{id}.png", photographs.mask(id), photographs.palette, {"id": id})
    return tmp_path / "masks"


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def has_colour(pixels, colour):
    return (np.abs(pixels - colour.astype(int)).max(axis=2) < 3).sum() > 50


def test_masks_stand_beside_the_truth_with_a_legend_of_their_classes(photographs, truths, tmp_path):
    block = MaskBlock("training images", photographs, photographs.ids, {"pseudo mask": truths})
    assert draw_masks([block], tmp_path / "figure.png") == tmp_path / "figure.png"
    pixels = pixels_of(tmp_path / "figure.png")
    assert pixels.shape[1] == 1200
    legend = pixels[-40:]
    shown = [c for c in range(20) if has_colour(legend, mask_colour(c + 1, photographs.palette))]
    assert len(shown) >= 2
    assert set(shown) <= set(np.flatnonzero(photographs.labels.any(axis=0)))


def test_a_second_block_stands_below_the_first(photographs, truths, tmp_path):
    first = MaskBlock("training images", photographs, photographs.ids, {"pseudo mask": truths})
    second = MaskBlock("held-out images", photographs, photographs.ids, {"prediction": truths})
    draw_masks([first], tmp_path / "one.png")
    draw_masks([first, second], tmp_path / "two.png")
    assert pixels_of(tmp_path / "two.png").shape[0] > 1.7 * pixels_of(tmp_path / "one.png").shape[0]


def test_maps_are_drawn_between_the_truth_and_the_masks(photographs, truths, tmp_path):
    files = {}
    for id in photographs.ids:
        size = photographs.image(id).shape[:2]
        present = np.flatnonzero(photographs.labels[photographs.index(id)])
        maps = [np.random.default_rng(0).random((len(present), 8, 8), np.float32)]
        refinement = Refined(present, {"cam": maps, "rib": maps})
        arrays = to_arrays(refinement, size, (1.0,)) if len(present) else empty_arrays(size, (1.0,))
        files[id] = [tmp_path / "maps" / f"{id}.npz"]
        write_maps(files[id][0], id, arrays)
    masks = {"confident labels": truths, "pseudo mask": truths, "pseudo mask, plain CAM": truths}
    for name, maps in (("without", {}), ("with", files)):
        block = MaskBlock("training images", photographs, photographs.ids, masks, maps)
        draw_masks([block], tmp_path / f"{name}.png")
    # one more column of the same total width: smaller pictures
    assert pixels_of(tmp_path / "with.png").shape[0] < pixels_of(tmp_path / "without.png").shape[0]


def test_only_images_with_every_mask_are_shown(photographs, truths, tmp_path):
    kept = photographs.ids[0]
    alone = tmp_path / "alone"
    alone.mkdir()
    (truths / f"{kept}.png").rename(alone / f"{kept}.png")
    folders = {"confident labels": alone, "pseudo mask": truths}
    assert draw_masks([MaskBlock("", photographs, photographs.ids, folders)], tmp_path / "none.png") is None
    (truths / f"{kept}.png").write_bytes((alone / f"{kept}.png").read_bytes())
    draw_masks([MaskBlock("", photographs, photographs.ids, folders)], tmp_path / "figure.png")
    draw_masks([MaskBlock("", photographs, [kept], folders)], tmp_path / "same.png")
    assert (tmp_path / "figure.png").read_bytes() == (tmp_path / "same.png").read_bytes()


def test_a_folder_without_masks_is_no_column(photographs, truths, tmp_path):
    for name, folders in (("a", {"mask": truths}), ("b", {"mask": truths, "on plain CAM": tmp_path / "nowhere"})):
        draw_masks([MaskBlock("", photographs, photographs.ids, folders)], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert draw_masks([MaskBlock("", photographs, photographs.ids, {"m": tmp_path / "no"})], tmp_path / "c.png") is None
    assert draw_masks([], tmp_path / "c.png") is None


def test_damaged_masks_and_masks_of_another_size_are_passed_over(photographs, truths, tmp_path):
    bad, odd, *rest = photographs.ids
    (truths / f"{bad}.png").write_bytes(b"no picture")
    write_mask(truths / f"{odd}.png", np.zeros((5, 5), np.uint8), photographs.palette, {"id": odd})
    block = MaskBlock("", photographs, [bad, odd], {"mask": truths})
    assert draw_masks([block], tmp_path / "figure.png") is None
    assert draw_masks([MaskBlock("", photographs, [bad, odd, rest[0]], {"mask": truths})], tmp_path / "figure.png")


def test_images_of_unknown_labels_are_shown_too(photographs, truths, tmp_path):
    photographs.labels = np.zeros_like(photographs.labels)
    block = MaskBlock("", photographs, photographs.ids, {"prediction": truths})
    assert draw_masks([block], tmp_path / "figure.png") is not None
