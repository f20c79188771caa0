"""What guidance keeps from one optimizer step to the next, and in checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..guidance import Guidance, StatefulGuidance

FILE = "guidance.pt"  # in a checkpoint, beside the optimizer's state
_EPSILON = 1e-8


class GuidanceState:
    """
    The state of the methods that have one, and the adaptive balance of task and guidance.

    The adaptive weight is `alpha = T / (T + G)`, with the weighted losses `T` of the task and `G` of the guidance,
    means over the pictures of the previous optimizer step and over all processes, detached. The task's loss is
    multiplied by `2 alpha` and the guidance by `2 (1 - alpha)`, so that the configured weights are those of balanced
    losses; with CYBORG's 0.5 and 0.5 it is the `alpha` of VISER (arXiv 2603.17859), whose code lets the gradient pass
    through it and takes the batch at hand.

    Args:
        methods (`Sequence[Guidance]`): the methods of the run.
        adaptive (`bool`): whether the balance adapts.
    """

    def __init__(self, methods: Sequence[Guidance], adaptive: bool) -> None:
        self.stateful = {method.name: method for method in methods if isinstance(method, StatefulGuidance)}
        self.adaptive = adaptive
        self.alpha = 0.5
        self._losses: list[Tensor] = []

    @property
    def factors(self) -> tuple[float, float]:
        """What the task's loss and the guidance are multiplied by; ones unless the balance adapts."""
        return (2 * self.alpha, 2 * (1 - self.alpha)) if self.adaptive else (1.0, 1.0)

    def observe(self, task: Tensor, guidance: Tensor) -> None:
        """Takes the weighted losses of a training micro-batch into account, scalars, for the next step's balance."""
        if self.adaptive:
            self._losses.append(torch.stack([task.detach().float(), guidance.detach().float()]))

    def step(self, average: Callable[[list[Tensor]], None]) -> None:
        """
        Called once at the end of each optimizer step, on every process.

        Args:
            average (`Callable`): replaces tensors, in place, by their means over the processes.
        """
        if self._losses:
            losses, self._losses = torch.stack(self._losses).mean(dim=0), []
            average([losses])
            task, guidance = losses.tolist()
            self.alpha = task / (task + guidance + _EPSILON)
        for method in self.stateful.values():
            method.step(average)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not (self.adaptive or self.stateful)

    def save(self, folder: str | Path) -> None:
        """Writes the state into a checkpoint's folder, whole or not at all."""
        state = {name: method.state_dict() for name, method in self.stateful.items()}
        path = Path(folder) / FILE
        partial = path.with_suffix(".partial")
        torch.save({"alpha": self.alpha, "methods": state}, partial)
        partial.rename(path)

    def load(self, folder: str | Path) -> None:
        """
        Takes up the state of a checkpoint.

        Raises:
            ValueError: if the checkpoint has none, or that of other methods.
        """
        path = Path(folder) / FILE
        if not path.exists():
            raise ValueError(
                f'resume_from_checkpoint="{folder}" holds no {FILE}, which guidance needs to go on where it stopped: '
                "it was written with other guidance, or with save_only_model=True; start anew, or take another."
            )
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if set(state["methods"]) != set(self.stateful):
            raise ValueError(
                f'resume_from_checkpoint="{folder}" keeps the state of {sorted(state["methods"])}, and this run is '
                f"guided by {sorted(self.stateful)}; resume with the same guidance."
            )
        self.alpha = float(state["alpha"])
        for name, method in self.stateful.items():
            method.load_state_dict(state["methods"][name])
