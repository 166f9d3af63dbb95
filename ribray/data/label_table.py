"""``labels.csv``: which classes each image shows, in the forms that people and programs write it.

    id,classes               one line per image; several classes in a cell are separated by ;
    beach/0001,dog;person

    filename,label           one line per object: an image on several lines shows the classes of all
    0001.jpg,dog
    0001.jpg,person

    filename,cat,dog         a column per class: 1 where the image shows it, 0 (or -1) where not
    0001.jpg,0,1

Columns are separated by commas, semicolons or tabs.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ribray.data.dataset import Problem
from ribray.data.lists import lines
from ribray.data.names import composed, is_background
from ribray.errors import UsageError

COLUMNS = ("id", "classes")
SEPARATOR = ";"
"""Between the classes of one cell."""

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_ID_COLUMNS = frozenset(
    {"id", "image", "images", "imageid", "imagename", "imagefile", "imagepath", "img", "imgid", "imgname", "imgpath"}
    | {"file", "filename", "filepath", "path", "photo", "picture"}
)
_CLASS_COLUMNS = frozenset(
    {"classes", "class", "classname", "classnames", "label", "labels", "labelname", "labelnames"}
    | {"category", "categories", "categoryname", "tag", "tags"}
)
_YES, _NO, _MINUS = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no"), ("-1", "-1.0")
_FLAGS = frozenset({*_YES, *_NO, *_MINUS})


@dataclass(frozen=True)
class LabelTable:
    """What labels.csv says; names of classes are in Unicode's composed form, but in `columns` and `decomposed`."""

    rows: dict[str, tuple[str, ...]]
    """Names of classes by id, sorted; none for an image that shows none of them."""
    problems: dict[str, Problem] = field(default_factory=dict)
    """Images on several lines that are no objects', by id; those whose lines disagree have no row."""
    columns: tuple[str, ...] = ()
    """The classes in their order, where each has a column."""
    decomposed: Mapping[str, str] = field(default_factory=dict)
    """Names as the file has them where it has them in decomposed Unicode, by their composed form."""
    notes: tuple[str, ...] = ()
    """How the file was read, where it is not in the form of the first example above."""


@dataclass(frozen=True)
class _Row:
    line: int
    cells: list[str]


@dataclass(frozen=True)
class _Entry:
    """The classes on one line about an image."""

    line: int
    names: tuple[str, ...]


IdOf = Callable[[str, str], str]
"""Returns the id that is meant by a written one, given where it stands."""


def parse_labels(text: str, source: str, id_of: IdOf, is_image: Callable[[str], bool]) -> LabelTable:
    """Parse labels.csv.

    Args:
        text: with a first line of column names; columns that are not needed are passed over.
        source: what to call the file in messages.
        id_of: finds the id that a cell means.
        is_image: whether there is an image of this id; decides where two columns could be that of ids.

    Raises:
        UsageError: not CSV, no such columns, a row of another length, an unsafe id, a class named background, or a
            cell of a class's column that is neither 0 nor 1.
    """
    header, rows, notes = _read(text, source)
    id_column = _id_column(header, rows, source, id_of, is_image)
    class_column = _class_column(header, id_column, rows, source)
    columns: dict[int, str] = {}
    if class_column is None:
        columns, note = _flag_columns(header, id_column, rows, source)
        notes.append(note)
    elif (header[id_column].lower(), header[class_column].lower()) != COLUMNS:
        notes.append(
            f"{source}: ids are read from column '{header[id_column]}', classes from '{header[class_column]}'."
        )
    entries: dict[str, list[_Entry]] = {}
    decomposed: dict[str, str] = {}
    for row in rows:
        where = f"line {row.line} of {source}"
        id = id_of(row.cells[id_column].strip(), f"the id on {where}")
        if class_column is None:
            written = [columns[place] for place in columns if _flag(row, place) in _YES]
        else:
            written = _split(row.cells[class_column])
        decomposed |= {composed(name): name for name in written if composed(name) != name}
        names = tuple(sorted({composed(name) for name in written}))
        if reserved := next(filter(is_background, names), None):
            raise UsageError(
                f"{where} gives {id} the class '{reserved}', and that name is reserved: background is mask value 0 and "
                "no class; leave the cell empty if the image shows none of the classes."
            )
        entries.setdefault(id, []).append(_Entry(row.line, names))
    return _put_together(entries, source, tuple(columns.values()), decomposed, notes)


# --- lines and columns -------------------------------------------------------------------------------------------


def _read(text: str, source: str) -> tuple[list[str], list[_Row], list[str]]:
    """Return the names of the columns, the rows that are not empty, and what to note.

    Raises:
        UsageError: not CSV, no column of ids, or a row of another length.
    """
    written = lines(text)
    start = 1 if written[0].strip().lower().startswith("sep=") else 0  # by which Excel says how it separates
    reader = csv.reader([])
    try:
        mark = next((mark for mark in _DELIMITERS if _has_ids(written[start:], mark)), None)
        if mark is None:
            first = "".join(written[start : start + 1])
            raise UsageError(_must_begin(source, f"it begins with {_short(first)}" if first.strip() else ""))
        reader = csv.reader(io.StringIO("\n".join(written[start:])), delimiter=mark, skipinitialspace=True, strict=True)
        header = [" ".join(name.split()) for name in next(reader)]
        rows = [_Row(reader.line_num + start, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num + start} of {source} is not valid CSV: {error}.") from None
    notes = [] if mark == "," else [f"{source}: columns are separated by {_DELIMITERS[mark]}."]
    return header, [_fitted(row, header, mark, source) for row in rows], notes


def _has_ids(written: Sequence[str], mark: str) -> bool:
    header = next(csv.reader(written[:1], delimiter=mark, skipinitialspace=True), [])
    return len(header) > 1 and any(_key(name) in _ID_COLUMNS for name in header)


def _key(name: str) -> str:
    return "".join(name.lower().replace("_", " ").replace("-", " ").split())


def _must_begin(source: str, reason: str = "") -> str:
    rule = f"{source} must begin with the line '{','.join(COLUMNS)}', columns separated by commas"
    return f"{rule}; {reason}." if reason else f"{rule}."


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _fitted(row: _Row, header: Sequence[str], mark: str, source: str) -> _Row:
    """Return a row of as many cells as the first line has; empty ones behind these are cut off.

    Raises:
        UsageError: it has fewer, or others behind.
    """
    if len(row.cells) < len(header) or any(cell.strip() for cell in row.cells[len(header) :]):
        several = f"separate several classes by '{SEPARATOR}'"
        if mark == SEPARATOR:
            several += ' and put the cell in quotes, such as "cat;dog"'
        raise UsageError(f"line {row.line} of {source} has {len(row.cells)} columns, not {len(header)}: {several}.")
    return _Row(row.line, row.cells[: len(header)])


def _id_column(
    header: Sequence[str], rows: Sequence[_Row], source: str, id_of: IdOf, is_image: Callable[[str], bool]
) -> int:
    """Return the column of ids: of several that could be, the one that names images."""
    places = [place for place, name in enumerate(header) if _key(name) in _ID_COLUMNS]
    exact = [place for place in places if header[place].lower() == COLUMNS[0]]
    if len(exact) > 1:
        raise UsageError(_must_begin(source, f"it has {len(exact)} columns '{COLUMNS[0]}'"))
    naming = [place for place in places if any(_names_image(row.cells[place], id_of, is_image) for row in rows)]
    candidates = (naming if len(places) > 1 and naming else None) or exact or places
    if len(candidates) > 1 and (not exact or exact[0] not in candidates):
        names = " and ".join(f"'{header[place]}'" for place in candidates)
        raise UsageError(f"{source} has the columns {names}, each of which may be that of ids: name one of them 'id'.")
    return candidates[0] if len(candidates) == 1 else exact[0]


def _names_image(cell: str, id_of: IdOf, is_image: Callable[[str], bool]) -> bool:
    try:
        return is_image(id_of(cell.strip(), ""))
    except UsageError:
        return False


def _class_column(header: Sequence[str], id_column: int, rows: Sequence[_Row], source: str) -> int | None:
    """Return the column of classes; None where each class has one of its own."""
    places = [place for place, name in enumerate(header) if _key(name) in _CLASS_COLUMNS and place != id_column]
    exact = [place for place in places if header[place].lower() == COLUMNS[1]]
    if len(exact) == 1:
        return exact[0]
    if len(places) > 1:
        names = " and ".join(f"'{header[place]}'" for place in places)
        raise UsageError(_must_begin(source, f"it has the columns {names}, each of which may be that of classes"))
    if places and _is_flags(rows, places[0]):
        others = [place for place in range(len(header)) if place not in (id_column, places[0]) and header[place]]
        if flags := [header[place] for place in others if _is_flags(rows, place)]:
            raise UsageError(
                f"{source} holds 0 and 1 in column '{header[places[0]]}' and in '{flags[0]}', so that either the first "
                f"holds numbers of classes or each is a class: name the first '{COLUMNS[1]}', or otherwise."
            )
    return places[0] if places else None


def _is_flags(rows: Sequence[_Row], place: int) -> bool:
    return bool(rows) and all(_flag(row, place) in _FLAGS for row in rows)


def _flag(row: _Row, place: int) -> str:
    return row.cells[place].strip().lower()


def _flag_columns(
    header: Sequence[str], id_column: int, rows: Sequence[_Row], source: str
) -> tuple[dict[int, str], str]:
    """Return the columns that are classes, and what to note.

    Raises:
        UsageError: there is none, one holds something beside 0 and 1, or two have one name.
    """
    classes: dict[int, str] = {}
    passed_over = []
    for place, name in enumerate(header):
        cells = {_flag(row, place): row for row in reversed(rows)}
        if place == id_column:
            continue
        if not name or _key(name).startswith("unnamed:") or not _FLAGS.intersection(cells):
            passed_over.append(f"'{name}'" if name else "a column without a name")
            continue
        if strange := [cell for cell in cells if cell not in _FLAGS]:
            row = cells[strange[0]]
            raise UsageError(
                f"line {row.line} of {source} holds {_short(row.cells[place].strip())} in column '{name}', where the "
                "column of a class holds 0 or 1: mend the cell, or take the column out if it is none of a class."
            )
        if is_background(name):
            raise UsageError(
                f"{source} has a column '{name}', and that name is reserved: background is mask value 0 and no class; "
                "take the column out."
            )
        classes[place] = name
    used = {_flag(row, place) for row in rows for place in classes}
    if used.intersection(_MINUS) and used.intersection(_NO):
        raise UsageError(f"{source} holds both -1 and 0 in the columns of classes: write 0 where a class is not shown.")
    if not classes:
        raise UsageError(_must_begin(source, f"it has no column of classes among {', '.join(header)}"[:200]))
    if twice := [name for name in classes.values() if [*classes.values()].count(name) > 1]:
        raise UsageError(f"{source} has the column '{twice[0]}' twice.")
    no = "-1" if used.intersection(_MINUS) else "0"
    note = f"{source} is read as one column per class ({', '.join(classes.values())}): 1 means shown, {no} not shown"
    return classes, note + (f"; passed over: {', '.join(passed_over)}." if passed_over else ".")


def _split(cell: str) -> list[str]:
    return [name for part in cell.split(SEPARATOR) if (name := " ".join(part.split()))]


# --- images on several lines -------------------------------------------------------------------------------------


def _put_together(
    entries: Mapping[str, Sequence[_Entry]],
    source: str,
    columns: tuple[str, ...],
    decomposed: Mapping[str, str],
    notes: list[str],
) -> LabelTable:
    """Give each image the classes of all its lines, where each of these is that of an object."""
    rows: dict[str, tuple[str, ...]] = {}
    problems: dict[str, Problem] = {}
    several = 0
    for id, found in entries.items():
        together = tuple(sorted({name for entry in found for name in entry.names}))
        agree = all(entry.names == together for entry in found)
        are_objects = all(len(entry.names) == 1 if columns else entry.names for entry in found)
        if len(found) == 1 or are_objects or agree:
            rows[id] = together
        if len(found) == 1:
            continue
        if are_objects:
            several += 1
            continue
        ending = "keep one of the two" if agree else "the two disagree, so the image is left out"
        sentence = f"{source} has {id} on line {found[0].line} and on line {found[-1].line}: {ending}."
        problems[id] = Problem(id, sentence, "listed twice")
    if several:
        notes.append(
            f"{source} has several lines for {several} of {len(entries)} images, and is read as one line per object: "
            "such an image shows the classes of all its lines."
        )
    return LabelTable(rows, problems, columns, decomposed, tuple(notes))
