"""`hf-salguide methods`."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..guidance import guidance_class, guidance_options, list_guidance
from .common import table
from .parsing import parse


@dataclass
class MethodsArguments:
    """No options."""


COSTS = {
    "none": "that of the plain step",
    "map": "a map of the forward that is run anyway",
    "views": "more pictures in the forward, for annotated rows alone",
    "gradient": "a gradient with respect to the pictures and its derivative; with `at='features'` as `map`",
}


def run(argv: Sequence[str]) -> int:
    """The guidance methods: formula, cost, published weights, options, paper."""
    parse([MethodsArguments], argv, "methods", run.__doc__ or "")
    print(methods_table())
    print("\nCost of a step beside the plain one:")
    for name, text in COSTS.items():
        print(f"  {name}: {text}")
    return 0


def methods_table() -> str:
    """The family of methods as a Markdown table."""
    rows = []
    for name in list_guidance():
        cls = guidance_class(name)
        options = ", ".join(f"{option}={default!r}" for option, default in guidance_options(cls).items())
        weights = "–" if cls.transforms_inputs else f"{cls.default_task_weight:g}, {cls.default_weight:g}"
        formula = f"`{cls.formula}`" + (" (reconstructed)" if cls.reconstructed else "")
        rows.append([f"`{name}`", formula, cls.cost, weights, options, cls.paper])
    columns = ["method", "term of one picture", "cost", "task_weight, guidance_weight", "guidance_options", "paper"]
    return table(columns, rows)
