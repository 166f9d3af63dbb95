"""Names: of any kind in one form, and of classes, which may be refused or may not mean what they seem to."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence

from ribray.errors import UsageError

BACKGROUND_NAME = "background"
RESERVED = "and that name is reserved: background is mask value 0 and no class"
# Characters that separate names elsewhere: where one stands inside a name, several names were probably meant.
DELIMITERS = {";": "a semicolon", ",": "a comma", "|": "a bar", "\t": "a tab"}
DELIMITERS |= {"[": "a bracket", "]": "a bracket", '"': "a quote"}
DELIMITERS |= {"；": "a full-width semicolon", "，": "a full-width comma", "、": "a full-width comma"}
DELIMITERS |= {"｜": "a full-width bar"}
NO_CLASS = frozenset({"none", "nan", "null", "n/a", "nothing", "void", "ignore", "ignored", "unlabeled", "unlabelled"})
"""Words by which people and programs mean that there is no class, or that pixels do not count."""
# Folders that may hold masks, in lower case
LIKE_MASKS = {"mask", "masks", "annotation", "annotations", "label", "labels", "gt", "groundtruth", "ground_truth"}
LIKE_MASKS |= {"segmentation", "segmentations", "segmentationclass"}
_OF_MASKS, _OF_FACES = {"mask", "masks", "gt"}, {"with", "without", "no", "wearing"}  # words of names of folders
_SHOWN = 8
_MARKS = re.compile(r"[;,|\t\[\]\"'；，、｜]+")
_GAPS = re.compile(r"[\s/+&]+(?:and\s+)?")
_NUMBER = re.compile(r"([+-]?\d{1,18})(?:\.0*)?")
_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")  # in front of a number
_JOINTS = re.compile(r"[\s/+&:_.-]+(?:and[\s_-]+)?")


def composed(text: str) -> str:
    """Return text in Unicode's composed form (NFC): ``é`` may be one character or two, and looks the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plain(text: str) -> str:
    """Return text with single blanks, and without characters that cannot be seen (such as the zero-width space)."""
    if not text.isascii():
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return " ".join(text.split())


def whole_number(name: str) -> int | None:
    """Return the whole number that a name is, however it is written: ``1``, ``01``, ``1.0``, ``-1``."""
    found = _NUMBER.fullmatch(name)
    return int(found[1]) if found else None


def without_zeros(name: str) -> str:
    """Return a name whose numbers have no zeros in front: ``img_7`` for ``img_007``."""
    return _ZEROS.sub("", name)


def is_of_masks(folder: str) -> bool:
    """Whether a folder's name says that it holds masks: ``gt_masks``, but not ``with_mask``, where people wear them."""
    words = {*re.split(r"[\W_]+", folder.casefold())}
    return folder.casefold() in LIKE_MASKS or (not words.isdisjoint(_OF_MASKS) and words.isdisjoint(_OF_FACES))


def shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_of(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def is_background(name: str) -> bool:
    """Whether a name means background, however it is spelt (``Background``, ``_background_``)."""
    return composed(name).casefold().strip(" _-") == BACKGROUND_NAME


def in_other_case(name: str, classes: Iterable[str]) -> str | None:
    """Return the class whose name differs from another name in case only."""
    folded = composed(name).casefold()
    return next((other for other in classes if composed(other).casefold() == folded), None)


def require_distinct(classes: Sequence[str], source: str) -> None:
    """Refuse classes named like the background, or two of one name; ``source`` says where they stand."""
    for place, name in enumerate(classes, start=1):
        if is_background(name):
            advice = "Take it out of the classes; the masks then count the others from 1."
            raise UsageError(f"{source} has '{name}' as class {place}, {RESERVED}. {advice}")
    seen: set[str] = set()
    for name in map(composed, classes):
        if name in seen:
            raise UsageError(f"{source} has the class '{name}' twice.")
        seen.add(name)


def doubtful_names(classes: Sequence[str], source: str, separator: str = "") -> Iterator[tuple[str, str]]:
    """Yield classes whose names may not mean what they seem to; ``separator`` stands between several in one cell."""
    for name in classes:
        whose = f"{source} has a class '{plain(name)}'"
        if marks := [DELIMITERS[mark] for mark in DELIMITERS if mark in name]:
            how = _how_to_write(_parts(name, _MARKS), separator)
            yield name, f"{whose} with {marks[0]} in its name: {how}; it is taken for one."
        elif _is_joined(name, classes):
            how = _how_to_write(_parts(name, _JOINTS), separator)
            yield name, f"{whose}, made of names of other classes: {how}; it is taken for one."
        if composed(name).casefold().strip(" _") in NO_CLASS:
            none = "an image that shows no class has no label, and pixels that do not count are 255 in a mask"
            yield name, f"{whose}, whose name says that it is none: {none}; it is taken for one."
        if name != (read := composed(name)):
            apart = "decomposed Unicode (letter and accent apart): it is read in the composed form"
            yield name, f"{source} writes the class '{read}' in {apart}."
    first: dict[str, str] = {}
    for name in classes:
        folded = plain(composed(name)).casefold()
        value = whole_number(folded)
        if (other := first.setdefault(without_zeros(folded) if value is None else str(value), name)) != name:
            what = "how a number is written"
            if plain(composed(other)).casefold() == folded:
                what = "case" if composed(other).casefold() == composed(name).casefold() else "what cannot be seen"
            differ = f"which differ in {what} only: they are taken for two"
            yield name, f"{source} has the classes '{other}' and '{name}', {differ}."


def recombined(names: Sequence[str], source: str, separator: str) -> list[tuple[str, str]]:
    """Return names that seem to hold several, each with a sentence but its full stop, where no single word is a name.

    So it is where all together have no more words than there are names, and a word is first in one and last in
    another: ``cat sea``, ``dog cat`` and ``dog sea``, but not ``traffic light`` and ``traffic sign``, nor ``red car``,
    ``red bus``, ``grey car`` and ``grey bus``.
    """
    made_of = {name: parts for name in names if len(parts := _parts(name, _GAPS)) > 1}
    words = {word.casefold() for parts in made_of.values() for word in parts}
    first, last = ({parts[place].casefold() for parts in made_of.values()} for place in (0, -1))
    if len(words) > len(made_of) or not first & last:
        return []
    hints = {name: _how_to_write(parts, separator) for name, parts in made_of.items() if not _is_joined(name, names)}
    has = f"{source} has a class"
    return [(name, f"{has} '{name}', whose words other classes have, too: {hint}") for name, hint in hints.items()]


def several(name: str) -> list[str]:
    """Return the names that a name may hold, with delimiters or else with blanks between them; none where it is one."""
    return next((parts for mark in (_MARKS, _JOINTS) if len(parts := _parts(name, mark)) > 1), [])


def _parts(name: str, between: re.Pattern[str]) -> list[str]:
    return [part.strip() for part in between.split(name) if part.strip()]


def _is_joined(name: str, classes: Collection[str]) -> bool:
    parts = [part.casefold() for part in _parts(name, _JOINTS)]
    return len(parts) > 1 and {other.casefold() for other in classes}.issuperset(parts)


def _how_to_write(parts: Sequence[str], separator: str) -> str:
    how = f"write '{separator.join(dict.fromkeys(parts))}'" if separator else "separate them as the layout asks for"
    return f"if several are meant, {how}"
