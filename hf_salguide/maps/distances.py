"""Distances of a map from a target, one number a sample: 0 where they agree.

All take normalised maps, in [0, 1], but [`energy_outside`], which takes them as they are. Values and gradients are
finite for constant maps and constant targets too.
"""

import torch
from torch import Tensor

from .normalize import RANGE_FLOOR, min_max

KL_FLOOR = 1e-2  # of a normalised map's range: its lowest cell is 0 by construction, which KL cannot take
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # of Wang et al., for a dynamic range of 1


def squared_error(maps: Tensor, target: Tensor) -> Tensor:
    """
    Mean over the cells of the squared difference.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): normalised maps.
        target (`Tensor` of shape `(B, h, w)`): what they are compared with.

    Returns:
        `Tensor` of shape `(B,)`.
    """
    return (maps - target).square().mean(dim=(1, 2))


def absolute_error(maps: Tensor, target: Tensor) -> Tensor:
    """
    Mean over the cells of the absolute difference.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): normalised maps.
        target (`Tensor` of shape `(B, h, w)`): what they are compared with.

    Returns:
        `Tensor` of shape `(B,)`.
    """
    return (maps - target).abs().mean(dim=(1, 2))


def ssim_distance(maps: Tensor, target: Tensor) -> Tensor:
    """
    One minus the structural similarity, with the whole grid as its one window: a map's grid is about as large as the
    window that the measure is usually slid over a picture with.

    `SSIM = (2 m_a m_b + C1) (2 cov + C2) / ((m_a^2 + m_b^2 + C1) (var_a + var_b + C2))`, population variances,
    `C1 = 0.01^2`, `C2 = 0.03^2`.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", IEEE Transactions on Image Processing 2004.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): normalised maps.
        target (`Tensor` of shape `(B, h, w)`): what they are compared with, in [0, 1].

    Returns:
        `Tensor` of shape `(B,)`, in [0, 2].
    """
    mean, target_mean = maps.mean(dim=(1, 2)), target.mean(dim=(1, 2))
    centred, target_centred = maps - mean[:, None, None], target - target_mean[:, None, None]
    covariance = (centred * target_centred).mean(dim=(1, 2))
    variances = centred.square().mean(dim=(1, 2)) + target_centred.square().mean(dim=(1, 2))
    first, second = SSIM_CONSTANTS
    luminance = (2 * mean * target_mean + first) / (mean.square() + target_mean.square() + first)
    return 1 - luminance * (2 * covariance + second) / (variances + second)


def kl_divergence(maps: Tensor, target: Tensor) -> Tensor:
    """
    Kullback-Leibler divergence of the map from the target, `KL(target || map)`, in nats.

    Both get a floor of 0.01 under every cell, added, and are then divided by their sums: a min-maxed map is 0 in its
    lowest cell, where the divergence and its gradient would be infinite.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): normalised maps, not negative.
        target (`Tensor` of shape `(B, h, w)`): what they are compared with, not negative.

    Returns:
        `Tensor` of shape `(B,)`, not negative.
    """
    expected = (target + KL_FLOOR) / (target + KL_FLOOR).sum(dim=(1, 2), keepdim=True)
    given = (maps + KL_FLOOR) / (maps + KL_FLOOR).sum(dim=(1, 2), keepdim=True)
    return (expected * (expected.log() - given.log())).sum(dim=(1, 2))


def correlation_distance(maps: Tensor, target: Tensor) -> Tensor:
    """
    One minus Pearson's correlation over the cells.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): maps, of any scale.
        target (`Tensor` of shape `(B, h, w)`): what they are compared with.

    Returns:
        `Tensor` of shape `(B,)`, in [0, 2]; 1, with a gradient of zero, where one of the two is constant.
    """
    shaped = min_max(maps)[1] & min_max(target)[1]
    centred = maps - maps.mean(dim=(1, 2), keepdim=True)
    target_centred = target - target.mean(dim=(1, 2), keepdim=True)
    squares = centred.square().sum(dim=(1, 2)) * target_centred.square().sum(dim=(1, 2))
    scale = torch.where(shaped, squares, 1.0).sqrt()  # the gradient of a root at 0 is infinite
    return 1 - torch.where(shaped, (centred * target_centred).sum(dim=(1, 2)) / scale, 0.0)


def energy_outside(maps: Tensor, target: Tensor) -> Tensor:
    """
    Share of a map's positive part that lies outside the target, `1 - sum(relu(map) * S) / sum(relu(map))`.

    Where the positive part is under a thousandth of the map's largest magnitude, the share is taken of that instead:
    so value and gradient go to 0 with the positive part, where the bare ratio's gradient grows like one over it.

    Source: Rao, Böhle, Parchami-Araghi, Schiele, "Studying How to Efficiently and Effectively Guide Models with
    Explanations", ICCV 2023, arXiv 2303.11932; the floor is ours.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps, signed, of any scale.
        target (`Tensor` of shape `(B, h, w)`): how far each cell lies inside, in [0, 1].

    Returns:
        `Tensor` of shape `(B,)`, in [0, 1]; 0, with a gradient of zero, where nothing of the map is positive.
    """
    positive = maps.relu()
    total = positive.sum(dim=(1, 2))
    whole = torch.maximum(total, RANGE_FLOOR * maps.abs().amax(dim=(1, 2)))
    return (positive * (1 - target)).sum(dim=(1, 2)) / torch.where(total > 0, whole, 1.0)


def entropy(maps: Tensor) -> Tensor:
    """
    Entropy of a map as a distribution over its cells, `-sum(q ln q)` with `q = map / sum(map)`, in nats.

    A cell with `q = 0` adds 0 with a gradient of 0, not of infinity: a min-maxed map's lowest cell stays 0 whatever
    happens to the map.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): normalised maps, not negative.

    Returns:
        `Tensor` of shape `(B,)`, from 0 (one cell) to `ln(h * w)` (all the same); 0 for a map of zeros.
    """
    total = maps.sum(dim=(1, 2), keepdim=True)
    shares = maps / torch.where(total > 0, total, 1.0)
    return -(shares * torch.where(shares > 0, shares, 1.0).log()).sum(dim=(1, 2))
