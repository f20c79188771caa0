"""The saliency of a micro-batch, controls applied."""

from typing import Any

import torch
from torch import Tensor

from ..guidance import batch_saliency
from ..maps import random_saliency
from .draws import Draws


def step_saliency(
    inputs: dict[str, Any], draws: Draws, empty_mask: str, random: bool = False, invert: bool = False
) -> tuple[Tensor, Tensor]:
    """
    The saliency that methods are told.

    Args:
        inputs (`dict`): a collated batch.
        draws ([`Draws`]): what random saliency is keyed by.
        empty_mask (`str`): see [`~guidance.batch_saliency`].
        random (`bool`, *optional*, defaults to `False`): random maps in place of the human ones.
        invert (`bool`, *optional*, defaults to `False`): `1 - S` in place of `S`.

    Returns:
        `tuple` of saliency `(B, H, W)`, float32 in [0, 1], and `(B,)` boolean, which rows count: `empty_mask` is about
        the saliency after the controls as well.

    Raises:
        ValueError: see [`~guidance.batch_saliency`].
    """
    saliency, counts = batch_saliency(
        inputs["pixel_values"], inputs.get("saliency"), inputs.get("has_saliency"), empty_mask
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
