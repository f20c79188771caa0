"""The plots of a comparison's report: inline SVG, wide and narrow, with a caption and with words for who sees none."""

from typing import TYPE_CHECKING

from markupsafe import Markup

from ..comparison.paths import paths_of, without_paths
from ..comparison.records import Study
from ..comparison.words import MOST, metric_name
from . import text as words
from .plot_rows import SPLITS, alignment_backbones, conditions, curve_backbones, family_key, rows_of
from .plot_style import inline_svg
from .plots import Painter, all_plots

if TYPE_CHECKING:
    from ..comparison.findings import Analysis

ReportPlot = dict[str, str]  # name, title, caption, and the SVGs wide and narrow, of which the style sheet shows one


def report_plots(study: Study, analysis: "Analysis") -> dict[str, list[ReportPlot]]:
    """
    The plots by kind.

    Returns:
        `dict`: `differences`, one a condition that has methods; `alignment`, one a backbone; `fractions`, one a
        backbone and split, where there are several fractions.
    """
    plots: dict[str, list[ReportPlot]] = {"differences": [], "alignment": [], "fractions": []}
    tell = {"differences": _differences, "alignment": _alignment, "fractions": _fractions}
    known = paths_of(study)
    for name, painter in all_plots(study, analysis):
        kind, _, which = name.partition("-")
        title, caption, told = (without_paths(text, known) for text in tell[kind](analysis, which))
        plots[kind].append({"name": name, "title": title, "caption": caption, **_drawn(name, painter, told)})
    return plots


def _drawn(name: str, painter: Painter, told: str) -> dict[str, Markup]:
    sizes = {"wide": False, "narrow": True}
    return {size: Markup(inline_svg(painter(narrow), f"{name}-{size}", told)) for size, narrow in sizes.items()}


def _differences(analysis: "Analysis", which: str) -> tuple[str, str, str]:
    caption = (
        "Differences to plain training of the same seed. Filled mark: mean over the seeds (hollow: a control); line: "
        "its interval; circles: the single seeds; grey bar: differences smaller than what the study would find with a "
        "probability of 0.8."
    )
    condition = conditions(analysis)[int(which)]
    rows = [row for split in SPLITS for row in rows_of(analysis, condition, split)]
    if any(row.smallest_difference > MOST for row in rows):
        caption += f" A bar from −{MOST:g} to +{MOST:g}: no possible difference would be found."
    return words.condition_name(condition), caption, words.differences_words(analysis, condition)


def _alignment(analysis: "Analysis", which: str) -> tuple[str, str, str]:
    backbone = alignment_backbones(analysis)[int(which)]
    shown = [each for each in analysis.correlations if each.backbone == backbone]
    told = " ".join(words.correlation_words(each, analysis.metric) for each in shown)
    families = family_key(analysis)
    caption = (
        "Small marks: single runs; large marks: means of the arms, with their numbers in the table; hollow: controls. "
        f"{families[:1].upper()}{families[1:]}."
    )
    return backbone, caption, f"Scatter plot of {metric_name(analysis.metric)} against alignment. {told}"


def _fractions(analysis: "Analysis", which: str) -> tuple[str, str, str]:
    index, _, split = which.partition("-")
    backbone = curve_backbones(analysis)[int(index)]
    caption = (
        "Over the share of the annotated training pictures whose saliency was used. Mark: mean over the seeds; line: "
        "its interval; dashed: plain training (grey), and methods that use no annotation."
    )
    title = f"{SPLITS[split]}, {backbone}, {metric_name(analysis.metric)}"
    return title, caption, words.curve_words(analysis, backbone, split)
