"""Guidance methods: one file each, a base class and a registry."""

from .base import Guidance, GuidanceBatch
from .cyborg import Cyborg
from .none import NoGuidance
from .registry import PLAIN, get_guidance, guidance_class, guidance_options, list_guidance, register_guidance
from .saliency import batch_saliency
from .schedules import schedule_factor

__all__ = [
    "PLAIN",
    "Cyborg",
    "Guidance",
    "GuidanceBatch",
    "NoGuidance",
    "batch_saliency",
    "get_guidance",
    "guidance_class",
    "guidance_options",
    "list_guidance",
    "register_guidance",
    "schedule_factor",
]
