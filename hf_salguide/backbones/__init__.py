"""Backbones: one kind of classifier from timm and transformers, and the last spatial map inside it."""

from .attribution import class_maps
from .batch_norm import split_batch_norm
from .capture import FeatureCapture
from .classifier import as_classifier, set_image_size
from .data_config import DataConfig, data_config, image_processor, keep_processor
from .difference import difference_salience
from .forward import check_image_size, is_checkpointed, is_reentrant, is_sharded, logits_of, unwrap_model
from .layer import FeatureLayer
from .pooled import PooledLayer, resolve_pooled_layer, trainable_before
from .resolve import resolve_feature_layer
from .saliency import saliency_maps
from .second_order import twice_differentiable
from .tail import Tail, resolve_tail
from .tap import FeatureTap

__all__ = [
    "DataConfig",
    "FeatureCapture",
    "FeatureLayer",
    "FeatureTap",
    "PooledLayer",
    "Tail",
    "as_classifier",
    "check_image_size",
    "class_maps",
    "data_config",
    "difference_salience",
    "image_processor",
    "is_checkpointed",
    "is_reentrant",
    "is_sharded",
    "keep_processor",
    "logits_of",
    "resolve_feature_layer",
    "resolve_pooled_layer",
    "resolve_tail",
    "saliency_maps",
    "set_image_size",
    "split_batch_norm",
    "trainable_before",
    "twice_differentiable",
    "unwrap_model",
]
