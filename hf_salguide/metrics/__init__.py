"""Metrics: pure functions for classification and for the alignment of maps with human saliency."""

from .alignment import energy_inside
from .classification import auroc, classification_metrics

__all__ = ["auroc", "classification_metrics", "energy_inside"]
