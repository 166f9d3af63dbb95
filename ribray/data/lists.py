"""Lists of image ids: one id a line, as PASCAL VOC keeps its splits, or in the other forms that people have.

    2007_000032                                                           an id
    2007_000032.jpg   ./2007_000032.jpg   JPEGImages\\2007_000032.jpg      the picture's file
    /JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png     the picture and its mask (PSA, IRN)
    2007_000032 -1                                                        an id, and whether a class is there (VOC)

Ids become parts of file names, in the data root and in the run. Every parser of this package passes them
through `check_id`, so that nothing outside those two folders is ever named.
"""

import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ribray import storage
from ribray.data.dataset import Problem
from ribray.data.images import IMAGE_SUFFIXES, is_photograph, without_ending
from ribray.data.names import composed, shortened
from ribray.errors import UsageError

CLASSES = "classes.txt"  # class names, one a line
# Folders of PASCAL VOC's: of lists, of masks, and of pictures; in a path, what stands up to this is no part of the id
MAIN, MASKS, PICTURES = "ImageSets/Main", "SegmentationClass", "JPEGImages"
_BYTE_ORDER_MARK = "\ufeff"
_MAX_PART_BYTES = 200  # a file name may have 255, endings and temporary names included

_ENDING = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
_PAIR = re.compile(rf"(?P<picture>.+?(?:{_ENDING}))[\s,;]+(?P<mask>\S.*?(?:{_ENDING}))", re.IGNORECASE)
_BETWEEN_WORDS = re.compile(r"[\s,;|\"']+")
_SIGNED = re.compile(r"(?P<id>.*\S)\s+(?P<sign>-1|\+?1|0)")

Known = Callable[[str], str | None]
"""Returns the id of an image that there is, given an id in either Unicode form; None for that of no image."""


@dataclass
class IdList:
    source: str  # what to call it in messages
    ids: tuple[str, ...] = ()  # each once, in the order of the list
    problems: list[Problem] = field(default_factory=list)  # one for each id that was listed again
    signs: dict[str, int] = field(default_factory=dict)
    """Of lines such as ``2007_000032 -1``: -1 without the class, 1 with it, 0 with a difficult one."""
    files: dict[str, str] = field(default_factory=dict)  # names with ending, by id, of lines that name a file
    roots: dict[str, None] = field(default_factory=dict)
    """Folders that stand before `PICTURES` in a line, in the order of the list; empty for the root itself."""
    mask_folders: dict[str, None] = field(default_factory=dict)  # names, of lines that name a picture and its mask
    notes: list[str] = field(default_factory=list)  # how the list was made, where it is no file of its own


def id_finder(ids: Iterable[str]) -> Known:
    """Return a function that finds an id among ``ids``, in either Unicode form."""
    by_form = {composed(id): id for id in ids}
    return lambda id: by_form.get(composed(id))


def read_list(path: Path, known: Known | None = None) -> IdList:
    return parse_list(read_text(path), str(path), known)


def parse_list(text: str, source: str, known: Known | None = None) -> IdList:
    """Parse a list of ids; a line that ``known`` has as it stands is that id, whatever it could be (``beach 1``)."""
    found = IdList(source)
    found.ids, found.problems = each_once(text, source, lambda line, where: _parse_line(line, where, known, found))
    return found


def each_once(text: str, source: str, id_of: Callable[[str, str], str]) -> tuple[tuple[str, ...], list[Problem]]:
    """Return the ids that ``id_of`` finds in a list's lines, each once, and a problem for each that is listed again."""
    first_lines: dict[str, int] = {}
    ids: list[str] = []
    problems: dict[str, Problem] = {}
    for number, written in enumerate(lines(text), start=1):
        if not (line := written.replace(_BYTE_ORDER_MARK, "").strip()):
            continue
        id = id_of(line, f"line {number} of {source}")
        if (first := first_lines.setdefault(composed(id), number)) == number:
            ids.append(id)
        else:
            sentence = f"{source} lists {id} on line {first} and again on line {number}: keep one of the two."
            problems.setdefault(composed(id), Problem(id, sentence, "listed twice"))
    return tuple(ids), list(problems.values())


def _parse_line(line: str, where: str, known: Known | None, found: IdList) -> str:
    if (id := _of_path(line, known, found)) is not None:
        return id
    if pair := _PAIR.fullmatch(line):
        id = _parse_path(pair["picture"], where, known, found)
        folder, name = posixpath.split(pair["mask"].replace("\\", "/"))
        if composed(posixpath.splitext(name)[0]) != composed(posixpath.basename(id)):
            both = f"the picture {shortened(pair['picture'])!r} and beside it {shortened(pair['mask'])!r}"
            advice = f"write the id alone, such as {shortened(id)}"
            raise UsageError(f"{where} names {both}, where a mask has its picture's name: {advice}.")
        found.mask_folders.setdefault(posixpath.basename(folder))
        return id
    if known is not None and (signed := _SIGNED.fullmatch(line)):
        id = _parse_path(signed["id"], where, known, found)
        found.signs.setdefault(id, int(signed["sign"]))
        return id
    first, *others = [word for word in _BETWEEN_WORDS.split(line) if word] or [line]
    has_numbers = len(others) > 1 and all(word.isdecimal() for word in others)
    is_more = first != line and (is_photograph(first) or has_numbers)  # it says something about a picture
    if is_more and (id := _of_path(first, known, IdList(where))) is not None:
        raise UsageError(f"{where} is {shortened(line)!r}, where only the image's id can be read: write {id} alone.")
    return _parse_path(line, where, known, found)


def _parse_path(text: str, where: str, known: Known | None, found: IdList) -> str:
    if (id := _of_path(text, known, found)) is not None:
        return id
    path, root = _below_pictures(text)
    id = without_ending(path)
    check_id(id, where, shown=text)
    if root is not None:
        found.roots.setdefault(root)
    return id


def _of_path(text: str, known: Known | None, found: IdList) -> str | None:
    """Return the image that a path names with ending or without, if it is known."""
    if known is None:
        return None
    path, root = _below_pictures(text)
    for candidate in dict.fromkeys((text, path, path.removeprefix("/"))):
        stem = without_ending(candidate)
        if id_fault(candidate) is None and (id := known(candidate)) is not None:
            break
        if stem != candidate and id_fault(stem) is None and (id := known(stem)) is not None:
            found.files.setdefault(id, candidate)
            break
    else:
        return None
    if root is not None and candidate != text:
        found.roots.setdefault(root)
    return id


def _below_pictures(text: str) -> tuple[str, str | None]:
    """Return a path below the folder of pictures, and the path of that folder's root where the text names one."""
    parts = text.replace("\\", "/").split("/")
    while len(parts) > 1 and parts[0] == ".":
        parts = parts[1:]
    folders = [part.casefold() for part in parts[:-1]]
    if PICTURES.casefold() not in folders:
        return "/".join(parts), None
    place = len(folders) - folders[::-1].index(PICTURES.casefold())
    return "/".join(parts[place:]), "/".join(parts[: place - 1])


def check_id(id: str, where: str, shown: str | None = None) -> None:
    """Refuse an id that could name anything but a file below a root; ``where`` it stands, what is ``shown`` of it."""
    if fault := id_fault(id):
        rule = "an image id is the image's path below its folder without ending, such as 2007_000032"
        raise UsageError(f"{where} is {shortened(id if shown is None else shown)!r}, which {fault}: {rule}.")


def id_fault(id: str) -> str | None:
    """Return why an id could not be part of a file name, as the end of a sentence that begins with it; or None."""
    parts = id.split("/")
    faults = {
        "is empty": not id.strip(),
        "is an absolute path": id.startswith("/") or id[1:2] == ":",
        "leaves its folder by '..'": ".." in parts,
        "has an empty part": "" in parts or "." in parts,
        "has a backslash": "\\" in id,
        "has a character that cannot be printed": not id.isprintable(),
        "is too long for a file name": any(len(part.encode("utf-8", "replace")) > _MAX_PART_BYTES for part in parts),
    }
    return next((fault for fault, is_so in faults.items() if is_so), None)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {storage.reason(error)}.") from None


def read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None


def lines(text: str) -> list[str]:
    """Split at the line ends of Unix, Windows and old Macs, not at the others that Unicode knows."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
