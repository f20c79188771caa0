"""The report of a comparison: every figure is there, or words in its place; it loads nothing and tells no path."""

import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_study import ARMS, make_analysis, make_study
from PIL import Image

from hf_salguide.studies.comparison.conclusions import conclude
from hf_salguide.studies.comparison.findings import EXPLANATION
from hf_salguide.studies.comparison.paths import without_paths
from hf_salguide.studies.comparison.records import Arm
from hf_salguide.studies.report.page import report_html, report_table, write_report
from hf_salguide.studies.report.prose import how_it_was_made
from hf_salguide.studies.report.text import (
    correlation_words,
    curve_words,
    markdown_cell,
    number,
    p_value,
    percent,
    with_interval,
)

FEW = ARMS[:3] + ARMS[-2:-1]  # plain, cyborg, divisive_difference, cyborg (inverted)
HOSTILE = "<script>alert('x')</script> & \"$\\frac{1$ | _a_"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Reads a page: its tables, row by row, its text, its elements with their attributes; checks that tags match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.words, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def rows(self, table):
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[table]]

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def study():
    return make_study(arms=FEW, seeds=4, failing=(("cyborg", 2),))


@pytest.fixture(scope="module")
def analysis(study):
    return make_analysis(study)


@pytest.fixture(scope="module")
def html(study, analysis):
    return report_html(study, analysis)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture
def no_plots(monkeypatch):
    """For tests of the rest of the page: drawing takes most of the time."""
    monkeypatch.setattr("hf_salguide.studies.report.inline_plots.all_plots", lambda study, analysis: iter(()))


def plain_number(value, sign=""):
    return f"{value:{sign}.3f}".replace("-", "−")


def wanted_cells(row, number):
    cells = [
        f"{number} {row.arm.name}",
        f"{row.seeds} (1 failed)" if row.failed else str(row.seeds),
        f"{plain_number(row.mean)} [{plain_number(row.low)}, {plain_number(row.high)}]",
    ]
    if row.arm.is_plain:
        return [*cells, "reference", "–", "–", "–", "–"]
    difference, low, high = (
        plain_number(value, "+") for value in (row.difference, row.difference_low, row.difference_high)
    )
    found = (row.p_value, row.p_holm, row.smallest_difference, row.smallest_difference_holm)
    return [*cells, f"{difference} [{low}, {high}]", *map(plain_number, found)]


@pytest.mark.parametrize(("table", "split"), [(0, "in"), (1, "out")])
def test_every_figure_of_the_comparison_is_in_the_table(page, analysis, table, split):
    rows = [row for row in analysis.comparisons if row.split == split]
    wanted = [wanted_cells(row, number) for number, row in enumerate(rows)]
    header, *body = page.rows(table)
    assert len(header) == len(wanted[0]) == 8
    assert body == [*wanted[:3], ["Controls"], wanted[3]]


def test_the_table_in_markdown_has_the_same_figures(page, analysis):
    lines = report_table(analysis).splitlines()
    assert [line for line in lines if line.startswith("**")] == ["**In-distribution**", "**Out-of-distribution**"]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    tables = [[*page.rows(table)[:4], page.rows(table)[5]] for table in (0, 1)]
    for written, shown in zip((rows[:6], rows[6:]), tables, strict=True):
        assert [cells[1:] for cells in written[2:]] == [cells[1:] for cells in shown[1:]]
        assert [cells[0].replace("\\", "") for cells in written[2:]] == [cells[0][2:] for cells in shown[1:]]
    assert f"* {analysis.notes[0]}" in lines


def test_controls_correlations_conclusions_and_the_way_it_was_made_are_told(page, study, analysis):
    control = page.rows(2)
    assert control[1] == [
        "cyborg",
        "cyborg (inverted)",
        "In-distribution",
        "5",
        "−0.018 [−0.053, +0.014]",
        "0.312",
        "0.624",
        "0.047",
    ]
    text = page.text
    assert "+0.213 [−0.072, +0.461], not told apart from 0; within the arms −0.354 [−0.601, −0.017], below 0" in text
    assert " ".join(conclude(analysis, study).split()) in text
    for sentence in EXPLANATION:
        assert " ".join(sentence.split()) in text
        assert text.count(" ".join(sentence.split())) == 1
    for told in (
        "resnet18",
        "96 pixels",
        "30 epochs",
        "learning rate 0.001",
        "random weights",
        "budget of one configuration",
        "2.15.0",
    ):
        assert told in text
    assert ["cyborg", "guidance_weight = 0.5"] in page.rows(5)
    assert ["test", "test, in distribution", "138", "121", "normal 80, tuberculosis 58"] in page.rows(4)
    assert analysis.notes[0] in text


def test_failed_runs_are_told_with_their_message_and_without_paths(page, html):
    message = "FloatingPointError: the loss is not finite at step 12; see x/log.txt and dump.bin"
    assert page.rows(3)[1] == ["cyborg", "2", "100 %", "resnet18", message]
    for path in ("/home", "/tmp", "some body", "Traceback"):
        assert path not in html


def test_it_loads_nothing_and_runs_nothing(page, html):
    assert not re.search(r"https?:|file:|//www|@import|<script|<iframe|<object|xmlns|javascript:", html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", html))


def test_it_can_be_read_by_machines_that_read_it_to_people(page):
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert all(attributes.get("scope") in ("row", "col", "rowgroup") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    plots = page.all("svg")
    assert len(plots) == 4  # two plots, wide and narrow
    for plot in plots:
        assert plot["role"] == "img"
        assert re.search(r"[+−]0\.\d{3} \[", plot["aria-label"])
    labels = {attributes["aria-labelledby"] for attributes in page.all("section")}
    assert labels <= set(ids)
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in page.all("meta")[1]["content"]


def test_the_same_figures_give_the_same_bytes(study, analysis, html, tmp_path):
    path = write_report(make_study(arms=FEW, seeds=4, failing=(("cyborg", 2),)), analysis, tmp_path / "new" / "r.html")
    assert path.read_bytes() == html.encode()
    assert len(html) < 1_000_000


def undefined_words(text):
    return re.findall(r"\b(?:nan|none|null|inf|undefined)\b", text, flags=re.IGNORECASE)


@pytest.mark.parametrize("case", ["one seed", "every run of a method failed", "nothing is left", "not over"])
def test_what_is_not_defined_is_said_in_words(case, request):
    if case != "nothing is left":
        request.getfixturevalue("no_plots")
    failing = {
        "one seed": (),
        "every run of a method failed": [("cyborg", seed) for seed in range(2)],
        "nothing is left": [(arm.name, seed) for arm in FEW for seed in range(2)],
        "not over": (),
    }[case]
    study = make_study(arms=FEW, seeds=1 if case == "one seed" else 2, out=False, failing=failing)
    study = dataclasses.replace(study, missing=3 if case == "not over" else 0)
    study.settings["methods"] = ["cyborg", "divisive_difference"]
    analysis = make_analysis(study, notes=())
    if case == "nothing is left":
        undefined = dict.fromkeys(("pearson", "low", "high", "within_arms", "within_low", "within_high"), math.nan)
        changed = [dataclasses.replace(each, runs=0, **undefined) for each in analysis.correlations]
        analysis = dataclasses.replace(analysis, correlations=tuple(changed))
    page = Page(report_html(study, analysis))
    allowed = {"nothing is left": [], "not over": ["None"], "one seed": ["None"]}.get(case, [])
    assert [word for word in undefined_words(page.text) if word != "none"] == allowed  # "None." of failed runs
    assert undefined_words(report_table(analysis)) == []
    cells = page.rows(0)[2]
    if case == "one seed":
        assert cells[3:6] == [plain_number(analysis.comparisons[1].difference, "+"), *cells[4:6]]
        assert cells[4] == "not defined (one seed)"
    elif case == "every run of a method failed":
        assert cells[1:5] == ["0 (2 failed)", "not defined", *["not defined (no pair of runs)"] * 2]
    elif case == "not over":
        assert "3 planned runs were not done yet" in page.text


def test_names_cannot_break_out_of_the_page():
    arms = (ARMS[0], Arm(HOSTILE), Arm("cyborg"))
    study = make_study(arms=arms, seeds=2, failing=((HOSTILE, 1),), name=HOSTILE, backbones=(HOSTILE,))
    study.settings["class_names"] = [HOSTILE, "</style>"]
    study.settings["rows"]["test"] = {"pictures": 1, "annotated": 1, "classes": {HOSTILE: 3}}
    text = report_html(study, make_analysis(study, notes=[HOSTILE]), [(HOSTILE, picture(10))])
    page = Page(text)
    assert not page.all("script")
    assert text.count("</style>") == 1
    assert page.rows(0)[2][0] == f"1 {HOSTILE}"
    assert page.all("img")[0]["alt"] == HOSTILE
    table = report_table(make_analysis(study))
    assert "<script" not in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def picture(width):
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, width, 3), 200, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_pictures_are_embedded_only_when_they_are_given(study, analysis, page, no_plots):
    from matplotlib.figure import Figure

    assert not page.all("img")
    assert "--pictures true" in page.text
    figure = Figure(figsize=(2, 1), label="drawn")
    figure.subplots().imshow(np.eye(4))
    with_pictures = Page(report_html(study, analysis, [("wrong ones", picture(3000)), figure]))
    assert "--pictures true" not in with_pictures.text
    found = with_pictures.all("img")
    assert [image["alt"] for image in found] == ["wrong ones", "drawn"]
    for image in found:
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as opened:
            assert (opened.width, opened.height) == (int(image["width"]), int(image["height"]))
            assert opened.width <= 1400


def test_every_condition_has_its_tables(no_plots):
    study = make_study(arms=FEW[:2], seeds=2, fractions=(1.0, 0.25), out=False, failing=())
    analysis = make_analysis(study)
    page = Page(report_html(study, analysis))
    assert "resnet18, all of the annotation" in page.text
    assert "resnet18, 25 % of the annotation" in page.text
    assert len([attributes for attributes in page.all("table") if attributes.get("class") == "figures numbered"]) == 2
    assert "**In-distribution, resnet18, 25 % of the annotation**" in report_table(analysis)


def test_curves_of_methods_without_annotation_are_one_figure():
    arms = (ARMS[0], ARMS[1], Arm("cam_entropy"))
    analysis = make_analysis(make_study(arms=arms, seeds=2, fractions=(1.0, 0.25), out=False, failing=()))
    mean = next(row.mean for row in analysis.comparisons if row.arm == arms[2])
    told = curve_words(analysis, "resnet18", "in")
    assert f"cam_entropy {plain_number(mean)}, which uses no annotation" in told
    assert re.search(r"cyborg 0\.\d+ at 25 %, 0\.\d+ at 100 %; ", told)


def test_the_rank_test_has_a_column_where_it_was_made(analysis):
    rows = [dataclasses.replace(row, p_signed_rank=0.0781) for row in analysis.comparisons]
    changed = dataclasses.replace(analysis, comparisons=tuple(rows))
    assert "p (signed ranks)" not in report_table(analysis)
    assert "0.078" in report_table(changed)


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.500"), (-0.0004, "0.000"), (-0.25, "−0.250"), (math.nan, "not defined")]
)
def test_numbers(value, text):
    assert number(value) == text


def test_numbers_with_a_sign_an_interval_and_p():
    assert number(0.0312, signed=True) == "+0.031"
    assert number(-0.0001, signed=True) == number(0.0001, signed=True) == "0.000"
    assert with_interval(0.1, -0.2, 0.3, signed=True) == "+0.100 [−0.200, +0.300]"
    assert with_interval(0.1, math.nan, math.nan) == "0.100"
    assert with_interval(math.nan, 0.1, 0.2) == "not defined"
    assert [p_value(p) for p in (0.0009, 0.001, 0.0124, 1.0, math.nan)] == [
        "< 0.001",
        "0.001",
        "0.012",
        "1.000",
        "not defined",
    ]
    assert [p_value(p) for p in (0.0495, 0.0504)] == ["0.0495", "0.0504"]
    assert percent(0.25) == "25 %"
    assert percent(0.125) == "12.5 %"


def test_a_correlation_says_where_the_alignment_was_measured(analysis):
    elsewhere = dataclasses.replace(analysis.correlations[-1], alignment_split="in", left_out=2, low=0.1)
    told = correlation_words(elsewhere, "auroc")
    assert "alignment measured in distribution" in told
    assert "2 more have no alignment" in told
    assert "above 0" in told


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("no such file: '/srv/data/x ray.png'", "no such file: 'x ray.png'"),
        ("see /home/a/b.txt, C:\\Users\\me\\c.txt and ~/d.txt.", "see b.txt, c.txt and d.txt."),
        ("file:///srv/a.html", "a.html"),
        ("https://example.org/model/main", "example.org/model/main"),
        ("1/2 and/or ratio a/b", "1/2 and/or ratio a/b"),
        ("</script>", "</script>"),
    ],
)
def test_paths_lose_their_folders(text, clean):
    assert without_paths(text) == clean


def test_settings_tell_no_path(study, analysis, no_plots):
    more = {"data": "/srv/my data/lungs", "folder": Path("/srv/x/y"), "training": {"output_dir": "/home/me/out"}}
    study = dataclasses.replace(study, settings={**study.settings, **more})
    text = report_html(study, analysis)
    assert "/srv" not in text
    assert "/home" not in text
    rows = [row for table in Page(text).tables for row in table]
    assert ["data", "lungs"] in rows
    assert ["folder", "y"] in rows


LOCAL = ("/home/anna b/models/net", "/srv/other/net")


def test_backbones_that_are_local_folders_tell_no_path():
    study = make_study(arms=FEW[:2], seeds=2, backbones=LOCAL, out=False, failing=(("cyborg", 1),))
    error = "OSError: /home/anna b/models/net/config.json and /opt/x/y.bin are not there"
    analysis = make_analysis(study, notes=[f"cyborg with {LOCAL[0]}: 1 of 2 runs failed. {error}"])
    text, table = report_html(study, analysis), report_table(analysis)
    for written in (text, table):
        assert not re.search(r"/home|anna|/srv|/opt|models/", written)
        assert "config.json and y.bin are not there" in written
    page = Page(text)
    assert "runs of net, net at 96 pixels." in page.text
    assert "(net, 54 runs of 11 arms): correlation of energy inside" in page.text
    assert ["backbones", "none"] not in [row for rows in page.tables for row in rows]
    labels = [attributes["aria-label"] for attributes in page.all("svg")]
    first, second = (
        plain_number(
            next(row.difference for row in analysis.comparisons if row.backbone == name and row.seeds == 1), "+"
        )
        for name in LOCAL
    )
    assert first != second
    assert [label for label in labels if first in label] != [label for label in labels if second in label] != []


def test_a_difference_that_no_study_of_this_size_could_find(analysis, no_plots, study):
    rows = [
        dataclasses.replace(row, smallest_difference=0.9996, smallest_difference_holm=1.2)
        if row.arm == FEW[1]
        else row
        for row in analysis.comparisons
    ]
    controls = [dataclasses.replace(control, smallest_difference=1.01) for control in analysis.controls]
    changed = dataclasses.replace(analysis, comparisons=tuple(rows), controls=tuple(controls))
    page = Page(report_html(study, changed))
    assert page.rows(0)[2][-2:] == ["1.000", "none possible"]
    assert page.rows(2)[1][-1] == "none possible"
    assert "| 1.000 | none possible |" in report_table(changed)


def test_a_gain_is_not_denied_but_not_attributed(page):
    assert "Unless a method beats every control of its own, what it gains over plain training cannot be" in page.text
    assert "owed" not in page.text


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (
            {"max_steps": 200, "num_train_epochs": 3.0, "eval_strategy": "steps", "eval_steps": 20},
            ["Training, where a method has no hyper-parameters of its own: 200 steps."],
        ),
        (
            {
                "num_train_epochs": 30.0,
                "max_steps": -1,
                "per_device_train_batch_size": 16,
                "optim": "adamw_torch_fused",
                "learning_rate": 1e-4,
                "lr_scheduler_type": "cosine",
                "weight_decay": 0.0,
                "warmup_ratio": None,
            },
            [
                "Training, where a method has no hyper-parameters of its own: 30 epochs, batches of 16 pictures a "
                "device, optimizer adamw_torch_fused, learning rate 0.0001, cosine schedule, weight decay 0."
            ],
        ),
        ({}, []),
        (None, []),
    ],
)
def test_training_is_told_as_far_as_it_was_set(study, analysis, training, told):
    study = dataclasses.replace(study, settings={**study.settings, "training": training})
    made = how_it_was_made(study, analysis)
    assert [part for part in made if part.startswith("Training")] == told
    selection = " ".join(part for part in made if part.startswith("Selection"))
    assert "the weights that were best there by AUROC were kept" in selection
    assert "epoch" not in selection


def test_markdown_cells_stay_cells():
    assert markdown_cell("a|b\n<c>_d_*") == "a\\|b &lt;c>\\_d\\_\\*"
