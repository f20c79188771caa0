"""A comparison's figures as people read them: numbers, the rows of its tables, words for its plots."""

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..comparison.paths import paths_of, without_paths
from ..comparison.records import Study
from ..comparison.words import UNDEFINED, metric_name, number, p_value, percent, smallest, with_interval
from .plot_rows import SPLITS, arm_numbers, is_of_no_share, map_name, rows_of, splits_of

if TYPE_CHECKING:
    from ..comparison.findings import Analysis, ArmResult, Control, Correlation

ARM, SEEDS, MEAN, DIFFERENCE = "Arm", "Seeds", "Mean [interval]", "Difference to plain [interval]"
P, HOLM, RANKS = "p", "p (Holm)", "p (signed ranks)"
SMALLEST, SMALLEST_HOLM = "Smallest difference it could find", "Smallest difference, Holm"


def table_columns(analysis: "Analysis") -> list[str]:
    """The columns of the table; the rank test's where it was made."""
    ranks = [RANKS] if any(math.isfinite(row.p_signed_rank) for row in analysis.comparisons) else []
    return [ARM, SEEDS, MEAN, DIFFERENCE, P, HOLM, *ranks, SMALLEST, SMALLEST_HOLM]


def comparison_row(row: "ArmResult", arm_number: int) -> dict[str, str]:
    """A comparison as the cells of the table, by column; what is not defined says why where it takes a few words."""
    cells = dict.fromkeys((P, HOLM, RANKS, SMALLEST, SMALLEST_HOLM), "–")
    cells |= {
        "number": str(arm_number),
        ARM: row.arm.name,
        SEEDS: f"{row.seeds} ({row.failed} failed)" if row.failed else f"{row.seeds}",
        MEAN: with_interval(row.mean, row.low, row.high),
        DIFFERENCE: "reference",
    }
    if not row.arm.is_plain:
        cells[DIFFERENCE] = with_interval(row.difference, row.difference_low, row.difference_high, signed=True)
        cells |= {P: p_value(row.p_value), HOLM: p_value(row.p_holm), RANKS: p_value(row.p_signed_rank)}
        cells |= {SMALLEST: smallest(row.smallest_difference), SMALLEST_HOLM: smallest(row.smallest_difference_holm)}
    reason = {0: "no pair of runs", 1: "one seed"}.get(row.seeds)
    if reason and not row.arm.is_plain:
        cells |= {name: cells[name].replace(UNDEFINED, f"{UNDEFINED} ({reason})") for name in (DIFFERENCE, P)}
    return cells


def table_rows(analysis: "Analysis", condition: tuple[str, float], split: str, controls: bool) -> list[dict[str, str]]:
    """The rows of the table of a condition and a split: plain training and the methods, or the controls."""
    numbers = arm_numbers(analysis)
    rows = rows_of(analysis, condition, split)
    return [comparison_row(row, numbers[row.arm]) for row in rows if row.arm.is_control == controls]


def control_row(control: "Control", several: bool) -> dict[str, str]:
    """A method against its control as the cells of a table; where `several` are told apart, how they were trained."""
    trained = {"Trained": condition_name((control.backbone, control.annotated_fraction))} if several else {}
    return {
        "Method": control.arm.name,
        "Control": control.control.name,
        "Test set": SPLITS[control.split],
        **trained,
        SEEDS: str(control.seeds),
        "Method − control [interval]": with_interval(control.difference, control.low, control.high, signed=True),
        P: p_value(control.p_value),
        HOLM: p_value(control.p_holm),
        SMALLEST: smallest(control.smallest_difference),
    }


def correlation_words(correlation: "Correlation", metric: str) -> str:
    """A correlation as a sentence."""
    where = f"{SPLITS[correlation.split]}, {map_name(correlation.alignment)}"
    elsewhere = "" if correlation.alignment_split == correlation.split else ", alignment measured in distribution"
    runs = f"{correlation.runs} runs of {correlation.arms} arms" + (
        f"; {correlation.left_out} more have no alignment" if correlation.left_out else ""
    )
    over = _correlation(correlation.pearson, correlation.low, correlation.high)
    within = _correlation(correlation.within_arms, correlation.within_low, correlation.within_high)
    return (
        f"{where} ({correlation.backbone}, {runs}{elsewhere}): correlation of energy inside with "
        f"{metric_name(metric)} {over}; within the arms {within}."
    )


def _correlation(value: float, low: float, high: float) -> str:
    told = with_interval(value, low, high, signed=True)
    if not math.isfinite(low + high):
        return told
    return f"{told}, {'not told apart from 0' if low <= 0 <= high else 'above 0' if low > 0 else 'below 0'}"


def condition_name(condition: tuple[str, float]) -> str:
    """`resnet18, 25 % of the annotation`."""
    backbone, fraction = condition
    return f"{backbone}, {'all' if fraction == 1 else percent(fraction)} of the annotation"


def settings_rows(settings: Mapping[str, Any], study: Study | None = None) -> list[tuple[str, str]]:
    """The settings as pairs of a dotted key and a text, without paths."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = _setting(str(key), study)
        if isinstance(value, Mapping):
            rows += [(f"{name}.{inner}", text) for inner, text in settings_rows(value, study)]
        else:
            rows.append((name, _setting(value, study)))
    return rows


def _setting(value: Any, study: Study | None) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item, study) for item in value) or "none"
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else UNDEFINED
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_setting(item, study)}" for key, item in value.items())
    if isinstance(value, PurePath) or (isinstance(value, str) and Path(value).is_absolute()):
        return PurePath(value).name
    return without_paths(str(value), paths_of(study) if study else ())


def data_rows(settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """The splits and what is in them, for a table."""
    roles = {"train": "training", "validation": "selection", "in": "test, in distribution"}
    roles["out"] = "test, out of distribution"
    used: dict[str, list[str]] = {}
    for role, split in settings["splits"].items():
        if split is not None:
            used.setdefault(split, []).append(roles.get(role, role))
    rows = []
    for split, facts in (settings.get("rows") or {}).items():
        classes = ", ".join(f"{name} {count}" for name, count in facts.get("classes", {}).items())
        counts = [str(facts.get(key, "not recorded")) for key in ("pictures", "annotated")]
        values = (split, ", ".join(used.get(split, ["not used"])), *counts, classes)
        rows.append(dict(zip(("Split", "Used for", "Pictures", "Annotated", "Classes"), values, strict=True)))
    return rows


def hyperparameter_rows(study: Study) -> list[dict[str, str]]:
    """What was set for an arm's runs and is not the same for all arms; arms without such a thing are left out."""
    told = {run.arm: {key: _setting(value, study) for key, value in run.hyperparameters.items()} for run in study.runs}
    common = set.intersection(*(set(each.items()) for each in told.values())) if told else set()
    rows = []
    for arm, each in told.items():
        own = ", ".join(f"{key} = {value}" for key, value in each.items() if (key, value) not in common)
        if own:
            rows.append({"Arm": arm.name, "Hyper-parameters of its own": own})
    return rows


def failure_rows(study: Study, analysis: "Analysis") -> list[dict[str, str]]:
    """The runs that failed and the first line of their message, without paths, for a table."""
    known = paths_of(study)
    return [
        {
            "Arm": run.arm.name,
            "Seed": str(run.seed),
            "Annotated": percent(run.annotated_fraction),
            "Backbone": without_paths(run.backbone, known),
            "Message": without_paths(run.error.strip().partition("\n")[0] or "no message", known),
        }
        for run in analysis.failures
    ]


def settings_table(study: Study) -> list[dict[str, str]]:
    """The settings for a table, those apart that have a table of their own."""
    settings = {key: value for key, value in study.settings.items() if key != "rows"}
    return [{"Setting": key, "Value": value} for key, value in settings_rows(settings, study)]


def differences_words(analysis: "Analysis", condition: tuple[str, float]) -> str:
    """What the plot of the differences shows, arm by arm."""
    parts = []
    for split in splits_of(analysis):
        rows = [row for row in rows_of(analysis, condition, split) if not row.arm.is_plain]
        listed = (
            f"{row.arm.name} {with_interval(row.difference, row.difference_low, row.difference_high, signed=True)}"
            for row in rows
        )
        parts.append(f"{SPLITS[split]}: {'; '.join(listed)}.")
    return f"Differences to plain training, {condition_name(condition)}. {' '.join(parts)}"


def curve_words(analysis: "Analysis", backbone: str, split: str) -> str:
    """What the curves over the annotated fraction show, arm by arm."""
    parts = []
    rows = [row for row in analysis.comparisons if row.split == split and row.backbone == backbone]
    for arm in dict.fromkeys(row.arm for row in rows):
        curve = sorted((row for row in rows if row.arm == arm), key=lambda row: row.annotated_fraction)
        if is_of_no_share(curve):
            parts.append(f"{arm.name} {number(curve[0].mean)}, which uses no annotation")
            continue
        points = (f"{number(row.mean)} at {percent(row.annotated_fraction)}" for row in curve)
        parts.append(f"{arm.name} {', '.join(points)}")
    return f"{SPLITS[split]}, {backbone}, by the annotated share: {'; '.join(parts)}."


def markdown_cell(text: str) -> str:
    """A text that stays in its cell of a Markdown table."""
    text = " ".join(text.split())
    for character, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("_", "\\_"), ("*", "\\*")):
        text = text.replace(character, escaped)
    return text
