"""Classification metrics on class probabilities."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score


def auroc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """
    Area under the receiver operating characteristic: of class 1 for two classes, one-vs-rest macro average for more.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.

    Returns:
        `float` in [0, 1]; NaN where the labels do not hold every class, for which it is not defined.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes:
        return float("nan")
    if classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float(roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """
    Accuracy, balanced accuracy (the mean of the recalls of the classes that occur) and AUROC.

    Args:
        labels (`array` of shape `(N,)`): true class ids.
        probabilities (`array` of shape `(N, K)`): class probabilities.

    Returns:
        `dict` with `accuracy`, `balanced_accuracy` and `auroc`.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    predicted = probabilities.argmax(axis=1)
    recall = recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "balanced_accuracy": float(recall),
        "auroc": auroc(labels, probabilities),
    }
