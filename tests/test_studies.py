"""The recorded studies say what their runs gave."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hf_salguide.arguments import SaliencyTrainingArguments
from hf_salguide.cli.compare import CompareArguments
from hf_salguide.cli.parsing import parse
from hf_salguide.studies.comparison.words import number, p_value

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "examples" / "studies"
NAMES = ["cub_gaze", "skin", "tb_xray"]


def rows_of(name):
    with (STUDIES / name / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def values(rows, method, saliency, column):
    chosen = [row for row in rows if (row["method"], row["saliency"]) == (method, saliency)]
    return np.array([float(row[column]) for row in sorted(chosen, key=lambda row: int(row["seed"]))])


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_the_file_is_there(name, tmp_path):
    args, _ = parse(
        [CompareArguments, SaliencyTrainingArguments],
        [str(STUDIES / name / "compare.yaml"), "--output_dir", str(tmp_path)],
        "compare",
        "",
        "data",
    )
    arms = [("none", "human"), *((method, "human") for method in args.methods), ("cyborg", "inverted")]
    assert args.inverted == ["cyborg"]
    wanted = {(*arm, str(seed)) for arm in arms for seed in args.seeds}
    rows = rows_of(name)
    assert {(row["method"], row["saliency"], row["seed"]) for row in rows} == wanted
    assert len(rows) == len(wanted) >= 50
    for row in rows:
        assert row["status"] == "done"
        for column in ("val_auroc", "test_auroc", "ood_auroc"):
            assert 0 <= float(row[column]) <= 1
        assert float(row["seconds"]) > 0
    plain = [float(row["seconds"]) for row in rows if row["method"] == "none"]
    assert np.median(plain) <= 90


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_follow_from_the_runs(name):
    """Means, paired differences and p-values, computed from the table of results and found in the page."""
    rows, page = rows_of(name), (STUDIES / name / "README.md").read_text()
    recorded = json.loads((STUDIES / name / "analysis.json").read_text())["comparisons"]
    for split, column in (("in", "test_auroc"), ("out", "ood_auroc")):
        family = {}
        for row in (row for row in recorded if row["split"] == split):
            arm = (row["arm"]["method"], row["arm"]["saliency"])
            own, plain = values(rows, *arm, column), values(rows, "none", "human", column)
            assert row["mean"] == pytest.approx(own.mean(), abs=1e-5)
            assert number(own.mean()) in page
            if arm[0] == "none":
                continue
            assert row["difference"] == pytest.approx((own - plain).mean(), abs=1e-5)
            tested = stats.ttest_rel(own, plain).pvalue
            assert row["p_value"] == pytest.approx(tested, rel=1e-3)
            assert p_value(row["p_value"]) in page
            if arm[1] == "human":
                family[arm[0]] = (tested, row["p_holm"])
        assert len(family) == 8
        former = 0.0
        for place, (tested, corrected) in enumerate(sorted(family.values())):
            former = max(former, min(1.0, tested * (len(family) - place)))
            assert corrected == pytest.approx(former, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_where_the_maps_lie_follows_from_the_runs(name):
    rows, page = rows_of(name), (STUDIES / name / "README.md").read_text()
    for method, saliency, written in (("none", "human", "plain"), ("cyborg", "inverted", "cyborg (inverted)")):
        columns = (
            "test_energy_inside",
            "test_difference_energy_inside",
            "ood_energy_inside",
            "ood_difference_energy_inside",
        )
        means = [number(values(rows, method, saliency, column).mean()) for column in columns]
        assert f"| {written} | {' | '.join(means)} |" in page


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_conclusion_word_for_word(name):
    page, conclusion = (STUDIES / name / "README.md").read_text(), (STUDIES / name / "conclusions.txt").read_text()
    assert f"> {conclusion.strip()}\n" in page
    assert len(conclusion.split()) > 100
    assert not re.search(r"\bnan\b|None", conclusion)


def test_the_summary_is_that_of_the_recorded_studies():
    sys.path.insert(0, str(ROOT / "tools"))
    from studies import summary

    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- studies: .*? -->\n(.*?)\n?<!-- /studies -->", text, re.DOTALL)
    assert found.group(1).strip() == summary()
    assert len(summary().splitlines()) == 2 + len(NAMES)


def test_no_picture_of_the_data_is_recorded():
    files = {path.relative_to(STUDIES).as_posix() for path in STUDIES.rglob("*") if path.is_file()}
    kinds = (
        "README.md",
        "compare.yaml",
        "results.csv",
        "analysis.json",
        "conclusions.txt",
        "differences.pdf",
        "alignment.pdf",
    )
    assert files == {f"{name}/{kind}" for name in NAMES for kind in kinds}
