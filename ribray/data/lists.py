"""Lists of image ids: one id a line, as PASCAL VOC keeps its splits.

Ids become parts of file names, in the data root and in the run. Every parser of this package passes them
through `check_id`, so that nothing outside those two folders is ever named.
"""

from pathlib import Path

from ribray.data.dataset import Problem
from ribray.errors import UsageError

_MAX_PART_BYTES = 200  # a file name may have 255, endings and temporary names included


def read_id_list(path: Path) -> tuple[str, ...]:
    """Read the ids of a list file, each once, in the order of the file.

    Raises:
        UsageError: no such file, not UTF-8 text, or a line that is no id.
    """
    return parse_id_list(read_text(path), str(path))[0]


def parse_id_list(text: str, source: str) -> tuple[tuple[str, ...], list[Problem]]:
    """Parse a list of ids; blank lines, spaces around ids and any kind of line end are fine.

    Args:
        text: the list.
        source: what to call it in messages.

    Returns:
        the ids, each once, and a problem for each that was listed again.

    Raises:
        UsageError: a line that is no id.
    """
    first_lines: dict[str, int] = {}
    problems: dict[str, Problem] = {}
    for number, line in enumerate(lines(text), start=1):
        id = line.strip()
        if not id:
            continue
        check_id(id, f"line {number} of {source}")
        first = first_lines.setdefault(id, number)
        if first != number:
            sentence = f"{source} lists {id} on line {first} and again on line {number}: keep one of the two."
            problems.setdefault(id, Problem(id, sentence, "listed twice"))
    return tuple(first_lines), list(problems.values())


def check_id(id: str, where: str) -> None:
    """Refuse an id that could name anything but a file below a root.

    Args:
        id: parts separated by ``/``, without the file's ending.
        where: for the message, such as ``line 3 of train.txt``.

    Raises:
        UsageError: an absolute path, a part ``..``, ``.`` or nothing, a backslash, control characters,
            or too long.
    """
    if fault := id_fault(id):
        shown = id if len(id) <= 80 else id[:77] + "..."
        raise UsageError(
            f"{where} is {shown!r}, which {fault}: an image id is the image's path below its folder without "
            "ending, such as 2007_000032."
        )


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without byte-order mark.

    Raises:
        UsageError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None


def lines(text: str) -> list[str]:
    """Split at the line ends of Unix, Windows and old Macs, not at the others that Unicode knows."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def id_fault(id: str) -> str | None:
    """Return why an id could not be part of a file name, as the end of a sentence that begins with it; or None."""
    parts = id.split("/")
    if not id.strip():
        return "is empty"
    if id.startswith("/") or (len(id) > 1 and id[1] == ":"):
        return "is an absolute path"
    if ".." in parts:
        return "leaves its folder by '..'"
    if "" in parts or "." in parts:
        return "has an empty part"
    if "\\" in id:
        return "has a backslash"
    if not id.isprintable():
        return "has a character that cannot be printed"
    if any(len(part.encode("utf-8")) > _MAX_PART_BYTES for part in parts):
        return "is too long for a file name"
    return None
