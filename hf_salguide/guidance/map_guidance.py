"""Map methods: a map of the model is compared with human saliency. Each is a choice of exchangeable pieces."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..maps import (
    RIVALS,
    absolute_error,
    correlation_distance,
    energy_outside,
    kl_divergence,
    min_max,
    one_hot,
    rival_weights,
    squared_error,
    ssim_distance,
)
from ..maps.normalize import RANGE_FLOOR
from .base import Guidance, GuidanceBatch, Resolution, check_choice, check_flag
from .registry import register_guidance

MAPS = ("true", "predicted", "false", "difference", "absolute_difference", "one_sided_difference")
TARGETS = ("saliency", "complement")
RESIZES = ("area", "bilinear")
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "l1": absolute_error,
    "ssim": ssim_distance,
    "kl": kl_divergence,
    "correlation": correlation_distance,
    "energy_outside": energy_outside,
}


def positive_part(maps: Tensor) -> tuple[Tensor, Tensor]:
    """
    Scales the positive part of each map by its own maximum: unlike min-max it keeps the map's zero and its sign.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): raw maps, of any scale and sign.

    Returns:
        `tuple` of `relu(map) / max(map)`, `(B, h, w)` in [0, 1], and a boolean `(B,)`, `False` where a map is constant
        or nowhere positive: such a map becomes zeros, with a gradient of zero. The maximum has the floor that the
        range has in [`~maps.min_max`].
    """
    _, shaped = min_max(maps)
    high = maps.amax(dim=(1, 2))
    valid = shaped & (high > 0)
    floored = torch.maximum(high, RANGE_FLOOR * maps.abs().amax(dim=(1, 2)))
    scale = torch.where(valid, floored, 1.0)[:, None, None]
    return torch.where(valid[:, None, None], maps.relu() / scale, 0.0), valid


def _listed(choice: str | Sequence[str]) -> list[str]:
    return list(choice) if isinstance(choice, list | tuple) else [str(choice)]


@register_guidance
class MapGuidance(Guidance):
    """
    `distance(N(map), target)` for a map, a target and a distance of one's own choice, without writing a class.

    `N` is the min-max of each map by itself and the target is human saliency on the map's grid, min-maxed too; in the
    notation of Piland, Sweet, Czajka, "Divisive Decisions", arXiv 2507.17000, `Ct` is the map of the true class, `Cf`
    that of the false one. [`Cyborg`], [`DivisiveDifference`], [`DivisiveComplement`], [`DivisiveDivergence`] and
    [`Energy`] are names for choices.

    A row counts if it is annotated, every one of its maps has a shape (a constant one has none: that of a head full
    of zeros, or the difference of two classes with the same weights) and its target has a place (an empty or a full
    mask has none). With several pairs of map and target a row counts with all of them or not at all: the mean over
    some of the pairs would be another method for that row.

    Args:
        map (`str` or list of `str`, *optional*, defaults to `"true"`): `"true"` `N(Ct)`, `"predicted"` (the predicted
            class in place of the true one), `"false"` `N(Cf)`, `"difference"` `N(Ct - Cf)`, `"absolute_difference"`
            `|N(Ct) - N(Cf)|`, `"one_sided_difference"` `relu(N(Ct) - N(Cf))`.
        target (`str` or list of `str`, *optional*, defaults to `"saliency"`): `"saliency"` `S` or `"complement"`
            `1 - S`. Lists, as long as each other, make pairs of map and target: the term is the mean over the pairs.
        distance (`str`, *optional*, defaults to `"mse"`): `"mse"`, `"l1"`, `"ssim"`, `"kl"`, `"correlation"` or
            `"energy_outside"`, which takes the map as it is, not `N` of it.
        rival (`str`, *optional*, defaults to `"softmax"`): with more than two classes, what makes up the false one:
            `"softmax"`, `"max"` or `"mean"`, see [`rival_weights`]. The papers are binary; this extension is ours.
        resize (`str`, *optional*, defaults to `"area"`): how saliency gets to the grid, `"area"` or `"bilinear"`.
        positive (`bool`, *optional*, defaults to `False`): `N` is `relu(map) / max(map)` in place of min-max, which is
            blind to the map's sign; a row with a map that is nowhere positive then counts 0.

    Raises:
        ValueError: for an unknown choice, or lists of different lengths.

    Example:

    ```python
    >>> from hf_salguide import get_guidance
    >>> get_guidance("map_guidance", map="difference", distance="correlation").distance
    'correlation'
    ```
    """

    name: ClassVar[str] = "map_guidance"
    paper: ClassVar[str] = "a choice of pieces (map, target, distance), see its docstring"
    formula: ClassVar[str] = "distance(minmax(map), target), the mean over pairs of map and target"
    default_weight: ClassVar[float] = 0.5
    default_task_weight: ClassVar[float] = 0.5

    def __init__(
        self,
        map: str | Sequence[str] = "true",
        target: str | Sequence[str] = "saliency",
        distance: str = "mse",
        rival: str = "softmax",
        resize: str = "area",
        positive: bool = False,
    ) -> None:
        maps, targets = _listed(map), _listed(target)
        if len(maps) != len(targets) or not maps:
            raise ValueError(f"map={map!r} and target={target!r} make no pairs; give lists of the same length.")
        for one in maps:
            check_choice("map", one, MAPS)
        for one in targets:
            check_choice("target", one, TARGETS)
        self.map = map
        self.target = target
        self.distance = check_choice("distance", distance, tuple(DISTANCES))
        self.rival = check_choice("rival", rival, RIVALS)
        self.resize = check_choice("resize", resize, RESIZES)
        self.positive = check_flag("positive", positive)

    def terms(self, batch: GuidanceBatch) -> Tensor:
        distances, counts = [], batch.annotated
        for map, target in zip(_listed(self.map), _listed(self.target), strict=True):
            maps, shaped = self.read_map(batch, map)
            wanted, placed = self.read_target(batch, target, (maps.shape[1], maps.shape[2]))
            distances.append(DISTANCES[self.distance](maps, wanted))
            counts = counts & shaped & placed
        return torch.where(counts, torch.stack(distances).mean(dim=0), 0.0)

    def read_map(self, batch: GuidanceBatch, map: str) -> tuple[Tensor, Tensor]:
        """
        One of [`MAPS`], normalised, and whether it has a shape.

        Args:
            batch ([`GuidanceBatch`]): the micro-batch.
            map (`str`): the map's name.

        Returns:
            `tuple` of a `Tensor` of shape `(B, h, w)` and a boolean `(B,)`.
        """
        if map in ("absolute_difference", "one_sided_difference"):
            true, true_shaped = self.normalise(batch.map_of(self.class_weights(batch, "true")))
            false, false_shaped = self.normalise(batch.map_of(self.class_weights(batch, "false")))
            difference = (true - false).abs() if map == "absolute_difference" else (true - false).relu()
            return difference, true_shaped & false_shaped & min_max(difference)[1]
        raw = batch.map_of(self.class_weights(batch, map))
        return (raw, torch.ones_like(batch.annotated)) if self.reads_raw_maps else self.normalise(raw)

    def read_target(self, batch: GuidanceBatch, target: str, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """
        One of [`TARGETS`], on a map's grid, and whether it can be compared with a map.

        Args:
            batch ([`GuidanceBatch`]): the micro-batch.
            target (`str`): the target's name.
            grid (`tuple[int, int]`): `(h, w)`.

        Returns:
            `tuple` of a `Tensor` of shape `(B, h, w)` in [0, 1] and a boolean `(B,)`.
        """
        wanted, placed = batch.target(grid, self.resize)
        if self.reads_raw_maps:  # a share of energy can be told of an empty or a full mask as well
            wanted = torch.where(placed[:, None, None], wanted, batch.saliency.mean(dim=(1, 2), keepdim=True))
            placed = torch.ones_like(placed)
        return (wanted if target == "saliency" else 1 - wanted), placed

    def class_weights(self, batch: GuidanceBatch, map: str) -> Tensor:
        """
        Which combination of the logits a map explains: as maps are linear in it, a difference takes one map.

        Args:
            batch ([`GuidanceBatch`]): the micro-batch.
            map (`str`): `"true"`, `"predicted"`, `"false"` or `"difference"`.

        Returns:
            `Tensor` of shape `(B, K)`.
        """
        classes = batch.logits.argmax(dim=1) if map == "predicted" else batch.labels
        own = one_hot(classes, batch.logits)
        if map in ("true", "predicted"):
            return own
        rivals = rival_weights(batch.logits, batch.labels, self.rival)
        return rivals if map == "false" else own - rivals

    def normalise(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """`N`: maps `(B, h, w)` in [0, 1], and whether each has a shape, `(B,)`."""
        return positive_part(raw) if self.positive else min_max(raw)

    @property
    def saliency_at(self) -> Resolution:
        # Who overrides one of these may read saliency at any resolution.
        readers = ("terms", "read_map", "read_target", "class_weights")
        own = all(getattr(type(self), name) is getattr(MapGuidance, name) for name in readers)
        return "grid" if own and self.resize == "area" else "picture"

    @property
    def reads_raw_maps(self) -> bool:
        """Whether the distance takes maps as they are."""
        return self.distance == "energy_outside"
