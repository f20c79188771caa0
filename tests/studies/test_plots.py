"""The plots of a comparison: what is drawn is what was measured, for the page and for papers."""

import dataclasses
import re
import sys

import matplotlib
import numpy as np
import pytest
from made_up_study import ARMS, make_analysis, make_study
from PIL import Image

from hf_salguide.guidance import list_guidance
from hf_salguide.studies.comparison.records import Arm
from hf_salguide.studies.report.inline_plots import _differences
from hf_salguide.studies.report.plot_rows import (
    arm_numbers,
    conditions,
    finished_runs,
    is_of_no_share,
    seed_differences,
)
from hf_salguide.studies.report.plot_style import DARK, FAMILIES, LIGHT, draw, family_of, inline_svg
from hf_salguide.studies.report.plots import alignment_plot, all_plots, forest_plot, fraction_plot, save_plots

FEW = ARMS[:3] + ARMS[-2:-1]  # plain, cyborg, divisive_difference, cyborg (inverted)
WHOLE = ("resnet18", 1.0)


@pytest.fixture(scope="module")
def study():
    return make_study(arms=FEW, seeds=4, failing=(("cyborg", 2),))


@pytest.fixture(scope="module")
def analysis(study):
    return make_analysis(study)


def lines_at(axis, height):
    return [line for line in axis.lines if len(line.get_ydata()) and set(line.get_ydata()) == {height}]


def test_the_forest_plot_draws_means_intervals_and_seeds(study, analysis):
    figure = forest_plot(study, analysis, WHOLE)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["In-distribution", "Out-of-distribution"]
    for axis, split in zip(figure.axes, ("in", "out"), strict=True):
        rows = [row for row in analysis.comparisons if row.split == split and not row.arm.is_plain]
        for height, row in enumerate(rows):
            seeds, interval, mean = lines_at(axis, height)
            plain = dict(enumerate(analysis.comparisons[0 if split == "in" else len(FEW)].values))
            own = dict(zip([0, 1, 3] if row.arm == Arm("cyborg") else range(4), row.values, strict=True))
            np.testing.assert_allclose(seeds.get_xdata(), [own[seed] - plain[seed] for seed in own])
            assert list(interval.get_xdata()) == [row.difference_low, row.difference_high]
            assert mean.get_xdata()[0] == row.difference
            bar = axis.patches[height]
            assert (bar.get_x(), bar.get_width()) == (-row.smallest_difference, 2 * row.smallest_difference)
    assert "AUROC" in figure.axes[0].get_xlabel()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["1  cyborg", "2  divisive_difference", "3  cyborg (inverted)"]


def test_a_forest_plot_of_one_seed_has_no_interval():
    study = make_study(arms=FEW, seeds=1, out=False, failing=(("cyborg", 0),))
    analysis = make_analysis(study)
    axis = forest_plot(study, analysis, WHOLE).axes[0]
    assert "not defined" in [text.get_text() for text in axis.texts]  # cyborg, whose only run failed
    assert len(lines_at(axis, 1)) == 2
    assert not axis.patches


def test_a_failed_run_has_no_difference(study, analysis):
    row = next(row for row in analysis.comparisons if row.arm == Arm("cyborg"))
    assert len(seed_differences(study, "auroc", row)) == 3


def test_the_alignment_plot_draws_every_finished_run_once(study, analysis):
    figure = alignment_plot(study, analysis, "resnet18")
    assert len(figure.axes) == 4
    for axis, each in zip(figure.axes, analysis.correlations, strict=True):
        split = study.settings["splits"][each.split]
        small = [line for line in axis.lines if line.get_alpha()]
        drawn = sorted((x, y) for line in small for x, y in zip(*line.get_data(), strict=True))
        wanted = sorted(
            (run.metrics[split][each.alignment], run.metrics[split]["auroc"]) for run in finished_runs(study)
        )
        np.testing.assert_allclose(drawn, wanted)
        means = [line for line in axis.lines if not line.get_alpha()]
        assert len(means) == len(FEW)
        assert {"0", "1", "2", "3"} <= {text.get_text() for text in axis.texts}
        assert "share" in axis.get_xlabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["0  plain", "1  cyborg", "2  divisive_difference", "3  cyborg (inverted)"]


def test_plain_training_stands_beside_every_fraction_and_counts_once():
    study = make_study(arms=FEW, seeds=2, fractions=(0.25, 1.0), failing=())
    assert sum(run.arm.is_plain for run in study.runs) == 4
    assert sum(run.arm.is_plain for run in finished_runs(study)) == 2
    assert len(finished_runs(study)) == 2 * (1 + 3 * 2)
    assert conditions(make_analysis(study)) == [WHOLE, ("resnet18", 0.25)]


def test_the_fraction_plot_has_a_panel_an_arm_with_plain_training_in_each():
    study = make_study(arms=FEW, seeds=2, fractions=(1.0, 0.25), failing=())
    analysis = make_analysis(study)
    figure = fraction_plot(analysis, "resnet18", "out")
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in panels] == [
        "1  cyborg",
        "2  divisive_difference",
        "3  cyborg (inverted)",
    ]
    curve = [row for row in analysis.comparisons if row.arm == Arm("cyborg") and row.split == "out"]
    plain, guided = panels[0].lines
    assert plain.get_linestyle() == "--"
    assert list(guided.get_xdata()) == [25, 100]
    assert sorted(guided.get_ydata()) == sorted(row.mean for row in curve)
    assert all(axis.get_xlabel() == "annotated, %" for axis in panels)


def test_a_method_without_annotation_is_a_dashed_line_as_plain_training_is():
    arms = (ARMS[0], ARMS[1], Arm("cam_entropy"))
    study = make_study(arms=arms, seeds=2, fractions=(1.0, 0.25), out=False, failing=())
    figure = fraction_plot(make_analysis(study), "resnet18", "in")
    guided, free = (axis for axis in figure.axes if axis.get_visible())
    assert [line.get_linestyle() for line in guided.lines] == ["--", "-"]
    assert [line.get_linestyle() for line in free.lines] == ["--", "--"]
    assert len(set(free.lines[1].get_ydata())) == 1
    assert len(finished_runs(study)) == 2 * (1 + 2 + 1)
    failing = [("cam_entropy", seed) for seed in range(2)]
    lost = make_analysis(make_study(arms=arms, seeds=2, fractions=(1.0, 0.25), out=False, failing=failing))
    assert not is_of_no_share([row for row in lost.comparisons if row.arm == arms[2]])


def test_the_bar_of_what_could_not_be_found_ends_at_the_largest_possible_difference(study, analysis):
    rows = tuple(dataclasses.replace(row, smallest_difference=3.7) for row in analysis.comparisons)
    changed = dataclasses.replace(analysis, comparisons=rows)
    bars = forest_plot(study, changed, WHOLE).axes[0].patches
    assert {(bar.get_x(), bar.get_width()) for bar in bars} == {(-1, 2)}
    assert "A bar from −1 to +1: no possible difference would be found." in _differences(changed, "0")[1]
    assert "possible" not in _differences(analysis, "0")[1]


def test_plots_are_drawn_where_there_is_something_to_draw(study, analysis):
    assert [name for name, _ in all_plots(study, analysis)] == ["differences-0", "alignment-0"]
    several = make_study(arms=FEW, seeds=2, fractions=(1.0, 0.5), backbones=("a", "b"), out=False, failing=())
    assert [name for name, _ in all_plots(several, make_analysis(several))] == [
        *[f"differences-{index}" for index in range(4)],
        *["alignment-0", "alignment-1", "fractions-0-in", "fractions-1-in"],
    ]


def test_controls_come_last_and_plain_training_first():
    study = make_study(arms=(ARMS[-1], ARMS[2], ARMS[0]), seeds=2, failing=())
    assert arm_numbers(make_analysis(study)) == {ARMS[0]: 0, ARMS[2]: 1, ARMS[-1]: 2}


def test_every_method_has_a_family_told_by_colour_and_by_shape():
    known = {member for family in FAMILIES for member in family.members}
    assert set(list_guidance()) | {"none"} == known
    assert len({family.marker for family in FAMILIES}) == len({LIGHT[family.key] for family in FAMILIES}) == 7
    assert family_of(Arm("somebody's own")).key == "other"


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_the_page(theme):
    """WCAG 2.1: 4.5 for text; marks carry their arm's number, so that they need it too."""
    paper = luminance(theme["paper"])
    for role in set(theme) - {"paper", "grid", "band"}:
        low, high = sorted((luminance(theme[role]), paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5, role
    assert len(set(theme.values())) == len(theme)
    assert set(LIGHT) == set(DARK)


def test_inline_svg_takes_its_colours_from_the_page(study, analysis):
    svg = inline_svg(forest_plot(study, analysis, WHOLE), "a", 'words with "quotes" & <marks>')
    assert 'aria-label="words with &quot;quotes&quot; &amp; &lt;marks&gt;"' in svg
    assert svg.startswith("<svg ")
    outside = re.sub(r"var\(--[a-z]+, #[0-9a-f]{6}\)", "", svg)
    assert re.findall(r"#[0-9a-f]{6}\b", outside) == []
    assert "var(--divisive, #b84a00)" in svg
    assert set(re.findall(r"var\(--(\w+)", svg)) <= set(LIGHT) | {"sans"}
    assert "http" not in svg
    assert "<style" not in svg
    assert ">2  divisive_difference<" in svg  # text, not outlines
    ids = re.findall(r'\sid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(identity.startswith("a-") for identity in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= set(ids)


def test_names_are_not_read_as_formulae():
    def paint(figure, narrow):
        figure.subplots().set_title(r"$\frac{1$ <b>&amp;")

    svg = inline_svg(draw(paint, narrow=True), "a", "")
    assert r"$\frac{1$ &lt;b&gt;&amp;amp;" in svg


def test_the_users_settings_of_matplotlib_stay_as_they_are(study, analysis):
    before = dict(matplotlib.rcParams)
    inline_svg(forest_plot(study, analysis, WHOLE), "a", "")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_plots_are_saved_for_a_column_and_for_a_page(tmp_path):
    study = make_study(arms=FEW[:2], seeds=2, out=False, failing=())
    analysis = make_analysis(study)
    written = save_plots(study, analysis, tmp_path / "plots")
    assert sorted(path.name for path in written) == sorted(
        f"{plot}-{width}mm.{kind}"
        for plot in ("differences-0", "alignment-0")
        for width in (85, 175)
        for kind in ("pdf", "png")
    )
    for path in written:
        width = float(re.search(r"(\d+)mm", path.name).group(1))
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width == pytest.approx(width / 25.4 * 300, abs=1)
                assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        else:
            box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", path.read_bytes())
            assert float(box.group(1)) == pytest.approx(width / 25.4 * 72, abs=0.1)
    again = save_plots(study, analysis, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again} == {path.name: path.read_bytes() for path in written}


def test_without_matplotlib_it_says_what_to_install(study, analysis, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"hf_salguide\[plots\]"):
        forest_plot(study, analysis, WHOLE)
