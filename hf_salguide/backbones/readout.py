"""How the logits read a layer: exactly, uniformly or otherwise, through a norm, through the class token alone."""

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from .attention import AttentionRecord
from .forward import logits_of
from .layer import FeatureLayer, Readout
from .observe import ACTIVE_SHARE, TOLERANCE, Observation
from .probe import Record, run_tail


def classify(seen: Observation, record: Record, layer: FeatureLayer) -> FeatureLayer:
    recorded = seen.recorded(record)
    drawn = seen.random_like(recorded) * (recorded.std() + recorded.mean().abs())
    at_recorded, at_drawn = seen.at_recorded(record), seen.gradient(record, drawn)
    bias = seen.tail(record, torch.zeros_like(recorded))
    at_sum = seen.tail(record, recorded + drawn)
    allowed = TOLERANCE * float((at_drawn[0] - bias).abs().max()) + seen.rounding
    affine = float((at_recorded[0] + at_drawn[0] - at_sum - bias).abs().max()) <= allowed
    uniform = complete = True
    for features, (logits, gradient) in ((recorded, at_recorded), (drawn, at_drawn)):
        gradients = layer.to_maps(gradient)
        deviation = (gradients - gradients.mean(dim=(2, 3), keepdim=True)).abs().amax(dim=(1, 2, 3))
        uniform &= bool((deviation <= TOLERANCE * gradients.abs().amax(dim=(1, 2, 3))).all())
        # Over the grid alone: what prefix tokens add is not on the map.
        from_map = (gradients * layer.to_maps(features)).sum(dim=(1, 2, 3))
        from_logits = (seen.weights * (logits - bias)).sum(dim=1)
        allowed = TOLERANCE * float(from_logits.abs().max()) + seen.rounding
        complete &= float((from_map - from_logits).abs().max()) <= allowed
    readout: Readout = "generic"
    if uniform:
        readout = "exact" if affine and complete else "uniform"
    head = _head(seen, gradients.sum(dim=(2, 3))) if readout == "exact" else None
    return replace(layer, readout=readout, head=head)


def vanishes(seen: Observation, record: Record, layer: FeatureLayer) -> bool:
    """
    Whether the sum over the channels of map times gradient is zero at every position, as a matter of principle.

    A token that is read through a layer norm alone is read up to its scale, so (Euler) its product with its
    gradient is zero, and HiResCAM with it, whatever the picture.
    """
    if layer.readout != "generic":
        return False
    products = layer.to_maps(seen.recorded(record)) * layer.to_maps(seen.at_recorded(record)[1])
    return bool(products.sum(dim=1).abs().max() <= TOLERANCE * products.abs().sum(dim=1).max())


def behind_the_norm(seen: Observation, record: Record, layer: FeatureLayer) -> FeatureLayer:
    """
    The first output behind a layer through which all is read that the logits take from the layer's grid.

    The prefix tokens may go another way (the class token's residual does). The layer itself, if there is none.
    """
    recorded = seen.recorded(record)
    kept = layer.num_prefix_tokens if layer.layout == "NLC" else 0
    records = seen.representatives()
    keys = [other.key for other in records]
    elsewhere = torch.roll(recorded, 1, dims=0)
    if kept:
        elsewhere[:, :kept] = recorded[:, :kept]
    for other in records[keys.index(record.key) + 1 :]:
        found = seen.reading(other)
        if found is None or (found.layout, found.grid) != (layer.layout, layer.grid):
            continue
        exchanged = [(record.name, record.index, elsewhere), (other.name, other.index, seen.recorded(other))]
        if (
            found.num_prefix_tokens == layer.num_prefix_tokens
            and seen.as_recorded(run_tail(seen.model, seen.others, *exchanged))
            and seen.active_share(other, found) > ACTIVE_SHARE
            and not vanishes(seen, other, found)
        ):
            return found
    return layer


def with_attention(seen: Observation, layer: FeatureLayer) -> FeatureLayer:
    """Notes whether the layer's tail attends once, over its tokens, and only the prefix tokens' rows are read."""
    if layer.readout != "generic" or layer.layout != "NLC" or not layer.num_prefix_tokens:
        return layer
    record = AttentionRecord()
    module = seen.model.get_submodule(layer.name)
    with ExitStack() as stack, torch.enable_grad():
        handle = module.register_forward_hook(lambda *_: stack.enter_context(record) and None)
        stack.callback(handle.remove)
        logits = logits_of(seen.model(seen.images.clone().requires_grad_()))  # the model may be frozen
    tokens = layer.num_prefix_tokens + layer.grid[0] * layer.grid[1]
    if len(record.outputs) != 1 or record.outputs[0].shape[-2] != tokens:
        return layer
    (gradient,) = torch.autograd.grad((seen.weights * logits).sum(), record.outputs[0], allow_unused=True)
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
