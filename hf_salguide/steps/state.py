"""What guidance keeps from one optimizer step to the next, and in checkpoints."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..backbones import PooledLayer
from ..guidance import Guidance, StatefulGuidance
from ..names import POOLED

FILE = "guidance.pt"  # in a checkpoint, beside the optimizer's state


class GuidanceState:
    """
    The state of the methods that have one, and the adaptive balance of task and guidance.

    The adaptive weight is `alpha = T / (T + G)`, with the weighted losses `T` of the task and `G` of the guidance,
    means over the pictures of the previous optimizer step and over all processes, detached. The task's loss is
    multiplied by `2 alpha` and the guidance by `2 (1 - alpha)`, so that the configured weights are those of balanced
    losses; with CYBORG's 0.5 and 0.5 it is the `alpha` of VISER (arXiv 2603.17859), whose code lets the gradient pass
    through it and takes the batch at hand. After a step without a guidance loss, or with one that is not finite,
    `alpha` stays as it was.

    Args:
        methods (`Sequence[Guidance]`): the methods of the run.
        adaptive (`bool`): whether the balance adapts.
    """

    def __init__(self, methods: Sequence[Guidance], adaptive: bool) -> None:
        self.stateful = {method.name: method for method in methods if isinstance(method, StatefulGuidance)}
        self.adaptive = adaptive
        self.alpha = 0.5
        self._losses: list[Tensor] = []

    def set_up(self, pooled: PooledLayer | None, device: torch.device, seed: int) -> None:
        """
        Makes the methods' state anew.

        Args:
            pooled ([`PooledLayer`], *optional*): where the pooled vector is read, if any method asks for it.
            device (`torch.device`): where the model is.
            seed (`int`): the run's seed.
        """
        sizes = {} if pooled is None else {POOLED: torch.Size([pooled.size])}
        for method in self.stateful.values():
            method.setup(sizes, device, seed)

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
            total = task + guidance
            # Without a guidance loss, as in a step without saliency, there is nothing to balance.
            if guidance != 0 and total != 0 and math.isfinite(total):
                self.alpha = task / total
        for method in self.stateful.values():
            method.step(average)

    def forget(self) -> None:
        """Drops what an optimizer step that was not finished has left behind; what is saved stays."""
        self._losses = []
        for method in self.stateful.values():
            method.forget()

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
        partial.replace(path)

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


class EndOfStep(TrainerCallback):
    """Tells a [`GuidanceState`] that the gradients of an optimizer step are complete."""

    def __init__(self, state: GuidanceState, average: Callable[[list[Tensor]], None]) -> None:
        self._state = state
        self._average = average

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._state.step(self._average)
