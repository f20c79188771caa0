"""
Which layer's output is the last spatial map, found by what the model does, not by what its modules are called.

One forward of noise lists what every module gave ([`observe`]); from the logits backwards the layer is searched for
([`search`]), and how the logits read it is found by putting a random map in its place ([`readout`]). Weights that are
all zeros (heads and the last norms of residual branches are often initialised so) are made random meanwhile, else
nothing would be read there.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from inspect import isfunction, ismethod
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .forward import input_shape, refuse_without_pictures, unwrap_model
from .layer import FeatureLayer
from .named import check_names, named_layer
from .observe import Observation
from .probe import probing
from .search import Walk

MOST_KEPT = 256  # results, of all configurations, and of one model
NO_PART = ("id2label", "label2id", "label_names", "saliency_guide", "transformers_version", "_name_or_path", "dtype")

_resolved: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], FeatureLayer]] = WeakKeyDictionary()
_by_configuration: OrderedDict[tuple[object, ...], FeatureLayer] = OrderedDict()


def resolve_feature_layer(
    model: nn.Module, image_size: int | Sequence[int] | None = None, feature_layer: str | Sequence[str] | None = None
) -> FeatureLayer:
    """
    Finds the layer whose output is the last spatial map that the logits are computed from, or describes a given one.

    Of the modules that give the very same tensor, the innermost one with parameters of its own is named, for it is
    what a hook sees under every wrapper: never an `nn.Sequential`, which gradient checkpointing enters from the side,
    and neither an activation, an identity nor drop-path, unless nothing else gives it, nor a module that returns a
    tuple where one that returns the tensor can be had.

    A few forwards of noise pictures, always the same ones. The result is kept for the model, and for others of the
    same class and configuration, as long as their modules are the same. The model's modes, parameters, buffers and
    hooks, and the random state, are left as they were.

    Args:
        model (`nn.Module`): a classifier, see [`as_classifier`]; wrapped by DDP or compiled too.
        image_size (`int` or pair, *optional*): the pictures' size, `(H, W)`; default: that of the configuration.
        feature_layer (`str` or `Sequence[str]`, *optional*): the name of the module to describe in place of
            searching, or, for a head that reads several maps side by side, their names.

    Returns:
        [`FeatureLayer`]; of several the one with the finest grid, the rest in its `others`.

    Raises:
        ValueError: if `feature_layer` is not a module, gives no spatial map, runs more than once or not at all, or is
            not read by the logits; if no single layer separates the picture from the logits, because several are read
            side by side or what holds everything is no grid; if the model takes no pictures, or not of this size.
    """
    model = unwrap_model(model)
    shape = input_shape(model, image_size)
    names: tuple[str, ...] | None = None
    if feature_layer is not None:
        names = (feature_layer,) if isinstance(feature_layer, str) else tuple(feature_layer)
    key = (shape, names, fingerprint(model))
    known = _resolved.setdefault(model, {})
    if key not in known:
        known[key] = _resolve_anew(model, shape, names, key)
        if len(known) > MOST_KEPT:
            del known[next(iter(known))]
    return known[key]


def _resolve_anew(
    model: nn.Module, shape: tuple[int, int, int], names: tuple[str, ...] | None, key: tuple[object, ...]
) -> FeatureLayer:
    configuration = _configuration(model)
    shared = (*key, configuration)
    if configuration is not None and shared in _by_configuration:
        _by_configuration.move_to_end(shared)
        return _by_configuration[shared]
    refuse_without_pictures(model)
    if names is not None:
        check_names(model, names)
    with probing(model) as probed:
        seen = Observation(probed, shape)
        with seen.prepared():
            found = Walk(seen).find() if names is None else named_layer(seen, names)
    if configuration is not None:
        _by_configuration[shared] = found
        if len(_by_configuration) > MOST_KEPT:
            _by_configuration.popitem(last=False)
    return found


def fingerprint(model: nn.Module) -> int:
    """
    What a model is made of: its modules, their parameters' shapes, and the settings that they hold.

    Real numbers are left out: rates that a schedule changes, losses that are noted.
    """

    def settings(module: nn.Module) -> tuple[tuple[str, object], ...]:
        held = ((name, value) for name, value in vars(module).items() if name != "training")
        return tuple((name, value) for name, value in held if _is_setting(value))

    modules = tuple((name, type(module), settings(module)) for name, module in model.named_modules())
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return hash((modules, attention, tuple(parameter.shape for parameter in model.parameters())))


def _is_setting(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return isinstance(value, str | bool | int | None) or isfunction(value) or ismethod(value)


def _configuration(model: nn.Module) -> tuple[type, str] | None:
    """Class and configuration; `None` where they do not say all that a forward does, for there are hooks in it."""
    to_dict: Any = getattr(getattr(model, "config", None), "to_dict", None)
    if to_dict is None or any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    ):
        return None
    content = {name: value for name, value in to_dict().items() if name not in NO_PART}
    return type(model), json.dumps(content, sort_keys=True, default=str)
