"""Classification metrics, as a module of the `evaluate` library."""

import datasets
import evaluate

from hf_salguide.metrics.classification import classification_metrics

_DESCRIPTION = "Accuracy, balanced accuracy, AUROC, average precision, calibration error; the worst group's accuracy."

_INPUTS = """
Args:
    predictions: class probabilities, (N, K).
    references: true class ids, (N,).
    groups: each picture's group, with the configuration "groups" alone: evaluate.load(path, "groups").
Returns:
    what hf_salguide.metrics.classification_metrics gives.
"""


class Classification(evaluate.Metric):
    """Configurations: `"default"`, and `"groups"` with one more input."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        if self.config_name == "groups":
            features["groups"] = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(
        self, predictions: list[list[float]], references: list[int], groups: list[str] | None = None
    ) -> dict[str, float]:
        return classification_metrics(references, predictions, groups)
