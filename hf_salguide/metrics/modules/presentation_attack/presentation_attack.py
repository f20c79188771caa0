"""Error rates of presentation attack detection, as a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate

from hf_salguide.metrics.presentation_attack import presentation_attack_metrics

_DESCRIPTION = "APCER, BPCER and ACER of ISO/IEC 30107-3 at a fixed threshold, and APCER at BPCER of 1, 5 and 10 %."

_INPUTS = """
Args:
    predictions: class probabilities, (N, K).
    references: true class ids, (N,).
    attack_types: each picture's attack type, with the configuration "attack_types" alone: the worst type's rates.
To compute():
    bona_fide: id of the class of genuine pictures.
    validation: labels and probabilities from which the thresholds are taken; without it, the pictures themselves.
    threshold: the fixed threshold, 0.5 by default.
Returns:
    what hf_salguide.metrics.presentation_attack_metrics gives.
"""


class PresentationAttack(evaluate.Metric):
    """Configurations: `"default"`, and `"attack_types"` with one more input."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        if self.config_name == "attack_types":
            features["attack_types"] = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[int],
        bona_fide: int,
        attack_types: list[str] | None = None,
        validation: tuple[Any, Any] | None = None,
        threshold: float = 0.5,
    ) -> dict[str, float]:
        return presentation_attack_metrics(
            references, predictions, bona_fide, attack_types, validation=validation, threshold=threshold
        )
