"""A threshold without truth: Otsu's, which parts the values of a map into two groups that differ most."""

import numpy as np

BINS = 256


def otsu_threshold(scores: np.ndarray) -> float:
    """Return the threshold in 0…1 between two groups of scores with the largest variance between them (Otsu, 1979).

    Args:
        scores: of any shape, in 0…1; those at the threshold or above are the upper group. Where all fall into one bin,
            they all are.
    """
    counts, edges = np.histogram(scores, BINS, (0.0, 1.0))
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * middles)
    above = counts.sum() - below
    parted = (below > 0) & (above > 0)
    if not parted.any():
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    best = np.flatnonzero(np.isclose(between, between[parted].max()) & parted)
    return float(edges[1 + best].mean())  # of an empty gap the middle
