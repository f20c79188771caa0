"""`hf-salguide methods`."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..guidance import guidance_class, guidance_options, list_guidance
from .common import table
from .parsing import parse


@dataclass
class MethodsArguments:
    """No options."""


def run(argv: Sequence[str]) -> int:
    """The guidance methods: formula, published weights, options, paper."""
    parse([MethodsArguments], argv, "methods", run.__doc__ or "")
    print(methods_table())
    return 0


def methods_table() -> str:
    """The family of methods as a Markdown table."""
    rows = []
    for name in list_guidance():
        cls = guidance_class(name)
        options = ", ".join(f"{option}={default!r}" for option, default in guidance_options(cls).items())
        weights = f"{cls.default_task_weight:g}, {cls.default_weight:g}"
        formula = f"`{cls.formula}`" + (" (reconstructed)" if cls.reconstructed else "")
        rows.append([f"`{name}`", formula, weights, options, cls.paper])
    return table(["method", "term of one picture", "task_weight, guidance_weight", "guidance_options", "paper"], rows)
