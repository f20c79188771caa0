"""Predictions of a classifier over a data set, with its maps and how much of them lies on the evidence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..backbones import FeatureCapture, FeatureLayer, class_maps, data_config, resolve_feature_layer
from ..data import SaliencyCollator, make_transforms, prepare_dataset
from ..data.prepare import PreparedDataset, row_name
from ..guidance import Guidance, Pictures, get_guidance, list_guidance
from ..hub import KEY
from ..maps import contrast_weights
from ..metrics import alignment_metrics, alignment_summary, classification_metrics
from ..steps import Draws, step_saliency

MapClass = Literal["predicted", "true"]


@dataclass(frozen=True)
class Predictions:
    """
    What a classifier makes of `N` pictures.

    Attributes:
        probabilities (`array` of shape `(N, K)`): softmax of the logits.
        labels (`array` of shape `(N,)`, *optional*): true classes, if the data set has them.
        maps (`array` of shape `(N, h, w)`): signed maps of the predicted or the true class, in the logit's scale.
        annotated (`array` of shape `(N,)`): boolean, which pictures have saliency.
        alignment (`dict` of `array` of shape `(N,)`): agreement of each map with the saliency, see
            [`~metrics.alignment_metrics`], NaN where it is not defined; where it was asked for, also that of the
            difference map, `difference_...`.
        groups (`array` of shape `(N,)`, *optional*): the subject that each picture is of, if the data set says.
        agreement (`array` of shape `(N,)`): how far a picture's annotators agree, see [`~data.agreement`]; NaN where
            there are fewer than two.
        file_names (`list`): the pictures' names where they are known, else their row numbers.
    """

    probabilities: np.ndarray
    labels: np.ndarray | None
    maps: np.ndarray
    annotated: np.ndarray
    alignment: dict[str, np.ndarray]
    groups: np.ndarray | None
    agreement: np.ndarray
    file_names: list[str]

    @property
    def energy_inside(self) -> np.ndarray:
        """Share of each map's positive energy on the annotated evidence, `(N,)`, see [`~metrics.energy_inside`]."""
        return self.alignment["energy_inside"]

    def metrics(self) -> dict[str, float]:
        """
        The number of pictures; where there are labels, [`~metrics.classification_metrics`]; and
        [`~metrics.alignment_summary`]: means where they are defined, with the numbers of pictures behind them.
        """
        metrics: dict[str, float] = {"pictures": len(self.probabilities)}
        if self.labels is not None:
            metrics |= classification_metrics(self.labels, self.probabilities)
        metrics |= alignment_summary(self.alignment, self.annotated)
        agreed = ~np.isnan(self.agreement)
        if agreed.any():
            metrics["annotator_agreement"] = float(self.agreement[agreed].mean())
        return metrics


def saved_block(model: PreTrainedModel) -> Mapping[str, Any]:
    """What a saved model's configuration says about guidance; empty where it says nothing."""
    return getattr(model.config, KEY, None) or {}


def guided_layer(model: PreTrainedModel) -> str | list[str] | None:
    """The layer or layers that a model was guided at, by its saved configuration; `None` where it says nothing."""
    layer = saved_block(model).get("feature_layer")
    if isinstance(layer, list | tuple):
        return [str(name) for name in layer]
    return None if layer is None else str(layer)


def layer_of_maps(
    model: PreTrainedModel, feature_layer: str | Sequence[str] | FeatureLayer | None = None
) -> FeatureLayer:
    """The layer that is asked for, else the one that the model was guided at, else the one that is found."""
    if isinstance(feature_layer, FeatureLayer):
        return feature_layer
    named = guided_layer(model) if feature_layer is None else feature_layer
    return resolve_feature_layer(model, feature_layer=named)


def predict(
    model: PreTrainedModel,
    dataset: Any,
    map_class: MapClass = "predicted",
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
    guidance: Mapping[str, Any] | None = None,
    difference: bool = False,
    feature_layer: str | Sequence[str] | FeatureLayer | None = None,
) -> Predictions:
    """
    Runs a classifier over a data set.

    Args:
        model ([`~transformers.PreTrainedModel`]): an image classifier; it is put in evaluation mode for the call.
        dataset: rows with `image` and optionally `label` and `saliency`, or prepared ones, see [`SaliencyTrainer`].
        map_class (`"predicted"` or `"true"`, *optional*): whose map is drawn.
        batch_size (`int`, *optional*, defaults to 32): pictures a forward.
        num_workers (`int`, *optional*, defaults to 0): processes that read pictures.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.
        guidance (`dict`, *optional*): how the model was trained, as its configuration says when it is saved, see
            [`SaliencyTrainer.guidance_block`]: methods that change the pictures in evaluation too (`mask_everything`)
            are applied, to the saliency that they were told. Defaults to the configuration at hand.
        difference (`bool`, *optional*, defaults to `False`): whether the difference map of the same class and its
            rivals, see [`difference_salience`], is compared with the saliency as well.
        feature_layer (`str`, `Sequence[str]` or `FeatureLayer`, *optional*): where the maps are made. Defaults to the
            layer that the model's configuration says that it was guided at, else [`resolve_feature_layer`]'s.

    Returns:
        [`Predictions`]

    Raises:
        ValueError: for `map_class="true"` if the data set has no labels, or one outside the model's classes.
    """
    layer = layer_of_maps(model, feature_layer)
    trained = saved_block(model) if guidance is None else guidance
    transforms, first = evaluation_transforms(trained), 0
    batches: dict[str, list[Tensor]] = {
        "probabilities": [],
        "labels": [],
        "maps": [],
        "annotated": [],
        "agreement": [],
    }
    alignment: dict[str, list[Tensor]] = {}
    training = model.training
    model.eval()
    try:
        for batch in batches_of(model, dataset, batch_size, num_workers, progress):
            with torch.no_grad():
                with FeatureCapture(model, layer, tail_gradient=layer.needs_gradient) as capture:
                    logits = model(pixel_values=shown_pictures(transforms, trained, batch, first)).logits.float()
                labels = batch.get("labels")
                if map_class == "true" and labels is None:
                    raise ValueError('map_class="true" needs a data set with labels; use map_class="predicted".')
                classes = logits.argmax(dim=1) if map_class == "predicted" or labels is None else labels
                check_classes(classes, logits.shape[1], first)
                first += len(logits)
                weights = F.one_hot(classes, logits.shape[1]).to(logits.dtype)
                maps = class_maps(capture, layer, model, logits, weights).detach()
                batches["probabilities"].append(logits.detach().softmax(dim=1).cpu())
                batches["maps"].append(maps.cpu())
                if labels is not None:
                    batches["labels"].append(labels.cpu())
                batches["annotated"].append(batch["has_saliency"].cpu())
                unknown = torch.full((len(logits),), torch.nan)
                batches["agreement"].append(batch.get("agreement", unknown).cpu())
                saliency = batch["saliency"].float() / 255 * batch["has_saliency"][:, None, None]
                aligned = alignment_metrics(maps, saliency)
                if difference:
                    weights = contrast_weights(logits, classes)
                    maps = class_maps(capture, layer, model, logits, weights).detach()
                    found = alignment_metrics(maps, saliency)
                    aligned |= {f"difference_{name}": values for name, values in found.items()}
                for name, values in aligned.items():
                    alignment.setdefault(name, []).append(values.cpu())
    finally:
        model.train(training)
    joined = {name: torch.cat(parts).numpy() for name, parts in batches.items() if parts}
    return Predictions(
        probabilities=joined["probabilities"],
        labels=joined.get("labels"),
        maps=joined["maps"],
        annotated=joined["annotated"],
        alignment={name: torch.cat(parts).numpy() for name, parts in alignment.items()},
        groups=_groups(dataset),
        agreement=joined["agreement"],
        file_names=file_names_of(dataset, len(joined["maps"])),
    )


def check_classes(labels: Tensor, classes: int, first: int) -> None:
    """
    Checks the labels of rows, the first of which is `first` of its data set.

    Raises:
        ValueError: if one is outside the model's classes; names the first row.
    """
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        place = int(outside[0])
        raise ValueError(
            f"row {first + place}: label {int(labels[place])} is outside the model's {classes} classes, 0 to "
            f"{classes - 1}; take a model of these classes, or rows without a label."
        )


def evaluation_transforms(trained: Mapping[str, Any]) -> list[Guidance]:
    """The methods of a training that change the pictures in evaluation too."""
    names, options = trained.get("name") or [], trained.get("options") or {}
    known = [name for name in ([names] if isinstance(names, str) else names) if name in list_guidance()]
    methods = [get_guidance(name, **options.get(name, {})) for name in known]
    return [method for method in methods if method.transforms_evaluation]


def shown_pictures(
    transforms: Sequence[Guidance], trained: Mapping[str, Any], batch: dict[str, Tensor], first: int
) -> Tensor:
    """The batch's pictures, the rows from `first` on, as the trainer showed them to the model in evaluation."""
    pixel_values = batch["pixel_values"]
    if not transforms:
        return pixel_values
    rows = torch.arange(first, first + len(pixel_values), device=pixel_values.device)
    draws = Draws(seed=trained.get("seed", 0), step=-1, rows=rows)
    saliency, counts = step_saliency(
        batch,
        draws,
        trained.get("empty_mask", "skip"),
        random=trained.get("random_saliency", False),
        invert=trained.get("invert_saliency", False),
    )
    for method in transforms:
        pixel_values = method.transform(Pictures(pixel_values, saliency, counts, draws.uniform(method.name)))
    return pixel_values


def batches_of(
    model: PreTrainedModel, dataset: Any, batch_size: int, num_workers: int, progress: bool
) -> Iterator[dict[str, Tensor]]:
    transform = make_transforms(data_config(model), train=False)
    loader = DataLoader(
        prepare_dataset(dataset, transform),
        batch_size=batch_size,
        collate_fn=SaliencyCollator(),
        num_workers=num_workers,
    )
    for batch in tqdm(loader, desc="Predicting", unit="batch", disable=not progress, leave=False):
        yield {name: value.to(model.device) for name, value in batch.items()}


def file_names_of(dataset: Any, count: int) -> list[str]:
    if isinstance(dataset, PreparedDataset):
        dataset = dataset.dataset
    names: Sequence[Any] = [None] * count
    if isinstance(dataset, Dataset) and "file_name" in dataset.column_names:
        names = dataset.select_columns(["file_name"]).with_format(None)["file_name"][:]
    elif isinstance(dataset, list | tuple):
        names = [row_name(row) for row in dataset]
    return [str(row) if name is None else str(name) for row, name in enumerate(names)]


def _groups(dataset: Any) -> np.ndarray | None:
    """Each picture's `group` as text, `None` where the data set has none."""
    if isinstance(dataset, PreparedDataset):
        dataset = dataset.dataset
    if not isinstance(dataset, Dataset) or "group" not in dataset.column_names:
        return None
    groups = dataset.select_columns(["group"]).with_format(None)["group"][:]
    # A picture without a group is a group of its own.
    return np.array([f"row {row} alone" if group is None else f"group {group}" for row, group in enumerate(groups)])
