"""Plain training, the baseline that every method is compared with."""

from typing import ClassVar

from torch import Tensor

from .base import Guidance, GuidanceBatch
from .registry import PLAIN, register_guidance


@register_guidance
class NoGuidance(Guidance):
    """
    No guidance: the term is 0. Under a [`SaliencyTrainer`] no guidance code runs at all, and training is
    bit-identical to that of `transformers.Trainer`.
    """

    name: ClassVar[str] = PLAIN
    paper: ClassVar[str] = "the task's loss alone"
    formula: ClassVar[str] = "0"
    default_weight: ClassVar[float] = 0.0
    needs_annotation: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False
    accepts_empty_masks: ClassVar[bool] = True

    def terms(self, batch: GuidanceBatch) -> Tensor:
        return batch.logits.new_zeros(batch.logits.shape[0])
