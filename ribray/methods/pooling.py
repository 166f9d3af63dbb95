"""Pooling of class activation maps into logits: global average, or without the most discriminative cells (GNDRP).

Shapes: N rows (views or images), C classes, h w cells.
"""

from torch import Tensor

GNDRP = "gndrp"
GAP = "gap"


def pool(
    cams: Tensor, labels: Tensor, pooling: str = GNDRP, threshold: float = 0.4, first_classes: int | None = None
) -> Tensor:
    """Pool ``cams`` into logits (N, C).

    GNDRP (docs/method.md, section 2; paper section 3.3): a present class's cells count only where the map, divided by
    its own maximum, is below ``threshold``; the others contribute 0 but still count in the mean. Which cells
    those are takes no part in the gradient. Where the maximum is negative every quotient is at least 1, so
    that logit and its gradient are 0. Absent classes take the plain mean.

    Args:
        cams: (N, C, h, w) raw class activation maps.
        labels: (N, C) bool, the classes present in each row.
        pooling: "gndrp" or "gap" (global average pooling: the plain mean for every class).
        threshold: τ of GNDRP.
        first_classes: treat only class indices below this as present ones; reproduces a defect of the
            reference implementation on data sets with more classes. None: the correct rule.
    """
    if pooling == GAP:
        return cams.mean((2, 3))
    if pooling != GNDRP:
        raise ValueError(f"There is no pooling {pooling!r}; choose {GNDRP!r} or {GAP!r}.")
    if first_classes is not None:
        labels = labels.clone()
        labels[:, first_classes:] = False
    detached = cams.detach()
    relative = detached / detached.amax((2, 3), keepdim=True)
    counted = (relative < threshold) | ~labels[:, :, None, None]  # (N, C, h, w)
    return cams.where(counted, 0.0).mean((2, 3))
