"""The guided step: what guidance methods need of a model, found once and gathered in one forward a micro-batch."""

from .draws import Draws
from .engines import Choice
from .forward import GuidedForward
from .gradients import reusable_graph
from .plan import Plan, make_plan, refuse_counted_views, refuse_frozen, run_options
from .saliency import step_saliency
from .state import EndOfStep, GuidanceState
from .terms import guidance_terms

__all__ = [
    "Choice",
    "Draws",
    "EndOfStep",
    "GuidanceState",
    "GuidedForward",
    "Plan",
    "guidance_terms",
    "make_plan",
    "refuse_counted_views",
    "refuse_frozen",
    "reusable_graph",
    "run_options",
    "step_saliency",
]
