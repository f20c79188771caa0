"""Attention behind the feature layer, where only the prefix tokens are read."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_FUSED = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
_TOKEN_WISE = {F.linear, torch.layer_norm, F.gelu, F.silu, torch.relu}


class PrefixAttention(TorchFunctionMode):
    """
    A context in which attention over `tokens` tokens is differentiable twice for the first `prefix` of them alone.

    Their rows are computed as plain matrix products, `prefix` × `tokens`, and the others' with the fused kernel and
    without a gradient; likewise in what comes after it token by token. So a second derivative neither meets a fused
    kernel, which has none, nor holds matrices of `tokens` × `tokens`. It is right where nothing reads the other rows,
    whose gradient is zero then: the resolver has seen to that. Values are those of the whole, up to rounding.

    Args:
        prefix (`int`): how many rows are read.
        tokens (`int`): the length of the sequence; attention over others, masked or causal attention is left alone.
    """

    def __init__(self, prefix: int, tokens: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.tokens = tokens
        self._attended = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self._applies(*args, **kwargs):
            self._attended = True
            return self._attend(*args, **kwargs)
        if self._attended and func in _TOKEN_WISE and args and args[0].ndim == 3 and args[0].shape[1] == self.tokens:
            # A copy, for the view would keep the whole alive until the backward pass.
            read = func(args[0][:, : self.prefix].clone(), *args[1:], **kwargs)
            with torch.no_grad():
                rest = func(args[0][:, self.prefix :], *args[1:], **kwargs)
            return torch.cat([read, rest], dim=1)
        return func(*args, **kwargs)

    def _applies(self, query: Tensor, *args: Any, **kwargs: Any) -> bool:
        mask = args[2] if len(args) > 2 else kwargs.get("attn_mask")
        causal = args[4] if len(args) > 4 else kwargs.get("is_causal", False)
        return query.shape[-2] == self.tokens and mask is None and not causal

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            read = F.scaled_dot_product_attention(query[..., : self.prefix, :], key, value, *args, **kwargs)
        with torch.no_grad(), sdpa_kernel(_FUSED):
            rest = F.scaled_dot_product_attention(query[..., self.prefix :, :], key, value, *args, **kwargs)
        return torch.cat([read, rest], dim=-2)


class AttentionRecord(TorchFunctionMode):
    """A context that keeps what each call of the fused attention gives."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            self.outputs.append(output)
        return output
