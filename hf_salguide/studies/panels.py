"""Panels of pictures, human saliency and maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..backbones import FeatureLayer, data_config, resolve_feature_layer, saliency_maps
from ..data import SaliencyCollator, make_transforms
from ..data.prepare import prepare_row
from .predictions import guided_layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explanation:
    """
    What is drawn of one picture.

    Attributes:
        picture (`array` of shape `(H, W, 3)`): in [0, 1], as the model saw it.
        saliency (`array` of shape `(H, W)`, *optional*): human saliency in [0, 1].
        true_map (`array` of shape `(H, W)`): signed map of the true class; of the predicted one if the label is not
            known.
        other_map (`array` of shape `(H, W)`): signed map of the other class: the likeliest wrong one.
        true_name, other_name, predicted_name (`str`): the classes' names; `true_name` is of `true_map`.
        probability (`float`): of the predicted class.
        correct (`bool`, *optional*): whether the prediction is right, if the label is known.
    """

    picture: np.ndarray
    saliency: np.ndarray | None
    true_map: np.ndarray
    other_map: np.ndarray
    true_name: str
    other_name: str
    predicted_name: str
    probability: float
    correct: bool | None


def explain(model: PreTrainedModel, rows: Sequence[dict[str, Any]]) -> list[Explanation]:
    """
    Explains a classifier's decision on chosen pictures.

    Args:
        model ([`~transformers.PreTrainedModel`]): an image classifier.
        rows (sequence of `dict`): rows with `image` and optionally `label` and `saliency`.

    Returns:
        `list` of [`Explanation`], one a row.

    Raises:
        ValueError: for a picture or a map that cannot be read; names its file.
    """
    layer = resolve_feature_layer(model, feature_layer=guided_layer(model))
    config = data_config(model)
    transform = make_transforms(config, train=False)
    training = model.training
    model.eval()
    try:
        prepared = [prepare_row(row, transform, index) for index, row in enumerate(rows)]
        explanations = [_explain_row(model, row, layer, config) for row in prepared]
    finally:
        model.train(training)
    return explanations


def _explain_row(model: PreTrainedModel, row: dict[str, Any], layer: FeatureLayer, config: Any) -> Explanation:
    collated = SaliencyCollator()([row])
    pixels = collated["pixel_values"][0]
    saliency = collated["saliency"][0] if bool(collated["has_saliency"][0]) else None
    batch = collated["pixel_values"].to(model.device)
    with torch.no_grad():
        logits = model(pixel_values=batch).logits[0].float()
    label = int(collated["labels"][0]) if "labels" in collated else None
    predicted = int(logits.argmax())
    true = predicted if label is None else label
    rivals = logits.clone()
    rivals[true] = -torch.inf
    other = int(rivals.argmax())
    size = (pixels.shape[-2], pixels.shape[-1])
    with torch.no_grad():
        maps = [
            _upsampled(saliency_maps(model, batch, target=target, feature_layer=layer), size)
            for target in (true, other)
        ]
    names = model.config.id2label
    return Explanation(
        picture=_picture(pixels, config),
        saliency=None if saliency is None else saliency.float().numpy() / 255,
        true_map=maps[0],
        other_map=maps[1],
        true_name=names[true],
        other_name=names[other],
        predicted_name=names[predicted],
        probability=float(logits.softmax(dim=0)[predicted]),
        correct=None if label is None else predicted == true,
    )


def _upsampled(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Brings one map, `(1, h, w)`, to the picture's size."""
    return F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


def _picture(pixels: Tensor, config: Any) -> np.ndarray:
    """The picture that was normalised to `pixels`, `(H, W, 3)` in [0, 1]."""
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (config.mean, config.std))
    picture = (pixels * std + mean).clamp(0, 1).expand(3, -1, -1)
    return picture.permute(1, 2, 0).numpy()


def draw_panel(explanations: Sequence[Explanation], titles: Sequence[str] | None = None) -> "Figure":
    """
    Draws one row a picture: picture, human saliency, map of the true class, map of the other class, the prediction.

    Both maps of a picture share one colour scale, symmetric around 0: red speaks for the class, blue against it.

    Args:
        explanations (sequence of [`Explanation`]): see [`explain`].
        titles (sequence of `str`, *optional*): a line above each row's picture, such as its file name.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    figure, axes = _grid(len(explanations), 4)
    for index, (row, explanation) in enumerate(zip(axes, explanations, strict=True)):
        _draw_picture(row[0], explanation, titles[index] if titles else "picture")
        row[0].set_xlabel(_verdict(explanation), fontsize=9)
        _draw_saliency(row[1], explanation)
        limit = float(max(abs(explanation.true_map).max(), abs(explanation.other_map).max())) or 1.0
        kind = "predicted" if explanation.correct is None else "true"
        _draw_map(row[2], explanation, explanation.true_map, limit, f"{kind} class: {explanation.true_name}")
        drawn = _draw_map(row[3], explanation, explanation.other_map, limit, f"other class: {explanation.other_name}")
        figure.colorbar(drawn, ax=list(row), shrink=0.8, label="map, in the logit's scale")
    return figure


def draw_comparison(models: Mapping[str, Sequence[Explanation]]) -> "Figure":
    """
    Draws one row a picture: picture, human saliency, and for each model its map of the true class and what it says.

    Each map has its own colour scale, symmetric around 0: red speaks for the class, blue against it.

    Args:
        models (mapping from `str` to sequences of [`Explanation`]): each model's explanations of the same pictures.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    pictures = list(zip(*models.values(), strict=True))
    figure, axes = _grid(len(pictures), 2 + len(models))
    for row, explanations in zip(axes, pictures, strict=True):
        first = explanations[0]
        _draw_picture(row[0], first, "picture" if first.correct is None else f"picture: {first.true_name}")
        _draw_saliency(row[1], first)
        for axis, name, explanation in zip(row[2:], models, explanations, strict=True):
            limit = float(abs(explanation.true_map).max()) or 1.0
            _draw_map(axis, explanation, explanation.true_map, limit, name)
            axis.set_xlabel(_verdict(explanation), fontsize=9)
    return figure


def _grid(rows: int, columns: int) -> tuple["Figure", Any]:
    """An empty figure and its axes, without ticks."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Panels need matplotlib: pip install 'hf_salguide[plots]'.") from error
    figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _verdict(explanation: Explanation) -> str:
    right = {None: "", True: " (right)", False: " (wrong)"}[explanation.correct]
    return f"says {explanation.predicted_name}, {explanation.probability:.0%}{right}"


def _draw_picture(axis: Any, explanation: Explanation, title: str) -> None:
    axis.imshow(explanation.picture)
    axis.set_title(title, fontsize=9)


def _draw_saliency(axis: Any, explanation: Explanation) -> None:
    axis.set_title("human saliency", fontsize=9)
    if explanation.saliency is None:
        axis.text(0.5, 0.5, "not annotated", ha="center", va="center", fontsize=9)
    else:
        axis.imshow(explanation.saliency, cmap="gray", vmin=0, vmax=1)


def _draw_map(axis: Any, explanation: Explanation, values: np.ndarray, limit: float, title: str) -> Any:
    axis.imshow(explanation.picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    return axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6)


def save_panel(figure: "Figure", path: str | Path) -> Path:
    """Writes a figure to a file and gives the path back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
