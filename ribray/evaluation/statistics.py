"""What repeated measurements say: their mean and how far they lie apart."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Statistics of a few values."""

    mean: float
    std: float | None
    """Of the sample (squared differences over count - 1); None for a single value."""
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Return mean, sample standard deviation and count of the values, at least one."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(float(statistics.mean(values)), std, len(values))
