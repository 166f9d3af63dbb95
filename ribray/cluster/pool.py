"""Work that falls into independent items, one image or many: by a pool of Ray actors, or in this process.

The caller gives a *worker class*, written without Ray:

    class Worker:
        def __init__(self, **arguments): ...           # load weights, once per process
        def process(self, item: str) -> dict: ...      # do it, write the result to storage, return a small record
        def prefetch(self, item: str) -> None: ...     # optional: begin to load an item that comes later; an
                                                       # exception is that item's, as one in `process` is
        def process_batch(self, items) -> dict: ...    # optional: records by item; what is left out goes to `process`

and gets every item done once:

* an item that raises `ImageError` has failed; other exceptions are tried again, a finite number of times;
* a stop request lets the items in flight finish and starts no more;
* what happens to the processes of a pool loses nothing (see `ribray.cluster.actors`).

Results never travel through the driver: it holds the items still to do, and counters.
"""

import contextlib
import errno
import itertools
import logging
import sys
import time
import traceback
from bdb import BdbQuit
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ribray.cluster.session import Session, environment
from ribray.config import ClusterConfig
from ribray.errors import ImageError, RibrayError, UsageError

if TYPE_CHECKING:
    from ribray.progress import Bar

logger = logging.getLogger(__name__)  # at level DEBUG it also shows the tracebacks of a pool's workers
STORAGE_IS_GONE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # errors that no other image will escape
STORAGE_FALTERS = (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of that place which may pass: the item is tried again, and once its tries are used up they are no better."""

Item = str
Record = Mapping[str, Any]


@dataclass(frozen=True)
class PoolPlan:
    name: str
    workers: int  # actors; 0: this process does the work
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 1
    tries: int = 3
    chunk_size: int = 1  # items of one call; more than one only where items take milliseconds
    seconds_per_item: float | None = None  # a worker that is longer at one is taken to hang; None: none is

    @property
    def shape(self) -> tuple[float, float, int]:  # what a worker's process must have been started with
        return self.cpus_per_worker, self.gpus_per_worker, self.threads_per_worker

    @classmethod
    def of(
        cls, name: str, config: ClusterConfig, session: Session, chunk_size: int = 1, gpu: bool = True
    ) -> "PoolPlan":
        gpus = session.gpus_per_worker(config) if gpu else 0.0
        workers = session.pool_size(config, gpu)
        for what, needed, there in ("CPU", config.cpus_per_worker, session.cpus), ("GPU", gpus, session.gpus):
            all_of_them = needed * max(1, workers)
            if session.is_local and all_of_them > there + 1e-9:
                raise UsageError(
                    f"cluster.workers={workers} with {needed:g} {what} each need {all_of_them:g} {what}s, this machine "
                    f"has {there:g}."
                )
        cpus, threads, seconds = config.cpus_per_worker, config.threads_per_worker, config.seconds_per_image
        return cls(name, workers, cpus, gpus, threads, config.tries, chunk_size, seconds)


@dataclass(frozen=True)
class Outcome:
    item: Item
    record: Record | None = None
    error: str | None = None
    final: bool = False  # whether trying again is pointless
    of_storage: bool = False  # whether the error is of the place that is written to
    traceback: str | None = None  # of an exception that nobody expects


@dataclass(frozen=True)
class PoolResult:
    done: int
    failed: int
    stopped: bool  # whether a stop request ended it early
    seconds: float = 0.0  # from the first worker that was ready to the end
    start_seconds: float = 0.0  # until then


class Shell:
    """Wraps a worker; everything that can go wrong with an item comes back as an `Outcome`."""

    def __init__(self, worker_class: Callable[..., Any], arguments: Mapping[str, Any]):
        self._worker = worker_class(**arguments)
        self._unloaded: dict[Item, Exception] = {}  # what came of items that could not be loaded ahead

    def process(self, chunk: list[Item], upcoming: list[Item]) -> list[Outcome]:
        """Do the items of a chunk in order, while what comes next is being loaded."""
        for item in (chunk[0], *upcoming):  # what is needed now is loaded first
            self._prefetch(item)
        records = self._process_batch([item for item in chunk if item not in self._unloaded])
        return [Outcome(item, record=records[item]) if item in records else self._process_item(item) for item in chunk]

    def _prefetch(self, item: Item) -> None:
        self._unloaded.pop(item, None)
        try:
            if hasattr(self._worker, "prefetch"):
                self._worker.prefetch(item)
        except Exception as error:  # noqa: BLE001  (judged in `_process_item`)
            self._unloaded[item] = error

    def _process_batch(self, chunk: list[Item]) -> Mapping[Item, Record]:
        """Do what the worker can do of a chunk at once; what fails that way is tried alone, and judged alone."""
        if len(chunk) < 2 or not hasattr(self._worker, "process_batch"):
            return {}
        try:
            return self._worker.process_batch(chunk)
        except BdbQuit:
            raise
        except Exception:
            logger.exception("a batch of %d items failed; each is done alone", len(chunk))
            return {}

    def _process_item(self, item: Item) -> Outcome:
        try:
            if (error := self._unloaded.pop(item, None)) is not None:
                raise error
            return Outcome(item, record=self._worker.process(item))
        except ImageError as error:
            return Outcome(item, error=str(error), final=True)
        except BdbQuit:  # the user has left the debugger
            raise
        except Exception as error:
            code = error.errno if isinstance(error, OSError) else None
            if code in STORAGE_IS_GONE:
                raise
            said, falters = f"{type(error).__name__}: {error}", code in STORAGE_FALTERS
            return Outcome(item, error=said, of_storage=falters, traceback=traceback.format_exc())


class WorkList:
    """The items still to do, taken lazily and in order, and what has become of the others."""

    def __init__(
        self,
        plan: PoolPlan,
        items: Iterable[Item],
        on_done: Callable[[Item, Record], None],
        on_failed: Callable[[Item, str, int, str | None], None],
        progress: "Bar",
    ):
        source = iter(items)
        self._fresh = iter(lambda: list(itertools.islice(source, plan.chunk_size)), [])
        self._waiting: deque[list[Item]] = deque()
        self._plan, self._on_done, self._on_failed, self.progress = plan, on_done, on_failed, progress
        self.tries: Counter[Item] = Counter()
        self.done = self.failed = 0

    def has_work(self) -> bool:
        if not self._waiting and (chunk := next(self._fresh, None)) is not None:
            self._waiting.append(chunk)
        return bool(self._waiting)

    def next_chunk(self) -> list[Item] | None:
        return self._waiting.popleft() if self.has_work() else None

    def put_back(self, chunk: list[Item]) -> None:
        self._waiting.appendleft(chunk)

    def take(self, outcome: Outcome) -> None:
        """Count an item as done, or as failed once its tries are used up."""
        if outcome.error is None:
            self.done += 1
            self._on_done(outcome.item, outcome.record or {})
            self.progress.advance(1, 0)
            return
        self.tries[outcome.item] += 1
        if not outcome.final and self.tries[outcome.item] < self._plan.tries:
            self._waiting.append([outcome.item])
        elif outcome.of_storage:
            raise storage_error(outcome.error)
        else:
            self.give_up(outcome.item, outcome.error, outcome.traceback)

    def give_up(self, item: Item, error: str, trace: str | None = None) -> None:
        self.failed += 1
        if trace is not None and (not self._plan.workers or logger.isEnabledFor(logging.DEBUG)):
            logger.warning("%s: %s\n%s", self._plan.name, item, trace.rstrip())
        self._on_failed(item, error, max(1, self.tries[item]), trace)
        self.progress.advance(0, 1)


def storage_error(error: object) -> RibrayError:
    return RibrayError(f"Nothing can be written any more ({error}); mend it and start again.")


class Pool:
    def __init__(self, plan: PoolPlan, worker_class: Callable[..., Any], arguments: Mapping[str, Any]):
        self._plan, self._worker_class, self._arguments = plan, worker_class, dict(arguments)

    def run(
        self,
        items: Iterable[Item],
        on_done: Callable[[Item, Record], None],
        on_failed: Callable[[Item, str, int, str | None], None],
        progress: "Bar",
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> PoolResult:
        """Do every item, taken lazily and in order; once a stop is requested, none is started any more.

        ``on_done`` is called in the driver with an item and its worker's record; ``on_failed`` with one that was given
        up, the error, its number of tries, and the traceback of an exception that nobody expects.
        """
        work = WorkList(self._plan, items, on_done, on_failed, progress)
        if not self._plan.workers:
            return self._run_here(work, stop_requested)
        from ribray.cluster.actors import Actors

        return Actors(self._plan, self._worker_class, self._arguments, work).run(stop_requested)

    def _run_here(self, work: WorkList, stop_requested: Callable[[], bool]) -> PoolResult:
        with as_worker(self._plan.threads_per_worker):
            if not work.has_work():
                return PoolResult(0, 0, stop_requested())
            asked = time.monotonic()
            with told(f"A worker of pool '{self._plan.name}' cannot start"):
                shell = Shell(self._worker_class, self._arguments)
            began = time.monotonic()
            chunk = work.next_chunk()
            while not (stopped := stop_requested()) and chunk is not None:
                upcoming = work.next_chunk()
                try:
                    outcomes = shell.process(chunk, upcoming or [])
                except OSError as error:
                    raise storage_error(error) from None
                for outcome in outcomes:
                    work.take(outcome)
                chunk = upcoming or work.next_chunk()  # the last one may have to be tried again
            return PoolResult(work.done, work.failed, stopped, time.monotonic() - began, began - asked)


# --- in this process ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Show the traceback of an exception that nobody expects, and raise a sentence in its place."""
    try:
        yield
    except (RibrayError, BdbQuit):
        raise
    except Exception as error:
        logger.warning("%s", traceback.format_exc().rstrip())
        raise RibrayError(f"{what}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def as_worker(threads: int) -> Iterator[None]:
    """Compute with so many threads, as a worker does, for the length of a ``with`` block."""
    with contextlib.ExitStack() as restored:
        restored.enter_context(environment("OMP_NUM_THREADS", str(threads)))  # for what is imported from here on
        if (torch := sys.modules.get("torch")) is not None:  # what workers set for their whole process is set back
            restored.callback(torch.set_num_threads, torch.get_num_threads())
            is_deterministic = torch.are_deterministic_algorithms_enabled()
            warns = torch.is_deterministic_algorithms_warn_only_enabled()
            restored.callback(torch.use_deterministic_algorithms, is_deterministic, warn_only=warns)
            restored.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            torch.set_num_threads(threads)
        yield
