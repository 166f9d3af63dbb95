"""Reading and writing the files of a run and of a data root.

Every file is whole or absent: locally it is written under a temporary name beside its place and renamed, on an
object store it is put in one request. Nothing that is read can run code.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np

from ribray.errors import DamagedError, RibrayError, UsageError
from ribray.formats import MOST_BYTES, parse_json, parse_npz

TEMPORARY_PREFIX = ".writing-"
UPLOAD_SECONDS = 5.0  # how often a growing file is put on an object store
SUBFOLDERS = 256
MADE_AGAIN = "remove it so that it is made again"


def path(url: str | Path) -> Path:
    """Return ``url`` as a path: a local one, or a `UPath` with the same methods for ``s3://`` and the like."""
    if not isinstance(url, str):
        return url
    if "://" not in url:
        return Path(url)
    from upath import UPath  # files of this machine need no other package

    parts = urlsplit(str(url))
    if parts.username or parts.password or parts.query:
        raise UsageError(
            f"A URL such as {parts.scheme}://{parts.hostname or ''}{parts.path} must not carry credentials or options: "
            "they would be written into the run; set them in the environment."
        )
    if parts.scheme == "file":
        return UPath(unquote(parts.path))
    try:
        location = UPath(str(url), use_listings_cache=False)
        location.fs  # noqa: B018  (the package behind a protocol is imported here)
    except (ImportError, ValueError) as error:
        extra = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}.get(parts.scheme)
        hint = f"pip install 'ribray[{extra}]'" if extra else "install the fsspec package for it"
        raise UsageError(f"{url} cannot be used: {error}; {hint}.") from None
    return location


def is_local(location: Path) -> bool:
    return getattr(location, "protocol", "") in ("", "file", "local")


def absolute(location: str | Path) -> Path:
    location = path(location)
    return location.expanduser().absolute() if is_local(location) else location


def relative(location: Path, start: Path) -> str:
    """Return how ``location`` is named from ``start``, so that both may move together; a URL stands for itself."""
    return os.path.relpath(location, start) if is_local(location) and is_local(start) else str(location)


def resolve(name: str, start: Path) -> Path:
    return path(name) if "://" in name or not is_local(start) else (start / name).resolve()


def write_bytes(location: Path, content: bytes) -> None:
    """Write ``content`` so that ``location`` holds either what it held before or all of it."""
    with replacing(location) as stream:
        stream.write(content)


def create_bytes(location: Path, content: bytes) -> None:
    _put(location, content, mode="create")


def _put(location: Path, content: bytes, **options: Any) -> None:
    """Put an object; what a store's client raises becomes an `OSError`, which says that nothing can be written."""
    try:
        location.fs.pipe_file(location.path, content, **options)  # type: ignore[attr-defined]
    except Exception as error:  # clients of object stores have exceptions of their own
        code = _code(error)
        if isinstance(error, FileExistsError) or code == errno.EBUSY:  # EBUSY: another one is being created just now
            raise FileExistsError(str(location)) from None
        raise OSError(code, f"{location} cannot be written: {reason(error)}") from error


def _code(error: Exception) -> int:
    return (error.errno if isinstance(error, OSError) else None) or errno.EIO


def reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()) or type(error).__name__


@contextlib.contextmanager
def replacing(location: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content takes the place of a file at the end of a ``with`` block without error."""
    if not is_local(location):
        buffer = io.BytesIO()
        yield buffer
        _put(location, buffer.getvalue())
        return
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
    write_bytes(location, text.encode("utf-8"))


def write_json(location: Path, value: Any) -> None:
    write_text(location, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bytes(location: Path) -> bytes:
    """Read a file of a run; raises `FileNotFoundError`, or a `RibrayError` that says what is wrong with it."""
    try:
        if is_local(location):
            with open(location, "rb") as stream:
                content = stream.read(MOST_BYTES + 1)
        else:
            content = _get(location, MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise DamagedError(f"{location} cannot be read: it is a folder; {MADE_AGAIN}.") from None
    except OSError as error:
        raise RibrayError(f"{location} cannot be read: {reason(error)}.") from None
    if len(content) > MOST_BYTES:
        raise DamagedError(f"{location} is larger than {MOST_BYTES // 2**20:,} MiB; {MADE_AGAIN}.")
    return content


def _get(location: Path, most: int) -> bytes:
    """Return the first ``most`` bytes of an object, in one request: between two it may be replaced."""
    try:
        return location.fs.cat_file(location.path, start=0, end=most)  # type: ignore[attr-defined]
    except (FileNotFoundError, IsADirectoryError):
        raise
    except Exception as error:  # clients of object stores have exceptions of their own
        with contextlib.suppress(Exception):
            if location.fs.size(location.path) == 0:  # type: ignore[attr-defined]
                return b""  # which has no bytes that a range could name
        raise OSError(_code(error), reason(error)) from error


def read_json(location: Path, remedy: str = MADE_AGAIN) -> Any:
    """Read a JSON file; raises as `read_bytes`, and `DamagedError`, whose sentence ends with ``remedy``."""
    try:
        return parse_json(read_bytes(location))
    except ValueError as error:
        raise DamagedError(f"{location} is damaged ({error}); {remedy}.") from None


def read_object(location: Path, remedy: str = MADE_AGAIN) -> dict[str, Any]:
    if not isinstance(value := read_json(location, remedy), dict):
        raise DamagedError(f"{location} is damaged (it holds no keys and values); {remedy}.")
    return value


def parse_lines(content: bytes, location: Path, remedy: str) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object a line; raises as `read_json`."""
    found = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            raise DamagedError(f"{location} is damaged (line {number}: {error}); {remedy}.") from None
        if not isinstance(value, dict):
            raise DamagedError(f"{location} is damaged (line {number} holds no keys and values); {remedy}.")
        found.append(value)
    return found


def write_npz(location: Path, **arrays: np.ndarray) -> None:
    """Write ``arrays`` as a compressed npz file whose bytes depend on the arrays alone."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(location, buffer.getvalue())


def read_npz(location: Path) -> dict[str, np.ndarray]:
    """Read every array of an npz file; a missing one is a `RibrayError`, one that holds pickles a `DamagedError`."""
    try:
        return parse_npz(read_bytes(location))
    except FileNotFoundError:
        raise RibrayError(f"{location} does not exist.") from None
    except ValueError as error:
        raise DamagedError(f"{location} is not a readable npz file ({error}); {MADE_AGAIN}.") from None


def set_aside(location: Path) -> Path:
    """Rename a damaged file, so that nothing counts it as finished; return its new name."""
    target = aside(location)
    if is_local(location):
        location.replace(target)
    else:
        location.fs.mv(location.path, target.path)  # type: ignore[attr-defined]
    return target


def aside(location: Path) -> Path:
    return location.with_name(f"{location.name}.damaged")


def list_ids(folder: Path, suffix: str) -> set[str]:
    if not is_local(folder):
        root = folder.path.rstrip("/") + "/"  # type: ignore[attr-defined]
        keys = (key for key in folder.fs.find(root) if key.endswith(suffix))  # type: ignore[attr-defined]
        return {key.removeprefix(root).removesuffix(suffix) for key in keys}
    start = len(os.fspath(folder)) + 1
    return {
        f"{parent}/{file.removesuffix(suffix)}"[start:]
        for parent, _, files in os.walk(folder)
        for file in files
        if file.endswith(suffix) and not file.startswith(TEMPORARY_PREFIX)
    }


def spread(folder: Path, id: str, suffix: str) -> Path:
    """Return where an image's file lies in a folder of many: subfolders keep each listing short."""
    return folder / f"{subfolder(id):02x}" / f"{id}{suffix}"


def subfolder(id: str) -> int:
    return hashlib.sha256(id.encode()).digest()[0]


def spread_id(name: str) -> str | None:
    """Return whose file it is where `spread` put it under this name, given without its suffix."""
    part, _, id = name.partition("/")
    return id if id and part == f"{subfolder(id):02x}" else None


def copy(source: Path, target: Path) -> None:
    if is_local(source) and is_local(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return
    write_bytes(target, source.read_bytes())


def copy_folder(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            write_bytes(target / file.relative_to(source).as_posix(), file.read_bytes())


def remove_folder(folder: Path) -> None:
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.fs.rm(folder.path, recursive=True)  # type: ignore[attr-defined]


def remove_leftovers(folder: Path, recursive: bool = True) -> None:
    for parent, _, files in os.walk(folder) if is_local(folder) else ():
        for file in files:
            if file.startswith(TEMPORARY_PREFIX):
                Path(parent, file).unlink(missing_ok=True)
        if not recursive:
            return


def require_reachable(location: Path) -> None:
    if is_local(location):
        return
    try:
        location.exists()
    except Exception as error:  # clients of object stores have exceptions of their own
        raise UsageError(f"{location} cannot be reached: {reason(error)}") from error


def require_writable(folder: Path) -> None:
    probe = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"ribray")
        else:
            _put(probe, b"ribray")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"Cannot write in {folder}: {reason(error)}; choose another --out directory.") from None


class LineFile:
    """A text file that grows by lines; on an object store, the whole is put again every few seconds, and on `flush`."""

    def __init__(self, location: Path) -> None:
        self._location, self._stream = location, None
        if is_local(location):
            location.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(location, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  (closed by close())
        else:
            self._lines = [location.read_text(encoding="utf-8")] if location.exists() else []
            self._put_count, self._put_time = len(self._lines), time.monotonic()

    def add(self, line: str) -> None:
        if self._stream is not None:
            self._stream.write(line + "\n")
            return
        self._lines.append(line + "\n")
        if time.monotonic() - self._put_time >= UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._stream is None and len(self._lines) > self._put_count:
            write_text(self._location, "".join(self._lines))
            self._put_count, self._put_time = len(self._lines), time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._stream is not None:
            self._stream.close()


def for_ray(location: Path) -> dict[str, Any]:
    """Return what Ray's `RunConfig` is given to keep its files at ``location``."""
    if is_local(location):
        return {"storage_path": str(location)}
    from pyarrow import fs

    filesystem = fs.PyFileSystem(fs.FSSpecHandler(location.fs))  # type: ignore[attr-defined]
    return {"storage_path": location.path, "storage_filesystem": filesystem}  # type: ignore[attr-defined]
