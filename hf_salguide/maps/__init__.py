"""
Saliency on tensors: class activation maps, their rivals, attention rollout, normalisation, targets, distances, views
and keyed random draws.

Pure functions; nothing here knows of a model, a data set or a trainer.
"""

from .cam import class_activation_map, grad_cam, hirescam
from .distances import (
    absolute_error,
    correlation_distance,
    energy_outside,
    entropy,
    kl_divergence,
    squared_error,
    ssim_distance,
)
from .normalize import min_max
from .random import keyed_uniform, random_saliency
from .rivals import RIVALS, check_rival, contrast_weights, one_hot, rival_weights
from .rollout import attention_rollout
from .targets import reduced_saliency, saliency_target
from .views import (
    FEATURE_DISTANCES,
    FILLS,
    composite,
    degrade_outside,
    feature_distance,
    fill_pictures,
    gaussian_blur,
    gaussian_noise,
    has_place,
    jensen_shannon,
    permute_pixels,
    unit_vectors,
)

__all__ = [
    "FEATURE_DISTANCES",
    "FILLS",
    "RIVALS",
    "absolute_error",
    "attention_rollout",
    "check_rival",
    "class_activation_map",
    "composite",
    "contrast_weights",
    "correlation_distance",
    "degrade_outside",
    "energy_outside",
    "entropy",
    "feature_distance",
    "fill_pictures",
    "gaussian_blur",
    "gaussian_noise",
    "grad_cam",
    "has_place",
    "hirescam",
    "jensen_shannon",
    "keyed_uniform",
    "kl_divergence",
    "min_max",
    "one_hot",
    "permute_pixels",
    "random_saliency",
    "reduced_saliency",
    "rival_weights",
    "saliency_target",
    "squared_error",
    "ssim_distance",
    "unit_vectors",
]
