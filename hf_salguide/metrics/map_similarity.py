"""
A map and human saliency as rankings and as distributions over the map's own grid.

The saliency is averaged by area onto the grid of the map, as the targets of the guidance methods are, and not the map
upsampled: interpolated pixels are no new observations, and on a grid of 7 x 7 both cost next to nothing.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..maps import entropy, min_max
from .map_inputs import checked, finite

KL_EPSILON = 2.0**-52  # of the code of Bylinskii et al.
PLATEAU = 1e-6  # of the saliency's range on the grid: cells that differ by less than about this tie


def spearman(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Spearman's rank correlation of the map's cells with the saliency on them; tied cells get their average rank.

    Cells whose saliency differs by less than about 1e-6 of its range tie.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps, signed.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1], averaged by area to `(h, w)`.

    Returns:
        `Tensor` of shape `(B,)` in [-1, 1]; NaN where the map or the saliency on its grid is constant.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    return Grids.of(*checked(maps, saliency)).spearman()


def kl_divergence_of_maps(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Kullback-Leibler divergence of the map from the saliency, both as distributions over the map's cells, in nats.

    `sum(Q ln(e + Q / (e + P)))` with `P = relu(map) / sum(relu(map))`, `Q = S / sum(S)` and `e = 2^-52`: 0 where they
    agree, and no more than about 36. Saliency where the map is not positive costs 36 nats times its share: it is the
    measure that punishes what a map misses.

    Source: Bylinskii, Judd, Oliva, Torralba, Durand, "What do different evaluation metrics tell us about saliency
    models?", IEEE TPAMI 2019, arXiv 1604.03605; taking the positive part of a signed map is ours.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps, signed.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1], averaged by area to `(h, w)`.

    Returns:
        `Tensor` of shape `(B,)`, not negative; NaN where the saliency is empty or the map has no positive part.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    return Grids.of(*checked(maps, saliency)).kl_divergence()


def similarity(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Histogram intersection of the map and the saliency, both as distributions over the map's cells: `sum(min(P, Q))`.

    `P` and `Q` are those of [`kl_divergence_of_maps`].

    Source: Bylinskii et al., IEEE TPAMI 2019, arXiv 1604.03605, whose code min-maxes the map first; here its positive
    part is taken, so that a cell that speaks against the class counts nothing.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps, signed.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1], averaged by area to `(h, w)`.

    Returns:
        `Tensor` of shape `(B,)` from 0 (nothing in common) to 1 (the same); NaN where the saliency is empty or the map
        has no positive part.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    return Grids.of(*checked(maps, saliency)).similarity()


def map_entropy(maps: Tensor) -> Tensor:
    """
    Entropy of a map's positive part as a distribution over its cells, in nats: how widely the evidence is spread.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps, signed.

    Returns:
        `Tensor` of shape `(B,)` from 0 (one cell) to `ln(h * w)` (the same everywhere); NaN where nothing of the map
        is positive or a cell is not finite.
    """
    positive, defined = _distribution(finite(maps))
    return torch.where(defined, entropy(positive), torch.nan)


@dataclass(frozen=True)
class Grids:
    """Maps and the saliency averaged onto their grid, both `(B, h, w)`."""

    maps: Tensor
    saliency: Tensor

    @classmethod
    def of(cls, maps: Tensor, saliency: Tensor) -> "Grids":
        height, width = maps.shape[-2:]
        return cls(maps, F.adaptive_avg_pool2d(saliency.unsqueeze(1), (height, width)).squeeze(1))

    def spearman(self) -> Tensor:
        wanted, placed = min_max(self.saliency)
        wanted = (wanted / PLATEAU).round()  # averages over windows of several sizes round what is tied apart
        ranks, wanted_ranks = _centred_ranks(self.maps), _centred_ranks(wanted)
        squares = ranks.square().sum(dim=1) * wanted_ranks.square().sum(dim=1)
        defined = min_max(self.maps)[1] & placed
        return torch.where(defined, (ranks * wanted_ranks).sum(dim=1) / squares.sqrt(), torch.nan)

    def kl_divergence(self) -> Tensor:
        (given, positive), (wanted, annotated) = _distribution(self.maps), _distribution(self.saliency)
        terms = wanted * (KL_EPSILON + wanted / (KL_EPSILON + given)).log()
        return torch.where(positive & annotated, terms.sum(dim=(1, 2)).clamp(min=0), torch.nan)

    def similarity(self) -> Tensor:
        (given, positive), (wanted, annotated) = _distribution(self.maps), _distribution(self.saliency)
        return torch.where(positive & annotated, torch.minimum(given, wanted).sum(dim=(1, 2)), torch.nan)


def _distribution(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The positive parts, each divided by its sum, and where there is one."""
    positive = maps.relu()
    total = positive.sum(dim=(1, 2), keepdim=True)
    defined = (total > 0) & total.isfinite()
    return positive / torch.where(defined, total, 1.0), defined[:, 0, 0]


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks within each row of `(B, ...)`, ties at their average, minus their mean: `(B, P)` in the values' type."""
    flat = values.flatten(1)
    ordered, order = flat.sort(dim=1)
    below, through = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
    centred = (below + through - flat.shape[1]).to(flat.dtype) / 2
    return torch.empty_like(flat).scatter_(1, order, centred)
