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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from .attention import AttentionRecord
from .forward import (
    REFUSALS,
    describe,
    evaluation,
    input_shape,
    logits_of,
    probe_images,
    size_refused,
    unwrap_model,
)
from .layer import FeatureLayer, Layout, Readout
from .probe import DryRun, Record, dry_run, map_layouts, run_tail, token_grids

logger = logging.getLogger(__name__)

PROBES = 3  # pictures a forward
TOLERANCE = 1e-3  # of the difference that the pictures make
ACTIVE_SHARE = 0.5
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

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
            search = _Search(probed, shape)
            with search.prepared():
                known[key] = search.find() if feature_layer is None else search.describe(feature_layer)
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


class _Search:
    """One search on one model; between [`prepared`] and its end nothing is drawn from a global generator."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int]) -> None:
        self.model = model
        self.shape = shape
        self.size = shape[1:]
        self.images = probe_images(model, shape, PROBES, seed=0)
        self.others = self.images.roll(1, dims=0)
        self.generator = torch.Generator().manual_seed(1)
        self._stretched: DryRun | None = None
        self._anew: dict[tuple[object, ...], Tensor] = {}
        self._at_recorded: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
        self.weights = torch.empty(0)  # of the logits, random; drawn when their number is known

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Inside, the dry run is done, on a model with no weight that is all zeros."""
        with ExitStack() as stack:
            for name, weight in self.model.named_parameters():
                if not name.endswith("bias") and not weight.any():
                    stack.callback(setattr, weight, "data", weight.data)
                    weight.data = self.random_like(weight.data)
            if not self.observe():
                norms = [norm for norm in self.model.modules() if isinstance(norm, BatchNorm)]
                for buffer in (buffer for norm in norms for buffer in norm.buffers()):
                    stack.callback(buffer.copy_, buffer.clone())
                self.calibrate(norms)
                if not self.observe():
                    raise ValueError(
                        f"the logits of {describe(self.model)} do not depend on the picture (they differ by "
                        f"{self.spread:.1e} for different noise), so no layer can be found; check its weights."
                    )
            yield

    def observe(self) -> bool:
        """Does the dry run; whether the logits depend on the picture by more than rounding."""
        try:
            self.run = dry_run(self.model, self.images)
        except REFUSALS as error:
            raise size_refused(self.model, self.size, error) from error
        self.spread = float((self.run.logits - self.run.logits.roll(1, dims=0)).abs().max())
        self.weights = self.random_like(self.run.logits)
        self.rounding = 1e-6 * float(self.run.logits.abs().max())
        maps = [record.tensor.shape for record in self.run.records if record.tensor.ndim == 4]
        self.grids = {grid for shape in maps for _, grid in map_layouts(shape, self.size)}
        return self.spread > self.rounding

    def calibrate(self, norms: Sequence[BatchNorm]) -> None:
        """
        Sets the batch norms' statistics to those of the noise.

        With the statistics that a network starts with, its signal may shrink to nothing (EfficientNet of transformers:
        to 1e-45 in float32, then 0), and with it all that could be observed.
        """
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.train()
                norm.momentum = 1.0
            with torch.no_grad():
                self.model(self.images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.eval()
                norm.momentum = momentum

    def random_like(self, tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=self.generator).to(tensor)

    def find(self) -> FeatureLayer:
        why = []
        for record in reversed(self.representatives()):
            layer = self.reading(record)
            if layer is None:
                continue
            if not self.cuts(record):
                why.append(f'"{record.name}" {tuple(record.tensor.shape)} does not hold all that the logits depend on')
            elif self.active_share(record, layer) <= ACTIVE_SHARE:
                why.append(f'"{record.name}" {tuple(record.tensor.shape)} is not read by the logits')
            else:
                layer = self.classified(record, layer)
                layer = self.behind_the_norm(record, layer) if self.vanishes(record, layer) else layer
                return self.with_attention(layer)
        reasons = "; ".join(why[:3]) if why else f"no module gives a map of more than one cell at {self.size}"
        raise ValueError(
            f"no single layer of {describe(self.model)} separates the picture from the logits ({reasons}): it may "
            "have several branches that meet after their last maps, or the picture may be too small. Name one, "
            'feature_layer="...", a module that runs once and gives (B, C, h, w), (B, h, w, C) or (B, tokens, C), or '
            "take a larger image_size."
        )

    def representatives(self) -> list[Record]:
        """Of every tensor, in the order in which they came, the record of the module that is to be named."""
        groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
        for record in self.run.records:
            groups[record.key].append(record)
        return [min(group, key=self.worse) for group in groups.values()]

    def worse(self, record: Record) -> tuple[bool, bool, bool, int]:
        """The order of preference among modules that give the same tensor."""
        module = self.model.get_submodule(record.name)
        bare = next(module.parameters(), None) is None
        return (isinstance(module, CONTAINERS), record.index is not None, bare, -record.name.count("."))

    def reading(self, record: Record) -> FeatureLayer | None:
        """The record as a layer with a layout, its read-out still open; `None` if it is not spatial."""
        shape = record.tensor.shape
        name, index, copied = record.name, record.index, record.overwritten
        if record.tensor.ndim == 3:
            grids = token_grids(shape, self.size)
            if not grids:
                return None
            # The patches' grid, or one that they were merged to, has mostly been a 4-D map before.
            prefix, grid = min(grids, key=lambda found: found[1] not in self.grids)
            return FeatureLayer(name, "NLC", grid, shape[2], prefix, output_index=index, hand_on_copy=copied)
        readings = map_layouts(shape, self.size)
        if len(readings) > 1:
            readings = self.stretched_reading(record) or readings
        if not readings:
            return None
        layout = readings[0][0]
        grid, channels = ((shape[2], shape[3]), shape[1]) if layout == "NCHW" else ((shape[1], shape[2]), shape[3])
        return FeatureLayer(name, layout, grid, channels, output_index=index, hand_on_copy=copied)

    def stretched_reading(self, record: Record) -> list[tuple[Layout, tuple[int, int]]]:
        """The layouts of the same output for a picture twice as wide, if the model takes one: which edge grew?"""
        if self._stretched is None:
            channels, height, width = self.shape
            wide = (channels, height, 2 * width)
            try:
                self._stretched = dry_run(self.model, probe_images(self.model, wide, PROBES, seed=0))
            except REFUSALS:
                self._stretched = DryRun(self.run.logits, [], {}, {})
        for other in self._stretched.records:
            if (other.name, other.index) == (record.name, record.index):
                return map_layouts(other.tensor.shape, (self.size[0], 2 * self.size[1]))
        return []

    def tail(self, record: Record, tensor: Tensor) -> Tensor:
        return run_tail(self.model, self.others, (record.name, record.index, tensor))

    def cuts(self, record: Record) -> bool:
        return self.as_recorded(self.at_recorded(record)[0])

    def as_recorded(self, logits: Tensor) -> bool:
        """Whether other pictures gave the logits of the recorded ones."""
        return float((logits - self.run.logits).abs().max()) <= TOLERANCE * self.spread + self.rounding

    def recorded(self, record: Record) -> Tensor:
        """The output as it left the module, computed anew where a later operation has written into it."""
        if not record.overwritten:
            return record.tensor
        if record.key in self._anew:
            return self._anew[record.key]
        kept: list[Tensor] = []
        module = self.model.get_submodule(record.name)
        layer = FeatureLayer(record.name, "NCHW", (1, 1), 1, output_index=record.index)
        handle = module.register_forward_hook(lambda _, args, output: kept.append(layer.select(output).clone()))
        try:
            with torch.no_grad():
                self.model(self.images)
        finally:
            handle.remove()
        self._anew[record.key] = kept[0]
        return kept[0]

    def at_recorded(self, record: Record) -> tuple[Tensor, Tensor]:
        """[`gradient`] at the recorded output."""
        if record.key not in self._at_recorded:
            self._at_recorded[record.key] = self.gradient(record, self.recorded(record))
        return self._at_recorded[record.key]

    def gradient(self, record: Record, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The logits for `tensor` in the layer's place, and the gradient of their weighted sum."""
        leaf = tensor.detach().clone().requires_grad_()
        logits = self.tail(record, leaf)
        if not logits.requires_grad:
            return logits, torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(logits, leaf, grad_outputs=self.weights, allow_unused=True)
        return logits.detach(), torch.zeros_like(leaf) if gradient is None else gradient

    def active_share(self, record: Record, layer: FeatureLayer) -> float:
        gradient = layer.to_maps(self.at_recorded(record)[1])
        return float((gradient.abs().sum(dim=1) > 0).float().mean())

    def classified(self, record: Record, layer: FeatureLayer) -> FeatureLayer:
        recorded = self.recorded(record)
        drawn = self.random_like(recorded) * (recorded.std() + recorded.mean().abs())
        at_recorded, at_drawn = self.at_recorded(record), self.gradient(record, drawn)
        bias = self.tail(record, torch.zeros_like(recorded))
        at_sum = self.tail(record, recorded + drawn)
        allowed = TOLERANCE * float((at_drawn[0] - bias).abs().max()) + self.rounding
        affine = float((at_recorded[0] + at_drawn[0] - at_sum - bias).abs().max()) <= allowed
        uniform = complete = True
        for features, (logits, gradient) in ((recorded, at_recorded), (drawn, at_drawn)):
            gradients = layer.to_maps(gradient)
            deviation = (gradients - gradients.mean(dim=(2, 3), keepdim=True)).abs().amax(dim=(1, 2, 3))
            uniform &= bool((deviation <= TOLERANCE * gradients.abs().amax(dim=(1, 2, 3))).all())
            # Over the grid alone: what prefix tokens add is not on the map.
            from_map = (gradients * layer.to_maps(features)).sum(dim=(1, 2, 3))
            from_logits = (self.weights * (logits - bias)).sum(dim=1)
            allowed = TOLERANCE * float(from_logits.abs().max()) + self.rounding
            complete &= float((from_map - from_logits).abs().max()) <= allowed
        readout: Readout = "generic"
        if uniform:
            readout = "exact" if affine and complete else "uniform"
        head = self.head(gradients.sum(dim=(2, 3))) if readout == "exact" else None
        return replace(layer, readout=readout, head=head)

    def vanishes(self, record: Record, layer: FeatureLayer) -> bool:
        """
        Whether the sum over the channels of map times gradient is zero at every position, as a matter of principle.

        A token that is read through a layer norm alone is read up to its scale, so (Euler) its product with its
        gradient is zero, and HiResCAM with it, whatever the picture.
        """
        if layer.readout != "generic":
            return False
        products = layer.to_maps(self.recorded(record)) * layer.to_maps(self.at_recorded(record)[1])
        return bool(products.sum(dim=1).abs().max() <= TOLERANCE * products.abs().sum(dim=1).max())

    def behind_the_norm(self, record: Record, layer: FeatureLayer) -> FeatureLayer:
        """
        The first output behind a layer through which all is read that the logits take from the layer's grid.

        The prefix tokens may go another way (the class token's residual does). The layer itself, if there is none.
        """
        recorded = self.recorded(record)
        kept = layer.num_prefix_tokens if layer.layout == "NLC" else 0
        records = self.representatives()
        keys = [other.key for other in records]
        elsewhere = torch.roll(recorded, 1, dims=0)
        if kept:
            elsewhere[:, :kept] = recorded[:, :kept]
        for other in records[keys.index(record.key) + 1 :]:
            found = self.reading(other)
            if found is None or (found.layout, found.grid) != (layer.layout, layer.grid):
                continue
            exchanged = [(record.name, record.index, elsewhere), (other.name, other.index, self.recorded(other))]
            if (
                found.num_prefix_tokens == layer.num_prefix_tokens
                and self.as_recorded(run_tail(self.model, self.others, *exchanged))
                and self.active_share(other, found) > ACTIVE_SHARE
                and not self.vanishes(other, found)
            ):
                return found
        return layer

    def with_attention(self, layer: FeatureLayer) -> FeatureLayer:
        """Notes whether the layer's tail attends once, over its tokens, and only the prefix tokens' rows are read."""
        if layer.readout != "generic" or layer.layout != "NLC" or not layer.num_prefix_tokens:
            return layer
        record = AttentionRecord()
        module = self.model.get_submodule(layer.name)
        with ExitStack() as stack, torch.enable_grad():
            handle = module.register_forward_hook(lambda *_: stack.enter_context(record) and None)
            stack.callback(handle.remove)
            logits = logits_of(self.model(self.images.clone().requires_grad_()))  # the model may be frozen
        tokens = layer.num_prefix_tokens + layer.grid[0] * layer.grid[1]
        if len(record.outputs) != 1 or record.outputs[0].shape[-2] != tokens:
            return layer
        (gradient,) = torch.autograd.grad((self.weights * logits).sum(), record.outputs[0], allow_unused=True)
        unread = gradient is not None and not gradient[..., layer.num_prefix_tokens :, :].any()
        return replace(layer, prefix_attention=bool(unread))

    def head(self, gradients: Tensor) -> str | None:
        """The module whose weight gives the gradients, `(B, C)`, of the weighted logits at a random map."""
        expected = (self.weights.shape[1], gradients.shape[1])
        for name, module in self.model.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d) or module.weight.flatten(1).shape != expected:
                continue
            if not self.run.calls.get(name):  # a copy that is kept beside the head, and never trained
                continue
            difference = (self.weights @ module.weight.detach().flatten(1) - gradients).abs().max()
            if float(difference) <= TOLERANCE * float(gradients.abs().max()):
                return name
        return None

    def describe(self, name: str) -> FeatureLayer:
        calls = self.run.calls.get(name, 0)
        if calls != 1:
            raise ValueError(
                f'feature_layer="{name}" runs {calls} times in one forward of {describe(self.model)}; name a module '
                f"that runs once{self.suggestion()}."
            )
        for record in self.run.records:
            layer = self.reading(record) if record.name == name else None
            if layer is None:
                continue
            if self.active_share(record, layer) == 0:
                raise ValueError(
                    f'feature_layer="{name}" is not read by the logits: their gradient is zero at every position of '
                    f"its {layer.grid[0]} × {layer.grid[1]} grid{self.suggestion()}."
                )
            layer = self.classified(record, layer) if self.cuts(record) else layer
            if self.vanishes(record, layer):
                logger.warning(
                    'feature_layer="%s" is read through a norm alone, so that HiResCAM is zero on it%s; take that, or '
                    'method="gradcam".',
                    name,
                    self.suggestion(),
                )
            return self.with_attention(layer)
        shapes = ", ".join(str(shape) for shape in self.run.shapes[name]) or "no tensor"
        raise ValueError(
            f'feature_layer="{name}" gives {shapes} for pictures of shape {tuple(self.images.shape)}, which is no '
            f"spatial map{self.suggestion()}."
        )

    def suggestion(self) -> str:
        try:
            return f'; the resolver would pick "{self.find().name}" (see resolve_feature_layer)'
        except ValueError:
            return ""
