"""What a training on masks has read it keeps while there is room; its cuts are those of one that reads every time."""

from pathlib import Path

import numpy as np
import pytest

from ribray.config import DataConfig, IrnConfig
from ribray.data import open_dataset
from ribray.data.mask_files import mask_path, write_mask
from ribray.pipeline import batches
from ribray.pipeline.batches import MaskedImages, Sample
from tests.drawn import folder

EPOCHS = range(3)


@pytest.fixture
def root(tmp_path) -> Path:
    folder(tmp_path / "data")
    dataset = opened(tmp_path)
    for id in dataset.ids:
        mask = np.random.default_rng(0).integers(0, 2, dataset.image(id).shape[:2], np.uint8)
        write_mask(mask_path(tmp_path / "masks", id), mask, dataset.palette, {"id": id})
    return tmp_path


def opened(root: Path):
    return open_dataset(DataConfig(kind="folder", root=str(root / "data")), "all")


def images(root: Path) -> MaskedImages:
    dataset = opened(root)
    config = IrnConfig(crop_size=32, scale_range=(0.5, 1.5))
    return MaskedImages(dataset, root / "masks", dataset.ids, "irn", config)


def cuts(samples: MaskedImages) -> list[Sample]:
    return [samples[epoch, place] for epoch in EPOCHS for place in range(len(samples.ids))]


def remove_pictures(root: Path) -> None:
    for file in (root / "data").rglob("*.jpg"):
        file.unlink()


def test_a_small_data_set_is_read_once_and_cut_in_the_same_way(root, monkeypatch):
    kept = images(root)
    first = [kept[0, place] for place in range(len(kept.ids))]
    with monkeypatch.context() as without_room:
        without_room.setattr(batches, "KEPT_BYTES", 0)
        expected = cuts(images(root))
    remove_pictures(root)
    for found, wanted in zip([*first, *cuts(kept)], [*expected[: len(first)], *expected], strict=True):
        np.testing.assert_array_equal(found.pixels, wanted.pixels)
        np.testing.assert_array_equal(found.labels, wanted.labels)
        assert found.box == wanted.box
        assert found.error is None


def test_what_there_is_no_room_for_is_read_again(root, monkeypatch):
    dataset = opened(root)
    height, width, _ = dataset.image(dataset.ids[0]).shape
    monkeypatch.setattr(batches, "KEPT_BYTES", 4 * height * width)
    samples = images(root)
    assert [sample.error for sample in cuts(samples)] == [None] * len(EPOCHS) * len(samples.ids)
    remove_pictures(root)
    assert samples[1, 0].error is None
    assert samples[1, 1].error is not None
