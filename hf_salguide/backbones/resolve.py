"""
Which layer's output is the last spatial map, found by what the model does, not by what its modules are called.

One forward of noise lists what every module gave. From the logits backwards, the first output is taken that

1. is laid out as a grid of more than one cell ([`probe`]),
2. separates the picture from the logits: with the output recorded for some pictures put in its place, other pictures
   give the logits of the first ones (the cut test),
3. is read: the logits have a gradient at more than half of its positions (the activity test). The patch tokens of the
   last block of a class-token transformer are not; the block before them is.

Where what it finds is read through a norm alone, as that block's output is, the norm's output takes its place: a
picture's map times its gradient would else be zero.

The read-out is classified by putting random maps in the layer's place. Weights that are all zeros (heads and the last
norms of residual branches are often initialised so) are made random meanwhile, else nothing would be read there.
"""

import copy
import difflib
import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .forward import describe, evaluation, input_shape, unwrap_model
from .layer import FeatureLayer
from .observe import ACTIVE_SHARE, Observation
from .readout import behind_the_norm, classify, vanishes, with_attention

logger = logging.getLogger(__name__)

_resolved: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], FeatureLayer]] = WeakKeyDictionary()


def resolve_feature_layer(
    model: nn.Module, image_size: int | Sequence[int] | None = None, feature_layer: str | None = None
) -> FeatureLayer:
    """
    Finds the layer whose output is the last spatial map that the logits are computed from, or describes a given one.

    Of the modules that give the very same tensor, the innermost one with parameters of its own is named, for it is
    what a hook sees under every wrapper: never an `nn.Sequential`, which gradient checkpointing enters from the side,
    and neither an activation, an identity nor drop-path, unless nothing else gives it, nor a module that returns a
    tuple where one that returns the tensor can be had.

    A few forwards of three noise pictures; the result is kept for the model as long as its modules stay the same. The
    model's modes, parameters, buffers and hooks, and the random state, are left as they were.

    Args:
        model (`nn.Module`): a classifier, see [`as_classifier`]; wrapped by DDP or compiled too.
        image_size (`int` or pair, *optional*): the pictures' size, `(H, W)`; default: that of the configuration.
        feature_layer (`str`, *optional*): the name of the module to describe in place of searching.

    Returns:
        [`FeatureLayer`].

    Raises:
        ValueError: if `feature_layer` is not a module, gives no spatial map, runs more than once or not at all, or is
            not read by the logits; if no single layer separates the picture from the logits; if the backbone refuses
            the size.
    """
    model = unwrap_model(model)
    shape = input_shape(model, image_size)
    key = (shape, feature_layer, fingerprint(model))
    known = _resolved.setdefault(model, {})
    if key not in known:
        if feature_layer is not None and feature_layer not in dict(model.named_modules()):
            raise ValueError(_unknown_layer(model, image_size, feature_layer))
        half = next((p.dtype for p in model.parameters()), torch.float32).itemsize < 4
        # Half precision is too coarse to tell an exact read-out from one that is not.
        probed = copy.deepcopy(model).float() if half else model
        with evaluation(probed), torch.inference_mode(False), torch.enable_grad():
            seen = Observation(probed, shape)
            with seen.prepared():
                known[key] = _find(seen) if feature_layer is None else _describe(seen, feature_layer)
    return known[key]


def fingerprint(model: nn.Module) -> int:
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    return hash((modules, tuple(parameter.shape for parameter in model.parameters())))


def _unknown_layer(model: nn.Module, image_size: int | Sequence[int] | None, name: str) -> str:
    message = f'feature_layer="{name}" is not a module of {describe(model)}'
    near = difflib.get_close_matches(name, [known for known, _ in model.named_modules() if known], n=1)
    hint = f'; the nearest name is "{near[0]}"' if near else ""
    try:
        pick = resolve_feature_layer(model, image_size).name
    except ValueError:
        return f"{message}{hint}; see model.named_modules()."
    return f'{message}{hint}; the resolver would pick "{pick}" (see resolve_feature_layer).'


def _find(seen: Observation) -> FeatureLayer:
    why = []
    for record in reversed(seen.representatives()):
        layer = seen.reading(record)
        if layer is None:
            continue
        if not seen.cuts(record):
            why.append(f'"{record.name}" {tuple(record.tensor.shape)} does not hold all that the logits depend on')
        elif seen.active_share(record, layer) <= ACTIVE_SHARE:
            why.append(f'"{record.name}" {tuple(record.tensor.shape)} is not read by the logits')
        else:
            layer = classify(seen, record, layer)
            layer = behind_the_norm(seen, record, layer) if vanishes(seen, record, layer) else layer
            return with_attention(seen, layer)
    reasons = "; ".join(why[:3]) if why else f"no module gives a map of more than one cell at {seen.size}"
    raise ValueError(
        f"no single layer of {describe(seen.model)} separates the picture from the logits ({reasons}): it may "
        "have several branches that meet after their last maps, or the picture may be too small. Name one, "
        'feature_layer="...", a module that runs once and gives (B, C, h, w), (B, h, w, C) or (B, tokens, C), or '
        "take a larger image_size."
    )


def _describe(seen: Observation, name: str) -> FeatureLayer:
    calls = seen.run.calls.get(name, 0)
    if calls != 1:
        raise ValueError(
            f'feature_layer="{name}" runs {calls} times in one forward of {describe(seen.model)}; name a module '
            f"that runs once{_suggestion(seen)}."
        )
    for record in seen.run.records:
        layer = seen.reading(record) if record.name == name else None
        if layer is None:
            continue
        if seen.active_share(record, layer) == 0:
            raise ValueError(
                f'feature_layer="{name}" is not read by the logits: their gradient is zero at every position of '
                f"its {layer.grid[0]} × {layer.grid[1]} grid{_suggestion(seen)}."
            )
        layer = classify(seen, record, layer) if seen.cuts(record) else layer
        if vanishes(seen, record, layer):
            logger.warning(
                'feature_layer="%s" is read through a norm alone, so that HiResCAM is zero on it%s; take that, or '
                'method="gradcam".',
                name,
                _suggestion(seen),
            )
        return with_attention(seen, layer)
    shapes = ", ".join(str(shape) for shape in seen.run.shapes[name]) or "no tensor"
    raise ValueError(
        f'feature_layer="{name}" gives {shapes} for pictures of shape {tuple(seen.images.shape)}, which is no '
        f"spatial map{_suggestion(seen)}."
    )


def _suggestion(seen: Observation) -> str:
    try:
        return f'; the resolver would pick "{_find(seen).name}" (see resolve_feature_layer)'
    except ValueError:
        return ""
