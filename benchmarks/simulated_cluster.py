"""A Ray cluster that is not there, for the pool of `ribray.cluster.actors`: its calls end on a clock of its own.

The pool asks Ray for little: to put, to wait, to get, for the nodes, and for the actors of a crew.
`SimulatedCluster.replacing` puts a simulation in the place of these, and of the clock. Nothing sleeps: a wait moves the
clock to where the next call ends. Workers are real ones, in the pool's own `Shell`; how long they take is made up.
"""

import contextlib
import functools
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import ray

from ribray.cluster import actors
from ribray.cluster.pool import PoolPlan, Shell

PLACES_OF_A_NODE = 8


@dataclass(frozen=True)
class RayCosts:
    """Seconds that Ray itself takes of the driver's thread."""

    call: float
    """To send a call."""
    get: float
    """To take a result."""
    look: float
    """To look for ended calls, ..."""
    look_at_one: float
    """... and for each that is looked at."""


@dataclass(eq=False, slots=True)
class Call:
    """What Ray would give a reference to."""

    actor: "Actor"
    work: Callable[[], Any]
    result: Any = None
    is_over: bool = False


class Actor:
    """Does its calls one after the other, until it is lost."""

    def __init__(self, cluster: "SimulatedCluster", place: int):
        self.node = f"node {place // PLACES_OF_A_NODE}"
        self.free = cluster.now
        self.calls: deque[Call] = deque()
        self.is_lost = False
        self._cluster = cluster
        self.start = SimpleNamespace(remote=self._start)
        self.process = SimpleNamespace(remote=self._process)

    def _start(self, worker_class: Callable[..., Any], arguments: Mapping[str, Any], threads: int) -> Call:
        def work() -> str:
            self._shell = Shell(worker_class, arguments)
            return self.node

        return self._cluster.send(self, self._cluster.start_seconds, work)

    def _process(self, chunk: list[str], upcoming: list[str]) -> Call:
        seconds = sum(map(self._cluster.seconds, chunk))
        return self._cluster.send(self, seconds, functools.partial(self._work, chunk, upcoming))

    def _work(self, chunk: list[str], upcoming: list[str]) -> Any:
        if not self._cluster.killers.isdisjoint(chunk):
            self._cluster.lose(self)
            return None
        return self._shell.process(chunk, upcoming)


class SimulatedCluster:
    """The cluster, and its clock.

    Attributes:
        now: seconds on the clock.
        driver_seconds: processor time that the pool's driver has taken, without what the simulation took.
        looked_at: calls that the driver asked about, each time it did.
    """

    exceptions = ray.exceptions

    def __init__(
        self,
        seconds: Callable[[str], float],
        start_seconds: float = 10.0,
        losses: Iterable[tuple[float, int]] = (),
        killers: Collection[str] = (),
        costs: RayCosts | None = None,
    ):
        """Prepare a cluster with room for any number of workers.

        Args:
            seconds: what an item takes.
            start_seconds: what a worker's start takes.
            losses: when a worker is lost, and in which place.
            killers: items of which each one takes its worker with it.
            costs: of Ray; where given, they and the driver's own time count on the clock, else both take no time.
        """
        self.seconds, self.start_seconds, self.killers = seconds, start_seconds, frozenset(killers)
        self.now = self.driver_seconds = 0.0
        self.looked_at = 0
        self._costs, self._reading = costs, _seconds_of_a_reading()
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Call | int]] = [(at, next(self._numbers), place) for at, place in losses]
        heapq.heapify(self._due)
        self._over: dict[Call, None] = {}  # calls that have ended, and were not taken yet
        self._actors: dict[int, Actor] = {}
        self._left = 0.0

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Stand in for Ray and the clock for the length of a ``with`` block."""
        with mock.patch.multiple(actors, ray=self, time=self, crew_of=self._crew_of):
            yield

    # --- what the pool calls --------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        return self.now

    def put(self, value: Any) -> Any:
        """Return what stands for a shared object: itself."""
        return value

    def nodes(self) -> list[dict[str, Any]]:
        """Return all nodes; none is ever lost, only workers are."""
        return [{"NodeID": name, "Alive": True} for name in {actor.node for actor in self._actors.values()}]

    @contextlib.contextmanager
    def _crew_of(self, plan: PoolPlan, stop_requested: Callable[[], bool]) -> Iterator["SimulatedCluster"]:
        self._left = time.thread_time()
        yield self
        self._enter()

    def actor(self, place: int) -> Actor:
        """Return a new worker's process."""
        self._actors[place] = Actor(self, place)
        return self._actors[place]

    def dismiss(self, place: int) -> None:
        """End a worker's process."""
        actor = self._actors.pop(place)
        self._end(actor)
        for call in [call for call in self._over if call.actor is actor]:
            del self._over[call]

    def send(self, actor: Actor, seconds: float, work: Callable[[], Any]) -> Call:
        """Send a call, which ends so long after those before it."""
        self._enter(self._costs.call if self._costs else 0.0)
        call = Call(actor, work)
        actor.calls.append(call)
        if actor.is_lost:
            self.lose(actor)
        actor.free = max(actor.free, self.now) + seconds
        heapq.heappush(self._due, (actor.free, next(self._numbers), call))
        self._left = time.thread_time()
        return call

    def wait(self, references: list[Call], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Call], None]:
        """Return calls that have ended, once one has or the time is over."""
        self._enter(self._costs.look + self._costs.look_at_one * len(references) if self._costs else 0.0)
        self.looked_at += len(references)
        wanted, until = set(references), self.now + timeout
        self._settle()
        while not (ready := [call for call in self._over if call in wanted]) and self.now < until:
            self.now = min(until, self._due[0][0]) if self._due else until
            self._settle()
        self._left = time.thread_time()
        return ready[:num_returns], None

    def get(self, reference: Call) -> Any:
        self._enter(self._costs.get if self._costs else 0.0)
        del self._over[reference]
        self._left = time.thread_time()
        if isinstance(reference.result, Exception):
            raise reference.result
        return reference.result

    # --- what happens meanwhile -----------------------------------------------------------------------------------

    def lose(self, actor: Actor) -> None:
        """End a worker's process, and with it all of its calls, by an error."""
        for call in self._end(actor):
            call.result, call.is_over = ray.exceptions.RayActorError(), True
            self._over[call] = None

    def _end(self, actor: Actor) -> list[Call]:
        actor.is_lost = True
        calls = list(actor.calls)
        actor.calls.clear()
        return calls

    def _settle(self) -> None:
        """Let happen what is due by now."""
        while self._due and self._due[0][0] <= self.now:
            _, _, event = heapq.heappop(self._due)
            if isinstance(event, int):
                if event in self._actors:
                    self.lose(self._actors[event])
            elif not event.is_over and not event.actor.is_lost:
                result = event.work()
                if not event.actor.is_lost:  # by this very call
                    event.actor.calls.popleft()
                    event.result, event.is_over = result, True
                    self._over[event] = None

    def _enter(self, charge: float = 0.0) -> None:
        """Count the time since the driver left the simulation."""
        spent = max(0.0, time.thread_time() - self._left - self._reading)
        self.driver_seconds += spent
        if self._costs:
            self.now += spent + charge


def _seconds_of_a_reading(times: int = 1000) -> float:
    """Return what it takes to read the thread's processor time."""
    began = time.thread_time()
    for _ in range(times):
        time.thread_time()
    return (time.thread_time() - began) / times
