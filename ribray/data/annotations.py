"""Annotations of PASCAL VOC: the XML file of an image, of which only the names of its objects are read."""

from collections.abc import Iterable, Sequence
from functools import cache
from xml.etree import ElementTree

import defusedxml
import defusedxml.ElementTree
import numpy as np

from ribray.data.dataset import nearest
from ribray.data.names import composed
from ribray.errors import ImageError


class UnknownClassError(ImageError):
    """An annotation names what is no class."""

    def __init__(self, sentence: str, names: Sequence[str]) -> None:
        super().__init__(sentence)
        self.names = tuple(names)


def parse_annotation(content: bytes, classes: Sequence[str], source: str) -> np.ndarray:
    """Return which classes a VOC annotation lists, (classes,) bool; objects marked difficult count.

    An annotation without objects is an image known to be empty.

    Args:
        content: the XML file.
        classes: names, in the order of the result.
        source: what to call the file in messages.

    Raises:
        UnknownClassError: it has the name of no class.
        ImageError: not XML, XML with entities or a DTD, or no annotation.
    """
    columns = _columns(tuple(classes))
    names = dict.fromkeys(_object_names(content, source))
    if unknown := [name for name in names if name not in columns]:
        fault = f"is no class{nearest(unknown[0], classes)}"
        if (other := in_other_case(unknown[0], classes)) is not None:
            fault = f"differs from class '{other}' in case only: write it so"
        raise UnknownClassError(f"{source} has an object '{unknown[0]}', which {fault}.", unknown)
    labels = np.zeros(len(classes), dtype=bool)
    labels[[columns[name] for name in names]] = True
    return labels


def difficult_names(content: bytes) -> set[str]:
    """Return the names in a VOC annotation of which every object is marked difficult; none of one that is no XML."""
    try:
        objects = defusedxml.ElementTree.fromstring(content, forbid_dtd=True).findall("object")
    except (defusedxml.DefusedXmlException, ElementTree.ParseError, ValueError, LookupError):
        return set()
    marks = [(_name_of(one), (one.findtext("difficult") or "").strip()) for one in objects]
    return {name for name, mark in marks if mark == "1"} - {name for name, mark in marks if mark != "1"}


def _name_of(item: ElementTree.Element) -> str:
    return composed(" ".join((item.findtext("name") or "").split()))


@cache
def _columns(classes: tuple[str, ...]) -> dict[str, int]:
    return {composed(name): column for column, name in enumerate(classes)}


def _object_names(content: bytes, source: str) -> list[str]:
    try:
        tree = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
    except defusedxml.DefusedXmlException:
        raise ImageError(f"{source} declares a document type or entities: remove the declaration.") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ImageError(f"{source} is not valid XML: {error}.") from None
    if tree.tag != "annotation":
        raise ImageError(f"{source} is no VOC annotation: its root is <{tree.tag}>, not <annotation>.")
    names = [_name_of(item) for item in tree.findall("object")]  # not the names of parts
    if "" in names:
        raise ImageError(f"{source} has an object without a name.")
    return names


def in_other_case(name: str, classes: Iterable[str]) -> str | None:
    """Return the class whose name differs from another name in case only."""
    folded = composed(name).casefold()
    return next((other for other in classes if composed(other).casefold() == folded), None)
