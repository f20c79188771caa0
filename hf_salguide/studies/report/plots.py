"""The plots of a comparison: differences to plain training, alignment against generalisation, annotated fractions."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comparison.records import Arm, Study
from ..comparison.words import MOST, metric_name
from .plot_rows import (
    SPLITS,
    alignment_backbones,
    arm_numbers,
    conditions,
    curve_backbones,
    finished_runs,
    is_of_no_share,
    map_name,
    rows_of,
    run_value,
    seed_differences,
    splits_of,
)
from .plot_style import LIGHT, draw, family_of, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison.findings import Analysis, ArmResult, Correlation


def forest_plot(study: Study, analysis: "Analysis", condition: tuple[str, float], narrow: bool = False) -> "Figure":
    """
    Draws each arm's difference to plain training: mean, interval, and a dot a seed.

    The grey bar behind an arm spans the differences that the study was too small to find, at most all that are
    possible.

    Args:
        study ([`Study`]): the runs.
        analysis ([`Analysis`]): their statistics.
        condition (`tuple`): a backbone and an annotated fraction.
        narrow (`bool`, *optional*, defaults to `False`): 85 mm wide, panels below one another; else 175 mm.
    """
    splits = splits_of(analysis)
    numbers = arm_numbers(analysis)

    def paint(figure: "Figure", narrow: bool) -> None:
        count = max(len(rows_of(analysis, condition, split)) for split in splits)
        height = 0.75 + (0.38 if narrow else 0.25) * count
        figure.set_figheight(height * (len(splits) if narrow else 1))
        axes = _panels(figure, len(splits), 1 if narrow else len(splits))
        for axis in axes[1:]:
            axis.sharex(axes[0])
        for index, (axis, split) in enumerate(zip(axes, splits, strict=True)):
            rows = [row for row in rows_of(analysis, condition, split) if not row.arm.is_plain]
            for place, row in enumerate(rows):
                _draw_difference(axis, place, row, seed_differences(study, analysis.metric, row))
            axis.axvline(0, color=LIGHT["ink"], linewidth=0.9)
            axis.set_title(SPLITS[split])
            axis.set_xlabel(f"difference in {metric_name(analysis.metric)} to plain training")
            names = [f"{numbers[row.arm]}  {row.arm.name}" for row in rows]
            axis.set_yticks(range(len(rows)), names if not narrow and index == 0 else [""] * len(rows))
            axis.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
            axis.grid(visible=False, axis="y")
            axis.set_ylim(len(rows) - 0.4, -0.8 if narrow else -0.6)
            axis.spines["left"].set_visible(False)
            if narrow:
                for place, name in enumerate(names):
                    axis.annotate(
                        name,
                        (0, place - 0.42),
                        xycoords=("axes fraction", "data"),
                        va="center",
                        fontsize=7.5,
                        bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 0.6},
                    )

    return draw(paint, narrow)


def _draw_difference(axis: Any, place: int, row: "ArmResult", differences: Sequence[float]) -> None:
    family = family_of(row.arm)
    colour = LIGHT[family.key]
    if math.isfinite(row.smallest_difference):
        reach = min(row.smallest_difference, MOST)
        axis.barh(place, 2 * reach, left=-reach, height=0.36, color=LIGHT["band"], zorder=0.5)
    axis.plot(differences, [place] * len(differences), "o", ms=3.2, mfc="none", mec=colour, mew=0.7, zorder=2)
    if not math.isfinite(row.difference):
        axis.annotate("not defined", (0, place), fontsize=7.5, color=LIGHT["muted"], va="center")
        return
    if math.isfinite(row.difference_low) and math.isfinite(row.difference_high):
        axis.plot([row.difference_low, row.difference_high], [place] * 2, color=colour, linewidth=1.4, zorder=3)
    fill = LIGHT["paper"] if row.arm.is_control else colour
    axis.plot(row.difference, place, family.marker, ms=6 * family.scale, mfc=fill, mec=colour, mew=1.2, zorder=4)


def alignment_plot(study: Study, analysis: "Analysis", backbone: str, narrow: bool = False) -> "Figure":
    """
    Draws the alignment of the maps with the annotation against the study's metric: a mark a run, a large one an arm.

    Colour and shape are the method's family; controls are hollow; the number in an arm's mean is its number in the
    table. A panel for each correlation: a row a split, a column a map.

    Args:
        study ([`Study`]): the runs.
        analysis ([`Analysis`]): their statistics.
        backbone (`str`): whose runs are drawn.
        narrow (`bool`, *optional*, defaults to `False`): 85 mm wide, panels below one another; else 175 mm.
    """
    panels = [each for each in analysis.correlations if each.backbone == backbone]

    def paint(figure: "Figure", narrow: bool) -> None:
        columns = 1 if narrow else min(2, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure.set_figheight(2.75 * rows + 0.25 + 0.17 * math.ceil(len(arm_numbers(analysis)) / (2 if narrow else 4)))
        for axis, correlation in zip(_panels(figure, len(panels), columns), panels, strict=True):
            _draw_alignment(axis, study, analysis, correlation)
        _legend(figure, analysis, 2 if narrow else 4)

    return draw(paint, narrow)


def _draw_alignment(axis: Any, study: Study, analysis: "Analysis", correlation: "Correlation") -> None:
    runs = [run for run in finished_runs(study) if run.backbone == correlation.backbone]
    for arm, number in arm_numbers(analysis).items():
        pairs = np.array(
            [
                (
                    run_value(study, run, correlation.alignment_split, correlation.alignment),
                    run_value(study, run, correlation.split, analysis.metric),
                )
                for run in runs
                if run.arm == arm
            ]
        ).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        if len(pairs):
            _draw_arm(axis, arm, number, pairs)
    axis.set_title(f"{SPLITS[correlation.split]}, {map_name(correlation.alignment)}", pad=14)
    found = f"{correlation.pearson:+.3f}".replace("-", "−") if math.isfinite(correlation.pearson) else "not defined"
    axis.annotate(
        f"correlation over all runs: {found}",
        (0, 1),
        xytext=(0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7.5,
        color=LIGHT["muted"],
    )
    elsewhere = "" if correlation.alignment_split == correlation.split else ", in-distribution"
    axis.set_xlabel(f"energy inside the annotation (share{elsewhere})")
    axis.set_ylabel(metric_name(analysis.metric))
    axis.locator_params(nbins=6)


def _draw_arm(axis: Any, arm: Arm, number: int, pairs: np.ndarray) -> None:
    """The runs of an arm, and their mean with the arm's number in it; `pairs` is `(runs, 2)`."""
    family = family_of(arm)
    colour, paper = LIGHT[family.key], LIGHT["paper"]
    fill = "none" if arm.is_control else colour
    size = 3.4 * family.scale
    axis.plot(*pairs.T, family.marker, ms=size, mfc=fill, mec=colour, mew=0.6, alpha=0.55, zorder=2)
    fill, edge, ink = (paper, colour, colour) if arm.is_control else (colour, paper, paper)
    centre, size = pairs.mean(axis=0), 11 * family.scale
    axis.plot(*centre, family.marker, ms=size, mfc=fill, mec=edge, mew=1, zorder=3 + number / 100)
    axis.annotate(
        str(number),
        centre,
        xytext=(0, size * family.rise),
        textcoords="offset points",
        color=ink,
        ha="center",
        va="center_baseline",
        fontsize=6.5,
        fontweight="bold",
        zorder=3 + (number + 0.5) / 100,
    )


def _legend(figure: "Figure", analysis: "Analysis", columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for arm, number in arm_numbers(analysis).items():
        family = family_of(arm)
        colour = LIGHT[family.key]
        fill = LIGHT["paper"] if arm.is_control else colour
        label = f"{number}  {arm.name}"
        handles.append(
            Line2D([], [], marker=family.marker, ls="", ms=5.5 * family.scale, mfc=fill, mec=colour, label=label)
        )
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, handletextpad=0.3, columnspacing=1.2)


def fraction_plot(analysis: "Analysis", backbone: str, split: str, narrow: bool = False) -> "Figure":
    """
    Draws the metric over the annotated fraction, a panel an arm, each with plain training behind it.

    An arm that uses no annotation stands beside every fraction; it is a dashed line, as plain training is.

    Args:
        analysis ([`Analysis`]): the statistics.
        backbone (`str`): whose runs are drawn.
        split (`str`): `"in"` or `"out"`.
        narrow (`bool`, *optional*, defaults to `False`): 85 mm wide, two panels a row; else 175 mm and four.
    """
    numbers = arm_numbers(analysis)
    rows = [row for row in analysis.comparisons if row.split == split and row.backbone == backbone]
    curves = {
        arm: sorted((row for row in rows if row.arm == arm), key=lambda row: row.annotated_fraction)
        for arm in sorted({row.arm for row in rows}, key=numbers.__getitem__)
    }
    plain = next((curve for arm, curve in curves.items() if arm.is_plain), [])
    drawn = {arm: curve for arm, curve in curves.items() if not arm.is_plain}

    def paint(figure: "Figure", narrow: bool) -> None:
        columns = min(2 if narrow else 4, len(drawn))
        figure.set_figheight(0.4 + 1.45 * math.ceil(len(drawn) / columns))
        axes = _panels(figure, len(drawn), columns, share=True)
        for index, (axis, (arm, curve)) in enumerate(zip(axes, drawn.items(), strict=True)):
            _draw_curve(axis, plain, LIGHT["muted"], "none")
            marker = "none" if is_of_no_share(curve) else family_of(arm).marker
            _draw_curve(axis, curve, LIGHT[family_of(arm).key], marker, hollow=arm.is_control)
            axis.set_title(f"{numbers[arm]}  {arm.name}", fontsize=7.5)
            axis.set_xticks([100 * row.annotated_fraction for row in curve])
            axis.set_xlim(0, 105)
            if index + columns >= len(drawn):
                axis.set_xlabel("annotated, %")
                axis.tick_params(labelbottom=True)
            if index % columns == 0:
                axis.set_ylabel(metric_name(analysis.metric))

    return draw(paint, narrow)


def _draw_curve(axis: Any, curve: Sequence["ArmResult"], colour: str, marker: str, hollow: bool = False) -> None:
    kept = [row for row in curve if math.isfinite(row.mean)]
    if not kept:
        return
    places = np.array([100 * row.annotated_fraction for row in kept])
    means = np.array([row.mean for row in kept])
    if marker != "none":
        axis.vlines(places, [row.low for row in kept], [row.high for row in kept], color=colour, linewidth=1)
    style = {"ls": "--" if marker == "none" else "-", "mfc": LIGHT["paper"] if hollow else colour}
    axis.plot(places, means, color=colour, marker=marker, ms=4.5, linewidth=1.2, **style)


def _panels(figure: "Figure", count: int, columns: int, share: bool = False) -> list[Any]:
    """The axes of `count` panels in rows of `columns`; what is over in the last row is empty."""
    grid = figure.subplots(math.ceil(count / columns), columns, squeeze=False, sharey=share, sharex=share)
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return axes[:count]


Painter = Callable[[bool], "Figure"]


def all_plots(study: Study, analysis: "Analysis") -> Iterator[tuple[str, Painter]]:
    """The plots that the study has figures for: a name, and what draws it wide (`False`) or narrow (`True`)."""
    for index, condition in enumerate(conditions(analysis)):
        if any(not row.arm.is_plain for split in SPLITS for row in rows_of(analysis, condition, split)):
            yield f"differences-{index}", partial(forest_plot, study, analysis, condition)
    for index, backbone in enumerate(alignment_backbones(analysis)):
        yield f"alignment-{index}", partial(alignment_plot, study, analysis, backbone)
    for index, backbone in enumerate(curve_backbones(analysis)):
        for split in splits_of(analysis):
            yield f"fractions-{index}-{split}", partial(fraction_plot, analysis, backbone, split)


def save_plots(study: Study, analysis: "Analysis", folder: str | Path) -> list[Path]:
    """
    Writes every plot for a paper: PDF and PNG (300 dpi), for a column (`…-85mm`) and for a page (`…-175mm`).

    Args:
        study ([`Study`]): the runs.
        analysis ([`Analysis`]): their statistics.
        folder (`str` or `Path`): where to; made if it is not there.

    Returns:
        `list` of `Path`: the files.

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, painter in all_plots(study, analysis):
        for narrow, width in ((True, "85mm"), (False, "175mm")):
            written += save_figure(painter(narrow), folder / f"{name}-{width}.png")
    return written
