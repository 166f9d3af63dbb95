"""The files below a folder, each found once: links are followed, hidden folders and those of systems passed over."""

import heapq
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ribray import storage
from ribray.data.images import IMAGE_SUFFIXES

SYSTEM_FOLDERS = frozenset(
    {
        "__macosx", "__pycache__", "network trash folder", "temporary items",  # macOS, Python
        "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",  # network storage
        "$recycle.bin", "recycler", "system volume information", "lost+found",  # Windows, Linux
    }
)  # fmt: skip
"""Folders that no person has made, in lower case; in some lie thumbnails or deleted photographs."""


@dataclass(frozen=True)
class Listing:
    """What lies below a folder; names are paths below it, their parts separated by ``/``."""

    names: tuple[str, ...]
    """Files, sorted."""
    same: dict[str, str] = field(default_factory=dict)
    """Folders whose files stand below another name already, since a link leads there: that name, by theirs."""
    broken: dict[str, str] = field(default_factory=dict)
    """Links that lead nowhere, but for those named like a photograph: where to, by name."""
    closed: dict[str, str] = field(default_factory=dict)
    """Folders that cannot be listed: why, by name."""

    @property
    def photographs(self) -> list[str]:
        """Those that are named like a photograph, links that lead nowhere included."""
        return [name for name in self.names if is_photograph(name)]

    def gaps(self, root: Path) -> dict[str, str]:
        """Return what could not be listed below ``root``, by name, each with a sentence."""
        links = {name: f"is a link that leads nowhere (to {target})" for name, target in self.broken.items()}
        folders = {
            name: f"cannot be listed ({reason}), so nothing in it is read" for name, reason in self.closed.items()
        }
        return {name: f"{root / name} {fault}." for name, fault in sorted({**links, **folders}.items())}


def is_photograph(name: str) -> bool:
    """Whether a file is named like a photograph."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_passed_over(part: str) -> bool:
    """Whether a file or folder of this name is hidden or a system's: ``._x.jpg``, ``.thumbnails``, ``@eaDir``."""
    return part.startswith(".") or part.lower() in SYSTEM_FOLDERS


def list_files(root: Path, without: Path | None = None) -> Listing:
    """List a folder with all folders below, on an object store by one request for a listing.

    Each folder is listed once, whatever leads there: below its own name before that of a link to it. So a link to a
    folder around it ends no walk and finds nothing twice.

    Args:
        root: the folder.
        without: a folder whose files are left out.
    """
    if storage.is_local(root):
        return _walk(os.fspath(root), os.fspath(without) if without is not None and storage.is_local(without) else None)
    prefix = root.path.rstrip("/") + "/"  # type: ignore[attr-defined]
    keys: list[str] = [key for key in root.fs.find(prefix) if not key.endswith("/")]  # type: ignore[attr-defined]
    if without is not None and not storage.is_local(without):
        left_out = without.path.rstrip("/") + "/"  # type: ignore[attr-defined]
        keys = [key for key in keys if not key.startswith(left_out)]
    names = (key.removeprefix(prefix) for key in keys)
    return Listing(tuple(sorted(name for name in names if not any(map(is_passed_over, name.split("/"))))))


def _walk(top: str, without: str | None) -> Listing:
    real_top = os.path.realpath(top)
    taken: dict[str, str | None] = dict.fromkeys(_with_parents(real_top))  # the name that a real folder is listed below
    if without is not None:
        taken[os.path.realpath(without)] = None
    names: list[str] = []
    same: dict[str, str] = {}
    broken: dict[str, str] = {}
    closed: dict[str, str] = {}
    folders = [("", real_top)]
    links: list[tuple[int, str, str]] = []  # the innermost target first: what is linked by itself keeps that name
    while folders or links:
        name, real = folders.pop() if folders else heapq.heappop(links)[1:]
        if real in taken and name:
            if (listed := taken[real]) is not None:
                same[name] = listed
            continue
        taken[real] = name
        try:
            with os.scandir(f"{top}/{name}") as opened:
                entries = list(opened)
        except OSError as error:
            closed[name] = storage.reason(error)
            continue
        for entry in entries:
            if is_passed_over(entry.name):
                continue
            path = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append((path, f"{real.rstrip(os.sep)}{os.sep}{entry.name}"))
            elif (mode := _mode(entry)) is None:
                if is_photograph(path):
                    names.append(path)
                else:
                    broken[path] = str(Path(entry.path).readlink())
            elif stat.S_ISDIR(mode):
                target = os.path.realpath(entry.path)
                heapq.heappush(links, (-target.count(os.sep), path, target))
            elif stat.S_ISREG(mode):
                names.append(path)
    return Listing(tuple(sorted(names)), same, broken, closed)


def _with_parents(path: str) -> list[str]:
    """Return a real path and the folders around it."""
    return [path, *map(str, Path(path).parents)]


def _mode(entry: "os.DirEntry[str]") -> int | None:
    """Return the mode of what an entry leads to; None of a link that leads nowhere."""
    if not entry.is_symlink():
        return stat.S_IFREG if entry.is_file() else 0
    try:
        return entry.stat().st_mode
    except OSError:
        return None
