"""Saliency maps of a model, in one call."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .capture import METHODS, FeatureCapture, class_maps, resolve_method
from .forward import logits_of
from .layer import FeatureLayer
from .resolve import resolve_feature_layer


def saliency_maps(
    model: nn.Module,
    pixel_values: Tensor,
    target: int | Tensor | None = None,
    method: str = "auto",
    feature_layer: str | FeatureLayer | None = None,
) -> Tensor:
    """
    Raw saliency maps: where the evidence for a class is, in the scale of its logit.

    Differentiable where grad mode is on, usable under `no_grad`; the model's mode is left as it is.

    Args:
        model (`nn.Module`): a classifier, see [`as_classifier`].
        pixel_values (`Tensor` of shape `(B, C, H, W)`): prepared pictures.
        target (`int` or `Tensor` of shape `(B,)`, *optional*): the class, for all or for each picture; default: the
            predicted one.
        method (`str`, *optional*, defaults to `"auto"`): `"cam"`, `"gradcam"`, `"hirescam"`, on the feature layer's
            grid, the gradient methods times `h * w`; `"auto"` takes them for an exact, a uniform and a generic
            read-out. `"input_gradient"`: the logit's gradient with respect to the picture, summed over the channels,
            at the picture's size.
        feature_layer (`str` or `FeatureLayer`, *optional*): default: [`resolve_feature_layer`]'s.

    Returns:
        `Tensor` of shape `(B, h, w)`, signed, float32.

    Raises:
        ValueError: for an unknown method, a target outside the classes or of a wrong shape, and what
            [`resolve_feature_layer`] raises.

    Source: Zhou et al., CVPR 2016; Selvaraju et al., ICCV 2017; Draelos and Carin, 2020; Simonyan et al., 2013.
    """
    if method not in ("auto", "input_gradient", *METHODS.values()):
        raise ValueError(
            f'method="{method}" is not known; choose "auto", "cam", "gradcam", "hirescam" or "input_gradient".'
        )
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}; give a batch, (B, C, H, W).")
    differentiable = torch.is_grad_enabled()
    if method == "input_gradient":
        return _input_gradient(model, pixel_values, target, differentiable)
    if isinstance(feature_layer, FeatureLayer):
        layer = feature_layer
    else:
        layer = resolve_feature_layer(model, tuple(pixel_values.shape[-2:]), feature_layer)
    method = resolve_method(layer, method)
    with FeatureCapture(model, layer, tail_gradient=method != "cam") as capture:
        logits = logits_of(model(pixel_values))
    weights = _one_hot(logits, target)
    return class_maps(capture, layer, model, logits, weights, method, create_graph=differentiable)


def _input_gradient(
    model: nn.Module, pixel_values: Tensor, target: int | Tensor | None, differentiable: bool
) -> Tensor:
    # A gradient of the gradient is wanted in training only, and only then are the fused attention kernels in the way.
    kernels = sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext()
    pictures = pixel_values if differentiable and pixel_values.requires_grad else pixel_values.detach()
    if not pictures.requires_grad:
        pictures = pictures.clone().requires_grad_()
    with torch.enable_grad(), kernels:
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
