"""Thresholds taken on one set of pictures and used on another."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .checks import check_scores

_ROUNDING = 1e-9  # 0.07 * 100 is a little more than 7


class OperatingPoint(NamedTuple):
    """A threshold and what it gives: the share of class 1 that is found and of class 0 that is left alone."""

    threshold: float
    sensitivity: float
    specificity: float


def threshold_at_specificity(labels: ArrayLike, scores: ArrayLike, specificity: float) -> float:
    """
    The lowest threshold with at least the wanted specificity, and so the one with the highest sensitivity.

    A picture counts as class 1 where `score >= threshold`. The threshold is the next number above the score of the
    picture of class 0 that has to stay below it, so that all that tie with it stay below too: it depends on class 0
    only. The specificity that is reached is the wanted one rounded up to a step of `1 / (pictures of class 0)`: 1 %
    false alarms cannot be told from none with fewer than 100 of them.

    Args:
        labels (`array` of shape `(N,)`): 0 or 1.
        scores (`array` of shape `(N,)`): any finite score, higher for class 1.
        specificity (`float`): wanted share of class 0 below the threshold, in [0, 1].

    Returns:
        `float`: the threshold; `-inf`, where everything is class 1, for a specificity of 0; NaN without pictures of
        class 0.

    Raises:
        ValueError: for scores that are not finite, other labels, and a specificity outside [0, 1].
    """
    labels, scores = check_scores(labels, scores)
    if not 0 <= specificity <= 1:
        raise ValueError(f"specificity={specificity}; give a share in [0, 1], such as 0.95.")
    negative = np.sort(scores[labels == 0])
    if not len(negative):
        return float("nan")
    below = math.ceil(specificity * len(negative) - _ROUNDING)
    return float(np.nextafter(negative[below - 1], np.inf)) if below else float("-inf")


def operating_point(labels: ArrayLike, scores: ArrayLike, threshold: float) -> OperatingPoint:
    """
    Sensitivity and specificity at a threshold: a picture counts as class 1 where `score >= threshold`.

    Args:
        labels (`array` of shape `(N,)`): 0 or 1.
        scores (`array` of shape `(N,)`): any finite score, higher for class 1.
        threshold (`float`): a threshold that was taken elsewhere.

    Returns:
        `OperatingPoint`; the sensitivity is NaN without pictures of class 1, the specificity without any of class 0,
        and both for a threshold that is NaN.

    Raises:
        ValueError: for scores that are not finite and other labels.
    """
    labels, scores = check_scores(labels, scores)
    if math.isnan(threshold):
        return OperatingPoint(threshold, math.nan, math.nan)
    found = scores >= threshold
    sensitivity = float(found[labels == 1].mean()) if (labels == 1).any() else math.nan
    specificity = float((~found[labels == 0]).mean()) if (labels == 0).any() else math.nan
    return OperatingPoint(float(threshold), sensitivity, specificity)


def sensitivity_at_specificity(
    labels: ArrayLike,
    scores: ArrayLike,
    specificity: float,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
) -> OperatingPoint:
    """
    Sensitivity at a fixed specificity, the threshold taken on validation.

    On the test pictures the threshold gives another specificity than the wanted one, which is returned with it.

    Args:
        labels (`array` of shape `(N,)`): 0 or 1, of the test pictures.
        scores (`array` of shape `(N,)`): any finite score, higher for class 1.
        specificity (`float`): wanted specificity on validation, in [0, 1].
        validation (`tuple` of labels and scores, *optional*): where the threshold is taken. Without it, it is taken
            on the test pictures themselves: a point of their curve, better than what a user of the model would get.

    Returns:
        `OperatingPoint` with the threshold, and the sensitivity and the specificity on the test pictures.

    Raises:
        ValueError: as [`threshold_at_specificity`].
    """
    threshold = threshold_at_specificity(*(validation or (labels, scores)), specificity)
    return operating_point(labels, scores, threshold)
