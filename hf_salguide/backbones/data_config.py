"""How pictures are prepared for a model: read from its configuration, and given back as an image processor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config
from torch import nn
from transformers import BitImageProcessor, TimmWrapperImageProcessor, ViTImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from .forward import image_pair, input_shape, unwrap_model

# PIL's numbers, as image processors keep them.
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# The processors that were loaded with models: a transformers model does not know its own.
_LOADED: WeakKeyDictionary[nn.Module, BaseImageProcessor] = WeakKeyDictionary()
CONVNEXT_SQUASHES_FROM = 384  # below, its processor (the one with a crop_pct) crops


@dataclass(frozen=True)
class DataConfig:
    """
    The preparation of pictures for one model.

    Args:
        size (`tuple[int, int]`): `(H, W)` that the model is fed.
        mean (`tuple[float, ...]`): one value a channel, for pictures in [0, 1].
        std (`tuple[float, ...]`): likewise.
        interpolation (`str`): `"bicubic"`, `"bilinear"`, ...
        crop_pct (`float`): in (0, 1]; of the resized picture's shorter side, what the crop keeps.
        resize_mode (`str`): `"crop"`: the shorter side is resized to `floor(size / crop_pct)`, then the centre is cut
            out; `"squash"`: the picture is resized to `size`, whatever its shape.
        channels (`int`): 1 or 3.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    resize_mode: Literal["crop", "squash"] = "squash"
    channels: int = 3


def data_config(
    model: nn.Module,
    image_size: int | Sequence[int] | None = None,
    processor: BaseImageProcessor | None = None,
) -> DataConfig:
    """
    Reads the preparation of pictures from a model's configuration, or from the processor that came with its weights.

    A size with H ≠ W is always squashed: a crop by the shorter side has no one meaning there.

    Args:
        model (`nn.Module`): a classifier, see [`as_classifier`].
        image_size (`int` or pair, *optional*): `(H, W)`; default: the processor's, else the configuration's, else 224.
        processor (`BaseImageProcessor`, *optional*): for a transformers model, the processor of its weights; default:
            the one that [`load_guided`] found with it, else one of the model's class with its default values.

    Returns:
        [`DataConfig`].

    Raises:
        ValueError: if the model takes neither one nor three channels.
    """
    model = unwrap_model(model)
    processor = _LOADED.get(model) if processor is None else processor
    channels, *size = input_shape(model, image_size)
    if channels not in (1, 3):
        raise ValueError(f"{type(model).__name__} takes {channels} channels; pictures have 1 or 3.")
    pretrained_cfg = _timm_config(model)
    if pretrained_cfg is not None and (processor is None or isinstance(processor, TimmWrapperImageProcessor)):
        found = resolve_data_config({}, pretrained_cfg=pretrained_cfg)
        mode = "squash" if found["crop_mode"] == "squash" else "crop"
        return _config(
            tuple(size), found["mean"], found["std"], found["interpolation"], found["crop_pct"], mode, channels
        )
    source = _default_processor(model) if processor is None else processor
    if processor is not None and image_size is None:
        size = list(_processor_size(processor) or size)
    values = _processor_values(source, min(size))
    return _config(
        tuple(size),
        values["mean"],
        values["std"],
        values["interpolation"],
        values["crop_pct"],
        values["mode"],
        channels,
    )


def keep_processor(model: nn.Module, processor: BaseImageProcessor) -> None:
    """Makes the processor that a model was loaded with the default of [`data_config`], as long as the model lives."""
    _LOADED[unwrap_model(model)] = processor


def _timm_config(model: nn.Module) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    return getattr(config, "pretrained_cfg", None) or getattr(model, "pretrained_cfg", None)


def _config(
    size: tuple[int, ...],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_pct: float,
    mode: str,
    channels: int,
) -> DataConfig:
    height, width = size
    squash = mode == "squash" or height != width
    return DataConfig(
        size=(height, width),
        mean=_for_channels(mean, channels),
        std=_for_channels(std, channels),
        interpolation=interpolation,
        crop_pct=1.0 if squash else float(crop_pct),
        resize_mode="squash" if squash else "crop",
        channels=channels,
    )


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(map(float, values)) / len(values),) * channels


def _default_processor(model: nn.Module) -> BaseImageProcessor | None:
    try:
        known = IMAGE_PROCESSOR_MAPPING[type(model.config)]
    except (KeyError, AttributeError):
        return None
    classes = known.values() if isinstance(known, dict) else known if isinstance(known, tuple) else (known,)
    kind = next((kind for kind in classes if kind is not None), None)
    return None if kind is None else kind()


def _processor_size(processor: BaseImageProcessor) -> tuple[int, int] | None:
    """`(H, W)` that a processor gives; `None` where it does not fix one."""
    for size in (_crop_size(processor), _plain(getattr(processor, "size", None))):
        if size.get("height") and size.get("width"):
            return size["height"], size["width"]
        if size.get("shortest_edge"):
            return size["shortest_edge"], size["shortest_edge"]
    return None


def _processor_values(processor: BaseImageProcessor | None, target: int) -> dict[str, Any]:
    """A processor's values, for pictures whose shorter side is `target`."""
    crop = _crop_size(processor)
    shortest = _plain(getattr(processor, "size", None)).get("shortest_edge")
    crop_pct = getattr(processor, "crop_pct", None)
    resample = getattr(processor, "resample", None)
    values: dict[str, Any] = {
        "mean": getattr(processor, "image_mean", None) or IMAGENET_DEFAULT_MEAN,
        "std": getattr(processor, "image_std", None) or IMAGENET_DEFAULT_STD,
        "interpolation": INTERPOLATIONS.get(3 if resample is None else int(resample), "bicubic"),
        "crop_pct": 1.0,
        "mode": "squash",
    }
    if shortest and crop.get("height"):
        values.update(mode="crop", crop_pct=min(1.0, crop["height"] / shortest))
    elif shortest and crop_pct is None:
        values.update(mode="crop")
    elif shortest and target < CONVNEXT_SQUASHES_FROM:
        values.update(mode="crop", crop_pct=crop_pct)
    return values


def _crop_size(processor: BaseImageProcessor | None) -> dict[str, int]:
    return _plain(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else {}


def _plain(size: Any) -> dict[str, int]:
    """A processor's size as a dictionary without gaps."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: value for key, value in dict(size).items() if value is not None}


def image_processor(model: nn.Module, config: DataConfig) -> BaseImageProcessor:
    """
    A transformers image processor that prepares pictures as `config` says, in a pipeline too.

    For a timm model the processor is kept in the model's own `config.json`, so `config` is written to
    `model.config.pretrained_cfg` as well; for others, save the processor next to the model.

    Args:
        model (`nn.Module`): the model, see [`as_classifier`].
        config ([`DataConfig`]): the preparation that the model was trained with.

    Returns:
        `BaseImageProcessor`.
    """
    model_config: Any = unwrap_model(model).config
    pretrained_cfg = getattr(model_config, "pretrained_cfg", None)
    if pretrained_cfg is not None:
        updated = {
            **pretrained_cfg,
            "input_size": [config.channels, *config.size],
            "mean": list(config.mean),
            "std": list(config.std),
            "interpolation": config.interpolation,
            "crop_pct": config.crop_pct,
            "crop_mode": "squash" if config.resize_mode == "squash" else "center",
        }
        model_config.pretrained_cfg = updated
        return TimmWrapperImageProcessor(updated, architecture=model_config.architecture)
    height, width = image_pair(config.size)
    common = {
        "resample": next(number for number, name in INTERPOLATIONS.items() if name == config.interpolation),
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "do_convert_rgb": config.channels == 3,
    }
    if config.resize_mode == "squash":
        return ViTImageProcessor(size={"height": height, "width": width}, **common)
    return BitImageProcessor(
        size={"shortest_edge": math.floor(height / config.crop_pct)},
        crop_size={"height": height, "width": width},
        **common,
    )
