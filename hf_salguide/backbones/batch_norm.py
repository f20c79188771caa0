"""Batch normalisation in a forward whose batch holds pictures and, behind them, views of them."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

VIEW_STATISTICS = ("pictures", "separate", "running", "concat")


def split_batch_norm(parts: Sequence[int], mode: str = "pictures") -> AbstractContextManager[Any]:
    """
    A context for one forward of a batch of pictures followed by views: what batch normalisation does with the views.

    With all modes but `"concat"`, training normalises the pictures, the first part, as a forward of them alone
    does, and the running statistics are updated from them alone, once: views of pictures (shuffled, masked, blurred)
    have other statistics, which should neither shift the pictures' nor be what the model is evaluated with. In
    evaluation mode nothing changes.

    It acts on [`torch.nn.functional.batch_norm`], which `nn.BatchNorm1d` to `3d`, timm's `BatchNormAct2d` and the
    models of transformers call, and only where the input's first dimension holds the parts: their sum, or, where
    tokens were folded into the batch, picture by picture, a multiple of it. Norms within a sample and frozen ones need
    nothing. What computes batch statistics by itself takes them over the whole batch: `nn.SyncBatchNorm` over several
    processes, timm's `EvoNorm2dB0`. It does not go with gradient checkpointing of a batch norm: the forward is run
    again in the backward pass, outside the context (torch raises a `CheckpointError`; its reentrant kind does not).
    `torch.compile` traces it without a graph break, anew for each list of `parts`: keep them few.

    Args:
        parts (`Sequence[int]`): how many rows each part of the batch has: pictures, views, further views. Parts of
            0 rows are left out.
        mode (`str`, *optional*, defaults to `"pictures"`): `"pictures"`: views are normalised by the batch statistics
            of the pictures, through which the gradient passes: a view that is its picture gets the same features, and
            how many views there are changes nothing. `"separate"`: every part of views is normalised by its own batch
            statistics, or by the running ones where it has one value a channel, too few for statistics.
            `"running"`: by the running statistics, as the pictures have just updated them: what a forward of the
            views in evaluation mode would take next. A norm that keeps none takes those of the part. `"concat"`: one
            batch, all of it in the statistics.

    Raises:
        ValueError: for an unknown mode, no pictures, or a negative number of rows.

    Example:

    ```python
    with split_batch_norm([len(pictures), len(views)]):
        logits = model(torch.cat([pictures, views]))
    ```
    """
    if mode not in VIEW_STATISTICS:
        raise ValueError(f"mode={mode!r} is not known; choose one of {', '.join(map(repr, VIEW_STATISTICS))}.")
    if not parts or parts[0] < 1 or min(parts) < 0:
        raise ValueError(f"parts={list(parts)} has to start with the number of pictures, 1 or more, then of views.")
    present = [rows for rows in parts if rows]
    if mode == "concat" or len(present) == 1:
        return nullcontext()
    return _SplitBatchNorm(present, mode)


class _SplitBatchNorm(TorchFunctionMode):
    def __init__(self, parts: Sequence[int], mode: str) -> None:
        super().__init__()
        self.parts = parts
        self.total = sum(parts)
        self.mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self._batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        folded = len(input) // self.total
        if not training or folded * self.total != len(input):  # a rest: a weight that is standardised, not a batch
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if self.mode == "pictures":
            count = folded * self.parts[0]
            arguments = (input, count, running_mean, running_var, weight, bias, momentum, eps)
            # The compiler makes one kernel of the formula; eagerly, torch's own kernels are faster than its steps.
            fused = _has_kernels(input, count, weight, running_mean) and not torch.compiler.is_compiling()
            return _ByPictures.apply(*arguments) if fused else _by_pictures(*arguments)
        pictures, *views = input.split([folded * rows for rows in self.parts])
        outputs = [F.batch_norm(pictures, running_mean, running_var, weight, bias, True, momentum, eps)]
        for view in views:
            too_few = view.numel() == view.shape[1]
            if running_mean is None or running_var is None or not (self.mode == "running" or too_few):
                outputs.append(F.batch_norm(view, None, None, weight, bias, True, eps=eps))
            else:
                # Copies: the backward pass reads them, and a later forward writes over the buffers unnoticed.
                outputs.append(F.batch_norm(view, running_mean.clone(), running_var.clone(), weight, bias, eps=eps))
        return torch.cat(outputs)


def _has_kernels(input: Tensor, count: int, weight: Tensor | None, running_mean: Tensor | None) -> bool:
    """Whether [`_ByPictures`] can take its place: of a single value a channel torch's formula takes no statistics."""
    learnt = [tensor.dtype for tensor in (weight, running_mean) if tensor is not None]
    return (
        count * math.prod(input.shape[2:]) > 1
        and input.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and all(dtype == torch.float32 for dtype in learnt)
    )


def _by_pictures(
    input: Tensor,
    count: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """
    All rows of `input`, `(B, C, ...)`, normalised by the batch statistics of the first `count`, in its dtype; the
    running statistics are those of these rows too.
    """
    pictures, views = input[:count], input[count:]
    normalised = F.batch_norm(pictures, running_mean, running_var, weight, bias, True, momentum, eps)
    return torch.cat([normalised, _by_statistics_of(pictures, views, weight, bias, eps)])


def _by_statistics_of(
    pictures: Tensor, views: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Views normalised by the batch statistics of the pictures, in the dtype of the views."""
    axes = [0, *range(2, pictures.ndim)]
    with torch.autocast(pictures.device.type, enabled=False):
        wide = pictures if pictures.dtype == torch.float64 else pictures.float()
        variance, mean = torch.var_mean(wide, dim=axes, correction=0)
        scale, shift = _affine(mean, (variance + eps).rsqrt(), weight, bias, views.ndim)
        return torch.addcmul(shift, views.to(wide.dtype), scale).to(views.dtype)


class _ByPictures(torch.autograd.Function):
    """
    [`_by_pictures`] by torch's kernels, in two passes each: pictures as in training, views as in evaluation.

    With `n` the values a channel of the pictures, `x^` what is normalised, `g` the gradients of the outputs, and sums
    over pictures and views, the gradient of a picture is `weight / deviation * (g - sum(g) / n - x^ sum(g x^) / n)`:
    that of plain training, and a share of what the views' gradients do to mean and deviation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        count: int,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        pictures, views = input[:count], input[count:]
        output = torch.empty_like(input)
        if input.device.type == "cpu":  # straight to its place: fresh memory costs more than the arithmetic
            mean, inverse = torch.empty(2, input.shape[1], dtype=torch.float32).unbind()
            kept = {"out": output[:count], "save_mean": mean, "save_invstd": inverse}
            statistics = (running_mean, running_var)
            torch.ops.aten.native_batch_norm.out(pictures, weight, bias, *statistics, True, momentum, eps, **kept)
        else:
            arguments = (pictures, weight, bias, running_mean, running_var, True, momentum, eps)
            output[:count], mean, inverse, *_ = torch._batch_norm_impl_index(*arguments, torch.backends.cudnn.enabled)
        scale, shift = _affine(mean, inverse, weight, bias, input.ndim)
        torch.addcmul(shift, views, scale, out=output[count:])
        ctx.save_for_backward(input, weight, bias, mean, inverse)
        ctx.count, ctx.eps = count, eps
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        input, weight, bias, mean, inverse = ctx.saved_tensors
        count, eps = ctx.count, ctx.eps
        learnt = [tensor is not None and tensor.requires_grad for tensor in (input, weight, bias)]
        if torch.is_grad_enabled():  # the gradient is to be differentiated: by the formula
            wanted = [tensor for tensor, needed in zip((input, weight, bias), learnt, strict=True) if needed]
            output = _by_pictures(input, count, None, None, weight, bias, 0.0, eps)
            found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=True))
            of_input, of_weight, of_bias = (next(found) if needed else None for needed in learnt)
            return of_input, None, None, None, of_weight, of_bias, None, None
        pictures, views = input[:count], input[count:]
        given = gradient.contiguous(memory_format=_layout(input))
        of_pictures, of_views = given[:count], given[count:]
        reduced = (False, True, True)  # sums alone, of the gradients times what is normalised, and of the gradients
        reduce = torch.ops.aten.native_batch_norm_backward
        by = torch.ones_like(inverse) if weight is None else weight
        _, of_weight, of_bias = reduce(of_pictures, pictures, by, None, None, mean, inverse, True, eps, reduced)
        # A CPU reads the first two of the statistics, CUDA's kernel the other two.
        as_evaluated = (by, mean, inverse.pow(-2) - eps, mean, inverse, False, eps, reduced)
        _, moved, shifted = reduce(of_views, views, *as_evaluated)
        of_weight, of_bias = of_weight + moved, of_bias + shifted
        scale = inverse * by
        share = pictures.numel() // pictures.shape[1]
        slope = -scale * of_weight * inverse / share
        offset = -scale * of_bias / share - slope * mean
        scale, slope, offset = (values.view([1, -1] + [1] * (input.ndim - 2)) for values in (scale, slope, offset))
        total = torch.empty_like(input)
        torch.mul(of_views, scale, out=total[count:])
        if total.dtype == torch.float32:
            torch.addcmul(offset, pictures, slope, out=total[:count]).addcmul_(of_pictures, scale)
        else:  # rounded once
            total[:count] = torch.addcmul(torch.addcmul(offset, pictures, slope), of_pictures, scale)
        of_weight, of_bias = (
            values if needed else None for values, needed in zip((of_weight, of_bias), learnt[1:], strict=True)
        )
        return total, None, None, None, of_weight, of_bias, None, None


def _affine(
    mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None, dimensions: int
) -> tuple[Tensor, Tensor]:
    """Scale and shift of a normalisation, by the mean and one over the deviation of each channel."""
    scale = inverse if weight is None else inverse * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = [1, -1] + [1] * (dimensions - 2)
    return scale.view(shape), shift.view(shape)


def _layout(values: Tensor) -> torch.memory_format:
    last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not values.is_contiguous() else torch.contiguous_format
