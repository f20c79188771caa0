"""
Agreement of a model's map with human saliency: how much of its mass lies there, and all measures at once.

Pure functions of raw, signed maps `(B, h, w)` and human saliency `(B, H, W)` in [0, 1], one number a picture. What is
not defined for a picture is NaN, and [`alignment_summary`] counts it. Four kinds of picture come up again and again:

| | energy, mass | matched area, rank, pointing | Spearman | KL, similarity |
|---|---|---|---|---|
| saliency is 0 everywhere | NaN | NaN | NaN | NaN |
| saliency is 1 everywhere | 1 | 1 | NaN | defined |
| map is constant | mean of the weight if positive, else NaN | NaN | NaN | as a flat map if positive, else NaN |
| map is nowhere positive | NaN | defined: its order is | defined | NaN |

A map with a cell that is not finite is NaN in all of them. Along a side on which a map is finer than the saliency it
is averaged by area where it would be upsampled.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .highest_pixels import MatchedArea, Pixels, matched_area, pointing_game, relevance_rank
from .map_inputs import checked, salient_mask, upsampled
from .map_similarity import Grids, kl_divergence_of_maps, map_entropy, similarity, spearman

__all__ = [
    "MatchedArea",
    "alignment_metrics",
    "alignment_summary",
    "energy_inside",
    "kl_divergence_of_maps",
    "map_entropy",
    "matched_area",
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "similarity",
    "spearman",
]


def energy_inside(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Share of a map's positive energy that lies on the annotated evidence.

    `sum(relu(map) * S) / sum(relu(map))`, the positive part upsampled bilinearly to the saliency's size; the
    energy-based pointing game of Wang et al., "Score-CAM", CVPR workshops 2020, with soft saliency as weight.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1].

    Returns:
        `Tensor` of shape `(B,)` in [0, 1]; NaN where the saliency is empty or the map has no positive part.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    maps, saliency = checked(maps, saliency)
    return _share_on(_positive(maps, saliency), saliency.flatten(1))


def relevance_mass(maps: Tensor, saliency: Tensor) -> Tensor:
    """
    Relevance mass accuracy: share of a map's positive mass that lies in the mask.

    As [`energy_inside`], with the mask of [`matched_area`] (`S >= 1/2`) as weight; the two are the same for saliency
    of zeros and ones. A map's positive part stands for the pooled relevance of the source.

    Source: Arras, Osman, Samek, "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural network
    explanations", Information Fusion 2022, arXiv 2003.07258.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1].

    Returns:
        `Tensor` of shape `(B,)` in [0, 1]; NaN where the saliency is empty or the map has no positive part.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    maps, saliency = checked(maps, saliency)
    return _share_on(_positive(maps, saliency), salient_mask(saliency))


def alignment_metrics(maps: Tensor, saliency: Tensor) -> dict[str, Tensor]:
    """
    All measures of alignment at once, with the upsampling, the mask and the search for the highest pixels shared.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps, signed.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1]; zeros where there is no annotation.

    Returns:
        `dict` of `Tensor`s of shape `(B,)` on the maps' device: `energy_inside`, `iou`, `map_precision` and
        `map_recall` (see [`matched_area`]), `pointing_game`, `relevance_mass`, `relevance_rank`, `spearman`, `kl` (in
        nats, lower is better; higher is better for all others) and `similarity`. NaN where not defined, see each.

    Raises:
        ValueError: if the batch sizes differ or the saliency leaves [0, 1].
    """
    maps, saliency = checked(maps, saliency)
    pixels, grids, positive = Pixels.of(maps, saliency), Grids.of(maps, saliency), _positive(maps, saliency)
    area = pixels.overlap()
    return {
        "energy_inside": _share_on(positive, pixels.saliency),
        "iou": area.iou,
        "map_precision": area.precision,
        "map_recall": area.recall,
        "pointing_game": pixels.pointing(),
        "relevance_mass": _share_on(positive, pixels.mask),
        "relevance_rank": pixels.rank(),
        "spearman": grids.spearman(),
        "kl": grids.kl_divergence(),
        "similarity": grids.similarity(),
    }


def alignment_summary(per_picture: Mapping[str, Any], annotated: Any = None) -> dict[str, float]:
    """
    Means over the pictures, each over those for which it is defined, and how many those are.

    Args:
        per_picture (`dict` of arrays of shape `(N,)`): what [`alignment_metrics`] gives, over all pictures.
        annotated (`array` of shape `(N,)`, *optional*): boolean, which pictures have saliency. Defaults to those for
            which any of the measures is defined, which leaves out annotated pictures whose map is flat.

    Returns:
        `dict` with a mean a key, NaN where the measure is defined for no picture; `annotated`, the number of annotated
        pictures; and `<key>_pictures`, the number of pictures in the mean, where it is another than that.

    Raises:
        ValueError: if the arrays are not all of one length.
    """
    values = {key: _as_array(value) for key, value in per_picture.items()}
    shapes = {key: value.shape for key, value in values.items()}
    if annotated is not None:
        shapes["annotated"] = _as_array(annotated).shape
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"per_picture needs one value a picture under each key, but the shapes are {shapes}.")
    defined = {key: ~np.isnan(value) for key, value in values.items()}
    anywhere = np.any(list(defined.values()), axis=0) if annotated is None else _as_array(annotated)
    count = int(np.count_nonzero(anywhere))
    summary: dict[str, float] = {
        key: float(value[defined[key]].mean()) if defined[key].any() else float("nan") for key, value in values.items()
    }
    numbers = {f"{key}_pictures": int(kept.sum()) for key, kept in defined.items()}
    return summary | {"annotated": count} | {key: number for key, number in numbers.items() if number != count}


def _as_array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def _positive(maps: Tensor, saliency: Tensor) -> Tensor:
    return upsampled(maps.relu(), saliency)


def _share_on(positive: Tensor, weight: Tensor) -> Tensor:
    total = positive.sum(dim=1)
    defined = (total > 0) & (weight.amax(dim=1) > 0)
    return torch.where(defined, (positive * weight).sum(dim=1) / total, torch.nan)
