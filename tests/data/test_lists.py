"""Lists of ids, as people and other systems write them."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ribray.data.dataset import Problem
from ribray.data.lists import Known, check_id, id_finder, parse_list, read_list
from ribray.errors import UsageError


def ids_of(text: str, source: str, known: Known | None = None) -> tuple[tuple[str, ...], list[Problem]]:
    found = parse_list(text, source, known)
    return found.ids, found.problems


@pytest.mark.parametrize(
    "content",
    [
        b"a\nb/c\n",
        b"a\nb/c",
        b"\xef\xbb\xbfa\r\nb/c\r\n",  # as a Windows editor saves it
        b"a\rb/c\r",
        b"\n\n  a  \n\t\n b/c\n\n",
    ],
)
def test_line_ends_blanks_and_byte_order_marks_do_not_matter(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    assert read_list(tmp_path / "list.txt").ids == ("a", "b/c")


def test_an_id_listed_twice_is_kept_once_and_reported() -> None:
    ids, problems = ids_of("a\nb\na\na\n", "train.txt")
    assert ids == ("a", "b")
    assert [(problem.id, problem.kind) for problem in problems] == [("a", "listed twice")]
    assert problems[0].sentence == "train.txt lists a on line 1 and again on line 3: keep one of the two."


def test_ids_keep_spaces_and_letters_of_any_script() -> None:
    assert ids_of("my dog\nплиж/пес\n", "x")[0] == ("my dog", "плиж/пес")


@pytest.mark.parametrize(
    ("id", "fault"),
    [
        ("../secret", "leaves its folder"),
        ("a/../../b", "leaves its folder"),
        ("..", "leaves its folder"),
        ("/etc/passwd", "is an absolute path"),
        ("C:/windows", "is an absolute path"),
        ("a//b", "has an empty part"),
        ("a/", "has an empty part"),
        ("./a", "has an empty part"),
        ("s3://bucket/x", "has an empty part"),
        ("..\\b", "has a backslash"),
        ("a\0b", "cannot be printed"),
        ("a\tb", "cannot be printed"),
        ("a\udc80", "cannot be printed"),
        ("", "is empty"),
        (" ", "is empty"),
        ("x" * 201, "is too long"),
        ("é" * 101, "is too long"),
    ],
)
def test_ids_that_could_name_something_else_are_refused(id: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        check_id(id, "line 1 of x")


def test_the_line_is_named() -> None:
    with pytest.raises(UsageError, match=r"^line 3 of train.txt is '\.\./x', which leaves its folder"):
        ids_of("a\n\n../x\n", "train.txt")


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ("a.jpg", "a"),
        ("a.JPEG", "a"),
        ("b/c.png", "b/c"),
        ("./a", "a"),
        ("././b\\c.jpg", "b/c"),
        ("a.v2", "a.v2"),
        ("JPEGImages/a.jpg", "a"),
        ("/data/VOC2012/JPEGImages/b/c.jpg", "b/c"),
        ("jpegimages/a", "a"),
        ("/JPEGImages/a.jpg /SegmentationClassAug/a.png", "a"),
        ("my dog.jpg my dog.png", "my dog"),
        ("a.jpg;masks/a.png", "a"),
        ("\ufeffa", "a"),
    ],
)
def test_a_line_may_name_the_file_of_an_image_and_its_mask(line: str, id: str) -> None:
    assert ids_of(line, "list.txt") == ((id,), [])
    assert ids_of(line, "list.txt", id_finder([id])) == ((id,), [])


def test_a_line_that_is_an_image_as_it_stands_is_nothing_else() -> None:
    known = id_finder(["scan.png", "beach 1", "a.jpg a.png", "x"])
    assert ids_of("scan.png\nbeach 1\na.jpg a.png\n", "x", known)[0] == ("scan.png", "beach 1", "a.jpg a.png")


def test_signs_are_labels_and_are_read_only_where_the_images_are_known() -> None:
    found = parse_list("a -1\nb  1\nc.jpg 0\nbeach 1\nd\n", "x", id_finder(["a", "b", "c", "beach 1", "d"]))
    assert found.ids == ("a", "b", "c", "beach 1", "d")
    assert found.signs == {"a": -1, "b": 1, "c": 0}
    assert ids_of("beach 1\n", "x")[0] == ("beach 1",)


def test_what_else_a_line_says_is_kept() -> None:
    known = id_finder(["a", "b"])
    found = parse_list("/x/JPEGImages/a.jpg /x/SegmentationClassAug/a.png\nJPEGImages/b.PNG\n", "x", known)
    assert found.files == {"a": "a.jpg", "b": "b.PNG"}
    assert tuple(found.roots) == ("/x", "")
    assert tuple(found.mask_folders) == ("SegmentationClassAug",)


def test_both_unicode_forms_are_the_id_that_is_there() -> None:
    composed, apart = "\u00e9", "e\u0301"
    ids, problems = ids_of(f"{composed}\n{apart}.jpg\n", "x", id_finder([apart]))
    assert ids == (apart,)
    assert [problem.kind for problem in problems] == ["listed twice"]


def test_lists_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "utf16.txt").write_bytes("a\nb".encode("utf-16"))
    with pytest.raises(UsageError, match=r"utf16\.txt is not UTF-8 text"):
        read_list(tmp_path / "utf16.txt")
    with pytest.raises(UsageError, match=r"gone\.txt does not exist"):
        read_list(tmp_path / "gone.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        read_list(tmp_path)


letters = ["a", "b/c", "..", "/", "\\", "\r", "\n", " ", "\ufeff", "\0", "\x1c", "\u2028", "é", ".", ":"]
pieces = st.sampled_from([*letters, ".jpg", "a.png", "JPEGImages/", " -1", " 1"])


@settings(settings.get_profile("parsers"))
@given(st.one_of(st.text(), st.lists(pieces).map("".join)), st.sampled_from([None, id_finder(["a", "b/c", "a.png"])]))
def test_any_text_gives_safe_ids_or_one_sentence(text: str, known: Known | None) -> None:
    try:
        ids, _ = ids_of(text, "list.txt", known)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    assert len(set(ids)) == len(ids)
    for id in ids:
        inside = Path("/root/images").joinpath(f"{id}.jpg")
        assert ".." not in inside.parts
        assert inside.is_relative_to("/root/images")


@settings(settings.get_profile("parsers"))
@given(content=st.binary())
def test_any_bytes_give_ids_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.txt"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        read_list(path)
