"""Backbones: one kind of classifier from timm and transformers, and the last spatial map inside it."""

from .capture import FeatureCapture, class_maps
from .classifier import as_classifier, set_image_size
from .data_config import DataConfig, data_config, image_processor
from .forward import check_image_size, unwrap_model
from .layer import FeatureLayer
from .resolve import resolve_feature_layer
from .saliency import saliency_maps

__all__ = [
    "DataConfig",
    "FeatureCapture",
    "FeatureLayer",
    "as_classifier",
    "check_image_size",
    "class_maps",
    "data_config",
    "image_processor",
    "resolve_feature_layer",
    "saliency_maps",
    "set_image_size",
    "unwrap_model",
]
