"""A model under observation: what its modules give for noise, and what follows when one gives something else."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from .attention import AttentionRecord
from .forward import REFUSALS, describe, probe_images, size_refused
from .layer import FeatureLayer, replace_output
from .layouts import map_layouts, token_grids
from .probe import Record, dry_run, run_tail, seeded

PROBES = 2  # pictures a forward
MERGED = (2, 3, 4)  # cells a side, into a token
LARGE = 256 * 256  # cells of a picture, above which other widths are tried smaller
TOLERANCE = 1e-3  # of the difference that the pictures make, where numbers are computed in two ways
CUT_TOLERANCE = 1e-4  # where they are computed in the same way; what is read otherwise has been seen at 2e-4
ACTIVE_SHARE = 0.5
FAINT = 1e-4  # logits that differ by less, as those of a fresh LeViT do (1e-11), hide what little they depend on
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Observation:
    """
    A dry run of a model, and repetitions of it, inside of [`probing`].

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
        self.tails = 0  # forwards after the dry run
        self._anew: dict[tuple[object, ...], Tensor] = {}
        self._cuts: dict[tuple[object, ...], bool] = {}
        self._gradients: dict[tuple[object, ...], Tensor] = {}
        self.attended: dict[str, int] | None = None  # how often attention had run before a module was through
        self.attention_shapes: list[torch.Size] = []
        self.last_attention: Tensor | None = None  # the gradient at its output
        self.weights = torch.empty(0)  # of the logits, random; drawn when their number is known

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Inside, the dry run is done, with batch statistics of the noise where the signal would else be too faint."""
        with ExitStack() as stack:
            self.observe()
            if self.spread <= max(self.rounding, FAINT):
                norms = [norm for norm in self.model.modules() if isinstance(norm, BatchNorm)]
                for norm in norms:
                    for name, buffer in norm._buffers.items():
                        stack.callback(norm._buffers.__setitem__, name, buffer)
                        norm._buffers[name] = None if buffer is None else buffer.clone()
                self.calibrate(norms)
                self.observe()
            if self.spread <= self.rounding:
                raise ValueError(
                    f"the logits of {describe(self.model)} do not depend on the picture (they differ by "
                    f"{self.spread:.1e} for different noise), so no layer can be found; check its weights."
                )
            yield

    def observe(self) -> None:
        """Does the dry run."""
        try:
            self.run = dry_run(self.model, self.images)
        except REFUSALS as error:
            raise size_refused(self.model, self.size, error) from error
        self.spread = float((self.run.logits - self.run.logits.roll(1, dims=0)).abs().max())
        self.weights = self.random_like(self.run.logits)
        self.rounding = 1e-6 * float(self.run.logits.abs().max())
        self.grids = grids_in_turn(self.model, self.run.records, self.size)

    @cached_property
    def reshaped(self) -> "Observation | None":
        """
        The same of pictures twice as wide, or of large ones half as wide, if the model takes them.

        `None` as well where nothing in it changes its shape, for such a model resizes its pictures itself.
        """
        channels, height, width = self.shape
        other = Observation(self.model, (channels, height, width // 2 if height * width > LARGE else 2 * width))
        try:
            other.observe()
        except ValueError:
            return None
        shapes = {(record.name, record.index): record.tensor.shape[1:] for record in other.run.records}
        same = all(shapes.get((record.name, record.index)) == record.tensor.shape[1:] for record in self.run.records)
        return None if same else other

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

    def record(self, name: str, index: int | str | None) -> Record | None:
        """What a module gave, if it ran once and gave something."""
        return next((other for other in self.run.records if (other.name, other.index) == (name, index)), None)

    def tail(self, *outputs: tuple[str, int | str | None, Tensor]) -> Tensor:
        """The logits of other pictures, with modules' outputs exchanged: `(name, index, tensor)` each."""
        self.tails += 1
        return run_tail(self.model, self.others, *outputs)

    def cuts(self, record: Record) -> bool:
        """The cut test: with this output of the recorded pictures, others give the logits of the recorded ones."""
        if record.key not in self._cuts:
            exchanged = (record.name, record.index, self.recorded(record))
            if record.key in self._gradients:
                self._cuts[record.key] = self.as_recorded(self.tail(exchanged))
            else:
                self.gradient_at(record)
        return self._cuts[record.key]

    def cut_together(self, outputs: Sequence[tuple[str, int | str | None, Tensor]]) -> bool:
        """The cut test of several outputs of the recorded pictures at once."""
        return self.as_recorded(self.tail(*outputs))

    def as_recorded(self, logits: Tensor) -> bool:
        """Whether the logits are those of the recorded pictures."""
        return float((logits - self.run.logits).abs().max()) <= CUT_TOLERANCE * self.spread + self.rounding

    def recorded(self, record: Record) -> Tensor:
        """The output as it left the module, computed anew where a later operation has written into it."""
        if not record.overwritten:
            return record.tensor
        if record.key in self._anew:
            return self._anew[record.key]
        kept: list[Tensor] = []
        module = self.model.get_submodule(record.name)

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept.append((output if record.index is None else output[record.index]).clone())

        handle = module.register_forward_hook(keep)
        try:
            with torch.no_grad():
                seeded(self.model, self.images)
        finally:
            handle.remove()
        self._anew[record.key] = kept[0]
        return kept[0]

    def gradient_at(self, record: Record) -> Tensor:
        """The gradient of the logits' weighted sum at the recorded output."""
        if record.key not in self._gradients:
            logits, self._gradients[record.key] = self.gradient(record, self.recorded(record))
            self._cuts[record.key] = self.as_recorded(logits)
        return self._gradients[record.key]

    def look_at_all(self) -> None:
        """All of [`gradient_at`] in one pass, for searches that have to look at more than one or two outputs."""
        if self.attended is not None:
            return
        outputs: dict[tuple[object, ...], Tensor] = {}
        attention = AttentionRecord()
        self.attended = attended = {}

        def keep(record: Record) -> Callable[[nn.Module, Any, Any], Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                tensor = output if record.index is None else output[record.index]
                outputs[record.key] = tensor
                attended[record.name] = len(attention.outputs)
                # A copy: what follows may write into it.
                return replace_output(output, record.index, tensor.clone())

            return hook

        with ExitStack() as stack:
            for record in self.representatives():
                module = self.model.get_submodule(record.name)
                stack.callback(module.register_forward_hook(keep(record)).remove)
            stack.enter_context(attention)
            logits = seeded(self.model, self.images.clone().requires_grad_())  # the model may be frozen
        self.attention_shapes = [output.shape for output in attention.outputs]
        # What is computed without a graph (a backbone inside no_grad) is left to be looked at singly.
        reached = {key: output for key, output in outputs.items() if output.requires_grad}
        wanted = [*reached.values(), *(output for output in attention.outputs[-1:] if output.requires_grad)]
        if not wanted:
            return
        found = list(torch.autograd.grad(logits, wanted, grad_outputs=self.weights, allow_unused=True))
        if len(wanted) > len(reached):
            self.last_attention = found.pop()
        for (key, output), gradient in zip(reached.items(), found, strict=True):
            self._gradients[key] = torch.zeros_like(output) if gradient is None else gradient

    def gradient(self, record: Record, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The logits for `tensor` in the layer's place, and the gradient of their weighted sum."""
        leaf = tensor.detach().clone().requires_grad_()
        exchanged = (record.name, record.index, leaf)
        logits = self.tail(exchanged)
        if not logits.requires_grad:
            logits = run_tail(self.model, self.others, exchanged, graph=True)
        if not logits.requires_grad:
            return logits, torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(logits, leaf, grad_outputs=self.weights, allow_unused=True)
        return logits.detach(), torch.zeros_like(leaf) if gradient is None else gradient

    def active_share(self, record: Record, layer: FeatureLayer) -> float:
        read = layer.to_maps(self.gradient_at(record)).abs().sum(dim=1) > 0
        if not layer.num_prefix_tokens and read.any(dim=(1, 2)).all() and not (read == read[:1]).all():
            return 1.0  # another picture, other positions: what is read is chosen by content, as a maximum is
        return float(read.float().mean())


def grids_in_turn(model: nn.Module, records: Sequence[Record], size: tuple[int, int]) -> set[tuple[int, int]]:
    """
    The grids that the picture goes through: the first that is seen, and from there on all that are 4-D maps, or
    tokens that are as many as those of one seen before, or of one whose cells were merged.

    Maps are those of modules with parameters, and their first output: attention's probabilities are 4-D as well.
    """
    grids: set[tuple[int, int]] = set()
    for record in records:
        if record.tensor.ndim == 4:
            module = model.get_submodule(record.name)
            if record.index not in (None, 0) or next(module.parameters(), None) is None:
                continue
            grids.update(grid for _, grid in map_layouts(record.tensor.shape, size))
            continue
        found = [grid for _, grid in token_grids(record.tensor.shape, size)]
        merged = {
            (rounded(height / factor), rounded(width / factor))
            for height, width in grids
            for factor in MERGED
            for rounded in (math.floor, math.ceil)
        }
        grids.update(found[:1] if not grids else [grid for grid in found if grid in merged])
    return grids
