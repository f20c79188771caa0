"""The weighted sum of the methods' terms."""

from collections.abc import Sequence

from torch import Tensor

from ..guidance import Guidance
from .forward import GuidedForward


def guidance_terms(
    forward: GuidedForward,
    methods: Sequence[Guidance],
    weights: Sequence[float],
    labels: Tensor,
    row_weight: Tensor | None,
    global_batch_size: int,
    annotated_scale: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Each method's term, its mean over the micro-batch, and their weighted sum.

    Args:
        forward ([`GuidedForward`]): has been called.
        methods (`Sequence[Guidance]`): the methods; those that transform the pictures have no term.
        weights (`Sequence[float]`): one a method.
        labels (`Tensor` of shape `(B,)`): true classes, int64.
        row_weight (`Tensor` of shape `(B,)`, *optional*): multiplies each row's terms.
        global_batch_size (`int`): pictures of the optimizer step.
        annotated_scale (`float`, *optional*, defaults to 1.0): multiplies, in the sum, the terms of methods that do
            nothing for pictures without saliency.

    Returns:
        `tuple` of the scalar sum, and a dict from each method's name to its terms `(B,)`, detached.

    Raises:
        ValueError: if a method gives anything but one number a row.
    """
    total = forward.zero()
    terms_by_name = {}
    for method, weight in zip(methods, weights, strict=True):
        if method.transforms_inputs:
            continue
        terms = method.terms(forward.batch(method, labels, global_batch_size))
        if terms.shape != labels.shape:
            raise ValueError(
                f"{type(method).__name__}.terms gave the shape {tuple(terms.shape)}; it needs one number a picture, "
                f"{tuple(labels.shape)}."
            )
        terms = terms if row_weight is None else terms * row_weight
        scale = annotated_scale if method.needs_annotation else 1.0
        total = total + weight * scale * terms.mean()
        terms_by_name[method.name] = terms.detach()
    return total, terms_by_name
