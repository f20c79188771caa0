"""Masked input: the model is trained on pictures of which only the salient part is left."""

from typing import ClassVar

from torch import Tensor

from ..maps import composite, fill_pictures
from .base import Guidance, GuidanceBatch, Pictures, check_choice
from .registry import register_guidance


@register_guidance
class MaskedInput(Guidance):
    """
    Masked input ("Masked", a baseline of Viviano, Simpson, Dutil, Bengio, Cohen, "Saliency is a Possible Red Herring
    When Diagnosing Poor Generalization", ICLR 2021, arXiv 1910.00199).

    Annotated training pictures are replaced by `S * x`; evaluation sees them as they are. There is no term. The 0
    outside is that of the prepared pictures: after the usual normalisation, the mean colour of the data, not black.

    Args:
        fill (`str`, *optional*, defaults to `"zero"`): what is put outside, `"zero"` or `"mean"` (the picture's own
            mean colour): `S * x + (1 - S) * fill`.
    """

    name: ClassVar[str] = "masked_input"
    paper: ClassVar[str] = (
        "Viviano et al., Saliency is a Possible Red Herring When Diagnosing Poor Generalization, ICLR 2021, "
        "arXiv 1910.00199"
    )
    formula: ClassVar[str] = "x -> S*x in training"
    cost: ClassVar[str] = "none"
    transforms_inputs: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = False
    accepts_empty_masks: ClassVar[bool] = True

    def __init__(self, fill: str = "zero") -> None:
        self.fill = check_choice("fill", fill, ("zero", "mean"))

    def transform(self, pictures: Pictures) -> Tensor:
        pixels = pictures.pixel_values
        masked = composite(pictures.saliency, pixels, fill_pictures(pixels, pictures.uniform, self.fill))
        return masked.where(pictures.annotated[:, None, None, None], pixels)

    def terms(self, batch: GuidanceBatch) -> Tensor:
        return batch.logits.new_zeros(len(batch.logits))
