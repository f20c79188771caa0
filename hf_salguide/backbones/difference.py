"""Difference Salience: where the evidence is that decides between a class and its rivals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..maps import check_rival, contrast_weights
from .attribution import class_maps
from .capture import FeatureCapture
from .forward import logits_of, unwrap_model
from .layer import FeatureLayer
from .resolve import resolve_feature_layer


def difference_salience(
    model: nn.Module,
    pixel_values: Tensor,
    labels: int | Tensor | None = None,
    rival: str = "softmax",
    feature_layer: str | Sequence[str] | FeatureLayer | None = None,
) -> Tensor:
    """
    Difference Salience: the map of the true class minus that of the false one, neither normalised.

    A softmax depends on the differences of the logits alone. What two classes' maps have in common moves no decision,
    and a map of one class can show it all the same; the difference is the decision. Where the read-out is exact it is
    complete: with `b` the head's bias, `mean(map) + b_a - sum_j q_j b_j = z_a - sum_j q_j z_j`.

    With more than two classes the false one is made of all of them, weighted by `q`, which gets no gradient. The map
    is that of the scalar `z_a - sum_j q_j z_j`, in the way that `saliency_maps(method="auto")` takes: from the head's
    weights where the read-out is exact, from the scalar's gradient at the layer elsewhere.

    Differentiable where grad mode is on, usable under `no_grad`; the model's mode is left as it is.

    Source: Piland, Sweet, Czajka, "Divisive Decisions", arXiv 2507.17000, for two classes; the form for more is ours.

    Args:
        model (`nn.Module`): a classifier, see [`as_classifier`].
        pixel_values (`Tensor` of shape `(B, C, H, W)`): prepared pictures.
        labels (`int` or `Tensor` of shape `(B,)`, *optional*): the true class, for all or for each picture; default:
            the predicted one, which is then set against the others.
        rival (`str`, *optional*, defaults to `"softmax"`): what makes up the false class where there are more than
            two: `"softmax"` of the other logits, `"max"`, the strongest alone, or `"mean"`, all alike.
        feature_layer (`str`, `Sequence[str]` or `FeatureLayer`, *optional*): the layer, or the layers whose maps are
            added up; default: [`resolve_feature_layer`]'s.

    Returns:
        `Tensor` of shape `(B, h, w)`, float32, on the layer's grid: signed, positive where a cell speaks for the true
        class, in the scale of the logit.

    Raises:
        ValueError: for an unknown `rival`, labels outside the classes or of a wrong shape, a model with one logit, and
            what [`resolve_feature_layer`] raises.

    Example:

    ```python
    maps = difference_salience(model, batch["pixel_values"], batch["labels"])
    evidence = maps.mean(dim=(1, 2))  # in logits; without the share of the bias
    ```
    """
    check_rival(rival)
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}; give a batch, (B, C, H, W).")
    layer = feature_layer
    if not isinstance(layer, FeatureLayer):
        layer = resolve_feature_layer(model, tuple(pixel_values.shape[-2:]), layer)
    differentiable = torch.is_grad_enabled()
    # What was compiled before has no hook in it, and no gradient of a gradient.
    with (
        torch.compiler.set_stance("force_eager"),
        FeatureCapture(model, layer, tail_gradient=layer.needs_gradient) as capture,
    ):
        logits = logits_of(model(pixel_values))
    weights = contrast_weights(logits, _classes(logits, labels), rival)
    return class_maps(capture, layer, model, logits, weights, create_graph=differentiable)


def completeness_error(
    maps: Tensor, logits: Tensor, weights: Tensor, model: nn.Module, layer: FeatureLayer
) -> Tensor | None:
    """
    How far a map is from adding up to the scalar that it explains.

    `|mean(map) + weights · b - weights · z|`, with `b` the head's bias: rounding, where the read-out is exact.

    Args:
        maps (`Tensor` of shape `(B, h, w)`): maps of the scalars `weights · z`, see [`class_maps`].
        logits (`Tensor` of shape `(B, K)`): the model's output, `z`.
        weights (`Tensor` of shape `(B, K)`): one a logit.
        model (`nn.Module`): the model, wrapped or not.
        layer (`FeatureLayer`): the layer that the maps were made at.

    Returns:
        `Tensor` of shape `(B,)`, in logits; `None` where no completeness is promised: the read-out is not exact, or no
        single module holds its weight and bias.
    """
    if layer.needs_gradient:
        return None
    head: Any = unwrap_model(model).get_submodule(str(layer.head))
    bias = torch.zeros_like(logits[0]) if head.bias is None else head.bias.detach().to(logits)
    return (maps.mean(dim=(1, 2)) - (weights * (logits - bias)).sum(dim=1)).abs()


def _classes(logits: Tensor, labels: int | Tensor | None) -> Tensor:
    if labels is None:
        return logits.argmax(dim=1)
    given = torch.as_tensor(labels, device=logits.device)
    if given.is_floating_point():
        raise ValueError(f"labels has the type {given.dtype}; give classes, as integers.")
    return given.long().expand(len(logits)) if given.ndim == 0 else given.long()
