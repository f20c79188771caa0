"""Thresholds taken on validation, against loops over the definition."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from hf_salguide.metrics import operating_point, sensitivity_at_specificity, threshold_at_specificity

pytestmark = pytest.mark.filterwarnings("error")


def sample(count=60, seed=0, decimals=1):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    return labels, (generator.normal(size=count) + labels).round(decimals)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("wanted", [0.0, 0.5, 0.9, 0.95, 0.99, 1.0])
def test_no_other_threshold_is_more_sensitive(seed, wanted):
    labels, scores = sample(seed=seed)
    point = operating_point(labels, scores, threshold_at_specificity(labels, scores, wanted))
    reached = [
        ((scores[labels == 1] >= threshold).mean(), (scores[labels == 0] < threshold).mean())
        for threshold in [*scores, np.inf]
    ]
    assert point.specificity >= wanted
    assert point.sensitivity == pytest.approx(max(sensitivity for sensitivity, other in reached if other >= wanted))


@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95])
def test_against_the_curve_of_scikit_learn(wanted):
    labels, scores = sample(200, seed=7, decimals=8)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert sensitivity_at_specificity(labels, scores, wanted).sensitivity == true[1 - false >= wanted - 1e-12].max()


def test_ties_with_the_last_picture_below_stay_below():
    labels, scores = [0, 0, 0, 0, 1, 1, 1], [0.1, 0.4, 0.4, 0.9, 0.4, 0.5, 0.9]
    threshold = threshold_at_specificity(labels, scores, 0.5)
    assert 0.4 < threshold < 0.4 + 1e-12
    assert operating_point(labels, scores, threshold) == (threshold, pytest.approx(2 / 3), 0.75)


def test_a_score_on_the_threshold_is_class_1():
    assert operating_point([0, 1], [0.5, 0.5], 0.5) == (0.5, 1.0, 0.0)
    assert operating_point([0, 1], [0.5, 0.5], np.nextafter(0.5, 1))[1:] == (0.0, 1.0)


def test_rounding_does_not_cost_a_picture():
    scores = np.arange(100) / 100
    assert (scores < threshold_at_specificity(np.zeros(100), scores, 0.07)).sum() == 7  # 0.07 * 100 > 7
    assert (scores < threshold_at_specificity(np.zeros(100), scores, 1 - 0.1)).sum() == 90


def test_the_threshold_is_that_of_validation():
    labels, scores = sample(seed=1)
    shifted = scores + 0.5
    point = sensitivity_at_specificity(labels, shifted, 0.9, validation=(labels, scores))
    assert point.threshold == threshold_at_specificity(labels, scores, 0.9)
    assert point == operating_point(labels, shifted, point.threshold)
    own = sensitivity_at_specificity(labels, shifted, 0.9)
    assert own.threshold != point.threshold
    assert point.specificity < 0.9 <= own.specificity


def test_the_threshold_depends_on_class_0_only():
    labels, scores = sample(seed=2)
    moved = np.where(labels == 1, scores * 3 + 0.01, scores)
    assert threshold_at_specificity(labels, moved, 0.9) == threshold_at_specificity(labels, scores, 0.9)


def test_what_is_not_defined():
    assert math.isnan(threshold_at_specificity([1, 1], [0.2, 0.3], 0.9))
    assert threshold_at_specificity([0, 1], [0.2, 0.3], 0.0) == -math.inf
    assert all(map(math.isnan, sensitivity_at_specificity([0, 1], [0.2, 0.3], 0.9, validation=([1], [0.1]))))
    assert math.isnan(operating_point([0], [0.2], 0.5).sensitivity)
    assert math.isnan(operating_point([1], [0.2], 0.5).specificity)
    assert all(map(math.isnan, operating_point([], [], 0.5)[1:]))


@pytest.mark.parametrize(
    ("labels", "scores", "wanted", "message"),
    [
        ([0, 1], [0.1, 0.2], 95, r"specificity=95; give a share in \[0, 1\]"),
        ([0, 1], [0.1, math.nan], 0.9, r"scores is not finite in 1 of 2 rows \(1\)"),
        ([0, 2], [0.1, 0.2], 0.9, r"labels holds 2"),
        ([0, 1], [[0.1, 0.9], [0.2, 0.8]], 0.9, r"scores has the shape \(2, 2\); give one score a picture"),
        ([0], [0.1, 0.2], 0.9, r"labels has 1 rows and scores has 2"),
    ],
)
def test_input_that_cannot_be_used(labels, scores, wanted, message):
    with pytest.raises(ValueError, match=message):
        threshold_at_specificity(labels, scores, wanted)
