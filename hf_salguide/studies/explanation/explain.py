"""What a classifier's decision on a picture rests on: its maps, at the picture's size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ...backbones import FeatureCapture, FeatureLayer, class_maps, data_config
from ...data import SaliencyCollator, make_transforms
from ...data.prepare import Transform, prepare_row
from ...maps import check_rival, contrast_weights
from ..predictions import check_classes, evaluation_transforms, layer_of_maps, saved_block, shown_pictures


@dataclass(frozen=True)
class Explanation:
    """
    What is drawn of one picture.

    Attributes:
        picture (`array` of shape `(H, W, 3)`): in [0, 1], as the model saw it.
        saliency (`array` of shape `(H, W)`, *optional*): human saliency in [0, 1].
        true_map (`array` of shape `(H, W)`): signed map of the true class, in the logit's scale; of the predicted one
            if the label is not known.
        other_map (`array` of shape `(H, W)`): signed map of the other class, or of the others, as weighted rivals.
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

    @property
    def difference_map(self) -> np.ndarray:
        """Difference Salience, see [`difference_salience`]: what decides between the two, `(H, W)`, signed."""
        return self.true_map - self.other_map


def explain(
    model: PreTrainedModel,
    rows: Sequence[dict[str, Any]],
    rival: str = "max",
    feature_layer: str | Sequence[str] | FeatureLayer | None = None,
    transform: Transform | None = None,
    guidance: Mapping[str, Any] | None = None,
) -> list[Explanation]:
    """
    Explains a classifier's decision on chosen pictures, in one forward each.

    Args:
        model ([`~transformers.PreTrainedModel`]): an image classifier.
        rows (sequence of `dict`): rows with `image` and optionally `label` and `saliency`.
        rival (`str`, *optional*, defaults to `"max"`): the other class: `"max"`, the likeliest wrong one, or all the
            others, weighted by `"softmax"` or by `"mean"`, see [`difference_salience`].
        feature_layer (`str`, `Sequence[str]` or `FeatureLayer`, *optional*): where the maps are made; defaults as in
            [`~studies.predictions.predict`].
        transform (`Callable`, *optional*): the transform of evaluation, called with picture and saliency together, as
            the `eval_transform` of [`SaliencyTrainer`]. Defaults to that of the model's data configuration, whose mean
            and standard deviation undo the normalisation of the pictures that are drawn: after a transform with
            others, their colours are off.
        guidance (`dict`, *optional*): how the model was trained, as in [`~studies.predictions.predict`]: methods that
            change the pictures in evaluation too (`mask_everything`) are applied. Defaults to the model's
            configuration, which says so once the model is saved.

    Returns:
        `list` of [`Explanation`], one a row.

    Raises:
        ValueError: for an unknown rival, a model with one logit, logits that are not finite, a label outside the
            classes, and a picture or a map that cannot be read; names its file.
    """
    check_rival(rival)
    layer = layer_of_maps(model, feature_layer)
    trained = saved_block(model) if guidance is None else guidance
    config, changes = data_config(model), evaluation_transforms(trained)
    transform = make_transforms(config, train=False) if transform is None else transform
    training = model.training
    model.eval()
    try:
        prepared = [prepare_row(row, transform, index) for index, row in enumerate(rows)]
        explanations = []
        for index, row in enumerate(prepared):
            batch = {name: value.to(model.device) for name, value in SaliencyCollator()([row]).items()}
            pixels = shown_pictures(changes, trained, batch, 0)
            explanations.append(_explain_row(model, batch, pixels, layer, config, rival, index))
    finally:
        model.train(training)
    return explanations


def check_finite(logits: Tensor, first: int) -> None:
    """
    Checks the logits of rows, the first of which is `first` of its data set.

    Raises:
        ValueError: if some are not finite; names the first row.
    """
    broken = (~torch.isfinite(logits).all(dim=1)).nonzero()
    if len(broken):
        raise ValueError(
            f"row {first + int(broken[0])}: the model's logits are not finite; take weights that are, from before its "
            "training diverged."
        )


def _explain_row(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    pixels: Tensor,
    layer: FeatureLayer,
    config: Any,
    rival: str,
    index: int,
) -> Explanation:
    """The explanation of a batch of one picture, which is row `index` of those that were chosen."""
    with torch.no_grad():
        with FeatureCapture(model, layer, tail_gradient=layer.needs_gradient) as capture:
            logits = model(pixel_values=pixels).logits.float()
        check_finite(logits, index)
        predicted = logits.argmax(dim=1)
        true = batch.get("labels", predicted)
        check_classes(true, logits.shape[1], index)
        own = F.one_hot(true, logits.shape[1]).to(logits.dtype)
        rivals = own - contrast_weights(logits, true, rival)
        size = (pixels.shape[-2], pixels.shape[-1])
        true_map, other_map = (
            _upsampled(class_maps(capture, layer, model, logits, weights).detach(), size) for weights in (own, rivals)
        )
    logits, names = logits.detach(), model.config.id2label
    return Explanation(
        picture=_picture(pixels[0].cpu(), config),
        saliency=batch["saliency"][0].float().cpu().numpy() / 255 if bool(batch["has_saliency"][0]) else None,
        true_map=true_map,
        other_map=other_map,
        true_name=names[int(true)],
        other_name=_rival_name(rivals[0], names, rival),
        predicted_name=names[int(predicted)],
        probability=float(logits.softmax(dim=1).amax()),
        correct=bool(predicted == true) if "labels" in batch else None,
    )


def _rival_name(rivals: Tensor, names: Mapping[int, str], rival: str) -> str:
    if rival == "max" or len(rivals) == 2:
        return names[int(rivals.argmax())]
    return f"{len(rivals) - 1} others, {rival}"


def _upsampled(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Brings one map, `(1, h, w)`, to the picture's size."""
    return F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


def _picture(pixels: Tensor, config: Any) -> np.ndarray:
    """The picture that was normalised to `pixels`, `(H, W, 3)` in [0, 1]."""
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (config.mean, config.std))
    picture = (pixels * std + mean).clamp(0, 1).expand(3, -1, -1)
    return picture.permute(1, 2, 0).numpy()
