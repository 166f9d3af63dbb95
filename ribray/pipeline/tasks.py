"""What trainings share that runs in their workers: batches, decay, and counting the images that cannot be read."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from ribray.cluster.training import TrainingTask
from ribray.config import ClassifierConfig, IrnConfig, SegmentationConfig
from ribray.data.dataset import Dataset
from ribray.data.transforms import Normalisation, shuffled
from ribray.errors import UnreadableError
from ribray.networks.weights import save_network
from ribray.pipeline.batches import Batch, MaskedImages, Place, Samples
from ribray.pipeline.stage import MENDED, example

POLYNOMIAL_POWER = 0.9


class ReadingTask(TrainingTask):
    """A training on images, some of which may not be readable."""

    def __init__(
        self,
        stage: str,
        config: ClassifierConfig | IrnConfig | SegmentationConfig,
        normalisation: Normalisation,
        start: Path,
        loader_workers: int,
        least_readable: float = 0.0,
    ):
        self.stage, self.workers, self.precision = stage, config.workers, config.precision
        self.normalisation, self.start, self.least_readable = normalisation, start, least_readable
        self.unreadable = {}
        self._loader_workers = loader_workers

    def wanted(self) -> int:
        """Return how many different images the training asks for."""
        raise NotImplementedError

    def require_readable(self) -> None:
        if self.unreadable:
            require_share(self.stage, self.wanted(), self.unreadable, self.least_readable)

    def decay(self, step: int) -> float:
        return (1 - step / self.steps) ** POLYNOMIAL_POWER

    def load(self, samples: Samples, shares: Iterable[list[Place]], unreadable: dict[str, str]) -> Iterator[Batch]:
        workers = self._loader_workers
        for batch in DataLoader(samples, batch_sampler=shares, num_workers=workers, collate_fn=Batch.of):
            for id, error in batch.errors.items():
                unreadable.setdefault(id, error)  # what was met first says most
            yield batch

    def save(self, model: nn.Module, destination: Path) -> None:
        save_network(model, destination)


class MaskTask(ReadingTask):
    """A training on images and their masks, but for its network and loss.

    The images of step s are those at places s·B … (s+1)·B − 1 of an endless sequence of epochs, each a permutation
    keyed by (seed, epoch); each rank takes every ``world``-th of them. Any number of images makes whole batches so.
    """

    def __init__(
        self,
        stage: str,
        config: IrnConfig | SegmentationConfig,
        dataset: Dataset,
        masks: Path,
        ids: Sequence[str],
        normalisation: Normalisation,
        *reading: Any,
    ):
        super().__init__(stage, config, normalisation, *reading)
        self.images = MaskedImages(dataset, masks, ids, stage, config)
        self._seed, self._batch_size = config.seed, config.batch_size

    def wanted(self) -> int:
        return min(self.steps * self._batch_size, len(self.images.ids))

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[Batch]:
        size = self._batch_size
        steps = range(first_step, self.steps)
        shares = ([self._place(step * size + index) for index in range(rank, size, world)] for step in steps)
        return self.load(self.images, shares, self.unreadable)

    def _place(self, position: int) -> Place:
        count = len(self.images.ids)
        epoch, place = divmod(position, count)
        return epoch, int(shuffled(self.stage, self._seed, epoch, count)[place])


def require_share(stage: str, wanted: int, unreadable: Mapping[str, str], least: float) -> None:
    """Check that at least one image, and a share ``least`` of the ``wanted``, is not among the ``unreadable``."""
    needed = max(1, math.ceil(least * wanted))
    if wanted - len(unreadable) >= needed:
        return
    of_wanted = f"{len(unreadable):,} of the {wanted:,}" if len(unreadable) < wanted else f"any of the {wanted:,}"
    asks = f", and data.least_readable={least:g} asks for {needed:,}" if len(unreadable) < wanted else ""
    first = example(*next(iter(unreadable.items())))
    raise UnreadableError(
        f"Stage '{stage}' cannot read {of_wanted} images to learn from{asks}{first}; {MENDED}.", unreadable
    )
