"""GNDRP against a slow reading of its definition, and the cases that its definition singles out."""

import math

import pytest
import torch
from torch import Tensor

from ribray.methods.pooling import pool


def slow_gndrp(cams: Tensor, labels: Tensor, threshold: float) -> list[list[float]]:
    logits = []
    for row in range(cams.shape[0]):
        logits.append([])
        for category in range(cams.shape[1]):
            cells = cams[row, category].flatten().tolist()
            if labels[row, category]:
                peak = max(cells)
                kept = [cell for cell in cells if cell / peak < threshold]
            else:
                kept = cells
            logits[-1].append(math.fsum(kept) / len(cells))
    return logits


@pytest.fixture
def cams() -> Tensor:
    values = torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[0, 1] = -values[0, 1].abs() - 0.1  # nowhere positive
    values[1, 2] = values[1, 2].abs() + 1
    return values


@pytest.fixture
def labels() -> Tensor:
    chosen = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    chosen[0, 1] = chosen[1, 2] = True
    return chosen


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.9])
def test_gndrp_equals_a_loop_over_rows_and_classes(cams: Tensor, labels: Tensor, threshold: float) -> None:
    expected = torch.tensor(slow_gndrp(cams, labels, threshold), dtype=torch.float64)
    torch.testing.assert_close(pool(cams, labels, "gndrp", threshold), expected)


def test_gndrp_of_a_known_map() -> None:
    cams = torch.tensor([[[[10.0, 4.0, 3.9, -2.0]]]])
    present, absent = torch.tensor([[True]]), torch.tensor([[False]])
    assert pool(cams, present, "gndrp", 0.4).item() == pytest.approx((3.9 - 2.0) / 4)  # 4.0 lies at τ: not counted
    assert pool(cams, absent, "gndrp", 0.4).item() == pytest.approx(15.9 / 4)


def test_a_map_without_positive_cell_gives_no_logit_and_no_gradient() -> None:
    cams = torch.tensor([[[[-1.0, -2.0], [-3.0, -4.0]]]], requires_grad=True)
    logit = pool(cams, torch.tensor([[True]]), "gndrp", 0.4)
    logit.sum().backward()
    assert logit.item() == 0
    assert torch.equal(cams.grad, torch.zeros_like(cams))


def test_no_gradient_runs_through_the_choice_of_cells(cams: Tensor, labels: Tensor) -> None:
    cams.requires_grad_()
    pool(cams, labels, "gndrp", 0.4).sum().backward()
    relative = cams.detach() / cams.detach().amax((2, 3), keepdim=True)
    counted = (relative < 0.4) | ~labels[:, :, None, None]
    torch.testing.assert_close(cams.grad, counted.double() / cams[0, 0].numel())


def test_global_average_pooling_ignores_labels(cams: Tensor, labels: Tensor) -> None:
    assert torch.equal(pool(cams, labels, "gap"), cams.mean((2, 3)))


def test_first_classes_reproduces_the_defect_for_later_classes_only(cams: Tensor, labels: Tensor) -> None:
    labels[:] = True
    defect = pool(cams, labels, "gndrp", 0.4, first_classes=2)
    torch.testing.assert_close(defect[:, :2], pool(cams, labels, "gndrp", 0.4)[:, :2])
    torch.testing.assert_close(defect[:, 2:], cams.mean((2, 3))[:, 2:])
    assert labels.all(), "the caller's labels stay as they are"


def test_unknown_pooling_is_refused(cams: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'max'.*'gndrp' or 'gap'"):
        pool(cams, labels, "max")
