"""From a human saliency map, at the picture's size, to a target on the grid of a model's map."""

import torch
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


def reduced_saliency(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """
    The area means of saliency in bytes, in bytes: what may travel in its place to methods that read area means of it.

    Means are rounded to the next byte, but for two: a mean above 0 stays above 0, and one under 255 under 255. So an
    empty mask is empty afterwards, a full one full, and no other becomes either.

    Args:
        saliency (`Tensor` of shape `(B, H, W)`): uint8 in 0 to 255.
        size (`tuple[int, int]`): `(h, w)`, divisors of `H` and `W`.

    Returns:
        `Tensor` of shape `(B, h, w)`, uint8.

    Raises:
        ValueError: for a size that does not divide the saliency's, or saliency of another type.
    """
    (count, height, width), (rows, columns) = saliency.shape, size
    if saliency.dtype != torch.uint8 or height % rows or width % columns:
        raise ValueError(
            f"saliency is {saliency.dtype} of the shape {(height, width)}; means of {size} need uint8 whose size "
            f"{size} divides."
        )
    if (height, width) == size:
        return saliency
    blocks = saliency.reshape(count, rows, height // rows, columns, width // columns)
    # One dimension after the other takes a third of the time of both at once.
    sums = blocks.sum(dim=2, dtype=torch.int32).sum(dim=3, dtype=torch.int32)
    means = sums / (blocks.shape[2] * blocks.shape[4])
    return torch.where((means > 0) & (means < 255), means.round().clamp_(1, 254), means).to(torch.uint8)
