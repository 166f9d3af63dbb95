"""Workers that meet with faults in the middle of an image, and what must hold however a run was disturbed.

Workers of a pool get this module by value, as they have no tests.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from torch.optim.optimizer import register_optimizer_step_post_hook

from ribray import storage
from ribray.methods.worker import RefineWorker
from ribray.runs.run import Run

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

IMAGES = 12
EVER = 10**6
"""So many times: whenever the image is tried."""
ANY = "any"
"""In place of an id: whichever images come first."""

Files = dict[Path, tuple[int, bytes]]
"""Time of the last change, in nanoseconds, and content of files."""


# --- what must hold ----------------------------------------------------------------------------------------------


def refined(out: Path) -> dict[str, Path]:
    """The run's map files by image id."""
    return {file.stem: file for file in (out / "maps").rglob("*.npz")}


def finished(out: Path) -> Files:
    """What a run has finished, to see later that nobody touched it."""
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in refined(out).values()}


def require_same(out: Path, undisturbed: Path, earlier: Files, failed: Collection[str] = ()) -> None:
    """Every image is done or in failures.jsonl, with the bytes of an undisturbed run; what was done is untouched."""
    expected = {id: file.read_bytes() for id, file in refined(undisturbed).items() if id not in failed}
    assert {id: file.read_bytes() for id, file in refined(out).items()} == expected
    assert [failure.id for failure in Run.read(out).failures()] == sorted(failed)
    now = finished(out)
    assert {file: now[file] for file in earlier} == earlier


# --- workers -----------------------------------------------------------------------------------------------------


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def left() -> None:
    os._exit(3)


def raised() -> None:
    raise ZeroDivisionError("division by zero")


def hung() -> None:
    time.sleep(EVER)


@contextlib.contextmanager
def between_steps(strike: Callable[[], None]) -> Iterator[None]:
    """Let something happen after the first step of an image."""
    hook = register_optimizer_step_post_hook(lambda *_: strike())
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def half_written(strike: Callable[[], None]) -> Iterator[None]:
    """Let something happen when half of a file is written."""
    fsync = os.fsync

    def cut(file: int) -> None:
        os.ftruncate(file, os.fstat(file).st_size // 2)
        strike()

    os.fsync = cut
    try:
        yield
    finally:
        os.fsync = fsync


class Faulty(RefineWorker):
    """Refines as the product does, and meets with faults."""

    faults: Mapping[str, tuple[Callable[[], None], int]]
    """What happens at an image, and how many times."""
    marks: Path
    """Folder where every fault leaves a mark, for all processes to know."""
    during = staticmethod(between_steps)
    """When it happens."""

    def process(self, item: str) -> dict[str, Any]:
        name = item if item in self.faults else ANY
        fault, times = self.faults.get(name, (raised, 0))
        count = len(list(self.marks.glob(f"{name}.*")))
        if count >= times:
            return super().process(item)

        def strike() -> None:
            with contextlib.suppress(FileExistsError):  # another worker was quicker
                with (self.marks / f"{name}.{count}").open("x") as mark:
                    mark.write(ray.get_runtime_context().get_node_id())
                fault()

        with self.during(strike):
            return super().process(item)


def faulty(marks: Path, faults: Mapping[str, tuple[Callable[[], None], int]], during: Any = between_steps) -> type:
    """A worker that meets with these faults."""
    marks.mkdir(exist_ok=True)
    return type("FaultyNow", (Faulty,), {"marks": marks, "faults": faults, "during": staticmethod(during)})


class Unwritable(RefineWorker):
    """Refines two images; then nothing can be written any more."""

    done = 0

    def process(self, item: str) -> dict[str, Any]:
        if self.done == 2:
            self.spoil()
        self.done += 1
        return super().process(item)

    def spoil(self) -> None:
        raise NotImplementedError


class FullDisk(Unwritable):
    """Half of a file still fits."""

    def spoil(self) -> None:
        def no_space() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.spoilt = half_written(no_space)  # kept, as what a generator does in the end it does when it is dropped
        self.spoilt.__enter__()


class ReadOnlyDisk(Unwritable):
    def spoil(self) -> None:
        def refuse(file: object, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
            return open(file, mode, *arguments, **options)

        storage.open = refuse


class LimitedFiles(Unwritable):
    """The operating system's own limit on the size of files, at less than a map takes."""

    def spoil(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
