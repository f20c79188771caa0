"""Shuffled input: the model is trained on pictures whose pixels outside what people marked are shuffled."""

from typing import ClassVar

from torch import Tensor

from ..maps import degrade_outside
from .base import Guidance, GuidanceBatch, Pictures
from .registry import register_guidance


@register_guidance
class ShuffledInput(Guidance):
    """
    Shuffled input (a baseline of Viviano, Simpson, Dutil, Bengio, Cohen, "Saliency is a Possible Red Herring When
    Diagnosing Poor Generalization", ICLR 2021, arXiv 1910.00199).

    Annotated training pictures are replaced by `x~ = S * x + (1 - S) * P(x)` of [`ActDiff`]: `P` permutes the pixels
    outside, `S < 1/2`, among themselves, anew in every step. Evaluation sees the pictures as they are. There is no
    term.
    """

    name: ClassVar[str] = "shuffled_input"
    paper: ClassVar[str] = (
        "Viviano et al., Saliency is a Possible Red Herring When Diagnosing Poor Generalization, ICLR 2021, "
        "arXiv 1910.00199"
    )
    formula: ClassVar[str] = "x -> S*x + (1-S)*shuffle(x) in training"
    cost: ClassVar[str] = "none"
    transforms_inputs: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = False
    accepts_empty_masks: ClassVar[bool] = True

    def transform(self, pictures: Pictures) -> Tensor:
        pixels = pictures.pixel_values
        shuffled = degrade_outside(pixels, pictures.saliency, pictures.uniform)
        return shuffled.where(pictures.annotated[:, None, None, None], pixels)

    def terms(self, batch: GuidanceBatch) -> Tensor:
        return batch.logits.new_zeros(len(batch.logits))
