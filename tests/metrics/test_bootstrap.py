"""The bootstrap against scikit-learn with weights, loops, and simulated coverage."""

import math
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_salguide.metrics import (
    accuracy,
    auroc,
    auroc_of_resamples,
    balanced_accuracy,
    bootstrap,
    bootstrap_interval,
    resample_counts,
)

pytestmark = pytest.mark.filterwarnings("error")


def sample(count=60, seed=0, decimals=1):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], generator.integers(0, 2, count - 2)])
    return labels, (generator.normal(size=count) + labels).round(decimals)


def predictions(count=60, seed=0):
    labels, scores = sample(count, seed)
    ones = 1 / (1 + np.exp(0.5 - scores))
    return labels, np.stack([1 - ones, ones], axis=1)


# ---- AUROC of many resamples ----


@pytest.mark.parametrize("decimals", [0, 1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_auroc_of_resamples_is_the_weighted_auroc(seed, decimals):
    labels, scores = sample(seed=seed, decimals=decimals)
    generator = np.random.default_rng(seed)
    for counts in (resample_counts(labels, None, 70, generator), generator.random((130, 60))):
        expected = [roc_auc_score(labels, scores, sample_weight=row) for row in counts]
        np.testing.assert_allclose(auroc_of_resamples(labels, scores, counts), expected, rtol=0, atol=1e-12)


def test_auroc_of_resamples_is_the_share_of_ordered_pairs_of_the_pictures_drawn():
    labels, scores = sample(12)
    counts = resample_counts(labels, None, 5, np.random.default_rng(0))
    for row, found in zip(counts, auroc_of_resamples(labels, scores, counts), strict=True):
        drawn = np.repeat(np.arange(12), row)
        ones = [scores[index] for index in drawn if labels[index] == 1]
        zeros = [scores[index] for index in drawn if labels[index] == 0]
        pairs = [(one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros]
        assert found == pytest.approx(np.mean(pairs), abs=1e-12)


def test_each_picture_once_is_the_auroc_itself():
    labels, scores = sample()
    once = np.ones((1, 60), dtype=int)
    assert auroc_of_resamples(labels, scores, once)[0] == pytest.approx(roc_auc_score(labels, scores))
    assert auroc_of_resamples(labels, -scores, once)[0] == pytest.approx(1 - roc_auc_score(labels, scores))
    assert auroc_of_resamples(labels, np.zeros(60), once)[0] == 0.5


def test_class_probabilities_are_taken_as_auroc_takes_them():
    generator = np.random.default_rng(0)
    for classes in (2, 3, 4):
        labels = np.concatenate([np.arange(classes), generator.integers(0, classes, 50)])
        probabilities = generator.dirichlet(np.ones(classes), len(labels)).round(1)
        counts = resample_counts(labels, None, 20, generator)
        expected = [auroc(np.repeat(labels, row), np.repeat(probabilities, row, axis=0).clip(0, 1)) for row in counts]
        np.testing.assert_allclose(auroc_of_resamples(labels, probabilities, counts), expected, atol=1e-12)


def test_a_resample_without_a_class_is_not_defined():
    counts = np.array([[1, 1, 0], [0, 2, 1], [0, 0, 0]])
    found = auroc_of_resamples([0, 0, 1], [0.1, 0.5, 0.3], counts)
    assert found[1] == 0.0
    assert np.isnan(found[[0, 2]]).all()
    assert np.isnan(auroc_of_resamples([1, 1], [0.1, 0.5], np.ones((3, 2)))).all()


@pytest.mark.parametrize(
    ("labels", "scores", "counts", "message"),
    [
        ([0, 1], [0.1, math.nan], [[1, 1]], "scores is not finite in 1 of 2 rows"),
        ([0, 2], [0.1, 0.2], [[1, 1]], "labels holds 2"),
        ([0, 1], [0.1, 0.2], [[1, 1, 1]], r"have the shapes \(2,\), \(2,\) and \(1, 3\)"),
        ([0, 1], [0.1, 0.2], [1, 1], r"and \(R, N\)"),
        ([0, 1], [0.1, 0.2, 0.3], [[1, 1]], r"have the shapes \(2,\), \(3,\)"),
        ([0, 1], [[0.1], [0.2]], [[1, 1]], r"scores has the shape \(2, 1\)"),
        ([0, 1], [0.1, 0.2], [[1, -1]], "counts holds -1"),
    ],
)
def test_resamples_that_cannot_be_used(labels, scores, counts, message):
    with pytest.raises(ValueError, match=message):
        auroc_of_resamples(labels, scores, counts)


# ---- What is drawn ----


def test_pictures_are_drawn_within_label():
    labels = np.array([0] * 30 + [1] * 10 + [2] * 5)
    counts = resample_counts(labels, None, 4000, np.random.default_rng(0))
    assert counts.shape == (4000, 45)
    for label, size in enumerate((30, 10, 5)):
        assert (counts[:, labels == label].sum(axis=1) == size).all()
        # Each count is binomial(size, 1 / size): mean 1, variance 1 - 1 / size.
        np.testing.assert_allclose(counts[:, labels == label].mean(axis=0), 1, atol=0.08)
        assert counts[:, labels == label].var(axis=0).mean() == pytest.approx(1 - 1 / size, abs=0.03)


def test_whole_groups_are_drawn_within_label():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    groups = ["a", "a", "b", "c", "c", "d", "d", "e", "e"]
    counts = resample_counts(labels, groups, 2000, np.random.default_rng(0))
    for first, second in ((0, 1), (3, 4), (5, 6), (7, 8)):
        assert (counts[:, first] == counts[:, second]).all()
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert (counts[:, [5, 7]].sum(axis=1) == 2).all()
    assert set(counts[:, 5].tolist()) == {0, 1, 2}
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.08)


def test_groups_of_both_labels_stay_whole_and_are_a_stratum_of_their_own():
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    groups = ["both", "both", "too", "too", "healthy", "fine", "ill", "worse"]
    counts = resample_counts(labels, groups, 500, np.random.default_rng(0))
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 2] == counts[:, 3]).all()
    for members in ([0, 2], [4, 5], [6, 7]):
        assert (counts[:, members].sum(axis=1) == 2).all()
        assert set(counts[:, members[0]].tolist()) == {0, 1, 2}
    for label in (0, 1):
        assert (counts[:, labels == label].sum(axis=1) > 0).all()


def test_pictures_without_a_group_are_groups_of_their_own():
    labels = np.zeros(6, dtype=int)
    counts = resample_counts(labels, ["a", None, "a", None, math.nan, "b"], 300, np.random.default_rng(0))
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 1] != counts[:, 3]).any()
    assert (counts[:, [0, 1, 3, 4, 5]].sum(axis=1) == 5).all()


def test_the_names_of_groups_do_not_matter_and_the_seed_does():
    labels, _ = sample()
    one, same, other = (
        resample_counts(labels, groups, 10, np.random.default_rng(seed))
        for groups, seed in (
            (np.arange(60) // 3, 0),
            ([(int(i) // 3, "x") for i in range(60)], 0),
            (np.arange(60) // 3, 1),
        )
    )
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize("grouped", [False, True])
def test_what_is_drawn_does_not_depend_on_the_blocks(grouped, block, monkeypatch):
    labels = np.array([0] * 30 + [1] * 9 + [2] * 6)
    groups = np.arange(45) // 3 if grouped else None
    generator, expected = np.random.default_rng(5), np.zeros((17, 45), dtype=np.int64)
    for label in (2, 1, 0):
        rows = np.flatnonzero(labels == label)
        units = rows.reshape(-1, 3 if grouped else 1)
        for row, drawn in enumerate(generator.integers(0, len(units), (17, len(units)))):
            for unit in drawn:
                expected[row, units[unit]] += 1
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", block)
    counts = resample_counts(labels, groups, 17, np.random.default_rng(5))
    np.testing.assert_array_equal(counts, expected)


def test_resamples_of_many_pictures_fit_into_memory():
    tracemalloc.start()
    try:
        counts = resample_counts(np.arange(20_000) % 2, None, 200, np.random.default_rng(0))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (counts.sum(axis=1, dtype=np.int64) == 20_000).all()
    assert most < 12 * counts.size  # in 64 bits, drawn all at once, 24


def test_what_cannot_be_resampled():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"labels has the shape \(0,\)"):
        resample_counts([], None, 10, generator)
    with pytest.raises(ValueError, match=r"resamples=0; give at least 1"):
        resample_counts([0, 1], None, 0, generator)
    with pytest.raises(ValueError, match=r"groups has 1 rows and labels has 2"):
        resample_counts([0, 1], ["a"], 10, generator)


# ---- Intervals ----


def test_the_interval_is_of_the_percentiles_of_the_resamples():
    labels, probabilities = predictions()
    counts = resample_counts(labels, None, 200, np.random.default_rng(3))
    values = [balanced_accuracy(np.repeat(labels, row), np.repeat(probabilities, row, axis=0)) for row in counts]
    found = bootstrap_interval(balanced_accuracy, labels, probabilities, resamples=200, level=0.8, seed=3)
    assert found == pytest.approx(tuple(np.percentile(values, [10, 90])))
    wider = bootstrap_interval(balanced_accuracy, labels, probabilities, resamples=200, level=0.99, seed=3)
    assert wider.low < found.low < found.high < wider.high


def test_auroc_is_computed_at_once_and_alike():
    labels, probabilities = predictions()
    fast = bootstrap_interval(auroc, labels, probabilities, resamples=100)
    slow = bootstrap_interval(lambda some, those: auroc(some, those), labels, probabilities, resamples=100)
    assert fast == pytest.approx(slow)
    assert fast == bootstrap_interval(auroc, labels, probabilities, resamples=100)
    assert fast != bootstrap_interval(auroc, labels, probabilities, resamples=100, seed=1)


def test_repeated_pictures_of_a_subject_do_not_narrow_the_interval():
    labels, probabilities = predictions(40, seed=2)
    single = bootstrap_interval(auroc, labels, probabilities)
    subjects = np.repeat(np.arange(40), 5)
    repeated = labels[subjects], probabilities[subjects]
    assert bootstrap_interval(auroc, *repeated, groups=subjects) == pytest.approx(single, abs=0.03)
    naive = bootstrap_interval(auroc, *repeated)
    assert naive.high - naive.low < 0.6 * (single.high - single.low)


def test_what_is_not_defined():
    assert all(map(math.isnan, bootstrap_interval(auroc, [1, 1], np.full((2, 2), 0.5))))
    often = bootstrap_interval(lambda labels, scores: np.nan if 0 not in scores else 1.0, [1] * 3, np.arange(3))
    assert often == (1.0, 1.0)
    first = iter([0.5])
    assert all(map(math.isnan, bootstrap_interval(lambda *_: next(first, math.nan), [0, 1], [0, 1], resamples=5)))


def test_constant_scores_have_an_interval_of_no_width():
    assert bootstrap_interval(auroc, [0, 1, 1], np.full((3, 2), 0.5), resamples=50) == (0.5, 0.5)


def test_an_interval_that_cannot_be_had():
    with pytest.raises(ValueError, match=r"level=95; give a share between 0 and 1"):
        bootstrap_interval(accuracy, [0, 1], np.full((2, 2), 0.5), level=95)
    with pytest.raises(ValueError, match=r"labels has 2 rows and scores has 3"):
        bootstrap_interval(accuracy, [0, 1], np.full((3, 2), 0.5))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # Scores N(0, 1) and N(1, 1): AUROC = Phi(1 / sqrt 2). 400 studies: the share covered has an error of 0.02.
    truth, labels = 0.5 * (1 + math.erf(0.5)), np.repeat([0, 1], 40)
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        scores = generator.normal(size=80) + labels
        values = auroc_of_resamples(labels, scores, resample_counts(labels, None, 300, generator))
        low, high = np.quantile(values, [0.05, 0.95])
        covered += low <= truth <= high
    assert 0.83 <= covered / 400 <= 0.95
