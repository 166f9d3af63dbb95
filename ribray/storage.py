"""Reading and writing the files of a run and of a data root.

Every file is whole or absent: locally it is written under a temporary name beside its place and renamed, on an
object store it is put in one request. Nothing that is read can run code.
"""

import contextlib
import io
import json
import os
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from upath import UPath

from ribray.errors import RibrayError, UsageError

TEMPORARY_PREFIX = ".writing-"


def path(url: str | Path) -> Path:
    """Return ``url`` as a path: a local one, or a `UPath` with the same methods for ``s3://`` and the like."""
    return UPath(url)


def is_local(location: Path) -> bool:
    """Say whether ``location`` lies on a file system of this machine."""
    return not isinstance(location, UPath) or location.protocol in ("", "file", "local")


def absolute(location: str | Path) -> Path:
    """Return the absolute path of ``location``; URLs are absolute already."""
    location = path(location)
    return location.expanduser().absolute() if is_local(location) else location


def write_bytes(location: Path, content: bytes) -> None:
    """Write ``content`` so that ``location`` holds either what it held before or all of it.

    Raises:
        OSError: as the file system gives it (full disk, no permission).
    """
    if not is_local(location):
        location.write_bytes(content)
        return
    with replacing(location) as stream:
        stream.write(content)


@contextlib.contextmanager
def replacing(location: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content takes the place of a local file at the end of a ``with`` block without error.

    Raises:
        OSError: as the file system gives it (full disk, no permission).
    """
    location.parent.mkdir(parents=True, exist_ok=True)
    temporary = location.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, location)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(location: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(location, text.encode("utf-8"))


def write_json(location: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all. Non-finite numbers are refused by ``json``."""
    write_text(location, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(location: Path) -> Any:
    """Read a JSON file.

    Raises:
        RibrayError: the file is damaged.
    """
    try:
        return json.loads(location.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RibrayError(f"{location} is damaged ({error}); remove it so that it is made again.") from None


def write_npz(location: Path, **arrays: np.ndarray) -> None:
    """Write ``arrays`` as a compressed npz file whose bytes depend on the arrays alone."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(location, buffer.getvalue())


def read_npz(location: Path) -> dict[str, np.ndarray]:
    """Read every array of an npz file; nothing in it can run code.

    Raises:
        RibrayError: the file is missing, damaged or holds pickled objects.
    """
    try:
        with np.load(io.BytesIO(location.read_bytes()), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise RibrayError(f"{location} does not exist.") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, OSError) as error:
        raise RibrayError(
            f"{location} is not a readable npz file ({error}); remove it so that it is made again."
        ) from None


def list_files(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield every finished file below ``folder`` that ends with ``suffix``, in no particular order."""
    if not folder.exists():
        return
    for location in folder.rglob(f"*{suffix}"):
        if not location.name.startswith(TEMPORARY_PREFIX):
            yield location


def list_ids(folder: Path, suffix: str) -> set[str]:
    """Return the ids of all finished files ID + ``suffix`` below ``folder``."""
    return {file.relative_to(folder).as_posix().removesuffix(suffix) for file in list_files(folder, suffix)}


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left below ``folder``."""
    for leftover in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Make ``folder`` and prove that a file can be written there.

    Raises:
        UsageError: the folder cannot be made or written.
    """
    try:
        probe = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"ribray")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"Cannot write in {folder}: {reason}; choose another --out directory.") from None
