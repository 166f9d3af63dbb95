"""One process at a time in a directory: a lock of the operating system, or objects of our own on an object store.

The operating system's lock ends with its process. An object store knows no locks, but it creates an object only if
there is none of that name. The lock is a row of such objects, ``.lock/000001.json`` and on, the last of which says
which process works in the directory. Who finds it released, finds that its owner has ended, or is told to break it,
creates the next number; of several who try one succeeds. Whether an owner has ended is known on its own machine only.
"""

import contextlib
import datetime
import json
import os
import socket
from pathlib import Path
from typing import Any

import filelock
import psutil

from ribray import storage

LOCK_NAME = ".lock"
LOOK_SECONDS = 0.5  # how long the system's lock is tried for: who only looks whether it is held has it for a moment
SAME_START_SECONDS = 2.0
"""A process that started at another time than the owner only has its number; the system's clock may be corrected."""


class TakenError(Exception):
    """Another process holds the lock; its text says which one, where that is known."""


class StoreLock:
    """A lock on an object store; see the module's description."""

    def __init__(self, directory: Path, break_lock: bool = False) -> None:
        self._row = directory / LOCK_NAME
        self._owner = {
            "place": _place(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
        }
        self._number = self._take(break_lock)

    def is_lost(self) -> bool:
        """Whether the lock was broken, and another process may hold it by now."""
        return _newest(self._row) != (self._number, self._owner)

    def release(self) -> None:
        if not self.is_lost():
            storage.write_json(self._entry(self._number), {"owner": None})

    def _entry(self, number: int) -> Path:
        return self._row / f"{number:06d}.json"

    def _take(self, break_lock: bool) -> int:
        while True:
            newest, owner = _newest(self._row)
            if owner is not None and not break_lock and not _has_ended(owner):
                raise TakenError(_told(owner))
            break_lock = False  # not that of another process that is quicker now
            number = newest + 1
            try:
                storage.create_bytes(self._entry(number), json.dumps({"owner": self._owner}).encode())
            except FileExistsError:  # another process was quicker
                continue
            if _newest(self._row)[0] > number:  # several were
                self._entry(number).unlink(missing_ok=True)
                continue
            for older in _numbers(self._row):
                if older < number:
                    self._entry(older).unlink(missing_ok=True)
            return number


Lock = filelock.BaseFileLock | StoreLock  # a directory held by this process; ``release()`` lets go


def take(directory: Path, break_lock: bool = False) -> Lock:
    """Take hold of a directory, local (then it exists) or on an object store; only there a lock can be broken."""
    if not storage.is_local(directory):
        return StoreLock(directory, break_lock)
    lock = filelock.FileLock(directory / LOCK_NAME, timeout=LOOK_SECONDS)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise TakenError from None
    return lock


def is_taken(directory: Path) -> bool:
    """Whether some process holds a directory, as far as can be known from here."""
    if not storage.is_local(directory):
        _, owner = _newest(directory / LOCK_NAME)
        return owner is not None and not _has_ended(owner)
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


def _numbers(row: Path) -> list[int]:
    return sorted(int(name) for name in storage.list_ids(row, ".json") if name.isdigit())


def _newest(row: Path) -> tuple[int, dict[str, Any] | None]:
    """Return the number that counts, 0 where there is none, and its owner, None once released."""
    while numbers := _numbers(row):
        with contextlib.suppress(FileNotFoundError):  # it was overtaken meanwhile: look at the row again
            content = storage.read_object(row / f"{numbers[-1]:06d}.json")
            return numbers[-1], content.get("owner")
    return 0, None


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether the owner is a process that this one would see, and does not."""
    if owner.get("place") != _place():
        return False
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) > SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True


def _told(owner: dict[str, Any]) -> str:
    host = str(owner.get("place")).partition(" ")[0]
    return f"process {owner.get('pid')} on {host}" + (f" since {owner['since']}" if "since" in owner else "")


def _place() -> str:
    """Return what tells apart places whose processes do not see each other: machines, and containers on one."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
