"""Building timm modules and putting them, untouched, into transformers' own wrapper."""

import difflib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import filter_pretrained_cfg, is_model, split_model_name_tag
from torch import Tensor, nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel

from ..rng import preserve_rng
from .forward import evaluation, image_pair, probe_images
from .labels import label_maps

# What says how a module is loaded, not what it is.
LOADING_ARGUMENTS = (
    "cache_dir",
    "checkpoint_path",
    "device",
    "dtype",
    "exportable",
    "no_jit",
    "num_classes",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "scriptable",
)


def check_architecture(name: str) -> None:
    """
    Raises:
        ValueError: if timm knows no such architecture; the message holds the nearest known ones.
    """
    architecture = split_model_name_tag(name)[0]
    if is_model(architecture):
        return
    near = (
        difflib.get_close_matches(architecture, timm.list_models(), n=3) or timm.list_models(f"*{architecture}*")[:3]
    )
    hint = f"; the nearest names are {', '.join(near)}" if near else ""
    raise ValueError(
        f'model="{name}" is neither a timm architecture, nor a local folder, nor a Hub id (owner/name){hint} '
        "(see timm.list_models())."
    )


def default_config(name: str) -> dict[str, Any]:
    """timm's own configuration of an architecture, for the tag in its name or its first one."""
    config = timm.get_pretrained_cfg(name)
    return {} if config is None else config.to_dict()


def create(
    name: str,
    num_labels: int,
    image_size: tuple[int, int] | None,
    loading: Mapping[str, Any],
    arguments: dict[str, Any],
) -> nn.Module:
    """
    `timm.create_model`, its refusals told in the terms of `as_classifier`.

    Args:
        name (`str`): a timm architecture, with or without a tag.
        num_labels (`int`): the size of the head.
        image_size (`tuple[int, int]`, *optional*): passed as `img_size` where the architecture is built for one size.
        loading (`Mapping`): how to load it: `pretrained`, `pretrained_cfg_overlay`.
        arguments (`dict`): what the module is built with; `img_size` is put in.

    Raises:
        ValueError: for a size that the architecture cannot be built for, or `img_size` where it takes none.
        TypeError: for an argument that it does not know.
    """
    if image_size is not None and default_config(name).get("fixed_input_size"):
        arguments["img_size"] = image_size
    try:
        return timm.create_model(name, num_classes=num_labels, **loading, **arguments)
    except TypeError as error:
        if "img_size" in arguments and "img_size" in str(error):
            raise ValueError(
                f"img_size={arguments['img_size']}: {name} is built for any size and takes no img_size; pass "
                "image_size=... in its place."
            ) from error
        raise TypeError(f"{name} does not take these keyword arguments {sorted(arguments)}: {error}.") from error
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        if "img_size" not in arguments:
            raise
        raise ValueError(
            f"image_size={arguments['img_size']} is refused by {name} ({error}); take one that its patches and "
            "windows divide."
        ) from error


def wrap(
    module: nn.Module,
    architecture: str,
    names: Sequence[str],
    arguments: Mapping[str, Any],
    image_size: tuple[int, int] | None,
) -> PreTrainedModel:
    """
    Puts a timm module into `TimmWrapperForImageClassification`, with the weights that it has.

    Raises:
        ValueError: if an argument cannot be written to `config.json`.
    """
    arguments = {key: value for key, value in arguments.items() if key not in LOADING_ARGUMENTS}
    for key, value in arguments.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f"{key}={value!r} cannot be written to config.json, so the model could not be loaded again; pass its "
                "name as a string where timm takes one."
            ) from None
    config = TimmWrapperConfig(
        architecture=architecture,
        model_args=arguments,
        pretrained_cfg=_pretrained_cfg(module, arguments, image_size),
        **label_maps(names),
    )
    config.num_features = getattr(module, "num_features", None)
    checkpointing = [
        (part, part.grad_checkpointing) for part in module.modules() if hasattr(part, "grad_checkpointing")
    ]
    # The wrapper's own constructor would build a second module and initialise its head anew, not as timm does.
    wrapper = TimmWrapperForImageClassification.__new__(TimmWrapperForImageClassification)
    PreTrainedModel.__init__(wrapper, config)
    wrapper.timm_model = module
    wrapper.num_labels = len(names)
    with no_init_weights():
        wrapper.post_init()
    # The wrapper tries checkpointing on and leaves it off.
    for part, enabled in checkpointing:
        part.grad_checkpointing = enabled
    wrapper.training = module.training
    return wrapper


def _pretrained_cfg(
    module: nn.Module, arguments: Mapping[str, Any], image_size: tuple[int, int] | None
) -> dict[str, Any]:
    """timm's configuration of the data, for the size and the channels that this module takes."""
    described: Any = module.pretrained_cfg
    source = {key: value for key, value in described.items() if key != "state_dict"}
    config = deepcopy(filter_pretrained_cfg(source, remove_source=True, remove_null=True))
    for key in ("num_classes", "label_names", "label_descriptions", "label_offset", "custom_load"):
        config.pop(key, None)
    recorded = config.get("input_size", (3, 224, 224))
    channels = getattr(module, "in_chans", None) or arguments.get("in_chans") or recorded[0]
    size = image_size or image_pair(arguments.get("img_size") or tuple(recorded[1:]), "img_size")
    if (channels, *size) != tuple(recorded):
        for key in ("test_input_size", "test_crop_pct", "min_input_size", "pool_size", "test_pool_size"):
            config.pop(key, None)
    config["input_size"] = [channels, *size]
    for key in ("mean", "std"):
        if key in config and len(config[key]) not in (1, channels):
            config[key] = [sum(config[key]) / len(config[key])] * channels
        elif key in config:
            config[key] = list(config[key])
    return config


def pretrained_labels(module: nn.Module) -> list[str]:
    """The names of the classes that a timm module was trained for; numbered where they are not known."""
    config: Any = module.pretrained_cfg
    classes: Any = module.num_classes
    names = config.get("label_names")
    if names is None and (subset := infer_imagenet_subset(module)):
        info = ImageNetInfo(subset)
        descriptions = info.label_descriptions(as_dict=True)
        names = [descriptions[synset] for synset in info.label_names()]
    if names is None or len(names) != classes:
        return [f"LABEL_{index}" for index in range(classes)]
    return list(names)


def architecture_of(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """
    The name and the arguments that a timm module was built with, verified by building it again.

    The rebuilt module must have the same parameters and, with the weights of the first, give the same logits.

    Raises:
        ValueError: if they cannot be had.
    """
    config = getattr(module, "pretrained_cfg", None) or {}
    name = config.get("architecture") or ""
    if not is_model(name):
        raise ValueError(
            f"{type(module).__name__} is not a module of timm.create_model (its pretrained_cfg names no known "
            "architecture), so it could not be loaded again; pass a timm name and keyword arguments, or a "
            "transformers image classifier."
        )
    if config.get("tag") and timm.get_pretrained_cfg(f"{name}.{config['tag']}", allow_unregistered=False):
        name = f"{name}.{config['tag']}"
    arguments = {
        key: value for key, value in getattr(module, "_model_args", {}).items() if key not in LOADING_ARGUMENTS
    }
    channels = getattr(module, "in_chans", None)
    if channels and channels != default_config(name).get("input_size", (3,))[0]:
        arguments["in_chans"] = channels
    difference = _difference(module, name, arguments)
    if difference:
        raise ValueError(
            f"a {name} built again with {arguments} differs from the module that was given ({difference}), so it "
            "could not be loaded again; pass the name and the keyword arguments in its place: "
            f'as_classifier("{name}", ...).'
        )
    return name, arguments


def _difference(module: nn.Module, name: str, arguments: dict[str, Any]) -> str | None:
    with preserve_rng():
        try:
            again = timm.create_model(name, num_classes=module.num_classes, **arguments)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            return str(error)
    have, rebuilt = _shapes(module.state_dict()), _shapes(again.state_dict())
    for key in sorted(have.keys() | rebuilt.keys()):
        if have.get(key) != rebuilt.get(key):
            return f'"{key}" has shape {have.get(key)}, rebuilt {rebuilt.get(key)}'
    parameter = next(module.parameters())
    again.to(parameter.device, parameter.dtype).load_state_dict(module.state_dict())
    size = image_pair(arguments.get("img_size") or tuple(default_config(name).get("input_size", (3, 224, 224))[1:]))
    channels = arguments.get("in_chans") or default_config(name).get("input_size", (3,))[0]
    images = probe_images(module, (channels, *size), count=2, seed=0)
    with torch.no_grad(), evaluation(module), evaluation(again):
        logits, expected = again(images), module(images)
    if not torch.allclose(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
        return f"the logits differ by {float((logits - expected).abs().max()):.2g}"
    return None


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
