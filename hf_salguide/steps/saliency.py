"""The saliency of a micro-batch, controls applied."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..guidance import Guidance, batch_saliency
from ..maps import random_saliency
from .draws import Draws

SAMPLES = 4  # a side of each cell: the rounding to bytes then leaves a tenth of a byte's step in the cell's mean


def carried_size(
    methods: Sequence[Guidance], grid: tuple[int, int] | None, picture: tuple[int, int]
) -> tuple[int, int]:
    """
    The least size at which a batch's saliency may travel without methods noticing.

    Methods that read nothing but area means over the cells of a grid read the same of area means over parts of each
    cell, where cells and parts are of whole pixels.

    Args:
        methods (`Sequence[Guidance]`): the methods of the run.
        grid (`tuple[int, int]`, *optional*): `(h, w)`, that of the feature layer.
        picture (`tuple[int, int]`): the picture's `(H, W)`, which the grid belongs to.

    Returns:
        `tuple[int, int]`: a multiple of the grid, four parts a side of a cell where there are as many pixels or the
        next number above; the picture's size where a method reads saliency in pixels, and along a side where the cells
        are not of whole pixels.
    """
    if grid is None or any(method.saliency_at != "grid" for method in methods):
        return picture
    return _carried_side(grid[0], picture[0]), _carried_side(grid[1], picture[1])


def _carried_side(cells: int, pixels: int) -> int:
    if pixels % cells:
        return pixels
    each = pixels // cells
    return cells * next(parts for parts in range(min(SAMPLES, each), each + 1) if each % parts == 0)


def step_saliency(
    inputs: dict[str, Any],
    draws: Draws,
    empty_mask: str,
    random: bool = False,
    invert: bool = False,
    reduced: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """
    The saliency that methods are told.

    Args:
        inputs (`dict`): a collated batch.
        draws ([`Draws`]): what random saliency is keyed by.
        empty_mask (`str`): see [`~guidance.batch_saliency`].
        random (`bool`, *optional*, defaults to `False`): random maps in place of the human ones.
        invert (`bool`, *optional*, defaults to `False`): `1 - S` in place of `S`.
        reduced (`tuple[int, int]`, *optional*): see [`~guidance.batch_saliency`].

    Returns:
        `tuple` of saliency `(B, H, W)`, float32 in [0, 1], and `(B,)` boolean, which rows count: `empty_mask` is about
        the saliency after the controls as well.

    Raises:
        ValueError: see [`~guidance.batch_saliency`].
    """
    saliency, counts = batch_saliency(
        inputs["pixel_values"], inputs.get("saliency"), inputs.get("has_saliency"), empty_mask, reduced
    )
    replaced = counts[:, None, None]
    if random:
        size = (saliency.shape[1], saliency.shape[2])
        saliency = torch.where(replaced, random_saliency(draws.rows, size, draws.seed, draws.step), saliency)
    if invert:
        saliency = torch.where(replaced, 1 - saliency, saliency)
        if empty_mask == "skip":  # a full mask has become an empty one
            counts = counts & (saliency.amax(dim=(1, 2)) > 0)
    return saliency, counts
