"""A training on Ray Train against the same steps on tensors in memory, in the same worker, in turns."""

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from harness import figure, ratios
from pictures import data_settings
from torch import Tensor, nn

from ribray import storage
from ribray.cluster.session import connect
from ribray.cluster.training import TrainingPlan, TrainingTask, run_training
from ribray.config import ClusterConfig, Experiment, load_experiment
from ribray.data import Dataset, open_dataset
from ribray.data.mask_files import write_mask
from ribray.data.transforms import IMAGENET
from ribray.machine import LOADERS
from ribray.pipeline.masks import mask_path

PRECISIONS = ("float32", "bfloat16")
TIMES_FILE = "times.json"
WEIGHTS_FILE = "weights.safetensors"
HELD_BATCHES = 2
"""Batches that the steps in memory go round."""
PRODUCT, IN_MEMORY = "training", "steps on tensors in memory"


class InTurns(TrainingTask):
    """A training that stops every so often to time the same steps on batches that are in memory already.

    In each round and precision, it first takes steps of its own in a plain loop, with a network of its own, and
    then gives as many batches to Ray Train's loop. The times of both go to a file.
    """

    def __init__(self, task: Any, steps: int, rounds: int, folder: Path, loader_workers: int):
        # What loading processes have ready when their turn begins is used up before the clock starts.
        self._ahead = 2 * loader_workers
        self._task, self._steps, self._rounds, self._folder = task, steps, rounds, folder
        self.unreadable = task.unreadable
        self.steps = (1 + rounds) * len(PRECISIONS) * (self._ahead + steps) + 1
        self.period = self.steps
        self.precision = PRECISIONS[0]
        self.divergence_bound = task.divergence_bound

    def model(self) -> nn.Module:
        return self._task.model()

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        return self._task.optimizer(model)

    def decay(self, step: int) -> float:
        return self._task.decay(step)

    def loss(self, model: nn.Module, batch: Any, device: torch.device, total: Any) -> Tensor:
        return self._task.loss(model, batch, device, total)

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[Any]:
        """Yield the training's batches, and time them and the steps in memory in turns."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = self._task.batches(0, rank, world)
        held = itertools.cycle([in_memory(next(loaded), device) for _ in range(HELD_BATCHES)])
        model = self._task.model().to(device)
        optimizer = self._task.optimizer(model)
        model.train()
        found: dict[str, list[float]] = {
            f"{way}, {precision}": [] for way in (IN_MEMORY, PRODUCT) for precision in PRECISIONS
        }
        for _ in range(1 + self._rounds):
            for self.precision in PRECISIONS:
                with _taking(found[f"{IN_MEMORY}, {self.precision}"]):
                    for batch in itertools.islice(held, self._steps):
                        with self._arithmetic(device):
                            loss = self._task.loss(model, batch, device, lambda counts: counts)
                        optimizer.zero_grad(set_to_none=True)
                        loss.backward()
                        optimizer.step()
                yield from itertools.islice(loaded, self._ahead)
                with _taking(found[f"{PRODUCT}, {self.precision}"]):
                    yield from itertools.islice(loaded, self._steps)
        storage.write_json(self._folder / TIMES_FILE, {name: seconds[1:] for name, seconds in found.items()})
        yield next(loaded)  # the step behind which Ray Train's loop ends

    def _arithmetic(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def validate(self, model: Any, step: int, rank: int, world: int, device: torch.device) -> Any:
        """Return nothing: validation is not timed."""

    def conclude(self, model: Any, parts: list[Any]) -> dict[str, Any]:
        return {}

    def save(self, model: Any, destination: Path) -> None:
        """Write the weights, without which the training would count as unfinished."""
        self._task.save(model, destination)


def write_masks(dataset: Dataset, folder: Path) -> None:
    """Write the true masks of a data set as a stage would write its own."""
    for id in dataset.ids:
        mask = dataset.mask(id)
        assert mask is not None
        write_mask(mask_path(folder, id), mask, dataset.palette)


def in_memory(batch: Any, device: torch.device) -> Any:
    """Return a batch whose images are normalised and, like its labels, on ``device`` already."""
    images = batch.images(device, IMAGENET)  # all networks here are of torchvision
    tensors = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    held = replace(batch, **tensors)
    held.images = lambda device, normalisation: images
    return held


@contextlib.contextmanager
def _taking(seconds: list[float]) -> Iterator[None]:
    """Append the seconds that a ``with`` block takes."""
    _settle()
    began = time.perf_counter()
    yield
    _settle()
    seconds.append(time.perf_counter() - began)


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


Build = Callable[[Experiment, Dataset, Path, int], tuple[Any, str]]
"""From an experiment, its images, a folder for files and the number of loading processes: a training, and its network
in words."""


def measure(
    section: str,
    on_cpu: Sequence[str],
    build: Build,
    *,
    steps: int | None = None,
    rounds: int = 5,
    item: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Return the result of a benchmark: images per second of a training, and of its steps in memory.

    Args:
        section: of the configuration, such as ``irn``.
        on_cpu: settings that make a step short enough for a CPU; on a GPU the recipe ``voc12`` is kept.
        build: makes the training.
        steps: of one turn; default: 3 on a CPU, 40 on a GPU.
        rounds: turns of each way and precision, after one that does not count.
        item: settings in place of `on_cpu`.
        size: (height, width) of drawn pictures; default: photographs where there are any.
    """
    on_gpu = torch.cuda.is_available()
    steps = steps or (40 if on_gpu else 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, images = data_settings(folder / "pictures", size)
        own = ([] if on_gpu else on_cpu) if item is None else item
        experiment = load_experiment("voc12", [*data, *own, "classifier.weights=none", f"{section}.lr=1e-6"])
        loaders = (experiment.cluster.loader_threads or LOADERS) if on_gpu else 0
        dataset = open_dataset(experiment.data, experiment.data.train_split)
        task, network = build(experiment, dataset, folder, loaders)
        config = getattr(experiment, section)
        speed = _images_per_second(task, config.batch_size, steps, rounds, folder, loaders)
    figures = {name: figure(found, "images/s") for name, found in sorted(speed.items(), reverse=True)}
    for precision in PRECISIONS:
        share = ratios(speed[f"{PRODUCT}, {precision}"], speed[f"{IN_MEMORY}, {precision}"])
        figures[f"share of the steps in memory, {precision}"] = figure([100 * each for each in share], "%")
    faster = ratios(speed[f"{PRODUCT}, bfloat16"], speed[f"{PRODUCT}, float32"])
    figures["training in bfloat16 over float32"] = figure(faster, "")
    chosen = {"batch_size": config.batch_size, "crop_size": config.crop_size, "steps": steps, "of": images}
    return {
        "settings": {"network": network, **chosen},
        "figures": figures,
        "notes": [
            "Baseline: a plain loop over the same network, loss and optimiser on batches that are decoded, cut, "
            "normalised and in memory, in the same worker of Ray Train on one thread; what is missing to 100 % is what "
            f"data and framework cost. {network}, batches of {config.batch_size} crops of {config.crop_size} pixels "
            f"from {images}. Validation and checkpoints are not in it."
        ],
    }


def _images_per_second(
    task: Any, batch_size: int, steps: int, rounds: int, folder: Path, loader_workers: int
) -> dict[str, list[float]]:
    """Return by way and precision what each turn reached."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not know this folder
    timed = InTurns(task, steps, rounds, folder, loader_workers)
    with connect(ClusterConfig()) as session:
        gpus = 1.0 if session.gpus else 0.0
        run_training(timed, TrainingPlan(folder, WEIGHTS_FILE, 1, 1, gpus, 1))
    seconds = storage.read_json(folder / TIMES_FILE)
    return {name: [steps * batch_size / each for each in found] for name, found in seconds.items()}
