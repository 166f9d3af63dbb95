"""Trainings on Ray Train that a test looks at from outside. Workers get this module by value, as they have no tests."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from safetensors.torch import load_file
from torch import Tensor

from ribray.cluster.session import connect
from ribray.cluster.training import TrainingPlan, TrainingTask, read_log, run_training
from ribray.config import ClusterConfig

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def train(
    task: TrainingTask, folder: Path, workers: int, checkpoint_steps: int = 500
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train to the end and return the weights and the log."""
    folder.mkdir(exist_ok=True)
    with connect(ClusterConfig()):
        run_training(task, TrainingPlan(folder, "weights.safetensors", workers, 1, 0, 1, checkpoint_steps))
    return load_file(folder / "weights.safetensors"), read_log(folder)


class KilledOnce:
    """To stand before a task among the bases: its worker is killed at a step, the first time."""

    killed_at: int
    marker: Path
    """Is there once the worker was killed."""

    def batches(self, first_step, rank, world):
        for step, batch in enumerate(super().batches(first_step, rank, world), start=first_step):
            if step == self.killed_at and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
