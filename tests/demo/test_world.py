"""The drawn world: pictures, their truth, and the folder it is written to."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribray.config import DataConfig, SyntheticConfig
from ribray.data import open_dataset
from ribray.data.voc import VocDataset
from ribray.demo import world
from ribray.demo.creatures import FAMILIES, HUES, draw, head_style
from ribray.demo.world import class_names, make_world, palette
from ribray.errors import UsageError
from tools.pretraining import draw_single

SMALL = SyntheticConfig(image_size=64, classes=3, train_images=5, eval_images=2)
MOST_CLASSES = 200


def small_data(**changes: int) -> DataConfig:
    return DataConfig(kind="synthetic", seed=7, synthetic=SMALL.model_copy(update=changes))


# --- pictures -----------------------------------------------------------------------------------------------


def test_a_picture_depends_on_its_key_alone():
    image, mask, labels = draw("train", 3, seed=1)
    draw("train", 4, seed=1)
    again = draw("train", 3, seed=1)
    assert np.array_equal(image, again[0])
    assert np.array_equal(mask, again[1])
    assert np.array_equal(labels, again[2])
    for other in (draw("train", 3, seed=2), draw("val", 3, seed=1), draw("train", 9, seed=1)):
        assert not np.array_equal(image, other[0])


@pytest.mark.parametrize(("size", "classes"), [(112, 6), (64, 3), (200, 30), (48, 2), (113, 7)])
def test_labels_are_the_classes_of_the_mask(size: int, classes: int):
    for index in range(20):
        image, mask, labels = draw("train", index, seed=0, size=size, classes=classes)
        assert image.shape == (size, size, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert mask.shape == (size, size)
        assert labels.shape == (classes,)
        assert np.array_equal(np.unique(mask[mask > 0]) - 1, np.flatnonzero(labels))


def test_as_many_pictures_as_classes_show_every_class():
    assert np.all(np.any([draw("train", index, 0, 48, 40)[2] for index in range(40)], axis=0))


def test_a_fifth_of_the_pictures_has_two_creatures():
    counts = np.array([draw("train", index, 0)[2].sum() for index in range(200)])
    assert set(counts) == {1, 2}
    assert 0.12 < np.mean(counts == 2) < 0.28


def test_creatures_cover_about_a_sixth_and_keep_inside_the_picture():
    masks = np.stack([draw("train", index, 0)[1] for index in range(100)])
    assert 0.14 < np.mean(masks > 0) < 0.19
    border = np.concatenate([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]])
    assert not border.any()


def test_another_size_shows_the_same_picture():
    for index in range(5):
        coarse, fine = draw("val", index, 0, size=96), draw("val", index, 0, size=192)
        assert np.mean(coarse[1] == fine[1][::2, ::2]) > 0.98
        halved = fine[0].reshape(96, 2, 96, 2, 3).mean((1, 3))
        assert np.abs(coarse[0] - halved).mean() < 8  # pixel noise of 6 grey levels, and the edges


def test_class_names_and_heads_never_repeat():
    names = class_names(MOST_CLASSES)
    assert len(set(names)) == len(names) == MOST_CLASSES
    assert names[:6] == class_names(6)
    assert len({head_style(kind) for kind in range(MOST_CLASSES)}) == MOST_CLASSES


def test_pictures_to_pretrain_on_cover_every_attribute():
    drawn = [draw_single(0, index, size=48) for index in range(200)]
    assert {family for _, family, _ in drawn} == {None, *range(FAMILIES)}
    assert {kind for _, _, kind in drawn} == {None, *range(HUES)}
    assert all(kind is None for _, family, kind in drawn if family is None)


# --- the folder ---------------------------------------------------------------------------------------------


def test_the_world_on_disk_is_the_world_as_drawn(tmp_path: Path):
    make_world(tmp_path / "world", SMALL, seed=7)
    for split, count in (("train", 5), ("val", 2)):
        dataset = open_dataset(small_data(), split, tmp_path / "world")
        assert dataset.ids == tuple(f"{split}_{index:04d}" for index in range(count))
        assert dataset.classes == class_names(3)
        for index, id in enumerate(dataset.ids):
            image, mask, labels = draw(split, index, 7, 64, 3)
            assert np.array_equal(dataset.mask(id), mask)
            assert np.array_equal(dataset.labels[index], labels)
            assert np.abs(dataset.image(id).astype(int) - image).mean() < 6  # JPEG


def test_the_world_is_in_voc_layout_with_palette_masks(tmp_path: Path):
    make_world(tmp_path, SMALL, seed=7)
    assert (tmp_path / "classes.txt").read_text().split() == list(class_names(3))
    assert (tmp_path / "ImageSets/Segmentation/val.txt").read_text().split() == ["val_0000", "val_0001"]
    with Image.open(tmp_path / "SegmentationClass/train_0000.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette() == palette(3).reshape(-1).tolist()
    manifest = json.loads((tmp_path / "synthetic.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["image_size"] == 64
    assert manifest["finished"] is True


def test_a_world_that_is_there_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_world(tmp_path, SMALL, seed=7)
    monkeypatch.setattr(world, "draw", lambda *key: pytest.fail("drawn again"))
    make_world(tmp_path, SMALL, seed=7)


def test_an_interrupted_world_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Interruption(Exception):
        pass

    def interrupted(split: str, index: int, *key: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if index == 3:
            raise Interruption
        return draw(split, index, *key)

    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(world, "draw", interrupted)
        make_world(tmp_path, SMALL, seed=7)
    assert len(open_dataset(small_data(), "train", tmp_path)) == 5
    assert 3 <= len(list((tmp_path / "JPEGImages").iterdir())) < 5
    make_world(tmp_path, SMALL, seed=7)
    assert len(list((tmp_path / "JPEGImages").iterdir())) == 7


@pytest.mark.parametrize("change", [{"classes": 4}, {"image_size": 80}, {"train_images": 6}])
def test_a_world_of_other_parameters_is_refused_by_name(tmp_path: Path, change: dict[str, int]):
    make_world(tmp_path, SMALL, seed=7)
    with pytest.raises(UsageError, match=next(iter(change))):
        open_dataset(small_data(**change), "train", tmp_path)


def test_a_world_of_another_seed_is_refused(tmp_path: Path):
    make_world(tmp_path, SMALL, seed=8)
    with pytest.raises(UsageError, match="seed 8 instead of 7"):
        open_dataset(small_data(), "train", tmp_path)


def test_other_data_is_never_drawn_over(tmp_path: Path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "train_0000.jpg").write_bytes(b"a photograph")
    with pytest.raises(UsageError, match="other data"):
        open_dataset(small_data(), "train", tmp_path)
    assert [file.name for file in tmp_path.rglob("*")] == ["JPEGImages", "train_0000.jpg"]


def test_an_unknown_split_is_refused_before_anything_is_drawn(tmp_path: Path):
    with pytest.raises(UsageError, match="train and val"):
        open_dataset(small_data(), "test", tmp_path / "world")
    assert not (tmp_path / "world").exists()


def test_a_world_that_is_not_drawn_yet_looks_as_it_will_and_nothing_is_written(tmp_path: Path):
    for data in (small_data(), small_data(image_size=112)):
        root = tmp_path / f"{data.synthetic.image_size}px"
        early = {split: open_dataset(data, split, root) for split in ("train", "val")}
        for dataset in early.values():
            for id in dataset.ids:
                dataset.image(id), dataset.mask(id)
        assert not root.exists()
        make_world(root, data.synthetic, data.seed)
        for split, expected in early.items():
            dataset = open_dataset(data, split, root)
            assert (dataset.name, dataset.ids, dataset.classes) == (expected.name, expected.ids, expected.classes)
            assert dataset.fingerprint() == expected.fingerprint()
            assert np.array_equal(dataset.palette, expected.palette)
            assert (dataset.has_masks, dataset.category_ids) == (expected.has_masks, expected.category_ids)
            for id in dataset.ids:
                assert np.array_equal(dataset.image(id), expected.image(id))
                assert np.array_equal(dataset.mask(id), expected.mask(id))
                assert dataset.size(id) == expected.size(id)
                assert dataset.coco_image(id) == expected.coco_image(id)


def test_worlds_of_other_sizes_are_other_data_though_their_labels_are_equal(tmp_path: Path):
    prints = [
        open_dataset(small_data(image_size=size), "train", tmp_path / str(size)).fingerprint() for size in (64, 112)
    ]
    assert prints[0] != prints[1]
    make_world(tmp_path / "world", SMALL.model_copy(update={"image_size": 112}), seed=7)
    plain = VocDataset(tmp_path / "world", "train", class_names(3), palette(3))
    assert prints[1] == plain.fingerprint()  # runs of the usual size keep their keys


def test_the_data_set_travels_to_a_worker(tmp_path: Path):
    make_world(tmp_path, SMALL, seed=7)
    dataset = open_dataset(small_data(), "val", tmp_path)
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - bytes made on this line
    assert copy.fingerprint() == dataset.fingerprint()
    assert np.array_equal(copy.image("val_0001"), dataset.image("val_0001"))
