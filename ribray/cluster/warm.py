"""Processes that a stage leaves to the next one: what imports torch for seconds does so once a command.

A `Crew` is a placement group with an actor in each of its places. While a command is connected (`keeping`), a crew that
is done is kept, with its memory freed, for the next pool, or training by one worker, that needs places of the same
shape. Kept crews never stand in the way: they end as soon as this command waits for anything else on the cluster, and
with the command at the latest. A crew with which anything went wrong is never kept.
"""

import contextlib
import gc
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ribray.cluster.pool import Item, Outcome, PoolPlan, Shell
from ribray.errors import RibrayError

if TYPE_CHECKING:
    from ribray.cluster.training import TrainingPlan, TrainingTask

WARN_SECONDS = 30.0  # how often a pool that waits for resources says so
POLL_SECONDS = 0.5
RESTARTS = 2  # how often a training whose worker died, or failed, starts again from its last checkpoint
ANSWER_SECONDS = 30.0  # how long a process that had nothing to do may take to answer before another takes its place
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.ActorUnschedulableError,
)
"""What Ray raises for a call whose process, node or result is gone."""

logger = logging.getLogger(__name__)


class _Actor:
    """A process that does the items of a worker, or trains, and after that the next worker's."""

    def start(self, worker_class: Callable[..., Any], arguments: Mapping[str, Any], threads: int) -> str:
        _use_threads(threads)
        self._shell: Shell | None = Shell(worker_class, arguments)
        return ray.get_runtime_context().get_node_id()

    def process(self, chunk: list[Item], upcoming: list[Item]) -> list[Outcome]:
        assert self._shell is not None
        return self._shell.process(chunk, upcoming)

    def train(self, task: "TrainingTask", plan: "TrainingPlan") -> None:
        from ribray.cluster.training import alone, train_as_worker  # which imports torch

        _use_threads(plan.threads_per_worker)
        train_as_worker(task, plan, alone(plan))

    def answer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def rest(self) -> None:
        """Forget the worker: free its memory, and set back what it has set for the whole process."""
        self._shell = None
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = False
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def _use_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is imported from here on
    if "torch" in sys.modules:  # which takes seconds to import: left to the workers that need it
        sys.modules["torch"].set_num_threads(threads)


class Crew:
    """Places on the cluster, and the actors in them."""

    is_in_the_way = True

    def __init__(self, plan: PoolPlan, group: PlacementGroup):
        self._plan, self._group = plan, group
        self._kind = ray.remote(_Actor)  # once: Ray sends each such class to the cluster
        self._actors: list[Any] = [None] * plan.workers

    def serves(self, plan: PoolPlan) -> bool:
        return len(self._actors) >= plan.workers and self._plan.shape == plan.shape

    def actor(self, place: int) -> Any:
        """Return the actor in a place; it is started if there is none."""
        if self._actors[place] is None:
            options = {"num_cpus": self._plan.cpus_per_worker, "num_gpus": self._plan.gpus_per_worker}
            where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=place)
            kind = self._kind.options(**options, max_restarts=0, max_task_retries=0, scheduling_strategy=where)
            self._actors[place] = kind.remote()
        return self._actors[place]

    def dismiss(self, place: int) -> None:
        if (actor := self._actors[place]) is not None:
            ray.kill(actor, no_restart=True)
            self._actors[place] = None

    def rest(self, wait_seconds: float = 0.0) -> None:
        """Have the actors forget what they did; those that do not answer in time, where it is waited, are dismissed."""
        answers = {actor.rest.remote(): place for place, actor in enumerate(self._actors) if actor is not None}
        if wait_seconds and answers:
            ray.wait(list(answers), num_returns=len(answers), timeout=wait_seconds)
            for answer, place in answers.items():
                try:
                    ray.get(answer, timeout=0)
                except (ray.exceptions.GetTimeoutError, *LOST):
                    self.dismiss(place)

    def end(self) -> None:
        for place in range(len(self._actors)):
            self.dismiss(place)
        remove_placement_group(self._group)


@contextlib.contextmanager
def crew_of(plan: PoolPlan, stop_requested: Callable[[], bool]) -> Iterator[Crew | None]:
    """Hold a place for each worker of a plan; None where a stop request came before the cluster had them."""
    if (crew := take(Crew, plan)) is not None:
        crew.rest(ANSWER_SECONDS)
    elif (crew := _form(plan, stop_requested)) is None:
        yield None
        return
    is_whole = False
    try:
        yield crew
        is_whole = not stop_requested()
    finally:
        if is_whole:
            crew.rest()
            keep(crew)
        else:
            crew.end()


def _form(plan: PoolPlan, stop_requested: Callable[[], bool]) -> Crew | None:
    """Reserve a bundle per worker, in a group of its own; waits for a cluster that is busy or still growing."""
    bundle = {"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})
    group = placement_group([bundle] * plan.workers, strategy="PACK", name=f"ribray-{plan.name}-{uuid.uuid4().hex[:8]}")
    ready, told, patience = group.ready(), time.monotonic(), 0.2
    try:
        while not (is_ready := bool(ray.wait([ready], timeout=patience)[0])) and not stop_requested():
            clear_the_way()
            patience = 1.0
            if time.monotonic() - told > WARN_SECONDS:
                told = time.monotonic()
                logger.warning("%s: waiting for %d x %s on the cluster", plan.name, plan.workers, bundle)
    except BaseException:
        remove_placement_group(group)
        raise
    if is_ready:
        return Crew(plan, group)
    remove_placement_group(group)
    return None


def prepare(plan: PoolPlan, worker_class: Callable[..., Any]) -> None:
    """Keep the actors of a pool to come, each of which makes a worker meanwhile: one that imports what it will need."""
    if (crew := _form(plan, lambda: False)) is not None:
        for place in range(plan.workers):
            crew.actor(place).start.remote(worker_class, {}, plan.threads_per_worker)
        keep(crew)


def train_in_crew(task: "TrainingTask", plan: "TrainingPlan", stop_requested: Callable[[], bool]) -> bool:
    """Train; return False where a stop request ended it: what was done since the last checkpoint is done again."""
    cpus, gpus, threads = plan.cpus_per_worker, plan.gpus_per_worker, plan.threads_per_worker
    pool = PoolPlan(f"training {plan.folder.name}", 1, cpus, gpus, threads)
    with crew_of(pool, stop_requested) as crew:
        if crew is None:
            return False
        for restarts_left in reversed(range(RESTARTS + 1)):
            training = crew.actor(0).train.remote(task, plan)
            while not ray.wait([training], timeout=POLL_SECONDS)[0]:
                if stop_requested():
                    return False
            try:
                ray.get(training)
                return True
            except (ray.exceptions.RayTaskError, *LOST) as error:
                crew.dismiss(0)
                if restarts_left == 0:
                    raise RibrayError(f"Training worker 0 failed: {last_line(error)}") from error
    return False


def last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


# --- between two stages ------------------------------------------------------------------------------------------

_kept: list[Any] | None = None  # processes without work, such as a crew; None while this process is not to keep any


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    global _kept
    if _kept is not None:
        yield
        return
    _kept = []
    try:
        yield
    finally:
        while _kept:
            _kept.pop().end()
        _kept = None


def keep(processes: Any) -> None:
    """Keep processes for who takes them next; outside of `keeping` they end."""
    if _kept is None:
        processes.end()
    else:
        _kept.append(processes)


def take(kind: type[Any], plan: Any) -> Any:
    """Take processes that serve a plan out of those that are kept; None where there are none."""
    kept = _kept or []
    for processes in kept:
        if type(processes) is kind and processes.serves(plan):
            kept.remove(processes)
            return processes
    return None


def clear_the_way(of_others: bool = False) -> None:
    """End what is kept and stands in the way of this command, or, ``of_others``, of its trials: all there is."""
    kept = _kept or []
    for processes in [processes for processes in kept if of_others or processes.is_in_the_way]:
        kept.remove(processes)
        processes.end()
