"""Whether `metric_for_best_model` names something that is reported, and that has a value."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from .defaults import ALIGNMENT, CLASSIFICATION

SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
REASONS = {
    **dict.fromkeys(CLASSIFICATION, "the evaluation set does not hold pictures of every class"),
    **dict.fromkeys(
        ALIGNMENT,
        "it is defined for no annotated picture (empty masks, or maps that are constant or nowhere positive)",
    ),
}


def check_metric_name(selected: str, names: Sequence[str], sets: Sequence[str] = ()) -> None:
    """
    Refuses a `metric_for_best_model` that no evaluation will report.

    Args:
        selected (`str`): the argument, with or without `eval_` in front.
        names (`Sequence[str]`): the metrics that are reported on each evaluation set, without a prefix.
        sets (`Sequence[str]`, *optional*): the names of the evaluation sets, where there are several.

    Raises:
        ValueError: with the nearest names.
    """
    prefixes = [f"{part}_" for part in sets] or [""]
    reported = [f"{prefix}{name}" for prefix in prefixes for name in names]
    name = selected.removeprefix("eval_")
    if name in reported:
        return
    nearest = [each for each in reported if each.endswith(f"_{name}")] or get_close_matches(name, reported, n=3)
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    left_out = set(ALIGNMENT) - set(names)
    if name in {f"{prefix}{each}" for prefix in prefixes for each in left_out}:
        hint = "eval_alignment=False leaves the alignment out; set it to True. "
    raise ValueError(
        f'metric_for_best_model="{selected}" is not among the metrics of the evaluation. {hint}They are '
        f"{', '.join(names)}{', each after the name of its set: ' if sets else ''}{', '.join(sets)}; for others, give "
        "the trainer a compute_metrics."
    )


def check_metric_value(selected: str, metrics: Mapping[str, float], prefix: str, reason: str | None = None) -> None:
    """
    Refuses to go on where the metric that selects the best model has no value: no model would ever be the best.

    Args:
        selected (`str`): `metric_for_best_model`, with or without `eval_` in front.
        metrics (`dict`): what an evaluation reports, with `prefix` in front.
        prefix (`str`): `"eval"`, with the set's name where there are several.
        reason (`str`, *optional*): why the alignment was left out, where it is known.

    Raises:
        ValueError: for one of the default metrics that is NaN or left out; says why.
    """
    full = selected if selected.startswith("eval_") else f"eval_{selected}"
    name = full.removeprefix(f"{prefix}_")
    if name not in REASONS or math.isfinite(metrics.get(full, math.nan)):
        return
    raise ValueError(
        f'metric_for_best_model="{selected}" is not defined on this evaluation set: '
        f"{(reason if name in ALIGNMENT else None) or REASONS[name]}. Select by another metric, such as "
        f'"{prefix.removeprefix("eval").removeprefix("_") + "_" if prefix != "eval" else ""}loss", or give another '
        "evaluation set."
    )


def undefined_metrics(metrics: Mapping[str, float], prefix: str) -> list[str]:
    """What is to be said of the default metrics that are NaN, one sentence a reason."""
    names = [name for name in REASONS if math.isnan(metrics.get(f"{prefix}_{name}", 0.0))]
    return [
        f"{', '.join(f'{prefix}_{name}' for name in names if REASONS[name] == reason)} not defined: {reason}."
        for reason in dict.fromkeys(REASONS[name] for name in names)
    ]
