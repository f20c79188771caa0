"""Open-set metrics against scikit-learn and a loop over thresholds."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_salguide.metrics import (
    known_unknown,
    open_set_auroc,
    open_set_fpr,
    open_set_metrics,
    unknown_scores,
)

pytestmark = pytest.mark.filterwarnings("error")


def sample(count=100, seed=0, decimals=1):
    generator = np.random.default_rng(seed)
    unknown = generator.random(count) < 0.3
    return unknown, (generator.normal(size=count) + unknown).round(decimals)


def rate_by_definition(positive, negative, wanted):
    """The least share of negatives at or above a threshold that keeps the wanted share of positives."""
    kept = [(negative >= threshold).mean() for threshold in positive if (positive >= threshold).mean() >= wanted]
    return min(kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_against_the_definitions(seed, decimals):
    unknown, scores = sample(seed=seed, decimals=decimals)
    assert open_set_auroc(unknown, scores) == pytest.approx(roc_auc_score(unknown, scores))
    expected = rate_by_definition(scores[unknown], scores[~unknown], 0.95)
    assert open_set_fpr(unknown, scores) == pytest.approx(expected)
    expected = rate_by_definition(-scores[~unknown], -scores[unknown], 0.95)
    assert open_set_fpr(unknown, scores, positive="known") == pytest.approx(expected)


def test_the_rate_by_hand():
    unknown = [1] * 20 + [0] * 4
    scores = [*np.arange(1, 21), 0.5, 1.5, 2.0, 30.0]
    # 19 of 20 are at or above 2, and so are two of four known ones; 2.0 itself ties.
    assert open_set_fpr(unknown, scores) == 0.5
    assert open_set_fpr(unknown, scores, tpr=1.0) == 0.75
    # Known as positive, all four have to be kept (3 of 4 are 75 %): 30 lets every unknown one in.
    assert open_set_fpr(unknown, scores, positive="known") == 1.0
    assert open_set_fpr(unknown, scores, tpr=0.75, positive="known") == pytest.approx(2 / 20)


def test_which_kind_is_positive_matters_for_the_rate_only():
    unknown, scores = sample()
    there = open_set_metrics(unknown, scores=scores)
    other = open_set_metrics(unknown, scores=scores, positive="known")
    assert there["open_set_auroc"] == other["open_set_auroc"]
    assert there["open_set_fpr95"] != other["open_set_fpr95"]
    assert open_set_metrics(~unknown, scores=-scores) == pytest.approx(other)


def test_probabilities_are_scored_by_the_largest():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(unknown_scores(probabilities), [0.5, 0.2, 0.6, 0.0])
    unknown = [True, False, False, False]
    found = open_set_metrics(unknown, probabilities)
    assert found == open_set_metrics(unknown, scores=1 - probabilities.max(1))
    assert found == {"open_set_auroc": pytest.approx(2 / 3), "open_set_fpr95": pytest.approx(1 / 3)}


def test_a_monotone_transform_changes_nothing():
    unknown, scores = sample()
    assert open_set_metrics(unknown, scores=np.exp(scores)) == open_set_metrics(unknown, scores=scores)


def test_known_and_unknown_by_class():
    assert known_unknown([0, 2, 1, 2], 2).tolist() == [False, True, False, True]
    assert known_unknown(np.array([0, 2, 1]), [1, 2]).tolist() == [False, True, True]
    assert known_unknown(["lens", "print", None], "lens").tolist() == [True, False, False]
    assert known_unknown([("gan", 1), ("gan", 2)], ("gan", 2)).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"unknown holds 'glass', which no picture has; there are 'lens', 'print'\."):
        known_unknown(["lens", "print"], ["print", "glass"])


def test_what_is_not_defined():
    for unknown in ([True, True], [False, False], []):
        found = open_set_metrics(unknown, scores=np.arange(len(unknown), dtype=float))
        assert all(map(math.isnan, found.values()))
    assert open_set_metrics([0, 1, 1], scores=[0.4] * 3) == {"open_set_auroc": 0.5, "open_set_fpr95": 1.0}


def test_input_that_cannot_be_used():
    with pytest.raises(ValueError, match=r"give either probabilities"):
        open_set_metrics([0, 1])
    with pytest.raises(ValueError, match=r"give either probabilities"):
        open_set_metrics([0, 1], [[0.5, 0.5]] * 2, [0.1, 0.2])
    with pytest.raises(ValueError, match=r'positive="ood"; give "unknown" or "known"'):
        open_set_metrics([0, 1], scores=[0.1, 0.2], positive="ood")
    with pytest.raises(ValueError, match=r"tpr=95; give a share"):
        open_set_fpr([0, 1], [0.1, 0.2], tpr=95)
    with pytest.raises(ValueError, match=r"scores is not finite"):
        open_set_auroc([0, 1], [0.1, math.nan])
