"""Running a model to look at it, and leaving no trace."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from ..rng import preserve_rng

DEFAULT_SIZE = 224  # of models that fix no size and record none
# How backbones refuse a size: convolutions, assertions of timm, checks of transformers, windows of zero cells.
REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError)
CUT_PICTURES = ("pixel_attention_mask", "spatial_shapes")  # arguments that come with a picture cut into patches


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


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of a model is a `DTensor`, as `torch.distributed.fsdp.fully_shard` makes them."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


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
        output (`object`): a tensor, a transformers output or a mapping with `logits`, or a tuple that starts with the
            logits (or with a scalar loss and then the logits). A pair of logits, as timm's distilled models give in
            training, is averaged, as they do in evaluation.

    Returns:
        `Tensor` of shape `(B, K)`.

    Raises:
        TypeError: if there are none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    given = output if logits is None else logits
    candidates = given if isinstance(given, tuple | list) else [given]
    found = [candidate for candidate in candidates if isinstance(candidate, Tensor) and candidate.ndim == 2]
    if len(candidates) == len(found) == 2 and found[0].shape == found[1].shape:
        return (found[0] + found[1]) / 2
    if found:
        return found[0]
    fields = f" ({', '.join(map(str, output))})" if isinstance(output, dict) else ""
    raise TypeError(
        f"the model returned {type(output).__name__}{fields} with no logits of shape (batch, classes); take a model "
        "whose forward returns them as a tensor, or as `logits` of its output."
    )


def refuse_without_pictures(model: nn.Module | type[nn.Module]) -> None:
    """
    Refuses a transformers model that does not read a picture of shape `(B, C, H, W)`, by what its forward declares.

    Modules that declare no `main_input_name` of transformers pass.

    Args:
        model (`nn.Module` or a class of modules): the model; or its class, before anything is built.

    Raises:
        ValueError: if its forward takes tokens, patches or sound in place of a picture, or a prompt beside it.
    """
    kind = model if isinstance(model, type) else type(unwrap_model(model))
    main = getattr(kind, "main_input_name", None)
    taken = inspect.signature(kind.forward).parameters
    cut = [name for name in CUT_PICTURES if name in taken]
    if main not in taken:
        return
    if "pixel_values" not in taken:
        reason = f"its forward takes {main}, not pixel_values"
    elif main == "input_ids":
        reason = "its forward takes a prompt as well, input_ids"
    elif cut:
        reason = f"its forward takes pictures that are cut into patches, with {' and '.join(cut)}"
    else:
        return
    raise ValueError(
        f"model={kind.__name__} does not read a picture of shape (B, C, H, W): {reason}; take an image classifier "
        "that needs pixel_values alone."
    )


def picture_config(config: Any) -> Any:
    """The part of a transformers configuration that describes the pictures: its `vision_config`, where it has one."""
    vision = getattr(config, "vision_config", None)
    return config if vision is None else vision


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
    `(C, H, W)` of the pictures that a model takes, from its configuration; where it has none, C is that of its first
    convolution.

    Args:
        model (`nn.Module`): a classifier, wrapped or not.
        image_size (`int` or pair, *optional*): overrides the configuration's size.
    """
    model = unwrap_model(model)
    config = getattr(model, "config", None)
    pretrained_cfg = getattr(config, "pretrained_cfg", None) or getattr(model, "pretrained_cfg", None) or {}
    recorded = pretrained_cfg.get("input_size")
    described = picture_config(config)
    channels = recorded[0] if recorded else getattr(described, "num_channels", 3)
    if config is None:  # a plain module; what timm records of it is not always what it was built with
        first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        channels = channels if first is None else first.in_channels
    if image_size is None:
        recorded_size = getattr(described, "image_size", None)
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
    """
    Runs a model in evaluation mode, in float arithmetic of its own, and not compiled, so that hooks fire.

    Training flags and RNG states are restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # accelerate's mixed precision is an autocast inside a forward of the instance's own.
    wrapped = vars(model).get("forward") if "_original_forward" in vars(model) else None
    try:
        model.eval()
        if wrapped is not None:
            model.forward = vars(model)["_original_forward"]
        with preserve_rng(), torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
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
