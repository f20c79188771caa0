"""
The vector that the classifier's last layer reads, found by what the model does, not by what its modules are called.

Of the modules that one forward ran, from the last to the first, the vector is the input of the first that

1. is linear (a linear layer, a 1 × 1 convolution, or an adapter round one), gives one number a class, and whose output
   either is the logits, the same memory, or decides them: with random numbers in its place the logits depend on these
   alone, not on the picture and not on any other such module (distilled pairs, the parts of an adapter);
2. or is of another kind, but has a weight matrix and makes the logits of one vector a picture.

No value is compared with the logits, so that heads that start as zeros are found as well.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..names import POOLED
from .capture import FeatureCapture
from .forward import (
    REFUSALS,
    describe,
    evaluation,
    input_shape,
    logits_of,
    probe_images,
    size_refused,
    unwrap_model,
)
from .layer import FeatureLayer
from .observe import TOLERANCE
from .probe import run_tail
from .resolve import fingerprint, resolve_feature_layer

PROBES = 2  # pictures a forward


@dataclass(frozen=True)
class PooledLayer:
    """
    Where the pooled vector `(B, D)` of a forward is read.

    Args:
        name (`str`): the module's name, as in `model.get_submodule(name)`.
        where (`str`): `"input"`: the vector is the module's input, averaged over its positions if it has any (a
            1 × 1 convolution before the pooling). `"maps"`: no single module makes the logits; the vector is the mean
            of the module's map over the grid.
        size (`int`): D.
        channel_axis (`int`, *optional*, defaults to -1): the axis of the input that has D entries.
        layer ([`FeatureLayer`], *optional*): the layer of the map, with `"maps"`.
    """

    name: str
    where: Literal["input", "maps"]
    size: int
    channel_axis: int = -1
    layer: FeatureLayer | None = None

    def watch(self, model: nn.Module, keep: Callable[[Tensor], None]) -> RemovableHandle:
        """
        Hands the vector `(B, D)`, in the graph, to `keep` in every forward.

        Args:
            model (`nn.Module`): the unwrapped model.
            keep (`Callable`): takes the vector.

        Returns:
            `RemovableHandle`: its `remove()` ends it.
        """
        module = model.get_submodule(self.name)
        if self.layer is None:
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: keep(self._vector(_first_tensor(args, kwargs))), with_kwargs=True
            )
        layer = self.layer
        return module.register_forward_hook(
            lambda _, args, output: keep(layer.to_maps(layer.select(output)).mean(dim=(2, 3)))
        )

    def _vector(self, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise RuntimeError(f'"{self.name}" was called without a tensor; resolve_pooled_layer(model) anew.')
        if tensor.ndim == 2:
            return tensor
        return tensor.movedim(self.channel_axis, -1).flatten(1, -2).mean(dim=1)


_resolved: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], PooledLayer]] = WeakKeyDictionary()


def resolve_pooled_layer(model: nn.Module, image_size: int | Sequence[int] | None = None) -> PooledLayer:
    """
    Finds the pooled penultimate vector: what the classifier's last layer reads.

    That is the averaged map of a ResNet, the class token or the mean token of a transformer behind its last norm, what
    comes behind pooling and norm in ConvNeXt. Where no single module makes the logits (averaged heads of a distilled
    transformer), it is the map of [`resolve_feature_layer`], averaged over its grid.

    A forward of two noise pictures, or a few; the result is kept for the model as long as its modules stay the same.
    The model's modes, parameters, buffers and hooks, and the random state, are left as they were.

    Args:
        model (`nn.Module`): a classifier, see [`as_classifier`]; wrapped by DDP or compiled, or with adapters, too.
        image_size (`int` or pair, *optional*): the pictures' size, `(H, W)`; default: that of the configuration.

    Returns:
        [`PooledLayer`].

    Raises:
        ValueError: if no single module makes the logits and no single layer holds the last map either; if the
            backbone refuses the size.
    """
    model = unwrap_model(model)
    shape = input_shape(model, image_size)
    key = (shape, fingerprint(model))
    known = _resolved.setdefault(model, {})
    if key not in known:
        with evaluation(model), torch.no_grad():
            found = _head_input(model, shape)
        known[key] = found or _mean_of_maps(model, image_size)
    return known[key]


def trainable_before(
    model: nn.Module, layer: FeatureLayer | PooledLayer, image_size: int | Sequence[int] | None = None
) -> bool:
    """
    Whether anything that trains lies before a layer, or one of several that make a map together: whether a loss on
    its map or vector could train the model.

    One forward of noise with gradients switched on; the model and the random state are left as they were.

    Args:
        model (`nn.Module`): the model, wrapped or not.
        layer ([`FeatureLayer`] or [`PooledLayer`]): what the loss would be on.
        image_size (`int` or pair, *optional*): the pictures' size, `(H, W)`; default: that of the configuration.

    Returns:
        `bool`: whether it requires a gradient.
    """
    model = unwrap_model(model)
    shape = input_shape(model, image_size)
    with evaluation(model), torch.inference_mode(False), torch.enable_grad():
        images = probe_images(model, shape, PROBES, seed=0)
        if isinstance(layer, FeatureLayer):
            with FeatureCapture(model, layer) as capture:
                model(images)
            return any(raw.requires_grad for raw in capture.raws)
        kept: list[bool] = []
        handle = layer.watch(model, lambda vector: kept.append(vector.requires_grad))
        try:
            model(images)
        finally:
            handle.remove()
        return any(kept)


@dataclass(eq=False)
class _Call:
    """One call of a module with a weight matrix."""

    name: str
    module: nn.Module
    shape: torch.Size  # of its input
    output: Tensor

    @property
    def linear(self) -> nn.Linear | nn.Conv2d | None:
        """The linear layer or 1 × 1 convolution that the module is, or, as an adapter, has inside."""
        module: Any = self.module
        while isinstance(getattr(module, "base_layer", None), nn.Module):  # as adapters of PEFT name it
            module = module.base_layer
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        return module if pointwise or isinstance(module, nn.Linear) else None

    @property
    def channel_axis(self) -> int:
        return 1 if isinstance(self.linear, nn.Conv2d) else -1

    def is_the_same_as(self, logits: Tensor) -> bool:
        return self.output.data_ptr() == logits.data_ptr() and self.output.numel() == logits.numel()


def _first_tensor(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _observe(model: nn.Module, images: Tensor) -> tuple[list[_Call], Tensor]:
    """What modules that ran once gave, in the order in which they were entered, and the logits."""
    entered: dict[str, list[torch.Size]] = {}
    outputs: dict[str, Any] = {}

    def enter(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensor = _first_tensor(args, kwargs)
            entered.setdefault(name, []).append(torch.Size() if tensor is None else tensor.shape)

        return note

    def leave(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            outputs[name] = output

        return note

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and any(parameter.ndim > 1 for parameter in module.parameters()):
                stack.callback(module.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave(name)).remove)
        logits = logits_of(model(images))
    calls = [
        _Call(name, model.get_submodule(name), shapes[0], outputs[name])
        for name, shapes in entered.items()
        if len(shapes) == 1 and shapes[0] and isinstance(outputs[name], Tensor)
    ]
    return calls, logits


def _head_input(model: nn.Module, shape: tuple[int, int, int]) -> PooledLayer | None:
    images = probe_images(model, shape, PROBES, seed=0)
    try:
        calls, logits = _observe(model, images)
    except REFUSALS as error:
        raise size_refused(model, shape[1:], error) from error
    heads = [
        call
        for call in calls
        if call.linear is not None
        and call.output.ndim > 1
        and (call.output.shape[0], call.output.shape[call.channel_axis]) == logits.shape
    ]
    for call in reversed(calls):
        the_same = call.is_the_same_as(logits)
        if call in heads and (the_same or _decides(model, images, call, heads)):
            return PooledLayer(call.name, "input", call.shape[call.channel_axis], call.channel_axis)
        if call.linear is None and the_same and len(call.shape) == 2:
            return PooledLayer(call.name, "input", call.shape[1])
    return None


def _decides(model: nn.Module, images: Tensor, head: _Call, heads: Sequence[_Call]) -> bool:
    """Whether the logits depend on the output of `head`, and on no picture and no other head beside it."""
    generator = torch.Generator().manual_seed(1)

    def noise(call: _Call) -> tuple[str, None, Tensor]:
        return call.name, None, torch.randn(call.output.shape, generator=generator).to(call.output)

    def logits(given: tuple[str, None, Tensor], pictures: Tensor) -> Tensor:
        return run_tail(model, pictures, given, *(noise(call) for call in heads if call is not head))

    given = noise(head)
    first = logits(given, images)
    by_others = (logits(given, images.roll(1, dims=0)) - first).abs().max()
    by_head = (logits(noise(head), images) - first).abs().max()
    return bool(by_head > 0 and by_others <= TOLERANCE * by_head)


def _mean_of_maps(model: nn.Module, image_size: int | Sequence[int] | None) -> PooledLayer:
    try:
        layer = resolve_feature_layer(model, image_size)
    except ValueError as error:
        raise ValueError(
            f"no single module of {describe(model)} makes the logits of one vector, and no single layer holds its "
            f'last map; name the modules to read, layers=["..."], in place of "{POOLED}".'
        ) from error
    return PooledLayer(layer.name, "maps", layer.channels, channel_axis=1, layer=layer)
