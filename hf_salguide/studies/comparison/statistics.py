"""Statistics of paired runs: tests, Holm's correction, the smallest difference that can be found, correlation."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

RANK_TEST_PAIRS = 8  # with fewer, the smallest p-value of a signed-rank test is near or above .05
_IDENTICAL = 1e-12
_QUANTILES = 2048


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """
    Mean of the paired differences and its 95 % confidence interval by Student's t.

    Args:
        values (sequence of `float`): one a seed.
        baseline (sequence of `float`): what they are compared with, in the same order.

    Returns:
        `tuple` of mean, lower and upper end; the ends are NaN for a single pair.
    """
    differences = np.asarray(values) - np.asarray(baseline)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return mean, mean - half, mean + half


def identical(values: ArrayLike) -> bool:
    """Whether numbers are the same but for rounding (1e-12 of the largest, or of 1)."""
    values = np.asarray(values, dtype=np.float64)
    return bool(np.ptp(values) <= _IDENTICAL * max(1.0, float(np.abs(values).max())))


def paired_t_test(differences: ArrayLike) -> float:
    """
    Two-sided p-value of Student's t-test that paired differences have mean 0.

    Args:
        differences (`array` of shape `(n,)`): one a pair.

    Returns:
        `float` in [0, 1]; 1 if every difference is 0; NaN for fewer than two pairs, and where the differences are all
        the same and not 0, whose variance of 0 leaves the test undefined.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return float("nan")
    if identical(differences):
        return 1.0 if identical([*differences, 0.0]) else float("nan")
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def signed_rank_test(differences: ArrayLike) -> float:
    """
    Two-sided p-value of Wilcoxon's signed-rank test that paired differences are symmetric about 0.

    Args:
        differences (`array` of shape `(n,)`): one a pair; pairs that do not differ are dropped.

    Returns:
        `float` in [0, 1]; 1 if every difference is 0; NaN for fewer than 8 pairs, with which the test can hardly
        reject whatever the effect.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < RANK_TEST_PAIRS:
        return float("nan")
    moved = differences[np.abs(differences) > _IDENTICAL]
    return float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0


def holm(p_values: ArrayLike) -> np.ndarray:
    """
    P-values corrected for the number of tests in a family, by Holm's step-down procedure.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is below the one before it nor above 1.
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics, 1979.

    Args:
        p_values (`array` of shape `(m,)`): NaN for a test that was not made, which does not count.

    Returns:
        `array` of shape `(m,)`, in the same order; NaN where the p-value is.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(p_values.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return corrected


def power_of_t_test(difference: float, deviation: float, pairs: int, level: float = 0.05) -> float:
    """
    Probability that a paired two-sided t-test finds a true difference.

    That of a noncentral t beyond the critical values, integrated over the quantiles of the standard deviation's
    estimate, which stays finite where series for the noncentral t overflow (two pairs).

    Args:
        difference (`float`): the true mean of the differences.
        deviation (`float`): the standard deviation of the differences, above 0.
        pairs (`int`): how many there are, at least 2.
        level (`float`, *optional*, defaults to 0.05): of the test.

    Returns:
        `float` in [0, 1].
    """
    freedom = pairs - 1
    ranks = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    estimates = np.sqrt(stats.chi2.ppf(ranks, freedom) / freedom)
    bounds = stats.t.ppf(1 - level / 2, freedom) * estimates
    shift = abs(difference) / deviation * np.sqrt(pairs)
    return float(np.mean(stats.norm.sf(bounds - shift) + stats.norm.cdf(-bounds - shift)))


def smallest_difference(deviation: float, pairs: int, level: float = 0.05, power: float = 0.8) -> float:
    """
    The smallest true difference that a paired two-sided t-test would find with a given probability.

    Args:
        deviation (`float`): the standard deviation of the paired differences, in the metric's unit. It is usually an
            estimate from few pairs, and the result is as uncertain as it is.
        pairs (`int`): how many pairs there are.
        level (`float`, *optional*, defaults to 0.05): of one test; for the first step of Holm's correction over m
            tests, the level over m.
        power (`float`, *optional*, defaults to 0.8): the probability.

    Returns:
        `float`, above 0, in the metric's unit; NaN for fewer than two pairs, or a standard deviation that is not above
        0, for which there is no test.
    """
    if pairs < 2 or not deviation > 0:
        return float("nan")
    return _smallest_effect(pairs, level, power) * deviation


@lru_cache
def _smallest_effect(pairs: int, level: float, power: float) -> float:
    """In standard deviations."""
    most = 10 * (1 + stats.t.ppf(1 - level / 2, pairs - 1))
    return float(optimize.brentq(lambda effect: power_of_t_test(effect, 1.0, pairs, level) - power, 0.0, most))


def pearson(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """
    Pearson's correlation, weighted, for many sets of weights at once.

    Args:
        x (`array` of shape `(n,)` or `(R, n)`), y (the same): the points.
        weights (`array` of shape `(R, n)`, *optional*): how often each point counts, 0 and above. Defaults to once.

    Returns:
        `array` of shape `(R,)`, in [-1, 1]; NaN where x or y does not vary. R is 1 without weights.
    """
    both = [np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (x, y)]
    share = np.ones(both[0].shape) if weights is None else np.asarray(weights, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = share / share.sum(axis=1, keepdims=True)
        first, second = (values - (share * values).sum(axis=1, keepdims=True) for values in both)
        scales = [np.sqrt((share * centred**2).sum(axis=1)) for centred in (first, second)]
        varies = (scales[0] > _IDENTICAL) & (scales[1] > _IDENTICAL)
        correlation = (share * first * second).sum(axis=1) / (scales[0] * scales[1])
    return np.where(varies, np.clip(correlation, -1.0, 1.0), np.nan)


def without_means(values: ArrayLike, members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Takes each group's weighted mean off its values.

    Args:
        values (`array` of shape `(n,)`): one a run.
        members (`array` of shape `(n,)`): the group of each, numbered from 0.
        weights (`array` of shape `(R, n)`): how often each counts.

    Returns:
        `array` of shape `(R, n)`; values of a group that does not count are left as they are.
    """
    single = np.asarray(values, dtype=np.float64)
    belongs = np.eye(int(members.max()) + 1)[members]
    counts = weights @ belongs
    means = (weights * single) @ belongs / np.where(counts > 0, counts, 1.0)
    centred: np.ndarray = single - means[:, members]
    return centred
