"""COCO files as annotation tools and scripts write them: what they mean, or one sentence on what is wrong."""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ribray.commands.check import TAB, CheckWorker
from ribray.config import DataConfig
from ribray.data import Dataset, open_dataset
from ribray.data.dataset import IGNORE
from ribray.errors import ImageError, UsageError
from ribray.methods.extras import ExtraOrder
from tests.drawn import CLASSES, SIZE, coco, picture, save

# numpy's word to pycocotools, which Python shows to nobody but test runners
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FILE = "annotations/instances_train2014.json"
IDS = tuple(f"img{number:02d}" for number in range(9))
CAMERAS = tuple(f"cam{number // 3}/{number % 3:04d}" for number in range(9))
Entry = dict[str, Any]


def open_coco(root: Path, split: str = "train", labelled: bool = True) -> Dataset:
    return open_dataset(DataConfig(kind="coco", root=str(root), train_split="train"), split, labelled=labelled)


def named(form: str) -> Callable[[Entry, int], Entry]:
    """Call each picture by another name, of {id}."""
    return lambda entry, number: entry | {"file_name": form.format(id=IDS[number])}


def rewrite(root: Path, change: Callable[[Any], Any], file: str = FILE) -> None:
    """Change the annotations that were written."""
    content = json.loads((root / file).read_text())
    changed = change(content)
    (root / file).write_text(json.dumps(content if changed is None else changed))


def move(root: Path, **places: str) -> None:
    """Put the annotations (``file``) and the pictures (``folder``) elsewhere in the root."""
    for old, new in ((FILE, places.get("file")), ("train2014", places.get("folder"))):
        if new is not None:
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            (root / old).rename(root / new)


@functools.cache
def drawn(number: int) -> tuple[np.ndarray, np.ndarray]:
    return picture(number, [CLASSES[number % 3]])


def assert_all_read(dataset: Dataset, ids: tuple[str, ...] = IDS) -> None:
    """Every picture is the one whose labels and outlines it has."""
    assert dataset.ids == ids
    assert dataset.problems == dataset.findings == ()
    for number, id in enumerate(ids):
        assert dataset.labels[number].tolist() == [place == number % 3 for place in range(3)]
        _, mask = drawn(number)
        shown = dataset.image(id).astype(int)
        assert min(range(9), key=lambda other: abs(shown - drawn(other)[0]).mean()) == number
        truth = dataset.mask(id)
        assert truth is not None
        rows, columns = np.nonzero(mask)
        box = np.zeros(SIZE, np.uint8)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = number % 3 + 1
        np.testing.assert_array_equal(truth, box)


def found_by_check(dataset: Dataset, id: str) -> list[tuple[str, str]]:
    return [tuple(problem) for problem in CheckWorker({"train": dataset}).process(f"train{TAB}{id}")["problems"]]


# --- crowds ------------------------------------------------------------------------------------------------------


def crowd(which: Callable[[int], bool]) -> Callable[[Entry, int, np.ndarray], Entry]:
    """Draw objects of some images with CVAT's brush, which exports them as crowds of run lengths."""

    def change(one: Entry, number: int, mask: np.ndarray) -> Entry:
        if not which(number):
            return one
        flat = (mask == one["category_id"]).flatten(order="F")
        ends = np.flatnonzero(np.diff(flat, prepend=False))
        counts = np.diff(ends, prepend=0, append=flat.size).tolist()
        return one | {"segmentation": {"size": list(SIZE), "counts": counts}, "iscrowd": 1}

    return change


def test_an_image_of_crowds_alone_has_their_class_and_no_pixel_that_counts(tmp_path: Path) -> None:
    coco(tmp_path, instance=crowd(lambda number: number % 2 == 0))
    dataset = open_coco(tmp_path)
    assert dataset.labels.sum(1).tolist() == [1] * 9  # none is empty
    for number, id in enumerate(IDS):
        mask = dataset.mask(id)
        assert mask is not None
        assert set(np.unique(mask)) == ({0, IGNORE} if number % 2 == 0 else {0, number % 3 + 1})
        assert found_by_check(dataset, id) == []
    assert dataset.findings == ()
    (note,) = dataset.notes
    assert note.startswith("5 of 9 annotations in ")
    assert "5 images hold nothing else. Where single objects are meant, iscrowd must be 0." in note


def test_an_image_of_crowds_alone_is_no_extra_sample_of_their_class(tmp_path: Path) -> None:
    coco(tmp_path, instance=crowd(lambda number: number == 3))  # a cat
    dataset = open_coco(tmp_path)
    order = ExtraOrder(dataset.ids, dataset.labels, seed=0)
    assert sorted(dataset.ids[place] for place in order.candidates("img00", [0])) == [
        id for id in IDS if id not in ("img00", "img03", "img06")
    ]
    assert "img03" in [dataset.ids[place] for place in order.candidates("img01", [1])]


def test_data_of_nothing_but_crowds_has_labels_and_masks(tmp_path: Path) -> None:
    coco(tmp_path, instance=crowd(lambda number: True))
    dataset = open_coco(tmp_path)
    assert dataset.has_masks
    assert dataset.labels.sum() == 9
    assert [set(np.unique(dataset.mask(id)).tolist()) for id in IDS] == [{0, IGNORE}] * 9


# --- file names --------------------------------------------------------------------------------------------------


def test_pictures_of_one_name_in_several_folders_are_all_used(tmp_path: Path) -> None:
    coco(tmp_path, files=lambda id: f"{CAMERAS[IDS.index(id)]}.jpg")
    dataset = open_coco(tmp_path)
    assert_all_read(dataset, CAMERAS)
    assert dataset.notes == ()


@pytest.mark.parametrize(
    "form", ["./{id}.jpg", ".//{id}.jpg", "train2014/{id}.jpg", ".\\{id}.jpg", "train2014\\{id}.jpg"]
)
def test_separators_and_the_folders_own_name_are_read_without_a_word(tmp_path: Path, form: str) -> None:
    coco(tmp_path, image=named(form))
    dataset = open_coco(tmp_path)
    assert_all_read(dataset)
    assert dataset.notes == ()


@pytest.mark.parametrize(
    "form",
    [
        "images\\{id}.jpg",
        "../../label-studio/media/upload/4/{id}.jpg",
        "/data/local-files/?d=photos/{id}.jpg",
        "/data/upload/1/{id}.jpg",
        "D:\\data\\{id}.jpg",
        "\\\\server\\share\\{id}.jpg",
        "http://images.cocodataset.org/train2017/{id}.jpg",
        "https://host/a%20b/{id}%2Ejpg?token=1/2#top",
        "s3://bucket/key/{id}.jpg",
        "{id}",
    ],
)
def test_paths_of_another_machine_are_read_by_name_and_told(tmp_path: Path, form: str) -> None:
    coco(tmp_path, image=named(form))
    dataset = open_coco(tmp_path)
    assert_all_read(dataset)
    (note,) = dataset.notes
    assert f"The file_name of 9 of 9 images in {tmp_path / FILE} is no path below {tmp_path / 'train2014'}" in note
    assert f"such as img00.jpg for '{form.format(id='img00')}'." in note


def test_lvis_has_a_url_and_no_file_name(tmp_path: Path) -> None:
    url = "http://images.cocodataset.org/train2014/"
    coco(tmp_path, image=lambda entry, number: {"coco_url": f"{url}{entry.pop('file_name')}", **entry})
    assert_all_read(open_coco(tmp_path))


def test_paths_of_another_machine_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [f"{camera}.jpg" for camera in CAMERAS]
    coco(
        tmp_path,
        files=lambda id: files[IDS.index(id)],
        image=lambda entry, number: entry | {"file_name": f"/mnt/{files[number]}"},
    )
    assert_all_read(open_coco(tmp_path), CAMERAS)


def test_a_url_that_may_be_one_of_several_pictures_is_refused(tmp_path: Path) -> None:
    coco(
        tmp_path,
        files=lambda id: f"{CAMERAS[IDS.index(id)]}.jpg",
        image=lambda entry, number: entry | ({"file_name": "http://host/0001.jpg"} if number == 1 else {}),
    )
    dataset = open_coco(tmp_path)
    assert len(dataset) == 8
    (problem,) = dataset.problems
    assert problem.kind == "file name"
    assert f"images[1] of {tmp_path / FILE} has file_name 'http://host/0001.jpg', and which" in problem.sentence
    assert "cannot be told (cam0/0001.jpg and cam1/0001.jpg, …)" in problem.sentence


def test_two_names_that_would_be_the_same_picture_are_both_refused(tmp_path: Path) -> None:
    coco(tmp_path, image=lambda entry, number: entry | {"file_name": f"cam{number}/img0{number // 2}.jpg"})
    dataset = open_coco(tmp_path)
    assert dataset.ids == ("img04",)  # the one whose name nobody else has
    assert len(dataset.problems) == 8
    assert "which would be img00.jpg in" in dataset.problems[0].sentence
    assert "as 'cam1/img00.jpg' would" in dataset.problems[0].sentence


def test_a_path_whose_folder_is_there_means_no_other_picture(tmp_path: Path) -> None:
    places = [f"cam0/{id}.jpg" for id in IDS[:8]] + ["img08.jpg"]
    coco(
        tmp_path,
        files=lambda id: places[IDS.index(id)],
        image=lambda entry, number: entry | ({"file_name": "cam1/img08.jpg"} if number == 8 else {}),
    )
    dataset = open_coco(tmp_path)
    assert dataset.ids[8] == "cam1/img08"
    with pytest.raises(ImageError, match=r"cam1/img08\.jpg does not exist \(there is img08\.jpg\)"):
        dataset.image("cam1/img08")


def test_a_path_into_another_splits_folder_means_no_picture_of_this_one(tmp_path: Path) -> None:
    coco(tmp_path, split="val2014")
    coco(tmp_path, image=named("val2014/{id}.jpg"))
    dataset = open_coco(tmp_path)
    assert dataset.ids[0] == "val2014/img00"
    with pytest.raises(ImageError, match=r"train2014/val2014/img00\.jpg does not exist \(there is one in "):
        dataset.image("val2014/img00")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "..\\..\\etc\\passwd"])
def test_nothing_outside_the_folder_is_opened(tmp_path: Path, name: str) -> None:
    coco(tmp_path, image=lambda entry, number: entry | ({"file_name": name} if number == 0 else {}))
    dataset = open_coco(tmp_path)
    assert dataset.ids[0] == "passwd"
    assert dataset.image_path("passwd") == tmp_path / "train2014/passwd"
    with pytest.raises(ImageError, match="train2014/passwd does not exist"):
        dataset.image("passwd")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("..", "'..', which names no picture in"),
        ("http://host/", "'http://host/', which names no picture"),
        ("a\tb.jpg", r"'a\\tb.jpg', which has a character that cannot be printed: give the picture in .* another name"),
        ("x" * 300 + ".jpg", "which is too long for a file name"),
    ],
)
def test_a_name_of_no_picture_costs_its_image_alone(tmp_path: Path, name: str, reason: str) -> None:
    coco(tmp_path, image=lambda entry, number: entry | ({"file_name": name} if number == 0 else {}))
    dataset = open_coco(tmp_path)
    assert dataset.ids == IDS[1:]
    (problem,) = dataset.problems
    assert problem.id == "1"
    assert re.search(reason, problem.sentence)
    assert "an image id is" not in problem.sentence


def test_both_unicode_forms_of_a_name_are_the_same(tmp_path: Path) -> None:
    coco(
        tmp_path,
        files=lambda id: unicodedata.normalize("NFD", f"é{id}.jpg"),
        image=lambda entry, number: entry | {"file_name": unicodedata.normalize("NFC", entry["file_name"])},
    )
    dataset = open_coco(tmp_path)
    assert len(dataset) == 9
    assert dataset.image(dataset.ids[0]).shape == (*SIZE, 3)
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("form", "near"),
    [
        ("{id}.JPG", " (there is img00.jpg)"),
        ("{id}.png", " (there is img00.jpg)"),
        ("IMG00.bmp", " (there is img00.jpg)"),
        ("other.jpg", ""),
    ],
)
def test_a_picture_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path, form: str, near: str) -> None:
    coco(tmp_path, image=lambda entry, number: named(form)(entry, number) if number == 0 else entry)
    dataset = open_coco(tmp_path)
    missing = dataset.image_path(dataset.ids[0])
    assert found_by_check(dataset, dataset.ids[0]) == [
        ("missing", f"{missing} does not exist{near}: {tmp_path / FILE} names it.")
    ]


def test_a_picture_in_another_splits_folder_is_pointed_at(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "val2014").mkdir()
    (tmp_path / "train2014/img00.jpg").rename(tmp_path / "val2014/img00.jpg")
    with pytest.raises(ImageError, match=r"img00\.jpg does not exist \(there is one in .*val2014\)"):
        open_coco(tmp_path).image("img00")


def test_a_folder_of_plain_names_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the folder was listed")

    coco(tmp_path, files=lambda id: f"{CAMERAS[IDS.index(id)]}.jpg")
    monkeypatch.setattr("ribray.data.coco_files.list_files", refuse)
    assert len(open_coco(tmp_path)) == 9


@pytest.mark.slow
def test_names_are_searched_on_an_object_store_too(tmp_path: Path, bucket: Path) -> None:
    coco(
        tmp_path,
        image=lambda entry, number: named("img00.JPG" if number == 0 else "http://host/{id}.jpg")(entry, number),
    )
    for file in (FILE, "train2014/img00.jpg", "train2014/img01.jpg"):
        (bucket / file).write_bytes((tmp_path / file).read_bytes())
    dataset = open_coco(bucket)
    assert dataset.ids == IDS
    assert dataset.image("img01").shape == (*SIZE, 3)
    with pytest.raises(ImageError, match=r"img00\.JPG does not exist \(there is img00\.jpg\)"):
        dataset.image("img00")
    (bucket / "test/deep/a.jpg").write_bytes(b"x")
    assert open_coco(bucket, "test", labelled=False).ids == ("deep/a",)


# --- layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "places"),
    [
        ("default", {"file": "annotations/instances_default.json", "folder": "images"}),  # CVAT
        ("default", {"file": "annotations/instances_default.json", "folder": "images/default"}),
        ("train2014", {"file": "train2014/_annotations.coco.json"}),  # Roboflow
        ("train", {"file": "annotations/train.json", "folder": "train"}),
        ("train", {"file": "annotations/train2017.json", "folder": "train2017"}),
        ("train", {"file": "train.json", "folder": "images/train"}),
        ("train", {"folder": "images/train2014"}),
        ("result", {"file": "result.json", "folder": "images"}),  # Label Studio
        ("labels", {"file": "labels.json", "folder": "data"}),  # FiftyOne
    ],
)
def test_layouts_of_other_tools_are_read_and_told(tmp_path: Path, split: str, places: Mapping[str, str]) -> None:
    coco(tmp_path)
    move(tmp_path, **places)
    dataset = open_coco(tmp_path, split)
    assert_all_read(dataset)
    file, folder = tmp_path / places.get("file", FILE), tmp_path / places.get("folder", "train2014")
    assert dataset.notes == (f"Split '{split}' of {tmp_path} is read from {file}, and its images from {folder}.",)


def test_paths_from_the_root_are_read_where_the_split_has_no_folder(tmp_path: Path) -> None:
    coco(tmp_path, image=named("photos/{id}.jpg"))
    move(tmp_path, folder="photos")
    assert_all_read(open_coco(tmp_path), tuple(f"photos/{id}" for id in IDS))


def test_another_file_of_the_same_split_is_told(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "train.json").write_text((tmp_path / FILE).read_text())
    move(tmp_path, file="annotations/train.json", folder="train")
    (note,) = open_coco(tmp_path).notes
    assert "(train.json of the same name is not read)" in note


def test_of_two_years_it_is_said_which_is_read(tmp_path: Path) -> None:
    for year in ("2017", "2014"):
        coco(tmp_path, split=f"train{year}")
    (note,) = open_coco(tmp_path).notes
    assert (
        f"is read from {tmp_path / FILE} (not from that of 'train2017', which is a split too), and its images" in note
    )
    assert open_coco(tmp_path, "train2017").notes == open_coco(tmp_path, "train2014").notes == ()


def test_what_is_there_is_said_where_a_split_is_not(tmp_path: Path) -> None:
    coco(tmp_path / "data")
    with pytest.raises(UsageError, match=r"splits there are: train2014 \(did you mean 'train2014'\?\)"):
        open_coco(tmp_path / "data", "tain2014")
    with pytest.raises(UsageError, match=r"did you mean data\.root=.*/data\?"):
        open_coco(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean data\.root=.*/data\?"):
        open_coco(tmp_path / "data/train2014")
    move(tmp_path / "data", file="train2014/_annotations.coco.json")
    with pytest.raises(UsageError, match=r"data\.root is the folder above, train2014 the split"):
        open_coco(tmp_path / "data/train2014")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["annotations"], r"is a list, such as COCO has for results"),
        (lambda c: c["annotations"][0].update(segments_info=[]), "this is COCO's panoptic format"),
        (lambda c: c["categories"].append({"id": 0, "name": "Background"}), r"'Background' \(id 0\).* reserved"),
        (lambda c: c["categories"].append({"id": 9, "name": "cat"}), r"same id or name \(cat\)"),
    ],
)
def test_what_is_no_file_of_instances_is_said(tmp_path: Path, change: Callable[[Any], Any], reason: str) -> None:
    coco(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(UsageError, match=reason):
        open_coco(tmp_path)


def test_a_category_that_no_annotation_uses_is_a_class_of_no_image(tmp_path: Path) -> None:
    coco(tmp_path)
    rewrite(tmp_path, lambda content: content["categories"].insert(0, {"id": 0, "name": "animals"}))  # Roboflow
    dataset = open_coco(tmp_path)
    assert dataset.classes == ("animals", *CLASSES)
    assert dataset.labels.sum(0).tolist() == [0, 3, 3, 3]


# --- ids and sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_id", "reference"),
    [(str, int), (int, str), (float, int), (int, float), (lambda id: f"{id:06d}", int), (str, lambda id: f"{id}.0")],
)
def test_numbers_in_quotes_and_with_a_point_are_numbers(tmp_path: Path, image_id: Any, reference: Any) -> None:
    coco(
        tmp_path,
        image=lambda entry, number: entry | {"id": image_id(entry["id"]), "height": "48", "width": 64.0},
        instance=lambda one, number, mask: (
            one | {"image_id": reference(one["image_id"]), "category_id": reference(one["category_id"])}
        ),
    )
    dataset = open_coco(tmp_path)
    assert_all_read(dataset)
    assert dataset.coco_image("img03") == (4, "img03.jpg")


def test_ids_that_are_no_numbers_are_names(tmp_path: Path) -> None:
    names = ["7", "07", "a7", "0x7", "7e0", *"vwxyz"[:4]]
    coco(
        tmp_path,
        image=lambda entry, number: entry | {"id": names[number]},
        instance=lambda one, number, mask: one | {"image_id": names[number] if number else 7},
    )
    assert_all_read(open_coco(tmp_path))


def test_an_id_of_two_images_leaves_both_out(tmp_path: Path) -> None:
    coco(tmp_path, image=lambda entry, number: entry | ({"id": 1} if number == 1 else {}))  # two exports in one file
    dataset = open_coco(tmp_path)
    assert dataset.ids == IDS[2:]
    assert [problem.id for problem in dataset.problems if "gives the id 1 to two" in problem.sentence] == list(IDS[:2])
    predicted = open_coco(tmp_path, labelled=False)
    assert predicted.ids == IDS
    with pytest.raises(ImageError, match="gives the id 1 to two images"):
        predicted.mask("img00")


def test_an_id_that_is_given_again_to_a_listed_picture_leaves_both_out(tmp_path: Path) -> None:
    coco(tmp_path)
    rewrite(tmp_path, lambda content: content["images"].append({"id": 1, "file_name": "img01.jpg"}))
    assert open_coco(tmp_path).ids == IDS[2:]


def test_a_picture_listed_twice_has_the_annotations_of_both(tmp_path: Path) -> None:
    coco(tmp_path)

    def change(content: Any) -> None:
        content["images"].append({"id": 50, "file_name": "./img00.jpg"})
        content["annotations"].append(content["annotations"][1] | {"image_id": 50})  # a dog

    rewrite(tmp_path, change)
    dataset = open_coco(tmp_path)
    assert dataset.labels[0].tolist() == [True, True, False]
    (problem,) = dataset.problems
    assert "lists img00.jpg twice, as images[0] and images[9]: the annotations of both are used" in problem.sentence


# --- sizes and EXIF ----------------------------------------------------------------------------------------------


def lay_down(root: Path) -> None:
    """Store every picture on its side, and let EXIF say that it is to be turned."""
    for file in (root / "train2014").glob("*.jpg"):
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(file) as picture:
            lying = picture.transpose(Image.Transpose.ROTATE_90)
        lying.save(file, exif=exif, quality=92)


def swapped(entry: Entry, number: int) -> Entry:
    return entry | {"height": entry["width"], "width": entry["height"]}


def corners(*numbers: int) -> Callable[[Entry, int, np.ndarray], Entry]:
    return lambda one, number, mask: one | {"segmentation": [list(numbers)]}


def test_sizes_and_outlines_as_shown_are_right_whatever_exif_says(tmp_path: Path) -> None:
    coco(tmp_path)
    lay_down(tmp_path)
    assert_all_read(open_coco(tmp_path))


@pytest.mark.parametrize(
    ("outline", "remedy"),
    [
        ((50, 5, 63, 5, 63, 20), "outlines were drawn on the picture as shown, so write height 48 and width 64"),
        ((5, 50, 5, 63, 20, 63), "drawn on the pixels of the file, so save the picture without the turn"),
        ((5, 5, 20, 5, 20, 20), "write height 48 and width 64 if its outlines were drawn on the picture as shown"),
    ],
)
def test_a_size_before_exif_turns_the_picture_is_said(tmp_path: Path, outline: tuple[int, ...], remedy: str) -> None:
    coco(tmp_path, image=swapped, instance=corners(*outline))
    lay_down(tmp_path)
    ((kind, sentence),) = found_by_check(open_coco(tmp_path), "img00")
    assert kind == "mask size"
    assert "img00 48 × 64 pixels, the size of its file before its EXIF orientation turns it" in sentence
    assert "as shown it is 64 × 48" in sentence
    assert remedy in sentence


LYING = {"size": [SIZE[1], SIZE[0]], "counts": [10, 20, SIZE[0] * SIZE[1] - 30]}


@pytest.mark.parametrize("outline", [[[5, 50, 5, 63, 20, 63]], LYING])
def test_outlines_before_exif_turns_the_picture_are_said(tmp_path: Path, outline: Any) -> None:
    coco(tmp_path, instance=lambda one, number, mask: one | {"segmentation": outline})
    lay_down(tmp_path)
    with pytest.raises(
        ImageError, match="fit the 48 × 64 pixels of its file, but its EXIF orientation turns it to 64 × 48"
    ):
        open_coco(tmp_path).mask("img00")


def test_sizes_of_another_picture_are_said_without_exif(tmp_path: Path) -> None:
    coco(tmp_path, image=swapped, instance=crowd(lambda number: True))
    ((_, sentence),) = found_by_check(open_coco(tmp_path), "img00")
    assert "48 × 64 pixels, but its image is 64 × 48" in sentence
    assert "EXIF" not in sentence


# --- outlines ----------------------------------------------------------------------------------------------------


def boxes(which: Callable[[int], bool]) -> Callable[[Entry, int, np.ndarray], Entry]:
    def change(one: Entry, number: int, mask: np.ndarray) -> Entry:
        if which(number):
            one.pop("segmentation")
        return one

    return change


def test_a_box_without_an_outline_is_not_taken_for_background(tmp_path: Path) -> None:
    coco(tmp_path, instance=boxes(lambda number: number == 4))
    dataset = open_coco(tmp_path)
    assert dataset.has_masks
    with pytest.raises(ImageError, match=r"object of image img04 .* has no segmentation"):
        dataset.mask("img04")
    assert dataset.mask("img05") is not None


def test_boxes_beside_outlined_crowds_are_no_truth(tmp_path: Path) -> None:
    def change(one: Entry, number: int, mask: np.ndarray) -> Entry:
        return one | {"iscrowd": 1} if number == 0 else boxes(lambda number: True)(one, number, mask)

    coco(tmp_path, instance=change)
    dataset = open_coco(tmp_path)
    assert not dataset.has_masks
    assert dataset.mask("img00") is None


def test_outlines_in_parts_of_the_image_are_refused(tmp_path: Path) -> None:
    coco(tmp_path, instance=lambda one, number, mask: one | {"segmentation": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]})
    with pytest.raises(ImageError, match="corners between 0 and 1: an outline is in pixels"):
        open_coco(tmp_path).mask("img00")


def test_a_class_behind_others_may_lack_pixels_and_one_of_no_pixels_may_not(tmp_path: Path) -> None:
    coco(tmp_path)

    def change(content: Any) -> None:
        first = content["annotations"][0]
        content["annotations"].append(first | {"category_id": 2})  # the same outline, drawn later
        blank = {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}
        content["annotations"].append(content["annotations"][1] | {"category_id": 3, "segmentation": blank})

    rewrite(tmp_path, change)
    dataset = open_coco(tmp_path)
    assert dataset.hidden_classes("img00").tolist() == [True, True, False]
    assert dataset.hidden_classes("img01").tolist() == [False, True, False]


# --- images that are only to be predicted ------------------------------------------------------------------------


def pictures(folder: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        save(picture(number, ["cat"])[0], folder / name)


def test_a_folder_without_annotations_can_be_predicted(tmp_path: Path) -> None:
    coco(tmp_path)
    pictures(tmp_path / "test2014", ("a.jpg", "deep/b.png", ".thumbnails/a.jpg", "@eaDir/a.jpg/x.jpg"))
    dataset = open_coco(tmp_path, "test", labelled=False)
    assert dataset.ids == ("a", "deep/b")
    assert dataset.classes == CLASSES
    assert not dataset.has_masks
    assert "has no annotations: its images are the 2 pictures below" in dataset.notes[0]
    with pytest.raises(UsageError, match=r"splits there are: train2014\. Without labels, 'test' can only be predicted"):
        open_coco(tmp_path, "test")


def test_a_picture_that_cannot_be_predicted_is_a_finding(tmp_path: Path) -> None:
    coco(tmp_path)
    pictures(tmp_path / "test", ("a.jpg", "a.png"))
    dataset = open_coco(tmp_path, "test", labelled=False)
    assert dataset.ids == ("a",)
    assert [finding.sentence for finding in dataset.findings] == [
        f"{tmp_path / 'test'} has a.png beside a.jpg, both with id a: the first one is used."
    ]


@pytest.mark.parametrize("has_categories", [True, False])
def test_cocos_list_of_a_test_split_can_be_predicted(tmp_path: Path, has_categories: bool) -> None:
    content = coco(tmp_path)
    pictures(tmp_path / "test2017", ("a.jpg", "b.jpg", "c.jpg"))
    listed: Entry = {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "c.jpg"}]}
    if has_categories:
        listed["categories"] = content["categories"]
    (tmp_path / "annotations/image_info_test-dev2017.json").write_text(json.dumps(listed))
    dataset = open_coco(tmp_path, "test-dev2017", labelled=False)
    assert dataset.ids == ("a", "c")
    assert dataset.classes == CLASSES
    assert ("has no categories: the classes are those of" in " ".join(dataset.notes)) is not has_categories


def test_images_of_unknown_labels_are_predicted_and_not_judged(tmp_path: Path) -> None:
    coco(tmp_path)
    rewrite(tmp_path, lambda content: content["annotations"][0].update(category_id=77))
    assert open_coco(tmp_path).ids == IDS[1:]
    dataset = open_coco(tmp_path, labelled=False)
    assert dataset.ids == IDS
    with pytest.raises(ImageError, match=r"annotations\[0\] .* names category 77, which is not among the categories\."):
        dataset.mask("img00")


def test_without_any_categories_the_classes_are_not_known(tmp_path: Path) -> None:
    pictures(tmp_path / "test", ("a.jpg",))
    with pytest.raises(UsageError, match=r"No file of annotations in .* has categories"):
        open_coco(tmp_path, "test", labelled=False)
