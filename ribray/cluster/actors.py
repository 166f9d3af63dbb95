"""A pool of Ray actors, which does the items of a `ribray.cluster.pool.Pool` whatever happens to the processes:

* a bounded number of calls is in flight per worker, so that a worker never waits for the driver;
* an item costs the driver the same time with any number of workers, but for what `ray.wait` takes;
* a worker that dies, or takes longer than its time, is replaced, and counts a try against the item it was at, found
  out by running suspects alone; a lost node or a kill by Ray's memory monitor counts against none.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from ribray.cluster.pool import Item, PoolPlan, PoolResult, WorkList, storage_error
from ribray.cluster.warm import LOST, Crew, crew_of
from ribray.errors import RibrayError

CALLS_IN_FLIGHT = 2  # per worker: one that runs and one that waits behind it
POLL_SECONDS = 0.5  # how often the driver looks up: for a stop request, for progress, for workers that hang
UNCOUNTED_LOSSES = 20  # how often an item, or a start, may fail by the cluster's own troubles before it is given up

logger = logging.getLogger(__name__)


@dataclass
class _Slot:
    index: int
    actor: Any = None
    starting: "ray.ObjectRef[str] | None" = None
    node: str | None = None
    calls: "deque[tuple[ray.ObjectRef, list[Item]]]" = field(default_factory=deque)  # in flight, done in this order
    since: float = 0.0  # when the actor came to the first of its calls
    failed_starts: Counter[bool] = field(default_factory=Counter)  # in a row, apart: those by the cluster's fault


class Actors:
    def __init__(self, plan: PoolPlan, worker_class: Callable[..., Any], arguments: Mapping[str, Any], work: WorkList):
        self._plan, self._worker_class, self._arguments, self._work = plan, worker_class, arguments, work
        self._losses: Counter[Item] = Counter()
        self._suspects: set[Item] = set()
        self._starting: dict[ray.ObjectRef, _Slot] = {}
        self._at_work: dict[ray.ObjectRef, _Slot] = {}  # by the first of a worker's calls
        self._reserved: dict[int, list[Item]] = {}  # by worker, the chunk it gets next, announced to it for prefetching
        self._with_room: deque[_Slot] = deque()  # every worker that may take a call, and maybe some that may not

    def run(self, stop_requested: Callable[[], bool]) -> PoolResult:
        asked = looked = time.monotonic()
        stopped = False
        self._began: float | None = None
        with crew_of(self._plan, stop_requested) as crew:
            if crew is None:
                return PoolResult(0, 0, True)
            self._crew: Crew = crew
            self._shared = ray.put(self._arguments)
            self._slots = [_Slot(index) for index in range(self._plan.workers)]
            for slot in self._slots:
                self._start(slot)
            while True:
                stopped = stopped or stop_requested()
                while not stopped and self._with_room and self._fill(self._with_room[0]):
                    self._with_room.popleft()
                awaited = self._at_work
                if self._starting and not stopped and self._work.has_work():
                    awaited = self._at_work | self._starting
                if not awaited:
                    break
                for reference in _ended(list(awaited)):
                    if reference in self._starting:
                        self._collect_start(self._starting.pop(reference))
                    else:
                        self._collect_call(self._at_work.pop(reference), stopped)
                if time.monotonic() - looked >= POLL_SECONDS:
                    looked = time.monotonic()
                    self._work.progress.advance(0, 0)
                    for slot in self._slots:
                        self._replace_overdue(slot, stopped)
            ended = time.monotonic()
        began = self._began or ended  # where there was nothing to do
        return PoolResult(self._work.done, self._work.failed, stopped, ended - began, began - asked)

    # --- handing out --------------------------------------------------------------------------------------------

    def _start(self, slot: _Slot) -> None:
        slot.node = None
        slot.actor = self._crew.actor(slot.index)
        slot.starting = slot.actor.start.remote(self._worker_class, self._shared, self._plan.threads_per_worker)
        self._starting[slot.starting] = slot

    def _fill(self, slot: _Slot) -> bool:
        """Give a worker what it has room for; False where nothing is left, for any."""
        while slot.starting is None and len(slot.calls) < CALLS_IN_FLIGHT:
            chunk = self._reserved.pop(slot.index, None) or self._work.next_chunk()
            if chunk is None and self._reserved:  # at the end nobody idles: what another one was only told to expect
                chunk = self._reserved.popitem()[1]
            if chunk is None:
                return False
            if slot.calls and not self._suspects.isdisjoint([*chunk, *slot.calls[0][1]]):
                self._reserved[slot.index] = chunk  # a suspect runs alone
                break
            upcoming: list[Item] = []
            # While a suspect runs, nothing is loaded for others.
            if self._suspects.isdisjoint(chunk) and (following := self._work.next_chunk()) is not None:
                self._reserved[slot.index] = following
                if self._suspects.isdisjoint(following):
                    upcoming = following
            reference = slot.actor.process.remote(chunk, upcoming)
            if not slot.calls:
                slot.since = time.monotonic()
                self._at_work[reference] = slot
            slot.calls.append((reference, chunk))
        return True

    # --- taking back --------------------------------------------------------------------------------------------

    def _collect_start(self, slot: _Slot) -> None:
        try:
            slot.node = ray.get(slot.starting)
            slot.starting = None
            slot.failed_starts.clear()
            self._with_room.append(slot)
            self._began = self._began or time.monotonic()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RibrayError):
                raise error.cause from None
            raise RibrayError(f"A worker of pool '{self._plan.name}' cannot start: {error.cause!r}") from error
        except LOST as error:
            excused = _is_clusters_fault(error, slot.node)
            slot.failed_starts[excused] += 1
            count = slot.failed_starts[excused]
            if count >= (UNCOUNTED_LOSSES if excused else self._plan.tries):
                raise RibrayError(
                    f"A worker of pool '{self._plan.name}' died {count} times while starting: {_brief(error)}"
                ) from None
            self._dismiss(slot)
            self._start(slot)

    def _collect_call(self, slot: _Slot, stopped: bool) -> None:
        reference, _ = slot.calls[0]
        try:
            outcomes = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):
                raise storage_error(error.cause) from None
            raise RibrayError(f"A worker of pool '{self._plan.name}' failed: {error.cause!r}") from error
        except LOST as error:
            counter, limit = self._work.tries, self._plan.tries
            if _is_clusters_fault(error, slot.node):
                counter, limit = self._losses, UNCOUNTED_LOSSES
            self._replace(slot, f"its worker died {{}} times: {_brief(error)}", counter, limit, stopped)
            return
        slot.calls.popleft()
        slot.since = time.monotonic()
        for outcome in outcomes:
            self._work.take(outcome)
        if stopped:
            slot.calls.clear()
            self._dismiss(slot)
            return
        if slot.calls:
            self._at_work[slot.calls[0][0]] = slot
        self._with_room.append(slot)

    def _dismiss(self, slot: _Slot) -> None:
        self._crew.dismiss(slot.index)
        slot.actor = slot.starting = None

    # --- what goes wrong with a worker --------------------------------------------------------------------------

    def _replace_overdue(self, slot: _Slot, stopped: bool) -> None:
        """Replace a worker that has been at a call for longer than the items of it may take."""
        plan = self._plan
        if plan.seconds_per_item is None or not slot.calls:
            return
        reference, chunk = slot.calls[0]
        if time.monotonic() - slot.since <= plan.seconds_per_item * len(chunk):
            return
        if ray.wait([reference], timeout=0)[0]:  # it was this process that was slow to look
            return
        what, limit = chunk[0] if len(chunk) == 1 else f"one of {len(chunk)} items", f"{plan.seconds_per_item:g} s"
        logger.warning("%s: %s took longer than %s; its worker is replaced", plan.name, what, limit)
        sentence = f"it took longer than {limit} (cluster.seconds_per_image), {{}} times"
        self._replace(slot, sentence, self._work.tries, plan.tries, stopped)

    def _replace(self, slot: _Slot, error: str, counter: Counter[Item], limit: int, stopped: bool) -> None:
        """Put back what a worker had, count the loss against the item that lost it, and start another worker.

        The reply of a call may be lost with the process, and what a worker was told to expect may be what killed it.
        So with several items in flight nobody knows which one did it: they are done again one at a time, and only
        then is a loss held against an item. ``error`` is what one is given up with that has ``limit`` losses in
        ``counter``, which "{}" in it stands for.
        """
        self._at_work.pop(slot.calls[0][0], None)
        in_flight = [item for _, chunk in slot.calls for item in chunk]
        slot.calls.clear()
        self._dismiss(slot)
        if (reserved := self._reserved.pop(slot.index, None)) is not None:
            self._work.put_back(reserved)
        if len(in_flight) == 1:
            counter[in_flight[0]] += 1
        self._suspects.update(in_flight)
        for item in reversed(in_flight):
            if counter[item] >= limit:
                self._work.give_up(item, error.replace("{}", str(counter[item]), 1))
            else:
                self._work.put_back([item])
        if not stopped:
            self._start(slot)


def _ended(references: "list[ray.ObjectRef]") -> "list[ray.ObjectRef]":
    """Wait for calls; return all that have ended: Ray takes longer to look the more there are."""
    ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return ready or ray.wait(references, num_returns=1, timeout=POLL_SECONDS)[0]


def _is_clusters_fault(error: Exception, node: str | None) -> bool:
    """Whether a worker was lost with its node or to Ray's memory monitor, not to the item."""
    kinds = (ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
    signs = ("NODE_OUT_OF_MEMORY", "running low on memory", "node has died")
    if isinstance(error, kinds) or any(sign in str(error) for sign in signs):
        return True
    return node is not None and not any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes())


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "exit" in line.lower() or "died" in line.lower()]
    return (telling or lines or [type(error).__name__])[-1]
