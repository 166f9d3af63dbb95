"""A training by one worker: in a process of the pools, which is there already where a pool ran before."""

from collections.abc import Callable

import ray

from ribray.cluster.pool import PoolPlan
from ribray.cluster.training import TrainingPlan, TrainingTask
from ribray.cluster.warm import LOST, crew_of
from ribray.errors import RibrayError

POLL_SECONDS = 0.5
RESTARTS = 2  # how often a training whose worker died, or failed, starts again from its last checkpoint


def train_in_crew(task: TrainingTask, plan: TrainingPlan, stop_requested: Callable[[], bool]) -> bool:
    """Train; return False where a stop request ended it: what was done since the last checkpoint is done again."""
    cpus, gpus, threads = plan.cpus_per_worker, plan.gpus_per_worker, plan.threads_per_worker
    pool = PoolPlan(f"training {plan.folder.name}", 1, cpus, gpus, threads)
    with crew_of(pool, stop_requested) as crew:
        if crew is None:
            return False
        restarts_left = RESTARTS
        while True:
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
                restarts_left -= 1


def last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
