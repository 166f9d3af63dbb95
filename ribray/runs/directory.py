"""The directory of a run or of a sweep: what marks it, who may write in it, and how a process holds it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ribray import storage
from ribray.errors import HeldError, RibrayError, UsageError
from ribray.runs import lock

EXPERIMENT_FILE = "experiment.yaml"
LEDGER_FILE, SWEEP_FILE = "sweep.json", "sweep.yaml"  # of a sweep: what came of its trials, and what it is
TRIALS_FOLDER = "trials"  # of a sweep; each folder in it is the run of a trial
TRIAL_FILE = "trial.json"  # in the directory of a sweep's trial: what came of it
MARKS = {"run": EXPERIMENT_FILE, "sweep": LEDGER_FILE}  # by which file a directory is known


def hold(location: Path, kind: str, break_lock: bool = False) -> lock.Lock:
    """Take hold of a directory, one of `MARKS`, making it if needed; see `ribray.runs.lock` for ``break_lock``."""
    with reached(location):
        require_free(location, kind)
        storage.require_writable(location)
        try:
            return lock.take(location, break_lock)
        except lock.TakenError as error:
            owner = f" ({error})" if str(error) else ""
            hint = "; --break-lock takes the place of one that no longer exists" if owner else ""
            raise HeldError(
                f"Another {kind} is working in {location}{owner}; wait for it, or stop it first{hint}."
            ) from None


def require_free(location: Path, kind: str) -> None:
    """Check that a directory is there for a run (or a sweep), or may become one's; nothing is written."""
    if storage.is_local(location):
        there = next(place for place in (location, *location.parents) if place.exists())
        if there == location and not there.is_dir():
            raise UsageError(f"{location} is a file; --out must name a directory.")
        if not there.is_dir():
            raise UsageError(f"Cannot write in {location}: {there} is a file; choose another --out directory.")
    other = next((name for name, mark in MARKS.items() if name != kind and (location / mark).exists()), None)
    if other is not None:
        raise UsageError(f"{location} holds a {other}, not a {kind}; choose another --out.")
    is_ours = any((location / name).exists() for name in (lock.LOCK_NAME, MARKS[kind], TRIAL_FILE))
    if not is_ours and location.is_dir() and any(location.iterdir()):
        raise UsageError(f"{location} holds other files and is no {kind} directory; choose another --out.")


def require_outside(location: Path, allowed: str | None = None) -> None:
    """Check that what is to be written lies in no run or sweep, unless in the ``allowed`` folder of it."""
    for folder in (location, *location.parents):
        kind = next((name for name, mark in MARKS.items() if (folder / mark).is_file()), None)
        if kind is not None:
            if location.relative_to(folder).parts[:1] == (allowed,):
                return
            hint = f", or one in {folder / allowed}" if allowed is not None else ""
            raise UsageError(f"{location} lies in {folder}, which holds a {kind}; choose another --out{hint}.")


@contextlib.contextmanager
def reached(location: Path) -> Iterator[None]:
    """Turn what an object store's client raises in a ``with`` block into a sentence."""
    try:
        yield
    except RibrayError:
        raise
    except Exception as error:
        if storage.is_local(location):
            raise
        raise UsageError(f"{location} cannot be used: {storage.reason(error)}.") from error
