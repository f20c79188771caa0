"""The arithmetic of a training step, counted: what its time would be if nothing but products of matrices took any."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .step import Step


@dataclass(frozen=True)
class Passes:
    """
    What one training step computes.

    Attributes:
        flops (`int`): floating point operations of the convolutions, products of matrices and attention in all
            forward and backward passes, those of backward passes through backward passes and of second forwards
            included.
        rows (`int`): pictures in the first forward: those of the batch, and the views made of them.
    """

    flops: int
    rows: int


def count_passes(step: Step) -> Passes:
    """
    Counts one training step while it runs.

    Args:
        step ([`Step`]): of a model that is not compiled, whose operations can be seen.
    """
    seen: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]))

    handle = step.trainer.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with _Counter() as counter:
            step()
    finally:
        handle.remove()
    return Passes(counter.flops, seen[0])


class _Counter(TorchDispatchMode):
    """torch's FlopCounterMode without its record of modules, whose hooks do not bear a gradient within a step."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output
