"""What plots and tables of a comparison are made from: arms in their order, rows of a condition, figures of runs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..comparison.records import DONE, Arm, RunRecord, Study
from .plot_style import FAMILIES, family_of

if TYPE_CHECKING:
    from ..comparison.findings import Analysis, ArmResult

SPLITS = {"in": "In-distribution", "out": "Out-of-distribution"}
_SHAPES = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "h": "hexagon",
    "^": "triangle, point up",
    "v": "triangle, point down",
    "p": "pentagon",
}
MAPS = {"energy_inside": "class map", "difference_energy_inside": "difference map"}


def map_name(alignment: str) -> str:
    """Which map an alignment is of, as people write it."""
    return MAPS.get(alignment, alignment.replace("_", " "))


def arm_numbers(analysis: "Analysis") -> dict[Arm, int]:
    """The numbers that stand for the arms in the plots and the tables: 0 is plain training, controls come last."""
    arms = sorted(dict.fromkeys(row.arm for row in analysis.comparisons), key=lambda arm: arm.is_control)
    arms = [arm for arm in arms if arm.is_plain] + [arm for arm in arms if not arm.is_plain]
    return {arm: number for number, arm in enumerate(arms, start=0 if arms and arms[0].is_plain else 1)}


def conditions(analysis: "Analysis") -> list[tuple[str, float]]:
    """The backbones and annotated fractions that were compared, each backbone's largest fraction first."""
    found = dict.fromkeys((row.backbone, row.annotated_fraction) for row in analysis.comparisons)
    backbones = list(dict.fromkeys(backbone for backbone, _ in found))
    return sorted(found, key=lambda condition: (backbones.index(condition[0]), -condition[1]))


def rows_of(analysis: "Analysis", condition: tuple[str, float], split: str) -> list["ArmResult"]:
    """The comparisons of a condition on a split, `"in"` or `"out"`, in the order of [`arm_numbers`]."""
    numbers = arm_numbers(analysis)
    rows = [
        row
        for row in analysis.comparisons
        if row.split == split and (row.backbone, row.annotated_fraction) == condition
    ]
    return sorted(rows, key=lambda row: numbers[row.arm])


def splits_of(analysis: "Analysis") -> list[str]:
    """The splits that were judged, the in-distribution one first."""
    return [split for split in SPLITS if any(row.split == split for row in analysis.comparisons)]


def finished_runs(study: Study) -> list[RunRecord]:
    """The runs that did not fail, each once, also where a run stands beside several annotated fractions."""
    return list({run.folder: run for run in study.runs if run.status == DONE}.values())


def run_value(study: Study, run: RunRecord, split: str, metric: str) -> float:
    """A figure of a run, NaN where it is not defined or the split was not judged."""
    value = run.metrics.get(study.settings["splits"].get(split) or "", {}).get(metric, math.nan)
    return math.nan if value is None else float(value)


def seed_differences(study: Study, metric: str, row: "ArmResult") -> list[float]:
    """The differences of the study's metric to plain training of the same seed, one a seed that has both."""
    values: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for run in study.runs:
        same = (run.backbone, run.annotated_fraction) == (row.backbone, row.annotated_fraction)
        if run.status == DONE and same and (run.arm == row.arm or run.arm.is_plain):
            values[run.arm.is_plain][run.seed] = run_value(study, run, row.split, metric)
    pairs = [(value, values[True][seed]) for seed, value in values[False].items() if seed in values[True]]
    return [value - plain for value, plain in pairs if math.isfinite(value - plain)]


def alignment_backbones(analysis: "Analysis") -> list[str]:
    """The backbones whose maps could be compared with the annotation."""
    return list(dict.fromkeys(each.backbone for each in analysis.correlations))


def curve_backbones(analysis: "Analysis") -> list[str]:
    """The backbones that were trained, guided, with more than one annotated fraction."""
    guided = {(row.backbone, row.annotated_fraction) for row in analysis.comparisons if not row.arm.is_plain}
    backbones = dict.fromkeys(row.backbone for row in analysis.comparisons)
    return [backbone for backbone in backbones if sum(name == backbone for name, _ in guided) > 1]


def is_of_no_share(curve: Sequence["ArmResult"]) -> bool:
    """Whether the rows of an arm are the same runs beside every annotated fraction: they use no annotation."""
    return len(curve) > 1 and bool(curve[0].values) and len({row.values for row in curve}) == 1


def family_key(analysis: "Analysis") -> str:
    """The families of the study's methods and their marks in words, for what is read beside the plots."""
    present = {family_of(arm).key for arm in arm_numbers(analysis)}
    return "; ".join(f"{family.title}: {_SHAPES[family.marker]}" for family in FAMILIES if family.key in present)
