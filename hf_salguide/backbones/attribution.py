"""The logits' maps on a captured layer."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..maps import class_activation_map, grad_cam, hirescam
from .capture import FeatureCapture
from .forward import unwrap_model
from .layer import FeatureLayer
from .tail import Tail

METHODS = {"exact": "cam", "uniform": "gradcam", "generic": "hirescam"}


def class_maps(
    capture: FeatureCapture,
    layer: FeatureLayer,
    model: nn.Module,
    logits: Tensor,
    weights: Tensor,
    method: str = "auto",
    create_graph: bool = False,
    tail: Tail | None = None,
) -> Tensor:
    """
    For each sample, the map of the scalar `sum_k weights[b, k] * logits[b, k]`, in the scale of the logit.

    Of several layers it is the sum of their maps, each made with what the others gave held fixed, and resized to the
    first one's grid (bilinear, `align_corners=False`, which keeps the mean where the grids' ratios are whole numbers):
    the mean of each is its share of the logit.

    Args:
        capture (`FeatureCapture`): of the forward that gave `logits`; with `tail_gradient=True` where the method takes
            gradients.
        layer (`FeatureLayer`): the captured layer.
        model (`nn.Module`): the model, wrapped or not: the head's weight is read from it.
        logits (`Tensor` of shape `(N, K)`): the model's output.
        weights (`Tensor` of shape `(B, K)`): a one-hot row is a class's map, `+1` and `-1` the difference of two. With
            `B < N` the first B samples have a map: views of pictures may stand behind these.
        method (`str`, *optional*, defaults to `"auto"`): `"cam"`, `"gradcam"`, `"hirescam"`; `"auto"` takes the class
            activation map where the read-out is exact (from the head's weight, or as Grad-CAM where no single module
            holds it), Grad-CAM where it is uniform, HiResCAM otherwise.
        create_graph (`bool`, *optional*, defaults to `False`): the map's gradient passes through the gradient in it.
        tail ([`Tail`], *optional*): gradients are those of the logits that it gives for the captured output, not those
            of `logits`: for a model that is compiled, which has none. No `tail_gradient` is needed then.

    Returns:
        `Tensor` of shape `(B, h, w)`, signed, float32.

    Raises:
        ValueError: for an unknown method, `"cam"` without an exact read-out through one head, or weights of a wrong
            shape.
        RuntimeError: if the logits carry no gradient to the captured map, or gradient checkpointing is in its way.
    """
    count = len(weights)
    if weights.ndim != 2 or weights.shape[1:] != logits.shape[1:] or not 0 < count <= len(logits):
        raise ValueError(f"weights has shape {tuple(weights.shape)}; give one weight a logit, {tuple(logits.shape)}.")
    method = resolve_method(layer, method)
    with torch.autocast(logits.device.type, enabled=False):
        if method == "cam":
            head: Any = unwrap_model(model).get_submodule(str(layer.head))
            channels = weights.float() @ head.weight.flatten(1).float()
            return class_activation_map(capture.maps[:count].float(), channels)
        if tail is None:
            padded = torch.cat([weights, weights.new_zeros(len(logits) - count, weights.shape[1])])
            raws, gradients = capture.raws, capture.gradients(logits, padded, create_graph)
        else:
            raw, replayed = capture.replay(tail, model, count)
            raws = (raw,)
            gradients = torch.autograd.grad(
                replayed, raw, weights.to(replayed.dtype), create_graph=create_graph, retain_graph=True
            )
        combine = grad_cam if method == "gradcam" else hirescam
        return _summed(
            [
                combine(part.to_maps(raw[:count]).float(), part.to_maps(gradient[:count]).float())
                for part, raw, gradient in zip(layer.parts, raws, gradients, strict=True)
            ]
        )


def _summed(maps: Sequence[Tensor]) -> Tensor:
    """The sum of maps `(B, h, w)`, on the grid of the first."""
    total, size = maps[0], maps[0].shape[-2:]
    for values in maps[1:]:
        if values.shape[-2:] != size:
            values = F.interpolate(values.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)
        total = total + values
    return total


def resolve_method(layer: FeatureLayer, method: str) -> str:
    """
    `"cam"`, `"gradcam"` or `"hirescam"`: what [`class_maps`] will do on a layer.

    Raises:
        ValueError: for an unknown method, or `"cam"` where there is no exact read-out through one head.
    """
    if method == "auto":
        return "gradcam" if layer.readout == "exact" and layer.needs_gradient else METHODS[layer.readout]
    if method not in METHODS.values():
        raise ValueError(f'method="{method}" is not known; choose "auto", "cam", "gradcam" or "hirescam".')
    if method == "cam" and layer.needs_gradient:
        readout = f"{layer.readout}{'' if layer.head else ' with no single head'}"
        raise ValueError(
            f'method="cam" needs a head that averages the map and applies one linear layer, but the read-out of '
            f'"{", ".join(layer.names)}" is {readout}; take method="auto".'
        )
    return method
