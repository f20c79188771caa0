"""Distances between two normalised maps, one number a sample."""

from torch import Tensor


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
