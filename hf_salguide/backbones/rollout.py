"""
Attention rollout of a model, from the attention that is seen in its forward.

Which attention there is, over which tokens, and which of them the head reads, is found by what the model does. In one
forward of noise every token is made to attend to itself alone. Then

1. tokens must not mix any more: what a token brings to an attention depends on what the one before gave to the same
   token, and on no other (else convolutions or attention that is not seen come between, or attention side by side),
2. the tokens that differ between pictures are the patches', row by row; the others are prefix tokens,
3. the tokens at which the logits have a gradient with respect to what the last attention gave are those that the head
   reads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..maps import attention_rollout
from .forward import (
    REFUSALS,
    check_image_size,
    describe,
    input_shape,
    is_checkpointed,
    logits_of,
    probe_images,
    unwrap_model,
)
from .probe import probing
from .resolve import fingerprint

PROBES = 3  # pictures in the forward
VARIES = 1e-3  # of the largest difference between pictures: a token that differs less holds none of the picture
_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax}
_MATMUL = {torch.matmul, Tensor.matmul}
_SAME_NUMBERS = {F.dropout, torch.dropout, Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.contiguous}


@dataclass(frozen=True)
class AttentionTokens:
    """
    The tokens that a model's layers attend over.

    Args:
        layers (`int`): how many layers attend.
        length (`int`): L, of the sequence of each of them.
        patches (`tuple[int, ...]`): where the picture's patches are in it, row by row.
        read (`tuple[int, ...]`): where the tokens are that the head reads behind the last layer.
        unread (`int`, *optional*, defaults to 0): how many operations of the forward are attention of another kind
            that the logits do not depend on, such as a pooling beside the head.
    """

    layers: int
    length: int
    patches: tuple[int, ...]
    read: tuple[int, ...]
    unread: int = 0


_found: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], AttentionTokens]] = WeakKeyDictionary()


class AttentionRecorder(TorchFunctionMode):
    """
    A context that keeps the attention of every layer of the forward run inside it, averaged over the heads.

    It sees [`torch.nn.functional.scaled_dot_product_attention`], whose probabilities it computes beside it, and a
    softmax whose result is multiplied with values as it is, before dropout. The forward itself is not changed.

    Args:
        batch (`int`): B, of the pictures.

    Attributes:
        attentions (`list` of `Tensor` of shape `(B, 1, L, L)`): float32, or float64 where the model computes in it;
            in the order of the layers, in the graph of the logits.
        problems (`list[str]`): what is no attention of all tokens over all tokens, each in words.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.attentions: list[Tensor] = []
        self.problems: list[str] = []
        # By identity, with the tensor, so that it keeps its identity: a softmax that no values have met yet.
        self._waiting: dict[int, tuple[Tensor, Tensor]] = {}

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._waiting.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        given = [id(tensor) for tensor in _tensors(args, kwargs) if id(tensor) in self._waiting]
        if func in _MATMUL and len(args) == 2 and given == [id(args[0])] and args[1].ndim == 4:
            return self._multiplied(*args)
        output = func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return (self.problem("torch.nn.MultiheadAttention does not show its attention", output[0]), output[1])
        if func in _SOFTMAX:
            return self._softmax(output, args[1] if len(args) > 1 else kwargs.get("dim"))
        if not given or not isinstance(output, Tensor) or func is Tensor.detach:
            return output
        mean = self._waiting[given[0]][1]
        if func in _SAME_NUMBERS:
            self._waiting[id(output)] = (output, mean)
            return output
        self._drop(mean)
        return self.problem("the softmax of a layer is changed before it is multiplied with values", output)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def whole() -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)

        shape = (*query.shape[:-1], key.shape[-2])
        if not self._applies(shape):
            return self.problem(self._other(shape), whole())
        self.attentions.append(_probabilities(query, key, value, *args, **kwargs).mean(dim=1, keepdim=True))
        return self.product(whole, value, query.shape[1])

    def _softmax(self, output: Tensor, axis: int | None) -> Tensor:
        if output.ndim <= 2:
            return output
        if axis not in (-1, output.ndim - 1):
            return self.problem(f"a softmax of shape {tuple(output.shape)} is over axis {axis}", output)
        if not self._applies(tuple(output.shape)):
            return self.problem(self._other(tuple(output.shape)), output)
        mean = (output if output.dtype == torch.float64 else output.float()).mean(dim=1, keepdim=True)
        self._waiting[id(output)] = (output, mean)
        return output

    def _multiplied(self, attention: Tensor, value: Tensor) -> Tensor:
        mean = self._waiting[id(attention)][1]
        self._drop(mean)
        self.attentions.append(mean)
        return self.product(lambda: torch.matmul(attention, value), value, attention.shape[1])

    def _applies(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 4 and shape[0] == self.batch and shape[2] == shape[3]

    def _other(self, shape: tuple[int, ...]) -> str:
        return (
            f"for {self.batch} pictures a layer attends in shape {shape}, not ({self.batch}, heads, L, L), as with "
            "windows, reduced keys or pooling by attention"
        )

    def _drop(self, mean: Tensor) -> None:
        self._waiting = {key: entry for key, entry in self._waiting.items() if entry[1] is not mean}

    def product(self, whole: Callable[[], Tensor], value: Tensor, heads: int) -> Tensor:
        """What the layer hands on: the attention times the values."""
        return whole()

    def problem(self, text: str, output: Tensor) -> Tensor:
        """Notes an operation that is no attention of all tokens over all tokens; what it hands on."""
        self.problems.append(text)
        return output


class _SelfAttention(AttentionRecorder):
    """A context in which every token attends to itself alone, so that what the layer hands on are its values."""

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.values: list[Tensor] = []
        # Leaves, so that gradients end at the layer before.
        self.outputs: list[Tensor] = []
        self.others: list[Tensor] = []

    def product(self, whole: Callable[[], Tensor], value: Tensor, heads: int) -> Tensor:
        self.values.append(value)
        each = value.repeat_interleave(heads // value.shape[1], dim=1)
        return self._leaf(each, self.outputs)

    def problem(self, text: str, output: Tensor) -> Tensor:
        return self._leaf(super().problem(text, output), self.others)

    @staticmethod
    def _leaf(output: Tensor, leaves: list[Tensor]) -> Tensor:
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1].clone()


def attention_tokens(model: nn.Module, image_size: int | Sequence[int] | None = None) -> AttentionTokens:
    """
    Finds over which tokens a model's layers attend, and which of them its head reads.

    One forward of three noise pictures; the result is kept for the model as long as its modules stay the same. The
    model's modes, parameters, buffers and hooks, and the random state, are left as they were.

    Args:
        model (`nn.Module`): a classifier, wrapped by DDP or not.
        image_size (`int` or pair, *optional*): the pictures' size, `(H, W)`; default: that of the configuration.

    Returns:
        [`AttentionTokens`].

    Raises:
        ValueError: if there is no attention of all tokens over all tokens in every layer, or it cannot be seen; if
            the backbone refuses the size.
    """
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        raise _refused(model, "it is compiled, and attention in compiled code is not seen; give the model as it was")
    model = unwrap_model(model)
    shape = input_shape(model, image_size)
    key = (shape, fingerprint(model))
    known = _found.setdefault(model, {})
    if key not in known:
        with probing(model) as probed, _not_checkpointed(probed):
            known[key] = _find(probed, shape)
    return known[key]


def rollout_maps(model: nn.Module, pixel_values: Tensor, tokens: AttentionTokens, grid: tuple[int, int]) -> Tensor:
    """
    Attention rollout from the tokens that the head reads to the picture's patches.

    With `R` from [`attention_rollout`]: `map[b] = mean_i R[b, i, patches]` over the tokens `i` that the head reads.

    Args:
        model (`nn.Module`): the model, wrapped by DDP or not.
        pixel_values (`Tensor` of shape `(B, C, H, W)`): prepared pictures.
        tokens ([`AttentionTokens`]): of the model, for pictures of this size.
        grid (`tuple[int, int]`): `(h, w)`, of the patches.

    Returns:
        `Tensor` of shape `(B, h, w)`, float32, not negative. Its sum is at most 1: prefix tokens have the rest.

    Raises:
        ValueError: if the grid does not fit the patches; if gradient checkpointing is in the way of gradients; if
            the forward shows other attention than it did on noise.
    """
    if len(tokens.patches) != grid[0] * grid[1]:
        raise _refused(
            model, f"it attends over {len(tokens.patches)} patches, but its feature layer is {grid[0]} × {grid[1]}"
        )
    if torch.is_grad_enabled() and is_checkpointed(model):
        raise _refused(
            model,
            "gradient checkpointing runs its layers again where their attention is not seen; switch it off, or call "
            "under torch.no_grad()",
        )
    with AttentionRecorder(len(pixel_values)) as recorder:
        model(pixel_values)
    lengths = [attention.shape[-1] for attention in recorder.attentions]
    if len(recorder.problems) != tokens.unread or lengths != [tokens.length] * tokens.layers:
        raise _refused(
            model,
            f"{len(lengths)} layers attend over {', '.join(map(str, sorted(set(lengths)))) or 'no'} tokens, where "
            f"{tokens.layers} attended over {tokens.length} when its attention was looked for, in evaluation mode",
        )
    readers = torch.zeros(1, tokens.length, device=pixel_values.device)
    readers[:, list(tokens.read)] = 1 / len(tokens.read)
    with torch.autocast(pixel_values.device.type, enabled=False):
        shares = attention_rollout(recorder.attentions, readers)
    return shares[:, 0, list(tokens.patches)].unflatten(1, grid).float()


def _find(model: nn.Module, shape: tuple[int, int, int]) -> AttentionTokens:
    try:
        with _SelfAttention(PROBES) as seen:
            logits = logits_of(model(probe_images(model, shape, PROBES, seed=0)))
    except REFUSALS as error:
        check_image_size(model, shape[1:])  # raises where it is the size that is refused
        raise _refused(model, f"a forward fails in which gradients are taken ({error})") from error
    ends = [tensor for tensor in (logits, *seen.values) if tensor.requires_grad]
    if seen.others and ends:
        found = torch.autograd.grad([end.sum() for end in ends], seen.others, retain_graph=True, allow_unused=True)
        for problem, gradient in zip(seen.problems, found, strict=True):
            if gradient is not None:
                raise _refused(model, problem)
    if not seen.values:
        raise _refused(model, "its forward shows no attention")
    lengths = list(dict.fromkeys(value.shape[2] for value in seen.values))
    if len(lengths) > 1:
        raise _refused(model, f"its layers attend over {', '.join(map(str, lengths))} tokens in turn")
    generator = torch.Generator().manual_seed(1)
    followed = torch.tensor([0, lengths[0] // 2, lengths[0] - 1])  # a token of each picture
    for before, value in zip(seen.outputs[:-1], seen.values[1:], strict=True):
        weights = torch.zeros_like(value)
        pictures = torch.arange(PROBES)
        weights[pictures, :, followed] = torch.randn(value[pictures, :, followed].shape, generator=generator).to(value)
        reached = _reached(value, before, weights)
        if not reached[pictures, followed].any():
            raise _refused(model, "its attention runs side by side, not one layer after the other")
        reached[pictures, followed] = False
        if reached.any():
            raise _refused(model, "its tokens mix outside the attention that is seen as well")
    weights = torch.randn(logits.shape, generator=generator).to(logits)
    read = _reached(logits, seen.outputs[-1], weights).any(dim=0)
    first = seen.values[0].detach()
    difference = (first - first.mean(dim=0)).abs().amax(dim=(0, 1, 3))
    patches = difference > VARIES * difference.max()
    if not (read.any() and patches.any()):
        raise _refused(model, "the picture does not reach its logits through the attention that is seen")
    if (read & patches).any():
        read = read | patches  # a maximum over the patches reads others in every picture
    return AttentionTokens(
        layers=len(seen.values),
        length=lengths[0],
        patches=tuple(patches.nonzero()[:, 0].tolist()),
        read=tuple(read.nonzero()[:, 0].tolist()),
        unread=len(seen.problems),
    )


def _reached(output: Tensor, leaf: Tensor, weights: Tensor) -> Tensor:
    """At which tokens of `leaf`, `(B, heads, L, d)`, the weighted sum of `output` has a gradient: `(B, L)`."""
    gradient = None
    if output.requires_grad:
        (gradient,) = torch.autograd.grad(output, leaf, grad_outputs=weights, retain_graph=True, allow_unused=True)
    if gradient is None:
        return torch.zeros(leaf.shape[0], leaf.shape[2], dtype=torch.bool, device=leaf.device)
    return (gradient != 0).any(dim=3).any(dim=1)


@contextmanager
def _not_checkpointed(model: nn.Module) -> Iterator[None]:
    """Inside, gradient checkpointing is off, for it runs layers again where their attention is not seen."""
    with ExitStack() as stack:
        for module in model.modules():
            for flag in ("gradient_checkpointing", "grad_checkpointing"):
                if getattr(module, flag, False) is True:
                    stack.callback(setattr, module, flag, True)
                    setattr(module, flag, False)
        yield


def _probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What [`torch.nn.functional.scaled_dot_product_attention`] multiplies the values with, before dropout."""
    with torch.autocast(query.device.type, enabled=False):
        if query.dtype != torch.float64:
            query, key = query.float(), key.float()
        if enable_gqa:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~causal, -torch.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask.to(scores.dtype)
        return scores.softmax(dim=-1)


def _tensors(args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for entry in (*args, *kwargs.values()):
        if isinstance(entry, Tensor):
            yield entry
        elif isinstance(entry, tuple | list):
            yield from (inner for inner in entry if isinstance(inner, Tensor))


def _refused(model: nn.Module, reason: str) -> ValueError:
    return ValueError(
        f'method="attention_rollout" cannot be had of {describe(unwrap_model(model))}: {reason}. It takes attention '
        "of all tokens over all tokens in every layer, seen as a softmax that is multiplied with values or as "
        'scaled_dot_product_attention; take method="auto" or "input_gradient".'
    )
