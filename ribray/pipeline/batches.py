"""Batches of a training: random cuts of images with their labels or masks, read by (epoch, place among the ids).

An image that cannot be read is blank in its batch, and told in the batch's errors.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ribray.config import IrnConfig, SegmentationConfig
from ribray.data.dataset import IGNORE, Dataset
from ribray.data.mask_files import mask_path
from ribray.data.transforms import Box, Normalisation, augment_pair, keyed_rng, normalise_crops
from ribray.errors import ImageError
from ribray.pipeline.artifacts import read_own_mask

Place = tuple[int, int]  # epoch, and place among the ids
KEPT_BYTES = 64 * 2**20
"""Of decoded images and masks that a process keeps: all of a small data set, which is so read once, not every epoch."""


@dataclass(frozen=True)
class Sample:
    """One image of a batch, cut out and still uint8, the box of its real pixels, and its labels."""

    pixels: np.ndarray
    box: Box
    labels: np.ndarray
    error: tuple[str, str] | None = None  # the id of an unreadable image, and why it is


@dataclass
class Batch:
    """Shapes: pixels (n, S, S, 3) uint8, boxes per image, labels (n, …), readable (n,) bool."""

    pixels: Tensor
    boxes: list[Box]
    labels: Tensor
    readable: Tensor
    errors: dict[str, str]

    @classmethod
    def of(cls, samples: list[Sample]) -> "Batch":
        return cls(
            torch.from_numpy(np.stack([sample.pixels for sample in samples])),
            [sample.box for sample in samples],
            torch.from_numpy(np.stack([sample.labels for sample in samples])),
            torch.tensor([sample.error is None for sample in samples]),
            dict(sample.error for sample in samples if sample.error is not None),
        )

    def images(self, device: torch.device, normalisation: Normalisation) -> Tensor:
        """Return the normalised cuts, (n, 3, S, S) float32 on ``device``."""
        return normalise_crops(self.pixels.to(device, non_blocking=True), self.boxes, normalisation)


class Samples(TorchDataset[Sample]):
    def __init__(self, dataset: Dataset, ids: Sequence[str], size: int):
        self.dataset, self.ids, self.size = dataset, list(ids), size

    def __getitem__(self, place: Place) -> Sample:
        id = self.ids[place[1]]
        try:
            return self.cut(id, place[0])
        except ImageError as error:
            blank = np.zeros((self.size, self.size, 3), np.uint8)
            return Sample(blank, (0, 0, 0, 0), self.labels_of_unreadable(id), (id, str(error)))

    @abstractmethod
    def cut(self, id: str, epoch: int) -> Sample:
        """Return a random part of an image, which depends on the id and the epoch alone."""

    @abstractmethod
    def labels_of_unreadable(self, id: str) -> np.ndarray: ...


class MaskedImages(Samples):
    """Images and their masks, (S, S) uint8 with 255 outside the image; of an unreadable one all is unknown."""

    def __init__(
        self, dataset: Dataset, masks: Path, ids: Sequence[str], name: str, config: IrnConfig | SegmentationConfig
    ):
        """``masks`` is their folder, ``name`` enters the keys of the randomness."""
        super().__init__(dataset, ids, config.crop_size)
        self._masks, self._name, self._config = masks, name, config
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._room = KEPT_BYTES

    def cut(self, id: str, epoch: int) -> Sample:
        rng = keyed_rng(self._name, self._config.seed, epoch, id)
        image, mask = self._kept.get(id) or self._read(id)
        pixels, labels, box = augment_pair(image, mask, rng, self._config.draw_scale(rng), self.size)
        return Sample(pixels, box, labels)

    def _read(self, id: str) -> tuple[np.ndarray, np.ndarray]:
        """Read an image and its mask, and keep them while there is room; none makes way for another."""
        image = self.dataset.image(id)
        mask = read_own_mask(mask_path(self._masks, id), id, self.dataset, (image.shape[0], image.shape[1]))
        if (size := image.nbytes + mask.nbytes) <= self._room:
            self._kept[id] = image, mask
            self._room -= size
        return image, mask

    def labels_of_unreadable(self, id: str) -> np.ndarray:
        return np.full((self.size, self.size), IGNORE, np.uint8)
