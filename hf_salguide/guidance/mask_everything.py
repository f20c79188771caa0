"""Mask everything: the model never sees what people did not mark, in training or in evaluation."""

from typing import ClassVar

from .masked_input import MaskedInput
from .registry import register_guidance


@register_guidance
class MaskEverything(MaskedInput):
    """
    Mask everything ("maskall", a control of Viviano, Simpson, Dutil, Bengio, Cohen, "Saliency is a Possible Red
    Herring When Diagnosing Poor Generalization", ICLR 2021, arXiv 1910.00199).

    Annotated pictures are replaced by `S * x` in training and in evaluation, so that evaluation needs saliency: what
    can be reached where only the salient part matters, not a method that can be deployed. Otherwise it is
    [`MaskedInput`].

    Args:
        fill (`str`, *optional*, defaults to `"zero"`): what is put outside, `"zero"` or `"mean"` (the picture's own
            mean colour): `S * x + (1 - S) * fill`.
    """

    name: ClassVar[str] = "mask_everything"
    formula: ClassVar[str] = "x -> S*x in training and in evaluation"
    transforms_evaluation: ClassVar[bool] = True
