"""Saliency on tensors: class activation maps, normalisation, targets, distances and keyed random draws.

Pure functions; nothing here knows of a model, a data set or a trainer.
"""

from .cam import class_activation_map, grad_cam, hirescam
from .distances import squared_error
from .normalize import min_max
from .random import keyed_uniform, random_saliency
from .targets import saliency_target

__all__ = [
    "class_activation_map",
    "grad_cam",
    "hirescam",
    "keyed_uniform",
    "min_max",
    "random_saliency",
    "saliency_target",
    "squared_error",
]
