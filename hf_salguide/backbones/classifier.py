"""One kind of model from a timm name, a timm module, a transformers model or configuration, a folder or a Hub id."""

import copy
import inspect
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.utils import cached_file

from .forward import check_image_size, image_pair, input_shape, picture_config, refuse_without_pictures
from .labels import check_labels, label_maps
from .timm_models import (
    LOADING_ARGUMENTS,
    architecture_of,
    check_architecture,
    create,
    default_config,
    pretrained_labels,
    wrap,
)

logger = logging.getLogger(__name__)

HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SHARDS = "model.safetensors.index.json"


def as_classifier(
    model: str | os.PathLike | nn.Module | PreTrainedConfig,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    pretrained: bool = False,
    image_size: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """
    Makes an image classifier that `Trainer`, pipelines and `AutoModelForImageClassification` understand.

    A timm backbone becomes a `TimmWrapperForImageClassification` around an unmodified timm module, with timm's own
    initialisation; a transformers classifier is returned as it is. Saved with `save_pretrained`, either is loaded
    with `AutoModelForImageClassification.from_pretrained`, without remote code.

    Args:
        model (`str`, path, `nn.Module` or `PreTrainedConfig`): a timm architecture (`"resnet18"`), a Hub id
            (`"owner/name"`, `"hf-hub:owner/name"`), a local folder, a timm module, a transformers image classifier or
            a transformers configuration.
        label_names (`Sequence[str]`, *optional*): the classes, in the order of the logits.
        num_labels (`int`, *optional*): their number, where the names do not matter.
        pretrained (`bool`, *optional*, defaults to `False`): load the weights of the name, the folder or the id;
            random weights otherwise. The head is random where its size is not that of the weights.
        image_size (`int` or pair, *optional*): the size of the pictures, `(H, W)`; default: the model's own. It is
            written to the configuration, so that a pipeline feeds this size.
        kwargs (`Any`): go to timm (`img_size=64`, `depth=2`, `in_chans=1`, `global_pool="avg"`, ...) or to the
            transformers configuration, and are saved with it.

    Returns:
        `PreTrainedModel` whose forward takes `pixel_values` and `labels` and gives `loss` and `logits`;
        `config.id2label` has integer keys.

    Raises:
        ValueError: for an unknown architecture, labels that contradict each other or the model, fewer than two labels,
            no labels where none are known, a picture size that the backbone refuses, a model that reads something
            else than a picture, or a timm module that could not be built again from its record.
        TypeError: for a `model` of another kind, one that returns no logits, or a keyword argument that nothing takes.
        ImportError: for a model that needs a package which is not installed.

    Example:

    ```python
    model = as_classifier("resnet18", label_names=["normal", "tuberculosis"], image_size=112)
    ```
    """
    names = check_labels(label_names, num_labels)
    if "num_classes" in kwargs:
        raise TypeError(f"num_classes={kwargs['num_classes']} is timm's name for it; pass num_labels.")
    size = None if image_size is None else image_pair(image_size)
    if kwargs.get("img_size") is not None:
        built = image_pair(kwargs["img_size"], "img_size")
        if size is not None and size != built:
            raise ValueError(f"image_size={size} and img_size={built} contradict each other; give image_size only.")
    if isinstance(model, PreTrainedModel):
        classifier = _from_instance(model, names, size, kwargs)
    elif isinstance(model, nn.Module):
        classifier = _from_module(model, names, size, kwargs)
    elif isinstance(model, PreTrainedConfig):
        if pretrained:
            raise ValueError(
                "pretrained=True, but a configuration has no weights; pass a Hub id or a folder as model."
            )
        classifier = _from_config(model, names, size, kwargs)
    elif isinstance(model, str | os.PathLike):
        classifier = _from_name(os.fspath(model), names, pretrained, size, kwargs)
    else:
        raise TypeError(
            f"model is a {type(model).__name__}; give a timm name or module, a transformers image classifier or "
            "configuration, a local folder or a Hub id."
        )
    # A class that takes no labels may give no logits either; one forward tells.
    if classifier is not model and (size is not None or not _takes_labels(type(classifier))):
        check_image_size(classifier, size or input_shape(classifier)[1:])
    return classifier


def _takes_labels(kind: type[nn.Module]) -> bool:
    return "labels" in inspect.signature(kind.forward).parameters


def _from_instance(
    model: PreTrainedModel, names: list[str] | None, size: tuple[int, int] | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    if kwargs:
        raise TypeError(
            f"{sorted(kwargs)} cannot be applied to a model that is built; pass its configuration as model."
        )
    kind = type(model).__name__
    if "ForImageClassification" not in kind and getattr(model, "main_input_name", "") != "pixel_values":
        raise TypeError(f"model is a {kind}; give an image classifier, one of AutoModelForImageClassification.")
    refuse_without_pictures(model)
    have = model.config.num_labels
    if have < 2:
        raise ValueError(f"{kind} has num_labels={have}; a classifier needs two labels or more.")
    if names is not None and len(names) != have:
        raise ValueError(
            f"the head of {kind} has num_labels={have}, but {len(names)} labels were given; pass the model's "
            "configuration, or its folder or Hub id, in place of the model, and the head is made anew."
        )
    if size is not None:
        set_image_size(model, size)
    if names is not None:
        _set_labels(model.config, names)
    return model


def _from_module(
    module: nn.Module, names: list[str] | None, size: tuple[int, int] | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    if kwargs:
        raise TypeError(f"{sorted(kwargs)} cannot be applied to a module that is built; pass a timm name as model.")
    name, arguments = architecture_of(module)
    if names is None:
        names = pretrained_labels(module)
    if len(names) != module.num_classes:
        raise ValueError(
            f"the head of {name} has num_classes={module.num_classes}, but {len(names)} labels were given; call "
            f"module.reset_classifier({len(names)}) first, or pass the name."
        )
    return wrap(module, name, check_labels(names, None) or names, arguments, size)


def _from_config(
    config: PreTrainedConfig, names: list[str] | None, size: tuple[int, int] | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    config = _adapted(config, names, size, kwargs)
    if config.model_type == "timm_wrapper":
        arguments = dict(config.model_args or {})
        labels = list(config.id2label.values())
        module = create(config.architecture, len(labels), size, {"pretrained": False}, arguments)
        return wrap(module, config.architecture, labels, arguments, size)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and not hasattr(config, "auto_map"):
        raise ValueError(f"model={type(config).__name__} is not the configuration of an image classifier.")
    with _square_where_needed(config, size):
        return AutoModelForImageClassification.from_config(config)


@contextmanager
def _square_where_needed(config: PreTrainedConfig, size: tuple[int, int] | None) -> Iterator[None]:
    """Tells that a model calculates with one edge, where building it from an edge of two numbers fails."""
    try:
        yield
    except TypeError as error:
        if size is None or size[0] == size[1]:
            raise
        raise ValueError(
            f"image_size={size} is refused by the model of {type(config).__name__} ({error}); take a square size."
        ) from error


def _choose_class(config: PreTrainedConfig) -> None:
    """
    Makes a configuration name the class to build, where transformers has several for it: one that takes labels.

    DeiT and LeViT have a class of two heads beside the usual one, which gives logits but no loss.
    """
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), ())
    kinds = known if isinstance(known, tuple) else (known,)
    if len(kinds) > 1:
        named = [kind for kind in kinds if kind.__name__ in (config.architectures or [])]
        chosen = next(kind for kind in (*named, *kinds) if _takes_labels(kind))
        if named and chosen not in named:
            logger.warning(
                "%s takes no labels; %s is built in its place, and its head is made anew.",
                named[0].__name__,
                chosen.__name__,
            )
        kinds = (chosen,)
        config.architectures = [chosen.__name__]
    for kind in kinds:
        refuse_without_pictures(kind)


def _adapted(
    config: PreTrainedConfig, names: list[str] | None, size: tuple[int, int] | None, kwargs: dict[str, Any]
) -> PreTrainedConfig:
    """A copy of a configuration with the labels, the size and the user's values."""
    config = copy.deepcopy(config)
    if config.model_type == "timm_wrapper":
        config.model_args = {**(config.model_args or {}), **kwargs}
    else:
        for key, value in kwargs.items():
            if not hasattr(config, key):
                raise TypeError(f"{key}={value!r} is not a value of {type(config).__name__}.")
            setattr(config, key, value)
    if names is not None:
        _set_labels(config, names)
    elif config.num_labels < 2:
        raise ValueError(
            f"{type(config).__name__} has num_labels={config.num_labels}; a classifier needs two or more."
        )
    if size is not None:
        _set_image_size(config, size)
    _choose_class(config)
    return config


def _set_labels(config: PreTrainedConfig, names: Sequence[str]) -> None:
    for key, value in label_maps(names).items():
        setattr(config, key, value)


def set_image_size(model: PreTrainedModel, image_size: int | Sequence[int]) -> None:
    """
    Writes the size of the pictures to a model's configuration, once a forward has shown that the model takes it.

    Args:
        model (`PreTrainedModel`): a classifier, see [`as_classifier`].
        image_size (`int` or pair): `(H, W)`.

    Raises:
        ValueError: if the backbone refuses the size.
    """
    size = image_pair(image_size)
    check_image_size(model, size)
    _set_image_size(model.config, size)


def _set_image_size(config: PreTrainedConfig, size: tuple[int, int]) -> None:
    if config.model_type == "timm_wrapper":
        recorded = dict(getattr(config, "pretrained_cfg", None) or default_config(config.architecture))
        recorded["input_size"] = [recorded.get("input_size", (3,))[0], *size]
        config.pretrained_cfg = recorded
    else:
        picture_config(config).image_size = size[0] if size[0] == size[1] else size


def _from_name(
    name: str, names: list[str] | None, pretrained: bool, size: tuple[int, int] | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    source = next((name.removeprefix(prefix) for prefix in HUB_PREFIXES if name.startswith(prefix)), None)
    if source is None and (Path(name).is_dir() or ("/" in name and not name.startswith((".", "/")))):
        source = name
    if source is None:
        check_architecture(name)
    if names is None and not pretrained:
        raise ValueError(
            f'as_classifier("{name}") needs label_names=[...] or num_labels=...: with random weights there are no '
            "labels to take over (pretrained=True takes those of the weights)."
        )
    if source is not None:
        classifier = _from_checkpoint(source, names, pretrained, size, kwargs)
        origin = None if Path(source).is_dir() else source.partition("@")[0]
    else:
        classifier = _from_timm(name, names, {"pretrained": pretrained}, size, kwargs)
        origin = default_config(name).get("hf_hub_id")
    # As transformers does where it loads weights; a model card names them.
    classifier.config.name_or_path = (origin or classifier.config.name_or_path) if pretrained else ""
    return classifier


def _from_timm(
    name: str,
    names: list[str] | None,
    loading: dict[str, Any],
    size: tuple[int, int] | None,
    arguments: dict[str, Any],
) -> PreTrainedModel:
    arguments = dict(arguments)
    overlay = loading.get("pretrained_cfg_overlay") or {}
    classes = overlay.get("num_classes") or default_config(name).get("num_classes", 0)
    module = create(name, classes if names is None else len(names), size, loading, arguments)
    if isinstance(module.pretrained_cfg, dict):
        module.pretrained_cfg.pop("state_dict", None)
    return wrap(module, name, pretrained_labels(module) if names is None else names, arguments, size)


def _from_checkpoint(
    source: str, names: list[str] | None, pretrained: bool, size: tuple[int, int] | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    """From a folder or a Hub id, `owner/name` or `owner/name@revision`: of timm, of transformers or of ours."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f'model="{source}" is a folder without config.json; give one that save_pretrained wrote.')
    # Only a Hub id has a revision; "@" may well occur in a path.
    source, revision = (
        (source, None) if folder.is_dir() else (source.partition("@")[0], source.partition("@")[2] or None)
    )
    if folder.is_dir() and not pretrained:
        logger.warning(
            'as_classifier("%s") gives random weights; pass pretrained=True to load those of the folder.', source
        )
    try:
        content, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except OSError as error:
        raise ValueError(f'model="{source}" is neither a folder nor a Hub id that could be read ({error}).') from error
    if "pretrained_cfg" in content or "architecture" in content:
        return _from_timm_checkpoint(source, revision, content, names, pretrained, size, kwargs)
    config = AutoConfig.from_pretrained(source, revision=revision)
    if not pretrained:
        return _from_config(config, names, size, kwargs)
    config = _adapted(config, names, size, kwargs)
    with _square_where_needed(config, size):
        classifier, report = AutoModelForImageClassification.from_pretrained(
            source, revision=revision, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    labels = classifier.config.num_labels
    wrong = [key for key, _, shape in report["mismatched_keys"] if shape[0] != labels]
    if wrong:
        raise ValueError(
            f'the weights of "{source}" do not fit image_size={size} and {kwargs}: {wrong} have other shapes. Leave '
            "them out, or take random weights with pretrained=False."
        )
    return classifier


def _from_timm_checkpoint(
    source: str,
    revision: str | None,
    content: dict[str, Any],
    names: list[str] | None,
    pretrained: bool,
    size: tuple[int, int] | None,
    kwargs: dict[str, Any],
) -> PreTrainedModel:
    """timm loads the weights itself, so that a head, channels or a size of another shape are adapted as timm does."""
    saved = dict(content.get("pretrained_cfg") or content)
    name = content.get("architecture") or saved.get("architecture")
    check_architecture(str(name))
    classes = content.get("num_classes") or saved.get("num_classes")
    for key in ("architecture", "label_names", "url", "file", "hf_hub_id", "hf_hub_filename", "source"):
        saved.pop(key, None)
    known = set(default_config(str(name))) | {"input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"}
    overlay = {key: value for key, value in saved.items() if key in known}
    overlay.update(num_classes=classes, custom_load=False, label_offset=None)
    labels = content.get("label_names") or (content.get("pretrained_cfg") or {}).get("label_names")
    if labels:
        overlay["label_names"] = labels
    # What says how to load a module is not taken from a file: checkpoint_path would open any other.
    recorded = {key: value for key, value in (content.get("model_args") or {}).items() if key not in LOADING_ARGUMENTS}
    arguments = {**recorded, **kwargs}
    if pretrained:
        overlay["state_dict"] = _state_dict(source, revision)
    if size is None:
        size = image_pair(arguments.get("img_size") or tuple(saved.get("input_size", (3, 224, 224))[1:]), "img_size")
    loading = {"pretrained": pretrained, "pretrained_cfg_overlay": overlay}
    classifier = _from_timm(str(name), names, loading, size, arguments)
    if pretrained and content.get("saliency_guide"):
        classifier.config.saliency_guide = content["saliency_guide"]  # what guided these weights
    return classifier


def _state_dict(source: str, revision: str | None) -> dict[str, torch.Tensor]:
    """The weights of a folder or a Hub id, under timm's names."""
    from safetensors.torch import load_file

    def found(name: str) -> str | None:
        return cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)

    if path := found(WEIGHTS[0]):
        state = load_file(path)
    elif path := found(SHARDS):
        shards = sorted(set(json.loads(Path(path).read_text())["weight_map"].values()))
        state = {key: tensor for name in shards for key, tensor in load_file(found(name) or name).items()}
    elif path := found(WEIGHTS[1]):
        state = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise ValueError(
            f'model="{source}" holds none of {", ".join(WEIGHTS)}; pass pretrained=False for random weights.'
        )
    return {key.removeprefix("timm_model."): tensor for key, tensor in state.items()}
