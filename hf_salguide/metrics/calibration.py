"""Calibration: whether a model is right as often as it is sure."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import check_probabilities


class CalibrationBins(NamedTuple):
    """
    The bins of a reliability diagram: pictures, mean confidence and accuracy of each, of shape `(bins,)`; the means
    are NaN in bins without pictures.
    """

    pictures: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def calibration_bins(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> CalibrationBins:
    """
    Confidence and accuracy in bins of equal width.

    The confidence is the largest class probability. Bin `m` of `M` holds the confidences in `((m - 1)/M, m/M]`, the
    first one 0 too.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.
        bins (`int`, *optional*, defaults to 15): number of bins over [0, 1].

    Raises:
        ValueError: for probabilities that are not finite or outside [0, 1], labels that are no class ids, and fewer
            than one bin.
    """
    return bins_of_checked(*check_probabilities(labels, probabilities), bins)


def bins_of_checked(labels: NDArray[np.int64], probabilities: NDArray[np.float64], bins: int) -> CalibrationBins:
    """As [`calibration_bins`], of what [`check_probabilities`] gives."""
    if bins < 1:
        raise ValueError(f"bins={bins}; give at least 1 (15 is usual).")
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    pictures = np.bincount(place, minlength=bins)
    some = np.where(pictures > 0, pictures, np.nan)
    return CalibrationBins(
        pictures,
        np.bincount(place, weights=confidence, minlength=bins) / some,
        np.bincount(place, weights=right, minlength=bins) / some,
    )


def calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """
    Expected calibration error: the gap between confidence and accuracy, averaged over pictures in bins of confidence.

    `sum_m n_m / N * |accuracy_m - confidence_m|` over the bins of [`calibration_bins`]; Guo et al., "On calibration
    of modern neural networks", ICML 2017. With few pictures it is biased upwards, more so with more bins.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.
        bins (`int`, *optional*, defaults to 15): number of bins of equal width over [0, 1].

    Returns:
        `float` in [0, 1]; NaN without pictures.

    Raises:
        ValueError: as [`calibration_bins`].
    """
    return error_of_checked(*check_probabilities(labels, probabilities), bins)


def error_of_checked(labels: NDArray[np.int64], probabilities: NDArray[np.float64], bins: int = 15) -> float:
    """As [`calibration_error`], of what [`check_probabilities`] gives."""
    pictures, confidence, accuracy = bins_of_checked(labels, probabilities, bins)
    if not pictures.sum():
        return float("nan")
    return float(np.nansum(pictures * np.abs(accuracy - confidence)) / pictures.sum())
