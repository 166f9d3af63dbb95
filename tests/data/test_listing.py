"""Files of a folder by id, and the nearest of many names."""

import unicodedata
from pathlib import Path

import pytest
from upath import UPath

from ribray.data.files import FilesById
from ribray.data.names import doubtful_names, printable
from ribray.data.near import Near

SUFFIXES = (".jpg", ".png")


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_files_are_found_by_id_below_any_folder(tmp_path: Path, kind: str) -> None:
    root = tmp_path if kind == "local" else UPath(f"memory://listing/{tmp_path.name}")
    write(
        root, "a.png", "a.JPG", "a.jpg", "b/c.v2.PNG", "b/.hidden.jpg", "@eaDir/a.jpg", ".cache/x.jpg", "jpg", "d.txt"
    )
    listing = FilesById(root, SUFFIXES)
    assert sorted(listing) == ["a", "b/c.v2"]
    assert listing.names("a") == ["a.jpg", "a.JPG", "a.png"]
    assert listing.names("b/c.v2") == ["b/c.v2.PNG"]
    assert listing.names("x") == []
    assert listing.others == ["d.txt", "jpg"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert list(FilesById(tmp_path / "nowhere", SUFFIXES)) == []


def test_either_unicode_form_finds_the_file_under_its_own_name(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "été")
    listing = FilesById(write(tmp_path, f"{apart}/{apart}.jpg"), SUFFIXES)
    assert "été/été" in listing
    assert listing.names("été/été") == listing.names(f"{apart}/{apart}") == [f"{apart}/{apart}.jpg"]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path, "root/a.jpg", "other/b.jpg")
    (tmp_path / "root/link").symlink_to(tmp_path / "other")
    (tmp_path / "root/again").symlink_to(tmp_path / "other")
    (tmp_path / "root/self").symlink_to(tmp_path / "root")
    (tmp_path / "other/back").symlink_to(tmp_path / "root")
    assert sorted(FilesById(tmp_path / "root", SUFFIXES)) == ["a", "again/b", "link/b"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("2007000032", "2007_000032"),
        ("2007-000032.jpg", "2007_000032"),
        ("images/2007_000032", "2007_000032"),
        ("2007_000032_mask", "2007_000032"),
        ("gt_2007_000032", "2007_000032"),
        ("2007_32", "2007_000032"),
        ("7", "007"),
        ("beach/0008", "beach/8"),
        ("2007_000033", None),
        ("Beach", "sea/beach"),
        ("baech", "sea/beach"),
        ("mountain", None),
    ],
)
def test_the_nearest_name_is_the_one_that_was_probably_meant(name: str, near: str | None) -> None:
    names = Near(["2007_000032", "2007_000320", "sea/beach", "007", "070", "beach/8"])
    assert names.find(name) == near
    assert names.hint(name) == ("" if near is None else f" (did you mean '{near}'?)")


@pytest.mark.parametrize(
    ("other", "what"),
    [("Class 1", "case"), ("class 01", "how a number is written"), ("class\u200b 1", "what cannot be seen")],
)
def test_names_of_classes_that_look_alike_are_told(other: str, what: str) -> None:
    ((name, sentence),) = doubtful_names(["class 1", "class 10", other], "data")
    assert name == other
    assert sentence.endswith(f"'class 1' and '{other}', which differ in {what} only: they are taken for two.")


def test_names_that_cannot_be_printed_are_escaped() -> None:
    assert printable("a/é.png") == "a/é.png"
    assert printable("a\udc80\n.png") == r"'a\udc80\n.png'"
