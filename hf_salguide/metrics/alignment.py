"""Agreement of a model's map with human saliency."""

import torch
import torch.nn.functional as F
from torch import Tensor


def energy_inside(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Share of a map's positive energy that lies on the annotated evidence.

    `sum(relu(map) * S) / sum(relu(map))`, the map upsampled bilinearly to the saliency's size; the energy-based
    pointing game of Wang et al., "Score-CAM", CVPR workshops 2020, with soft saliency as weight.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1].

    Returns:
        `Tensor` of shape `(B,)` in [0, 1]; NaN where the saliency is empty or the map has no positive part.
    """
    positive = F.interpolate(maps.relu().unsqueeze(1), saliency.shape[-2:], mode="bilinear", align_corners=False)
    positive = positive.squeeze(1)
    total = positive.sum(dim=(1, 2))
    share = (positive * saliency).sum(dim=(1, 2)) / total
    defined = (total > 0) & (saliency.amax(dim=(1, 2)) > 0)
    return torch.where(defined, share, torch.nan)
