"""Right for the Right Reasons: outside of what people marked, the picture should not move the log-probabilities."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from .base import Engine, Guidance, GuidanceBatch, Place, check_choice
from .gradmask import check_gradient, place_outside
from .registry import register_guidance


@register_guidance
class RRR(Guidance):
    """
    Right for the Right Reasons (Ross, Hughes, Doshi-Velez, "Right for the Right Reasons: Training Differentiable
    Models by Constraining their Explanations", IJCAI 2017, arXiv 1703.03717).

    For a picture with `n = h * w` pixels, with `O = 1 - S`, its sum `n_out`, and the gradient `g`, over all channels,
    of `sum_k log p_k`, the term is `n * n / n_out * sum (g * O)^2`. Any number of classes. Soft maps stay soft. A
    full mask counts 0.

    With two classes `g = (p_1 - p_0) * d(z_0 - z_1)/dx`: the term is GradMask's gradient, squared and weighted by the
    confidence, and an undecided model (`p = 1/2`) has a term of 0.

    Where it departs: the paper takes the plain sum over the batch; `n * n / n_out` removes its dependence on the
    batch, the picture's size and the share outside, and the default weight is a published one in this form. Viviano et
    al.'s code takes `log(p + 1e-11)`, which loses the gradient of confident pictures; here it is the exact
    log-softmax.

    With `at="features"`, a head that averages the map and applies one linear layer has the same gradient in every
    cell: the term then says nothing about places.

    Args:
        at (`str`, *optional*, defaults to `"input"`): what the gradient is taken with respect to, the pictures
            (`"input"`) or the map of the feature layer (`"features"`), on whose grid `n` counts cells.
        reduction (`str`, *optional*, defaults to `"normalised"`): `"normalised"`, or `"reference"`, the paper's sum
            of `(g * O)^2` over all pictures of an optimizer step.
        gradient_engine (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"double_backward"` or
            `"finite_difference"`, see [`~steps.engines.choose_engine`].

    Raises:
        ValueError: for an unknown value of an option, or finite differences at the features.
    """

    name: ClassVar[str] = "rrr"
    paper: ClassVar[str] = "Ross et al., Right for the Right Reasons, IJCAI 2017, arXiv 1703.03717"
    formula: ClassVar[str] = "n * n / n_out * sum(((1 - S) * d(sum_k log p_k) / dx)^2)"
    default_weight: ClassVar[float] = 0.2
    default_task_weight: ClassVar[float] = 1.0
    cost: ClassVar[str] = "gradient"
    needs_maps: ClassVar[bool] = False
    accepts_empty_masks: ClassVar[bool] = True

    def __init__(self, at: Place = "input", reduction: str = "normalised", gradient_engine: Engine = "auto") -> None:
        self.at, self.gradient_engine = check_gradient(at, gradient_engine)
        self.gradient_at = self.at
        self.reduction = check_choice("reduction", reduction, ("normalised", "reference"))

    def terms(self, batch: GuidanceBatch) -> Tensor:
        if self.at == "input" and not len(batch.rows):  # two passes for nothing
            return torch.zeros_like(batch.logits[:, 0])
        terms = batch.gradient_penalty(_log_probabilities, partial(self._penalty, batch))
        return torch.where(batch.annotated, terms, 0.0)

    def _penalty(self, batch: GuidanceBatch, gradient: Tensor) -> Tensor:
        off, scale = place_outside(batch.saliency, gradient)
        squares = (gradient * off).square().sum(dim=(1, 2, 3))
        if self.reduction == "reference":
            return batch.global_batch_size * squares
        return gradient[0, 0].numel() * scale * squares


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=1).sum(dim=1)
