"""Capturing a layer's map during one forward, and the logits' map on it."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..maps import class_activation_map, grad_cam, hirescam
from .attention import PrefixAttention
from .forward import checkpointing_failed, unwrap_model
from .layer import FeatureLayer

METHODS = {"exact": "cam", "uniform": "gradcam", "generic": "hirescam"}


class FeatureCapture:
    """
    A context that captures the map of one layer in the one forward that is run inside it.

    The hook sits on the unwrapped model's module; call the model, wrapped or not, inside the context. On leaving, on
    an exception too, the hook is removed, and the grad mode and the attention kernels are as before.

    Args:
        model (`nn.Module`): the model, wrapped or not.
        layer (`FeatureLayer`): see [`resolve_feature_layer`].
        tail_gradient (`bool`, *optional*, defaults to `False`): gradients of the logits with respect to the map are
            wanted. What comes after the layer then runs with attention as plain matrix products (the fused kernels
            have no second derivative), and, where the map would carry no gradient (under `no_grad`, or behind a
            frozen backbone), with grad mode on from the layer onwards, the map being a new leaf. Where the map carries
            a gradient nothing is detached.

    Raises:
        RuntimeError: on leaving, if the layer did not fire exactly once; on reading the map before it fired.

    Example:

    ```python
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer) as capture:
        logits = model(pixel_values=pixel_values).logits
    capture.maps  # (B, C, h, w)
    ```
    """

    def __init__(self, model: nn.Module, layer: FeatureLayer, tail_gradient: bool = False) -> None:
        self.layer = layer
        self.tail_gradient = tail_gradient
        self._module = unwrap_model(model).get_submodule(layer.name)
        self._raw: Tensor | None = None
        self._version: int | None = 0
        self._calls = 0
        self._stack: ExitStack | None = None

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError(f'this FeatureCapture of "{self.layer.name}" is entered already; make a new one.')
        self._raw, self._calls = None, 0
        self._stack = ExitStack()
        self._stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        self._stack.callback(self._module.register_forward_hook(self._capture).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
        if kind is not None:
            self._raw = None
            return
        self._check()

    def _capture(self, module: nn.Module, args: Any, output: Any) -> Any:
        self._calls += 1
        if self._calls > 1 or self._stack is None:
            return None
        raw = self.layer.select(output)
        given = raw
        if self.tail_gradient:
            self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.layer.prefix_attention:
                self._stack.enter_context(PrefixAttention(self.layer.num_prefix_tokens, raw.shape[1]))
            if torch.is_inference_mode_enabled():
                raise RuntimeError(
                    f'gradients to feature layer "{self.layer.name}" cannot be taken under torch.inference_mode(); '
                    "use torch.no_grad() in its place."
                )
            if not (torch.is_grad_enabled() and raw.requires_grad):
                raw = raw.detach().requires_grad_()
                torch.set_grad_enabled(True)
        # What is compiled writes into no tensor that it gives, and the version is that of the traced stand-in.
        self._raw, self._version = raw, None if torch.compiler.is_compiling() else raw._version
        if self.layer.hand_on_copy:
            return self.layer.replace(output, raw.clone())
        return None if raw is given else self.layer.replace(output, raw)

    def _check(self) -> None:
        name = self.layer.name
        if self._calls == 0:
            raise RuntimeError(
                f'feature layer "{name}" did not fire. Call the model inside the context; a container that gradient '
                "checkpointing enters from the side, or a model compiled before the hook was set, does not fire "
                "either: pass a block inside it as feature_layer, or compile later."
            )
        if self._calls > 1:
            raise RuntimeError(
                f'feature layer "{name}" fired {self._calls} times. Call the model once inside the context; if it '
                "was, the layer is shared by several branches: pass another as feature_layer."
            )
        if self._raw is not None and self._version is not None and self._raw._version != self._version:
            raise RuntimeError(
                f'the map of feature layer "{name}" was written over in place after it was captured; resolve the '
                "layer with resolve_feature_layer(model, feature_layer=...), which hands on a copy."
            )

    @property
    def raw(self) -> Tensor:
        """The tensor as it left the layer, in its layout and dtype, in the graph of the logits."""
        if self._raw is None:
            raise RuntimeError(
                f'feature layer "{self.layer.name}" has captured nothing; call the model inside the context first.'
            )
        return self._raw

    @property
    def maps(self) -> Tensor:
        """The map, `(B, C, h, w)`, a view of [`raw`]."""
        return self.layer.to_maps(self.raw)


def class_maps(
    capture: FeatureCapture,
    layer: FeatureLayer,
    model: nn.Module,
    logits: Tensor,
    weights: Tensor,
    method: str = "auto",
    create_graph: bool = False,
) -> Tensor:
    """
    For each sample, the map of the scalar `sum_k weights[b, k] * logits[b, k]`, in the scale of the logit.

    Args:
        capture (`FeatureCapture`): of the forward that gave `logits`; with `tail_gradient=True` where the method takes
            gradients.
        layer (`FeatureLayer`): the captured layer.
        model (`nn.Module`): the model, wrapped or not: the head's weight is read from it.
        logits (`Tensor` of shape `(B, K)`): the model's output.
        weights (`Tensor` of shape `(B, K)`): a one-hot row is a class's map, `+1` and `-1` the difference of two.
        method (`str`, *optional*, defaults to `"auto"`): `"cam"`, `"gradcam"`, `"hirescam"`; `"auto"` takes the class
            activation map where the read-out is exact (from the head's weight, or as Grad-CAM where no single module
            holds it), Grad-CAM where it is uniform, HiResCAM otherwise.
        create_graph (`bool`, *optional*, defaults to `False`): the map's gradient passes through the gradient in it.

    Returns:
        `Tensor` of shape `(B, h, w)`, signed, float32.

    Raises:
        ValueError: for an unknown method, `"cam"` without an exact read-out through one head, or weights of a wrong
            shape.
        RuntimeError: if the logits carry no gradient to the captured map, or gradient checkpointing is in its way.
    """
    if weights.shape != logits.shape:
        raise ValueError(f"weights has shape {tuple(weights.shape)}; give one weight a logit, {tuple(logits.shape)}.")
    method = resolve_method(layer, method)
    with torch.autocast(logits.device.type, enabled=False):
        if method == "cam":
            head: Any = unwrap_model(model).get_submodule(str(layer.head))
            return class_activation_map(capture.maps.float(), weights.float() @ head.weight.flatten(1).float())
        gradient = _gradient(capture, logits, weights, create_graph)
        combine = grad_cam if method == "gradcam" else hirescam
        return combine(capture.maps.float(), layer.to_maps(gradient).float())


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
        raise ValueError(
            f'method="cam" needs a head that averages the map and applies one linear layer, but the read-out of '
            f'"{layer.name}" is {layer.readout}{"" if layer.head else " with no single head"}; take method="auto".'
        )
    return method


def _gradient(capture: FeatureCapture, logits: Tensor, weights: Tensor, create_graph: bool) -> Tensor:
    gradient = None
    if logits.requires_grad and capture.raw.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(
                logits,
                capture.raw,
                grad_outputs=weights.to(logits.dtype),
                create_graph=create_graph,
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            if not checkpointing_failed(error):
                raise
            # The forward is run again outside the capture, where attention is fused; the reentrant kind not at all.
            raise RuntimeError(
                f'gradients to feature layer "{capture.layer.name}" do not go with gradient checkpointing of fused '
                "attention, nor with its reentrant kind (use_reentrant=True). Switch gradient checkpointing off; or, "
                "where it is not reentrant, fused attention: timm.layers.set_fused_attn(False) before a timm model is "
                'built, attn_implementation="eager" for a transformers model.'
            ) from error
    if gradient is None:
        raise RuntimeError(
            f'the logits carry no gradient to the map of feature layer "{capture.layer.name}". Pass the logits of the '
            "forward inside the capture, neither detached nor compiled, and capture with "
            "FeatureCapture(model, layer, tail_gradient=True)."
        )
    return gradient
