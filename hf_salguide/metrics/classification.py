"""Classification metrics on class probabilities."""

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration import error_of_checked
from .checks import check_probabilities, encode_groups
from .one_versus_rest import one_versus_rest

_Ids = NDArray[np.int64]
_Scores = NDArray[np.float64]


class WorstGroup(NamedTuple):
    """The group on which a model is right least often: its name, its accuracy and how many pictures it has."""

    name: Hashable
    accuracy: float
    pictures: int


def accuracy(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """
    Share of pictures whose most probable class is the true one (the first of several that are equally probable).

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.

    Returns:
        `float` in [0, 1]; NaN without pictures.

    Raises:
        ValueError: for probabilities that are not finite or outside [0, 1], and labels that are no class ids.
    """
    return _accuracy(*check_probabilities(labels, probabilities))


def balanced_accuracy(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """
    Mean of the recalls of the classes that occur.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.

    Returns:
        `float` in [0, 1]; NaN without pictures.

    Raises:
        ValueError: as [`accuracy`].
    """
    return _balanced_accuracy(*check_probabilities(labels, probabilities))


def auroc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """
    Area under the receiver operating characteristic: of class 1 for two classes, one-vs-rest macro average for more.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.

    Returns:
        `float` in [0, 1], 0.5 for constant scores; NaN where the labels do not hold every class, for which it is not
        defined.

    Raises:
        ValueError: as [`accuracy`].
    """
    return one_versus_rest(*check_probabilities(labels, probabilities))[0]


def average_precision(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """
    Average precision: of class 1 for two classes, one-vs-rest macro average for more.

    The sum of precisions, each weighted with the gain in recall, without interpolation, as in scikit-learn. Constant
    scores give the share of the class.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.

    Returns:
        `float` in [0, 1]; NaN where the labels do not hold every class.

    Raises:
        ValueError: as [`accuracy`].
    """
    return one_versus_rest(*check_probabilities(labels, probabilities))[1]


def equal_error_rate(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """
    Error rate of two classes at the threshold where both classes have the same.

    Where no threshold gives equal rates, the point between the two nearest on the receiver operating characteristic
    (linear interpolation). The same whichever class counts as positive.

    Args:
        labels (`array` of shape `(N,)`): true class ids, 0 or 1.
        probabilities (`array` of shape `(N, 2)`): class probabilities.

    Returns:
        `float` in [0, 1], 0.5 for constant scores; NaN where the labels do not hold both classes.

    Raises:
        ValueError: as [`accuracy`], and for another number of classes.
    """
    labels, probabilities = check_probabilities(labels, probabilities)
    if probabilities.shape[1] != 2:
        raise ValueError(
            f"probabilities has {probabilities.shape[1]} classes; the equal error rate is defined for two. Sum the "
            "columns of the classes that count as one, as 1 - probability of bona fide for attacks."
        )
    return _equal_error_rate(labels, probabilities)


def group_accuracies(
    labels: ArrayLike, probabilities: ArrayLike, groups: Iterable[Hashable]
) -> dict[Hashable, tuple[float, int]]:
    """
    Accuracy and number of pictures of each group, in the order in which the groups come.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.
        groups (`Iterable` of length `N`): each picture's group, of any hashable type; pictures with `None` or NaN
            belong to no group and are left out.

    Raises:
        ValueError: as [`accuracy`], and for groups of another length or not hashable.
    """
    return _group_accuracies(*check_probabilities(labels, probabilities), groups)


def worst_group(labels: ArrayLike, probabilities: ArrayLike, groups: Iterable[Hashable]) -> WorstGroup:
    """
    The group with the lowest accuracy, the largest of several (Sagawa et al., "Distributionally robust neural
    networks for group shifts", ICLR 2020).

    Groups are meant to be attributes with many pictures each (a hospital, a background). The worst of many small
    groups, of patients for example, is near 0 by chance: look at its number of pictures.

    Args:
        labels, probabilities, groups: as [`group_accuracies`].

    Returns:
        `WorstGroup` with `name`, `accuracy` and `pictures`; `(None, nan, 0)` where no picture has a group.

    Raises:
        ValueError: as [`group_accuracies`].
    """
    return _worst_group(*check_probabilities(labels, probabilities), groups)


def worst_group_accuracy(labels: ArrayLike, probabilities: ArrayLike, groups: Iterable[Hashable]) -> float:
    """
    Lowest accuracy of a group; [`worst_group`] says which it is and how many pictures it has.

    Args:
        labels, probabilities, groups: as [`group_accuracies`].

    Returns:
        `float` in [0, 1]; NaN where no picture has a group.

    Raises:
        ValueError: as [`group_accuracies`].
    """
    return worst_group(labels, probabilities, groups).accuracy


def classification_metrics(
    labels: ArrayLike, probabilities: ArrayLike, groups: Iterable[Hashable] | None = None
) -> dict[str, float]:
    """
    The default set of classification metrics.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.
        groups (`Iterable` of length `N`, *optional*): each picture's group, for the worst-group accuracy.

    Returns:
        `dict` with `accuracy`, `balanced_accuracy`, `auroc`, `average_precision`, `calibration_error`; with two
        classes `equal_error_rate`; with groups `worst_group_accuracy`. All in [0, 1], and NaN where not defined: see
        each function.

    Raises:
        ValueError: as [`group_accuracies`].
    """
    labels, probabilities = check_probabilities(labels, probabilities)
    area, precision = one_versus_rest(labels, probabilities)
    metrics = {
        "accuracy": _accuracy(labels, probabilities),
        "balanced_accuracy": _balanced_accuracy(labels, probabilities),
        "auroc": area,
        "average_precision": precision,
        "calibration_error": error_of_checked(labels, probabilities),
    }
    if probabilities.shape[1] == 2:
        metrics["equal_error_rate"] = _equal_error_rate(labels, probabilities)
    if groups is not None:
        metrics["worst_group_accuracy"] = _worst_group(labels, probabilities, groups).accuracy
    return metrics


def _accuracy(labels: _Ids, probabilities: _Scores) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean()) if len(labels) else float("nan")


def _balanced_accuracy(labels: _Ids, probabilities: _Scores) -> float:
    if not len(labels):
        return float("nan")
    sizes = np.bincount(labels)
    right = np.bincount(labels, weights=probabilities.argmax(axis=1) == labels)
    return float((right[sizes > 0] / sizes[sizes > 0]).mean())


def _equal_error_rate(labels: _Ids, probabilities: _Scores) -> float:
    if len(np.unique(labels)) < 2:
        return float("nan")
    from sklearn.metrics import roc_curve  # takes a second to import

    false, true, _ = roc_curve(labels, probabilities[:, 1], drop_intermediate=False)
    excess = 1 - true - false  # of misses over false alarms: falls from 1 to -1
    place = int(np.argmax(excess <= 0))
    share = excess[place - 1] / (excess[place - 1] - excess[place])
    return float(false[place - 1] + share * (false[place] - false[place - 1]))


def _group_accuracies(
    labels: _Ids, probabilities: _Scores, groups: Iterable[Hashable]
) -> dict[Hashable, tuple[float, int]]:
    codes, names = encode_groups(groups, len(labels))
    right = (probabilities.argmax(axis=1) == labels)[codes >= 0]
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    rates = np.bincount(codes[codes >= 0], weights=right, minlength=len(names)) / sizes
    return {name: (float(rate), int(size)) for name, rate, size in zip(names, rates, sizes, strict=True)}


def _worst_group(labels: _Ids, probabilities: _Scores, groups: Iterable[Hashable]) -> WorstGroup:
    found = _group_accuracies(labels, probabilities, groups)
    if not found:
        return WorstGroup(None, float("nan"), 0)
    name = min(found, key=lambda group: (found[group][0], -found[group][1]))
    return WorstGroup(name, *found[name])
