"""A user's own folder of photographs."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ribray.config import DataConfig
from ribray.data import Dataset, open_dataset
from ribray.data.folder_labels import Labels, parse_labels
from ribray.data.lists import check_id
from ribray.errors import ImageError, UsageError


def open_folder(root: Path, split: str = "all") -> Dataset:
    return open_dataset(DataConfig(kind="folder", root=str(root)), split)


def write_labels(root: Path, *lines: str) -> None:
    (root / "labels.csv").write_text("\n".join(("id,classes", *lines)))


def test_ids_are_paths_without_endings_and_classes_are_sorted_names(folder_root: Path) -> None:
    dataset = open_folder(folder_root)
    assert dataset.ids == ("beach/one", "beach/two", "three")
    assert dataset.classes == ("cat", "dog", "sea")
    assert dataset.labels.tolist() == [[False, True, True], [False, False, False], [True, False, False]]
    assert dataset.problems == ()
    for id in dataset.ids:
        assert dataset.image(id).shape == (20, 30, 3)
    assert not dataset.has_masks
    assert dataset.mask("three") is None


def test_a_list_of_classes_decides_their_order(folder_root: Path) -> None:
    (folder_root / "classes.txt").write_bytes(b"\xef\xbb\xbfsea\r\ndog\r\n\r\ncat\r\nbird\r\n")
    dataset = open_folder(folder_root)
    assert dataset.classes == ("sea", "dog", "cat", "bird")
    assert dataset.labels[0].tolist() == [True, True, False, False]


def test_an_unknown_class_offers_the_nearest_known(folder_root: Path) -> None:
    (folder_root / "classes.txt").write_text("sea\ndogs\ncat\n")
    with pytest.raises(
        UsageError,
        match=r"gives beach/one the class 'dog', which is not in classes\.txt \(did you mean 'dogs'",
    ):
        open_folder(folder_root)
    (folder_root / "classes.txt").write_text("sea\ndog\ncat\nsea\n")
    with pytest.raises(UsageError, match=r"classes\.txt has 'sea' twice"):
        open_folder(folder_root)


def test_an_image_without_a_row_is_a_problem_of_its_own(folder_root: Path) -> None:
    write_labels(folder_root, "beach/one,dog", "three,cat")
    dataset = open_folder(folder_root)
    assert dataset.ids == ("beach/one", "three")
    assert [(problem.id, problem.kind) for problem in dataset.problems] == [("beach/two", "not listed")]
    assert "add one (without classes if it shows none)" in dataset.problems[0].sentence


def test_a_row_without_an_image_keeps_its_place(folder_root: Path) -> None:
    before = open_folder(folder_root).fingerprint()
    (folder_root / "three.jpeg").unlink()
    dataset = open_folder(folder_root)
    assert dataset.fingerprint() == before
    with pytest.raises(ImageError, match="There is no image three below"):
        dataset.image("three")


def test_two_images_with_one_id_are_refused_by_name(folder_root: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder_root / "three.png")
    with pytest.raises(UsageError, match=r"three\.jpeg and .*three\.png have the same id three: rename"):
        open_folder(folder_root)


def test_splits_are_lists_of_ids(folder_root: Path) -> None:
    (folder_root / "splits").mkdir()
    (folder_root / "splits/train.txt").write_text("three\nbeach/two\n")
    dataset = open_folder(folder_root, "train")
    assert dataset.ids == ("three", "beach/two")
    assert dataset.classes == ("cat", "dog", "sea")  # the same in every split
    assert dataset.labels.tolist() == [[True, False, False], [False, False, False]]
    assert len(open_folder(folder_root, "all")) == 3
    with pytest.raises(UsageError, match=r"val\.txt does not exist; splits there are: all, train"):
        open_folder(folder_root, "val")


def test_faults_outside_a_split_do_not_concern_it(folder_root: Path) -> None:
    (folder_root / "splits").mkdir()
    (folder_root / "splits/train.txt").write_text("three\nthree\nfour\n")
    write_labels(folder_root, "beach/one,dog", "beach/one,", "three,cat")
    problems = open_folder(folder_root, "train").problems
    assert {(problem.id, problem.kind) for problem in problems} == {
        ("three", "listed twice"),
        ("four", "not listed"),
    }


def test_rows_of_one_id_must_agree_on_whether_it_shows_a_class(folder_root: Path) -> None:
    write_labels(folder_root, "beach/one,dog;sea", "beach/two,", "three,cat", "beach/two, ;", "three,")
    dataset = open_folder(folder_root)
    assert dataset.ids == ("beach/one", "beach/two")
    assert {problem.id: problem.sentence.split(": ")[1] for problem in dataset.problems} == {
        "beach/two": "keep one of the two.",
        "three": "the two disagree, so the image is left out.",
    }


def test_masks_are_read_by_id_and_are_no_images(folder_root: Path) -> None:
    (folder_root / "masks/beach").mkdir(parents=True)
    mask = np.zeros((20, 30), np.uint8)
    mask[:3], mask[5] = 2, 255
    Image.fromarray(mask).save(folder_root / "masks/beach/one.png")
    dataset = open_folder(folder_root)
    assert dataset.has_masks
    assert dataset.problems == ()
    np.testing.assert_array_equal(dataset.mask("beach/one"), mask)
    assert dataset.mask("three") is None
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - made here
    np.testing.assert_array_equal(copy.mask("beach/one"), mask)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must begin with the line 'id,classes'"),
        (b"name;classes\na;dog\n", "must begin with the line 'id,classes', columns separated by commas"),
        (b"three,cat\n", "must begin with the line 'id,classes'"),
        (
            b"id,classes\nthree,cat,dog\n",
            r"line 2 of .*labels\.csv has 3 columns, not 2: separate several classes by ';'",
        ),
        (b"id,classes\nthree\n", "has 1 columns, not 2"),
        (b"id,classes\n,cat\n", "the id on line 2 of .* is empty"),
        (b"id,classes\n../x,cat\n", r"the id on line 2 of .* leaves its folder by '\.\.'"),
        (b"id,classes\n/x,cat\n", "is an absolute path"),
        (b'id,classes\n"three,cat\n', r"line 2 of .*labels\.csv is not valid CSV"),
        (b'id,classes\n"a\nb",cat\n', "cannot be printed"),
        (b"id,classes\nthree,\xff\n", "is not UTF-8 text"),
        (b"id,classes\nthree,\n", "No row of .* names a class"),
    ],
)
def test_broken_label_files_are_refused(folder_root: Path, content: bytes, reason: str) -> None:
    (folder_root / "labels.csv").write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        open_folder(folder_root)


def test_a_missing_label_file_says_what_to_write(folder_root: Path) -> None:
    (folder_root / "labels.csv").unlink()
    with pytest.raises(UsageError, match=r"labels\.csv does not exist: write a line 'id,classes'"):
        open_folder(folder_root)


def parse(text: str) -> Labels:
    def id_of(written: str, where: str) -> str:
        check_id(written, where)
        return written

    return parse_labels(text, "labels.csv", id_of, lambda id: False)


def test_label_files_as_spreadsheets_write_them() -> None:
    text = '\ufeffnotes, Classes ,ID\r\n"a, b",dog ; grey   seal;;dog,x/1\r\n\r\n,,\r\n,"",x/2'
    table = parse(text.removeprefix("\ufeff"))
    assert table.rows == {"x/1": ("dog", "grey seal"), "x/2": ()}
    assert table.problems == {}
    assert table.notes == []


# --- any CSV ----------------------------------------------------------------------------------------------

cells = st.sampled_from(
    ["a", "b/c", "dog", ";", ",", '"', "\n", "\r\n", "..", "/", "\0", " ", "é", "id", "\\", "1", "0", "\t", "sep="]
)
headers = st.sampled_from(["id,classes\n", "id,cat,dog\n", "file;label\n", "id\timage\tclass\n"])


@settings(settings.get_profile("parsers"))
@given(st.one_of(st.text(), st.builds(str.__add__, headers, st.lists(cells).map("".join))))
def test_any_text_gives_labels_or_one_sentence(text: str) -> None:
    try:
        table = parse(text)
    except UsageError as error:
        assert "labels.csv" in str(error)
        assert "\n" not in str(error)
        return
    for id, names in table.rows.items():
        assert ".." not in id.split("/")
        assert not id.startswith("/")
        assert id.isprintable()
        assert "" not in names
    assert all(problem.id == id for id, problem in table.problems.items())
