"""How the logits read a layer: exactly, uniformly or otherwise, through a norm, through the class token alone."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .layer import FeatureLayer
from .observe import ACTIVE_SHARE, TOLERANCE, Observation
from .probe import Record
from .reading import read_layer


def classify(seen: Observation, record: Record, layer: FeatureLayer) -> FeatureLayer:
    """
    The layer with its read-out, and the head of an exact one.

    Two maps are looked at, the recorded one and a random one. Where the gradient is the same at every position, it is
    uniform. Where it is the same for both maps too, and so is what remains of the logit when map times gradient is
    taken off, the bias, the logit is affine in the map's mean.
    """
    recorded = seen.recorded(record)
    drawn = seen.random_like(recorded) * (recorded.std() + recorded.mean().abs())
    at_recorded = (seen.run.logits, seen.gradient_at(record))
    points = ((recorded, at_recorded), (drawn, seen.gradient(record, drawn)))
    found = []
    for features, (logits, gradient) in points:
        gradients = layer.to_maps(gradient)
        if (gradients - gradients.mean(dim=(2, 3), keepdim=True)).abs().max() > TOLERANCE * gradients.abs().max():
            return layer
        # Over the grid alone: what prefix tokens add is not on the map.
        from_map = (gradients * layer.to_maps(features)).sum(dim=(1, 2, 3))
        found.append((gradients.sum(dim=(2, 3)), (seen.weights * logits).sum(dim=1) - from_map, from_map))
    (gradient, bias, from_map), (other_gradient, other_bias, other_from_map) = found
    same = (gradient - other_gradient).abs().max() <= TOLERANCE * gradient.abs().max()
    scale = torch.maximum(from_map.abs().max(), other_from_map.abs().max())
    complete = (bias - other_bias).abs().max() <= TOLERANCE * scale + seen.rounding
    if not (same and complete):
        return replace(layer, readout="uniform")
    return replace(layer, readout="exact", head=_head(seen, gradient))


def vanishes(seen: Observation, record: Record, layer: FeatureLayer) -> bool:
    """
    Whether the sum over the channels of map times gradient is zero at every position, as a matter of principle.

    A token that is read through a layer norm alone is read up to its scale, so (Euler) its product with its
    gradient is zero, and HiResCAM with it, whatever the picture.
    """
    if layer.readout != "generic":
        return False
    return cancels(layer.to_maps(seen.recorded(record)) * layer.to_maps(seen.gradient_at(record)))


def cancels(products: Tensor) -> bool:
    """Whether the sum over the channels of `(B, C, h, w)` is zero everywhere, though its summands are not."""
    return bool(products.sum(dim=1).abs().max() <= TOLERANCE * products.abs().sum(dim=1).max())


def behind(
    seen: Observation, record: Record, layer: FeatureLayer, beside: Sequence[Record] = ()
) -> tuple[Record, FeatureLayer] | None:
    """
    The first output behind a cut through which all is read that the logits take from its grid, if there is one.

    Args:
        seen (`Observation`): the model.
        record (`Record`): an output that, with those of `beside`, separates the picture from the logits.
        layer (`FeatureLayer`): its layout. The prefix tokens may go another way (the class token's residual does).
        beside (`Sequence[Record]`, *optional*): other outputs of the same module.
    """
    records = seen.representatives()
    keys = [other.key for other in records]
    for other in records[keys.index(record.key) + 1 :]:
        found = read_layer(seen, other)
        if found is None or (found.layout, found.grid) != (layer.layout, layer.grid):
            continue
        if (
            found.num_prefix_tokens == layer.num_prefix_tokens
            and holds_the_grid(seen, other, record, layer, beside)
            and seen.active_share(other, found) > ACTIVE_SHARE
            and not vanishes(seen, other, found)
        ):
            return other, found
    return None


def holds_the_grid(
    seen: Observation, other: Record, record: Record, layer: FeatureLayer, beside: Sequence[Record] = ()
) -> bool:
    """Whether with `other` as recorded the logits stay, whatever the grid at the cut before it (see [`behind`])."""
    recorded = seen.recorded(record)
    elsewhere = torch.roll(recorded, 1, dims=0)
    kept = layer.num_prefix_tokens if layer.layout == "NLC" else 0
    if kept:
        elsewhere[:, :kept] = recorded[:, :kept]
    exchanged = [(record.name, record.index, elsewhere), (other.name, other.index, seen.recorded(other))]
    for partner in beside:
        tensor = seen.recorded(partner)
        # It may hold the parts of a picture as pictures of their own.
        exchanged.append((partner.name, partner.index, torch.roll(tensor, len(tensor) // len(seen.images), dims=0)))
    return seen.cut_together(exchanged)


def read_beside(seen: Observation, records: Sequence[Record]) -> list[Tensor]:
    """The gradient of the weighted logits at each of several outputs, with what the others gave held fixed."""
    leaves = [seen.recorded(record).detach().clone().requires_grad_() for record in records]
    logits = seen.tail(*((record.name, record.index, leaf) for record, leaf in zip(records, leaves, strict=True)))
    found = torch.autograd.grad(logits, leaves, grad_outputs=seen.weights, allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]


def with_attention(seen: Observation, layer: FeatureLayer) -> FeatureLayer:
    """Notes whether the layer's tail attends once, over its tokens, and only the prefix tokens' rows are read."""
    if layer.readout != "generic" or layer.layout != "NLC" or not layer.num_prefix_tokens:
        return layer
    seen.look_at_all()
    before = (seen.attended or {}).get(layer.name, 0)
    tokens = layer.num_prefix_tokens + layer.grid[0] * layer.grid[1]
    if [shape[-2] for shape in seen.attention_shapes[before:]] != [tokens]:
        return layer
    gradient = seen.last_attention
    unread = gradient is not None and not gradient[..., layer.num_prefix_tokens :, :].any()
    return replace(layer, prefix_attention=bool(unread))


def _head(seen: Observation, gradients: Tensor) -> str | None:
    """The module whose weight gives the gradients, `(B, C)`, of the weighted logits at a random map."""
    expected = (seen.weights.shape[1], gradients.shape[1])
    for name, module in seen.model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or module.weight.flatten(1).shape != expected:
            continue
        if not seen.run.calls.get(name):  # a copy that is kept beside the head, and never trained
            continue
        difference = (seen.weights @ module.weight.detach().flatten(1) - gradients).abs().max()
        if float(difference) <= TOLERANCE * float(gradients.abs().max()):
            return name
    return None
