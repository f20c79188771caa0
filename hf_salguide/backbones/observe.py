"""A model under observation: what its modules give for noise, and what follows when one of them gives something else."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from .forward import REFUSALS, describe, probe_images, size_refused
from .layer import FeatureLayer, Layout
from .layouts import map_layouts, token_grids
from .probe import DryRun, Record, dry_run, run_tail

PROBES = 3  # pictures a forward
TOLERANCE = 1e-3  # of the difference that the pictures make
ACTIVE_SHARE = 0.5
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Observation:
    """
    A dry run of a model, and repetitions of it. No global generator is touched between [`prepared`] and its end.

    Args:
        model (`nn.Module`): the unwrapped model, in evaluation mode.
        shape (`tuple[int, int, int]`): `(C, H, W)` of the pictures.
    """

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
