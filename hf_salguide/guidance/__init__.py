"""Guidance methods: one file each, a base class and a registry."""

from ..names import POOLED
from .actdiff import ActDiff
from .actdiff_adversarial import ActDiffAdversarial
from .base import Guidance, GuidanceBatch, Pictures, StatefulGuidance, View
from .cam_entropy import CamEntropy
from .cyborg import Cyborg
from .divisive_complement import DivisiveComplement
from .divisive_difference import DivisiveDifference
from .divisive_divergence import DivisiveDivergence
from .energy import Energy
from .gradmask import GradMask
from .map_guidance import MapGuidance
from .mask_everything import MaskEverything
from .masked_input import MaskedInput
from .none import NoGuidance
from .registry import PLAIN, get_guidance, guidance_class, guidance_options, list_guidance, register_guidance
from .rrr import RRR
from .sage import Sage
from .saliency import batch_saliency
from .schedules import ADAPTIVE, schedule_factor
from .shuffled_input import ShuffledInput

__all__ = [
    "ADAPTIVE",
    "PLAIN",
    "POOLED",
    "RRR",
    "ActDiff",
    "ActDiffAdversarial",
    "CamEntropy",
    "Cyborg",
    "DivisiveComplement",
    "DivisiveDifference",
    "DivisiveDivergence",
    "Energy",
    "GradMask",
    "Guidance",
    "GuidanceBatch",
    "MapGuidance",
    "MaskEverything",
    "MaskedInput",
    "NoGuidance",
    "Pictures",
    "Sage",
    "ShuffledInput",
    "StatefulGuidance",
    "View",
    "batch_saliency",
    "get_guidance",
    "guidance_class",
    "guidance_options",
    "list_guidance",
    "register_guidance",
    "schedule_factor",
]
