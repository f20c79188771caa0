"""Random draws that are a function of their key alone, and so touch no generator.

What a method draws is keyed by the seed, the optimizer step and the row's place in the global batch. Resuming,
accumulating or spreading a batch over processes then changes nothing, nor does a method that draws disturb the
shuffling, the augmentation or the dropout of the run it is part of.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # of splitmix64, as signed 64-bit integers
_GOLDEN = -7046029254386353131
_BLOBS = 6  # cells a side of the coarse field that a random saliency map is drawn on


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """The logical shift; torch's own on int64 is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit integers."""
    value = (value ^ _shift_right(value, 30)) * _MULTIPLIERS[0]
    value = (value ^ _shift_right(value, 27)) * _MULTIPLIERS[1]
    return value ^ _shift_right(value, 31)


def keyed_uniform(rows: Tensor, count: int, seed: int, step: int) -> Tensor:
    """
    Uniform numbers in [0, 1), `count` a row, the same on every device and for every batch that a row is part of.

    Args:
        rows (`Tensor` of shape `(B,)`, int64): the key of each row: its position in the global batch.
        count (`int`): how many numbers a row needs.
        seed (`int`): the run's seed.
        step (`int`): the optimizer step.

    Returns:
        `Tensor` of shape `(B, count)`, float32.
    """
    cells = torch.arange(count, device=rows.device, dtype=torch.int64)
    key = torch.full((), seed, device=rows.device, dtype=torch.int64)
    for part in (torch.full_like(key, step), rows.to(torch.int64).unsqueeze(1), cells.unsqueeze(0)):
        key = _mix((key + _GOLDEN) ^ _mix(part + _GOLDEN))
    return _shift_right(key, 40).to(torch.float32) / (1 << 24)


def random_saliency(rows: Tensor, size: tuple[int, int], seed: int, step: int) -> Tensor:
    """
    Saliency maps that know nothing of the picture: smooth random fields, soft, with a mean of one half.

    Args:
        rows (`Tensor` of shape `(B,)`, int64): the key of each row, see [`keyed_uniform`].
        size (`tuple[int, int]`): `(H, W)`.
        seed (`int`): the run's seed.
        step (`int`): the optimizer step.

    Returns:
        `Tensor` of shape `(B, H, W)` in [0, 1), float32.
    """
    coarse = keyed_uniform(rows, _BLOBS * _BLOBS, seed, step).reshape(-1, 1, _BLOBS, _BLOBS)
    return F.interpolate(coarse, size, mode="bilinear", align_corners=False).squeeze(1)
