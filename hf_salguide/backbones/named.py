"""Layers that a user names: what they are, and whether the logits read them."""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from .forward import describe
from .layer import FeatureLayer
from .observe import Observation
from .probe import Record
from .reading import read_layer
from .readout import cancels, classify, read_beside, vanishes, with_attention
from .search import Walk

logger = logging.getLogger(__name__)

ALIKE = 0.6  # from which likeness on a name is worth telling


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: if one is not a module of the model, with the nearest names, or is given twice.
    """
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            near = [f'"{other}"' for other in _nearest(name, known)]
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise ValueError(
                f'feature_layer="{name}" is not a module of {describe(model)}{hint}. Take a name of '
                "model.named_modules(), or leave feature_layer out: resolve_feature_layer finds one."
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"feature_layer={list(names)}: give one name, or several different ones.")


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The most alike names, whole or in their last part, for the parts before it are often forgotten."""

    def likeness(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    last = name.rpartition(".")[2]
    scores = {other: max(likeness(name, other), likeness(last, other.rpartition(".")[2])) for other in known}
    return [other for other in sorted(known, key=lambda other: -scores[other])[:3] if scores[other] >= ALIKE]


def named_layer(seen: Observation, names: Sequence[str]) -> FeatureLayer:
    """
    The named layer; of several the one with the finest grid, the rest beside it.

    Args:
        seen (`Observation`): the model.
        names (`Sequence[str]`): modules of the model.

    Raises:
        ValueError: if one gives no spatial map, runs more than once or not at all, or is not read by the logits.
    """
    found = [_read(seen, name) for name in names]
    if len(found) == 1:
        return _single(seen, *found[0])
    if not seen.cut_together([(record.name, record.index, seen.recorded(record)) for record, _ in found]):
        logger.warning(
            "feature_layer=%s: part of what the logits take from the picture goes round these layers, and their maps "
            "do not show it.",
            list(names),
        )
    gradients = read_beside(seen, [record for record, _ in found])
    for (record, layer), gradient in zip(found, gradients, strict=True):
        if not gradient.any():
            raise ValueError(
                f'feature_layer={list(names)}: the logits read "{record.name}" through the others alone; leave it out.'
            )
        if cancels(layer.to_maps(seen.recorded(record) * gradient)):
            logger.warning(
                'feature_layer=%s: "%s" is read through a norm alone, so that its part of the map is zero; name the '
                "norm behind it in its place.",
                list(names),
                record.name,
            )
    layers = sorted((layer for _, layer in found), key=lambda layer: -layer.grid[0] * layer.grid[1])
    return replace(layers[0], others=tuple(layers[1:]))


def _single(seen: Observation, record: Record, layer: FeatureLayer) -> FeatureLayer:
    if seen.cuts(record):
        layer = classify(seen, record, layer)
    else:
        pick = _pick(seen)
        if pick is not None and pick.name == layer.name:
            return pick  # the class token goes round it, nothing else
        logger.warning(
            'feature_layer="%s" is bypassed: part of what the logits take from the picture goes round it, and its map '
            "does not show it%s.",
            layer.name,
            _suggestion(pick),
        )
    if vanishes(seen, record, layer):
        logger.warning(
            'feature_layer="%s" is read through a norm alone, so that HiResCAM is zero on it%s; take that, or '
            'method="gradcam".',
            layer.name,
            _suggestion(_pick(seen)),
        )
    return with_attention(seen, layer)


def _read(seen: Observation, name: str) -> tuple[Record, FeatureLayer]:
    """The map that a module gives, if the logits read it."""
    calls = seen.run.calls.get(name, 0)
    if calls != 1:
        raise ValueError(
            f'feature_layer="{name}" runs {calls} times in one forward of {describe(seen.model)}; name a module '
            f"that runs once{_suggestion(_pick(seen))}."
        )
    for record in seen.run.records:
        layer = read_layer(seen, record) if record.name == name else None
        if layer is None:
            continue
        if seen.active_share(record, layer) == 0:
            raise ValueError(
                f'feature_layer="{name}" is not read by the logits: their gradient is zero at every position of '
                f"its {layer.grid[0]} × {layer.grid[1]} grid{_suggestion(_pick(seen))}."
            )
        return record, layer
    shapes = ", ".join(str(shape) for shape in seen.run.shapes[name]) or "no tensor"
    raise ValueError(
        f'feature_layer="{name}" gives {shapes} for pictures of shape {tuple(seen.images.shape)}, which is no '
        f"spatial map{_suggestion(_pick(seen))}."
    )


def _pick(seen: Observation) -> FeatureLayer | None:
    try:
        return Walk(seen).find()
    except ValueError:
        return None


def _suggestion(pick: FeatureLayer | None) -> str:
    return "" if pick is None else f'; the resolver would pick "{pick.name}" (see resolve_feature_layer)'
