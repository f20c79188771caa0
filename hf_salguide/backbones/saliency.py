"""Saliency maps of a model, in one call."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .attribution import METHODS, class_maps, resolve_method
from .capture import FeatureCapture
from .forward import logits_of
from .layer import FeatureLayer
from .resolve import resolve_feature_layer
from .rollout import attention_tokens, rollout_maps
from .second_order import twice_differentiable


def saliency_maps(
    model: nn.Module,
    pixel_values: Tensor,
    target: int | Tensor | None = None,
    method: str = "auto",
    feature_layer: str | Sequence[str] | FeatureLayer | None = None,
) -> Tensor:
    """
    Raw saliency maps: where the evidence for a class is; or, by attention rollout, where the model looks.

    Differentiable where grad mode is on, usable under `no_grad`; the model's mode is left as it is.

    Args:
        model (`nn.Module`): a classifier, see [`as_classifier`].
        pixel_values (`Tensor` of shape `(B, C, H, W)`): prepared pictures.
        target (`int` or `Tensor` of shape `(B,)`, *optional*): the class, for all or for each picture; default: the
            predicted one. Not for attention rollout, which knows no classes.
        method (`str`, *optional*, defaults to `"auto"`): one of

            - `"cam"`: the head's weights of the class times the feature layer's map, signed, on its grid `h × w`; in
              the scale of the logit: the mean over the cells, plus a bias, is the logit. For an exact read-out alone.
            - `"gradcam"`: the gradient's sum over the cells, times the map, without a ReLU; signed, on the grid, times
              `h * w`, which is the scale of `"cam"`, and the same map where the read-out is exact.
            - `"hirescam"`: the gradient times the map, cell by cell; signed, on the grid, times `h * w`: the scale of
              `"cam"` again, its mean being what the cells add to the logit, to first order.
            - `"input_gradient"`: the logit's gradient with respect to the prepared picture, summed over the channels;
              signed, at the picture's size, in logits per unit of all the channels of a pixel.
            - `"attention_rollout"`: the attention that the tokens which the head reads (the class token; the mean of
              several; with average pooling, the mean of the patches) pay to each patch, followed through all the
              layers. Not negative, on the grid of the patches, shares of 1, of which prefix tokens have a part: the
              sum over the cells is at most 1.
            - `"auto"`: `"cam"`, `"gradcam"` or `"hirescam"`, for an exact, a uniform and a generic read-out.
        feature_layer (`str`, `Sequence[str]` or `FeatureLayer`, *optional*): the layer, or the layers whose maps are
            added up; default: [`resolve_feature_layer`]'s. Attention rollout takes the grid alone from it, and
            `"input_gradient"` nothing.

    Returns:
        `Tensor` of shape `(B, h, w)`, float32.

    Raises:
        ValueError: for an unknown method, a target outside the classes or of a wrong shape, a target for attention
            rollout, a model whose attention cannot be had (convolutions, windows, reduced keys, attention between
            channels, pooling by attention, flash attention outside torch, a compiled model, gradient checkpointing
            where gradients are wanted), and what [`resolve_feature_layer`] raises.

    Source: Zhou et al., CVPR 2016; Selvaraju et al., ICCV 2017; Draelos and Carin, 2020; Simonyan et al., 2013; Abnar
    and Zuidema, ACL 2020.
    """
    if method not in ("auto", "input_gradient", "attention_rollout", *METHODS.values()):
        raise ValueError(
            f'method="{method}" is not known; choose "cam", "gradcam", "hirescam", "input_gradient" or '
            '"attention_rollout", or "auto", which takes one of the first three.'
        )
    if method == "attention_rollout" and target is not None:
        raise ValueError(
            f'target={target} is given, but method="attention_rollout" is the same for every class; leave target out, '
            'or take method="auto".'
        )
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}; give a batch, (B, C, H, W).")
    differentiable = torch.is_grad_enabled()
    if method == "input_gradient":
        return _input_gradient(model, pixel_values, target, differentiable)
    size = tuple(pixel_values.shape[-2:])
    # Before the layer is looked for: where there is no attention, that is what the error is to say.
    tokens = attention_tokens(model, size) if method == "attention_rollout" else None
    layer = feature_layer
    if not isinstance(layer, FeatureLayer):
        layer = resolve_feature_layer(model, size, layer)
    if tokens is not None:
        return rollout_maps(model, pixel_values, tokens, layer.grid)
    method = resolve_method(layer, method)
    # What was compiled before has no hook in it, and no gradient of a gradient.
    with (
        torch.compiler.set_stance("force_eager"),
        FeatureCapture(model, layer, tail_gradient=method != "cam") as capture,
    ):
        logits = logits_of(model(pixel_values))
    weights = _one_hot(logits, target)
    return class_maps(capture, layer, model, logits, weights, method, create_graph=differentiable)


def _input_gradient(
    model: nn.Module, pixel_values: Tensor, target: int | Tensor | None, differentiable: bool
) -> Tensor:
    # A gradient of the gradient is wanted in training only.
    second_order = twice_differentiable() if differentiable else nullcontext()
    pictures = pixel_values if differentiable and pixel_values.requires_grad else pixel_values.detach()
    if not pictures.requires_grad:
        pictures = pictures.clone().requires_grad_()
    with torch.enable_grad(), second_order, torch.compiler.set_stance("force_eager"):
        logits = logits_of(model(pictures))
    (gradient,) = torch.autograd.grad(
        logits, pictures, grad_outputs=_one_hot(logits, target), create_graph=differentiable
    )
    return gradient.float().sum(dim=1)


def _one_hot(logits: Tensor, target: int | Tensor | None) -> Tensor:
    batch, classes = logits.shape
    if target is None:
        chosen = logits.argmax(dim=1)
    elif isinstance(target, Tensor):
        chosen = target.to(logits.device, torch.long)
        if chosen.ndim == 0:
            chosen = chosen.expand(batch)
    else:
        chosen = torch.full((batch,), int(target), device=logits.device)
    if chosen.shape != (batch,):
        raise ValueError(
            f"target has shape {tuple(chosen.shape)}; give one class, or one for each of {batch} pictures."
        )
    if target is not None and batch and not 0 <= int(chosen.min()) <= int(chosen.max()) < classes:
        raise ValueError(f"target={target} is outside the model's {classes} classes, 0 to {classes - 1}.")
    return torch.zeros_like(logits).scatter_(1, chosen.unsqueeze(1), 1.0)
