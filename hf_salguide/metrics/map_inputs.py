"""What the measures of alignment start from: sound maps and saliency, maps at the size of pictures, masks."""

import torch
import torch.nn.functional as F
from torch import Tensor


def checked(maps: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
    """Maps in single precision at least, and saliency of their type and on their device, after a look at both."""
    if maps.ndim != 3 or saliency.ndim != 3 or len(maps) != len(saliency):
        raise ValueError(
            f"maps has the shape {tuple(maps.shape)} and saliency {tuple(saliency.shape)}; "
            "they have to be (B, h, w) and (B, H, W) with the same B."
        )
    maps = finite(maps)
    saliency = saliency.to(maps)
    if saliency.numel():
        low, high = (float(bound) for bound in saliency.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"saliency holds values from {low:g} to {high:g}; it has to lie in [0, 1] (bytes: / 255)."
            )
    return maps, saliency


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
    """Maps at the saliency's size, `(B, H * W)`."""
    size = saliency.shape[-2:]
    return F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1).flatten(1)
