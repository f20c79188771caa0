"""The base class of guidance methods, and what a method sees of a micro-batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GuidanceBatch:
    """
    What a guidance method sees of one micro-batch of `B` pictures and `K` classes.

    Attributes:
        logits (`Tensor` of shape `(B, K)`): float32, in the graph.
        labels (`Tensor` of shape `(B,)`): true classes, int64.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency, float32 in [0, 1], zeros in rows without one.
        annotated (`Tensor` of shape `(B,)`): boolean, `True` in rows that count: those with a saliency map, and, with
            `empty_mask="skip"`, with one that is not empty.
        map_of (`Callable`): takes weights `(B, K)` and gives the map `(B, h, w)` of the scalar
            `sum_k weights[b, k] * logits[b, k]`, float32, signed, differentiable when the model trains.
    """

    logits: Tensor
    labels: Tensor
    saliency: Tensor
    annotated: Tensor
    map_of: Callable[[Tensor], Tensor]

    def class_map(self, classes: Tensor) -> Tensor:
        """
        The map of one class a sample.

        Args:
            classes (`Tensor` of shape `(B,)`): class ids, int64.

        Returns:
            `Tensor` of shape `(B, h, w)`, signed, in the scale of the logit.
        """
        return self.map_of(F.one_hot(classes, self.logits.shape[1]).to(self.logits.dtype))


class Guidance(ABC):
    """
    A guidance method: a term of the loss, one number a sample.

    A subclass sets the class attributes, takes its own choices as keyword arguments of `__init__`, checks them there
    and implements [`~Guidance.terms`]; `@register_guidance` makes it known by its `name`.

    Class attributes:
        name (`str`): what users write in `guidance=`.
        paper (`str`): authors, title, venue, arXiv id.
        formula (`str`): the term, in one line of text.
        reconstructed (`bool`): whether the formula had to be reconstructed because the paper's is not public.
        default_weight, default_task_weight (`float`): the published weights of the term and of the task's loss.
        transforms_inputs (`bool`): whether it changes the pictures instead of adding a term.
        needs_annotation (`bool`): whether it does nothing for pictures without saliency.
        draws (`bool`): whether it draws random numbers.
        needs_maps (`bool`): whether it asks for maps of the model, [`GuidanceBatch.map_of`].
        accepts_empty_masks (`bool`): whether `empty_mask="penalise_all"` has a meaning for it: it penalises what is
            outside the mask, and needs no target to match.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]
    reconstructed: ClassVar[bool] = False
    default_weight: ClassVar[float] = 1.0
    default_task_weight: ClassVar[float] = 1.0
    transforms_inputs: ClassVar[bool] = False
    needs_annotation: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = True
    accepts_empty_masks: ClassVar[bool] = False

    @abstractmethod
    def terms(self, batch: GuidanceBatch) -> Tensor:
        """
        The method's term, unweighted.

        Args:
            batch ([`GuidanceBatch`]): logits, labels, saliency and maps of one micro-batch.

        Returns:
            `Tensor` of shape `(B,)`, float32: 0, with a gradient of exactly 0, in rows that do not count.
        """

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({options})"


def check_choice(argument: str, value: Any, choices: tuple[str, ...]) -> str:
    """
    Checks an option that takes one of a few words.

    Raises:
        ValueError: naming the option, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{argument}={value!r} is not known; choose one of {', '.join(map(repr, choices))}.")
    return value
