"""What the measures of alignment start from: sound maps and saliency, maps at the size of pictures, masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDING = 1e-3  # of saliency that was resized or averaged in floating point


def checked(maps: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
    """
    Maps in single precision at least, and saliency of their type and on their device, after a look at both.

    Saliency that leaves [0, 1] by rounding, up to 0.001, is clamped.
    """
    if maps.ndim != 3 or saliency.ndim != 3 or len(maps) != len(saliency):
        raise ValueError(
            f"maps has the shape {tuple(maps.shape)} and saliency {tuple(saliency.shape)}; "
            "they have to be (B, h, w) and (B, H, W) with the same B."
        )
    maps = finite(maps)
    saliency = saliency.to(maps)
    if saliency.numel():
        low, high = (float(bound) for bound in saliency.aminmax())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"saliency holds values from {low:g} to {high:g}; it has to lie in [0, 1] (bytes: / 255)."
            )
    return maps, saliency.clamp(0, 1)


def finite(maps: Tensor) -> Tensor:
    """Maps in single precision at least, wholly NaN where a cell is not finite."""
    maps = maps if maps.dtype == torch.float64 else maps.float()
    return torch.where(maps.isfinite().all(dim=2, keepdim=True).all(dim=1, keepdim=True), maps, torch.nan)


def salient_mask(saliency: Tensor) -> Tensor:
    """`(B, H * W)` of zeros and ones: what reaches 1/2, or half of the largest value where nothing does."""
    saliency = saliency.flatten(1)
    largest = saliency.amax(dim=1, keepdim=True)
    threshold = torch.where(largest >= 0.5, 0.5, largest / 2)
    return ((saliency >= threshold) & (largest > 0)).to(saliency.dtype)


def upsampled(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Maps at the saliency's size, `(B, H * W)`: interpolated bilinearly, or, along a side that is longer than the
    saliency's, averaged by area.
    """
    (height, width), size = maps.shape[-2:], saliency.shape[-2:]
    planes = maps.unsqueeze(1)
    if height > size[0] or width > size[1]:  # interpolation reads two cells a pixel and skips those between
        planes = F.adaptive_avg_pool2d(planes, (min(height, size[0]), min(width, size[1])))
    return F.interpolate(planes, size, mode="bilinear", align_corners=False).squeeze(1).flatten(1)
