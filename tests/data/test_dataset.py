"""What holds for every data set, and for the same photographs in every layout."""

import csv
import pickle
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from ribray.config import DataConfig
from ribray.data import Dataset, fingerprint_of, open_dataset
from ribray.data.dataset import labels_of_mask, shared_ids
from ribray.data.voc import VOC_CLASSES
from ribray.errors import UsageError
from tests import drawn

# numpy's word to pycocotools, which Python shows to nobody but test runners
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""VOC's classes that COCO calls otherwise."""


def as_coco(name: str) -> str:
    return COCO_NAMES.get(name, name)


def open_real(shared_dir: Path, kind: str, split: str) -> Dataset:
    return open_dataset(DataConfig(kind=kind, root=str(shared_dir / f"data/{kind}-mini")), split)  # type: ignore[arg-type]


def write_folder(root: Path, voc: Dataset, source: Path) -> None:
    """Write the images of a VOC split as a folder data set, with labels read from the XML text alone."""
    with (root / "labels.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        table = csv.writer(stream)
        table.writerow(("id", "classes"))
        for id in voc.ids:
            names = re.findall(r"<name>(\w+)</name>", (source / f"Annotations/{id}.xml").read_text())
            table.writerow((f"photos/{id}", ";".join(names)))
            for folder, place, suffix in (
                ("JPEGImages", "photos", ".jpg"),
                ("SegmentationClass", "masks/photos", ".png"),
            ):
                (root / place).mkdir(parents=True, exist_ok=True)
                shutil.copy(source / folder / f"{id}{suffix}", root / place / f"{id}{suffix}")
    (root / "classes.txt").write_text("\n".join(VOC_CLASSES))


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_same_photographs_have_the_same_labels_in_every_layout(
    shared_dir: Path, tmp_path: Path, split: str
) -> None:
    voc, coco = open_real(shared_dir, "voc", split), open_real(shared_dir, "coco", split)
    write_folder(tmp_path, voc, shared_dir / "data/voc-mini")
    folder = open_dataset(DataConfig(kind="folder", root=str(tmp_path)), "all")

    assert folder.ids == tuple(f"photos/{id}" for id in voc.ids)
    assert folder.classes == voc.classes
    np.testing.assert_array_equal(folder.labels, voc.labels)
    np.testing.assert_array_equal(folder.image(folder.ids[0]), voc.image(voc.ids[0]))
    np.testing.assert_array_equal(folder.mask(folder.ids[0]), voc.mask(voc.ids[0]))

    columns = [coco.classes.index(as_coco(name)) for name in voc.classes]
    rows = [coco.index(coco_id(id)) for id in voc.ids]
    np.testing.assert_array_equal(coco.labels[np.ix_(rows, columns)], voc.labels)
    others = np.delete(np.arange(len(coco)), rows)
    assert not coco.labels[np.ix_(others, columns)].any()  # images of no VOC class are in the COCO layout alone


def test_the_same_photographs_have_nearly_the_same_masks_in_both_sizes(shared_dir: Path) -> None:
    voc, coco = open_real(shared_dir, "voc", "train"), open_real(shared_dir, "coco", "train")
    as_voc = np.zeros(256, np.uint8)
    as_voc[255] = 255
    for value, name in enumerate(voc.classes, start=1):
        as_voc[coco.classes.index(as_coco(name)) + 1] = value
    agreeing = []
    for id in voc.ids:
        expected, large = voc.mask(id), coco.mask(coco_id(id))
        assert expected is not None
        assert large is not None
        small = Image.fromarray(as_voc[large]).resize(expected.shape[::-1], Image.Resampling.NEAREST)
        agreeing.append(float((np.asarray(small) == expected).mean()))
    assert min(agreeing) > 0.9
    assert np.mean(agreeing) > 0.98


def coco_id(voc_id: str) -> str:
    return f"{int(voc_id.split('_')[1]):012d}"


def test_a_fingerprint_changes_with_ids_labels_and_class_names() -> None:
    labels = np.array([[True, False], [False, True]])
    variants: Iterable[str] = (
        fingerprint_of(("a", "b"), labels, ("x", "y")),
        fingerprint_of(("a", "c"), labels, ("x", "y")),
        fingerprint_of(("b", "a"), labels, ("x", "y")),
        fingerprint_of(("a", "b"), ~labels, ("x", "y")),
        fingerprint_of(("a", "b"), labels, ("x", "z")),
        fingerprint_of(("a", "b", "x"), np.zeros((3, 1), bool), ("y",)),
        fingerprint_of(("a", "b"), labels[:, :0], ("x", "y")),
    )
    assert len(set(variants)) == 7
    assert fingerprint_of(["a", "b"], labels.astype(np.uint8), ["x", "y"]) == next(iter(variants))


def test_a_fingerprint_does_not_change_with_the_place_of_the_data(voc_root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(voc_root, moved, ignore=shutil.ignore_patterns("moved"))
    here, there = (open_dataset(DataConfig(kind="voc", root=str(root)), "train") for root in (voc_root, moved))
    assert here.fingerprint() == there.fingerprint()
    assert len(here.fingerprint()) == 64


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_data_in_an_object_store_are_read_like_local_ones(shared_dir: Path, kind: str) -> None:
    local = shared_dir / f"data/{kind}-mini"
    remote = UPath(f"memory://test/{kind}")
    for file in local.rglob("*"):
        if file.is_file():
            target = remote / file.relative_to(local).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    config = DataConfig(kind=kind, root=str(remote))  # type: ignore[arg-type]
    here, there = open_real(shared_dir, kind, "val"), open_dataset(config, "val")
    assert there.fingerprint() == here.fingerprint()
    np.testing.assert_array_equal(there.image(there.ids[2]), here.image(here.ids[2]))
    np.testing.assert_array_equal(there.mask(there.ids[2]), here.mask(here.ids[2]))
    pickle.loads(pickle.dumps(there)).image(there.ids[0])  # noqa: S301 - made here


def test_a_folder_in_an_object_store_is_read_like_a_local_one(folder_root: Path) -> None:
    remote = UPath("memory://test/folder")
    for file in folder_root.rglob("*"):
        if file.is_file():
            target = remote / file.relative_to(folder_root).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    here = open_dataset(DataConfig(kind="folder", root=str(folder_root)), "all")
    there = open_dataset(DataConfig(kind="folder", root=str(remote)), "all")
    assert there.fingerprint() == here.fingerprint()
    assert there.problems == ()
    np.testing.assert_array_equal(there.image("beach/two"), here.image("beach/two"))


def test_another_root_may_be_given(voc_root: Path) -> None:
    dataset = open_dataset(DataConfig(kind="voc", root="/nowhere"), "train", root=voc_root)
    assert dataset.ids == ("a", "b", "c")


def test_more_classes_than_a_mask_has_values_are_refused(folder_root: Path) -> None:
    (folder_root / "classes.txt").write_text("cat\ndog\nsea\n" + "\n".join(f"c{n}" for n in range(252)))
    with pytest.raises(UsageError, match="has 255 classes, where 1 to 254 can stand in a mask"):
        open_dataset(DataConfig(kind="folder", root=str(folder_root)), "all")


def test_background_and_ignored_pixels_are_no_labels() -> None:
    mask = np.array([[0, 255, 2], [2, 2, 0]], np.uint8)
    assert labels_of_mask(mask, 3).tolist() == [False, True, False]


def test_two_splits_share_the_images_that_are_one_file(tmp_path):
    for split, ids in (("a", ["x", "y"]), ("b", ["y", "z"])):
        drawn.folder(tmp_path / split, [(id, ["cat"]) for id in ids])
    first, second = (open_dataset(DataConfig(kind="folder", root=str(tmp_path / split)), "all") for split in ("a", "b"))
    assert shared_ids(first, first) == ["x", "y"]
    assert shared_ids(first, second) == []
