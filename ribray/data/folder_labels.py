"""Labels of a folder of photographs: labels.csv, or else folders that name classes; and the names of classes.txt.

Without labels.csv, ROOT/cat/1.jpg or ROOT/train/cat/1.jpg shows a cat. The forms of labels.csv:

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
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ribray.data.dataset import Problem, nearest
from ribray.data.lists import lines, read_text
from ribray.data.names import RESERVED, composed, first_of, is_background, is_of_masks, plain, shortened, some
from ribray.errors import UsageError

COLUMNS = ("id", "classes")
SEPARATOR = ";"  # between the classes of one cell
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_ID_COLUMNS = {"id", "image", "images", "imageid", "imagename", "imagefile", "imagepath", "img", "imgid", "imgname"}
_ID_COLUMNS |= {"imgpath", "file", "filename", "filepath", "path", "photo", "picture"}
_CLASS_COLUMNS = {"classes", "class", "classname", "classnames", "label", "labels", "labelname", "labelnames"}
_CLASS_COLUMNS |= {"category", "categories", "categoryname", "tag", "tags"}
_YES, _NO, _MINUS = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no"), ("-1", "-1.0")
_FLAGS = frozenset({*_YES, *_NO, *_MINUS})
_PRESENCE = {"confidence", "present", "presence", "ispresent", "value", "shown"}  # columns of long tables
# Columns of objects that say 0 or 1 of something else
_OF_OBJECTS = {"difficult", "truncated", "occluded", "crowd", "iscrowd", "isdifficult", "istruncated", "isoccluded"}
_OF_OBJECTS |= {"isgroupof", "isdepiction", "isinside"}
_NUMBERED = re.compile(r"([0-9]+) ?[:.,;) ] ?(\S.*)")
# Names of folders that hold a split, or a kind of file, in lower case
_SPLITS = {"train", "training", "trainval", "val", "valid", "validation", "dev", "eval", "test", "testing"}
_NO_CLASSES = {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "data", "raw"}
_NO_CLASSES |= {"input", "truth", "segmentationclassaug", "segmentationobject", "seg"}


@dataclass
class Labels:
    """The labels of a root; names of classes are in Unicode's composed form, but in `columns` and `decomposed`."""

    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)  # names of classes by id, sorted
    # Images on several lines that are no objects', by id; those whose lines disagree have no row
    problems: dict[str, Problem] = field(default_factory=dict)
    columns: tuple[str, ...] = ()  # the classes in their order, where each has a column
    decomposed: dict[str, str] = field(default_factory=dict)  # names written in decomposed Unicode, by composed form
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)  # ids by split, where folders are splits
    notes: list[str] = field(default_factory=list)  # how they were read, where not in the first form above


class _Row(NamedTuple):
    line: int
    cells: list[str]

    def flag(self, place: int) -> str:
        return self.cells[place].strip().lower()


IdOf = Callable[[str, str], str]  # returns the id that is meant by a written one, given where it stands


def parse_labels(text: str, source: str, id_of: IdOf, is_image: Callable[[str], bool]) -> Labels:
    """Parse labels.csv; ``is_image`` decides which of several columns is that of ids."""
    header, rows, notes = _read(text, source)
    id_column = _id_column(header, rows, source, id_of, is_image)
    class_column = _class_column(header, id_column, rows, source)
    columns: dict[int, str] = {}
    if class_column is None:
        columns, note = _flag_columns(header, id_column, rows, source)
        notes.append(note)
    else:
        _refuse_absent(header, id_column, class_column, rows, source)
        ids, classes = header[id_column], header[class_column]
        if (ids.lower(), classes.lower()) != COLUMNS:
            notes.append(f"{source}: ids are read from column '{ids}', classes from '{classes}'.")
    entries: dict[str, dict[int, tuple[str, ...]]] = {}  # names of classes by line, by id
    decomposed: dict[str, str] = {}
    for row in rows:
        where = f"line {row.line} of {source}"
        id = id_of(row.cells[id_column].strip(), f"the id on {where}")
        written = [name for place, name in columns.items() if row.flag(place) in _YES]
        if class_column is not None:
            written = [name for part in row.cells[class_column].split(SEPARATOR) if (name := plain(part))]
        decomposed |= {composed(name): name for name in written if composed(name) != name}
        names = tuple(sorted({composed(name) for name in written}))
        if reserved := next(filter(is_background, names), None):
            advice = "leave the cell empty if the image shows none of the classes"
            raise UsageError(f"{where} gives {id} the class '{reserved}', {RESERVED}; {advice}.")
        entries.setdefault(id, {})[row.line] = names
    labels = Labels(columns=tuple(columns.values()), decomposed=decomposed, notes=notes)
    several = 0
    for id, by_line in entries.items():
        together = tuple(sorted({name for names in by_line.values() for name in names}))
        agree = all(names == together for names in by_line.values())
        are_objects = all(len(names) == 1 if columns else names for names in by_line.values())
        if are_objects or agree:
            labels.rows[id] = together
        if len(by_line) > 1 and are_objects:
            several += 1
        elif len(by_line) > 1:
            first, *others = by_line
            ending = "keep one of the two" if agree else "the two disagree, so the image is left out"
            other = others[-1] if agree else next(line for line in others if by_line[line] != by_line[first])
            sentence = f"{source} has {id} on line {first} and on line {other}: {ending}."
            labels.problems[id] = Problem(id, sentence, "listed twice")
    if several:
        read = "is read as one line per object: such an image shows the classes of all its lines"
        notes.append(f"{source} has several lines for {several} of {len(entries)} images, and {read}.")
    return labels


def _read(text: str, source: str) -> tuple[list[str], list[_Row], list[str]]:
    written = lines(text)
    start = 1 if written[0].strip().lower().startswith("sep=") else 0  # by which Excel says how it separates
    reader = csv.reader([])
    try:
        first = "".join(written[start : start + 1])
        for mark in _DELIMITERS:
            header = next(csv.reader([first], delimiter=mark, skipinitialspace=True), [])
            if len(header) > 1 and any(_key(name) in _ID_COLUMNS for name in header):
                break
        else:
            raise _must_begin(source, f"it begins with {shortened(first, 60)!r}" if first.strip() else "")
        reader = csv.reader(io.StringIO("\n".join(written[start:])), delimiter=mark, skipinitialspace=True, strict=True)
        header = [plain(name) for name in next(reader)]
        rows = [_Row(reader.line_num + start, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num + start} of {source} is not valid CSV: {error}.") from None
    quoted = ' and put the cell in quotes, such as "cat;dog"' if mark == SEPARATOR else ""
    advice = f"separate several classes by '{SEPARATOR}'{quoted}"
    behind = next((at for at, name in enumerate(header, start=1) if _key(name) in _CLASS_COLUMNS), len(header))
    nameless = [at for at, name in enumerate(header) if at >= behind and _is_nameless(name)]
    for row in rows:
        if len(row.cells) < len(header) or any(cell.strip() for cell in row.cells[len(header) :]):
            raise UsageError(f"line {row.line} of {source} has {len(row.cells)} columns, not {len(header)}: {advice}.")
        if surplus := [cell for at in nameless if (cell := row.cells[at].strip())]:
            holds = f"line {row.line} of {source} holds {shortened(surplus[0], 60)!r} in a column without a name"
            raise UsageError(f"{holds}: {advice}, or name the column if it holds something else.")
        del row.cells[len(header) :]
    return header, rows, [] if mark == "," else [f"{source}: columns are separated by {_DELIMITERS[mark]}."]


def _key(name: str) -> str:
    return "".join(name.lower().replace("_", " ").replace("-", " ").split())


def _is_nameless(name: str) -> bool:
    """Whether a column has no name, or one that pandas has made up; its ``Unnamed: 0`` holds the numbers of rows."""
    return not name or (_key(name).startswith("unnamed:") and not _key(name).startswith("unnamed:0"))


def _must_begin(source: str, reason: str) -> UsageError:
    rule = f"{source} must begin with the line '{','.join(COLUMNS)}', columns separated by commas"
    return UsageError(f"{rule}; {reason}." if reason else f"{rule}.")


def _id_column(
    header: Sequence[str], rows: Sequence[_Row], source: str, id_of: IdOf, is_image: Callable[[str], bool]
) -> int:
    """Return the column of ids: of several that could be, the one that names images."""

    def image_of(cell: str) -> str | None:
        try:
            id = id_of(cell.strip(), "")
        except UsageError:
            return None
        return id if is_image(id) else None

    places = [place for place, name in enumerate(header) if _key(name) in _ID_COLUMNS]
    exact = [place for place in places if header[place].lower() == COLUMNS[0]]
    if len(exact) > 1:
        raise _must_begin(source, f"it has {len(exact)} columns '{COLUMNS[0]}'")
    if len(places) == 1:
        return places[0]
    images = {place: [image_of(row.cells[place]) for row in rows] for place in places}
    candidates = [place for place in places if any(images[place])] or exact or places
    if len(candidates) == 1:
        return candidates[0]
    named = [{*filter(None, row)} for row in zip(*(images[place] for place in candidates), strict=True)]
    is_named = bool(exact) and exact[0] in candidates
    if is_named and all(len(ids) < 2 for ids in named):
        return exact[0]
    names = " and ".join(f"'{header[place]}'" for place in candidates)
    advice = "keep one of them, as 'id'" if is_named else "name one of them 'id'"
    raise UsageError(f"{source} has the columns {names}, each of which may be that of ids: {advice}.")


def _class_column(header: Sequence[str], id_column: int, rows: Sequence[_Row], source: str) -> int | None:
    """Return the column of classes; None where each class has one of its own."""
    places = [place for place, name in enumerate(header) if _key(name) in _CLASS_COLUMNS and place != id_column]
    exact = [place for place in places if header[place].lower() == COLUMNS[1]]
    kinds = {_key(header[place]) for place in exact or places} or _CLASS_COLUMNS
    numbered = [place for place, name in enumerate(header) if _without_number(name) in kinds and place != id_column]
    numbered = [place for place in numbered if any(row.flag(place) not in ("", *_FLAGS) for row in rows)]
    if len(exact) == 1 and not numbered:
        return exact[0]
    if numbered and len(numbered) + len(places) > 1:
        places = sorted({*(exact or places), *numbered})
    if len(places) > 1:
        names = " and ".join(f"'{header[place]}'" for place in places)
        raise _must_begin(source, f"it has the columns {names}, each of which may be that of classes")
    if places and _is_flags(rows, places[0]):
        others = [place for place in range(len(header)) if place not in (id_column, places[0]) and header[place]]
        if flags := [header[place] for place in others if _is_flags(rows, place)]:
            what = "so that either the first holds numbers of classes or each is a class: name the first"
            both = f"column '{header[places[0]]}' and in '{flags[0]}'"
            raise UsageError(f"{source} holds 0 and 1 in {both}, {what} '{COLUMNS[1]}', or otherwise.")
    return places[0] if places else None


def _without_number(name: str) -> str | None:
    """Return what ``label_2`` or pandas' ``label.1`` is the second of; None where a name has no number behind it."""
    key = _key(name)
    return stem if (stem := key.rstrip("0123456789").rstrip(".")) != key else None


def _refuse_absent(header: Sequence[str], id_column: int, class_column: int, rows: Sequence[_Row], source: str) -> None:
    """Refuse a line per image and class that says by a 0 that the class is not shown, which would count as shown."""
    for place, name in enumerate(header):
        zeros = [row for row in rows if row.flag(place) in (*_NO, *_MINUS)]
        ids = {row.flag(id_column) for row in zeros}
        differs = any(row.flag(place) in _YES and row.flag(id_column) in ids for row in rows)
        is_presence = _key(name) in _PRESENCE or (differs and _key(name) not in _OF_OBJECTS and _is_flags(rows, place))
        if zeros and is_presence and place not in (id_column, class_column):
            holds = f"line {zeros[0].line} of {source} holds {zeros[0].cells[place].strip()} in column '{name}'"
            advice = "if that means not shown, keep only the lines with 1; otherwise take the column out"
            raise UsageError(f"{holds}, but each line counts as a class that is shown: {advice}.")


def _is_flags(rows: Sequence[_Row], place: int) -> bool:
    return bool(rows) and all(row.flag(place) in _FLAGS for row in rows)


def _flag_columns(
    header: Sequence[str], id_column: int, rows: Sequence[_Row], source: str
) -> tuple[dict[int, str], str]:
    classes: dict[int, str] = {}
    passed_over = []
    for place, name in enumerate(header):
        if place == id_column:
            continue
        cells = {row.flag(place): row for row in reversed(rows)}
        if not name or _key(name).startswith("unnamed:") or not _FLAGS.intersection(cells):
            passed_over.append(f"'{name}'" if name else "a column without a name")
            continue
        if strange := [cell for cell in cells if cell not in _FLAGS]:
            row = cells[strange[0]]
            holds = f"line {row.line} of {source} holds {shortened(row.cells[place].strip(), 60)!r} in column '{name}'"
            advice = "mend the cell, or take the column out if it is none of a class"
            raise UsageError(f"{holds}, where the column of a class holds 0 or 1: {advice}.")
        if is_background(name):
            raise UsageError(f"{source} has a column '{name}', {RESERVED}; take the column out.")
        classes[place] = name
    used = {row.flag(place) for row in rows for place in classes}
    if used.intersection(_MINUS) and used.intersection(_NO):
        raise UsageError(f"{source} holds both -1 and 0 in the columns of classes: write 0 where a class is not shown.")
    names = list(classes.values())
    if not names:
        reason = f"it has no column of classes among {', '.join(header)}"[:200]
        held = ((row.cells[place].strip(), place) for row in rows for place in range(len(header)) if place != id_column)
        if found := next(((cell, header[place]) for cell, place in held if cell and header[place]), None):
            reason += f": '{found[1]}' holds {shortened(found[0], 40)!r}, where the column of a class holds 1 or 0"
        raise _must_begin(source, reason)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{source} has the column '{twice[0]}' twice.")
    no = "-1" if used.intersection(_MINUS) else "0"
    note = f"{source} is read as one column per class ({', '.join(names)}): 1 means shown, {no} not shown"
    return classes, note + (f"; passed over: {', '.join(passed_over)}." if passed_over else ".")


# --- classes.txt -------------------------------------------------------------------------------------------------


class ClassList(NamedTuple):
    file: Path
    names: list[str]
    numbered: list[str]  # without the numbers in front of them, where each line has the next one

    def for_use(self, used: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the names that are meant, given those in use, and what to note."""
        if not self.numbered or {*used} <= {composed(name) for name in self.names}:
            return self.names, []
        if (first := _NUMBERED.fullmatch(self.names[0])) and int(first[1]) == 0:
            advice = "write the names of the classes alone, one a line"
            where = "where 0 is background and the first class has mask value 1"
            raise UsageError(f"{self.file} counts from 0 ('{self.names[0]}'), {where}: {advice}.")
        note = f"{self.file} numbers its lines, which are read as mask values: 1 is {self.numbered[0]}."
        return self.numbered, [note]


def read_class_list(file: Path) -> ClassList:
    """Read classes.txt: a name a line; one twice, or one that is reserved, is refused."""
    written = [(number, plain(line)) for number, line in enumerate(lines(read_text(file)), start=1) if line.strip()]
    names = [name for _, name in written]
    for number, name in written:
        if is_background(name):
            others = [other for other in names if other != name]
            values = first_of([f"{value} {other}" for value, other in enumerate(others, start=1)], 3)
            meaning = f", and mask values mean {values}" if others else ""
            raise UsageError(f"{file} has '{name}' on line {number}, {RESERVED}; take the line out{meaning}.")
    forms = [composed(name) for name in names]
    if repeated := [name for name in forms if forms.count(name) > 1]:
        raise UsageError(f"{file} has '{repeated[0]}' twice.")
    matches = [match for match in map(_NUMBERED.fullmatch, names) if match]
    numbers, bare = [int(match[1]) for match in matches], [match[2] for match in matches]
    is_numbered = len(names) == len({*bare}) and numbers in ([*range(len(names))], [*range(1, len(names) + 1)])
    return ClassList(file, names, bare if is_numbered else [])


# --- folders that name classes -----------------------------------------------------------------------------------


def read_class_folders(root: Path, files: dict[str, str], classes: Collection[str] | None) -> Labels:
    """Read labels from the names of folders, of ``classes`` only, if known."""
    inside = {id: parts for id, name in files.items() if len(parts := name.split("/")) > 1}
    firsts = sorted({parts[0] for parts in inside.values()})
    has_splits = all(first.lower() in _SPLITS for first in firsts)
    is_flat = 2 * len(inside) <= len(files)
    if is_flat or (has_splits and not any(len(parts) > 2 for parts in inside.values())):
        raise _no_labels(root)
    place = 1 if has_splits else 0
    labelled = {id: plain(parts[place]) for id, parts in inside.items() if len(parts) > place + 1}
    names = sorted({composed(name) for name in labelled.values()})
    if reserved := next(filter(is_background, names), None):
        has = f"{root} has a folder '{reserved}' and no labels.csv, but no class can have that name"
        advice = "write a labels.csv, with an empty cell for each image that shows none of the classes"
        raise UsageError(f"{has}: {advice}.")
    if classes is not None and (strange := [name for name in names if name not in classes]):
        hint = nearest(strange[0], classes)
        raise UsageError(f"{root} has no labels.csv, and its folder '{strange[0]}' is not in classes.txt{hint}.")
    of_masks = [name for name in names if is_of_masks(name)]
    if classes is None and (len(names) < 2 or of_masks or any(name.lower() in _SPLITS | _NO_CLASSES for name in names)):
        which = f"folder {names[0]} does" if len(names) == 1 else f"folders {some(names)} do"
        masks = f"; if {of_masks[0]} holds masks, rename it to masks" if of_masks else ""
        raise _no_labels(root, f"its {which} not seem to name classes; list them in classes.txt if so{masks}")
    which = "second folder names, in the split of the first" if has_splits else "first folder names"
    is_deeper = any(len(parts) > place + 2 for parts in inside.values())
    below = "; folders below that are not looked at" if is_deeper else ""
    note = f"{root} has no labels.csv: each image is taken to show the class ({some(names)}) that its {which}{below}."
    rows: dict[str, tuple[str, ...]] = {id: (composed(name),) for id, name in labelled.items()}
    decomposed = {composed(name): name for name in labelled.values() if composed(name) != name}
    splits = {first: tuple(id for id, parts in inside.items() if parts[0] == first) for first in firsts}
    return Labels(rows, decomposed=decomposed, splits=splits if has_splits else {}, notes=[note])


def _no_labels(root: Path, hint: str = "") -> UsageError:
    what = "write a line 'id,classes' and then one for each image, such as 'beach/0001,dog;person'"
    return UsageError(f"{root / 'labels.csv'} does not exist: {what}{f' ({hint})' if hint else ''}.")
