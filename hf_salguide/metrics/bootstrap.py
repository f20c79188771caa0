"""Bootstrap intervals: how far a metric would move with other test pictures, or other subjects."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import check_finite, check_labels, encode_groups
from .classification import auroc

_AT_ONCE = 64  # resamples: what is gathered of them stays in the processor's cache
_DRAWN_AT_ONCE = 1 << 20  # pictures: drawn in 64 bits, kept in 16


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


def resample_counts(
    labels: ArrayLike,
    groups: Iterable[Hashable] | None,
    resamples: int,
    generator: np.random.Generator,
) -> NDArray[np.int16]:
    """
    How often each picture occurs in each bootstrap resample.

    Without groups, the pictures of each label are drawn with replacement, as many as there are: the share of each
    label is that of the sample in every resample. With groups, whole groups are drawn: as many as there are among
    those that hold the same set of labels. Groups of one label are therefore drawn within label, and groups that hold
    several labels (a patient's healthy and ill side) are a stratum of their own, which keeps them whole and every
    label in every resample. The number of pictures then varies with the groups' sizes.

    Args:
        labels (`array` of shape `(N,)`): class ids.
        groups (`Iterable` of length `N`, *optional*): each picture's subject, of any hashable type; a picture with
            `None` or NaN is a group of its own.
        resamples (`int`): number of resamples `R`.
        generator (`np.random.Generator`): source of chance.

    Returns:
        `array` of shape `(R, N)`, int16: multiplicities, 0 or more.

    Raises:
        ValueError: for no pictures, fewer than one resample, groups of another length or not hashable.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels has the shape {labels.shape}; give one class id a picture, at least one.")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}; give at least 1 (1000 is usual).")
    units, count = _units(groups, len(labels))
    stratum = _strata(np.unique(labels, return_inverse=True)[1], units, count)
    drawn = np.zeros((resamples, count), dtype=np.int16)
    for one in range(stratum.max() + 1):
        members = np.flatnonzero(stratum == one)
        size = len(members)
        step = max(1, _DRAWN_AT_ONCE // size)
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            picked = generator.integers(0, size, (rows, size))
            picked += np.arange(rows)[:, None] * size
            counts = np.bincount(picked.ravel(), minlength=picked.size).reshape(picked.shape)
            drawn[start : start + rows, members] = counts
    return drawn if groups is None else drawn[:, units]


def auroc_of_resamples(labels: ArrayLike, scores: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
    """
    AUROC of many resamples of the same pictures at once.

    Exactly `roc_auc_score(labels, scores, sample_weight=counts[r])` for each `r`, ties counted half: the scores are
    sorted once, and the multiplicities of the pictures of class 0 are summed up to each picture of class 1.

    Args:
        labels (`array` of shape `(N,)`): class ids.
        scores (`array` of shape `(N,)` or `(N, K)`): scores of class 1 against class 0, or class probabilities: of
            class 1 for two classes, one-vs-rest macro average for more, as [`auroc`].
        counts (`array` of shape `(R, N)`): multiplicity, or any weight of 0 or more, of each picture in each resample.

    Returns:
        `array` of shape `(R,)`; NaN where a resample does not hold every class.

    Raises:
        ValueError: for other shapes, scores that are not finite, labels that are no class ids, negative counts.
    """
    scores, counts = np.asarray(scores, dtype=np.float64), np.asarray(counts)
    if scores.ndim not in (1, 2) or (scores.ndim == 2 and scores.shape[1] < 2):
        raise ValueError(f"scores has the shape {scores.shape}; give (N,), or (N, K) with K >= 2 classes.")
    check_finite(scores, "scores")
    classes = scores.shape[1] if scores.ndim == 2 else 2
    labels = check_labels(labels, classes)
    if len(labels) != len(scores) or counts.ndim != 2 or counts.shape[1] != len(labels):
        raise ValueError(
            f"labels, scores and counts have the shapes {labels.shape}, {scores.shape} and {counts.shape}; give (N,), "
            "(N,) or (N, K), and (R, N), as resample_counts does."
        )
    if counts.size and not counts.min() >= 0:
        raise ValueError(f"counts holds {counts.min()}; multiplicities and weights are 0 or more.")
    if classes == 2:
        return _binary(labels == 1, scores if scores.ndim == 1 else scores[:, 1], counts)
    return np.mean([_binary(labels == one, scores[:, one], counts) for one in range(classes)], axis=0)


def bootstrap_interval(
    statistic: Callable[[Any, Any], float],
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Iterable[Hashable] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """
    Percentile bootstrap interval of a statistic of labels and scores.

    Pictures are resampled within label, or whole groups: see [`resample_counts`]. Give the subjects as groups where
    there are several pictures of each; without them the interval is too narrow. Efron and Tibshirani, "An
    introduction to the bootstrap", 1993.

    Args:
        statistic (`Callable`): called with labels and scores of a resample, [`balanced_accuracy`] for example; for
            [`auroc`] itself all resamples are computed at once, 100 times as fast.
        labels (`array` of shape `(N,)`): class ids.
        scores (`array` of shape `(N,)` or `(N, K)`): whatever the statistic takes.
        groups (`Iterable` of length `N`, *optional*): each picture's subject.
        resamples (`int`, *optional*, defaults to 1000): number of resamples.
        level (`float`, *optional*, defaults to 0.95): share of resamples within the interval, between 0 and 1.
        seed (`int`, *optional*, defaults to 0): the same seed gives the same interval.

    Returns:
        `Interval` with `low` and `high`. Resamples on which the statistic is NaN are left out; both ends are NaN where
        it is NaN for the sample itself, or for every resample.

    Raises:
        ValueError: as [`resample_counts`], for another `level` and scores of another length.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if not 0 < level < 1:
        raise ValueError(f"level={level}; give a share between 0 and 1, such as 0.95.")
    if len(labels) != len(scores):
        raise ValueError(f"labels has {len(labels)} rows and scores has {len(scores)}; give one of each a picture.")
    counts = resample_counts(labels, groups, resamples, np.random.default_rng(seed))
    if np.isnan(statistic(labels, scores)):
        return Interval(float("nan"), float("nan"))
    if statistic is auroc:
        values = auroc_of_resamples(labels, scores, counts)
    else:
        drawn = (np.repeat(np.arange(len(labels)), count) for count in counts)
        values = np.array([statistic(labels[index], scores[index]) for index in drawn], dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _units(groups: Iterable[Hashable] | None, count: int) -> tuple[NDArray[np.int64], int]:
    """Which unit of resampling each picture belongs to, and how many there are."""
    if groups is None:
        return np.arange(count), count
    codes, names = encode_groups(groups, count)
    alone = codes < 0
    codes[alone] = len(names) + np.arange(alone.sum())
    return codes, len(names) + int(alone.sum())


def _strata(labels: NDArray[np.int64], units: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Units that hold the same set of labels are of one stratum."""
    holds = np.zeros((count, labels.max() + 1), dtype=bool)
    holds[units, labels] = True
    return np.unique(holds, axis=0, return_inverse=True)[1].reshape(-1)


def _binary(positive: NDArray[np.bool_], scores: NDArray[np.float64], counts: NDArray) -> NDArray[np.float64]:
    """AUROC of each row of `counts`, of shape `(R, N)`."""
    order = np.argsort(scores, kind="stable")
    ones, zeros = order[positive[order]], order[~positive[order]]
    strictly = np.searchsorted(scores[zeros], scores[ones], side="left")
    at_most = np.searchsorted(scores[zeros], scores[ones], side="right")
    found = np.full(len(counts), np.nan)
    for start in range(0, len(counts), _AT_ONCE):
        turned = np.ascontiguousarray(counts[start : start + _AT_ONCE].T, dtype=np.float64)
        weights = turned[ones]
        below = np.zeros((len(zeros) + 1, turned.shape[1]))
        np.cumsum(turned[zeros], axis=0, out=below[1:])
        won = np.einsum("pr,pr->r", weights, below[strictly]) + np.einsum("pr,pr->r", weights, below[at_most])
        pairs = 2 * weights.sum(axis=0) * below[-1]
        np.divide(won, pairs, out=found[start : start + _AT_ONCE], where=pairs > 0)
    return found
