"""IRN's loss: affinities of pairs of cells against their labels, and displacements that agree within an object
(IRN, section 4.2, equations 6 to 10).

Two cells of one label should have no boundary between them, two of different labels should have one. The
displacement field should differ between two cells of an object by their true offset, and not at all between two
cells of background. A pair with an unknown cell takes no part.

The number of pairs is some hundred times that of the cells. So displacement after displacement adds to the sums
and, at once, to their gradients; what is kept has the size of the maps.

Shapes: N images, h w cells at stride 4, h' w' the sources of one displacement.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribray.data.dataset import BACKGROUND, IGNORE
from ribray.irn.pairs import Pairs

_EPSILON = 1e-5


class IrnLosses(NamedTuple):
    """The loss and its four parts, each a scalar.

    Attributes:
        loss: what is learnt: the mean of the affinity's two parts plus the mean of the displacement's. Only it
            carries a gradient, the parts are for the log.
        positive: cross entropy of the affinity within background and within objects, half each.
        negative: cross entropy of the affinity across labels.
        displacement_fg: mean error of the displacement within objects, in cells per channel.
        displacement_bg: mean difference of the displacement within background, in cells per channel.
    """

    loss: Tensor
    positive: Tensor
    negative: Tensor
    displacement_fg: Tensor
    displacement_bg: Tensor


def irn_loss(
    boundary_logits: Tensor,
    displacement: Tensor,
    labels: Tensor,
    radius: int = 10,
    all_pairs: bool = False,
    total: Callable[[Tensor], Tensor] = lambda count: count,
) -> IrnLosses:
    """Return this rank's part of the loss of the global batch; the parts of all ranks add up to it.

    Sums are over this rank's pairs, the counts they are divided by are those of all ranks. Without any known
    pair the loss and its gradients are 0. Computed in float32 at least, also under autocast.

    Args:
        boundary_logits: (N, 1, h, w).
        displacement: (N, 2, h, w), (dy, dx) in cells.
        labels: (N, h, w) integers: 0 background, class index + 1, 255 unknown.
        radius: pairs are less than this many cells apart.
        all_pairs: every pair inside the map instead of IRN's sources away from the margin, see `Pairs`.
        total: sum over all ranks of a count (int64, three numbers); called once.

    Raises:
        ValueError: the shapes do not belong together, or the map is too small for the radius.
    """
    count, height, width = labels.shape
    if boundary_logits.shape != (count, 1, height, width) or displacement.shape != (count, 2, height, width):
        raise ValueError(
            f"A boundary {tuple(boundary_logits.shape)} and a displacement {tuple(displacement.shape)} do not go with "
            f"labels {tuple(labels.shape)}; (N, 1, h, w) and (N, 2, h, w) go with (N, h, w)."
        )
    pairs = Pairs(radius, height, width, all_pairs)
    counts = total(torch.stack([pair_labels(labels, pairs, i).sum((1, 2, 3)) for i in range(len(pairs))]).sum(0))
    with torch.autocast(labels.device.type, enabled=False):
        precision = torch.promote_types(boundary_logits.dtype, torch.float32)
        boundary = boundary_logits[:, 0].to(precision).sigmoid()
        background, foreground, different = counts.to(precision)
        weights = 1 / torch.stack(
            [
                2 * (background + _EPSILON),
                2 * (foreground + _EPSILON),
                different + _EPSILON,
                2 * foreground + _EPSILON,
                2 * background + _EPSILON,
            ]
        )
        return IrnLosses(*_PairLoss.apply(boundary, displacement.to(precision), labels, pairs, weights))


def pair_labels(labels: Tensor, pairs: Pairs, index: int) -> Tensor:
    """Return what the labels (N, h, w) say of each pair of displacement `index`.

    Returns:
        (3, N, h', w') bool: both background; both of one class; of different labels. None of them where a label
        is unknown.
    """
    source, target = pairs.sources(labels, index), pairs.targets(labels, index)
    known = (source != IGNORE) & (target != IGNORE)
    same = known & (source == target)
    background = same & (source == BACKGROUND)
    return torch.stack([background, same ^ background, known ^ same])


class _PairLoss(torch.autograd.Function):
    """The loss and its parts, with the loss's gradient made on the way.

    From boundary probabilities (N, h, w), displacement (N, 2, h, w), labels (N, h, w), `Pairs`, and the weights (5,)
    of the sums over pairs: cross entropy of background, of foreground and of different pairs, displacement error of
    foreground and of background. The loss is half of the weighted sums' total.
    """

    @staticmethod
    def forward(
        ctx: Any, boundary: Tensor, displacement: Tensor, labels: Tensor, pairs: Pairs, weights: Tensor
    ) -> tuple[Tensor, ...]:
        boundary_gradient, displacement_gradient = torch.zeros_like(boundary), torch.zeros_like(displacement)
        offsets = torch.tensor(pairs.displacements, dtype=boundary.dtype, device=boundary.device)
        sums = torch.zeros_like(weights)
        weigh = weights.view(5, 1, 1, 1)
        for i in range(len(pairs)):
            kinds = pair_labels(labels, pairs, i).to(boundary.dtype)
            path = torch.stack(pairs.along(boundary, i))  # (cells, N, h', w')
            strongest = path.amax(0)
            same, apart = 1 - strongest + _EPSILON, strongest + _EPSILON  # the affinity and 1 minus it, kept from 0
            sums[:2] -= (kinds[:2] * same.log()).flatten(1).sum(1)
            sums[2] -= (kinds[2] * apart.log()).sum()
            slope = (kinds[:2] * weigh[:2]).sum(0) / same - kinds[2] * weights[2] / apart
            hits = path.eq_(strongest)
            share = slope / hits.sum(0)  # where several cells hold the maximum
            subtotal = torch.zeros_like(boundary)  # thousands of equal addends one by one would lose three digits
            for gradient, hit in zip(pairs.along(subtotal, i), hits, strict=True):
                gradient.addcmul_(share, hit)
            boundary_gradient += subtotal
            background, foreground, _ = kinds[:, :, None]
            difference = pairs.sources(displacement, i) - pairs.targets(displacement, i)  # (N, 2, h', w')
            error = difference - offsets[i, :, None, None]
            sums[3] += (error.abs() * foreground).sum()
            sums[4] += (difference.abs() * background).sum()
            direction = error.sign() * foreground * weights[3] + difference.sign() * background * weights[4]
            pairs.sources(displacement_gradient, i).add_(direction)
            pairs.targets(displacement_gradient, i).sub_(direction)
        ctx.save_for_backward(boundary_gradient / 2, displacement_gradient / 2)
        background, foreground, *others = sums * weights
        parts = (background + foreground, *others)
        ctx.mark_non_differentiable(*parts)
        return (sums * weights).sum() / 2, *parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        boundary_gradient, displacement_gradient = ctx.saved_tensors
        return loss * boundary_gradient, loss * displacement_gradient, None, None, None
