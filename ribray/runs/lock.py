"""One process at a time in a directory: a lock of the operating system, or on an object store a lock of our own.

An object store knows no locks, but it can create an object only if there is none of that name. The lock is a row of
such objects, ``.lock/000001.json`` and on, the highest of which counts. Its owner writes it anew every few seconds (the
*heartbeat*). Who finds it released, or watches it long enough without a beat, creates the next number; of several who
try one succeeds. An owner that was only slow finds the higher number at its next beat and stops. To take a lock, no
clocks are compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import filelock
import psutil

from ribray import storage

LOCK_NAME = ".lock"
BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""So long without a beat, and an owner counts as dead."""
GIVE_UP_SECONDS = 20.0
"""So long without being able to beat, and an owner takes itself for dead: before others do."""
WATCH_SECONDS = 0.5
LOOK_SECONDS = 0.5
"""So long a lock of the operating system is tried for: who only looks whether it is held has it for a moment."""
SAME_START_SECONDS = 2.0
"""A process that started at another time than the owner only has its number; the system's clock may be corrected."""


class TakenError(Exception):
    """Another process holds the lock."""


class Lock(Protocol):
    """A directory held by this process."""

    @property
    def lost(self) -> bool:
        """Whether another process may hold it by now."""

    def release(self) -> None:
        """Let go."""


def take(directory: Path, on_lost: Callable[[], None] = lambda: None) -> Lock:
    """Take hold of a directory.

    Args:
        directory: local (then it exists) or on an object store.
        on_lost: called from another thread if the lock is lost, which on a local file system it never is.

    Raises:
        TakenError: another process holds it.
        OSError: a lock cannot be written there.
    """
    if not storage.is_local(directory):
        return StoreLock(directory / LOCK_NAME, on_lost)
    lock = filelock.FileLock(directory / LOCK_NAME, timeout=LOOK_SECONDS)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise TakenError from None
    return _LocalLock(lock)


def is_taken(directory: Path) -> bool:
    """Say whether some process holds a directory now."""
    if not storage.is_local(directory):
        newest = _newest(directory / LOCK_NAME)
        if newest is None or newest.owner is None:
            return False
        here = newest.owner_here()
        return here if here is not None else newest.age() < SILENT_SECONDS
    if not (directory / LOCK_NAME).exists():
        return False
    probe = filelock.FileLock(directory / LOCK_NAME, blocking=False)
    try:
        probe.acquire()
    except filelock.Timeout:
        return True
    except OSError:  # it cannot be locked here, so nobody on this machine works in it
        return False
    probe.release()
    return False


@dataclass
class _LocalLock:
    """The operating system's lock: it ends with the process, and is not copied along with a directory."""

    _lock: filelock.BaseFileLock
    lost: bool = False

    def release(self) -> None:
        self._lock.release()


@dataclass(frozen=True)
class _Entry:
    """One object of a lock's row."""

    location: Path
    number: int
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def owner(self) -> dict[str, Any] | None:
        """Which process wrote it; None once released."""
        return self.content.get("owner")

    def owner_here(self) -> bool | None:
        """Whether the owner, a process that this one would see, is alive; None where this one cannot see it."""
        assert self.owner is not None
        if self.owner.get("place") != _place():
            return None
        try:
            return abs(psutil.Process(self.owner["pid"]).create_time() - self.owner["started"]) < SAME_START_SECONDS
        except psutil.NoSuchProcess:
            return False

    def age(self) -> float:
        """Seconds since it was written, as far as the store's clock and this machine's agree."""
        return time.time() - self.location.stat().st_mtime


def _newest(row: Path) -> _Entry | None:
    """Return the entry that counts; one that vanished meanwhile was overtaken, so the row is looked at again."""
    while True:
        names = sorted(name for name in storage.list_ids(row, ".json") if name.isdigit())
        if not names:
            return None
        location = row / f"{names[-1]}.json"
        with contextlib.suppress(FileNotFoundError):
            content = storage.read_json(location)
            return _Entry(location, int(names[-1]), content if isinstance(content, dict) else {})


class StoreLock:
    """A lock on an object store; see the module's description."""

    def __init__(self, row: Path, on_lost: Callable[[], None] = lambda: None) -> None:
        """Take the lock.

        Raises:
            TakenError: another process holds it, which may take `SILENT_SECONDS` to find out.
            OSError: the store refuses.
        """
        self._row, self._on_lost = row, on_lost
        self._token = uuid.uuid4().hex
        self._beats = 0
        self.lost = False
        self._number = self._acquire()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock-heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go: the next process need not wait."""
        self._end.set()
        self._thread.join()
        if not self.lost:
            storage.write_json(self._location, {"owner": None, "token": self._token})

    @property
    def _location(self) -> Path:
        return self._row / f"{self._number:06d}.json"

    def _acquire(self) -> int:
        while True:
            newest = _newest(self._row)
            if newest is not None and newest.owner is not None and _is_alive(newest):
                raise TakenError
            self._number = newest.number + 1 if newest else 1
            try:
                storage.create_bytes(self._location, self._content())
            except FileExistsError:  # another process was quicker
                continue
            if (newest := _newest(self._row)) is not None and newest.number > self._number:  # several were
                self._location.unlink(missing_ok=True)
                continue
            for name in storage.list_ids(self._row, ".json"):
                if name.isdigit() and int(name) < self._number:
                    (self._row / f"{name}.json").unlink(missing_ok=True)
            return self._number

    def _content(self) -> bytes:
        owner = {"place": _place(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        return json.dumps({"owner": owner, "token": self._token, "beats": self._beats}).encode()

    def _keep(self) -> None:
        last = time.monotonic()
        while not self._end.wait(BEAT_SECONDS):
            try:
                newest = _newest(self._row)
                if newest is None or newest.number != self._number or newest.content.get("token") != self._token:
                    break
                self._beats += 1
                storage.write_bytes(self._location, self._content())
                last = time.monotonic()
            except Exception:  # noqa: BLE001  (a store that does not answer now may answer the next time)
                if time.monotonic() - last > GIVE_UP_SECONDS:
                    break
        if not self._end.is_set():
            self.lost = True
            self._on_lost()


def _is_alive(entry: _Entry) -> bool:
    """Say whether an entry's owner lives: asked of this machine where it is one of its processes, else watched."""
    if (here := entry.owner_here()) is not None:
        return here
    end = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(WATCH_SECONDS)
        newest = _newest(entry.location.parent)
        if newest is None or newest != entry:
            return newest is not None and newest.owner is not None
    return False


def _place() -> str:
    """Return what tells apart places whose processes do not see each other: machines, and containers on one."""
    parts = [socket.gethostname()]
    for file, read in (
        ("/proc/sys/kernel/random/boot_id", lambda name: Path(name).read_text(encoding="ascii").strip()),
        ("/proc/self/ns/pid", os.readlink),
    ):
        with contextlib.suppress(OSError):
            parts.append(read(file))
    return " ".join(parts)
