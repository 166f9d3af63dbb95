"""The sparse walk against the dense matrix squared, and what must not change its result."""

import pytest
import torch
from torch import Tensor

from benchmarks.oracles import dense_random_walk, dense_transition, example
from ribray.irn import random_walk as module
from ribray.irn.random_walk import random_walk


def walk_one(maps: Tensor, boundary: Tensor, **options: float) -> Tensor:
    (walked,) = random_walk([maps], [boundary], **options)
    return walked


@pytest.mark.parametrize("size", [(23, 31), (31, 8), (3, 4), (1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize(
    "options", [{}, {"radius": 3, "beta": 1.5}, {"exp_times": 0}, {"exp_times": 1}, {"exp_times": 10}], ids=str
)
def test_the_walk_equals_the_dense_matrix_squared(size: tuple[int, int], options: dict) -> None:
    maps, boundary = example(3, *size)
    expected = dense_random_walk(maps.double(), boundary.double(), **options)
    torch.testing.assert_close(walk_one(maps.double(), boundary.double(), **options), expected, atol=1e-7, rtol=0)
    walked = walk_one(maps, boundary, **options)
    assert walked.dtype == torch.float32 and walked.shape == maps.shape
    torch.testing.assert_close(walked.double(), expected, atol=5e-6, rtol=0)


def test_boundaries_drawn_at_random_do_no_harm() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 20, 26, generator=generator)
    boundary = torch.rand(20, 26, generator=generator) ** 8
    expected = dense_random_walk(maps.double(), boundary.double())
    torch.testing.assert_close(walk_one(maps, boundary).double(), expected, atol=5e-6, rtol=0)


def test_the_dense_matrix_of_three_cells() -> None:
    boundary = torch.tensor([[0.0, 0.5, 0.0]])
    # Affinity 0.5 between all of them: over the cell in the middle leads every path.
    expected = torch.tensor([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]]) / 2
    assert torch.equal(dense_transition(boundary, 5, 1), expected)
    maps = torch.tensor([[[1.0, 0.0, 0.0]]])
    torch.testing.assert_close(walk_one(maps, boundary, beta=1, exp_times=0), torch.tensor([[[0.5, 0.25, 0.25]]]))


def test_maps_are_multiplied_by_one_minus_the_boundary() -> None:
    maps, boundary = example(1, 6, 7)
    wall = torch.ones_like(boundary)
    wall[2, 3] = 0.25
    expected = torch.zeros_like(maps)
    expected[:, 2, 3] = 0.75 * maps[:, 2, 3]
    # Nothing leaves a cell whose neighbours are walls.
    torch.testing.assert_close(walk_one(maps, wall), expected)


def test_a_level_map_stays_level() -> None:
    _, boundary = example(1, 30, 40)
    maps = 0.7 / (1 - boundary)[None]
    torch.testing.assert_close(walk_one(maps, boundary), torch.full_like(maps, 0.7), atol=1e-6, rtol=0)


def test_nothing_crosses_a_closed_wall() -> None:
    boundary = torch.zeros(12, 15)
    boundary[:, 7] = 1
    maps = torch.zeros(1, 12, 15)
    maps[:, :, :7] = 1
    walked = walk_one(maps, boundary)
    assert not walked[:, :, 7:].any()
    torch.testing.assert_close(walked[:, :, :7], torch.ones(1, 12, 7))


def test_flipped_images_walk_alike() -> None:
    maps, boundary = example(2, 17, 22)
    expected = walk_one(maps, boundary)
    for axes in ((-1,), (-2,), (-1, -2)):
        flipped = walk_one(maps.flip(axes), boundary.flip(axes)).flip(axes)
        torch.testing.assert_close(flipped, expected, atol=2e-6, rtol=0)


def test_a_result_does_not_depend_on_the_other_images() -> None:
    images = [example(classes, height, width) for classes, height, width in [(2, 9, 30), (1, 24, 5), (3, 16, 16)]]
    images.append((images[0][0][:0], images[0][1]))
    together = random_walk([maps for maps, _ in images], [boundary for _, boundary in images])
    reverse = random_walk([maps for maps, _ in images[::-1]], [boundary for _, boundary in images[::-1]])[::-1]
    for (maps, boundary), in_batch, in_reverse in zip(images, together, reverse, strict=True):
        alone = walk_one(maps, boundary)
        assert torch.equal(alone, in_batch) and torch.equal(alone, in_reverse)


def test_images_that_walk_side_by_side_do_not_meet() -> None:
    images = [example(classes, height, width) for classes, height, width in [(2, 9, 30), (1, 24, 5), (3, 16, 16)]]
    maps, boundaries = [maps for maps, _ in images], [boundary for _, boundary in images]
    for walked, alone in zip(module._walk(maps, boundaries, 5, 10, 256), random_walk(maps, boundaries), strict=True):
        torch.testing.assert_close(walked, alone, atol=2e-6, rtol=0)


def test_images_without_class_and_empty_batches_pass_through() -> None:
    assert random_walk([], []) == []
    (walked,) = random_walk([torch.zeros(0, 4, 6)], [torch.zeros(4, 6)])
    assert walked.shape == (0, 4, 6)


def test_inputs_stay_as_they_are() -> None:
    maps, boundary = example(2, 10, 12)
    maps_before, boundary_before = maps.clone(), boundary.clone()
    walk_one(maps, boundary)
    assert torch.equal(maps, maps_before) and torch.equal(boundary, boundary_before)


@pytest.mark.parametrize("steps", [1, 2, 8, 256, 1024])
def test_chebyshev_weights_make_the_power(steps: int) -> None:
    weights = module._chebyshev_weights(steps)
    assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    power = sum(weight * torch.cos(k * torch.acos(x)) for k, weight in weights.items())
    torch.testing.assert_close(power, x**steps, atol=2 * module._TAIL, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    maps, boundary = example(2, 6, 7)
    with pytest.raises(ValueError, match=r"\(2, 6, 7\).*\(7, 6\)"):
        random_walk([maps], [boundary.T])
    with pytest.raises(ValueError, match="1 images with maps, but 0 boundaries"):
        random_walk([maps], [])
    with pytest.raises(ValueError, match="beta above 0"):
        random_walk([maps], [boundary], beta=0)
    with pytest.raises(ValueError, match="exp_times"):
        random_walk([maps], [boundary], exp_times=-1)
