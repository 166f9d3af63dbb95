"""Which extra samples accompany a target image, and in which order (docs/method.md, section 2).

The order of two candidates is a pure function of (seed, target id, pass, the candidates' ids): the target's neighbours
in the queue, the number of workers, and other images that come to or leave the data set change nothing about it.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

FIRST = 1024
"""Extra samples that are put in order at once: an image needs some two hundred, of perhaps a million."""


class ExtraOrder:
    """The order in which other training images are drawn as extra samples of a target.

    A candidate shares no class with the target and has at least one class of its own: an image without any
    would cost a forward and a backward pass and add nothing to L_RIB. Only where there is no such image, those without
    any class are the candidates; a loss that looks at absent classes, too, can learn from them.

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
        self._by_class = np.ascontiguousarray(np.asarray(labels, dtype=bool).T)
        self._has_object = self._by_class.any(axis=0)
        self._digests = np.array([_digest(image_id) for image_id in ids], dtype=np.uint64)

    def candidates(self, target: str, present: Sequence[int]) -> np.ndarray:
        """Return the indices, in increasing order, of the images that may accompany ``target``."""
        taken = np.logical_or.reduce(self._by_class[list(present)], axis=0)
        for might in (self._has_object, ~self._has_object):
            disjoint = np.logical_and(might, ~taken)
            if target in self._index:
                disjoint[self._index[target]] = False
            if disjoint.any():
                break
        return np.flatnonzero(disjoint)

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
            for places in _in_order(_mix(digests ^ key)):
                yield from candidates[places].tolist()
            passes += 1


def _in_order(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of all keys from the smallest to the largest, the first few before all are sorted."""
    if len(keys) <= FIRST:
        yield np.argsort(keys, kind="stable")
        return
    smallest = np.argpartition(keys, FIRST)[:FIRST]
    yield smallest[np.argsort(keys[smallest], kind="stable")]
    yield np.argsort(keys, kind="stable")[FIRST:]


def _digest(text: str) -> int:
    """Return 64 bits of ``text``'s SHA-256: the same on every platform and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """Return splitmix64 of ``values`` (uint64): a bijection that spreads every bit over all of them."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
