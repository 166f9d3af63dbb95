"""IRN's loss against a slow reading of its definition, its gradients, and how parts of a batch add up."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from ribray.data.dataset import IGNORE
from ribray.irn.loss import IrnLosses, irn_loss
from ribray.irn.pairs import displacements, path

RADIUS = 4


def batch(count: int = 2, size: tuple[int, int] = (9, 12), dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    boundary = torch.randn(count, 1, *size, dtype=dtype, generator=generator) * 2
    displacement = torch.randn(count, 2, *size, dtype=dtype, generator=generator) * 2
    coarse = torch.randint(0, 4, (count, -(-size[0] // 3), -(-size[1] // 3)), generator=generator)
    labels = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, : size[0], : size[1]].clone()
    labels[labels == 3] = IGNORE
    return boundary, displacement, labels.to(torch.uint8)


def slow_loss(boundary: Tensor, displacement: Tensor, labels: Tensor, all_pairs: bool) -> tuple[float, ...]:
    """Return total and parts by a loop over images, cells and displacements."""
    images, height, width = labels.shape
    margin, epsilon = RADIUS - 1, 1e-5
    sums = dict.fromkeys(["background", "foreground", "different", "displacement_fg", "displacement_bg"], 0.0)
    counts = dict.fromkeys(["background", "foreground", "different"], 0)
    probability = boundary.sigmoid()
    for n, y, x, (dy, dx) in product(range(images), range(height), range(width), displacements(RADIUS).tolist()):
        if not (0 <= y + dy < height and 0 <= x + dx < width):
            continue
        if not all_pairs and not (y < height - margin and margin <= x < width - margin):
            continue
        label, other = labels[n, y, x].item(), labels[n, y + dy, x + dx].item()
        if IGNORE in (label, other):
            continue
        affinity = 1 - max(probability[n, 0, y + j, x + i].item() for j, i in path(dy, dx).tolist())
        difference = (displacement[n, :, y, x] - displacement[n, :, y + dy, x + dx]).tolist()
        if label != other:
            counts["different"] += 1
            sums["different"] -= math.log(1 + epsilon - affinity)
        elif label == 0:
            counts["background"] += 1
            sums["background"] -= math.log(affinity + epsilon)
            sums["displacement_bg"] += abs(difference[0]) + abs(difference[1])
        else:
            counts["foreground"] += 1
            sums["foreground"] -= math.log(affinity + epsilon)
            sums["displacement_fg"] += abs(difference[0] - dy) + abs(difference[1] - dx)
    assert min(counts.values()) > 0
    positive = sum(sums[kind] / (counts[kind] + epsilon) for kind in ("background", "foreground")) / 2
    negative = sums["different"] / (counts["different"] + epsilon)
    displacement_fg = sums["displacement_fg"] / (2 * counts["foreground"] + epsilon)
    displacement_bg = sums["displacement_bg"] / (2 * counts["background"] + epsilon)
    total = (positive + negative) / 2 + (displacement_fg + displacement_bg) / 2
    return total, positive, negative, displacement_fg, displacement_bg


@pytest.mark.parametrize("all_pairs", [True, False])
def test_loss_and_parts_equal_a_loop_over_pairs(all_pairs: bool) -> None:
    inputs = batch()
    losses = irn_loss(*inputs, RADIUS, all_pairs)
    assert [part.item() for part in losses] == pytest.approx(slow_loss(*inputs, all_pairs), rel=1e-12)


def test_losses_of_known_fields() -> None:
    labels = torch.zeros(1, 12, 12, dtype=torch.uint8)
    labels[..., 6:] = 7
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    to_center = torch.where(columns >= 6, torch.stack([5 - rows, 8 - columns]), 0)[None]
    # The source's arrow minus the target's is target − source.
    losses = irn_loss(torch.zeros(1, 1, 12, 12), to_center, labels, RADIUS)
    assert losses.displacement_fg.item() == losses.displacement_bg.item() == 0
    assert losses.positive.item() == pytest.approx(math.log(2), rel=1e-4)
    assert losses.negative.item() == pytest.approx(math.log(2), rel=1e-4)


@pytest.mark.parametrize("all_pairs", [True, False])
def test_gradients_agree_with_finite_differences(all_pairs: bool) -> None:
    boundary, displacement, labels = batch(1, (5, 8))
    boundary.requires_grad_()
    displacement.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda b, d: irn_loss(b, d, labels, RADIUS, all_pairs).loss, (boundary, displacement)
    )


def test_a_factor_on_the_loss_is_one_on_its_gradient() -> None:
    def gradient(factor: float) -> Tensor:
        boundary, displacement, labels = batch()
        (factor * irn_loss(boundary.requires_grad_(), displacement, labels, RADIUS).loss).backward()
        return boundary.grad

    torch.testing.assert_close(gradient(3.0), 3 * gradient(1.0))


def test_cells_that_share_the_maximum_share_the_gradient() -> None:
    boundary = torch.zeros(1, 1, 1, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[0, IGNORE, IGNORE, 1]]])  # one pair, over four cells
    loss = irn_loss(boundary, torch.zeros(1, 2, 1, 4, dtype=torch.float64), labels, RADIUS, all_pairs=True).loss
    loss.backward()
    assert boundary.grad.flatten().tolist() == pytest.approx([boundary.grad.sum().item() / 4] * 4)
    slope = -1 / (0.5 + 1e-5) * 0.25 / (1 + 1e-5) / 2  # of the logarithm, the sigmoid, the mean, the half
    assert boundary.grad.sum().item() == pytest.approx(slope)


def test_the_parts_of_two_ranks_add_up_to_the_whole_batch() -> None:
    boundary, displacement, labels = batch(4)
    labels[0] = IGNORE  # the ranks' counts differ
    halves = [slice(0, 1), slice(1, 4)]
    counts: list[Tensor] = []

    def compute(part: slice, total=lambda count: count) -> tuple[IrnLosses, Tensor, Tensor]:
        b, d = boundary[part].clone().requires_grad_(), displacement[part].clone().requires_grad_()
        losses = irn_loss(b, d, labels[part], RADIUS, total=total)
        losses.loss.backward()
        return losses, b.grad, d.grad

    for half in halves:
        compute(half, lambda count: counts.append(count) or count)
    assert len(counts) == 2, "one call of total a rank"
    first, second = (compute(half, lambda count: sum(counts)) for half in halves)
    whole = compute(slice(0, 4))
    for part, other, expected in zip(first[0], second[0], whole[0], strict=True):
        torch.testing.assert_close(part + other, expected)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), whole[1])
    torch.testing.assert_close(torch.cat([first[2], second[2]]), whole[2])


def test_unknown_labels_give_a_loss_of_zero_and_no_gradient() -> None:
    boundary, displacement, labels = batch(dtype=torch.float32)
    boundary.requires_grad_()
    displacement.requires_grad_()
    losses = irn_loss(boundary, displacement, torch.full_like(labels, IGNORE), RADIUS)
    losses.loss.backward()
    assert [part.item() for part in losses] == [0.0] * 5
    assert not boundary.grad.any() and not displacement.grad.any()


def test_only_pairs_of_known_cells_are_learnt_from() -> None:
    boundary, displacement, labels = batch()
    labels[:] = IGNORE
    labels[0, 2, 3:5] = 2
    displacement.requires_grad_()
    irn_loss(boundary, displacement, labels, RADIUS).loss.backward()
    touched = displacement.grad.abs().sum(1) > 0
    assert touched.nonzero().tolist() == [[0, 2, 3], [0, 2, 4]]


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_saturated_boundaries_stay_finite(logit: float) -> None:
    boundary, displacement, labels = batch(dtype=torch.float32)
    boundary = torch.full_like(boundary, logit, requires_grad=True)
    loss = irn_loss(boundary, displacement, labels, RADIUS).loss
    loss.backward()
    assert loss.isfinite() and boundary.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision() -> None:
    boundary, displacement, labels = batch(dtype=torch.float32)
    expected = irn_loss(boundary, displacement, labels, RADIUS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = irn_loss(boundary, displacement, labels, RADIUS)
        coarse = irn_loss(boundary.bfloat16(), displacement.bfloat16(), labels, RADIUS)
    assert losses == expected
    assert coarse.loss.dtype == torch.float32


def test_the_order_of_images_and_the_integer_type_of_labels_change_nothing() -> None:
    boundary, displacement, labels = batch()
    expected = irn_loss(boundary, displacement, labels, RADIUS).loss
    torch.testing.assert_close(
        irn_loss(boundary.flip(0), displacement.flip(0), labels.flip(0).long(), RADIUS).loss, expected
    )


def test_parts_carry_no_gradient() -> None:
    boundary, displacement, labels = batch()
    losses = irn_loss(boundary.requires_grad_(), displacement, labels, RADIUS)
    assert [part.requires_grad for part in losses] == [True, False, False, False, False]


def test_shapes_that_do_not_fit_are_refused() -> None:
    boundary, displacement, labels = batch()
    with pytest.raises(ValueError, match=r"\(2, 2, 9, 12\).*\(N, 1, h, w\)"):
        irn_loss(displacement, displacement, labels, RADIUS)
    with pytest.raises(ValueError, match="at least"):
        irn_loss(boundary, displacement, labels, 10)
