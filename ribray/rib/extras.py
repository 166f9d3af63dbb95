"""Which extra samples accompany a target image, and in which order (docs/method.md, section 2).

The order of two candidates is a pure function of (seed, target id, pass, the candidates' ids): the target's
neighbours in the queue, the number of workers, and other images that come to or leave the data set change
nothing about it.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np


class ExtraOrder:
    """The order in which other training images are drawn as extra samples of a target.

    A candidate shares no class with the target and has at least one class of its own: an image without any
    would cost a forward and a backward pass and add nothing to L_RIB.

    Args:
        ids: the images that extra samples are drawn from, each id once.
        labels: (len(ids), C) bool, their classes.
        seed: ``refine.seed``.
    """

    def __init__(self, ids: Sequence[str], labels: np.ndarray, seed: int) -> None:
        if len(ids) != len(labels):
            raise ValueError(f"There are {len(ids)} ids and {len(labels)} rows of labels.")
        self._seed = seed
        self._index = {image_id: index for index, image_id in enumerate(ids)}
        self._labels = np.asarray(labels, dtype=bool)
        self._has_object = self._labels.any(axis=1)
        self._digests = np.array([_digest(image_id) for image_id in ids], dtype=np.uint64)

    def candidates(self, target: str, present: Sequence[int]) -> np.ndarray:
        """Return the indices, in increasing order, of the images that may accompany ``target``."""
        target_labels = np.zeros(self._labels.shape[1], dtype=bool)
        target_labels[list(present)] = True
        disjoint = self._has_object & ~(self._labels @ target_labels)
        if target in self._index:
            disjoint[self._index[target]] = False
        return np.flatnonzero(disjoint)

    def available(self, target: str, present: Sequence[int]) -> int:
        """Return how many different images may accompany ``target``."""
        return len(self.candidates(target, present))

    def draw(self, target: str, present: Sequence[int]) -> Iterator[int]:
        """Yield indices of extra samples: every candidate once, then all again in a new order, without end.

        Yields nothing where there is no candidate.
        """
        candidates = self.candidates(target, present)
        if not len(candidates):
            return
        digests = self._digests[candidates]
        passes = 0
        while True:
            key = np.uint64(_digest(f"{self._seed}\n{passes}\n{target}"))
            yield from candidates[np.argsort(_mix(digests ^ key), kind="stable")].tolist()
            passes += 1


def _digest(text: str) -> int:
    """Return 64 bits of ``text``'s SHA-256: the same on every platform and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """Return splitmix64 of ``values`` (uint64): a bijection that spreads every bit over all of them."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
