"""Running a model to look at it, and leaving no trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import timm.layers
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from ..rng import preserve_rng

DEFAULT_SIZE = 224  # of models that fix no size and record none
# How backbones refuse a size: convolutions, assertions of timm, checks of transformers, windows of zero cells.
REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError)


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DistributedDataParallel` and the like; the model itself where unwrapped."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def checkpointing_failed(error: RuntimeError) -> bool:
    """Whether an error is that of gradient checkpointing in the way of a gradient inside the forward."""
    return isinstance(error, CheckpointError) or "use_reentrant" in str(error)


def is_checkpointed(model: nn.Module) -> bool:
    """Whether a part of a model has gradient checkpointing switched on, by transformers' flag or by timm's."""
    flags = ("gradient_checkpointing", "grad_checkpointing")
    return any(getattr(module, flag, False) is True for module in model.modules() for flag in flags)


def is_reentrant(model: nn.Module) -> bool:
    """Whether a part of a model is checkpointed by torch's reentrant kind, whose first forward has no graph."""
    by_timm = getattr(timm.layers, "use_reentrant_ckpt", bool)()
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        chosen = isinstance(function, partial) and function.keywords.get("use_reentrant", False)
        if (getattr(module, "gradient_checkpointing", False) is True and chosen) or (
            getattr(module, "grad_checkpointing", False) is True and by_timm
        ):
            return True
    return False


def logits_of(output: object) -> Tensor:
    """
    The logits in what a classifier returned.

    Args:
        output (`object`): a tensor, a transformers output with `logits`, or a tuple that starts with the logits (or
            with a scalar loss and then the logits).

    Returns:
        `Tensor` of shape `(B, K)`.

    Raises:
        TypeError: if there are none.
    """
    logits = getattr(output, "logits", None)
    candidates = output if isinstance(output, tuple | list) else [output if logits is None else logits]
    for candidate in candidates:
        if isinstance(candidate, Tensor) and candidate.ndim == 2:
            return candidate
    raise TypeError(
        f"the model returned {type(output).__name__} with no logits of shape (batch, classes); wrap it with "
        "as_classifier, or return a tensor or an output that has `logits`."
    )


def image_pair(image_size: int | Sequence[int], name: str = "image_size") -> tuple[int, int]:
    """
    `(H, W)` from an integer or a pair.

    Raises:
        ValueError: for anything else, or a size below 1.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or any(isinstance(edge, bool) or not isinstance(edge, int) or edge < 1 for edge in pair):
        raise ValueError(
            f"{name}={image_size!r} is not a size; give a positive integer, or (height, width) in pixels."
        )
    return pair


def input_shape(model: nn.Module, image_size: int | Sequence[int] | None = None) -> tuple[int, int, int]:
    """
    `(C, H, W)` of the pictures that a model takes, from its configuration.

    Args:
        model (`nn.Module`): a classifier, wrapped or not.
        image_size (`int` or pair, *optional*): overrides the configuration's size.
    """
    model = unwrap_model(model)
    config = getattr(model, "config", None)
    pretrained_cfg = getattr(config, "pretrained_cfg", None) or getattr(model, "pretrained_cfg", None) or {}
    recorded = pretrained_cfg.get("input_size")
    channels = recorded[0] if recorded else getattr(config, "num_channels", 3)
    if image_size is None:
        recorded_size = getattr(config, "image_size", None)
        image_size = recorded[1:] if recorded else DEFAULT_SIZE if recorded_size is None else recorded_size
    return (channels, *image_pair(image_size))


def probe_images(model: nn.Module, shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Noise pictures, `(count, C, H, W)`, on the model's device; drawn without touching a global generator."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *shape, generator=generator)
    parameter = next(model.parameters(), images)
    return images.to(parameter.device, parameter.dtype)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Runs a model in evaluation mode and float arithmetic of its own; training flags and RNG states are restored."""
    modes = [(module, module.training) for module in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        model.eval()
        with preserve_rng(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training


def check_image_size(model: nn.Module, size: int | Sequence[int]) -> None:
    """
    One forward of two noise pictures, so that a size that a backbone cannot take is found before training.

    Args:
        model (`nn.Module`): the classifier. Its modes, buffers and the random state are left as they were.
        size (`int` or pair): the picture's size in pixels, `(H, W)`.

    Raises:
        ValueError: if the backbone refuses the size, with its own reason.
    """
    shape = input_shape(model, size)
    model = unwrap_model(model)
    try:
        with evaluation(model), torch.no_grad():
            logits_of(model(probe_images(model, shape, count=2, seed=0)))
    except REFUSALS as error:
        raise size_refused(model, shape[1:], error) from error


def size_refused(model: nn.Module, size: tuple[int, int], error: Exception) -> ValueError:
    """The error to raise where a forward failed on pictures of a size."""
    recorded = input_shape(model)[1:]
    remedy = (
        "take a size that its patches, strides and windows divide"
        if recorded == size
        else f"take {recorded}, which it was built for, or as_classifier(..., image_size=...) for a new model"
    )
    return ValueError(f"image_size={size} is refused by {describe(model)} ({error}); {remedy}.")


def describe(model: nn.Module) -> str:
    """A model's name in a message: its class, and the timm architecture inside."""
    architecture = getattr(getattr(model, "config", None), "architecture", None)
    return f"{type(model).__name__}({architecture})" if architecture else type(model).__name__
