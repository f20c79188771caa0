"""GradMask: outside of what people marked, the picture should not move the class's margin."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from .base import Engine, Guidance, GuidanceBatch, Place, check_choice, outside
from .registry import register_guidance

# Of the picture that lies outside: what is less is the rounding of the cells' means of a full mask.
NOTHING_OUTSIDE = 1e-6


@register_guidance
class GradMask(Guidance):
    """
    GradMask (Simpson, Dutil, Bengio, Cohen, "GradMask: Reduce Overfitting by Regularizing Saliency", MIDL 2019, arXiv
    1904.07478; Viviano et al., "Saliency is a Possible Red Herring When Diagnosing Poor Generalization", ICLR 2021,
    arXiv 1910.00199).

    For a picture with `n = h * w` pixels, with `O = 1 - S`, its sum `n_out`, and the gradient `g`, over all channels,
    of the contrast `z_y - logsumexp_{j != y} z_j`, the term is `n / n_out * sum |g * O|`. With two classes the
    contrast is the papers' difference of the two logits, up to a sign that the term does not see; more classes, which
    the papers do not have, are our extension. Soft maps stay soft. A full mask counts 0.

    The papers take the plain sum over the batch, whose size depends on the batch, the picture's size and the share
    outside; `n / n_out` removes that, and the default weight is their tuned one in this form.

    With `at="features"`, a head that averages the map and applies one linear layer has the same gradient in every
    cell, whatever the picture: the term then shrinks the head's weights and says nothing about places.

    Args:
        at (`str`, *optional*, defaults to `"input"`): what the gradient is taken with respect to, the pictures
            (`"input"`) or the map of the feature layer (`"features"`), on whose grid `n` counts cells.
        norm (`str`, *optional*, defaults to `"l1"`): `"l1"`, as the authors' code, or `"l2"`,
            `sqrt(n * n / n_out * sum (g * O)^2)`, with a gradient of 0 at 0.
        contrast (`str`, *optional*, defaults to `"logsumexp"`): the other classes' part, `"logsumexp"` or `"max"`.
        reduction (`str`, *optional*, defaults to `"normalised"`): `"normalised"`, or `"reference"`, the papers' sum
            of `|g * O|` (or of its norms) over all pictures of an optimizer step.
        classes (`list[int]`, *optional*): ids of the true classes that it is applied to, such as that of the disease;
            default: all.
        gradient_engine (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"double_backward"` or
            `"finite_difference"`, see [`~steps.engines.choose_engine`].

    Raises:
        ValueError: for an unknown value of an option, or finite differences at the features.
    """

    name: ClassVar[str] = "gradmask"
    paper: ClassVar[str] = (
        "Simpson et al., GradMask: Reduce Overfitting by Regularizing Saliency, MIDL 2019, arXiv 1904.07478; "
        "Viviano et al., Saliency is a Possible Red Herring, ICLR 2021, arXiv 1910.00199"
    )
    formula: ClassVar[str] = "n / n_out * sum(|(1 - S) * d(z_y - logsumexp(z_others)) / dx|)"
    default_weight: ClassVar[float] = 3.25
    default_task_weight: ClassVar[float] = 1.0
    cost: ClassVar[str] = "gradient"
    needs_maps: ClassVar[bool] = False
    accepts_empty_masks: ClassVar[bool] = True

    def __init__(
        self,
        at: Place = "input",
        norm: str = "l1",
        contrast: str = "logsumexp",
        reduction: str = "normalised",
        classes: Sequence[int] | None = None,
        gradient_engine: Engine = "auto",
    ) -> None:
        self.at, self.gradient_engine = check_gradient(at, gradient_engine)
        self.gradient_at = self.at
        self.norm = check_choice("norm", norm, ("l1", "l2"))
        self.contrast = check_choice("contrast", contrast, ("logsumexp", "max"))
        self.reduction = check_choice("reduction", reduction, ("normalised", "reference"))
        self.classes = _check_classes(classes)

    def terms(self, batch: GuidanceBatch) -> Tensor:
        counts = batch.annotated & self._guided(batch)
        if self.at == "input" and not len(batch.rows):  # two passes for nothing
            return torch.zeros_like(batch.logits[:, 0])
        terms = batch.gradient_penalty(partial(self._margin, batch.labels), partial(self._penalty, batch))
        return torch.where(counts, terms, 0.0)

    def check_classes(self, count: int) -> None:
        if self.classes is not None and max(self.classes) >= count:
            raise ValueError(
                f"classes={self.classes} has {max(self.classes)}, and the model's classes are 0 to {count - 1}; give "
                "ids of id2label."
            )

    def _guided(self, batch: GuidanceBatch) -> Tensor:
        if self.classes is None:
            return torch.ones_like(batch.annotated)
        self.check_classes(batch.logits.shape[1])
        return torch.isin(batch.labels, torch.tensor(self.classes, device=batch.labels.device))

    def _margin(self, labels: Tensor, logits: Tensor) -> Tensor:
        true = labels.unsqueeze(1)
        others = logits.scatter(1, true, float("-inf"))
        other = others.logsumexp(dim=1) if self.contrast == "logsumexp" else others.amax(dim=1)
        return logits.gather(1, true).squeeze(1) - other

    def _penalty(self, batch: GuidanceBatch, gradient: Tensor) -> Tensor:
        off, scale = place_outside(batch.saliency, gradient)
        factor: Tensor | int = scale if self.reduction == "normalised" else batch.global_batch_size
        if self.norm == "l1":
            return factor * (gradient * off).abs().sum(dim=(1, 2, 3))
        squares = (gradient * off).square().sum(dim=(1, 2, 3))
        length = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        if self.reduction == "reference":
            return factor * length
        return (scale * gradient[0, 0].numel()).sqrt() * length


def place_outside(saliency: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """
    What of a gradient lies outside, and what makes a sum over it independent of how much that is.

    Args:
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1].
        gradient (`Tensor` of shape `(B, C, h, w)`): the gradient that is penalised.

    Returns:
        `tuple` of `O = 1 - S` in [0, 1], `(B, 1, h, w)`, and of `n / n_out`, `(B,)`: the number of cells over the sum
        of `O`. Both are 0 where nothing is outside.
    """
    off = outside(saliency, (gradient.shape[2], gradient.shape[3])).unsqueeze(1)
    share = off.mean(dim=(1, 2, 3))
    some = share > NOTHING_OUTSIDE
    return torch.where(some[:, None, None, None], off, 0.0), torch.where(some, 1 / torch.where(some, share, 1.0), 0.0)


def check_gradient(at: Place, gradient_engine: Engine) -> tuple[Place, Engine]:
    """
    Checks what a gradient is taken with respect to, and how it is differentiated.

    Raises:
        ValueError: for an unknown value, or finite differences at the features.
    """
    check_choice("at", at, ("input", "features"))
    check_choice("gradient_engine", gradient_engine, ("auto", "double_backward", "finite_difference"))
    if at == "features" and gradient_engine == "finite_difference":
        raise ValueError(
            'gradient_engine="finite_difference" shifts the pictures and cannot go with at="features"; take '
            '"double_backward" or "auto".'
        )
    return at, gradient_engine


def _check_classes(classes: Sequence[int] | None) -> list[int] | None:
    if classes is None:
        return None
    ids = list(classes) if isinstance(classes, list | tuple) else []
    if not ids or any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
        raise ValueError(f"classes={classes!r} has to be a list of class ids, such as [1], or None for all.")
    return ids
