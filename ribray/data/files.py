"""The files below a folder: links are followed, hidden folders and those of systems passed over."""

import heapq
import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from ribray import storage
from ribray.data.images import UNREAD_SUFFIXES, is_photograph
from ribray.data.names import composed
from ribray.data.near import Near

SYSTEM_FOLDERS = {
    "__macosx", "__pycache__", "network trash folder", "temporary items",  # macOS, Python
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",  # network storage
    "$recycle.bin", "recycler", "system volume information", "lost+found",  # Windows, Linux
}  # fmt: skip
"""Folders that no person has made, in lower case; in some lie thumbnails or deleted photographs."""


@dataclass(frozen=True)
class Listing:
    """What lies below a folder; names are paths below it, their parts separated by ``/``."""

    names: tuple[str, ...]  # files, sorted
    same: dict[str, str] = field(default_factory=dict)  # folders whose files stand below another name already: that
    broken: dict[str, str] = field(default_factory=dict)  # links to nowhere, but for photographs' names: where to
    closed: dict[str, str] = field(default_factory=dict)  # folders that cannot be listed: why

    @property
    def photographs(self) -> list[str]:
        return [name for name in self.names if is_photograph(name)]

    def gaps(self, root: Path) -> dict[str, str]:
        faults = {name: f"is a link that leads nowhere (to {target})" for name, target in self.broken.items()}
        faults |= {name: f"cannot be listed ({why}), so nothing in it is read" for name, why in self.closed.items()}
        return {name: f"{root / name} {fault}." for name, fault in sorted(faults.items())}

    def unread(self, root: Path, known: Collection[str], without: Collection[str] = ()) -> dict[str, str]:
        """Return a sentence for each ending that is not read, by the first photograph that has it and no known id.

        Folders ``without`` photographs are passed over.
        """
        found = defaultdict(list)
        for name in self.names:
            stem, ending = posixpath.splitext(name)
            if ending.lower() in UNREAD_SUFFIXES and composed(stem) not in known and name.split("/")[0] not in without:
                found[ending.lower()].append(name)
        sentences = {}
        for ending, names in sorted(found.items()):
            files, them = (f"{len(names)} {ending} files", "them") if len(names) > 1 else (f"1 {ending} file", "it")
            advice = f"rename {them} to .jpg" if ending == ".jfif" else f"save {them} as JPEG"
            is_not_read = f"below {root} {'are' if len(names) > 1 else 'is'} not read"
            sentences[names[0]] = f"{files} {is_not_read} ({'such as ' if len(names) > 1 else ''}{names[0]}): {advice}."
        return sentences


def is_passed_over(part: str) -> bool:
    """Whether a file or folder of this name is hidden or a system's: ``._x.jpg``, ``.thumbnails``, ``@eaDir``."""
    return part.startswith(".") or part.lower() in SYSTEM_FOLDERS


def without_root(parts: Sequence[str], root: Sequence[str]) -> Sequence[str]:
    """Return a path without the last folders of its root in front, such as ``photos/img01`` below ``/data/photos``."""
    for count in range(min(len(parts) - 1, len(root)), 0, -1):
        if tuple(parts[:count]) == tuple(root[-count:]):
            return parts[count:]
    return parts


def list_files(root: Path, without: Path | None = None, below_each_name: bool = False) -> Listing:
    """List a folder with all below it, each once, whatever links lead there (unless ``below_each_name``)."""
    if storage.is_local(root):
        left_out = os.fspath(without) if without is not None and storage.is_local(without) else None
        return _walk(os.fspath(root), left_out, below_each_name)
    prefix = root.path.rstrip("/") + "/"  # type: ignore[attr-defined]
    keys: list[str] = [key for key in root.fs.find(prefix) if not key.endswith("/")]  # type: ignore[attr-defined]
    if without is not None and not storage.is_local(without):
        left_out = without.path.rstrip("/") + "/"  # type: ignore[attr-defined]
        keys = [key for key in keys if not key.startswith(left_out)]
    names = (key.removeprefix(prefix) for key in keys)
    return Listing(tuple(sorted(name for name in names if not any(map(is_passed_over, name.split("/"))))))


def _walk(top: str, without: str | None, below_each_name: bool) -> Listing:
    reals = {".": os.path.realpath(top)}  # real folders by the names that they are listed below, and the reverse
    taken: dict[str, str | None] = dict.fromkeys(map(str, Path(reals["."]).parents))
    if without is not None:
        taken[os.path.realpath(without)] = None
    found = Listing(())
    names: list[str] = []
    folders = [("", reals["."])]
    links: list[tuple[int, str, str]] = []  # the innermost target first: what is linked by itself keeps that name
    while folders or links:
        name, real = folders.pop() if folders else heapq.heappop(links)[1:]
        is_loop = real in {reals[str(parent)] for parent in PurePosixPath(name).parents}
        if is_loop or (name and real in taken and not below_each_name):
            if (listed := taken[real]) is not None:
                found.same[name] = listed
            continue
        taken[real], reals[name or "."] = name, real
        try:
            with os.scandir(f"{top}/{name}" if name else top) as opened:
                entries = list(opened)
        except OSError as error:
            if below_each_name:
                raise
            found.closed[name] = storage.reason(error)
            continue
        for entry in entries:
            if is_passed_over(entry.name):
                continue
            path = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append((path, f"{real.rstrip(os.sep)}{os.sep}{entry.name}"))
            elif not entry.is_symlink():
                if entry.is_file():
                    names.append(path)
            elif (place := Path(entry.path)).is_dir():
                target = os.path.realpath(place)
                heapq.heappush(links, (-target.count(os.sep), path, target))
            elif place.is_file() or (not place.exists() and is_photograph(path)):
                names.append(path)
            elif not place.exists():
                found.broken[path] = str(place.readlink())
    return Listing(tuple(sorted(names)), found.same, found.broken, found.closed)


class FilesById:
    """The files below a folder, which need not exist, by id: the path without ending, in Unicode's composed form."""

    def __init__(self, folder: Path, suffixes: Sequence[str]) -> None:
        """Of files with one id that whose ending comes first in ``suffixes`` is first, and ``.jpg`` before ``.JPG``."""
        self.folder = folder
        self.others: list[str] = []  # names of files with other endings
        self._files: dict[str, list[str]] = {}
        found = list_files(folder, below_each_name=True) if folder.is_dir() else Listing(())
        for name in sorted((*found.names, *found.broken)):
            stem, dot, ending = name.rpartition(".")  # much faster than splitext, which agrees: none begins with a dot
            if f"{dot}{ending}".lower() in suffixes:
                self._files.setdefault(composed(stem), []).append(name)
            else:
                self.others.append(name)

        def rank(name: str) -> tuple[int, bool]:
            suffix = posixpath.splitext(name)[1]
            return suffixes.index(suffix.lower()), suffix != suffix.lower()

        for names in self._files.values():
            names.sort(key=rank)

    def __contains__(self, id: str) -> bool:
        return composed(id) in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def known(self, id: str) -> str | None:
        """Return an id, in the form that is asked for, if there is such a file."""
        return id if id in self else None

    def names(self, id: str) -> list[str]:
        return self._files.get(composed(id), [])

    @cached_property
    def near(self) -> Near:
        return Near(self)
