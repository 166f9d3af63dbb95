"""Lists of ids, as people and other systems write them."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ribray.data.lists import check_id, parse_id_list, read_id_list
from ribray.errors import UsageError


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
    assert read_id_list(tmp_path / "list.txt") == ("a", "b/c")


def test_an_id_listed_twice_is_kept_once_and_reported() -> None:
    ids, problems = parse_id_list("a\nb\na\na\n", "train.txt")
    assert ids == ("a", "b")
    assert [(problem.id, problem.kind) for problem in problems] == [("a", "listed twice")]
    assert problems[0].sentence == "train.txt lists a on line 1 and again on line 3: keep one of the two."


def test_ids_keep_spaces_and_letters_of_any_script() -> None:
    assert parse_id_list("my dog\nплиж/пес\n", "x")[0] == ("my dog", "плиж/пес")


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
        parse_id_list("a\n\n../x\n", "train.txt")


def test_lists_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "utf16.txt").write_bytes("a\nb".encode("utf-16"))
    with pytest.raises(UsageError, match=r"utf16\.txt is not UTF-8 text"):
        read_id_list(tmp_path / "utf16.txt")
    with pytest.raises(UsageError, match=r"gone\.txt does not exist"):
        read_id_list(tmp_path / "gone.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        read_id_list(tmp_path)


pieces = st.sampled_from(
    ["a", "b/c", "..", "/", "\\", "\r", "\n", " ", "\ufeff", "\0", "\x1c", "\u2028", "é", ".", ":"]
)


@settings(settings.get_profile("parsers"))
@given(st.one_of(st.text(), st.lists(pieces).map("".join)))
def test_any_text_gives_safe_ids_or_one_sentence(text: str) -> None:
    try:
        ids, _ = parse_id_list(text, "list.txt")
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
        read_id_list(path)
