"""
Where a map's highest pixels lie: overlap at matched area, relevance rank accuracy, the pointing game.

The signed map is upsampled bilinearly to the saliency's size; its order alone counts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..maps import min_max
from ..maps.normalize import CONSTANT_BELOW
from .map_inputs import checked, salient_mask, upsampled


class MatchedArea(NamedTuple):
    """
    Overlap of a map's strongest pixels with the mask, see [`matched_area`].

    Attributes:
        iou (`Tensor` of shape `(B,)`): intersection over union, in [0, 1].
        precision (`Tensor` of shape `(B,)`): share of the map's pixels that lie in the mask (IoP), in [0, 1].
        recall (`Tensor` of shape `(B,)`): share of the mask that the map's pixels cover (IoT), in [0, 1]. The same as
            the precision, as the two areas are.
    """

    iou: Tensor
    precision: Tensor
    recall: Tensor


def matched_area(maps: Tensor, saliency: Tensor) -> MatchedArea:
    """
    Overlap of the mask with as many of the map's highest pixels as the mask has.

    The signed map is upsampled bilinearly to the saliency's size. The mask is `S >= 1/2`; where no pixel reaches 1/2
    (thin strokes after a resize, annotators who disagree), it is what reaches half of the picture's largest saliency.
    Pixels that tie at the lowest rank kept share what is left of the area evenly: the expected overlap if ties were
    broken at random, so flipping both changes nothing.

    Source: the protocol of Viviano, Simpson, Dutil, Bengio, Cohen, "Saliency is a Possible Red Herring When Diagnosing
    Poor Generalization", ICLR 2021, which cuts at the percentile `100 - 100 |mask| / (H W)`; soft masks are ours.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps; their order alone counts.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1].

    Returns:
        [`MatchedArea`]; NaN where the saliency is empty or the map is constant. A full mask gives 1 whatever the map.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    return Pixels.of(*checked(maps, saliency)).overlap()


def relevance_rank(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Relevance rank accuracy: the saliency caught by the map's highest pixels, of what as many pixels could catch.

    The `K` pixels are those of [`matched_area`], `K` the area of its mask: `sum(S on them) / sum(S on the mask)`.
    For saliency of zeros and ones that is the share of them in the mask, the source's definition (and then equal to
    the precision at matched area); soft saliency gives a pixel just outside of the mask its part.

    Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 2022, arXiv 2003.07258; soft saliency is ours.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps; their order alone counts.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1].

    Returns:
        `Tensor` of shape `(B,)` in [0, 1]; NaN where the saliency is empty or the map is constant.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    return Pixels.of(*checked(maps, saliency)).rank()


def pointing_game(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Whether the map's highest pixel lies in the mask, that of [`matched_area`].

    Where several pixels are the highest (bilinear upsampling makes them at a border), it is the share of them that lie
    in the mask: the expected hit if one of them were drawn. No margin of tolerance around the mask.

    Source: Zhang, Lin, Brandt, Shen, Sclaroff, "Top-Down Neural Attention by Excitation Backprop", ECCV 2016.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1].

    Returns:
        `Tensor` of shape `(B,)` in [0, 1], mostly 0 or 1; NaN where the saliency is empty or the map is constant.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    return Pixels.of(*checked(maps, saliency)).pointing()


@dataclass(frozen=True)
class Pixels:
    """
    Maps at the saliency's size, min-maxed, the saliency and its mask, all `(B, H * W)`, and which rows are defined.
    """

    maps: Tensor
    saliency: Tensor
    mask: Tensor
    defined: Tensor

    @classmethod
    def of(cls, maps: Tensor, saliency: Tensor) -> "Pixels":
        normalized, shaped = min_max(maps)  # so that one tolerance for ties fits every scale and offset
        mask = salient_mask(saliency)
        return cls(upsampled(normalized, saliency), saliency.flatten(1), mask, shaped & (mask.amax(dim=1) > 0))

    @cached_property
    def area(self) -> Tensor:
        return self.mask.sum(dim=1)

    @cached_property
    def highest(self) -> Tensor:
        """How far each pixel belongs to as many of the map's highest as the mask has, in [0, 1]."""
        ranks = [self.maps.shape[1] + 1 - max(round(size), 1) for size in self.area.tolist()]
        lowest = [row.kthvalue(rank).values for row, rank in zip(self.maps, ranks, strict=True)]
        threshold = torch.stack(lowest).unsqueeze(1) if lowest else self.maps.new_zeros(0, 1)
        above = (self.maps > threshold + CONSTANT_BELOW).to(self.maps.dtype)
        reached = (self.maps >= threshold - CONSTANT_BELOW).to(self.maps.dtype)  # interpolation rounds what is tied
        above_area = above.sum(dim=1)
        share = (self.area - above_area) / (reached.sum(dim=1) - above_area)
        return above + share.unsqueeze(1) * (reached - above)

    def overlap(self) -> MatchedArea:
        common = torch.where(self.defined, (self.highest * self.mask).sum(dim=1), torch.nan)
        return MatchedArea(
            iou=common / (2 * self.area - common), precision=common / self.area, recall=common / self.area
        )

    def rank(self) -> Tensor:
        caught = (self.highest * self.saliency).sum(dim=1) / (self.mask * self.saliency).sum(dim=1)
        return torch.where(self.defined, caught, torch.nan)

    def pointing(self) -> Tensor:
        peak = (self.maps >= self.maps.amax(dim=1, keepdim=True) - CONSTANT_BELOW).to(self.maps.dtype)
        return torch.where(self.defined, (peak * self.mask).sum(dim=1) / peak.sum(dim=1), torch.nan)
