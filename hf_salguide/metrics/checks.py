"""What every classification metric asks of labels, probabilities, scores and groups."""

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SHOWN = 5
_ROUNDING = 1e-3  # of probabilities that were computed in half precision


def check_labels(labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    """
    Class ids as integers.

    Args:
        labels (`array` of shape `(N,)`): class ids, of any type whose values are whole.
        classes (`int`): how many classes there are.

    Raises:
        ValueError: for another shape, or for an id outside `0 ... classes - 1`.
    """
    given = np.asarray(labels)
    if given.ndim != 1:
        raise ValueError(f"labels has the shape {given.shape}; give one class id a picture, of shape (N,).")
    if given.size == 0:
        return np.zeros(0, dtype=np.int64)
    if given.dtype.kind not in "biuf" or not np.isin(given, np.arange(classes)).all():
        strange = [value for value in np.unique(given).tolist() if value not in range(classes)]
        shown = ", ".join(map(repr, strange[:_SHOWN]))
        raise ValueError(f"labels holds {shown}; with {classes} classes its values are 0 to {classes - 1}.")
    return given.astype(np.int64)


def check_finite(values: NDArray[np.float64], name: str) -> None:
    """
    Raises:
        ValueError: for NaN or an infinite value; names the rows.
    """
    finite = np.isfinite(values)
    if not finite.all():
        rows = np.unique(np.nonzero(~finite)[0])
        shown = ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
        raise ValueError(
            f"{name} is not finite in {len(rows)} of {len(values)} rows ({shown}): the model's outputs overflowed or "
            "it diverged. Lower the learning rate, or predict in float32 or bfloat16 instead of float16."
        )


def check_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """
    Labels and class probabilities as arrays.

    Args:
        labels (`array` of shape `(N,)`): class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities in [0, 1].

    Raises:
        ValueError: for other shapes, another length, values that are not finite or outside [0, 1].
    """
    given = check_probability_rows(probabilities)
    checked = check_labels(labels, given.shape[1])
    _check_length(len(checked), len(given), "probabilities")
    return checked, given


def check_probability_rows(probabilities: ArrayLike) -> NDArray[np.float64]:
    """
    Class probabilities as an array of shape `(N, K)`.

    Raises:
        ValueError: as [`check_probabilities`].
    """
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] < 2:
        raise ValueError(
            f"probabilities has the shape {given.shape}; give one column a class, of shape (N, K) with K >= 2 "
            "(for one score p of class 1: np.stack([1 - p, p], axis=1))."
        )
    check_finite(given, "probabilities")
    if given.size and (given.min() < -_ROUNDING or given.max() > 1 + _ROUNDING):
        raise ValueError(
            f"probabilities holds values from {given.min():.4g} to {given.max():.4g}, outside [0, 1]; apply softmax "
            "to logits first (scipy.special.softmax(logits, axis=1))."
        )
    return given


def check_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """
    Labels of two classes and one score a picture as arrays.

    Args:
        labels (`array` of shape `(N,)`): 0 or 1 (or `False` and `True`).
        scores (`array` of shape `(N,)`): any finite score, higher for class 1.

    Raises:
        ValueError: for other labels or shapes, another length, scores that are not finite.
    """
    given = np.asarray(scores, dtype=np.float64)
    if given.ndim != 1:
        raise ValueError(f"scores has the shape {given.shape}; give one score a picture, of shape (N,).")
    check_finite(given, "scores")
    checked = check_labels(labels, 2)
    _check_length(len(checked), len(given), "scores")
    return checked, given


def encode_groups(groups: Iterable[Hashable], count: int, name: str = "groups") -> tuple[NDArray[np.int64], list]:
    """
    Any hashable column as integers.

    Args:
        groups (`Iterable` of length `N`): names, numbers, tuples; `None` and NaN = belongs to no group.
        count (`int`): how many pictures there are.
        name (`str`, *optional*, defaults to `"groups"`): the argument's name, for messages.

    Returns:
        `tuple` of the `array` of shape `(N,)`, an index into the names or -1 for no group, and the `list` of names in
        the order in which they come.

    Raises:
        ValueError: for another length or values that are not hashable.
    """
    values = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    _check_length(len(values), count, "labels", name)
    places: dict[Hashable, int] = {}
    try:
        codes = [-1 if value is None or value != value else places.setdefault(value, len(places)) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds a value that is not hashable ({error}); give names or numbers.") from error
    return np.array(codes, dtype=np.int64), list(places)


def _check_length(found: int, expected: int, other: str, name: str = "labels") -> None:
    if found != expected:
        raise ValueError(f"{name} has {found} rows and {other} has {expected}; give one of each a picture.")
