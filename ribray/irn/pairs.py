"""Pairs of neighbouring cells: which there are, and what lies between the two (IRN, sections 4.2 and 5.1).

A pair is a source cell and a target cell less than a radius apart; each unordered pair is counted once. All pairs
of one displacement (target − source) are handled together, as slices of the map: no indices are kept, and a
displacement costs no more memory than the map itself.

Shapes: D displacements, h w cells, h' w' the sources of one displacement.
"""

from functools import cache, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@cache
def displacements(radius: int) -> NDArray[np.int64]:
    """Return every displacement (dy, dx) from source to target, once per unordered pair.

    Those with 0 < dy² + dx² < radius² that point down, or straight to the right.

    Args:
        radius: upper limit of the distance in cells, itself excluded.

    Returns:
        (D, 2) int64, read-only, ordered by dy, then dx: 34 at radius 5, 152 at radius 10.

    Raises:
        ValueError: a radius below 2, within which no cell has a neighbour.
    """
    if radius < 2:
        raise ValueError(f"The radius of pairs must be at least 2 cells, not {radius}.")
    reach = range(1 - radius, radius)
    found = [(dy, dx) for dy in range(radius) for dx in reach if (dy, dx) > (0, 0) and dy**2 + dx**2 < radius**2]
    return _read_only(found)


@cache
def path(dy: int, dx: int) -> NDArray[np.int64]:
    """Return the cells that a pair's connection runs over, both ends included.

    These are the cells of the displacement's bounding box less than 1 away from the line through both ends.

    Returns:
        (L, 2) int64, read-only: (y, x) from the source, ordered by y, then x.
    """
    rows = range(min(dy, 0), max(dy, 0) + 1)
    columns = range(min(dx, 0), max(dx, 0) + 1)
    return _read_only([(y, x) for y in rows for x in columns if (y * dx - x * dy) ** 2 < dy**2 + dx**2])


class Pairs:
    """All pairs of a map of h × w cells, displacement by displacement.

    Methods take a tensor (…, h, w) and the number of a displacement, and give (…, h', w'): what the sources,
    the targets or the paths of that displacement's pairs hold. A pair has the same place in all of them.

    Attributes:
        displacements: (D, 2) int64, see `displacements`.
    """

    def __init__(self, radius: int, height: int, width: int, all_pairs: bool = False):
        """Lay out the pairs.

        Args:
            radius: upper limit of the distance in cells, itself excluded.
            height: h.
            width: w.
            all_pairs: True: every pair inside the map. False: as in IRN's training, only sources from which
                every displacement stays inside, rows 0 … h−R−1 and columns R … w−R−1 with R = radius − 1, so
                that all displacements have the same sources.

        Raises:
            ValueError: the radius is below 2, or the map too small to have such a source.
        """
        self.displacements = displacements(radius)
        margin = radius - 1
        if not all_pairs and (height <= margin or width <= 2 * margin):
            raise ValueError(
                f"A map of {height} x {width} cells has no cell from which all pairs of radius {radius} stay inside; "
                f"it needs at least {margin + 1} x {2 * margin + 1} cells."
            )
        self._paths = [path(dy, dx).tolist() for dy, dx in self.displacements.tolist()]
        if all_pairs:
            self._windows = [
                (0, max(0, height - dy), max(0, -dx), max(0, -dx, width - max(0, dx)))
                for dy, dx in self.displacements.tolist()
            ]
        else:
            self._windows = [(0, height - margin, margin, width - margin)] * len(self._paths)

    def __len__(self) -> int:
        """Return the number of displacements D."""
        return len(self._paths)

    def sources(self, values: Tensor, index: int) -> Tensor:
        """Return the view of `values` at the sources of displacement `index`."""
        return self._shifted(values, index, 0, 0)

    def targets(self, values: Tensor, index: int) -> Tensor:
        """Return the view of `values` at the targets of displacement `index`."""
        dy, dx = self.displacements[index].tolist()
        return self._shifted(values, index, dy, dx)

    def along(self, values: Tensor, index: int) -> list[Tensor]:
        """Return one view of `values` for each cell of the path of displacement `index`."""
        return [self._shifted(values, index, y, x) for y, x in self._paths[index]]

    def strongest(self, values: Tensor, index: int) -> Tensor:
        """Return the maximum of `values` along each path of displacement `index`.

        Of boundary probabilities it is the strongest boundary between the two cells, and 1 minus it the pair's
        affinity (equation 5 of IRN).
        """
        return reduce(torch.maximum, self.along(values, index))

    def _shifted(self, values: Tensor, index: int, dy: int, dx: int) -> Tensor:
        top, bottom, left, right = self._windows[index]
        return values[..., top + dy : bottom + dy, left + dx : right + dx]


def _read_only(cells: list[tuple[int, int]]) -> NDArray[np.int64]:
    array = np.array(cells, dtype=np.int64)
    array.flags.writeable = False  # cached: everybody gets the same array
    return array
