"""Open set: telling pictures of known classes from those of classes, attack types or generators never seen."""

from collections.abc import Hashable, Iterable
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import check_probability_rows, check_scores, encode_groups


def known_unknown(labels: Iterable[Hashable], unknown: Iterable[Hashable] | Hashable) -> NDArray[np.bool_]:
    """
    Which pictures are of a class, attack type or generator that training has not seen.

    Args:
        labels (`Iterable` of length `N`): each picture's class, attack type or generator: ids or names.
        unknown (`Hashable` or `Iterable`): the ones never seen; a `str` or a `tuple` is one of them, anything else
            that can be iterated holds several.

    Returns:
        `array` of shape `(N,)`, `bool`: `True` = unknown.

    Raises:
        ValueError: for a name that no picture has; lists those that there are.
    """
    values = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    codes, names = encode_groups(values, len(values), "labels")
    several = isinstance(unknown, Iterable) and not isinstance(unknown, str | bytes | tuple)
    wanted: list[Any] = list(cast(Iterable[Hashable], unknown)) if several else [unknown]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(
            f"unknown holds {', '.join(map(repr, missing))}, which no picture has; there are "
            f"{', '.join(map(repr, names))}."
        )
    return np.isin(codes, [names.index(name) for name in wanted])


def unknown_scores(probabilities: ArrayLike) -> NDArray[np.float64]:
    """
    1 - largest class probability: how unsure a model is of each picture (Hendrycks and Gimpel, "A baseline for
    detecting misclassified and out-of-distribution examples in neural networks", ICLR 2017).

    Args:
        probabilities (`array` of shape `(N, K)`): class probabilities.

    Returns:
        `array` of shape `(N,)` in [0, 1], higher for what is likely to be unknown.

    Raises:
        ValueError: for probabilities that are not finite or outside [0, 1].
    """
    return 1 - check_probability_rows(probabilities).max(axis=1)


def open_set_auroc(unknown: ArrayLike, scores: ArrayLike) -> float:
    """
    Area under the receiver operating characteristic of unknown against known pictures; the same whichever is positive.

    Args:
        unknown (`array` of shape `(N,)`): 1 (or `True`) = unknown, 0 = known.
        scores (`array` of shape `(N,)`): any finite score, higher for unknown.

    Returns:
        `float` in [0, 1], 0.5 for constant scores; NaN without both kinds.

    Raises:
        ValueError: for scores that are not finite and labels other than 0 and 1.
    """
    unknown, scores = check_scores(unknown, scores)
    from sklearn.metrics import roc_auc_score  # takes a second to import

    return float(roc_auc_score(unknown, scores)) if len(np.unique(unknown)) == 2 else float("nan")


def open_set_fpr(
    unknown: ArrayLike,
    scores: ArrayLike,
    tpr: float = 0.95,
    positive: Literal["unknown", "known"] = "unknown",
) -> float:
    """
    False positive rate at a true positive rate of at least 95 %.

    With unknown as positive: the share of known pictures that are called unknown when 95 % of the unknown ones are
    found (Yang et al., "OpenOOD", 2022). With known as positive: the share of unknown pictures that are let in when
    95 % of the known ones are (Liang et al., "ODIN", ICLR 2018). The two differ; say which one is shown. Pictures
    with the same score fall on the same side.

    Args:
        unknown (`array` of shape `(N,)`): 1 (or `True`) = unknown, 0 = known.
        scores (`array` of shape `(N,)`): any finite score, higher for unknown.
        tpr (`float`, *optional*, defaults to 0.95): the true positive rate that is asked for, in (0, 1].
        positive (`str`, *optional*, defaults to `"unknown"`): `"unknown"` or `"known"`.

    Returns:
        `float` in [0, 1], 1 for constant scores; NaN without both kinds.

    Raises:
        ValueError: as [`open_set_auroc`], and for another `tpr` or `positive`.
    """
    unknown, scores = check_scores(unknown, scores)
    if positive not in ("unknown", "known"):
        raise ValueError(f'positive="{positive}"; give "unknown" or "known".')
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr={tpr}; give a share above 0 and at most 1, such as 0.95.")
    if len(np.unique(unknown)) < 2:
        return float("nan")
    if positive == "known":
        unknown, scores = 1 - unknown, -scores
    # Every threshold is kept: without the collinear ones the nearest point could lie far beyond the rate asked for.
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(unknown, scores, drop_intermediate=False)
    return float(false[np.argmax(true >= tpr)])


def open_set_metrics(
    unknown: ArrayLike,
    probabilities: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    positive: Literal["unknown", "known"] = "unknown",
) -> dict[str, float]:
    """
    How well a model tells what it has never seen.

    Args:
        unknown (`array` of shape `(N,)`): 1 (or `True`) = unknown, 0 = known; see [`known_unknown`].
        probabilities (`array` of shape `(N, K)`, *optional*): class probabilities, scored with [`unknown_scores`].
        scores (`array` of shape `(N,)`, *optional*): another score instead, higher for unknown.
        positive (`str`, *optional*, defaults to `"unknown"`): which kind is positive in the rates of
            [`open_set_fpr`].

    Returns:
        `dict` with `open_set_auroc` and `open_set_fpr95`, in [0, 1]; NaN without both kinds.

    Raises:
        ValueError: as [`open_set_fpr`], and unless one of `probabilities` and `scores` is given.
    """
    if (probabilities is None) == (scores is None):
        raise ValueError("give either probabilities, of shape (N, K), or scores, of shape (N,), higher for unknown.")
    if probabilities is not None:
        scores = unknown_scores(probabilities)
    assert scores is not None
    return {
        "open_set_auroc": open_set_auroc(unknown, scores),
        "open_set_fpr95": open_set_fpr(unknown, scores, positive=positive),
    }
