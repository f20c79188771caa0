"""What is written when a comparison is over."""

import dataclasses
import json

import numpy as np
import pytest

from hf_salguide.studies.comparison import plan as module
from hf_salguide.studies.comparison.plan import run_comparison
from hf_salguide.studies.comparison.records import FAILED, SplitPredictions, load_study
from hf_salguide.studies.report import publish as publish_module
from hf_salguide.studies.report.publish import failure_panels, hardest, publish

from .comparisons import comparison, in_this_process


@pytest.fixture(scope="module")
def study(digits_folder, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "run_jobs", in_this_process)
    found = run_comparison(
        comparison(digits_folder, tmp_path_factory.mktemp("study") / "study"), report=lambda line: None
    )
    patch.undo()
    return found


@pytest.fixture(autouse=True)
def no_plots(request, monkeypatch):
    """Files for papers take seconds, and are looked at once."""
    if "tmp_path" in request.fixturenames and "everything" not in request.node.name:
        monkeypatch.setattr(publish_module, "save_plots", lambda *args: [])


def test_everything_is_written(study, tmp_path, digits_folder):
    published = publish(study, tmp_path, resamples=50)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.csv", "analysis.json", "table.md", "conclusions.txt", "report.html", "plots"}
    html = published.report.read_text()
    assert (tmp_path / "conclusions.txt").read_text().strip() == published.conclusion
    assert (tmp_path / "table.md").read_text().strip() == published.table.strip()
    rows = json.loads((tmp_path / "analysis.json").read_text())["comparisons"]
    plain = next(row for row in rows if row["arm"]["method"] == "none" and row["split"] == "out")
    assert plain["mean"] == pytest.approx(np.mean([run.metrics["ood"]["auroc"] for run in study.runs[::4]]))
    assert f"{plain['mean']:.3f}" in html
    assert f"{plain['mean']:.3f}" in published.table
    assert "data:image" not in html  # no picture unasked
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert str(digits_folder).encode() not in path.read_bytes()
            assert str(study.runs[0].folder.parent).encode() not in path.read_bytes()


def test_pictures_are_in_the_report_where_they_are_asked_for(study, tmp_path, digits_folder):
    published = publish(study, tmp_path, {"path": str(digits_folder)}, resamples=20)
    assert published.report.read_text().count("data:image/webp") == 2  # in and out of distribution


def test_the_pictures_that_most_get_wrong_come_first():
    def judged(*wrong, sure):
        labels = np.array([0, 1, 1, 0])
        probability = np.where([row in wrong for row in range(4)], 1 - sure, sure)
        probabilities = np.where(labels[:, None] == [0, 1], probability[:, None], 1 - probability[:, None])
        empty = np.zeros(4)
        return SplitPredictions(probabilities, labels, None, empty > 0, {}, empty, list("abcd"))

    one, two, three = judged(2, sure=0.9), judged(2, 1, sure=0.8), judged(1, 2, 0, sure=0.6)
    assert hardest([one, two, three], 3) == [2, 1, 0]
    assert hardest([one], 4)[0] == 2
    assert hardest([one, two, three], 9) == [2, 1, 0, 3]


def test_a_panel_shows_each_way_of_training(study, digits_folder):
    panels = failure_panels(study, {"path": str(digits_folder)})
    assert len(panels) == 2
    titles = " ".join(axis.get_title() for axis in panels[0].axes)
    for name in ("plain", "cyborg", "masked_input", "cyborg (inverted)"):  # one control among the four
        assert name in titles


def test_a_study_whose_runs_all_failed(study, tmp_path, digits_folder):
    failed = [
        dataclasses.replace(run, status=FAILED, error="RuntimeError: no maps today", metrics={}) for run in study.runs
    ]
    lost = dataclasses.replace(study, runs=failed)
    published = publish(lost, tmp_path, {"path": str(digits_folder)}, resamples=20)
    for text in (published.conclusion, published.table, published.report.read_text()):
        assert "nan" not in text.lower().replace("nance", "")
    assert "every run failed" in published.conclusion
    assert "no maps today" in published.report.read_text()


def test_a_study_without_another_test_set(study, tmp_path):
    settings = {**study.settings, "splits": {**study.settings["splits"], "out": None}}
    published = publish(dataclasses.replace(study, settings=settings), tmp_path, resamples=20)
    assert "out of distribution" not in published.conclusion
    assert (tmp_path / "results.csv").read_text().splitlines()[1].split(",")[6] == ""


def test_what_is_written_is_the_same_again(study, tmp_path):
    for name in ("one", "two"):
        publish(load_study(study.runs[0].folder.parent.parent), tmp_path / name, resamples=20)
    for name in ("results.csv", "analysis.json", "table.md", "conclusions.txt", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
