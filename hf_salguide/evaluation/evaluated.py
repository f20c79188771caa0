"""What the last evaluation of each set found, picture by picture, for whoever reports it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers.trainer_utils import EvalLoopOutput

KEPT = 1_000_000  # probabilities: intervals of larger sets would take longer than their evaluation


@dataclass(frozen=True)
class Evaluated:
    """
    One evaluation of `N` pictures.

    Attributes:
        metrics (`dict`): what was reported, without the prefix.
        pictures (`int`): `N`.
        labels (`array` of shape `(N,)`, *optional*): class ids; `None` where a picture has none, or several.
        probabilities (`array` of shape `(N, K)`, *optional*): softmax of the logits, float64; `None` with `labels`,
            and where there are too many to keep.
        alignment (`dict` of `array` of shape `(N,)`): [`~metrics.alignment_metrics`] of the predicted class's map, NaN
            where a picture has none; empty where there are no maps.
        annotated (`array` of shape `(N,)`, *optional*): boolean, which pictures have saliency.
        step (`int`): the optimizer step after which it was made.
    """

    metrics: dict[str, float]
    pictures: int
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    alignment: dict[str, np.ndarray] = field(default_factory=dict)
    annotated: np.ndarray | None = None
    step: int = 0


def evaluated(
    output: EvalLoopOutput,
    prefix: str,
    single_label: bool,
    alignment: Mapping[str, np.ndarray],
    annotated: np.ndarray | None,
    step: int,
) -> Evaluated:
    """
    What is kept of an evaluation.

    Args:
        output ([`~transformers.trainer_utils.EvalLoopOutput`]): what the loop gave.
        prefix (`str`): in front of its metrics' names.
        single_label (`bool`): whether a picture has one class of several.
        alignment, annotated: see [`Evaluated`]; left out where they are not of as many pictures.
        step (`int`): the optimizer step.
    """
    metrics = {name.removeprefix(f"{prefix}_"): value for name, value in (output.metrics or {}).items()}
    count = int(output.num_samples or 0)
    fits = annotated is not None and len(annotated) == count
    labels, probabilities = _judged(output, single_label)
    return Evaluated(
        metrics=metrics,
        pictures=count,
        labels=labels,
        probabilities=probabilities,
        alignment=dict(alignment) if fits else {},
        annotated=annotated if fits else None,
        step=step,
    )


def _judged(output: EvalLoopOutput, single_label: bool) -> tuple[Any, Any]:
    labels, logits = output.label_ids, output.predictions
    if not single_label or not isinstance(labels, np.ndarray) or not isinstance(logits, np.ndarray):
        return None, None
    classes = labels.ndim == 1 and labels.dtype.kind in "iu" and logits.ndim == 2 and len(logits) == len(labels)
    if not classes or logits.size > KEPT or not np.isfinite(logits).all():
        return None, None
    from scipy.special import softmax

    return labels, softmax(logits.astype(np.float64), axis=1)
