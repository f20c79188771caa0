"""What an evaluation reports beside `Trainer`'s own numbers, and which of it can select the best model."""

from .defaults import ALIGNMENT, CLASSIFICATION, ClassificationOfPredictions
from .evaluated import Evaluated
from .record import EvaluationRecord
from .selection import check_metric_name, check_metric_value, undefined_metrics
from .trainer import MeasuredTrainer, spread_weights

__all__ = [
    "ALIGNMENT",
    "CLASSIFICATION",
    "ClassificationOfPredictions",
    "Evaluated",
    "EvaluationRecord",
    "MeasuredTrainer",
    "check_metric_name",
    "check_metric_value",
    "spread_weights",
    "undefined_metrics",
]
