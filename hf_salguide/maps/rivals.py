"""Which combination of the logits speaks for one class and against the others."""

import torch
from torch import Tensor

RIVALS = ("softmax", "max", "mean")


def rival_weights(logits: Tensor, labels: Tensor, rival: str = "softmax") -> Tensor:
    """
    How much of each false class is in the false class that the true one is set against, when there are several.

    Args:
        logits (`Tensor` of shape `(B, K)`): the model's output; it gets no gradient from here.
        labels (`Tensor` of shape `(B,)`): true classes, int64.
        rival (`str`, *optional*, defaults to `"softmax"`): `"softmax"` of the false classes' logits (the gradient of
            their logsumexp), `"max"`, the strongest alone, or `"mean"`, all alike. With two classes all are the same.

    Returns:
        `Tensor` of shape `(B, K)`: not negative, 0 at the true class, each row's sum is 1.
    """
    false = logits.detach().scatter(1, labels.unsqueeze(1), -torch.inf)
    if rival == "max":
        return one_hot(false.argmax(dim=1), logits)
    if rival == "mean":
        false = torch.where(torch.isinf(false), false, 0.0)
    return false.softmax(dim=1)


def check_rival(rival: str) -> None:
    """
    Raises:
        ValueError: for a rival that is none of [`RIVALS`].
    """
    if rival not in RIVALS:
        raise ValueError(f'rival="{rival}" is not known; choose "softmax", "max" or "mean".')


def contrast_weights(logits: Tensor, labels: Tensor, rival: str = "softmax") -> Tensor:
    """
    The weights of the contrast `z_a - sum_j q_j z_j` of a class `a` to its rivals, `q` being [`rival_weights`].

    Source: Piland, Sweet, Czajka, "Divisive Decisions", arXiv 2507.17000, for two classes; the form for more is ours.

    Args:
        logits (`Tensor` of shape `(B, K)`): the model's output; it gets no gradient from here.
        labels (`Tensor` of shape `(B,)`): the class that the contrast speaks for, int64.
        rival (`str`, *optional*, defaults to `"softmax"`): what the rivals' weights are, see [`rival_weights`].

    Returns:
        `Tensor` of shape `(B, K)`: 1 at the class, not positive elsewhere, each row's sum is 0.

    Raises:
        ValueError: for an unknown `rival`, fewer than two classes, and labels of another shape or outside the classes.
    """
    batch, classes = logits.shape
    check_rival(rival)
    if classes < 2:
        raise ValueError(
            f"the model has {classes} logit, and nothing to set a class against; take one with a logit for each class."
        )
    if labels.shape != (batch,):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; give one class for each of {batch} pictures, shape ({batch},)."
        )
    if batch and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels hold {int(labels.min())} to {int(labels.max())}, outside the model's {classes} classes, 0 to "
            f"{classes - 1}."
        )
    return one_hot(labels, logits) - rival_weights(logits, labels, rival)


def one_hot(classes: Tensor, logits: Tensor) -> Tensor:
    """
    One weight a logit: 1 for the class, 0 for the others.

    Args:
        classes (`Tensor` of shape `(B,)`): class ids, int64.
        logits (`Tensor` of shape `(B, K)`): whose dtype and device it has.

    Returns:
        `Tensor` of shape `(B, K)`. Unlike `torch.nn.functional.one_hot` it does not look at the ids.
    """
    return torch.zeros_like(logits).scatter_(1, classes.unsqueeze(1), 1.0)
