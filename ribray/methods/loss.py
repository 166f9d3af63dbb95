"""Losses of the refinement: L_RIB and the saturating ones the paper's appendix compares it with.

Each maps pooled logits and labels, both (N, C), to a scalar: a sum over rows and classes, never a mean.
"""

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Loss = Callable[[Tensor, Tensor], Tensor]


def rib(logits: Tensor, labels: Tensor) -> Tensor:
    """L_RIB: minus the sum of the present classes' logits, with no activation that could saturate."""
    return -(logits * labels.to(logits.dtype)).sum()


def bce_sigmoid(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of the sigmoid."""
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")


def bce_tanh(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of (tanh + 1) / 2, which is the sigmoid of twice the logit."""
    return bce_sigmoid(2 * logits, labels)


def bce_softsign(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of (softsign + 1) / 2, where softsign(x) = x / (1 + |x|)."""
    signed = logits.where(labels.bool(), -logits)  # 1 − p(x) = p(−x), hence one formula for both labels
    return -_log_softsign_probability(signed).sum()


def _log_softsign_probability(logits: Tensor) -> Tensor:
    """Return log((softsign(x) + 1) / 2) by its closed form on either side of 0, finite as is its gradient."""
    above = logits >= 0
    positive, negative = logits.where(above, 0.0), -logits.where(~above, 0.0)
    rising = (2 * positive).log1p() - positive.log1p()  # x ≥ 0: p = (1 + 2x) / (2 (1 + x))
    falling = -negative.log1p()  # x < 0: p = 1 / (2 (1 − x))
    return rising.where(above, falling) - math.log(2)


LOSSES: dict[str, Loss] = {"rib": rib, "bce_sigmoid": bce_sigmoid, "bce_tanh": bce_tanh, "bce_softsign": bce_softsign}
"""By the names of ``refine.loss``."""
