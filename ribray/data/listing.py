"""Which files there are in a folder, found by id and listed once; and which of many names is nearest to one."""

import difflib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ribray import storage
from ribray.data.names import composed

_PASSED_OVER = ("@eaDir", "__MACOSX")
"""Folders that network drives and archivers leave behind; beside these, whatever begins with a dot."""
_SEPARATORS = re.compile(r"[_\-. ]+")
_NUMBER = re.compile(r"\d+")
_SIMILAR = 0.6
"""How alike two names must be to be taken for each other's misspelling, of 1."""
_COMPARED = 20
"""How often a name is compared letter by letter with others: ten thousand times would take minutes."""


class Listing:
    """The files of a folder and of those below it, by id: the path below the folder without ending.

    Ids are the same in either Unicode form. Hidden files and folders are passed over, linked folders are followed.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str]) -> None:
        """List a folder; it holds nothing where it is not there.

        Args:
            folder: local, or on an object store.
            suffixes: the endings that count, in lower case; of two files with one id that of the earlier ending is
                first, and ``.jpg`` comes before ``.JPG``.

        Raises:
            OSError: it cannot be read.
        """
        self.folder = folder
        self.others: list[str] = []
        """Names of files with other endings."""
        self._files: dict[str, list[str]] = {}
        for name in sorted(_walk(folder)) if folder.is_dir() else ():
            stem, dot, ending = name.rpartition(".")  # much faster than splitext, which agrees: none begins with a dot
            if f"{dot}{ending}".lower() in suffixes:
                self._files.setdefault(composed(stem), []).append(name)
            else:
                self.others.append(name)
        for names in self._files.values():
            if len(names) > 1:
                names.sort(key=lambda name: _rank(posixpath.splitext(name)[1], suffixes))

    def __contains__(self, id: str) -> bool:
        return composed(id) in self._files

    def __iter__(self) -> Iterator[str]:
        """Yield every id, in the composed form."""
        return iter(self._files)

    def names(self, id: str) -> list[str]:
        """Return the names of an id's files, relative to the folder."""
        return self._files.get(composed(id), [])

    @cached_property
    def near(self) -> "Near":
        """To find the nearest of the ids."""
        return Near(self)


def _rank(suffix: str, suffixes: Sequence[str]) -> tuple[int, bool]:
    return suffixes.index(suffix.lower()), suffix != suffix.lower()


def _walk(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, relative to it and separated by ``/``."""
    if not storage.is_local(folder):
        root = folder.path.rstrip("/") + "/"  # type: ignore[attr-defined]
        for key in folder.fs.find(root):  # type: ignore[attr-defined]
            name = key.removeprefix(root)
            if not any(map(_is_passed_over, name.split("/"))):
                yield name
        return
    top = os.fspath(folder)
    above = {top: {os.path.realpath(top)}}  # what a linked folder must not lead back to, by folder
    for parent, folders, files in os.walk(top, onerror=_raise, followlinks=True):
        around = above.pop(parent)
        folders[:] = [name for name in folders if not _is_passed_over(name)]
        for name in tuple(folders):
            inner = str(Path(parent, name))
            if (real := os.path.realpath(inner)) in around:
                folders.remove(name)
            else:
                above[inner] = around | {real}
        prefix = f"{Path(parent).relative_to(top).as_posix()}/" if parent != top else ""
        yield from (prefix + name for name in files if name[0] != ".")


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in _PASSED_OVER


def _raise(error: OSError) -> None:
    raise error


def printable(name: str) -> str:
    """Return a name that may come from any file system in a form for a message: escaped where it cannot be printed."""
    return name if name.isprintable() else ascii(name)


class Near:
    """Finds among many names the one that another was probably meant for."""

    def __init__(self, names: Iterable[str]) -> None:
        """Keep the names; they are looked at when first asked."""
        self._names = names
        self._left = _COMPARED

    def find(self, name: str) -> str | None:
        """Return the name that is the same but for case, signs between letters, ending, folder or an affix.

        Where there is none, return the one of most similar spelling among those with the same numbers: ``img_12`` may
        be meant for ``imgs_0012``, but not for ``img_13``. None where none is similar.
        """
        for part in _parts(name):
            if (found := self._by_key.get(_key(part))) is not None:
                return found
        if not self._left:
            return None
        self._left -= 1
        last = posixpath.basename(posixpath.splitext(name)[0])
        similar = difflib.get_close_matches(_key(last), self._by_numbers.get(_numbers(last), ()), n=1, cutoff=_SIMILAR)
        return self._by_key[similar[0]] if similar else None

    def hint(self, name: str) -> str:
        """Return `` (did you mean 'x'?)``, or nothing where no name is near."""
        found = self.find(name)
        return "" if found is None else f" (did you mean {found!r}?)"

    @cached_property
    def _by_key(self) -> dict[str, str]:
        by_key: dict[str, str] = {}
        for name in self._names:
            by_key.setdefault(_key(name), name)
        for name in tuple(by_key.values()):
            by_key.setdefault(_key(posixpath.basename(name)), name)
        return by_key

    @cached_property
    def _by_numbers(self) -> dict[tuple[str, ...], list[str]]:
        """The keys of names by the numbers in their last parts."""
        by_numbers: dict[tuple[str, ...], list[str]] = {}
        for key, name in self._by_key.items():
            by_numbers.setdefault(_numbers(posixpath.basename(name)), []).append(key)
        return by_numbers


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(number.lstrip("0") for number in _NUMBER.findall(name))


def _key(name: str) -> str:
    return "".join(letter for letter in composed(name).casefold() if letter.isalnum())


def _parts(name: str) -> Iterator[str]:
    """Yield what of a name may be the name meant, the most of it first."""
    for whole in dict.fromkeys((name, posixpath.splitext(name)[0])):
        for part in dict.fromkeys((whole, posixpath.basename(whole))):
            if _key(part):
                yield part
    words = _SEPARATORS.split(posixpath.basename(posixpath.splitext(name)[0]))
    for kept in range(len(words) - 1, 0, -1):
        for few in (words[:kept], words[-kept:]):
            if _key(part := "_".join(few)):
                yield part
