"""The pixels of one refinement, loaded by background threads while the network computes."""

import itertools
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from ribray.data.depth import Scale
from ribray.data.images import Picture
from ribray.data.transforms import Box, Normalisation, augment, keyed_rng, target_views
from ribray.errors import ImageError
from ribray.methods.extras import ExtraOrder
from ribray.methods.method import ExtraSamples, Method

_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class Target:
    """The image that is refined."""

    size: tuple[int, int]
    """Height and width in pixels."""
    views: list[torch.Tensor]
    remarks: tuple[Scale | str, ...]


_Crop = tuple[int, torch.Tensor, Box]
"""One extra sample: the place of its image, its pixels, cut out and still uint8, and where they are real."""


class Source(Protocol):
    """Images by id with their labels: a data set, or a few photographs."""

    labels: np.ndarray
    """(ids, C) bool."""

    @property
    def ids(self) -> Sequence[str]:
        """What the images are called."""

    def index(self, id: str) -> int:
        """Return the row of an image."""

    def picture(self, id: str) -> Picture:
        """Read an image; an `ImageError` says why it cannot be."""

    def image(self, id: str) -> np.ndarray:
        """Return its pixels (H, W, 3) uint8."""


class Preparation:
    """An image's pixels, being loaded by background threads: the target's and its extra samples'.

    An extra that cannot be read is passed over for the next one of the target's order; which image becomes which
    sample therefore depends on the data alone, not on when a thread was done.
    """

    def __init__(
        self,
        id: str,
        dataset: Source,
        scales: Sequence[float],
        threads: ThreadPoolExecutor,
        normalisation: Normalisation,
        extras: ExtraSamples | None = None,
        order: ExtraOrder | None = None,
    ):
        self._id, self._dataset, self._scales, self._threads = id, dataset, scales, threads
        self._normalisation, self._extras = normalisation, extras
        present = np.flatnonzero(dataset.labels[dataset.index(id)]).tolist()
        candidates = order.candidates(id, present) if extras is not None and order is not None else np.zeros(0, int)
        self.only_empty = candidates.size > 0 and not dataset.labels[candidates[0]].any()
        """Whether no image but those without any class could serve as an extra sample."""
        self.is_alone = self.only_empty and extras is not None and extras.of_no_use is not None
        """Whether none is drawn, as those that there are would be of no use."""
        self._available = 0 if self.is_alone else len(candidates)
        self._order = order.draw(id, present) if order is not None else iter(())
        self._drawn: Counter[int] = Counter()
        self.unreadable: dict[int, str] = {}
        self.waited = 0.0
        """Seconds in which the refinement had to wait for a thread."""
        self._target = threads.submit(self._see)
        self._queue: deque[tuple[int, Future[_Crop]]] = deque()
        self._submit(self.per_step * extras.steps if extras is not None else 0)

    @property
    def per_step(self) -> int:
        """Samples of a step: what is configured, or every image there is as far as it is known to be readable."""
        wanted = 0 if self._extras is None else self._extras.per_step
        return min(wanted, self._available - len(self.unreadable))

    def _submit(self, count: int) -> None:
        for place in itertools.islice(self._order, count):
            self._queue.append((place, self._threads.submit(self._cut, place, self._drawn[place])))
            self._drawn[place] += 1

    def _see(self) -> Target:
        picture = self._dataset.picture(self._id)
        height, width = picture.pixels.shape[:2]
        views = target_views(picture.pixels, self._scales, self._normalisation)
        return Target((height, width), [_ready_to_copy(view) for view in views], picture.remarks)

    def _cut(self, place: int, turn: int) -> _Crop:
        extras, id = self._extras, self._dataset.ids[place]
        assert extras is not None
        rng = keyed_rng("extra", extras.seed, self._id, id, turn)
        pixels, box = augment(self._dataset.image(id), rng, extras.resize_long, extras.crop_size)
        return place, torch.from_numpy(pixels), box

    def target(self) -> Target:
        """Return the target's size and views.

        Raises:
            ImageError: they cannot be read.
        """
        return self._wait(self._target)

    def take(self) -> list[_Crop]:
        """Return the crops of the next step.

        Raises:
            ImageError: none of the images that may serve as extras can be read.
        """
        crops: list[_Crop] = []
        while len(crops) < self.per_step:
            if not self._queue:
                self._submit(1)
            place, future = self._queue.popleft()
            try:
                crops.append(self._wait(future))
            except ImageError as error:
                self.unreadable[place] = f"{self._dataset.ids[place]}: {error}"
                if not self.per_step:
                    raise ImageError(
                        f"None of the {self._available} images that could serve as extras is readable."
                    ) from None
        return crops

    def batch(self, method: Method) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the next step's extra samples: images (n, 3, S, S) float32, labels (n, C) bool; None where none are.

        Args:
            method: that sees them, on its device.

        Raises:
            ImageError: as `take`.
        """
        if self.per_step == 0:
            return None
        places, crops, real = zip(*self.take(), strict=True)
        is_on_gpu = method.device.type == "cuda"  # reads from pinned memory without the host waiting
        pixels = torch.empty((len(crops), *crops[0].shape), dtype=torch.uint8, pin_memory=is_on_gpu)
        torch.stack(crops, out=pixels)
        boxes = _ready_to_copy(torch.tensor(real))
        labels = _ready_to_copy(torch.from_numpy(self._dataset.labels[list(places)]))
        pixels, boxes, labels = (each.to(method.device, non_blocking=True) for each in (pixels, boxes, labels))
        return method.normalised(pixels, boxes), labels

    def _wait(self, future: Future[_Loaded]) -> _Loaded:
        began = time.monotonic()
        try:
            return future.result()
        finally:
            self.waited += time.monotonic() - began

    def cancel(self) -> None:
        """Drop what has not been loaded."""
        for _, future in self._queue:
            future.cancel()
        self._queue.clear()


def _ready_to_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in memory that a GPU reads from without the host waiting; on a CPU as it is."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
