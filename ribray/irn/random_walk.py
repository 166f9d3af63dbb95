"""The random walk that spreads localization maps up to the class boundaries (IRN, section 5.1), sparse and exact.

A pair of cells less than `radius` apart has the affinity a = (1 − strongest boundary between them)^β, a cell has 1 to
itself, and a pair that leaves the image has none. One step takes a row of values x to

    y_j = Σ_i x_i A_ij / Σ_i A_ij = x_j + Σ_{i≠j} A_ij (x_i − x_j) / Σ_i A_ij,

and the walk is 2^t such steps. Published code builds the matrix of all cells with all cells and squares it t times.
Here a step is a sum over displacements, each a product of slices, in the form on the right: it adds differences only,
so rounding cannot build up in values that have levelled out.

The 2^t steps are not taken one by one either. A power is a sum of Chebyshev polynomials,

    T^n = Σ_k P(|S_n| = k) T_k(T),

where S_n is the sum of n fair ±1 steps. T_k takes k steps by the three-term recursion, and P falls off so fast that
for n = 256 nothing beyond k = 90 counts. T is similar to a symmetric matrix with eigenvalues in [−1, 1], for which
|T_k| ≤ 1: what is left out changes no value by more than 2 · `_TAIL` · sqrt(s Σ x²), s the largest Σ_i A_ij (69 at
radius 5). For maps up to 1 on 94 × 125 cells that is 2e-5 at worst; measured are 1e-6, rounding included.

Shapes: N images of a group, C their largest number of maps, h w cells, n cells of a padded map in one row.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ribray.irn.pairs import Pairs

_TAIL = 1e-8
"""Largest share of the Chebyshev weights that is left out; float32 resolves 6e-8."""

_GROUP_ON_ACCELERATOR = 16
"""Images that walk together where starting a kernel costs more than running it."""


@torch.no_grad()
def random_walk(
    maps: Sequence[Tensor], boundaries: Sequence[Tensor], *, radius: int = 5, beta: float = 10, exp_times: int = 8
) -> list[Tensor]:
    """Return each image's maps after 2 ** `exp_times` steps from map · (1 − boundary).

    On a CPU every image walks by itself, so that its result does not depend on the others, to the bit. On an
    accelerator images of similar size walk together.

    Args:
        maps: per image (C_i, h_i, w_i), localization maps at stride 4, already raised to their power but not yet
            multiplied by 1 − boundary. C_i may be 0.
        boundaries: per image (h_i, w_i), boundary probabilities.
        radius: pairs are less than this many cells apart.
        beta: power of the affinities.
        exp_times: t, the logarithm of the number of steps.

    Returns:
        Per image (C_i, h_i, w_i), in float32 (in float64 if the maps are).

    Raises:
        ValueError: maps and boundaries do not belong together, or a parameter is out of its range.
    """
    if not beta > 0 or exp_times < 0:
        raise ValueError(f"The random walk needs beta above 0 and exp_times of at least 0, not {beta} and {exp_times}.")
    if len(maps) != len(boundaries):
        raise ValueError(f"There are {len(maps)} images with maps, but {len(boundaries)} boundaries.")
    for image, boundary in zip(maps, boundaries, strict=True):
        if image.ndim != 3 or image.shape[1:] != boundary.shape:
            raise ValueError(f"Maps of shape {tuple(image.shape)} do not go with a boundary {tuple(boundary.shape)}.")
    results = [image.to(torch.promote_types(image.dtype, torch.float32)) for image in maps]
    walking = sorted((i for i, image in enumerate(maps) if image.numel()), key=lambda i: boundaries[i].shape)
    together = 1 if all(image.device.type == "cpu" for image in maps) else _GROUP_ON_ACCELERATOR
    for first in range(0, len(walking), together):
        group = walking[first : first + together]
        walked = _walk([results[i] for i in group], [boundaries[i] for i in group], radius, beta, 2**exp_times)
        for i, result in zip(group, walked, strict=True):
            results[i] = result
    return results


def _walk(maps: list[Tensor], boundaries: list[Tensor], radius: int, beta: float, steps: int) -> list[Tensor]:
    """Walk a group of images of one device side by side, padded to a common size."""
    x, boundary = _pad(maps, boundaries)
    walked = _power(_affinities(boundary, radius, beta), x.flatten(2), steps).view_as(x)
    return [walked[i, : len(image), : image.shape[1], : image.shape[2]].clone() for i, image in enumerate(maps)]


def _pad(maps: list[Tensor], boundaries: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return map · (1 − boundary) as (N, C, h, w) and the boundaries as (N, 1, h, w), with padding.

    The padding is a wall of boundary 1, so that no affinity leads into it.
    """
    channels = max(len(image) for image in maps)
    height = max(image.shape[1] for image in maps)
    width = max(image.shape[2] for image in maps)
    x = maps[0].new_zeros(len(maps), channels, height, width)
    boundary = maps[0].new_ones(len(maps), 1, height, width)
    for i, (image, edges) in enumerate(zip(maps, boundaries, strict=True)):
        inside = (..., slice(edges.shape[0]), slice(edges.shape[1]))
        x[i, : len(image)][inside] = image * (1 - edges)
        boundary[i][inside] = edges
    return x, boundary


def _affinities(boundary: Tensor, radius: int, beta: float) -> list[tuple[int, Tensor]]:
    """Return the affinities of each displacement that fits into the padded ``boundary`` (N, 1, h, w).

    Returns:
        Per displacement its offset o in a flattened map of n cells, and (N, 1, n − o) the affinity of cell j with
        cell j + o; 0 where the two are no pair, as where j + o has run over the end of a row.
    """
    height, width = boundary.shape[2:]
    pairs = Pairs(radius, height, width, all_pairs=True)
    affinities = []
    for i, (dy, dx) in enumerate(pairs.displacements.tolist()):
        if dy < height and abs(dx) < width:
            offset = dy * width + dx
            affinity = torch.zeros_like(boundary)
            pairs.sources(affinity, i).copy_((1 - pairs.strongest(boundary, i)).pow_(beta))
            affinities.append((offset, affinity.flatten(2)[..., : height * width - offset]))
    return affinities


def _power(affinities: list[tuple[int, Tensor]], x: Tensor, steps: int) -> Tensor:
    """Return x T^steps for x (N, C, n)."""
    cells = x.shape[2]
    sums = torch.ones_like(x[:, :1])  # Σ_i A_ij, where a cell has 1 to itself
    term, gain, difference = x.clone(), torch.empty_like(x), torch.empty_like(x)
    flows = []
    for offset, affinity in affinities:
        sources, targets = (..., slice(cells - offset)), (..., slice(offset, cells))
        sums[sources] += affinity
        sums[targets] += affinity
        # Views are made once: making them costs about as much as the arithmetic on them.
        flows.append((affinity, term[sources], term[targets], difference[sources], gain[sources], gain[targets]))
    rate = 1 / sums

    def diffuse() -> Tensor:
        """Return `term` T − `term`."""
        gain.zero_()
        for affinity, source, target, flow, source_gain, target_gain in flows:
            torch.sub(target, source, out=flow)
            source_gain.addcmul_(affinity, flow)  # what one of a pair gains, the other loses
            target_gain.addcmul_(affinity, flow, value=-1)
        return gain.mul_(rate)

    weights = _chebyshev_weights(steps)
    change = diffuse().clone()  # T_k − T_{k−1}; summing changes loses less to rounding than 2 x T_k T − T_{k−1}
    term += change
    result = weights.get(0, 0.0) * x + weights.get(1, 0.0) * term
    for k in range(2, max(weights) + 1):
        change.add_(diffuse(), alpha=2)
        term += change
        if k in weights:
            result.add_(term, alpha=weights[k])
    return result


def _chebyshev_weights(steps: int) -> dict[int, float]:
    """Return the weight of each Chebyshev polynomial T_k in x^steps, up to a tail of `_TAIL`; together they are 1.

    Only k of the parity of `steps` occur. The weight is the chance that a fair ±1 walk of `steps` steps ends k
    away from its start.
    """
    weights: dict[int, float] = {}
    for k in range(steps % 2, steps + 1, 2):
        ways = math.lgamma(steps + 1) - math.lgamma((steps - k) // 2 + 1) - math.lgamma((steps + k) // 2 + 1)
        weights[k] = (2 if k else 1) * math.exp(ways - steps * math.log(2))
        if 1 - sum(weights.values()) < _TAIL:
            break
    covered = sum(weights.values())
    return {k: weight / covered for k, weight in weights.items()}
