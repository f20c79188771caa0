"""Normalisation of maps to [0, 1]."""

import torch
from torch import Tensor

RANGE_FLOOR = 1e-3  # of a map's largest magnitude: the gradient of min-max grows like 1 / range
CONSTANT_BELOW = 1e-6  # of a map's largest magnitude: what is flatter is rounding, not a map


def min_max(maps: Tensor) -> tuple[Tensor, Tensor]:
    """
    Min-max normalisation of each map by itself, with a floor under the range.

    `N(c) = (c - min c) / max(max c - min c, 1e-3 * max |c|)`. The floor bounds the gradient, which otherwise grows
    like one over the range. A map whose range is under `1e-6 * max |c|` (a constant one, all zeros included) has no
    shape: it becomes zeros, with a gradient of exactly zero, and is reported as not valid.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps, of any scale and sign.

    Returns:
        `tuple` of the normalised maps, `(B, h, w)` in [0, 1], and a boolean `(B,)`, `False` where a map is constant.

    Source: Boyd et al., CYBORG, WACV 2023, which divides by the bare range; the floor is ours.
    """
    low = maps.amin(dim=(1, 2), keepdim=True)
    high = maps.amax(dim=(1, 2), keepdim=True)
    magnitude = torch.maximum(low.abs(), high.abs())
    spread = high - low
    valid = (spread > CONSTANT_BELOW * magnitude) & torch.isfinite(spread)
    scale = torch.where(valid, torch.maximum(spread, RANGE_FLOOR * magnitude), 1.0)
    normalized = torch.where(valid, (maps - low) / scale, 0.0)
    return normalized, valid[:, 0, 0]
