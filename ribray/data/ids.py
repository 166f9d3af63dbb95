"""Which image an id means as people write it, and which comes nearest where there is none."""

import difflib
import os
import re
from collections.abc import Hashable, Iterable, Mapping
from functools import cached_property
from pathlib import Path

from ribray import storage
from ribray.data.files import Listing, is_passed_over, is_photograph
from ribray.data.images import IMAGE_SUFFIXES
from ribray.data.lists import check_id
from ribray.data.names import composed
from ribray.errors import UsageError


class Photographs:
    """The photographs below a root by id: the path below it without ending, in Unicode's composed form.

    Attributes:
        files: path below the root as the file system has it, by id, sorted by path.
    """

    def __init__(self, root: Path, names: Iterable[str], listing: Listing) -> None:
        """Keep the photographs of these names, which stand in a listing of the root.

        Raises:
            UsageError: two have the same id, or a name cannot be an id.
        """
        self.files: dict[str, str] = {}
        for name in names:
            id = composed(without_ending(name))
            check_id(id, f"the name of an image below {root}")
            if (other := self.files.setdefault(id, name)) != name:
                raise UsageError(f"{root / other} and {root / name} have the same id {id}{_why_same(other, name)}.")
        self._folders = {composed(name.split("/")[0]) for name in (*listing.names, *listing.same) if "/" in name}
        self._same = {composed(name): composed(other) for name, other in listing.same.items()}
        real = [os.path.realpath(root)] if storage.is_local(root) else []
        self._roots = [composed(text.rstrip("/")) + "/" for text in dict.fromkeys([str(root), *real])]
        self._root_parts = [composed(part) for part in root.parts]

    def id_of(self, written: str, where: str) -> str:
        r"""Return the id that is meant by one as somebody has written it, whether there is such an image or not.

        ``img01.jpg``, ``./img01``, ``photos\img01.jpg`` and ``/data/photos/img01`` all mean ``img01`` where the root is
        ``/data/photos`` and nothing else has that name.

        Args:
            written: in either Unicode form.
            where: for the message, such as ``line 3 of train.txt``.

        Raises:
            UsageError: it could name anything but a file below the root.
        """
        id = composed(written)
        if id in self.files:
            return id
        path = self._below_root(id)
        try:
            check_id(path, where)
        except UsageError as error:
            if (near := self._by_last_part.get(_last(path))) is None:
                raise
            raise UsageError(f"{str(error).rstrip('.')}; there is {near}.") from None
        path = self._under_listed_name(path)
        inner = self._without_root(path)
        for candidate in (path, inner):
            if (found := self._named(candidate)) is not None:
                return found
        likely = path if path.split("/")[0] in self._folders else inner
        stem = without_ending(likely)
        return likely if stem in self.files else stem

    @cached_property
    def _by_last_part(self) -> Mapping[Hashable, str]:
        return _unique((_last(id), id) for id in self.files)

    def _named(self, path: str) -> str | None:
        """Return the id of the image that a path names, with its own ending (in either case) or without."""
        if path in self.files:
            return path
        stem = without_ending(path)
        name = self.files.get(stem)
        return stem if name is not None and composed(name).lower() == path.lower() else None

    def _below_root(self, text: str) -> str:
        """Return a path with the separators of ids, without the root in front of it and without ``.`` in it."""
        for root in self._roots:
            text = text.removeprefix(root)
        parts = text.replace("\\", "/").split("/")
        return "/".join(part for part in parts if part != ".") or text

    def _under_listed_name(self, path: str) -> str:
        """Replace a linked folder by the name that its files are listed below."""
        parts = path.split("/")
        for count in range(len(parts) - 1, 0, -1):
            if (listed := self._same.get("/".join(parts[:count]))) is not None:
                return "/".join([*filter(None, [listed]), *parts[count:]])
        return path

    def _without_root(self, path: str) -> str:
        """Take the last folders of the root away from the front of a path: ``photos/img01`` below ``photos``."""
        parts, root = path.split("/"), self._root_parts
        for count in range(min(len(parts) - 1, len(root)), 0, -1):
            if parts[:count] == root[-count:]:
                return "/".join(parts[count:])
        return path


def without_ending(name: str) -> str:
    """Return the name of a photograph without its ending; any other name as it is."""
    stem = name.rpartition(".")[0]
    return stem if is_photograph(name) and stem and not stem.endswith("/") else name


def _why_same(one: str, other: str) -> str:
    if without_ending(one) == without_ending(other):
        return ": rename one of the two"
    forms = "their names differ in Unicode form only, an accent being part of its letter or standing behind it"
    return f": {forms}; remove or rename one of the two"


class Nearest:
    """Finds the name that comes nearest to one that is not there: by its case, its folder, its number, or its letters.

    However many are asked for, it takes a moment: letters are compared for the first few only, among not too many.
    """

    _COMPARED, _AMONG = 20, 5_000

    def __init__(self, known: Iterable[str], alike: Iterable[str] | None = None) -> None:
        """Keep names.

        Args:
            known: all that there are.
            alike: those of them that may be meant by a name of the same number or of other letters; default all.
        """
        self._known = tuple(known)
        self._alike = self._known if alike is None else tuple(alike)
        self._left = self._COMPARED

    def find(self, name: str) -> str | None:
        """Return the nearest name, or None where none is like it."""
        other = self._by_case.get(name.casefold()) or self._by_last_part.get(_last(name))
        if other is None and (numbers := _numbers(name)):
            other = self._by_numbers.get(numbers)
        if other is None and self._left and len(self._alike) <= self._AMONG:
            self._left -= 1
            other = next(iter(difflib.get_close_matches(name, self._alike, n=1, cutoff=0.6)), None)
        return other

    @cached_property
    def _by_case(self) -> Mapping[str, str]:
        return {name.casefold(): name for name in self._known}

    @cached_property
    def _by_last_part(self) -> Mapping[Hashable, str]:
        return _unique((_last(name), name) for name in self._known)

    @cached_property
    def _by_numbers(self) -> Mapping[Hashable, str]:
        return _unique((_numbers(name), name) for name in self._alike)


def _unique(pairs: Iterable[tuple[Hashable, str]]) -> dict[Hashable, str]:
    """Return names by key, without the keys that several have."""
    found: dict[Hashable, str] = {}
    repeated = set()
    for key, name in pairs:
        if found.setdefault(key, name) != name:
            repeated.add(key)
    return {key: name for key, name in found.items() if key not in repeated}


def _last(name: str) -> str:
    return without_ending(name.rpartition("/")[2]).casefold()


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"[0-9]{1,18}", name))


def difference(name: str, other: str) -> str:
    """Say in what two names differ, such as ``, which differs in case only``; nothing where it is in their letters."""
    if name.casefold() == other.casefold():
        return ", which differs in case only"
    if without_ending(name).casefold() == without_ending(other).casefold():
        return ", with another ending"
    return ", in another folder" if _last(name) == _last(other) else ""


class Absences:
    """Says why images are not found, or what comes nearest to them."""

    def __init__(self, root: Path, photographs: Photographs, unlisted: Iterable[str], listing: Listing) -> None:
        """Look at what there is.

        Args:
            root: of the data.
            photographs: below it.
            unlisted: ids of photographs that nothing names.
            listing: of all files below the root.
        """
        self._root, self._files, self._listing = root, photographs.files, listing
        self._nearest = Nearest(photographs.files, unlisted)
        self._others = {composed(name.rpartition(".")[0]): name for name in listing.names if not is_photograph(name)}

    def of(self, id: str) -> str:
        """Return what to add to the sentence that there is no image ``id``, or nothing."""
        for folder in ("/".join(id.split("/")[:count]) for count in range(1, id.count("/") + 1)):
            if (target := self._listing.broken.get(folder)) is not None:
                return f": {self._root / folder} is a link that leads nowhere (to {target})"
            if (reason := self._listing.closed.get(folder)) is not None:
                return f": {self._root / folder} cannot be listed ({reason})"
        if any(map(is_passed_over, id.split("/"))) and (file := self._passed_over(id)):
            return f": {file} is passed over, as hidden files and folders of the system are; rename it"
        if (name := self._others.get(id)) is not None:
            return f"; there is {self._root / name}, which has another ending"
        if (other := self._nearest.find(id)) is not None:
            return f"; there is {self._root / self._files[other]}{difference(id, other)}"
        return ""

    def _passed_over(self, id: str) -> Path | None:
        files = (self._root / f"{id}{suffix}" for suffix in ("", *IMAGE_SUFFIXES))
        return next((file for file in files if file.is_file()), None)
