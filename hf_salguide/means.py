"""Running means of the loss's components, without a host sync a step."""

from typing import Any

import torch
from torch import Tensor


class RunningMeans:
    """
    Means of named values, summed on their device and read only when asked for.

    Example:

    ```python
    >>> means = RunningMeans()
    >>> means.add({"task_loss": torch.tensor([1.0, 3.0])})
    >>> means.pop(None)
    {'task_loss': 2.0}
    ```
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds detached values, scalars or tensors of any shape, whose elements count one each."""
        for name, value in values.items():
            total = value.detach().float().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts.get(name, 0) + value.numel()

    def pop(self, accelerator: Any) -> dict[str, float]:
        """
        The means since the last call, over all processes of `accelerator` (`None`: this process alone), and a reset.

        Every process has to call it, with the same names.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        counts = torch.tensor([float(self._counts[name]) for name in names])
        sums = torch.stack([self._sums[name] for name in names])
        totals = torch.stack([sums, counts.to(sums.device)])
        if accelerator is not None:
            totals = accelerator.reduce(totals, reduction="sum")
        means = (totals[0] / totals[1]).tolist()
        self._sums, self._counts = {}, {}
        return dict(zip(names, means, strict=True))
