"""The guided step: what guidance methods need of a model, found once and gathered in one forward a micro-batch."""

from .draws import Draws
from .engines import Choice
from .forward import GuidedForward
from .gradients import guarded_hooks, reusable_graph
from .plan import Plan, as_checkpointed, make_plan, refuse_counted_views, refuse_frozen, run_options
from .saliency import carried_size, step_saliency
from .sharded import kept_whole, refuse_sharded, sharded_engines, sharding_of
from .state import EndOfStep, GuidanceState
from .terms import guidance_terms

__all__ = [
    "Choice",
    "Draws",
    "EndOfStep",
    "GuidanceState",
    "GuidedForward",
    "Plan",
    "as_checkpointed",
    "carried_size",
    "guarded_hooks",
    "guidance_terms",
    "kept_whole",
    "make_plan",
    "refuse_counted_views",
    "refuse_frozen",
    "refuse_sharded",
    "reusable_graph",
    "run_options",
    "sharded_engines",
    "sharding_of",
    "step_saliency",
]
