"""Folders of photographs as people bring them: links, Unicode, forms of labels.csv, names of classes and of masks."""

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from ribray import storage
from ribray.commands.check import CheckWorker
from ribray.commands.predict import find_images
from ribray.config import DataConfig
from ribray.data import Dataset, open_dataset
from ribray.data.files import list_files
from ribray.data.truth import PHRASES
from ribray.errors import ImageError, UsageError
from tests.drawn import CLASSES, Item, folder, nine, picture, recipe, save

EACH = {"cat": 3, "dog": 3, "sea": 3}
"""Images of each class in `nine`."""


def opened(root: Path, split: str = "all", **options: Any) -> Dataset:
    return open_dataset(DataConfig(kind="folder", root=str(root)), split, **options)


def refusal(root: Path, split: str = "all") -> str:
    with pytest.raises(UsageError) as refused:
        opened(root, split)
    return str(refused.value)


def counts(dataset: Dataset) -> dict[str, int]:
    return dict(zip(dataset.classes, dataset.labels.sum(0).tolist(), strict=True))


def wrong(dataset: Dataset) -> list[tuple[str, str, str]]:
    """All that a check would find, as kind, id and sentence."""
    worker = CheckWorker({"split": dataset})
    found = [(problem.kind, problem.id, problem.sentence) for problem in (*dataset.problems, *dataset.findings)]
    for id in dataset.ids:
        found += [(kind, id, sentence) for kind, sentence in worker.process(f"split\t{id}")["problems"]]
    return found


def assert_whole(dataset: Dataset, expected: dict[str, int] = EACH, masks: int = 9) -> None:
    """Nothing is wrong but that masks were drawn for other labels, and every image has its labels and its mask."""
    assert [found for found in wrong(dataset) if found[0] not in PHRASES] == []
    assert counts(dataset) == expected
    assert sum(dataset.mask(id) is not None for id in dataset.ids) == masks


def write_labels(root: Path, header: str, lines: dict[str, str] | list[str]) -> None:
    rows = [f"{id},{cells}" for id, cells in lines.items()] if isinstance(lines, dict) else lines
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def relabel(root: Path, old: str, new: str) -> None:
    text = (root / "labels.csv").read_text(encoding="utf-8")
    assert old in text
    (root / "labels.csv").write_text(text.replace(old, new), encoding="utf-8")


def below(name: str) -> list[Item]:
    return [(f"{name}/{id}", kinds) for id, kinds in nine()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder(tmp_path / "photos")
    return tmp_path / "photos"


# --- walking -----------------------------------------------------------------------------------------------------


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    folder(root, [*below("a")[:6], *below("b")[6:]])
    shutil.move(root / "b", tmp_path / "disk" / "b")
    (root / "b").symlink_to(tmp_path / "disk" / "b")
    assert_whole(opened(root))
    shutil.move(root, tmp_path / "elsewhere")
    root.symlink_to(tmp_path / "elsewhere")
    assert_whole(opened(root))


def test_masks_may_be_linked_beside_a_link_to_the_folder_around_them(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    folder(root, below("a"))
    for name in ("a", "masks"):
        shutil.move(root / name, tmp_path / "disk" / name)
        (root / name).symlink_to(tmp_path / "disk" / name)
    (root / "0").symlink_to(tmp_path / "disk")
    assert_whole(opened(root))


def test_links_that_go_round_are_walked_once(root: Path) -> None:
    (root / "self").symlink_to(root)
    (root / "up").symlink_to("..")
    (root / "inner").mkdir()
    (root / "inner" / "again").symlink_to(root / "inner")
    assert_whole(opened(root))
    assert len(find_images(root, root / "out")[1]) == 18  # photographs and masks


def test_a_folder_linked_beside_itself_is_the_same_folder(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    folder(root, below("a"))
    (root / "b").symlink_to("a")
    relabel(root, "a/", "b/")
    assert_whole(opened(root))
    assert opened(root).ids[0] == "a/img00"


def test_a_link_that_leads_nowhere_is_named(root: Path, tmp_path: Path) -> None:
    (root / "img00.jpg").unlink()
    (root / "img00.jpg").symlink_to(tmp_path / "gone.jpg")
    (root / "street").symlink_to(tmp_path / "unmounted")
    relabel(root, "img01,", "street/img77,cat\nimg01,")
    found = {id: (kind, sentence) for kind, id, sentence in wrong(opened(root))}
    assert found["img00"] == ("missing", f"{root}/img00.jpg is a link to {tmp_path}/gone.jpg, which does not exist.")
    assert found["street"][1] == f"{root}/street is a link that leads nowhere (to {tmp_path}/unmounted)."
    assert "street is a link that leads nowhere" in found["street/img77"][1]
    assert len(found) == 3
    (root / "labels.csv").unlink()
    (root / "labels.csv").symlink_to(tmp_path / "gone.csv")
    assert "labels.csv is a link that leads nowhere" in refusal(root)


def test_hidden_and_system_folders_are_passed_over(root: Path) -> None:
    for name in (
        ".ipynb_checkpoints/img00-checkpoint.jpg",
        "@eaDir/img00.jpg/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/img00.jpg",
        "street/.thumbnails/img00.jpg",
        "$RECYCLE.BIN/img00.jpg",
        "lost+found/img00.jpg",
        "._img00.jpg",
        "masks/.ipynb_checkpoints/img00-checkpoint.png",
        "masks/._img00.png",
    ):
        save(picture(0, ["cat"])[0], root / name)
    (root / "Thumbs.db").write_bytes(b"x")
    assert_whole(opened(root))
    relabel(root, "img00,", ".thumbs/a,cat\nimg00,")
    save(picture(0, ["cat"])[0], root / ".thumbs" / "a.jpg")
    ((kind, _, sentence),) = wrong(opened(root))
    assert kind == "missing"
    assert f"{root}/.thumbs/a.jpg is passed over" in sentence


def test_a_folder_on_an_object_store_is_the_same(root: Path, bucket: Path) -> None:
    relabel(root, "img00,", f"{bucket / 'photos' / 'img00.jpg'},")
    storage.copy_folder(root, bucket / "photos")
    dataset = opened(bucket / "photos")
    assert_whole(dataset)
    folder(root)
    assert dataset.fingerprint() == opened(root).fingerprint()


def test_an_object_store_is_listed_by_one_request() -> None:
    store = UPath("memory://listing/photos")
    for name in ("a/x.jpg", "masks/a/x.png", ".hidden/x.jpg", "@eaDir/x.jpg", "out/x.jpg", "notes.txt"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"x")
    listing = list_files(store, without=store / "out")
    assert listing.names == ("a/x.jpg", "masks/a/x.png", "notes.txt")
    assert listing.photographs == ["a/x.jpg", "masks/a/x.png"]


# --- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decomposed", ["files", "table", "list"])
def test_an_id_in_another_unicode_form_is_the_same(tmp_path: Path, decomposed: str) -> None:
    items = [(f"Čiurlionis/café {id}", kinds) for id, kinds in nine()]
    folder(tmp_path, items)
    (tmp_path / "splits").mkdir()
    table, split = tmp_path / "labels.csv", tmp_path / "splits" / "some.txt"
    split.write_text("".join(f"{id}\n" for id, _ in items), encoding="utf-8")
    if decomposed == "files":
        for file in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
            other = tmp_path / unicodedata.normalize("NFD", file.relative_to(tmp_path).as_posix())
            other.parent.mkdir(parents=True, exist_ok=True)
            file.rename(other)
    else:
        text = {"table": table, "list": split}[decomposed]
        text.write_text(unicodedata.normalize("NFD", text.read_text(encoding="utf-8")), encoding="utf-8")
    for name in ("all", "some"):
        assert_whole(opened(tmp_path, name))
        assert opened(tmp_path, name).ids == tuple(id for id, _ in items)


def test_two_files_of_one_name_in_two_unicode_forms_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, [("café", ["cat"]), ("b", ["dog"])])
    save(picture(0, ["cat"])[0], tmp_path / unicodedata.normalize("NFD", "café.jpg"))
    assert "have the same id café: their names differ in Unicode form only" in refusal(tmp_path)


@pytest.mark.parametrize(
    "written",
    [
        "{id}.jpg",
        "{id}.JPG",
        "./{id}",
        ".\\{id}.jpg",
        "photos/{id}",
        "photos\\{id}.jpg",
        "{root}/{id}",
        "{root}/{id}.jpg",
    ],
)
def test_an_id_may_be_written_as_a_path_or_with_its_ending(root: Path, written: str) -> None:
    ids = [written.format(id=id, root=root) for id, _ in nine()]
    write_labels(root, "id,classes", {id: kinds[0] for id, (_, kinds) in zip(ids, nine(), strict=True)})
    (root / "splits").mkdir()
    (root / "splits" / "some.txt").write_text("\n".join(ids))
    before = opened(root)
    assert_whole(before)
    assert_whole(opened(root, "some"))
    (root / "img04.jpg").unlink()
    assert opened(root).fingerprint() == before.fingerprint()  # so that a run goes on once the file is back


def test_what_is_not_there_is_answered_with_the_nearest_that_is(root: Path) -> None:
    (root / "img04.jpg").rename(root / "img04.heic")
    for old, new in {"img00": "img00.png", "img01": "IMG01", "img02": "street/img02", "img03": "image_3"}.items():
        relabel(root, f"{old},", f"{new},")
    found = {(kind, id): sentence for kind, id, sentence in wrong(opened(root))}
    for id, hint in {
        "img00.png": "img00.jpg, with another ending",
        "IMG01": "img01.jpg, which differs in case only",
        "street/img02": "img02.jpg, in another folder",
        "image_3": "img03.jpg",
        "img04": "img04.heic, which has another ending",
    }.items():
        assert found.pop(("missing", id)).endswith(f"; there is {root}/{hint}.")
    for id, hint in {
        "img00": "'img00.png', with another ending",
        "img01": "'IMG01', which differs in case only",
        "img02": "'street/img02', in another folder",
        "img03": "'image_3'",
    }.items():
        assert found.pop(("not listed", id)).endswith(f"; there is a row {hint}.")
    assert found == {}
    relabel(root, "IMG01,", "C:\\Users\\me\\img01.jpg,")
    assert "which is an absolute path" in refusal(root)
    assert refusal(root).endswith("; there is img01.")


def test_an_id_that_is_only_in_the_list_of_a_split_is_no_missing_row(root: Path) -> None:
    (root / "splits").mkdir()
    (root / "splits" / "Some.txt").write_text("img00\nIMG01\n")
    ((kind, _, sentence),) = wrong(opened(root, "Some"))
    assert kind == "not listed"
    assert "lists IMG01, which has neither an image nor a row in labels.csv; there is" in sentence
    assert f"there is {root}/splits/Some.txt" in refusal(root, "some")


def test_photographs_in_a_format_that_is_not_read_are_counted(tmp_path: Path) -> None:
    folder(tmp_path, [(f"{kinds[0]}/{id}", kinds) for id, kinds in nine()], masks=False)
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/c.jfif", "cat/img00.heic", "masks/d.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    sentences = [
        f"2 .heic files below {tmp_path} are not read (such as cat/a.HEIC): save them as JPEG.",
        f"1 .jfif file below {tmp_path} is not read (dog/c.jfif): rename it to .jpg.",
    ]
    assert [(kind, sentence) for kind, _, sentence in wrong(opened(tmp_path))] == [
        ("image format", sentence) for sentence in sentences
    ]
    shutil.rmtree(tmp_path / "masks")
    assert find_images(tmp_path, tmp_path / "out")[2] == sentences
    for file in tmp_path.rglob("*.jpg"):
        file.unlink()
    with pytest.raises(UsageError, match=r"holds no image .*\. 3 \.heic files below"):
        find_images(tmp_path, tmp_path / "out")


def test_an_id_without_the_zeros_of_its_file_is_answered_with_it(tmp_path: Path) -> None:
    folder(tmp_path, [(f"{place:03d}", kinds) for place, (_, kinds) in enumerate(nine())], masks=False)
    write_labels(tmp_path, "id,classes", [f"{place},{kinds[0]}" for place, (_, kinds) in enumerate(nine())])
    found = {(kind, id): sentence for kind, id, sentence in wrong(opened(tmp_path))}
    for place in range(9):
        assert found["missing", str(place)].endswith(f"; there is {tmp_path}/{place:03d}.jpg.")
        assert found["not listed", f"{place:03d}"].endswith(f"; there is a row '{place}'.")


# --- labels.csv --------------------------------------------------------------------------------------------------


FLAGS = {
    "zeros and ones": ("0", "1"),
    "decimals": ("0.0", "1.0"),
    "words": ("False", "True"),
    "signs": ("-1", "1"),
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_column_per_class_is_read(root: Path, flags: str) -> None:
    rows = {
        f"{id}.jpg": ",".join([*(FLAGS[flags][name in kinds] for name in ("sea", "dog", "cat")), "640"])
        for id, kinds in nine()
    }
    write_labels(root, "filename, sea, dog, cat, width", rows)
    dataset = opened(root)
    assert dataset.classes == ("sea", "dog", "cat")  # the order of the columns
    assert counts(dataset) == EACH
    (note,) = dataset.notes
    assert f"one column per class (sea, dog, cat): 1 means shown, {'-1' if flags == 'signs' else '0'} not" in note
    assert "passed over: 'width'" in note


@pytest.mark.parametrize(
    ("header", "cells", "part"),
    [
        ("id,cat,dog", ["2,0", "1,1"], "line 2 of {}/labels.csv holds '2' in column 'cat', where"),
        ("id,cat,dog", ["1,0", ",1"], "line 3 of {}/labels.csv holds '' in column 'cat'"),
        ("id,cat,dog", ["-1,1", "0,1"], "holds both -1 and 0"),
        ("id,background,dog", ["1,0", "1,1"], "column 'background', and that name is reserved"),
        ("id,cat,cat", ["1,0", "0,1"], "has the column 'cat' twice"),
        ("id,tag,dog", ["1,0", "0,1"], "holds 0 and 1 in column 'tag' and in 'dog'"),
        ("id,note", ["x", "y"], "must begin with the line 'id,classes'"),
        ("image,cat,dog", [",x", "x,"], "image, cat, dog: 'dog' holds 'x', where the column of a class holds 1 or 0"),
        ("image,cat,dog", ["0.9,0.1", "0.2,0.8"], "'cat' holds '0.9', where the column of a class holds 1 or 0"),
        ("id,label,label_2", ["cat,", "dog,sea"], "'label' and 'label_2', each of which may be that of classes"),
        ("id,classes,Classes.1", ["cat,", "dog,sea"], "'classes' and 'Classes.1', each of which may be"),
        ("id,label1,label2", ["cat,sea", "dog,"], "'label1' and 'label2', each of which may be that of classes"),
        ("id,classes,,", ["cat,,", "dog,sea,"], "line 3 of {}/labels.csv holds 'sea' in a column without a name"),
        ("id,classes,Unnamed: 2", ["cat,sea", "dog,"], "labels.csv holds 'sea' in a column without a name"),
        ("image,class,present", ["cat,1", "dog,0"], "line 3 of {}/labels.csv holds 0 in column 'present', but"),
        ("image,file,classes", ["img05,cat", "img06,dog"], "'image' and 'file', each of which may be that of ids"),
        ("id,label,category", ["cat,a", "dog,a"], "'label' and 'category', each of which may be that of classes"),
    ],
)
def test_columns_that_mean_two_things_are_refused(root: Path, header: str, cells: list[str], part: str) -> None:
    write_labels(root, header, {f"img0{place}": row for place, row in enumerate(cells)})
    assert part.format(root) in refusal(root)


def test_a_line_per_object_is_read(root: Path) -> None:
    lines = [f"{id}.jpg,64,48,{kinds[0]},0,3" for id, kinds in nine()]
    write_labels(root, "filename,width,height,class,difficult,xmin", [*lines, "img00.jpg,64,48,dog,0,9", *lines[:2]])
    dataset = opened(root)
    assert_whole(dataset, {"cat": 3, "dog": 4, "sea": 3})
    assert "has several lines for 2 of 9 images, and is read as one line per object" in dataset.notes[1]


@pytest.mark.parametrize("header", ["ImageID,Source,LabelName,Confidence", "image,by,class,verified"])
def test_a_line_per_image_and_class_that_says_no_is_refused(root: Path, header: str) -> None:
    lines = [f"{id},me,{name},{int(name in kinds)}" for id, kinds in nine() for name in CLASSES]
    write_labels(root, header, lines)
    column = header.rpartition(",")[2]
    assert f"line 3 of {root}/labels.csv holds 0 in column '{column}', but each line counts as" in refusal(root)
    assert "keep only the lines with 1; otherwise take the column out" in refusal(root)
    write_labels(root, header, [line for line in lines if line.endswith("1")])
    assert_whole(opened(root))


@pytest.mark.parametrize("column", ["difficult", "is_train"])
def test_flags_of_objects_and_of_images_say_nothing_of_classes(root: Path, column: str) -> None:
    lines = [f"{id}.jpg,{name},{int(place < 5)}" for place, (id, (name,)) in enumerate(nine())]
    lines += [f"img00.jpg,dog,{int(column == 'is_train')}"]
    write_labels(root, f"filename,label,{column}", lines)
    assert_whole(opened(root), {**EACH, "dog": 4})


def test_numbers_of_rows_are_no_ids_where_another_column_names_the_pictures(tmp_path: Path) -> None:
    folder(tmp_path, [(str(place), kinds) for place, (_, kinds) in enumerate(nine())])
    rows = [f"{place}.jpg,{kinds[0]}" for place, (_, kinds) in enumerate(nine())]
    write_labels(tmp_path, "id,filename,classes", [f"{place},{row}" for place, row in enumerate(rows)])
    assert_whole(opened(tmp_path))
    write_labels(tmp_path, "id,filename,classes", [f"{place},{row}" for place, row in enumerate(reversed(rows))])
    assert "has the columns 'id' and 'filename', each of which may be that of ids: keep one" in refusal(tmp_path)


def test_a_line_without_a_class_beside_one_with_is_no_object(root: Path) -> None:
    write_labels(root, "id,classes", [*(f"{id},{kinds[0]}" for id, kinds in nine()), "img00,"])
    ((kind, id, sentence),) = wrong(opened(root))
    assert (kind, id) == ("listed twice", "img00")
    assert "on line 2 and on line 11: the two disagree, so the image is left out" in sentence
    write_labels(
        root, "id,classes", ["img00,cat", "img00,", "img00,cat", *(f"{id},{kinds[0]}" for id, kinds in nine()[1:])]
    )
    ((_, _, sentence),) = wrong(opened(root))
    assert "on line 2 and on line 3: the two disagree" in sentence


@pytest.mark.parametrize(
    ("header", "line", "notes"),
    [
        ("id;classes", '{id};"{name};sea"', ["separated by semicolons"]),
        ("sep=;\nImage;Label", "{id};{name}", ["separated by semicolons", "column 'Image', classes from 'Label'"]),
        ("filename\tlabels", "{id}.jpg\t{name}", ["separated by tabs", "column 'filename', classes from 'labels'"]),
        ("\ufeffFile Name,Category", "{id}.jpg,{name}", ["column 'File Name', classes from 'Category'"]),
        ("id,file_name,label", "7,{id}.jpg,{name}", ["column 'file_name', classes from 'label'"]),
        ("Id, Classes", '{id}, "{name};sea"', []),
        (",id,classes,,", "7,{id},{name},,", []),
    ],
)
def test_tables_of_other_programs_are_read_and_told(root: Path, header: str, line: str, notes: list[str]) -> None:
    write_labels(root, header, [line.format(id=id, name=kinds[0]) for id, kinds in nine()])
    dataset = opened(root)
    assert_whole(dataset, {**EACH, "sea": 9} if ";sea" in line else EACH)
    assert len(dataset.notes) == len(notes)
    for note, part in zip(dataset.notes, notes, strict=True):
        assert part in note


def test_folders_are_classes_where_there_is_no_table(tmp_path: Path) -> None:
    folder(tmp_path, [(f"{kinds[0]}/{id}", kinds) for id, kinds in nine()])
    (tmp_path / "labels.csv").unlink()
    dataset = opened(tmp_path)
    assert_whole(dataset)
    assert dataset.notes == (
        f"{tmp_path} has no labels.csv: each image is taken to show the class (cat, dog, sea) that its first folder "
        "names.",
    )


def test_folders_of_splits_hold_folders_of_classes(tmp_path: Path) -> None:
    folder(tmp_path, [(f"{split}/{kinds[0]}/{id}", kinds) for split in ("train", "val") for id, kinds in nine()])
    (tmp_path / "labels.csv").unlink()
    for split in ("train", "val"):
        dataset = opened(tmp_path, split)
        assert_whole(dataset)
        assert all(id.startswith(f"{split}/") for id in dataset.ids)
    assert len(opened(tmp_path)) == 18
    assert "splits there are: all, train, val" in refusal(tmp_path, "test")


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["images", "annotations"], "its folders annotations, images do not seem to name classes"),
        (["images"], "its folder images does not seem to name classes"),
        (["old"], "its folder old does not seem to name classes"),
        (["train", "cat"], "do not seem to name classes"),
        (["cat", "dog", "gt_masks"], "if gt_masks holds masks, rename it to masks"),
        (["cat", "Background"], "has a folder 'Background' and no labels.csv"),
        (["."], "write a line 'id,classes'"),
    ],
)
def test_folders_that_may_be_no_classes_are_not_taken_for_them(tmp_path: Path, names: list[str], part: str) -> None:
    for place, (id, kinds) in enumerate(nine()):
        save(picture(place, kinds)[0], tmp_path / names[place % len(names)] / f"{id}.jpg")
    assert part in refusal(tmp_path)
    (tmp_path / "classes.txt").write_text("bus\n")
    assert len(opened(tmp_path, labelled=False)) == 9


def test_a_table_of_another_name_is_named_and_no_folders_are_read_for_it(tmp_path: Path) -> None:
    folder(tmp_path / "photos", [(f"{kinds[0]}/{id}", kinds) for id, kinds in nine()])
    (tmp_path / "photos" / "labels.csv").rename(tmp_path / "photos" / "Labels.CSV")
    assert "photos/Labels.CSV: if it holds the labels, save it as labels.csv" in refusal(tmp_path / "photos")
    (tmp_path / "photos" / "Labels.CSV").rename(tmp_path / "photos" / "labels.csv")
    assert f"there is {tmp_path}/photos/labels.csv: set data.root to its folder" in refusal(tmp_path)


# --- names of classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ('"{0},bird"', "write '{0};bird'"),
        ("{0}|bird", "write '{0};bird'"),
        ("\"['{0}', 'bird']\"", "write '{0};bird'"),
        ("{0}\tbird", "write '{0};bird'"),
        ("{0} sea", "write '{0};sea'"),
        ("{0}/sea", "write '{0};sea'"),
        ("{0} and bird", "write '{0};bird'"),
        ("{0}_bird", "write '{0};bird'"),
        ("{0}；bird", "write '{0};bird'"),
        ("{0}、bird", "write '{0};bird'"),
    ],
)
def test_several_names_in_a_cell_are_found_and_not_split(root: Path, cell: str, written: str) -> None:
    singles = {"a0": "cat", "a1": "dog", "a2": "bird", "a3": "sea"}  # so that the words are known as classes
    for id in singles:
        save(picture(0, ["cat"])[0], root / f"{id}.jpg")
    write_labels(root, "id,classes", {**singles, **{id: cell.format(kinds[0]) for id, kinds in nine()[:2]}})
    dataset = opened(root)
    found = [finding for finding in dataset.findings if finding.kind == "class name"]
    assert len(found) == 2
    for finding, name in zip(found, CLASSES, strict=False):
        assert written.format(name) in finding.sentence
    (root / "classes.txt").write_text("cat\ndog\nsea\nbird\n")
    if "\t" not in cell:
        assert f"if several are meant, {written.format('cat')}" in refusal(root)


def test_words_that_recombine_are_several_names_unless_classes_are_listed(root: Path) -> None:
    write_labels(root, "id,classes", {id: f"{kinds[0]} sea" for id, kinds in nine()})
    findings = opened(root).findings
    assert [finding.id for finding in findings if finding.kind == "class name"] == ["cat sea", "dog sea", "sea sea"]
    (root / "classes.txt").write_text("cat sea\ndog sea\nsea sea\n")
    assert wrong(opened(root)) == []
    (root / "classes.txt").unlink()
    write_labels(root, "id,classes", {id: f"red {kinds[0]};grey {kinds[0]}" for id, kinds in nine()})
    assert [kind for kind, _, _ in wrong(opened(root)) if kind == "class name"] == []


def test_the_background_is_refused_with_its_line(root: Path) -> None:
    (root / "classes.txt").write_text("\n_Background_\ncat\ndog\nsea\n")
    sentence = refusal(root)
    assert "classes.txt has '_Background_' on line 2, and that name is reserved" in sentence
    assert sentence.endswith("take the line out, and mask values mean 1 cat, 2 dog, 3 sea.")
    (root / "classes.txt").unlink()
    relabel(root, "img03,cat", "img03,cat;BACKGROUND")
    assert "line 5 of" in refusal(root)
    assert "gives img03 the class 'BACKGROUND', and that name is reserved" in refusal(root)


def test_names_that_mean_no_class_are_found(root: Path) -> None:
    relabel(root, "img03,cat", "img03,None")
    ((kind, id, sentence),) = wrong(opened(root))[:1]
    assert (kind, id) == ("class name", "None")
    assert "whose name says that it is none" in sentence


def test_a_list_of_classes_with_numbers_is_read_from_one_and_refused_from_zero(root: Path) -> None:
    (root / "classes.txt").write_text("1: sea\n2: dog\n3: cat\n")
    dataset = opened(root)
    assert dataset.classes == ("sea", "dog", "cat")
    assert dataset.notes == (f"{root}/classes.txt numbers its lines, which are read as mask values: 1 is sea.",)
    (root / "classes.txt").write_text("0 cat\n1 dog\n2 sea\n")
    assert "counts from 0 ('0 cat'), where 0 is background" in refusal(root)
    for name in ("1 cat", "2 dog", "3 sea"):
        relabel(root, f",{name[2:]}", f",{name}")
    (root / "classes.txt").write_text("1 cat\n2 dog\n3 sea\n")
    assert opened(root).classes == ("1 cat", "2 dog", "3 sea")  # which the labels use


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Cat\ndog\nsea\n", "; 'Cat' is, which differs in case only"),
        ("cat,dog,sea\n", "whose line 'cat,dog,sea' holds several: write one a line"),
    ],
)
def test_a_class_that_is_listed_otherwise_is_answered_with_it(root: Path, text: str, part: str) -> None:
    (root / "classes.txt").write_text(text)
    assert part in refusal(root)


def test_names_of_classes_in_two_unicode_forms_are_the_same(root: Path) -> None:
    relabel(root, "cat", "bébé")
    (root / "classes.txt").write_text(unicodedata.normalize("NFD", "bébé\ndog\nsea\n"), encoding="utf-8")
    dataset = opened(root)
    assert counts(dataset) == {"bébé": 3, "dog": 3, "sea": 3}
    assert [kind for kind, _, _ in wrong(dataset)] == ["class name"]


def test_numbers_as_names_are_found_where_a_mask_has_others(root: Path) -> None:
    for value, name in enumerate(CLASSES):
        relabel(root, f",{name}", f",{value}")
    found = wrong(opened(root))
    assert {id for _, id, _ in found} == {"0", "1", "2"}
    assert "has a class '0', which by its place is value 1 in a mask" in found[0][2]
    assert "has numbers for classes (0, 1, 2), which are taken for names, 0 included" in opened(root).notes[0]
    for value in (3, 2, 1):
        relabel(root, f",{value - 1}\n", f",{value}\n")
    assert wrong(opened(root)) == []


def test_letters_that_cannot_be_seen_are_no_part_of_a_name(root: Path) -> None:
    relabel(root, "img03,cat", "img03,cat\u200b")
    (root / "classes.txt").write_text("cat\n\u2060dog\nsea\n", encoding="utf-8")
    assert_whole(opened(root))


def test_one_number_in_two_forms_is_found(root: Path) -> None:
    for value, name in enumerate(CLASSES, start=1):
        relabel(root, f",{name}", f",{value}.0")
    relabel(root, "img03,1.0", "img03,01")
    dataset = opened(root)
    assert "has numbers for classes (01, 1.0, 2.0, 3.0), which are taken for names" in dataset.notes[0]
    part = "classes '01' and '1.0', which differ in how a number is written only: they are taken for two"
    assert part in dataset.findings[0].sentence


# --- masks -------------------------------------------------------------------------------------------------------


def rename_masks(root: Path, name: str) -> None:
    for file in sorted((root / "masks").glob("*.png")):
        file.rename(file.with_name(name.format(file.stem)))


@pytest.mark.parametrize("name", ["{}.PNG", "{}.jpg.png"])
def test_masks_are_read_whatever_the_case_of_their_ending(root: Path, name: str) -> None:
    rename_masks(root, name)
    assert_whole(opened(root))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (
            "{}_mask.png",
            ": rename it to img00.png (so with the 9 files '*_mask.png', after all 9 images without a mask)",
        ),
        ("{}_gtFine_labelIds.png", ": rename it to img00.png (so with the 9 files"),
        ("mask-{}.png", ": rename it to img00.png (so with the 9 files 'mask-*.png'"),
        ("photo{}.png", ": the nearest is img00"),
        ("X{}X.png", ": the nearest is img00"),
    ],
)
def test_masks_of_no_image_are_found_with_the_nearest_image(root: Path, name: str, part: str) -> None:
    rename_masks(root, name)
    dataset = opened(root)
    assert not dataset.has_masks
    found = wrong(dataset)
    assert [kind for kind, _, _ in found] == ["mask of no image"] * 9
    assert f"masks/{name.format('img00')} belongs to no image{part}" in found[0][2]


def test_masks_in_another_folder_or_case_than_their_images_are_found(tmp_path: Path) -> None:
    folder(tmp_path, below("Street"))
    shutil.move(tmp_path / "masks" / "Street", tmp_path / "aside")
    for place, file in enumerate(sorted((tmp_path / "aside").iterdir())):
        target = tmp_path / "masks" / ("street" if place else "") / file.name
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    sentences = [sentence for _, _, sentence in wrong(opened(tmp_path))]
    assert (
        f"{tmp_path}/masks/img00.png belongs to no image: the nearest is Street/img00, in another folder." in sentences
    )
    nearest = "belongs to no image: the nearest is Street/img01, which differs in case only."
    assert f"{tmp_path}/masks/street/img01.png {nearest}" in sentences


@pytest.mark.parametrize(("ending", "part"), [(".jpg", "is a JPEG, which cannot hold"), (".tif", "is no PNG")])
def test_masks_in_another_format_are_found(root: Path, ending: str, part: str) -> None:
    for file in sorted((root / "masks").glob("*.png")):
        Image.open(file).save(file.with_suffix(ending))
        file.unlink()
    dataset = opened(root)
    assert not dataset.has_masks
    found = wrong(dataset)
    assert [kind for kind, _, _ in found] == ["mask format"] * 9
    assert part in found[0][2]
    assert found[0][2].endswith("write it as img00.png.")


def test_what_lies_beside_masks_is_no_mask_and_a_second_mask_is_found(root: Path) -> None:
    (root / "masks" / "README.md").write_text("about")
    (root / "masks" / "img01.json").write_text("{}")  # what the PNG was drawn from
    shutil.copy(root / "masks" / "img00.png", root / "masks" / "img00.PNG")
    assert [(kind, id) for kind, id, _ in wrong(opened(root))] == [("two masks", "img00")]
    shutil.copy(root / "masks" / "img00.png", root / "masks" / "img00.jpg.png")
    ((_, _, sentence),) = wrong(opened(root))
    assert sentence.endswith("are all the mask of img00: img00.png is read, remove the others.")


def test_masks_of_no_image_are_not_counted_against_fewer_images(root: Path) -> None:
    for number in range(1, 9):
        shutil.copy(root / "masks" / f"img{number:02d}.png", root / "masks" / f"img{number:02d}_mask.png")
    (root / "masks" / "img00.png").rename(root / "masks" / "img00_mask.png")
    sentences = [sentence for kind, _, sentence in wrong(opened(root)) if kind == "mask of no image"]
    assert sentences[0].endswith("rename it to img00.png (so with the 9 files '*_mask.png').")


def test_a_folder_of_masks_under_another_name_holds_no_photographs(root: Path) -> None:
    (root / "masks").rename(root / "Masks")
    dataset = opened(root)
    assert len(dataset) == 9
    ((kind, id, sentence),) = wrong(dataset)
    assert (kind, id) == ("folder name", "Masks")
    assert "if it holds masks, that of img00 belongs at masks/img00.png" in sentence


@pytest.mark.parametrize("layout", ["table", "folders"])
@pytest.mark.parametrize("affix", ["_mask", "-GT", " label", "_mask_1"])
def test_masks_beside_their_photographs_are_no_photographs(tmp_path: Path, layout: str, affix: str) -> None:
    inside = {id: f"{kinds[0]}/{id}" for id, kinds in nine()}
    folder(tmp_path, [(inside[id], kinds) for id, kinds in nine()])
    for id in inside.values():
        (tmp_path / "masks" / f"{id}.png").rename(tmp_path / f"{id}{affix}.png")
    if layout == "folders":
        (tmp_path / "labels.csv").unlink()
    dataset = opened(tmp_path)
    assert counts(dataset) == EACH
    assert len(dataset) == 9
    how = "give it a row in labels.csv" if layout == "table" else "rename it"
    owner = inside["img00"]
    ((kind, _, sentence),) = wrong(dataset)
    assert (kind, sentence) == (
        "file name",
        f"{tmp_path}/{owner}{affix}.png and 8 more like it are not read: masks belong into masks/, that of {owner} at "
        f"masks/{owner}.png; if it is a photograph, {how}.",
    )
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "some.txt").write_text(f"{owner}\n{owner}{affix}\n")
    assert f"{owner}{affix}.png is not read: masks belong" in opened(tmp_path, "some").problems[0].sentence


def test_a_photograph_with_a_row_is_one_whatever_its_name(root: Path) -> None:
    save(picture(0, ["cat"])[0], root / "img00_label.jpg")
    relabel(root, "img01,", "img00_label,cat\nimg01,")
    assert_whole(opened(root), {**EACH, "cat": 4})


def test_a_folder_whose_name_speaks_of_masks_holds_no_photographs(root: Path) -> None:
    (root / "masks").rename(root / "gt_masks")
    assert [(kind, id) for kind, id, _ in wrong(opened(root))] == [("folder name", "gt_masks")]


def test_masks_that_people_wear_are_classes(tmp_path: Path) -> None:
    folder(tmp_path, [(f"{'with' if kinds == ['cat'] else 'without'}_mask/{id}", kinds) for id, kinds in nine()])
    (tmp_path / "labels.csv").unlink()
    assert counts(opened(tmp_path)) == {"with_mask": 3, "without_mask": 6}


def test_truth_of_other_splits_is_none_of_this_one(root: Path) -> None:
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("img00\nimg01\n")
    (root / "splits" / "val.txt").write_text("img02\nimg03\n")
    for id in ("img00", "img01"):
        (root / "masks" / f"{id}.png").unlink()
    assert not opened(root, "train").has_masks
    assert opened(root, "val").has_masks
    assert wrong(opened(root, "train")) == []


# --- images that are only predicted ------------------------------------------------------------------------------


def test_images_to_be_predicted_need_no_labels(root: Path) -> None:
    write_labels(root, "id,classes", ["img00,cat", "img01,dog", "img02,sea", "img02,"])
    dataset = opened(root, labelled=False)
    assert dataset.ids == tuple(sorted(id for id, _ in nine()))
    assert counts(dataset) == {"cat": 1, "dog": 1}
    assert wrong(dataset)[0][0] == "mask values"  # nothing else: the labels do not know of the sea
    (root / "labels.csv").unlink()
    (root / "classes.txt").write_text("cat\ndog\nsea\n")
    assert_whole(opened(root, labelled=False), dict.fromkeys(CLASSES, 0))
    (root / "splits").mkdir()
    (root / "splits" / "some.txt").write_text("img00\nimg77\n")
    dataset = opened(root, "some", labelled=False)
    assert dataset.ids == ("img00", "img77")
    with pytest.raises(ImageError, match="There is no image img77 below"):
        dataset.image("img77")


def test_images_to_be_predicted_need_no_names_of_classes(root: Path) -> None:
    (root / "labels.csv").unlink()
    dataset = opened(root, labelled=False)
    assert len(dataset) == 9
    assert "names a class: 'object' stands for them" in dataset.notes[0]
    assert dataset.image("img00").shape == (48, 64, 3)


def test_labels_that_are_whole_are_those_of_images_to_be_predicted(root: Path) -> None:
    assert opened(root, labelled=False).fingerprint() == opened(root).fingerprint()


# --- commands ----------------------------------------------------------------------------------------------------


def test_photographs_to_predict_are_found_as_data_is(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "masks")
    (tmp_path / "disk" / "street").mkdir(parents=True)
    shutil.move(root / "img00.jpg", tmp_path / "disk" / "street" / "a.jpg")
    (root / "street").symlink_to(tmp_path / "disk" / "street")
    (root / "gone").symlink_to(tmp_path / "unmounted")
    for name in (".ipynb_checkpoints/a-checkpoint.jpg", "@eaDir/a.jpg", "out/masks/a.png"):
        save(np.zeros((4, 4, 3), np.uint8), root / name)
    (root / "results").symlink_to(root / "out")
    _, names, gaps = find_images(root, root / "out")
    assert names == [*(f"img{number:02d}.jpg" for number in range(1, 9)), "street/a.jpg"]
    assert gaps == [f"{root}/gone is a link that leads nowhere (to {tmp_path}/unmounted)."]


def test_masks_beside_photographs_are_not_predicted(root: Path) -> None:
    for name in ("img00_mask.png", "img01_mask.png", "street_mask.png"):
        save(np.zeros((4, 4), np.uint8), root / name)
    _, names, notes = find_images(root, root / "out")
    assert "street_mask.png" in names and not {"img00_mask.png", "img01_mask.png"} & {*names}
    seems = f"{root}/img00_mask.png seems to be a mask; if it is a photograph, rename it."
    assert notes == [f"2 files are not predicted: {seems}"]


def test_a_check_tells_the_form_and_finds_what_is_wrong(ray_session, root, tmp_path, ribray, capsys) -> None:
    lines = {f"{id}.jpg": ",".join(str(int(name in kinds)) for name in CLASSES) for id, kinds in nine()}
    write_labels(root, "filename,cat,dog,sea", lines)
    rename_masks(root, "{}_mask.png")
    assert ribray("check", recipe(tmp_path / "recipe.yaml", root), "--out", tmp_path / "out") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "is read as one column per class (cat, dog, sea)" in said
    assert "mask of no image: 9" in said
