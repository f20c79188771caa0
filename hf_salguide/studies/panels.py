"""Panels of pictures, human saliency and maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..backbones import data_config, saliency_maps
from ..data import make_transforms

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
    """
    config = data_config(model)
    transform = make_transforms(config, train=False)
    training = model.training
    model.eval()
    try:
        explanations = [_explain_row(model, row, transform, config) for row in rows]
    finally:
        model.train(training)
    return explanations


def _explain_row(model: PreTrainedModel, row: dict[str, Any], transform: Any, config: Any) -> Explanation:
    pixels, saliency = transform(row["image"], row.get("saliency"))
    batch = pixels.unsqueeze(0).to(model.device)
    with torch.no_grad():
        logits = model(pixel_values=batch).logits[0].float()
    label = row.get("label")
    predicted = int(logits.argmax())
    true = predicted if label is None else int(label)
    rivals = logits.clone()
    rivals[true] = -torch.inf
    other = int(rivals.argmax())
    size = (pixels.shape[-2], pixels.shape[-1])
    with torch.no_grad():
        maps = [_upsampled(saliency_maps(model, batch, target=target), size) for target in (true, other)]
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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Panels need matplotlib: pip install 'hf_salguide[plots]'.") from error

    columns = 4
    figure = Figure(figsize=(2.6 * columns, 2.75 * len(explanations)), layout="constrained")
    axes = figure.subplots(len(explanations), columns, squeeze=False)
    for index, (row, explanation) in enumerate(zip(axes, explanations, strict=True)):
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
        right = {None: "", True: " (right)", False: " (wrong)"}[explanation.correct]
        row[0].imshow(explanation.picture)
        row[0].set_title(titles[index] if titles else "picture", fontsize=9)
        row[0].set_xlabel(f"says {explanation.predicted_name}, {explanation.probability:.0%}{right}", fontsize=9)
        row[1].set_title("human saliency", fontsize=9)
        if explanation.saliency is None:
            row[1].text(0.5, 0.5, "not annotated", ha="center", va="center", fontsize=9)
        else:
            row[1].imshow(explanation.saliency, cmap="gray", vmin=0, vmax=1)
        limit = float(max(abs(explanation.true_map).max(), abs(explanation.other_map).max())) or 1.0
        known = explanation.correct is not None
        for axis, values, title in (
            (row[2], explanation.true_map, f"{'true' if known else 'predicted'} class: {explanation.true_name}"),
            (row[3], explanation.other_map, f"other class: {explanation.other_name}"),
        ):
            axis.imshow(explanation.picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
            drawn = axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6)
            axis.set_title(title, fontsize=9)
        figure.colorbar(drawn, ax=list(row), shrink=0.8, label="map, in the logit's scale")
    return figure


def save_panel(figure: "Figure", path: str | Path) -> Path:
    """Writes a figure to a file and gives the path back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
