"""Slow, obvious computations that the product's fast ones are measured and tested against."""

import torch
from torch import Tensor


def dense_transition(boundary: Tensor, radius: int, beta: float) -> Tensor:
    """Return the walk's transition matrix (cells, cells), columns normalised, for a boundary (h, w)."""
    height, width = boundary.shape
    rows, columns = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    affinity = torch.eye(height * width, dtype=boundary.dtype)
    reach = range(1 - radius, radius)
    for dy, dx in ((dy, dx) for dy in reach for dx in reach if 0 < dy * dy + dx * dx < radius * radius):
        inside = (rows + dy >= 0) & (rows + dy < height) & (columns + dx >= 0) & (columns + dx < width)
        y, x = rows[inside], columns[inside]
        path = [boundary[y + j, x + i] for j, i in cells_on_path(dy, dx)]
        affinity[y * width + x, (y + dy) * width + x + dx] = (1 - torch.stack(path).amax(0)) ** beta
    return affinity.div_(affinity.sum(0))


def cells_on_path(dy: int, dx: int) -> list[tuple[int, int]]:
    """Return the cells between (0, 0) and (dy, dx) that lie less than 1 from the line through both."""
    box = [(j, i) for j in range(min(dy, 0), max(dy, 0) + 1) for i in range(min(dx, 0), max(dx, 0) + 1)]
    return [(j, i) for j, i in box if (j * dx - i * dy) ** 2 < dy * dy + dx * dx]


def dense_random_walk(
    maps: Tensor, boundary: Tensor, *, radius: int = 5, beta: float = 10, exp_times: int = 8
) -> Tensor:
    """Return the maps (C, h, w) after 2 ** exp_times steps, by squaring the dense matrix as IRN's publication does."""
    transition = dense_transition(boundary, radius, beta)
    for _ in range(exp_times):
        transition = transition @ transition
    return ((maps * (1 - boundary)).flatten(1) @ transition).view_as(maps)


def example(classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return maps (C, h, w) and a boundary (h, w) of closed, uneven outlines, drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 1 + classes, max(2, height // 8), max(2, width // 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return smooth[1:].clamp(0, 1) ** 1.3, (3 - 10 * smooth[0].abs()).sigmoid()
