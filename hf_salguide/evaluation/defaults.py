"""The metrics that are reported where the user asks for no others."""

from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction, PretrainedConfig
from transformers.utils import logging

from ..metrics import classification_metrics

logger = logging.get_logger(__name__)

CLASSIFICATION = (
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "calibration_error",
    "equal_error_rate",
)
ALIGNMENT = (
    "energy_inside",
    "iou",
    "map_precision",
    "map_recall",
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "spearman",
    "kl",
    "similarity",
)
DIVERGED = "the logits are not finite: the training has diverged"


def has_exclusive_classes(config: PretrainedConfig) -> bool:
    """Whether a model's configuration says that a picture has one class of several."""
    return config.num_labels > 1 and config.problem_type in (None, "single_label_classification")


class ClassificationOfPredictions:
    """
    [`~metrics.classification_metrics`] of softmax probabilities, as `Trainer` takes `compute_metrics`.

    It gives nothing where there is no one class a picture (regression, several labels a picture), and, with a warning,
    where logits are not finite, which `reason` then says. With `batch_eval_metrics=True` it collects the batches until
    the last one.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets the batches of an evaluation, such as one that was broken off, and why it gave nothing."""
        self.reason: str | None = None
        self._batches: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """
        Args:
            prediction ([`~transformers.EvalPrediction`]): logits `(N, K)` and class ids `(N,)`.
            compute_result (`bool`, *optional*, defaults to `True`): whether this is all, or the last batch.

        Returns:
            `dict` of [`CLASSIFICATION`], `equal_error_rate` for two classes only.
        """
        self._batches.append((_array(prediction.label_ids), _array(prediction.predictions)))
        if not compute_result:
            return {}
        labels, logits = (np.concatenate(parts) for parts in zip(*self._batches, strict=True))
        self.reset()
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or logits.ndim != 2 or logits.shape[1] < 2:
            return {}
        broken = int((~np.isfinite(logits).all(axis=1)).sum())
        if broken:
            self.reason = DIVERGED
            logger.warning(
                f"The logits of {broken} of {len(logits)} evaluation pictures are not finite (the training has "
                "diverged): accuracy and the other classification metrics are left out."
            )
            return {}
        from scipy.special import softmax

        return classification_metrics(labels, softmax(logits.astype(np.float64), axis=1))


def _array(values: Any) -> np.ndarray:
    """One array of what `Trainer` hands over: an array, a tensor, or a list of either, one a batch."""
    if isinstance(values, list | tuple):
        return np.concatenate([_array(value) for value in values])
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
