"""AUROC and average precision of each class against the rest, from one sort of its scores."""

import numpy as np
from numpy.typing import NDArray


def one_versus_rest(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> tuple[float, float]:
    """
    AUROC and average precision: of class 1 for two classes, the mean over the classes for more.

    Args:
        labels (`array` of shape `(N,)`): class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities, finite.

    Returns:
        `tuple` of two `float`s in [0, 1]; NaN where the labels do not hold every class.
    """
    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes:
        return float("nan"), float("nan")
    chosen = [1] if classes == 2 else range(classes)
    areas, precisions = zip(*(_of_one(labels == one, probabilities[:, one]) for one in chosen), strict=True)
    return float(np.mean(areas)), float(np.mean(precisions))


def _of_one(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[float, float]:
    ordered, found = np.sort(scores), np.sort(scores[positive])
    below, through = np.searchsorted(ordered, found), np.searchsorted(ordered, found, side="right")
    ones, zeros = len(found), len(ordered) - len(found)
    # Twice the pairs that are in order, a tie counting half: a whole number, and so exact.
    ordered_pairs = int((below + through).sum()) - ones * ones
    reached = ones - np.searchsorted(found, found)
    return ordered_pairs / (2 * ones * zeros), float((reached / (len(ordered) - below)).mean())
