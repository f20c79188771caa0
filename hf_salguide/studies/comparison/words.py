"""Figures as people read them."""

import math
from collections.abc import Sequence

UNDEFINED, NONE_POSSIBLE = "not defined", "none possible"
MOST = 1.0  # the largest difference that is possible: every metric is between 0 and 1
METRICS = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
}


def number(value: float, signed: bool = False) -> str:
    """Three decimals with a true minus sign, `+` in front of a difference; what is not finite is not defined."""
    if not math.isfinite(value):
        return UNDEFINED
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    text = text.replace("-0.000", "0.000").replace("+0.000", "0.000")
    return text.replace("-", "−")


def p_value(value: float) -> str:
    """A p-value with three decimals; `< 0.001` below that; a fourth where three hide on which side of 0.05 it is."""
    if value < 0.001:
        return "< 0.001"
    text = number(value)
    return f"{value:.4f}" if text == "0.050" else text


def smallest(value: float) -> str:
    """The smallest difference that could be found; none where it is larger than any that is possible."""
    return NONE_POSSIBLE if value > MOST else number(value)


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def with_p(value: float) -> str:
    """`p = 0.013`, `p < 0.001`."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def with_interval(value: float, low: float, high: float, signed: bool = False) -> str:
    """`0.594 [0.560, 0.630]`; the number alone where it has no interval."""
    text = number(value, signed)
    if not (math.isfinite(value) and math.isfinite(low) and math.isfinite(high)):
        return text
    return f"{text} [{number(low, signed)}, {number(high, signed)}]"


def percent(fraction: float) -> str:
    """A share in percent, without needless decimals."""
    return f"{100 * fraction:g} %"


def metric_name(metric: str) -> str:
    """A metric as people write it."""
    return METRICS.get(metric, metric.replace("_", " "))
