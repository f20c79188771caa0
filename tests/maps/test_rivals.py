"""The weights of a class's rivals, against the definition and the gradient of logsumexp."""

import re

import pytest
import torch

from hf_salguide.maps import RIVALS, contrast_weights, rival_weights

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1.0, 4.0]])
LABELS = torch.tensor([1, 0])


def test_softmax_weights_are_the_gradient_of_the_rivals_logsumexp():
    logits = LOGITS.clone().requires_grad_()
    false = torch.stack([logits[0, [0, 2]].logsumexp(0), logits[1, [1, 2]].logsumexp(0)])
    (expected,) = torch.autograd.grad(false.sum(), logits)
    torch.testing.assert_close(rival_weights(LOGITS, LABELS), expected)


def test_the_strongest_and_the_mean():
    assert rival_weights(LOGITS, LABELS, "max").tolist() == [[0, 0, 1], [0, 0, 1]]
    assert rival_weights(LOGITS, LABELS, "mean").tolist() == [[0.5, 0, 0.5], [0, 0.5, 0.5]]


@pytest.mark.parametrize("rival", RIVALS)
def test_of_two_classes_the_other_is_the_rival(rival):
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    weights = contrast_weights(logits, torch.tensor([0, 1, 1, 0]), rival)
    assert weights.tolist() == [[1, -1], [-1, 1], [-1, 1], [1, -1]]


@pytest.mark.parametrize("rival", RIVALS)
def test_a_contrast_is_the_class_minus_its_rivals(rival):
    weights = contrast_weights(LOGITS, LABELS, rival)
    assert weights[[0, 1], LABELS].tolist() == [1, 1]
    torch.testing.assert_close(weights.sum(1), torch.zeros(2))
    expected = torch.eye(3)[LABELS] - rival_weights(LOGITS, LABELS, rival)
    torch.testing.assert_close(weights, expected)


def test_the_weights_get_no_gradient():
    assert not contrast_weights(LOGITS.clone().requires_grad_(), LABELS).requires_grad


@pytest.mark.parametrize(
    ("logits", "labels", "rival", "message"),
    [
        (LOGITS, LABELS, "sofmax", 'rival="sofmax" is not known; choose "softmax", "max" or "mean"'),
        (LOGITS[:, :1], LABELS * 0, "max", "the model has 1 logit, and nothing to set a class against"),
        (LOGITS, LABELS[:1], "max", r"labels has shape (1,); give one class for each of 2 pictures"),
        (LOGITS, torch.tensor([1, 3]), "max", "labels hold 1 to 3, outside the model's 3 classes"),
        (LOGITS, torch.tensor([-1, 2]), "max", "labels hold -1 to 2, outside"),
    ],
)
def test_bad_input_is_told(logits, labels, rival, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        contrast_weights(logits, labels, rival)
