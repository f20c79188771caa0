"""Reading a tensor's shape: which axes are the picture's rows and columns, which tokens come before the grid's."""

import math

import torch

from .layer import Layout

MAX_PREFIX_TOKENS = 8
MIN_TOKEN_CHANNELS = 4


def _integer_stride(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one whole stride explains both edges, rounded up or down."""
    if any(cells < 1 or cells > edge for cells, edge in zip(grid, size, strict=True)):
        return False
    strides = range(max(1, size[0] // (grid[0] + 1)), size[0] // max(1, grid[0] - 1) + 1)
    return any(
        grid == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        or grid == (size[0] // stride, size[1] // stride)
        for stride in strides
    )


def _exact_stride(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    return all(edge % cells == 0 for cells, edge in zip(grid, size, strict=True)) and (
        size[0] // grid[0] == size[1] // grid[1]
    )


def _rough_stride(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether some stride explains both edges when every layer may have cut off a border."""
    (low, high), (other_low, other_high) = (
        (edge / (cells + 1), edge / max(cells - 1, 0.5)) for cells, edge in zip(grid, size, strict=True)
    )
    overlap = low <= other_high and other_low <= high
    return overlap and all(2 <= cells <= edge for cells, edge in zip(grid, size, strict=True))


def map_layouts(shape: torch.Size, size: tuple[int, int]) -> list[tuple[Layout, tuple[int, int]]]:
    """The layouts as which a 4-D output may be read, the better founded first; a single cell is no map."""
    readings: list[tuple[Layout, tuple[int, int]]] = [("NCHW", (shape[2], shape[3])), ("NHWC", (shape[1], shape[2]))]
    for fits in (_exact_stride, _integer_stride, _rough_stride):
        found = [(layout, grid) for layout, grid in readings if math.prod(grid) > 1 and fits(grid, size)]
        if found:
            return found
    return []


def token_grids(shape: torch.Size, size: tuple[int, int]) -> list[tuple[int, tuple[int, int]]]:
    """
    Prefix tokens and grid as which a 3-D output `(B, L, C)` may be read, the better founded first.

    An exact stride comes before a rounded one, whatever the prefix: 16 patches with a class and four register tokens
    would else be read as 5 × 4.
    """
    _, length, channels = shape
    found: list[tuple[int, tuple[int, int]]] = []
    if channels < MIN_TOKEN_CHANNELS:
        return found
    for fits in (_exact_stride, _integer_stride):
        for prefix in range(MAX_PREFIX_TOKENS + 1):
            cells = length - prefix
            for height in range(1, cells + 1):
                if cells < 2 or cells % height:
                    continue
                grid = (height, cells // height)
                if fits(grid, size) and (prefix, grid) not in found:
                    found.append((prefix, grid))
    return found
