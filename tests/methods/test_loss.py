"""Losses: known values, gradients, and finiteness where a naive formula overflows."""

import math
from typing import get_args

import pytest
import torch

from ribray.config import RIBConfig
from ribray.methods.loss import LOSSES

ACTIVATIONS = {
    "bce_sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "bce_tanh": lambda x: (math.tanh(x) + 1) / 2,
    "bce_softsign": lambda x: (x / (1 + abs(x)) + 1) / 2,
}


def test_l_rib_is_minus_the_sum_of_present_logits() -> None:
    logits = torch.tensor([[1.0, 2.0, -3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    labels = torch.tensor([[True, False, True], [False, False, True]])
    loss = LOSSES["rib"](logits, labels)
    loss.backward()
    assert loss.item() == -(1 - 3 + 6)
    assert torch.equal(logits.grad, -labels.float())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_saturating_losses_sum_the_cross_entropy_of_their_activation(name: str) -> None:
    logits = torch.tensor([[-3.0, -0.5, 0.0], [0.25, 1.0, 4.0]], dtype=torch.float64)
    labels = torch.tensor([[True, False, True], [True, True, False]])
    expected = 0.0
    for logit, present in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        probability = ACTIVATIONS[name](logit)
        expected -= math.log(probability if present else 1 - probability)
    assert LOSSES[name](logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    labels = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels), logits.requires_grad_())


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("logit", [-1e30, -500.0, 500.0, 1e30])
@pytest.mark.parametrize("present", [True, False])
def test_saturating_losses_stay_finite_far_from_zero(name: str, logit: float, present: bool) -> None:
    logits = torch.tensor([[logit]], requires_grad=True)
    loss = LOSSES[name](logits, torch.tensor([[present]]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize(("name", "slope"), [("bce_sigmoid", 0.5), ("bce_tanh", 1.0), ("bce_softsign", 1.0)])
def test_slope_at_zero(name: str, slope: float) -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    LOSSES[name](logits, torch.tensor([[True, False]])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-slope, slope]]))


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'bce_softsign'.*'hinge'"):
        RIBConfig(loss="hinge")


def test_every_loss_of_the_configuration_is_there() -> None:
    assert get_args(RIBConfig.model_fields["loss"].annotation) == tuple(LOSSES)
