"""Recognition of what was never seen, as a module of the `evaluate` library."""

from typing import Literal

import datasets
import evaluate

from hf_salguide.metrics.open_set import open_set_metrics

_DESCRIPTION = "AUROC and false positive rate at 95 % true positive rate of pictures of kinds never seen in training."

_INPUTS = """
Args:
    predictions: one score a picture, higher for unknown, (N,), as of hf_salguide.metrics.unknown_scores.
    references: whether each picture is of a kind never seen, (N,).
To compute():
    positive: "unknown" (default) or "known", the kind that is positive in the rates.
Returns:
    what hf_salguide.metrics.open_set_metrics gives.
"""


class OpenSet(evaluate.Metric):
    """One score a picture, so that scores of any kind can be compared."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("bool")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(
        self, predictions: list[float], references: list[bool], positive: Literal["unknown", "known"] = "unknown"
    ) -> dict[str, float]:
        return open_set_metrics(references, scores=predictions, positive=positive)
