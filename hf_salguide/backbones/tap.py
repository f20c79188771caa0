"""Reading features of several layers in the one forward that is run anyway."""

import difflib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..names import POOLED
from .forward import describe, unwrap_model
from .layer import replace_output
from .pooled import PooledLayer
from .probe import tensors_of


class FeatureTap:
    """
    A context that keeps the outputs of named modules, and the pooled vector, of the one forward run inside it.

    The hooks sit on the unwrapped model's modules; call the model, wrapped or not, inside the context. On leaving, on
    an exception too, they are removed. The tensors are in the graph of the logits; of a module that returns several,
    it is the first. The module hands on a copy, so that an activation in place behind it does not change what is kept.

    Args:
        model (`nn.Module`): the model, wrapped or not.
        names (`Sequence[str]`): names of modules, as in `model.get_submodule(name)`.
        pooled ([`PooledLayer`], *optional*): see [`resolve_pooled_layer`]; the vector is kept under `"pooled"`.

    Attributes:
        features (`dict` from a name to a `Tensor` of shape `(B, ...)`): in float32, or float64 where the model
            computes in it; filled by the forward.

    Raises:
        ValueError: if a name is not a module of the model, or is `"pooled"` as well.
        RuntimeError: on leaving, if a layer did not fire exactly once; in the forward, if it gave no tensor.

    Example:

    ```python
    pooled = resolve_pooled_layer(model)
    with FeatureTap(model, ["timm_model.layer3"], pooled) as tap:
        logits = model(pixel_values=pixel_values).logits
    tap.features["pooled"]  # (B, D)
    ```
    """

    def __init__(self, model: nn.Module, names: Sequence[str], pooled: PooledLayer | None = None) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.pooled = pooled
        self.features: dict[str, Tensor] = {}
        self._model = unwrap_model(model)
        self._calls: dict[str, int] = {}
        self._stack: ExitStack | None = None
        known = dict(self._model.named_modules())
        for name in self.names:
            if name not in known or not name:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f'; the nearest name is "{near[0]}"' if near else ""
                raise ValueError(
                    f'layer "{name}" is not a module of {describe(self._model)}{hint} (see model.named_modules()).'
                )
        if pooled is not None and POOLED in self.names:
            raise ValueError(f'"{POOLED}" is the pooled vector here, and cannot be the name of a module as well.')

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError("this FeatureTap is entered already; make a new one.")
        self.features = {}
        self._calls = dict.fromkeys(self.names, 0)
        with ExitStack() as stack:
            for name in self.names:
                module = self._model.get_submodule(name)
                stack.callback(module.register_forward_hook(self._output_of(name)).remove)
            if self.pooled is not None:
                self._calls[POOLED] = 0
                stack.callback(self.pooled.watch(self._model, lambda vector: self._keep(POOLED, vector)).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
        if kind is not None:
            self.features = {}
            return
        for name, calls in self._calls.items():
            if calls != 1:
                self.features = {}
                what = f'layer "{name}"' if name != POOLED or self.pooled is None else f'"{self.pooled.name}" (pooled)'
                raise RuntimeError(
                    f"{what} {f'fired {calls} times' if calls else 'did not fire'}. Call the model once inside the "
                    "context, compiled later than that or not at all, and name modules that run once in a forward."
                )

    def _output_of(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            found = next(tensors_of(output), None)
            if found is None:
                raise RuntimeError(
                    f'layer "{name}" gave no tensor but {type(output).__name__}; name a module inside it.'
                )
            index, tensor = found
            self._keep(name, tensor)
            return replace_output(output, index, tensor.clone())

        return hook

    def _keep(self, name: str, tensor: Tensor) -> None:
        self._calls[name] += 1
        self.features[name] = tensor if tensor.dtype == torch.float64 else tensor.float()
