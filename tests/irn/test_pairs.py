"""Pairs of cells: which there are, their paths, and the slices that stand for them."""

import math

import pytest
import torch

from ribray.irn.pairs import Pairs, displacements, path


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (5, 34), (10, 152)])
def test_each_unordered_pair_within_the_radius_occurs_once(radius: int, count: int) -> None:
    found = {tuple(displacement) for displacement in displacements(radius).tolist()}
    assert len(found) == len(displacements(radius)) == count
    opposite = {(-dy, -dx) for dy, dx in found}
    reach = range(-radius, radius + 1)
    assert found | opposite == {(dy, dx) for dy in reach for dx in reach if 0 < math.hypot(dy, dx) < radius}
    assert not found & opposite


def test_the_radius_itself_is_too_far() -> None:
    assert [3, 4] not in displacements(5).tolist()
    assert [3, 4] in displacements(6).tolist()


def test_paths_of_known_displacements() -> None:
    assert path(0, 3).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert path(2, 0).tolist() == [[0, 0], [1, 0], [2, 0]]
    # The line through (0, 0) and (1, 1) is 0.71 away from the other two corners.
    assert path(1, 1).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    # At (2, 2) the corners (0, 2) and (2, 0) are 1.41 away.
    assert path(2, -2).tolist() == [[0, -1], [0, 0], [1, -2], [1, -1], [1, 0], [2, -2], [2, -1]]


@pytest.mark.parametrize("displacement", displacements(10).tolist(), ids=str)
def test_a_path_is_the_same_from_both_ends_and_holds_them(displacement: list[int]) -> None:
    dy, dx = displacement
    cells = {tuple(cell) for cell in path(dy, dx).tolist()}
    assert {(0, 0), (dy, dx)} <= cells
    assert {(dy - y, dx - x) for y, x in cells} == cells
    assert {(y - dy, x - dx) for y, x in cells} == {tuple(cell) for cell in path(-dy, -dx).tolist()}


@pytest.mark.parametrize("all_pairs", [True, False])
@pytest.mark.parametrize("size", [(4, 7), (9, 11)])
def test_slices_hold_the_pairs_that_a_loop_over_cells_finds(size: tuple[int, int], all_pairs: bool) -> None:
    radius, (height, width) = 4, size
    margin = radius - 1
    values = torch.rand(size, generator=torch.Generator().manual_seed(0))
    number = torch.arange(height * width).view(size)
    pairs = Pairs(radius, height, width, all_pairs)
    for index, (dy, dx) in enumerate(pairs.displacements.tolist()):
        expected = []
        for y in range(height):
            for x in range(width):
                inside = 0 <= y + dy < height and 0 <= x + dx < width
                away_from_margin = y < height - margin and margin <= x < width - margin
                if inside and (all_pairs or away_from_margin):
                    strongest = max(values[y + j, x + i].item() for j, i in path(dy, dx).tolist())
                    expected.append((y * width + x, (y + dy) * width + x + dx, strongest))
        found = zip(
            pairs.sources(number, index).flatten().tolist(),
            pairs.targets(number, index).flatten().tolist(),
            pairs.strongest(values, index).flatten().tolist(),
            strict=True,
        )
        assert list(found) == expected


def test_a_map_smaller_than_a_displacement_has_no_such_pair() -> None:
    pairs = Pairs(5, 2, 2, all_pairs=True)
    values = torch.ones(3, 1, 2, 2)
    counts = {tuple(d): pairs.strongest(values, i)[0].numel() for i, d in enumerate(pairs.displacements.tolist())}
    assert {displacement: count for displacement, count in counts.items() if count} == {
        (0, 1): 2,
        (1, -1): 1,
        (1, 0): 2,
        (1, 1): 1,
    }


def test_a_map_without_source_away_from_the_margin_is_refused() -> None:
    Pairs(10, 10, 19)
    with pytest.raises(ValueError, match=r"9 x 19 cells.*radius 10.*at least 10 x 19"):
        Pairs(10, 9, 19)
    with pytest.raises(ValueError, match="at least 10 x 19"):
        Pairs(10, 32, 18)
    with pytest.raises(ValueError, match="at least 2 cells, not 1"):
        displacements(1)


def test_the_strongest_boundary_passes_its_gradient_on() -> None:
    values = torch.rand(2, 1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(3, 6, 8, all_pairs=True)
    assert torch.autograd.gradcheck(lambda x: pairs.strongest(x, 7), values.requires_grad_())
