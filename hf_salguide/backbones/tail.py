"""What a model does behind its feature layer, as a function that can be run once more."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .forward import describe, image_pair, input_shape, logits_of, probe_images, unwrap_model
from .layer import FeatureLayer
from .probe import probing, seeded

TOLERANCE = 1e-4  # of the largest logit: what lies between the forward and the replay is rounding
_READINGS: dict[str, Callable[[FeatureLayer, Tensor], Tensor]] = {
    "output": lambda layer, raw: raw,
    "map": lambda layer, raw: layer.to_maps(raw),
    "mean of the map": lambda layer, raw: layer.to_maps(raw).mean(dim=(2, 3)),
    "mean of the map, 1 x 1": lambda layer, raw: layer.to_maps(raw).mean(dim=(2, 3), keepdim=True),
    "mean of the tokens": lambda layer, raw: raw.mean(dim=1),
}


@dataclass(frozen=True)
class Tail:
    """
    The modules behind a feature layer, one after the other.

    Calling it gives the logits of a captured output, in float32, with the parameters of the model at hand: gradients
    pass to both. It runs outside the model, eagerly, neither compiled nor under autocast, and as in
    evaluation: dropout of the head is left out, and no generator is touched. So a gradient with respect to the layer's
    output, and the derivative of that gradient, can be had where the model itself gives none.

    Args:
        layer ([`FeatureLayer`]): whose output is taken.
        names (`tuple[str, ...]`): of the modules, in their order.
        reading (`str`): what the first of them is given: the layer's `"output"`, the `"map"` `(B, C, h, w)`, or its
            mean over the grid.
        modules (`tuple[nn.Module, ...]`): copies of the modules, without parameters of their own.
    """

    layer: FeatureLayer
    names: tuple[str, ...]
    reading: str
    modules: tuple[nn.Module, ...] = field(repr=False, compare=False)

    def __call__(self, model: nn.Module, raw: Tensor) -> Tensor:
        """
        Runs the tail.

        Args:
            model (`nn.Module`): the model whose parameters are taken, wrapped or not.
            raw (`Tensor`): the layer's output, as [`FeatureCapture.raw`] gives it.

        Returns:
            `Tensor` of shape `(B, K)`: the logits.
        """
        inner = unwrap_model(model)
        with torch.autocast(raw.device.type, enabled=False):
            values = _READINGS[self.reading](self.layer, _precise(raw))
            for name, module in zip(self.names, self.modules, strict=True):
                values = _run(module, inner.get_submodule(name), values)
        return values


def resolve_tail(model: nn.Module, layer: FeatureLayer, size: int | tuple[int, int] | None = None) -> Tail:
    """
    Finds the modules behind a feature layer, and checks on noise that they give the model's logits.

    Args:
        model (`nn.Module`): the classifier, not compiled. It is left as it was.
        layer ([`FeatureLayer`]): of that model.
        size (`int` or pair, *optional*): the pictures' `(H, W)`; default: the model's own.

    Returns:
        [`Tail`]

    Raises:
        ValueError: where the logits are no chain of modules on the layer's output, as where a class token attends to
            it or the head reads several layers, or where batch normalisation lies behind it, whose statistics would
            be moved twice.
    """
    inner = unwrap_model(model)
    where = f'what comes after feature layer "{", ".join(layer.names)}" of {describe(inner)}'
    if layer.others:
        raise ValueError(f"{where} cannot be run by itself: the head reads several layers.")
    with probing(inner) as probed, torch.no_grad():
        images = probe_images(probed, input_shape(probed, image_pair(size) if size else None), count=2, seed=0)
        with _following(probed, layer) as (kept, names):
            expected = seeded(probed, images)
        if not kept or not names:
            raise ValueError(f"{where} cannot be run by itself: no module runs there.")
        found = [probed.get_submodule(name) for name in names]
        if any(isinstance(part, _BatchNorm) for module in found for part in module.modules()):
            raise ValueError(f"{where} cannot be run a second time: it holds batch normalisation.")
        copies = tuple(_skeleton(module) for module in found)
        # Modules that do nothing in a row, and those that others had run before, may stand first.
        for first in range(len(names)):
            for reading in _READINGS:
                tail = Tail(layer, tuple(names[first:]), reading, copies[first:])
                if _gives(tail, probed, kept[0], expected):
                    return tail
    raise ValueError(
        f"{where} cannot be run by itself: the logits are no chain of its modules {', '.join(names)}, as where "
        "a class token attends to the map."
    )


@contextmanager
def _following(model: nn.Module, layer: FeatureLayer) -> Iterator[tuple[list[Tensor], list[str]]]:
    """The layer's output, and the outermost modules that are entered after it, in their order."""
    kept: list[Tensor] = []
    names: list[str] = []
    entered: list[str] = []

    def capture(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(layer.select(output).clone())

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, args: Any) -> None:
            if kept:
                if not entered:
                    names.append(name)
                entered.append(name)

        return note

    def leave(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if entered and entered[-1] == name:
                entered.pop()

        return note

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name == layer.name:
                stack.callback(module.register_forward_hook(capture).remove)
            elif name:
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(leave(name)).remove)
        yield kept, names


def _skeleton(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that holds no parameters: they are handed in at each call."""
    empty = {id(tensor): nn.Parameter(tensor.detach().to("meta"), False) for tensor in module.parameters()}
    return copy.deepcopy(module, dict[int, Any](empty)).eval()


def _run(skeleton: nn.Module, module: nn.Module, values: Tensor) -> Tensor:
    if isinstance(skeleton, nn.Linear) and values.ndim == 4 and values.shape[2:] == (1, 1):
        values = values.flatten(1)
    given = {name: _precise(parameter) for name, parameter in module.named_parameters()}
    given |= dict(module.named_buffers())
    output: Tensor = functional_call(skeleton, given, (values,))
    return output


def _precise(values: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def _gives(tail: Tail, model: nn.Module, raw: Tensor, expected: Tensor) -> bool:
    try:
        found = logits_of(tail(model, raw))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
