"""Figures of a card: what a model does on a set of pictures, each with its 95 % interval."""

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..metrics import (
    accuracy,
    auroc,
    auroc_of_resamples,
    balanced_accuracy,
    calibration_error,
    resample_counts,
)
from .record import Measured, SplitResult

RESAMPLES = 1000
SEED = 0
COMPARED = 50_000  # pictures of a set, at most, of which it is kept which ones the model is right on
# Of the alignment, what is a share of each picture.
SHARES = ("energy_inside", "iou", "map_precision", "map_recall", "pointing_game", "relevance_mass", "relevance_rank")
BINS = 15  # of the calibration error
FEWEST = 200  # resamples, however large the set
_AT_ONCE = 100  # resamples: what a large set needs of memory
_LARGE = 50_000  # pictures times classes, from which on there are fewer resamples
_DIGITS = 6  # kept: what rounding differs in from machine to machine is no change of a record
_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


def is_out_of_distribution(name: str) -> bool:
    """Whether a set's name says that its pictures come from elsewhere: it is `ood` or starts with it."""
    return name.lower().startswith("ood")


def split_result(
    name: str,
    labels: ArrayLike | None,
    probabilities: ArrayLike | None,
    alignment: Mapping[str, ArrayLike] | None = None,
    annotated: ArrayLike | None = None,
    groups: Iterable[Hashable] | None = None,
    out_of_distribution: bool | None = None,
    pictures: int | None = None,
    metrics: Mapping[str, float] | None = None,
) -> SplitResult:
    """
    What a card says of one set of pictures. The intervals are percentile bootstraps, see [`~metrics.resample_counts`],
    with a fixed seed: the same figures give the same result. There are 1000 resamples, of large sets fewer, at least
    200.

    Args:
        name (`str`): the set's name, such as `"test"`.
        labels (`array` of shape `(N,)`, *optional*): true class ids.
        probabilities (`array` of shape `(N, K)`, *optional*): class probabilities.
        alignment (`dict` of arrays of shape `(N,)`, *optional*): see [`~metrics.alignment_metrics`]; NaN where it is
            not defined.
        annotated (`array` of shape `(N,)`, *optional*): boolean, which pictures have saliency.
        groups (`Iterable` of length `N`, *optional*): each picture's subject, resampled as a whole.
        out_of_distribution (`bool`, *optional*): whether the pictures come from elsewhere than the training pictures.
            Defaults to whether the name starts with `ood`.
        pictures (`int`, *optional*): `N`, where neither labels nor probabilities tell.
        metrics (`dict`, *optional*): figures of which no more is known. The accuracy among them is taken, with
            Wilson's interval, where there are no labels or probabilities.

    Returns:
        [`SplitResult`]: without the metrics that are not defined, such as the AUROC where a class is missing.

    Raises:
        ValueError: for arrays of different lengths.
    """
    known = {key: np.asarray(values, dtype=np.float64) for key, values in (alignment or {}).items()}
    ids = None if labels is None else np.asarray(labels)
    scores = None if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    subjects = None if groups is None else list(groups)
    flags = None if annotated is None else np.asarray(annotated, dtype=bool)
    parts: list[tuple[str, Any]] = [("labels", ids), ("probabilities", scores), ("annotated", flags)]
    parts += [("groups", subjects), *known.items()]
    lengths = {key: len(values) for key, values in parts if values is not None}
    if pictures is not None:
        lengths["pictures"] = pictures
    if not lengths or len(set(lengths.values())) > 1:
        raise ValueError(f"the result of {name!r} needs one value a picture of each kind, but there are {lengths}.")
    count = next(iter(lengths.values()))
    found, aligned = _figures(ids, scores, known, subjects, count) if count else ({}, {})
    if not found and metrics is not None and count:
        found = _counted(metrics, count)
    return SplitResult(
        name=name,
        pictures=count,
        out_of_distribution=is_out_of_distribution(name) if out_of_distribution is None else out_of_distribution,
        metrics=found,
        alignment=aligned,
        annotated=0 if flags is None else int(flags.sum()),
        groups=None if subjects is None else len(set(subjects)),
        labels=None if ids is None else digest(ids),
        right=None if ids is None or scores is None else right_ones(scores.argmax(axis=1) == ids),
    )


def digest(labels: ArrayLike) -> str:
    """By what the pictures of two results are known to be the same: their true classes, in their order."""
    ids = np.ascontiguousarray(np.asarray(labels), dtype="<i8")
    return hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()


def right_ones(right: NDArray) -> str | None:
    """Which pictures a model was right on, `(N,)`, as hexadecimal digits, the first picture first; `None` of many."""
    return np.packbits(right).tobytes().hex() if len(right) <= COMPARED else None


def accuracy_difference(own: SplitResult, other: SplitResult) -> Measured | None:
    """
    How much more accurate a model is than another one on the same pictures: Bonett and Price's interval for paired
    proportions (Journal of Educational and Behavioral Statistics 37, 2012), which counts the pictures that one of them
    alone is right on.

    Args:
        own, other ([`SplitResult`]): of the two models.

    Returns:
        [`Measured`] in [-1, 1], or `None` where the pictures are not known to be the same, or are not independent
        (several of a subject).
    """
    same = own.labels is not None and own.labels == other.labels and own.pictures == other.pictures
    if not same or own.right is None or other.right is None or own.groups or other.groups or not own.pictures:
        return None
    count = own.pictures
    mine, theirs = (
        np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8), count=count).astype(bool)
        for bits in (own.right, other.right)
    )
    gained, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = _Z * float(np.sqrt((up + down - (up - down) ** 2) / (count + 2)))
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Measured(round((gained - lost) / count, _DIGITS), round(low, _DIGITS), round(high, _DIGITS), count)


def wilson(right: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: `right` of `count` pictures. JASA 22, 1927."""
    share = right / count
    middle = share + _Z**2 / (2 * count)
    half = _Z * float(np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)))
    return (middle - half) / (1 + _Z**2 / count), (middle + half) / (1 + _Z**2 / count)


def _resampled(strata: NDArray, groups: list[Hashable] | None, resamples: int) -> Iterator[NDArray]:
    """Multiplicities of the pictures, `(R, N)`, some resamples at a time."""
    generator = np.random.default_rng(SEED)
    for start in range(0, resamples, _AT_ONCE):
        yield resample_counts(strata, groups, min(_AT_ONCE, resamples - start), generator)


def _figures(
    labels: NDArray | None,
    scores: NDArray | None,
    alignment: Mapping[str, NDArray],
    groups: list[Hashable] | None,
    count: int,
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """Classification and alignment, over the same resamples."""
    judged = None if labels is None or scores is None else _Judged(labels, scores, groups)
    defined = {name: np.isfinite(values) for name, values in alignment.items() if np.isfinite(values).any()}
    if judged is None and not defined:
        return {}, {}
    columns = [np.where(kept, alignment[name], 0.0) for name, kept in defined.items()]
    table = np.stack([*columns, *defined.values()], axis=1).astype(np.float64) if defined else np.zeros((count, 0))
    means: list[NDArray] = []
    work = count * (1 if scores is None else scores.shape[1])
    resamples = RESAMPLES if work <= _LARGE else max(FEWEST, RESAMPLES * _LARGE // work)
    strata = np.zeros(count, dtype=np.int64) if labels is None else labels
    for counts in _resampled(strata, groups, resamples):
        weights = counts.astype(np.float64)
        sums, pictures = np.split(weights @ table, 2, axis=1)
        with np.errstate(invalid="ignore"):
            means.append(sums / pictures)
        if judged is not None:
            judged.add(counts, weights)
    drawn = np.concatenate(means)
    aligned = {
        name: _measured(float(alignment[name][kept].mean()), drawn[:, index], int(kept.sum()))
        for index, (name, kept) in enumerate(defined.items())
    }
    for name, measured in aligned.items():
        if name in SHARES and measured.low == measured.high and measured.value in (0.0, 1.0):
            # All pictures have the same, and so has every resample.
            units = measured.pictures if groups is None else min(measured.pictures, len(set(groups)))
            _widen(measured, wilson(measured.value * units, units))
    return {} if judged is None else judged.figures(), aligned


class _Judged:
    """The classification of pictures, and that of their resamples."""

    def __init__(self, labels: NDArray, scores: NDArray, groups: list[Hashable] | None) -> None:
        self.labels, self.scores, self.groups = labels, scores, groups
        present = np.unique(labels)
        self.values = {
            "auroc": float(auroc(labels, scores)) if len(present) == scores.shape[1] else float("nan"),
            "accuracy": accuracy(labels, scores),
            "balanced_accuracy": balanced_accuracy(labels, scores),
            "calibration_error": calibration_error(labels, scores, BINS),
        }
        self.right = (scores.argmax(axis=1) == labels).astype(np.float64)
        self.of_class = (labels[:, None] == present).astype(np.float64)
        confidence = scores.max(axis=1)
        place = np.digitize(confidence, np.arange(1, BINS) / BINS, right=True)
        self.gaps = np.eye(BINS)[place] * (self.right - confidence)[:, None]
        self.drawn: dict[str, list[NDArray]] = {name: [] for name in self.values}

    def add(self, counts: NDArray, weights: NDArray) -> None:
        """Takes multiplicities `(R, N)`, as they are and in float64."""
        total = weights.sum(axis=1)
        if not np.isnan(self.values["auroc"]):
            self.drawn["auroc"].append(auroc_of_resamples(self.labels, self.scores, counts))
        self.drawn["accuracy"].append(weights @ self.right / total)
        with np.errstate(invalid="ignore"):
            recalls = weights @ (self.of_class * self.right[:, None]) / (weights @ self.of_class)
        self.drawn["balanced_accuracy"].append(np.nanmean(recalls, axis=1))
        self.drawn["calibration_error"].append(np.abs(weights @ self.gaps).sum(axis=1) / total)

    def figures(self) -> dict[str, Measured]:
        """Each figure that is defined, with its interval."""
        drawn = {name: np.concatenate(parts) for name, parts in self.drawn.items() if parts}
        # A resample repeats pictures, which makes its calibration look worse: what matters is how far it varies.
        moved = drawn["calibration_error"]
        drawn["calibration_error"] = np.clip(moved - moved.mean() + self.values["calibration_error"], 0, 1)
        count = len(self.labels)
        found = {
            name: _measured(value, drawn[name], count) for name, value in self.values.items() if not np.isnan(value)
        }
        of_each = self.of_class.sum(axis=0)
        rates = self.right @ self.of_class / of_each
        share = 1.0 if self.groups is None else len(set(self.groups)) / count
        certain = found["accuracy"].low == found["accuracy"].high
        if certain:
            # Every class is all right or all wrong, and so is every resample: yet it is not certain.
            _widen(found["accuracy"], wilson(float(self.right.sum()) * share, count * share))
        if certain or self.groups is None:
            # A class that is rare, or all right, hardly varies in resamples. So: the mean of independent shares, each
            # with Wilson's interval, by the method of Zou and Donner, Statistics in Medicine 27, 2008.
            each = zip(rates, of_each, strict=True)
            ends = np.array([wilson(rate * of * share, of * share) for rate, of in each])
            spread = np.sqrt(((ends - rates[:, None]) ** 2).sum(axis=0)) / len(rates)
            _widen(found["balanced_accuracy"], (rates.mean() - spread[0], rates.mean() + spread[1]))
        return found


def _widen(measured: Measured, ends: tuple[float, ...]) -> None:
    low, high = float(ends[0]), float(ends[1])
    measured.low, measured.high = round(max(0.0, low), _DIGITS), round(min(1.0, high), _DIGITS)


def _counted(metrics: Mapping[str, float], count: int) -> dict[str, Measured]:
    share = metrics.get("accuracy")
    if share is None or not 0 <= share <= 1:
        return {}
    low, high = wilson(round(share * count), count)
    return {"accuracy": Measured(round(float(share), _DIGITS), round(low, _DIGITS), round(high, _DIGITS), count)}


def _measured(value: float, drawn: NDArray, pictures: int) -> Measured:
    resampled = drawn[~np.isnan(drawn)]
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (value, value)
    return Measured(round(float(value), _DIGITS), round(float(low), _DIGITS), round(float(high), _DIGITS), pictures)
