"""From a human saliency map, at the picture's size, to a target on the grid of a model's map."""

import torch.nn.functional as F
from torch import Tensor

from .normalize import min_max


def saliency_target(saliency: Tensor, grid: tuple[int, int], resize: str = "area") -> tuple[Tensor, Tensor]:
    """
    Resizes saliency to a grid and min-maxes each map.

    Args:
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1], 1 = salient; soft maps stay soft.
        grid (`tuple[int, int]`): `(h, w)`, the size of the model's map.
        resize (`str`, *optional*, defaults to `"area"`): `"area"` (each cell is the mean of what it covers) or
            `"bilinear"` (antialiased, as the CYBORG code does with PIL).

    Returns:
        `tuple` of the target `(B, h, w)` in [0, 1] and a boolean `(B,)`, `False` where the resized map is constant
        (an empty or a full mask) and so says nothing about the place.

    Raises:
        ValueError: for an unknown `resize`.
    """
    if resize == "area":
        resized = F.adaptive_avg_pool2d(saliency.unsqueeze(1), grid)
    elif resize == "bilinear":
        resized = F.interpolate(saliency.unsqueeze(1), grid, mode="bilinear", antialias=True, align_corners=False)
    else:
        raise ValueError(f'resize="{resize}" is not known; choose "area" or "bilinear".')
    return min_max(resized.squeeze(1))
