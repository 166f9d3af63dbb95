"""Data in VOC layout as people bring it: other endings, lists of other systems, own classes, things misplaced."""

import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from upath import UPath

from ribray.commands.check import CheckWorker
from ribray.config import DataConfig, load_experiment
from ribray.data import Dataset, open_dataset
from ribray.data.voc_labels import VOC_CLASSES
from ribray.errors import ImageError, UsageError
from ribray.pipeline.maps import wanted_ids
from tests.drawn import folder, recipe, voc

OWN = {"cat": "helmet", "dog": "vest", "sea": "gloves"}
LIST = "ImageSets/Segmentation/train.txt"


def opened(root: Path, split: str = "train", classes: Sequence[str] | None = None, *, labelled: bool = True) -> Dataset:
    config = DataConfig(kind="voc", root=str(root), classes=None if classes is None else tuple(classes))
    return open_dataset(config, split, labelled=labelled)


def refusal(root: Path, *arguments: str, labelled: bool = True) -> str:
    with pytest.raises(UsageError) as caught:
        opened(root, *arguments, labelled=labelled)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_sound(dataset: Dataset) -> bool:
    """Whether every image and mask of the nine can be read, three of each class, and nothing is wrong."""
    worker = CheckWorker({"train": dataset})
    records = [worker.process(f"train\t{id}") for id in dataset.ids]
    assert [record["problems"] for record in records] == [[]] * 9
    assert dataset.labels.sum(0)[dataset.labels.any(0)].tolist() == [3, 3, 3]
    return dataset.problems == () and dataset.findings == () and all(record["has_mask"] for record in records)


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".PNG", ".Jpeg"])
def test_a_picture_is_read_whatever_its_ending(tmp_path: Path, suffix: str) -> None:
    ids = voc(tmp_path, suffix=suffix)
    dataset = opened(tmp_path)
    assert is_sound(dataset)
    assert dataset.notes == ()
    assert dataset.image_path(ids[0]).name == f"{ids[0]}{suffix}"
    assert dataset.coco_image(ids[1]) == (2, f"{ids[1]}{suffix}")


def test_pictures_of_every_ending_lie_side_by_side_in_an_object_store(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    for id, suffix in zip(ids, (".jpeg", ".JPG", ".JPEG"), strict=False):
        (tmp_path / f"JPEGImages/{id}.jpg").rename(tmp_path / f"JPEGImages/{id}{suffix}")
    remote = UPath("memory://layouts/voc")
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        target = remote / file.relative_to(tmp_path).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert is_sound(opened(tmp_path))
    there = open_dataset(DataConfig(kind="voc", root=str(remote)), "train")
    assert is_sound(there)
    assert there.fingerprint() == opened(tmp_path).fingerprint()


def test_of_two_pictures_for_one_id_it_is_said_which_is_used(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    shutil.copy(tmp_path / f"JPEGImages/{ids[4]}.jpg", tmp_path / f"JPEGImages/{ids[0]}.JPG")
    dataset = opened(tmp_path)
    [finding] = dataset.findings
    assert (finding.id, finding.kind) == (ids[0], "two pictures")
    assert finding.sentence.endswith(
        f"has {ids[0]}.jpg and {ids[0]}.JPG for {ids[0]}: {ids[0]}.jpg is used; keep one of them."
    )
    assert dataset.image_path(ids[0]).name == f"{ids[0]}.jpg"
    (tmp_path / LIST).write_text(f"{ids[0]}.JPG\n{ids[1]}\n")
    dataset = opened(tmp_path)
    assert f"{ids[0]}.JPG is used" in dataset.findings[0].sentence
    assert dataset.image_path(ids[0]).name == f"{ids[0]}.JPG"


def test_a_picture_that_is_missing_then_mended_is_seen_by_the_next_opening(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    move(tmp_path / "JPEGImages", tmp_path / "aside")
    (tmp_path / "JPEGImages").mkdir()
    before = opened(tmp_path)
    assert before.ids == tuple(ids)  # labels are known, so that a run goes on once the pictures are back
    with pytest.raises(ImageError, match=rf"{ids[0]}\.jpg does not exist.*there is .*aside/{ids[0]}\.jpg: put it into"):
        before.image(ids[0])
    (tmp_path / "JPEGImages").rmdir()
    move(tmp_path / "aside", tmp_path / "JPEGImages")
    assert is_sound(opened(tmp_path))
    assert opened(tmp_path).fingerprint() == before.fingerprint()


@pytest.mark.parametrize(
    ("there", "listed", "told"),
    [
        ("{id}.heic", "{id}", r"there is JPEGImages/2007_000000\.heic, but only \.jpg, .* are read\."),
        ("{id}.jpg", "2007000000", r"did you mean '2007_000000'"),
        ("{id}.jpg", "2007-000000", r"did you mean '2007_000000'"),
        ("{id}.jpg", "2007_0", r"did you mean '2007_000000'"),
        ("IMG_{id}.jpg", "img_{id}", r"did you mean 'IMG_2007_000000'"),
        ("part1/{id}.jpg", "{id}", r"did you mean 'part1/2007_000000'"),
        ("{id}.jpg", "part1/{id}", r"did you mean '2007_000000'"),
        ("{id}.jpg", "SegmentationClass/{id}.png", r"did you mean '2007_000000'"),
        ("{id}.jpg", "Annotations/{id}.xml", r"did you mean '2007_000000'"),
        ("../images/{id}.jpg", "{id}", r"there is .*images/2007_000000\.jpg: put it into JPEGImages"),
    ],
)
def test_a_picture_that_is_not_found_is_answered_with_the_nearest(
    tmp_path: Path, there: str, listed: str, told: str
) -> None:
    id = voc(tmp_path)[0]
    move(tmp_path / f"JPEGImages/{id}.jpg", tmp_path / "JPEGImages" / there.format(id=id))
    shutil.rmtree(tmp_path / "Annotations")
    shutil.rmtree(tmp_path / "SegmentationClass")
    (tmp_path / LIST).write_text(listed.format(id=id))
    with pytest.raises(UsageError, match=r"no image that can be used, for example: .*\.jpg does not exist.*" + told):
        opened(tmp_path)


def test_another_image_of_a_numbered_series_is_nothing_near(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    (tmp_path / f"JPEGImages/{ids[7]}.jpg").unlink()
    with pytest.raises(ImageError, match=r"2007_000007 with another ending\.$"):
        opened(tmp_path).image(ids[7])


def test_hidden_files_are_passed_over_and_linked_folders_followed_once(tmp_path: Path) -> None:
    ids = voc(tmp_path / "data")
    for id in ids:
        shutil.copy(tmp_path / f"data/JPEGImages/{id}.jpg", tmp_path / f"data/JPEGImages/._{id}.jpg")
    (tmp_path / "data/SegmentationClass/.ipynb_checkpoints").mkdir()
    shutil.copy(
        tmp_path / f"data/SegmentationClass/{ids[0]}.png",
        tmp_path / f"data/SegmentationClass/.ipynb_checkpoints/{ids[0]}-checkpoint.png",
    )
    move(tmp_path / "data/JPEGImages", tmp_path / "elsewhere/pictures")
    (tmp_path / "data/JPEGImages").symlink_to(tmp_path / "elsewhere/pictures")
    (tmp_path / "elsewhere/pictures/loop").symlink_to(tmp_path / "elsewhere")
    assert is_sound(opened(tmp_path / "data"))


# --- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "/JPEGImages/{id}.jpg /SegmentationClass/{id}.png",
        "JPEGImages/{id}.jpg",
        "{id}.jpg",
        "{id}.PNG",
        "./{id}",
        "  ./JPEGImages/{id}.jpg\t",
        "JPEGImages\\{id}.jpg",
        "../../JPEGImages/{id}.jpg",
        "/{id}.jpg",
        "JPEGImages/{id}.jpg,SegmentationClass/{id}.png",
        "\\JPEGImages\\{id}.jpg\t\\SegmentationClass\\{id}.png",
    ],
)
def test_lines_of_other_systems_lists_are_read(tmp_path: Path, line: str) -> None:
    ids = voc(tmp_path, line=line)
    dataset = opened(tmp_path)
    assert dataset.ids == tuple(ids)
    assert dataset.notes == ()
    assert is_sound(dataset)


def test_a_list_may_hold_lines_of_several_forms_as_windows_saves_it(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    forms = ("{}", "{}.jpg", "/JPEGImages/{}.jpg /SegmentationClass/{}.png", "JPEGImages\\{}.jpg")
    lines = [form.format(id, id) for form, id in zip(forms, ids, strict=False)]
    (tmp_path / LIST).write_bytes(("\ufeff" + "\r\n".join([*lines, f"{ids[0]}.png"])).encode())
    dataset = opened(tmp_path)
    assert dataset.ids == tuple(ids[:4])
    assert [problem.kind for problem in dataset.problems] == ["listed twice"]
    assert "on line 1 and again on line 5" in dataset.problems[0].sentence


def test_the_masks_that_a_list_names_are_said_not_to_be_the_truth(tmp_path: Path) -> None:
    voc(tmp_path, line="/JPEGImages/{id}.jpg /SegmentationClassAug/{id}.png")
    dataset = opened(tmp_path)
    assert is_sound(dataset)
    [note] = dataset.notes
    assert note.endswith("names masks in SegmentationClassAug: truth is read from SegmentationClass, for this split.")
    (tmp_path / "SegmentationClass").rename(tmp_path / "SegmentationClassAug")
    dataset = opened(tmp_path)
    assert is_sound(dataset)  # there are no others
    assert dataset.notes == ()


@pytest.mark.parametrize("root", ["/home/alice/VOC2012", "C:\\data\\VOC2012", "s3://bucket/VOC2012"])
def test_pictures_of_another_root_are_said_to_be_read_from_this_one(tmp_path: Path, root: str) -> None:
    voc(tmp_path, line=f"{root}/JPEGImages/{{id}}.jpg")
    dataset = opened(tmp_path)
    assert is_sound(dataset)
    [note] = dataset.notes
    assert "VOC2012/JPEGImages: those of the same names in" in note


def test_pictures_named_by_their_whole_path_are_those_of_the_root(tmp_path: Path) -> None:
    voc(tmp_path, line=f"{tmp_path}/JPEGImages/{{id}}.jpg")
    assert is_sound(opened(tmp_path))
    assert opened(tmp_path).notes == ()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("../{id}.jpg", "leaves its folder by '..'"),
        ("JPEGImages/../../{id}.jpg", "leaves its folder by '..'"),
        ("/etc/{id}", "is an absolute path"),
        ("{id}.jpg {id}_mask.png", "a mask has its picture's name: write the id alone, such as 2007_000000"),
        ("{id}.jpg 3 5", "only the image's id can be read: write 2007_000000 alone"),
        ('"{id}.jpg",', "only the image's id can be read: write 2007_000000 alone"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_what_would_be_right(tmp_path: Path, line: str, fault: str) -> None:
    voc(tmp_path, line=line)
    sentence = refusal(tmp_path)
    assert sentence.startswith(f"line 1 of {tmp_path / LIST} ")
    assert fault in sentence


@pytest.mark.parametrize("labelled", [True, False])
def test_an_empty_list_is_named(tmp_path: Path, labelled: bool) -> None:
    voc(tmp_path, line="")
    sentence = refusal(tmp_path, labelled=labelled)
    assert f"has no image that can be used: {tmp_path / LIST} is empty. Write the ids of its images there" in sentence


def test_a_comment_in_a_list_is_no_picture(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / LIST).write_text(f"# of May\n{(tmp_path / LIST).read_text()}")
    dataset = opened(tmp_path)
    [problem] = dataset.problems
    assert problem.sentence.endswith("; if that line of the list is a comment, take it out.")
    assert len(dataset) == 9


def test_ids_that_end_like_a_sign_are_ids(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    for number, id in enumerate(ids[:2]):
        for inner, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png"), ("Annotations", ".xml")):
            (tmp_path / inner / f"{id}{suffix}").rename(tmp_path / inner / f"beach {number}{suffix}")
    (tmp_path / LIST).write_text("beach 0\nbeach 1\n")
    dataset = opened(tmp_path)
    assert dataset.ids == ("beach 0", "beach 1")
    assert dataset.notes == dataset.findings == ()


def test_both_unicode_forms_of_an_id_are_one(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    apart = unicodedata.normalize("NFD", "été")
    for inner, suffix, stem in (
        ("JPEGImages", ".jpg", apart),
        ("SegmentationClass", ".png", apart),
        ("Annotations", ".xml", "été"),
    ):
        (tmp_path / inner / f"{ids[0]}{suffix}").rename(tmp_path / inner / f"{stem}{suffix}")
    (tmp_path / LIST).write_text(f"été\n{ids[1]}\n{apart}\n", encoding="utf-8")
    dataset = opened(tmp_path)
    assert dataset.ids == ("été", ids[1])
    assert [problem.kind for problem in dataset.problems] == ["listed twice"]
    assert dataset.image("été").shape == (*dataset.mask("été").shape, 3)
    assert dataset.findings == ()


# --- lists of a class --------------------------------------------------------------------------------------------


def test_the_list_of_a_class_is_a_list_and_its_signs_are_labels(tmp_path: Path) -> None:
    ids = voc(tmp_path, line="{id} {sign:2d}", lists="Main")
    (tmp_path / "ImageSets/Main/train.txt").rename(tmp_path / "ImageSets/Main/dog_train.txt")
    dataset = opened(tmp_path, "dog_train")
    assert dataset.ids == tuple(ids)
    assert is_sound(dataset)
    [note] = dataset.notes
    assert "a label of 'dog' (1 and 0: in the image, -1: not); all its 9 images are used" in note


def test_signs_that_the_annotations_contradict_are_findings(tmp_path: Path) -> None:
    ids = voc(tmp_path, line="{id} {sign}", lists="Main")
    (tmp_path / "ImageSets/Main/train.txt").rename(tmp_path / "ImageSets/Main/cat_train.txt")
    dataset = opened(tmp_path, "cat_train")
    assert dataset.labels[:, dataset.classes.index("cat")].tolist() == [True, False, False] * 3
    assert {finding.id for finding in dataset.findings} == {id for place, id in enumerate(ids) if place % 3 < 2}
    assert "cat_train.txt says by -1 that 'cat' is not in 2007_000000" in dataset.findings[0].sentence


def write_class_lists(root: Path, ids: Sequence[str]) -> None:
    """Write a list of each class, in place of annotations and of the split's own list."""
    shutil.rmtree(root / "Annotations")
    shutil.rmtree(root / "ImageSets")
    (root / "ImageSets/Main").mkdir(parents=True)
    for place, name in enumerate(("cat", "dog", "sea")):
        lines = (f"{id} {1 if number % 3 == place else -1:2d}\n" for number, id in enumerate(ids))
        (root / f"ImageSets/Main/{name}_train.txt").write_text("".join(lines))


@pytest.mark.parametrize("split", ["train", "dog_train"])
def test_the_lists_of_all_classes_are_the_labels_where_there_is_nothing_else(tmp_path: Path, split: str) -> None:
    ids = voc(tmp_path, masks=False)
    write_class_lists(tmp_path, ids)
    dataset = opened(tmp_path, split, ("cat", "dog", "sea"))
    assert dataset.ids == tuple(ids)
    assert dataset.labels.tolist() == [[number % 3 == place for place in range(3)] for number in range(9)]
    assert any("9 images have neither annotation nor mask" in note for note in dataset.notes)


def test_the_list_of_one_class_says_nothing_of_the_others(tmp_path: Path) -> None:
    ids = voc(tmp_path, masks=False)
    write_class_lists(tmp_path, ids)
    for name in ("cat", "sea"):
        (tmp_path / f"ImageSets/Main/{name}_train.txt").unlink()
    sentence = refusal(tmp_path, "dog_train")
    assert "do not tell of every class, but of dog (where these are all, give them as data.classes)" in sentence
    assert opened(tmp_path, "dog_train", ("dog",)).labels.ravel().tolist() == [False, True, False] * 3


# --- classes -----------------------------------------------------------------------------------------------------


def test_names_that_are_no_class_are_listed_in_a_form_to_be_pasted(tmp_path: Path) -> None:
    voc(tmp_path, names=OWN, masks=False)
    sentence = refusal(tmp_path)
    assert "'gloves' (images: 3), 'helmet' (images: 3), 'vest' (images: 3)" in sentence
    assert str(tmp_path / "classes.txt") in sentence
    pasted = yaml.safe_load(sentence.split("`")[1])
    assert opened(tmp_path, "train", pasted["classes"]).classes == ("gloves", "helmet", "vest")


def test_own_classes_come_from_the_recipe_or_from_a_file_in_the_root(tmp_path: Path) -> None:
    voc(tmp_path, names=OWN, masks=False)
    by_key = opened(tmp_path, "train", ("helmet", "vest", "gloves"))
    assert by_key.labels.tolist() == [[number % 3 == place for place in range(3)] for number in range(9)]
    assert by_key.problems == by_key.findings == by_key.notes == ()
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfhelmet\r\n vest \r\n\r\ngloves\r\n")
    by_file = opened(tmp_path)
    assert by_file.fingerprint() == by_key.fingerprint()
    np.testing.assert_array_equal(by_file.palette[:2], [[0, 0, 0], [128, 0, 0]])
    other = opened(tmp_path, "train", ("gloves", "vest", "helmet"))
    assert other.classes == ("gloves", "vest", "helmet")
    assert other.notes == (
        f"The classes are those of data.classes; {tmp_path / 'classes.txt'} has others and is not read.",
    )


@pytest.mark.parametrize("names", [("cat", "dog", "sea"), ("dog", "cat")])
def test_masks_that_cvat_counts_in_its_own_order_are_not_read_as_vocs(tmp_path: Path, names: Sequence[str]) -> None:
    def write(names: Sequence[str]) -> None:
        colours = "".join(f"{name}:{place},0,0::\n" for place, name in enumerate(("background", *names)))
        (tmp_path / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\n{colours}")

    voc(tmp_path)
    write(names)
    sentence = refusal(tmp_path)
    assert sentence.startswith(f"{tmp_path / 'labelmap.txt'} lists other classes than VOC's 20, or in another order (")
    assert f"({', '.join(names)}): give them as data.classes, or one a line in " in sentence
    opened(tmp_path, "train", VOC_CLASSES)
    write((*VOC_CLASSES, "ignored"))
    assert is_sound(opened(tmp_path))
    shutil.rmtree(tmp_path / "SegmentationClass")
    write(names)
    assert opened(tmp_path).labels.sum() == 9  # annotations have names: nothing is counted


def test_background_is_no_class_of_ones_own(tmp_path: Path) -> None:
    voc(tmp_path, names=OWN, masks=False)
    (tmp_path / "classes.txt").write_text("background\nhelmet\nvest\ngloves\n")
    assert "'background' as class 1, and that name is reserved" in refusal(tmp_path)


def test_names_that_differ_from_a_class_in_case_are_said_to(tmp_path: Path) -> None:
    voc(tmp_path, names={"cat": "Cat", "dog": "Dog", "sea": "Boat"})
    assert "differ from a class in case only: 'Boat' (images: 3) for 'boat'" in refusal(tmp_path)


def test_a_name_that_is_no_class_leaves_out_its_images_alone(tmp_path: Path) -> None:
    ids = voc(tmp_path, names={"cat": "cat", "dog": "Dog", "sea": "ship"})
    dataset = opened(tmp_path)
    assert dataset.ids == tuple(ids[::3])
    sentences = [problem.sentence for problem in dataset.problems]
    assert sentences[0].endswith("has an object 'Dog', which differs from class 'dog' in case only: write it so.")
    assert "has an object 'ship', which is no class" in sentences[1]
    [note] = dataset.notes
    assert "`classes: [cat, ship]` below `data:`" in note


def test_names_are_compared_in_the_composed_form_and_with_single_spaces(tmp_path: Path) -> None:
    voc(tmp_path, names={"cat": unicodedata.normalize("NFD", "héron"), "dog": "hard  hat", "sea": "x"}, masks=False)
    dataset = opened(tmp_path, "train", ("héron", "hard hat", "x"))
    assert dataset.labels.sum(0).tolist() == [3, 3, 3]


@pytest.mark.parametrize(("kind", "where"), [("folder", "classes.txt"), ("coco", "categories")])
def test_classes_of_other_layouts_stand_elsewhere(tmp_path: Path, kind: str, where: str) -> None:
    file = recipe(tmp_path / "r.yaml", tmp_path, kind=kind, data={"classes": ["cat"]})
    with pytest.raises(UsageError, match=rf"data\.classes belongs to kind: voc; of kind: {kind}, .*{where}"):
        load_experiment(str(file), [])


# --- masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{id}_mask.png", "gt_{id}.png", "train/{id}.png"])
def test_masks_that_belong_to_no_picture_are_findings_with_the_nearest(tmp_path: Path, name: str) -> None:
    ids = voc(tmp_path)
    for id in ids:
        masks = tmp_path / "SegmentationClass"
        move(masks / f"{id}.png", masks / name.format(id=id))
    dataset = opened(tmp_path)
    assert [finding.kind for finding in dataset.findings] == ["mask of no image"] * 9
    told = sorted(finding.sentence.split("SegmentationClass/")[1] for finding in dataset.findings)
    assert told[0] == f"{name.format(id=ids[0])} belongs to no picture in JPEGImages (did you mean '{ids[0]}'?)."


def test_the_mask_of_a_missing_picture_that_is_listed_somewhere_is_no_finding(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text(f"{ids[0]}\n")
    (tmp_path / f"JPEGImages/{ids[8]}.jpg").unlink()
    assert opened(tmp_path).findings == opened(tmp_path, "val").findings == ()


def test_masks_that_are_no_png_are_findings(tmp_path: Path) -> None:
    ids = voc(tmp_path)
    masks = tmp_path / "SegmentationClass"
    (masks / f"{ids[0]}.png").rename(masks / f"{ids[0]}.PNG")
    (masks / f"{ids[1]}.png").rename(masks / f"{ids[1]}.jpg")
    dataset = opened(tmp_path)
    assert dataset.mask(ids[0]) is not None
    assert [(finding.id, finding.kind) for finding in dataset.findings] == [
        (f"SegmentationClass/{ids[1]}.jpg", "mask ending")
    ]


# --- roots, folders and lists that lie elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda root: move(root / "JPEGImages", root / "jpegimages"),
            "it has jpegimages, which must be spelt",
        ),
        (lambda root: move(root / "JPEGImages", root / "images"), "it has pictures in its folder images"),
        (lambda root: move(root / LIST, root / "train.txt"), "/train.txt does: move or rename it"),
        (lambda root: move(root / LIST, root / "ImageSets/train.txt"), "/ImageSets/train.txt does: move or rename"),
        (
            lambda root: move(root / LIST, root / "ImageSets/segmentation/train.txt"),
            "/ImageSets/segmentation/train.txt",
        ),
        (lambda root: move(root / LIST, root / f"{(root / LIST).parent}/Train.TXT"), "Train.TXT does: move or rename"),
        (lambda root: move(root / LIST, root / "ImageSets/Main/training.txt"), "(did you mean 'training'?)"),
        (lambda root: shutil.rmtree(root / "ImageSets"), "train.txt does not exist; lists there are: none"),
    ],
)
def test_what_is_not_in_its_place_is_answered_with_where_it_is(
    tmp_path: Path, change: Callable[[Path], object], told: str
) -> None:
    voc(tmp_path)
    change(tmp_path)
    assert told in refusal(tmp_path)


@pytest.mark.parametrize("inner", ["JPEGImages", "ImageSets/Segmentation"])
def test_a_root_that_is_too_low_is_answered_with_the_right_one(tmp_path: Path, inner: str) -> None:
    voc(tmp_path)
    assert refusal(tmp_path / inner).endswith(f"did you mean data.root={tmp_path}?")


def test_a_root_that_is_too_high_is_answered_with_all_below(tmp_path: Path) -> None:
    for name in ("VOC2007", "VOC2012"):
        voc(tmp_path / name)
    assert refusal(tmp_path).endswith(f"data.root={tmp_path / 'VOC2007'} or {tmp_path / 'VOC2012'}?")
    (tmp_path / "up/VOCdevkit").mkdir(parents=True)
    (tmp_path / "VOC2012").rename(tmp_path / "up/VOCdevkit/VOC2012")
    assert refusal(tmp_path / "up").endswith(f"data.root={tmp_path / 'up/VOCdevkit/VOC2012'}?")


def test_the_list_of_the_augmented_set_may_have_been_saved_under_another_name(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / LIST).rename(tmp_path / "ImageSets/Segmentation/trainaug.txt")
    assert "trainaug.txt does: move or rename it" in refusal(tmp_path, "train_aug")


def test_a_folder_whose_name_is_written_in_another_case_is_said_not_to_be_read(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "Annotations").rename(tmp_path / "annotations")
    if (tmp_path / "Annotations").exists():
        pytest.skip("this file system knows no case")
    dataset = opened(tmp_path)
    assert is_sound(dataset)  # labels of the masks
    other, assumed = dataset.notes
    assert other == f"{tmp_path / 'annotations'} is not read: VOC's layout has Annotations in its place."
    assert assumed.startswith(
        "Labels come from masks where there is no annotation (images: 9), and their values 1 to 20"
    )
    assert f"give the names as data.classes or in {tmp_path / 'classes.txt'}." in assumed
    assert len(opened(tmp_path, "train", VOC_CLASSES).notes) == 1


# --- images that are only predicted ------------------------------------------------------------------------------


def test_images_to_be_predicted_need_no_labels_and_none_is_skipped(tmp_path: Path) -> None:
    ids = voc(tmp_path, masks=False)
    shutil.rmtree(tmp_path / "Annotations")
    (tmp_path / f"JPEGImages/{ids[3]}.jpg").unlink()
    assert opened(tmp_path, labelled=False).ids == tuple(ids)


def test_without_any_list_all_pictures_are_predicted_and_it_is_said(tmp_path: Path) -> None:
    ids = voc(tmp_path, suffix=".png")
    assert "lists there are: train" in refusal(tmp_path, "test", labelled=False)
    shutil.rmtree(tmp_path / "ImageSets")
    dataset = opened(tmp_path, "test", labelled=False)
    assert dataset.ids == tuple(ids)
    assert dataset.notes == (f"ImageSets has no list: split 'test' is all 9 pictures in {tmp_path / 'JPEGImages'}.",)
    assert "lists there are: none" in refusal(tmp_path, "test")


# --- lists of images to refine -----------------------------------------------------------------------------------


def wanted(file: Path, lines: str) -> tuple[list[str], list[str]]:
    """Return what a list makes of a recipe's images, and what is told of it."""
    (file.parent / "some.txt").write_text(lines, encoding="utf-8")
    experiment = load_experiment(str(file), [f"data.image_list={file.parent / 'some.txt'}"])
    told: list[str] = []
    training_set = open_dataset(experiment.data, experiment.data.train_split)
    context = SimpleNamespace(training_set=training_set, experiment=experiment, tell=told.append)
    return wanted_ids(context), told  # type: ignore[arg-type]


def test_a_list_of_images_to_refine_takes_the_same_lines(tmp_path: Path) -> None:
    folder(tmp_path / "data")
    file = recipe(tmp_path / "r.yaml", tmp_path / "data")
    assert wanted(file, "img02.jpg\n./img01.jpg\n") == (["img01", "img02"], [])
    ids = voc(tmp_path / "voc")
    file = recipe(tmp_path / "v.yaml", tmp_path / "voc", kind="voc", split="train")
    assert wanted(file, f"/JPEGImages/{ids[4]}.jpg /SegmentationClassAug/{ids[4]}.png\n")[0] == [ids[4]]
    chosen, told = wanted(file, f"{ids[0]} -1\n{ids[1]}  1\n")
    assert chosen == ids[:2]
    assert "all its images are refined, whatever the sign" in told[0]


def test_an_image_to_refine_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    voc(tmp_path / "voc")
    file = recipe(tmp_path / "v.yaml", tmp_path / "voc", kind="voc", split="train")
    with pytest.raises(UsageError, match=r"names '2007000003', which is not in .*did you mean '2007_000003'"):
        wanted(file, "2007000003\n")


def test_an_image_to_refine_whose_labels_are_broken_does_not_stop_the_others(tmp_path: Path) -> None:
    ids = voc(tmp_path / "voc")
    (tmp_path / f"voc/Annotations/{ids[0]}.xml").write_text("<annotation>")
    file = recipe(tmp_path / "v.yaml", tmp_path / "voc", kind="voc", split="train")
    assert wanted(file, f"{ids[0]}\n{ids[1]}\n")[0] == [ids[1]]


# --- sound data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_photographs_have_no_problem_no_finding_and_no_note(shared_dir: Path, split: str) -> None:
    dataset = opened(shared_dir / "data/voc-mini", split)
    assert dataset.problems == dataset.findings == dataset.notes == ()


@pytest.mark.usefixtures("ray_session")
def test_a_check_tells_notes_and_finds_nothing_wrong(ribray, tmp_path, capsys):
    voc(tmp_path / "voc", suffix=".png", line="/JPEGImages/{id}.jpg /SegmentationClassAug/{id}.png")
    file = recipe(tmp_path / "v.yaml", tmp_path / "voc", kind="voc", split="train")
    assert ribray("check", file, "--out", tmp_path / "out") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "truth is read from SegmentationClass, for this split." in shown
    assert "Nothing wrong was found." in shown
