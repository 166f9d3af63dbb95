"""What a pool, or the one worker of a training, does in this process, without Ray (``cluster.workers: 0``)."""

import contextlib
import logging
import sys
import time
import traceback
from bdb import BdbQuit
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ribray.cluster.pool import PoolPlan, PoolResult, Shell, WorkList, storage_error
from ribray.cluster.session import environment
from ribray.errors import RibrayError

logger = logging.getLogger(__name__)


def run_items(
    plan: PoolPlan,
    worker_class: Callable[..., Any],
    arguments: Mapping[str, Any],
    work: WorkList,
    stop_requested: Callable[[], bool],
) -> PoolResult:
    with as_worker(plan.threads_per_worker):
        if not work.has_work():
            return PoolResult(0, 0, stop_requested())
        asked = time.monotonic()
        with told(f"A worker of pool '{plan.name}' cannot start"):
            shell = Shell(worker_class, arguments)
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
        if "torch" in sys.modules:
            _keep_state_of_torch(restored)
            sys.modules["torch"].set_num_threads(threads)
        yield


def _keep_state_of_torch(restored: contextlib.ExitStack) -> None:
    torch = sys.modules["torch"]
    restored.callback(torch.set_num_threads, torch.get_num_threads())
    restored.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    restored.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
