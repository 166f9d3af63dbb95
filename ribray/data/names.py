"""Names of classes: which are refused, and which are read but may not mean what they seem to."""

import unicodedata
from collections.abc import Sequence

from ribray.errors import UsageError

BACKGROUND_NAME = "background"
"""Reserved: it is mask value 0 of every data set, and no class."""
DELIMITERS = {";": "a semicolon", ",": "a comma", "|": "a bar", "\t": "a tab", "[": "a bracket", "]": "a bracket"}
"""Characters that separate names elsewhere: where one stands inside a name, several names were probably meant."""


def composed(text: str) -> str:
    """Return text in Unicode's composed form (NFC): ``é`` may be one character or two, and looks the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_background(name: str) -> bool:
    """Whether a name means background, however it is spelt (``Background``, ``_background_``)."""
    return composed(name).casefold().strip(" _-") == BACKGROUND_NAME


def require_distinct(classes: Sequence[str], source: str) -> None:
    """Refuse names that cannot be those of classes.

    Args:
        classes: as they stand in the data.
        source: what to call the data in messages.

    Raises:
        UsageError: one is that of the background, or two are the same.
    """
    for place, name in enumerate(classes, start=1):
        if is_background(name):
            raise UsageError(
                f"{source} has '{name}' as class {place}, and that name is reserved: background is mask value 0 and no "
                "class. Take it out of the classes; the masks then count the others from 1."
            )
    seen: set[str] = set()
    for name in map(composed, classes):
        if name in seen:
            raise UsageError(f"{source} has the class '{name}' twice.")
        seen.add(name)


def doubtful_names(classes: Sequence[str], source: str) -> list[tuple[str, str]]:
    """Return classes whose names may not mean what they seem to, each with a sentence.

    Args:
        classes: as they stand in the data.
        source: what to call the data in messages.
    """
    found = []
    first: dict[str, str] = {}
    for name in classes:
        if marks := [DELIMITERS[mark] for mark in DELIMITERS if mark in name]:
            found.append(
                (
                    name,
                    f"{source} has a class '{name}' with {marks[0]} in its name: if several are meant, "
                    "separate them as the layout asks for; it is taken for one.",
                )
            )
        if name != composed(name):
            found.append(
                (
                    name,
                    f"{source} writes the class '{composed(name)}' in decomposed Unicode (letter and accent "
                    "apart): it is read in the composed form.",
                )
            )
        other = first.setdefault(composed(name).casefold(), name)
        if other != name:
            found.append(
                (
                    name,
                    f"{source} has the classes '{other}' and '{name}', which differ in case only: they are "
                    "taken for two.",
                )
            )
    return found
