"""Losses of the refinement over its steps, from the map files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ribray.errors import RibrayError
from ribray.methods.maps import MapRecord

MOST_FILES = 200
"""Of more map files so many are read, evenly spaced."""
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class RefinementLosses:
    """Quantiles over images, step by step; a step counts the images that came to it.

    Attributes:
        losses: (steps, quantiles) L_RIB of the steps that updated the network.
        targets: (steps, quantiles) the target's summed logits.
        images: that were looked at.
    """

    losses: NDArray[np.float64]
    targets: NDArray[np.float64]
    images: int


def read_losses(files: Sequence[Path]) -> RefinementLosses | None:
    """Read losses from map files; None where no file that can be read holds any, as with imported maps."""
    losses, targets, images = [], [], 0
    for file in files[:: max(1, -(-len(files) // MOST_FILES))]:
        try:
            record = MapRecord.read(file)
        except RibrayError:
            continue
        if len(record.target_losses):
            losses.append(record.losses)
            targets.append(record.target_losses)
            images += 1
    return RefinementLosses(_quantiles(losses), _quantiles(targets), images) if images else None


def _quantiles(series: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the quantiles of each step, (steps, quantiles), of series of different lengths."""
    series = list(series)
    steps = max(map(len, series))
    values = [[one[step] for one in series if len(one) > step] for step in range(steps)]
    return np.array([np.quantile(of_step, QUANTILES) for of_step in values]).reshape(steps, len(QUANTILES))
