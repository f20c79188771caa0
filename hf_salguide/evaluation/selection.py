"""Whether `metric_for_best_model` names something that is reported, and that has a value."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from .defaults import ALIGNMENT, DIVERGED

SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
NOT_EVERY_CLASS = "the evaluation set does not hold pictures of every class"
NO_PICTURE = "it is defined for no annotated picture (empty masks, or maps that are constant or nowhere positive)"


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


def check_metric_value(selected: str, metrics: Mapping[str, float], prefix: str, reasons: Mapping[str, str]) -> None:
    """
    Refuses to go on where the metric that selects the best model has no value: no model would ever be the best.

    Args:
        selected (`str`): `metric_for_best_model`, with or without `eval_` in front.
        metrics (`dict`): what an evaluation reports, with `prefix` in front.
        prefix (`str`): `"eval"`, with the set's name where there are several.
        reasons (`dict`): why a metric of ours would have no value, by its name; others are not judged.

    Raises:
        ValueError: for one of these that is not finite or left out; says why.
    """
    full = selected if selected.startswith("eval_") else f"eval_{selected}"
    name = full.removeprefix(f"{prefix}_")
    if name not in reasons or math.isfinite(metrics.get(full, math.nan)):
        return
    remedy = (
        "Train with a smaller learning_rate, or start from weights that are finite"
        if reasons[name] == DIVERGED
        else "Select by another metric, such as "
        f'"{prefix.removeprefix("eval").removeprefix("_") + "_" if prefix != "eval" else ""}loss", or give another '
        "evaluation set"
    )
    raise ValueError(
        f'metric_for_best_model="{selected}" is not defined in this evaluation: {reasons[name].rstrip(".")}. {remedy}.'
    )


def undefined_metrics(metrics: Mapping[str, float], prefix: str, reasons: Mapping[str, str]) -> list[str]:
    """What is to be said of metrics of ours that are NaN, a sentence a reason; `reasons` as [`check_metric_value`]."""
    names = [name for name in reasons if math.isnan(metrics.get(f"{prefix}_{name}", 0.0))]
    return [
        f"{', '.join(f'{prefix}_{name}' for name in names if reasons[name] == reason)} not defined: "
        f"{reason.rstrip('.')}."
        for reason in dict.fromkeys(reasons[name] for name in names)
    ]
