"""Difference Salience over a data set: what decides, whether it lies on the annotation, and whom its map flatters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ...backbones import FeatureCapture, FeatureLayer, class_maps
from ...backbones.difference import completeness_error
from ...maps import check_rival, contrast_weights, entropy
from ...metrics.alignment import energy_inside, matched_area
from ..predictions import (
    batches_of,
    check_classes,
    evaluation_transforms,
    file_names_of,
    layer_of_maps,
    saved_block,
    shown_pictures,
)
from .explain import check_finite
from .regions import SHARE, Region, find_regions, rank_regions


@dataclass(frozen=True)
class DifferenceStudy:
    """
    What decides a classifier's answers on `N` pictures.

    A figure that needs an annotation is NaN where there is none, or an empty one.

    Attributes:
        file_names (`list`): the pictures' names where they are known, else their row numbers.
        class_names (`list`): the model's classes.
        labels (`array` of shape `(N,)`, *optional*): true classes, if the data set has them. Each map is of the label
            against its rivals; without labels, of the predicted class.
        predicted (`array` of shape `(N,)`): predicted classes.
        probabilities (`array` of shape `(N,)`): of the predicted classes.
        contrasts (`array` of shape `(N,)`): `z_a - sum_j q_j z_j`, in logits, negative where the rivals win.
        completeness (`array` of shape `(N,)`, *optional*): see [`completeness_error`], in logits; `None` where the
            read-out promises none.
        annotated (`array` of shape `(N,)`): boolean, which pictures have saliency.
        inside (`array` of shape `(N,)`): share of the difference map's absolute values on the annotation.
        positive_inside (`array` of shape `(N,)`): the same of its positive part; NaN too where there is none.
        entropy (`array` of shape `(N,)`): of the positive part as a distribution over the cells, in nats, from 0 (one
            cell) to `ln(h w)`; NaN where there is none.
        iou_true, iou_difference (`array` of shape `(N,)`): intersection over union with the annotation, at matched
            area, of the map of the class and of the difference map.
        regions (`list` of [`Region`]): of all pictures, the one with the most evidence first.
        class_means (`array` of shape `(K, h, w)`): each class's mean difference map; NaN for a class with no picture.
        class_counts (`array` of shape `(K,)`): how many pictures each is a mean of.
        size (`tuple[int, int]`): `(H, W)` of the pictures as the model sees them.
        readout (`str`): of the feature layer.
        feature_layers (`tuple` of `str`): the modules that the maps were made at.
        rival (`str`), share (`float`): what was asked for.
    """

    file_names: list[str]
    class_names: list[str]
    labels: np.ndarray | None
    predicted: np.ndarray
    probabilities: np.ndarray
    contrasts: np.ndarray
    completeness: np.ndarray | None
    annotated: np.ndarray
    inside: np.ndarray
    positive_inside: np.ndarray
    entropy: np.ndarray
    iou_true: np.ndarray
    iou_difference: np.ndarray
    regions: list[Region]
    class_means: np.ndarray
    class_counts: np.ndarray
    size: tuple[int, int]
    readout: str
    feature_layers: tuple[str, ...]
    rival: str
    share: float

    @property
    def explained(self) -> np.ndarray:
        """The class that each picture's map speaks for, `(N,)`."""
        return self.predicted if self.labels is None else self.labels

    @property
    def fooling_gap(self) -> np.ndarray:
        """
        `IoU(map of the class, S) - IoU(difference map, S)`, `(N,)`: large where the map of the class lies on the
        annotation and what decides does not. The measure is ours.
        """
        return self.iou_true - self.iou_difference

    @property
    def flattering(self) -> list[int]:
        """The rows whose map of the class flatters the model, a fooling gap over 0: the largest gap first."""
        gap = self.fooling_gap
        return sorted(np.flatnonzero(gap > 0).tolist(), key=lambda row: (-gap[row], row))


@dataclass
class _Gathered:
    """The figures of the pictures so far; no map outlives its batch."""

    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    regions: list[Region] = field(default_factory=list)
    sums: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    size: tuple[int, int] = (0, 0)

    def add(self, **columns: Tensor | None) -> None:
        for name, values in columns.items():
            if values is not None:
                self.columns.setdefault(name, []).append(values.detach().cpu())

    def add_maps(self, maps: np.ndarray, explained: np.ndarray, classes: int) -> None:
        if not len(self.counts):
            self.sums, self.counts = np.zeros((classes, *maps.shape[1:])), np.zeros(classes, dtype=np.int64)
        np.add.at(self.sums, explained, maps)
        np.add.at(self.counts, explained, 1)

    def means(self) -> np.ndarray:
        """Each class's mean map, NaN for a class with no picture."""
        counts = self.counts[:, None, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), np.nan)


def study_difference(
    model: PreTrainedModel,
    dataset: Any,
    rival: str = "softmax",
    share: float = SHARE,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
    feature_layer: str | Sequence[str] | FeatureLayer | None = None,
) -> DifferenceStudy:
    """
    Explains a classifier's decisions over a data set, in one forward a picture.

    Source: Piland, Sweet, Czajka, "Divisive Decisions", arXiv 2507.17000, for the map of two classes; the figures and
    the form for more classes are ours.

    Args:
        model ([`~transformers.PreTrainedModel`]): an image classifier; it is put in evaluation mode for the call.
        dataset: rows with `image` and optionally `label` and `saliency`, or prepared ones, see [`SaliencyTrainer`].
        rival (`str`, *optional*, defaults to `"softmax"`): see [`difference_salience`].
        share (`float`, *optional*, defaults to 0.5): a region's cells exceed this share of their map's maximum.
        batch_size (`int`, *optional*, defaults to 32): pictures a forward.
        num_workers (`int`, *optional*, defaults to 0): processes that read pictures.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.
        feature_layer (`str`, `Sequence[str]` or `FeatureLayer`, *optional*): where the maps are made; defaults as in
            [`~studies.predictions.predict`].

    Returns:
        [`DifferenceStudy`]

    Raises:
        ValueError: for an unknown `rival`, a `share` outside [0, 1), an empty data set, a model with one logit, logits
            that are not finite, labels outside the classes, and a picture or a map that cannot be read; names its
            file.
    """
    check_rival(rival)
    if not 0 <= share < 1:
        raise ValueError(f"share={share} of a map's maximum is out of range; give 0 or more, and less than 1.")
    if len(dataset) == 0:
        raise ValueError("the data set has no picture; choose another split or other rows.")
    layer = layer_of_maps(model, feature_layer)
    trained, gathered, first = saved_block(model), _Gathered(), 0
    transforms = evaluation_transforms(trained)
    training = model.training
    model.eval()
    try:
        for batch in batches_of(model, dataset, batch_size, num_workers, progress):
            with torch.no_grad():
                with FeatureCapture(model, layer, tail_gradient=layer.needs_gradient) as capture:
                    logits = model(pixel_values=shown_pictures(transforms, trained, batch, first)).logits.float()
                check_finite(logits, first)
                _gather(gathered, batch, capture, layer, model, logits, rival, share, first)
            first += len(logits)
    finally:
        model.train(training)
    return _study(gathered, model, layer, file_names_of(dataset, first), rival, share)


def _gather(
    gathered: _Gathered,
    batch: Mapping[str, Tensor],
    capture: FeatureCapture,
    layer: FeatureLayer,
    model: PreTrainedModel,
    logits: Tensor,
    rival: str,
    share: float,
    first: int,
) -> None:
    """The figures of one batch, whose first row is `first` of the data set."""
    predicted, labels = logits.argmax(dim=1), batch.get("labels")
    explained = predicted if labels is None else labels
    check_classes(explained, logits.shape[1], first)
    weights = contrast_weights(logits, explained, rival)
    own = F.one_hot(explained, logits.shape[1]).to(logits.dtype)
    true_maps = class_maps(capture, layer, model, logits, own).detach()
    maps = class_maps(capture, layer, model, logits, weights).detach()
    logits = logits.detach()
    positive = maps.relu()
    gathered.add(
        labels=labels,
        predicted=predicted,
        probabilities=logits.softmax(dim=1).amax(dim=1),
        contrasts=(weights * logits).sum(dim=1),
        completeness=completeness_error(maps, logits, weights, model, layer),
        annotated=batch["has_saliency"],
        entropy=torch.where(positive.amax(dim=(1, 2)) > 0, entropy(positive), torch.nan),
        **_agreement(maps, true_maps, batch["saliency"], batch["has_saliency"]),
    )
    gathered.size = (batch["saliency"].shape[1], batch["saliency"].shape[2])
    gathered.add_maps(maps.cpu().numpy(), explained.cpu().numpy(), logits.shape[1])
    grid = (maps.shape[1], maps.shape[2])
    pooled = F.adaptive_avg_pool2d(batch["saliency"].float() / 255, grid).cpu().numpy()
    annotated = batch["has_saliency"].tolist()
    for row, map in enumerate(maps.cpu().numpy()):
        inside = pooled[row] if annotated[row] else None
        gathered.regions.extend(find_regions(map, first + row, gathered.size, inside, share))


def _agreement(maps: Tensor, true_maps: Tensor, saliency: Tensor, annotated: Tensor) -> dict[str, Tensor]:
    """Masses and intersections over union with the annotation, `(B,)` each; NaN where nobody annotated."""
    figures = {
        name: torch.full((len(maps),), torch.nan, device=maps.device)
        for name in ("inside", "positive_inside", "iou_true", "iou_difference")
    }
    if bool(annotated.any()):
        human, shown = saliency[annotated].float() / 255, maps[annotated]
        figures["inside"][annotated] = energy_inside(shown.abs(), human)
        figures["positive_inside"][annotated] = energy_inside(shown, human)
        figures["iou_true"][annotated] = matched_area(true_maps[annotated], human).iou
        figures["iou_difference"][annotated] = matched_area(shown, human).iou
    return figures


def _study(
    gathered: _Gathered, model: PreTrainedModel, layer: FeatureLayer, names: list[str], rival: str, share: float
) -> DifferenceStudy:
    columns: dict[str, Any] = {name: torch.cat(parts).numpy() for name, parts in gathered.columns.items()}
    return DifferenceStudy(
        **{"labels": None, "completeness": None, **columns},
        file_names=names,
        class_names=[model.config.id2label[index] for index in range(len(gathered.counts))],
        regions=rank_regions(gathered.regions),
        class_means=gathered.means(),
        class_counts=gathered.counts,
        size=gathered.size,
        readout=layer.readout,
        feature_layers=layer.names,
        rival=rival,
        share=share,
    )
