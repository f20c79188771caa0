"""Tests, corrections and bounds on numbers, against scipy, hand-worked cases and simulation."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from hf_salguide.studies.comparison import plan, words
from hf_salguide.studies.comparison.intervals import (
    correlation_intervals,
    draw_seeds,
    metric_of_resamples,
    resampled_metric,
    two_level_interval,
)
from hf_salguide.studies.comparison.statistics import (
    holm,
    paired_difference,
    paired_t_test,
    pearson,
    power_of_t_test,
    signed_rank_test,
    smallest_difference,
    without_means,
)

METRICS = ("auroc", "accuracy", "balanced_accuracy", "average_precision")
VALUES, BASELINE = [0.71, 0.68, 0.75, 0.70, 0.66], [0.65, 0.69, 0.70, 0.64, 0.63]


def differences():
    return np.subtract(VALUES, BASELINE)


def test_the_t_test_is_the_paired_one_of_scipy():
    assert paired_t_test(differences()) == pytest.approx(stats.ttest_rel(VALUES, BASELINE).pvalue)
    mean, low, high = paired_difference(VALUES, BASELINE)
    interval = stats.ttest_rel(VALUES, BASELINE).confidence_interval(0.95)
    assert_allclose([mean, low, high], [differences().mean(), interval.low, interval.high])


@pytest.mark.filterwarnings("error")
def test_the_t_test_where_nothing_varies():
    assert paired_t_test([0.0, 0.0, 0.0]) == 1
    assert math.isnan(paired_t_test([0.1, 0.1, 0.1]))
    assert math.isnan(
        paired_t_test(np.array([0.3, 0.4, 0.6]) - np.array([0.1, 0.2, 0.4]))
    )  # the same but for rounding
    assert math.isnan(paired_t_test([0.1]))
    assert math.isnan(paired_t_test([]))


@pytest.mark.filterwarnings("error")
def test_rank_tests_are_not_used_below_eight_pairs():
    eight = [0.1, 0.2, -0.05, 0.3, 0.15, 0.02, 0.07, 0.11]
    assert math.isnan(signed_rank_test(eight[:7]))
    assert signed_rank_test(eight) == pytest.approx(stats.wilcoxon(eight).pvalue)
    assert signed_rank_test(np.zeros(8)) == 1


def test_holm_by_hand():
    # .005 × 4, .01 × 3, .03 × 2, and .04 × 1, which is raised to the one before it.
    assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert_allclose(holm([0.6, 0.5]), [1, 1])
    assert_allclose(holm([0.02, math.nan, 0.03]), [0.04, math.nan, 0.04])  # a test that was not made does not count
    assert holm([]).shape == (0,)


@pytest.mark.parametrize(("pairs", "level"), [(5, 0.05), (10, 0.01), (60, 0.05)])
def test_power_is_that_of_the_noncentral_t(pairs, level):
    shift, freedom = 0.7 * math.sqrt(pairs), pairs - 1
    bound = stats.t.ppf(1 - level / 2, freedom)
    expected = stats.nct.sf(bound, freedom, shift) + stats.nct.cdf(-bound, freedom, shift)
    assert power_of_t_test(-1.4, 2.0, pairs, level) == pytest.approx(expected, abs=1e-4)
    assert power_of_t_test(0, 2.0, pairs, level) == pytest.approx(level, abs=1e-3)


@pytest.mark.parametrize(("pairs", "level"), [(2, 0.05), (3, 0.05), (5, 0.05), (5, 0.01), (12, 0.05)])
def test_the_smallest_difference_is_found_with_probability_08(pairs, level):
    true = smallest_difference(0.03, pairs, level)
    drawn = true + 0.03 * np.random.default_rng(0).standard_normal((20_000, pairs))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < level) == pytest.approx(0.8, abs=0.01)


def test_the_smallest_difference_where_there_is_no_test():
    assert math.isnan(smallest_difference(0.03, 1))
    assert math.isnan(smallest_difference(0.0, 5))
    assert math.isnan(smallest_difference(math.nan, 5))


@pytest.mark.filterwarnings("error")
def test_pearson():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 6))
    assert pearson(x, y)[0] == pytest.approx(stats.pearsonr(x, y).statistic)
    counts = np.array([[2, 0, 1, 3, 0, 1], [0, 0, 4, 0, 0, 0]])
    drawn = np.repeat(np.arange(6), counts[0])
    found = pearson(x, y, counts)
    assert found[0] == pytest.approx(stats.pearsonr(x[drawn], y[drawn]).statistic)
    assert math.isnan(found[1])
    assert math.isnan(pearson(x, np.full(6, 0.1))[0])


def test_means_of_arms_are_taken_off():
    once, weighted = np.ones((1, 4)), np.array([[3.0, 1.0, 0.0, 0.0]])
    arms = np.array([0, 0, 1, 1])
    assert_allclose(without_means([1, 3, 10, 30], arms, once), [[-1, 1, -10, 10]])
    assert_allclose(without_means([1, 3, 10, 30], arms, weighted)[0, :2], [-0.5, 1.5])


def _pictures(classes=2, count=40):
    generator = np.random.default_rng(2)
    labels = generator.permutation(np.arange(count) % classes)
    scores = np.round(generator.random((count, classes)), 1) + 0.05 + 0.3 * np.eye(classes)[labels]  # with ties
    return (
        labels,
        scores / scores.sum(axis=1, keepdims=True),
        generator.multinomial(count, np.full(count, 1 / count), 5),
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_of_resamples_are_those_of_repeated_pictures(metric, classes):
    labels, probabilities, counts = _pictures(classes)
    found = metric_of_resamples(metric, labels, probabilities, counts)
    for value, row in zip(found, counts, strict=True):
        drawn = np.repeat(np.arange(len(labels)), row)
        truth, scores = labels[drawn], probabilities[drawn]
        columns = slice(1, 2) if classes == 2 else slice(None)
        one_hot, rival = np.eye(classes)[truth][:, columns], scores[:, columns]
        expected = {
            "auroc": lambda h=one_hot, s=rival: roc_auc_score(h, s, average="macro"),
            "average_precision": lambda h=one_hot, s=rival: average_precision_score(h, s, average="macro"),
            "accuracy": lambda s=scores, t=truth: np.mean(s.argmax(1) == t),
            "balanced_accuracy": lambda s=scores, t=truth: balanced_accuracy_score(t, s.argmax(1)),
        }
        assert value == pytest.approx(expected[metric]())


def test_what_runs_are_compared_by():
    assert set(plan.METRICS) == set(words.METRICS) == set(METRICS)
    labels, probabilities, counts = _pictures()
    with pytest.raises(ValueError, match='metric="calibration_error"; choose from auroc, accuracy, balanced_accuracy'):
        metric_of_resamples("calibration_error", labels, probabilities, counts)


@pytest.mark.filterwarnings("error")
def test_average_precision_of_a_resample_without_the_class():
    labels, probabilities, counts = _pictures()
    assert math.isnan(metric_of_resamples("average_precision", labels, probabilities, counts * (labels == 0))[0])


def test_runs_share_the_resamples_and_chunks_do_not_matter(monkeypatch):
    labels, probabilities, _ = _pictures()
    same = resampled_metric("auroc", labels, [probabilities] * 2, None, 7, np.random.default_rng(0))
    assert same.shape == (2, 7)
    assert_allclose(same[0], same[1])
    assert len(np.unique(same[0])) > 1
    monkeypatch.setattr("hf_salguide.studies.comparison.intervals._CELLS", 2 * len(labels))
    chunked = resampled_metric("auroc", labels, [probabilities] * 2, None, 7, np.random.default_rng(0))
    assert chunked.shape == (2, 7)
    assert_allclose(chunked[0], chunked[1])


@pytest.mark.parametrize(
    ("seeds", "seed_noise", "picture_noise", "both", "least", "most"),
    [
        (5, 1.0, 0.0, 0.0, 0.92, 0.98),  # the plain percentile bootstrap covers in 84 %
        (3, 1.0, 0.0, 0.0, 0.90, 0.98),  # in 74 %
        (5, 1.0, 3.0, 3.0, 0.92, 0.98),
        (5, 0.0, 3.0, 0.0, 0.92, 0.98),  # Student's t over seeds covers in 0 %
        (5, 0.05, 5.0, 5.0, 0.92, 0.98),
    ],
)
def test_the_two_level_interval_covers(seeds, seed_noise, picture_noise, both, least, most):
    generator, pictures, studies, resamples = np.random.default_rng(1), 50, 400, 200
    covered = 0
    for _ in range(studies):
        runs = (
            seed_noise * generator.standard_normal((seeds, 1))
            + picture_noise * generator.standard_normal((1, pictures))
            + both * generator.standard_normal((seeds, pictures))
        )
        counts = generator.multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
        draws = draw_seeds(seeds, resamples, generator)
        low, high = two_level_interval(runs.mean(axis=1), runs @ counts.T / pictures, draws)
        covered += low <= 0 <= high
    assert least <= covered / studies <= most


def test_the_interval_where_there_is_little_to_go_by():
    one = two_level_interval(np.array([0.5]), np.array([[0.4, 0.5, 0.6]]), np.ones((3, 1), int))
    assert one[0] < 0.5 < one[1]
    never = np.full((2, 3), np.nan)
    draws = np.ones((3, 2), int)
    assert np.isnan(two_level_interval(np.array([0.5, 0.5]), never, draws)).all()
    assert two_level_interval(np.ones(2), np.ones((2, 3)), draws) == (1, 1)


def test_correlations_over_runs_and_within_arms():
    arms, seeds = np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4)
    generator = np.random.default_rng(0)
    step, within = arms * 10.0, generator.standard_normal(20)
    over, inside = correlation_intervals(step + within, step - within, arms, seeds, 300, np.random.default_rng(1))
    assert over[0] == pytest.approx(stats.pearsonr(step + within, step - within).statistic)
    assert 0.9 < over[1] <= over[0] <= over[2] <= 1
    assert_allclose(inside, -1)  # the opposite of what the arms say
    none, _ = correlation_intervals(step, np.full(20, 0.5), arms, seeds, 50, np.random.default_rng(1))
    assert np.isnan(none).all()
    two = arms < 2
    few, few_inside = correlation_intervals(
        (step + within)[two], step[two] - within[two], arms[two], seeds[two], 50, np.random.default_rng(1)
    )
    assert not math.isnan(few[0])
    assert not math.isnan(few_inside[0])
    assert np.isnan([*few[1:], *few_inside[1:]]).all()


def test_the_interval_of_a_correlation_covers_though_runs_of_an_arm_are_alike():
    generator, arms, seeds = np.random.default_rng(0), np.repeat(np.arange(8), 4), np.tile(np.arange(4), 8)
    covered = naive = 0
    for _ in range(200):
        x, y = (generator.standard_normal(8)[arms] + 0.3 * generator.standard_normal(32) for _ in range(2))
        (_, low, high), _ = correlation_intervals(x, y, arms, seeds, 150, generator)
        covered += low <= 0 <= high
        naive += stats.pearsonr(x, y).pvalue > 0.05
    assert covered / 200 >= 0.88
    assert naive / 200 < 0.75
