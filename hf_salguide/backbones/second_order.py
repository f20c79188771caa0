"""What a model has to compute in another way where a gradient of it is to be differentiated once more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


class _Hardsigmoid(TorchFunctionMode):
    """Makes hard sigmoids (MobileNetV3, GhostNet) of operations that have a second derivative; torch's has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            given = args[0] if args else kwargs["input"]
            return F.relu6(given + 3) / 6
        return func(*args, **(kwargs or {}))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """
    Runs a forward so that its gradients can be differentiated.

    Attention is computed as plain matrix products, since the fused kernels have no second derivative, and neither has
    torch's hard sigmoid. Values are the same up to rounding.
    """
    with sdpa_kernel(SDPBackend.MATH), _Hardsigmoid():
        yield
