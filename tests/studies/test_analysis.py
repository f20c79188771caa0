"""From runs to figures: pairs, families, failures, and what is not defined."""

import dataclasses
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from synthetic_studies import SPLITS, failed_run, fake_run, shared_study, simple_study, study_of

from hf_salguide.studies.comparison.analysis import analyse
from hf_salguide.studies.comparison.records import Arm, Study
from hf_salguide.studies.comparison.statistics import holm, smallest_difference

PLAIN, CYBORG, INVERTED = Arm("none"), Arm("cyborg"), Arm("cyborg", "inverted")
ONLY_IN = {**SPLITS, "out": None}
GAINS = {"cyborg": (0.1, 0.6), "rrr": (0.0, 0.1), "cyborg/inverted": (0.0, 0.0), "cyborg/random": (0.0, 0.1)}


def row_of(analysis, arm, split="out", **wanted):
    rows = [row for row in analysis.comparisons if row.arm == arm and row.split == split]
    (row,) = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    return row


def values_of(study, arm, split="ood", metric="auroc"):
    return [run.metrics[split][metric] for run in study.runs if run.arm == arm]


@pytest.fixture(scope="module")
def study():
    return simple_study(GAINS)


@pytest.fixture(scope="module")
def analysis(study):
    return analyse(study, resamples=300)


def test_a_row_holds_what_scipy_finds(study, analysis):
    row, plain = row_of(analysis, CYBORG), row_of(analysis, PLAIN)
    values, baseline = values_of(study, CYBORG), values_of(study, PLAIN)
    assert row.values == tuple(values)
    assert (row.seeds, row.failed, plain.seeds) == (5, 0, 5)
    assert row.mean == pytest.approx(np.mean(values))
    assert row.difference == pytest.approx(np.mean(values) - np.mean(baseline))
    assert row.p_value == pytest.approx(stats.ttest_rel(values, baseline).pvalue)
    deviation = np.std(np.subtract(values, baseline), ddof=1)
    assert row.smallest_difference == pytest.approx(smallest_difference(deviation, 5))
    assert row.smallest_difference_holm == pytest.approx(smallest_difference(deviation, 5, 0.05 / 2))
    assert row.low < row.mean < row.high
    assert row.difference_low < row.difference < row.difference_high
    assert math.isnan(row.p_signed_rank)
    assert np.isnan([plain.difference, plain.p_value, plain.p_holm, plain.smallest_difference]).all()


def test_methods_and_controls_are_two_families(analysis):
    for split in ("in", "out"):
        rows = [row for row in analysis.comparisons if row.split == split and not row.arm.is_plain]
        for is_control in (False, True):
            family = [row for row in rows if row.arm.is_control == is_control]
            assert [row.family for row in family] == [2, 2]
            assert_allclose([row.p_holm for row in family], holm([row.p_value for row in family]))


def test_methods_against_their_controls(study, analysis):
    out = [control for control in analysis.controls if control.split == "out"]
    assert [(each.arm, each.control) for each in out] == [(CYBORG, INVERTED), (CYBORG, Arm("cyborg", "random"))]
    test = stats.ttest_rel(values_of(study, CYBORG), values_of(study, INVERTED))
    assert out[0].p_value == pytest.approx(test.pvalue)
    assert_allclose([each.p_holm for each in out], holm([each.p_value for each in out]))
    assert out[0].difference == pytest.approx(np.mean(values_of(study, CYBORG)) - np.mean(values_of(study, INVERTED)))
    assert out[0].low < out[0].difference < out[0].high


def test_neither_order_nor_chance_changes_the_figures(study, analysis):
    order = np.random.default_rng(0).permutation(len(study.runs))
    turned = Study(study.settings, [study.runs[index] for index in order])
    assert repr(analyse(turned, resamples=300)) == repr(analysis)
    other = analyse(study, resamples=300, seed=1)
    assert row_of(other, CYBORG).p_value == row_of(analysis, CYBORG).p_value
    assert row_of(other, CYBORG).low != row_of(analysis, CYBORG).low


def test_arms_stand_in_the_order_of_the_settings():
    shown = simple_study(GAINS, seeds=2, settings={"methods": ["rrr", "cyborg"]})
    names = [row.arm.name for row in analyse(shown, resamples=20).comparisons if row.split == "in"]
    assert names == ["plain", "rrr", "cyborg", "cyborg (inverted)", "cyborg (random)"]


def test_differences_are_paired_by_picture_too():
    # Pictures that are hard for one run are hard for all: that is no uncertainty of the difference.
    alike = simple_study({"cyborg": (0.3, 0.3)}, spread=0.02, noise=0.05, splits=ONLY_IN)
    row = row_of(analyse(alike, resamples=300), CYBORG, "in")
    assert row.difference_high - row.difference_low < 0.7 * (row.high - row.low)
    assert row.difference_low > 0


def test_subjects_are_drawn_whole():
    study = simple_study({"cyborg": (0.3, 0.3)}, spread=0.02, noise=0.05, splits=ONLY_IN)

    def repeated(run, grouped):
        one = run.made["test"]
        groups = np.repeat([f"s{index}" for index in range(len(one.labels))], 4) if grouped else None
        names = [str(index) for index in range(4 * len(one.labels))]
        made = dataclasses.replace(
            one,
            probabilities=np.repeat(one.probabilities, 4, axis=0),
            labels=np.repeat(one.labels, 4),
            groups=groups,
            file_names=names,
        )
        return dataclasses.replace(run, made={"test": made})

    widths = []
    for grouped in (False, True):
        row = row_of(analyse(study_of([repeated(run, grouped) for run in study.runs], ONLY_IN)), PLAIN, "in")
        widths.append(row.high - row.low)
    assert 1.6 < widths[1] / widths[0] < 2.4  # four pictures of a subject are worth one: the square root of 4


def test_failed_runs_leave_with_their_pairs(study):
    runs = [run for run in study.runs if (run.arm, run.seed) not in ((CYBORG, 1), (PLAIN, 3))]
    failed = [failed_run(CYBORG, 1), failed_run(PLAIN, 3, error="MemoryError: no room\nat line 3")]
    analysis = analyse(study_of([*runs, *failed]), resamples=50)
    row = row_of(analysis, CYBORG)
    assert (row.seeds, row.failed, len(row.values)) == (3, 1, 4)
    baseline, values = values_of(study, PLAIN), values_of(study, CYBORG)
    kept = [0, 2, 4]
    assert row.p_value == pytest.approx(stats.ttest_rel(np.take(values, kept), np.take(baseline, kept)).pvalue)
    assert {(run.arm, run.seed) for run in analysis.failures} == {(CYBORG, 1), (PLAIN, 3)}
    notes = " ".join(analysis.notes)
    assert "cyborg with resnet18: 1 of 5 runs failed and is left out, with its pair. ValueError: the loss" in notes
    assert "MemoryError: no room" in notes
    assert "line 3" not in notes


@pytest.mark.parametrize("lost", [PLAIN, CYBORG])
def test_an_arm_that_fails_in_every_run(study, lost):
    runs = [failed_run(run.arm, run.seed) if run.arm == lost else run for run in study.runs]
    analysis = analyse(study_of(runs), resamples=50)
    row = row_of(analysis, CYBORG)
    assert row.seeds == 0
    assert np.isnan([row.difference, row.difference_low, row.p_value, row.p_holm, row.smallest_difference]).all()
    assert f"{lost.name} with resnet18: all 5 runs failed, so there is nothing to compare. ValueError" in str(
        analysis.notes
    )
    rrr = row_of(analysis, Arm("rrr"))
    assert (rrr.seeds, rrr.family) == ((0, 0) if lost == PLAIN else (5, 1))  # a test not made is not in the family


def test_one_seed_has_no_p_value():
    analysis = analyse(simple_study({"cyborg": (0.1, 0.6)}, seeds=1), resamples=50)
    row = row_of(analysis, CYBORG)
    assert row.seeds == 1
    assert row.difference == pytest.approx(row.mean - row_of(analysis, PLAIN).mean)
    assert np.isnan([row.difference_low, row.difference_high, row.p_value, row.smallest_difference]).all()
    assert row.low < row.mean < row.high
    assert (
        "One pair of runs, so there is no interval of the difference and no p-value: cyborg, in distribution; cyborg, "
        "out of distribution." in analysis.notes
    )


def test_differences_that_do_not_vary(study):
    plain = [run for run in study.runs if run.arm == PLAIN]
    same = [dataclasses.replace(run, arm=CYBORG, folder=run.folder / "a") for run in plain]
    raised = [
        dataclasses.replace(
            run,
            arm=Arm("rrr"),
            folder=run.folder / "b",
            metrics={
                split: {**figures, "auroc": figures.get("auroc", 0) + 0.01} for split, figures in run.metrics.items()
            },
        )
        for run in plain
    ]
    analysis = analyse(study_of([*plain, *same, *raised]), resamples=50)
    zero, constant = row_of(analysis, CYBORG), row_of(analysis, Arm("rrr"))
    assert (zero.difference, zero.p_value, zero.p_holm) == (0, 1, 1)
    assert constant.difference == pytest.approx(0.01)
    assert math.isnan(constant.p_value)
    assert any("Student's t-test is not defined: rrr, in dist" in note for note in analysis.notes)
    assert any("what could be found is not defined: cyborg, in dist" in note for note in analysis.notes)


def test_the_rank_test_from_eight_seeds_on():
    study = simple_study({"cyborg": (0.2, 0.2)}, seeds=8, splits=ONLY_IN)
    row = row_of(analyse(study, resamples=20), CYBORG, "in")
    test = stats.wilcoxon(values_of(study, CYBORG, "test"), values_of(study, PLAIN, "test"))
    assert row.p_signed_rank == pytest.approx(test.pvalue)


@pytest.mark.filterwarnings("error")
def test_a_test_set_of_one_class():
    study = simple_study({"cyborg": (0.1, 0.6)}, seeds=3, labels=[0] * 30)
    analysis = analyse(study, resamples=20)
    assert all(row.values == () and math.isnan(row.mean) for row in analysis.comparisons)
    assert any(note.startswith('auroc is not defined on "test" for 6 of 6 runs') for note in analysis.notes)
    by_accuracy = analyse(study_of(study.runs, metric="accuracy"), resamples=20)
    assert row_of(by_accuracy, CYBORG).p_value <= 1


@pytest.mark.parametrize("metric", ["auroc", "accuracy"])
def test_three_classes_and_other_metrics(metric):
    study = simple_study({"cyborg": (0.5, 0.5)}, classes=3, settings={"metric": metric})
    row = row_of(analyse(study, resamples=100), CYBORG)
    assert row.mean == pytest.approx(np.mean(values_of(study, CYBORG, metric=metric)))
    assert 0.01 < row.high - row.low < 0.4
    assert row.low < row.mean < row.high


def test_intervals_stay_within_the_metrics_range():
    near_one = simple_study({"cyborg": (0.5, 0.5)}, seeds=2, separation=4.0, spread=0.5)
    for row in analyse(near_one, resamples=100).comparisons:
        assert 0 <= row.low <= row.high <= 1
        assert row.arm.is_plain or -1 <= row.difference_low <= row.difference_high <= 1


def test_plain_training_stands_beside_every_share_of_the_annotation():
    runs = []
    for seed in range(3):
        runs.append(fake_run(PLAIN, seed, {"test": 0.0}))
        runs += [fake_run(CYBORG, seed, {"test": 0.3}, fraction=share, alignment=0.1 * seed) for share in (0.1, 1.0)]
    listed = [dataclasses.replace(run, annotated_fraction=0.1) for run in runs if run.arm == PLAIN]  # as it is loaded
    for study in (study_of(runs, ONLY_IN), study_of([*listed, *runs], ONLY_IN)):
        analysis = analyse(study, resamples=50)
        assert [row.annotated_fraction for row in analysis.comparisons] == [0.1, 0.1, 1.0, 1.0]
        assert row_of(analysis, CYBORG, "in", annotated_fraction=0.1).seeds == 3
        assert row_of(analysis, PLAIN, "in", annotated_fraction=0.1).mean == pytest.approx(
            row_of(analysis, PLAIN, "in", annotated_fraction=1.0).mean
        )
        assert (analysis.correlations[0].runs, analysis.correlations[0].arms) == (9, 3)


def test_a_method_that_needs_no_annotation_stands_beside_every_share_as_plain_training_does():
    runs = shared_study().runs
    analysis = analyse(study_of(runs, ONLY_IN), resamples=50)
    for share in (0.1, 1.0):
        rows = [row_of(analysis, arm, "in", annotated_fraction=share) for arm in (CYBORG, Arm("cam_entropy"))]
        assert [row.family for row in rows] == [2, 2]
        assert_allclose([row.p_holm for row in rows], holm([row.p_value for row in rows]))
    twice = [row for row in analysis.comparisons if row.arm == Arm("cam_entropy")]
    assert twice[0].values == twice[1].values
    assert twice[0].difference == twice[1].difference
    once = list({run.folder: run for run in runs}.values())
    found = analysis.correlations[0]
    assert len(runs) > len(once)
    assert (found.runs, found.arms) == (len(once), 4)
    x, y = ([run.metrics["test"][name] for run in once] for name in ("energy_inside", "auroc"))
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic)


def test_backbones_are_compared_apart():
    runs = [
        fake_run(arm, seed, {"test": gain}, backbone=backbone, alignment=0.5 + 0.1 * seed)
        for backbone in ("vit_tiny", "resnet18")
        for arm, gain in ((PLAIN, 0.0), (CYBORG, 0.4))
        for seed in range(3)
    ]
    analysis = analyse(study_of(runs, ONLY_IN, backbones={"vit_tiny": {}, "resnet18": {}}), resamples=50)
    assert [row.backbone for row in analysis.comparisons] == ["vit_tiny", "vit_tiny", "resnet18", "resnet18"]
    assert [one.backbone for one in analysis.correlations] == ["vit_tiny"] * 2 + ["resnet18"] * 2
    assert all(row.family == 1 for row in analysis.comparisons if row.arm == CYBORG)


def with_alignment(study, split, values):
    """The same runs, their alignment on a split replaced."""
    runs = []
    for run, value in zip(study.runs, values, strict=True):
        metrics = {**run.metrics, split: {**run.metrics[split], "energy_inside": value}}
        runs.append(dataclasses.replace(run, metrics=metrics))
    return study_of(runs)


def correlation_of(analysis, split="out", alignment="energy_inside"):
    (found,) = [one for one in analysis.correlations if (one.split, one.alignment) == (split, alignment)]
    return found


def test_alignment_against_generalisation(study, analysis):
    found = correlation_of(analysis)
    x = [run.metrics["ood"]["energy_inside"] for run in study.runs]
    y = [run.metrics["ood"]["auroc"] for run in study.runs]
    assert (found.runs, found.arms, found.left_out, found.alignment_split) == (25, 5, 0, "out")
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.low < found.pearson < found.high
    centred = [np.subtract(each, np.repeat([np.mean(each[i : i + 5]) for i in range(0, 25, 5)], 5)) for each in (x, y)]
    assert found.within_arms == pytest.approx(stats.pearsonr(*centred).statistic)
    opposite = correlation_of(analysis, alignment="difference_energy_inside")
    assert opposite.pearson == pytest.approx(-found.pearson)


def test_runs_without_an_alignment_are_left_out_and_counted(study):
    values = [math.nan, math.nan, *np.linspace(0, 1, len(study.runs) - 2)]
    analysis = analyse(with_alignment(study, "ood", values), resamples=50)
    found = correlation_of(analysis)
    assert (found.runs, found.left_out) == (23, 2)
    assert any("2 runs are left out, whose alignment" in note for note in analysis.notes)


def test_alignment_out_of_distribution_without_annotation(study):
    analysis = analyse(with_alignment(study, "ood", [math.nan] * len(study.runs)), resamples=50)
    found = correlation_of(analysis)
    assert (found.alignment_split, found.runs) == ("in", 25)
    x = [run.metrics["test"]["energy_inside"] for run in study.runs]
    y = [run.metrics["ood"]["auroc"] for run in study.runs]
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
    assert any("the alignment is that in distribution" in note for note in analysis.notes)


@pytest.mark.filterwarnings("error")
def test_an_alignment_that_never_changes(study):
    analysis = analyse(with_alignment(study, "ood", [0.4] * len(study.runs)), resamples=50)
    assert math.isnan(correlation_of(analysis).pearson)
    assert any("the same in every run: class map, resnet18, out of distribution" in note for note in analysis.notes)


def test_studies_that_cannot_be_analysed(study):
    twice = study_of([*study.runs, dataclasses.replace(study.runs[0], folder=study.runs[0].folder / "again")])
    with pytest.raises(ValueError, match="plain with resnet18, annotated_fraction=1 and seed=0 was run twice"):
        analyse(twice)
    with pytest.raises(ValueError, match='metric="f1" was not computed on "test"; choose from accuracy, auroc'):
        analyse(study_of(study.runs, metric="f1"))
    by_error = [
        dataclasses.replace(
            run, metrics={split: {**figures, "equal_error_rate": 0.1} for split, figures in run.metrics.items()}
        )
        for run in study.runs
    ]
    with pytest.raises(ValueError, match='cannot be compared by metric="equal_error_rate"; choose from auroc'):
        analyse(study_of(by_error, metric="equal_error_rate"))
    with pytest.raises(ValueError, match="level=95"):
        analyse(study, level=95)
    other = fake_run(CYBORG, 9, {"test": 0.0, "ood": 0.0}, pictures=60)
    with pytest.raises(ValueError, match='was judged on other pictures of "test" than'):
        analyse(study_of([*study.runs, other]))


def test_a_comparison_without_runs():
    analysis = analyse(study_of([], missing=4))
    assert analysis.comparisons == analysis.controls == analysis.correlations == ()
    assert "4 of the planned runs are still missing." in analysis.notes
