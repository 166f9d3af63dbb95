"""Random crops of images and their masks, for the networks that learn from masks: IRN and DeepLab.

The images of step s are those at places s·B … (s+1)·B − 1 of an endless sequence of epochs, each a permutation keyed
by (seed, epoch); each rank takes every ``world``-th of them. Any number of images makes whole batches that way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ribray.config import IrnConfig, SegmentationConfig
from ribray.data.dataset import IGNORE, Dataset
from ribray.data.transforms import Box, Normalisation, augment_pair, keyed_rng, normalise_crops, shuffled
from ribray.errors import ImageError
from ribray.pipeline.artifacts import read_own_mask
from ribray.pipeline.training import ReadingTask, polynomial_decay

DrawScale = Callable[[np.random.Generator], float]
"""Draws the random scale of an image."""


@dataclass(frozen=True)
class CropPlan:
    """What is cut, and in which order."""

    name: str
    """Enters the keys of the randomness."""
    seed: int
    batch_size: int
    crop_size: int
    draw_scale: DrawScale


@dataclass
class CropBatch:
    """Shapes: pixels (n, S, S, 3) uint8, boxes per image, labels (n, S, S) uint8 with 255 outside the image."""

    pixels: Tensor
    boxes: list[Box]
    labels: Tensor
    errors: dict[str, str]

    def images(self, device: torch.device, normalisation: Normalisation) -> Tensor:
        """Return the normalised crops, (n, 3, S, S) float32 on ``device``."""
        return normalise_crops(self.pixels.to(device, non_blocking=True), self.boxes, normalisation)


class MaskedImages(TorchDataset[tuple[np.ndarray, np.ndarray, Box, tuple[str, str] | None]]):
    """Crops by (epoch, place in the list of ids); of an unreadable image every label is unknown."""

    def __init__(self, dataset: Dataset, masks: Callable[[str], Path], ids: Sequence[str], plan: CropPlan):
        self.ids = list(ids)
        self._dataset, self._masks, self._plan = dataset, masks, plan

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, Box, tuple[str, str] | None]:
        epoch, place = key
        plan, id = self._plan, self.ids[place]
        rng = keyed_rng(plan.name, plan.seed, epoch, id)
        try:
            image = self._dataset.image(id)
            mask = read_own_mask(self._masks(id), id, self._dataset, (image.shape[0], image.shape[1]))
        except ImageError as error:
            size = plan.crop_size
            nothing = np.full((size, size), IGNORE, np.uint8)
            return np.zeros((size, size, 3), np.uint8), nothing, (0, 0, 0, 0), (id, str(error))
        return *augment_pair(image, mask, rng, plan.draw_scale(rng), plan.crop_size), None


def crop_batches(
    images: MaskedImages, plan: CropPlan, steps: range, rank: int, world: int, loader_workers: int
) -> Iterator[CropBatch]:
    """Yield a rank's share of the batch of each step."""

    def place(position: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(images.ids))
        return epoch, int(shuffled(plan.name, plan.seed, epoch, len(images.ids))[place])

    size = plan.batch_size
    shares = ([place(step * size + index) for index in range(rank, size, world)] for step in steps)
    return iter(DataLoader(images, batch_sampler=shares, num_workers=loader_workers, collate_fn=_stacked))


def _stacked(samples: list[tuple[np.ndarray, np.ndarray, Box, tuple[str, str] | None]]) -> CropBatch:
    return CropBatch(
        torch.from_numpy(np.stack([crop for crop, _, _, _ in samples])),
        [box for _, _, box, _ in samples],
        torch.from_numpy(np.stack([mask for _, mask, _, _ in samples])),
        dict(error for _, _, _, error in samples if error is not None),
    )


class CropTask(ReadingTask):
    """A training on crops of images and their masks, but for its network and loss."""

    def __init__(
        self,
        name: str,
        config: IrnConfig | SegmentationConfig,
        dataset: Dataset,
        masks: Callable[[str], Path],
        ids: Sequence[str],
        draw_scale: DrawScale,
        loader_workers: int,
        normalisation: Normalisation,
        least_readable: float = 0.0,
    ):
        super().__init__(name, least_readable)
        self.precision = config.precision
        self.normalisation = normalisation
        self._dataset, self._loader_workers = dataset, loader_workers
        self._plan = CropPlan(name, config.seed, config.batch_size, config.crop_size, draw_scale)
        self._images = MaskedImages(dataset, masks, ids, self._plan)

    def wanted(self) -> int:
        """Return the number of different images in all batches."""
        return min(self.steps * self._plan.batch_size, len(self._images.ids))

    def decay(self, step: int) -> float:
        """Return the polynomial decay."""
        return polynomial_decay(step, self.steps)

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[CropBatch]:
        """Yield this rank's share of each batch, and note what cannot be read."""
        steps = range(first_step, self.steps)
        for batch in crop_batches(self._images, self._plan, steps, rank, world, self._loader_workers):
            for id, error in batch.errors.items():
                self.unreadable.setdefault(id, error)  # what was met first says most
            yield batch
