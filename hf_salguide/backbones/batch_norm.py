"""Batch normalisation in a forward whose batch holds pictures and, behind them, views of them."""

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
        folded, rest = divmod(len(input), sum(self.parts))
        if not training or rest:  # a rest: a weight that is standardised, not a batch
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        pictures, *views = input.split([folded * rows for rows in self.parts])
        outputs = [F.batch_norm(pictures, running_mean, running_var, weight, bias, True, momentum, eps)]
        if self.mode == "pictures":
            return torch.cat([*outputs, _by_statistics_of(pictures, torch.cat(views), weight, bias, eps)])
        for view in views:
            too_few = view.numel() == view.shape[1]
            if running_mean is None or running_var is None or not (self.mode == "running" or too_few):
                outputs.append(F.batch_norm(view, None, None, weight, bias, True, eps=eps))
            else:
                # Copies: the backward pass reads them, and a later forward writes over the buffers unnoticed.
                outputs.append(F.batch_norm(view, running_mean.clone(), running_var.clone(), weight, bias, eps=eps))
        return torch.cat(outputs)


def _by_statistics_of(
    pictures: Tensor, views: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Views normalised by the batch statistics of the pictures, in the dtype of the views."""
    axes = [0, *range(2, pictures.ndim)]
    with torch.autocast(pictures.device.type, enabled=False):
        wide = pictures if pictures.dtype == torch.float64 else pictures.float()
        variance, mean = torch.var_mean(wide, dim=axes, correction=0)
        scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = [1, -1] + [1] * (views.ndim - 2)
        return torch.addcmul(shift.view(shape), views.to(wide.dtype), scale.view(shape)).to(views.dtype)
