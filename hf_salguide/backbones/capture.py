"""Capturing a layer's map during one forward."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from .attention import PrefixAttention
from .forward import checkpointing_failed, unwrap_model
from .layer import FeatureLayer
from .second_order import twice_differentiable
from .tail import Tail


class _Gate:
    """Whether gradients pass from captured layers to what comes before them."""

    shut = False


class _PassGate(torch.autograd.Function):
    """The identity; its gradient ends here where the gate is shut."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, gate: _Gate) -> Tensor:
        ctx.gate = gate
        return raw.view_as(raw)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        return None if ctx.gate.shut else gradient, None


@dataclass
class _Fired:
    """How often a layer ran, and what it gave the first time."""

    calls: int = 0
    raw: Tensor | None = None
    version: int | None = 0


class FeatureCapture:
    """
    A context that captures the map of one layer, or those of several, in the one forward that is run inside it.

    The hooks sit on the unwrapped model's modules; call the model, wrapped or not, inside the context. On leaving, on
    an exception too, the hooks are removed, and the grad mode and the attention kernels are as before.

    Args:
        model (`nn.Module`): the model, wrapped or not.
        layer (`FeatureLayer`): see [`resolve_feature_layer`]; with `others`, these are captured as well.
        tail_gradient (`bool`, *optional*, defaults to `False`): gradients of the logits with respect to the map are
            wanted. What comes after the layer then runs with attention as plain matrix products (the fused kernels
            have no second derivative), and, where the map would carry no gradient (under `no_grad`, or behind a
            frozen backbone), with grad mode on from the layer onwards, the map being a new leaf. Where the map carries
            a gradient nothing is detached. Of several layers this holds for each.

    Raises:
        RuntimeError: on leaving, if a layer did not fire exactly once; on reading a map before its layer fired.

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
        inner = unwrap_model(model)
        self._modules = [inner.get_submodule(name) for name in layer.names]
        self._fired = [_Fired() for _ in layer.parts]
        self._gate = _Gate()
        self._grad_enabled = True
        self._stack: ExitStack | None = None
        self._replayed: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError(f'this FeatureCapture of "{self.layer.name}" is entered already; make a new one.')
        self._fired, self._replayed = [_Fired() for _ in self.layer.parts], {}
        self._grad_enabled = torch.is_grad_enabled()
        self._stack = ExitStack()
        self._stack.callback(torch.set_grad_enabled, self._grad_enabled)
        for module, part, fired in zip(self._modules, self.layer.parts, self._fired, strict=True):
            self._stack.callback(module.register_forward_hook(partial(self._capture, part, fired)).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
        if kind is not None:
            for fired in self._fired:
                fired.raw = None
            return
        for part, fired in zip(self.layer.parts, self._fired, strict=True):
            self._check(part.name, fired)

    def _capture(self, part: FeatureLayer, fired: _Fired, module: nn.Module, args: Any, output: Any) -> Any:
        fired.calls += 1
        if fired.calls > 1 or self._stack is None:
            return None
        raw = part.select(output)
        given, several = raw, bool(self.layer.others)
        if self.tail_gradient:
            self._stack.enter_context(twice_differentiable())
            if part.prefix_attention and not several:
                self._stack.enter_context(PrefixAttention(part.num_prefix_tokens, raw.shape[1]))
            self._refuse_inference_mode(part.name)
            # The first of several layers may have switched on the grad mode that the next one meets.
            grad_enabled = torch.is_grad_enabled() and (self._grad_enabled or not several)
            if not (grad_enabled and raw.requires_grad):
                raw = raw.detach().requires_grad_()
                torch.set_grad_enabled(True)
        if several and raw.grad_fn is not None:
            raw = _PassGate.apply(raw, self._gate)
        # What is compiled writes into no tensor that it gives, and the version is that of the traced stand-in.
        fired.raw, fired.version = raw, None if torch.compiler.is_compiling() else raw._version
        if part.hand_on_copy:
            return part.replace(output, raw.clone())
        return None if raw is given else part.replace(output, raw)

    def _check(self, name: str, fired: _Fired) -> None:
        if fired.calls == 0:
            raise RuntimeError(
                f'feature layer "{name}" did not fire. Call the model inside the context; a container that gradient '
                "checkpointing enters from the side, or a model compiled before the hook was set, does not fire "
                "either: pass a block inside it as feature_layer, or compile later."
            )
        if fired.calls > 1:
            raise RuntimeError(
                f'feature layer "{name}" fired {fired.calls} times. Call the model once inside the context; if it '
                "was, the layer is shared by several branches: pass another as feature_layer."
            )
        if fired.raw is not None and fired.version is not None and fired.raw._version != fired.version:
            raise RuntimeError(
                f'the map of feature layer "{name}" was written over in place after it was captured; resolve the '
                "layer with resolve_feature_layer(model, feature_layer=...), which hands on a copy."
            )

    @property
    def raw(self) -> Tensor:
        """The tensor as it left the (first) layer, in its layout and dtype, in the graph of the logits."""
        return self._raw_of(self.layer, self._fired[0])

    @property
    def raws(self) -> tuple[Tensor, ...]:
        """[`raw`] of every layer, in the order of `layer.parts`."""
        return tuple(self._raw_of(part, fired) for part, fired in zip(self.layer.parts, self._fired, strict=True))

    @property
    def maps(self) -> Tensor:
        """The map, `(B, C, h, w)`, a view of [`raw`]."""
        return self.layer.to_maps(self.raw)

    def gradients(self, logits: Tensor, weights: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        """
        The gradients of `sum(weights * logits)` with respect to [`raws`].

        Of several layers, each with what the others gave held fixed: what one is read through another that comes after
        it is the other's, and is not counted twice.

        Args:
            logits (`Tensor` of shape `(B, K)`): of the forward inside the context.
            weights (`Tensor` of shape `(B, K)`): one a logit.
            create_graph (`bool`, *optional*, defaults to `False`): whether the gradients are to be differentiable.

        Returns:
            `tuple` of `Tensor`, each of its layer's shape and dtype.

        Raises:
            RuntimeError: if the logits carry no gradient to a layer's output, or gradient checkpointing is in its way.
        """
        raws = self.raws
        found: tuple[Tensor | None, ...] = (None,) * len(raws)
        if logits.requires_grad and all(raw.requires_grad for raw in raws):
            self._gate.shut = True
            try:
                found = torch.autograd.grad(
                    logits,
                    raws,
                    grad_outputs=weights.to(logits.dtype),
                    create_graph=create_graph,
                    retain_graph=True,
                    allow_unused=True,
                )
            except RuntimeError as error:
                if not checkpointing_failed(error):
                    raise
                # The forward is run again outside the capture, with attention fused; the reentrant kind not at all.
                raise RuntimeError(
                    f"gradients to feature layer {self._names} do not go with gradient checkpointing of fused "
                    "attention, nor with its reentrant kind (use_reentrant=True). Switch gradient checkpointing off; "
                    "or, where it is not reentrant, fused attention: timm.layers.set_fused_attn(False) before a timm "
                    'model is built, attn_implementation="eager" for a transformers model.'
                ) from error
            finally:
                self._gate.shut = False
        gradients = [gradient for gradient in found if gradient is not None]
        if not gradients:
            raise RuntimeError(
                f"the logits carry no gradient to the map of feature layer {self._names}. Pass the logits of the "
                "forward inside the capture, neither detached nor compiled, and capture with "
                "FeatureCapture(model, layer, tail_gradient=True)."
            )
        if len(gradients) < len(found):
            unread = [name for name, gradient in zip(self.layer.names, found, strict=True) if gradient is None]
            raise RuntimeError(
                f"of the feature layers {self._names}, the logits read {', '.join(unread)} through the others alone, "
                "or not at all; leave it out of feature_layer."
            )
        return tuple(gradients)

    def replay(self, tail: Tail, model: nn.Module, rows: int) -> tuple[Tensor, Tensor]:
        """
        The first rows of [`raw`], and their logits by what comes after the layer, run once more and kept.

        Args:
            tail ([`Tail`]): of the model and the layer.
            model (`nn.Module`): the model, wrapped or not.
            rows (`int`): how many.

        Returns:
            `tuple` of the rows, in the graph of the model where they carry a gradient, else a new leaf that requires
            one; and of the logits `(rows, K)`, which can be differentiated twice with respect to them.

        Raises:
            RuntimeError: under `torch.inference_mode`.
        """
        if rows not in self._replayed:
            self._refuse_inference_mode(self.layer.name)
            with torch.enable_grad(), twice_differentiable():
                raw = self.raw[:rows]
                raw = raw if raw.requires_grad else raw.detach().requires_grad_()
                self._replayed[rows] = raw, tail(model, raw)
        return self._replayed[rows]

    @staticmethod
    def _refuse_inference_mode(name: str) -> None:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f'gradients to feature layer "{name}" cannot be taken under torch.inference_mode(); '
                "use torch.no_grad() in its place."
            )

    @property
    def _names(self) -> str:
        return ", ".join(f'"{name}"' for name in self.layer.names)

    @staticmethod
    def _raw_of(part: FeatureLayer, fired: _Fired) -> Tensor:
        if fired.raw is None:
            raise RuntimeError(
                f'feature layer "{part.name}" has captured nothing; call the model inside the context first.'
            )
        return fired.raw
