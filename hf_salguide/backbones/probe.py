"""Making a model ready to be looked at, listing what every module gives, and exchanging what some of them give."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from .forward import evaluation, logits_of
from .layer import replace_output

NEGLIGIBLE = 1e-4  # weights that are no larger, as fresh layer scales are (1e-5, 1e-6), are taken for zeros


@contextmanager
def probing(model: nn.Module) -> Iterator[nn.Module]:
    """
    The model, ready to be looked at: in evaluation mode, with gradients on, and without the marks of a fresh start.

    Heads and the last norms of residual branches are often initialised with zeros, and nothing would be read behind
    them: such weights are random inside. A norm starts as the identity, and what it norms would be taken for what goes
    through: its weights, if all are the same, and its statistics are random as well. A model in half precision, which
    is too coarse to tell an exact read-out from one that is not, is copied. On leaving all is as before.
    """
    half = next((parameter.dtype for parameter in model.parameters()), torch.float32).itemsize < 4
    probed = copy.deepcopy(model).float() if half else model
    generator = torch.Generator().manual_seed(1)
    with evaluation(probed), torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for name, weight in probed.named_parameters():
            drawn = None if name.endswith("bias") else _enlivened(weight.detach(), generator)
            if drawn is not None:
                stack.callback(setattr, weight, "data", weight.data)
                weight.data = drawn
        for norm in probed.modules():
            mean, variance = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
            if isinstance(norm, BatchNorm) and mean is not None and variance is not None and not mean.any():
                fresh = {
                    "running_mean": 0.1 * torch.randn(mean.shape, generator=generator).to(mean),
                    "running_var": variance * _factors(variance, generator),
                }
                for name, buffer in fresh.items():
                    # Others in their place: a graph that read them can still be differentiated.
                    stack.callback(norm._buffers.__setitem__, name, norm._buffers[name])
                    norm._buffers[name] = buffer
        yield probed


def _enlivened(weight: Tensor, generator: torch.Generator) -> Tensor | None:
    """Random numbers for a weight that is zero or the same everywhere; `None` for others."""
    if not weight.numel():
        return None
    if float(weight.abs().max()) <= NEGLIGIBLE:
        return torch.randn(weight.shape, generator=generator).to(weight)
    if weight.ndim == 1 and len(weight) > 1 and bool((weight == weight[0]).all()):
        return weight * _factors(weight, generator)
    return None


def _factors(like: Tensor, generator: torch.Generator) -> Tensor:
    return (0.5 + torch.rand(like.shape, generator=generator)).to(like)


@dataclass
class Record:
    """One tensor that a module gave in the dry run."""

    name: str
    index: int | str | None
    tensor: Tensor
    version: int  # the tensor's, when it left the module

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for modules that gave the very same tensor: a block, the container round it, an identity."""
        return (self.tensor.data_ptr(), self.version, self.tensor.shape, self.tensor.stride())

    @property
    def overwritten(self) -> bool:
        """Whether an operation after the module wrote into its output."""
        return self.tensor._version != self.version


def tensors_of(output: Any) -> Iterator[tuple[int | str | None, Tensor]]:
    """The tensors of a module's output, each with its index: `None` for a bare tensor."""
    if isinstance(output, Tensor):
        yield None, output
    elif isinstance(output, tuple | list):
        yield from ((index, entry) for index, entry in enumerate(output) if isinstance(entry, Tensor))
    elif isinstance(output, dict):
        yield from ((key, entry) for key, entry in output.items() if isinstance(entry, Tensor))


@dataclass
class DryRun:
    """
    What one forward showed.

    Attributes:
        logits (`Tensor` of shape `(B, K)`): the logits.
        records (`list[Record]`): what may be a map, of modules that ran once, in the order in which they returned.
        several (`dict`): all that a module gave which gave several tensors; parts of a picture may lie in the batch.
        calls (`dict`): how often each module ran.
        shapes (`dict`): what each gave in its last call.
    """

    logits: Tensor
    records: list[Record]
    several: dict[str, list[Record]]
    calls: dict[str, int]
    shapes: dict[str, list[tuple[int, ...]]]


def dry_run(model: nn.Module, images: Tensor) -> DryRun:
    """One forward without gradient."""
    records: list[Record] = []
    several: dict[str, list[Record]] = {}
    calls: dict[str, int] = {}
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            tensors = list(tensors_of(output))
            shapes[name] = [tuple(tensor.shape) for _, tensor in tensors]
            floating = [
                Record(name, index, tensor, tensor._version)
                for index, tensor in tensors
                if tensor.ndim > 1 and len(tensor) % len(images) == 0 and tensor.is_floating_point()
            ]
            records.extend(it for it in floating if it.tensor.ndim in (3, 4) and len(it.tensor) == len(images))
            several[name] = floating

        return note

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(hook(name)).remove)
        logits = seeded(model, images)
    once = [record for record in records if calls[record.name] == 1]
    return DryRun(logits, once, {name: those for name, those in several.items() if len(those) > 1}, calls, shapes)


def seeded(model: nn.Module, images: Tensor) -> Tensor:
    """The logits, with the same numbers drawn in every forward: a model may draw some in evaluation mode too."""
    torch.manual_seed(0)
    return logits_of(model(images))


def run_tail(
    model: nn.Module, images: Tensor, *outputs: tuple[str, int | str | None, Tensor], graph: bool = False
) -> Tensor:
    """
    The logits with modules' outputs exchanged: `(name, index, tensor)` each.

    Differentiable in a tensor that requires a gradient; what comes before it is computed without a graph, unless
    `graph` is set: a model that runs a part of itself under `no_grad` ends there with the mode that it began with.
    """

    def exchange(index: int | str | None, tensor: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if tensor.requires_grad:
                torch.set_grad_enabled(True)
            # A copy: what follows may write into it.
            return replace_output(output, index, tensor.clone())

        return hook

    with ExitStack() as stack, torch.set_grad_enabled(graph):
        for name, index, tensor in outputs:
            stack.callback(model.get_submodule(name).register_forward_hook(exchange(index, tensor)).remove)
        return seeded(model, images)
