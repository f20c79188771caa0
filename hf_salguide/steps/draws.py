"""The random numbers of a micro-batch."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..maps import keyed_uniform


@dataclass(frozen=True)
class Draws:
    """
    What random numbers of a micro-batch are keyed by, so that they touch no generator, and that resuming, accumulating
    and spreading a batch over processes change nothing.

    Attributes:
        seed (`int`): the run's seed.
        step (`int`): the optimizer step.
        rows (`Tensor` of shape `(B,)`, int64): the rows' positions in the global batch of the step.
    """

    seed: int
    step: int
    rows: Tensor

    def uniform(self, name: str) -> Callable[[int], Tensor]:
        """A function that takes `n` and gives `(B, n)` float32 in [0, 1), of which each `name` has its own."""
        salted = self.seed ^ (zlib.crc32(name.encode()) << 16)
        return lambda count: keyed_uniform(self.rows, count, salted, self.step)
