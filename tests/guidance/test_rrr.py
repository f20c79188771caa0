"""RRR against float64 loops over rows, channels and pixels, and against captum's input gradient."""

import pytest
import torch
from captum.attr import Saliency
from gradient_oracle import (
    CHANNELS,
    SIZE,
    SmoothNetwork,
    batch_at_features,
    batch_of,
    compare,
    gradient_by_hand,
    rows_of_every_kind,
)

from hf_salguide.guidance.gradmask import GradMask
from hf_salguide.guidance.rrr import RRR


def log_probability_weights(logits):
    """Derivatives of `sum_k log p_k` by the logits: `1 - K p_k`."""
    largest = max(float(value.detach()) for value in logits)
    exponentials = [torch.exp(value - largest) for value in logits]
    total = sum(exponentials)
    return [1 - len(logits) * value / total for value in exponentials]


def oracle(network, pictures, labels, saliency, annotated, reduction, global_batch_size):
    expected = []
    rows, columns = SIZE
    for b in range(len(pictures)):
        term = torch.zeros((), dtype=torch.float64)
        off = [[1 - float(saliency[b, i, j]) for j in range(columns)] for i in range(rows)]
        n, n_out = rows * columns, sum(map(sum, off))
        if annotated[b] and n_out > 0:
            gradient = gradient_by_hand(network, pictures[b], log_probability_weights)
            for c in range(CHANNELS):
                for i in range(rows):
                    for j in range(columns):
                        term = term + (gradient[c][i][j] * off[i][j]) ** 2
            term = term * (global_batch_size if reduction == "reference" else n * n / n_out)
        expected.append(term)
    return expected


@pytest.mark.parametrize("reduction", ["normalised", "reference"])
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_and_gradients_equal_a_float64_loop(classes, reduction):
    network = SmoothNetwork(classes)
    rows = rows_of_every_kind(classes)
    terms = RRR(reduction=reduction).terms(batch_of(network, *rows, global_batch_size=7))
    compare(network, terms, oracle(network, *rows, reduction, global_batch_size=7))
    assert terms[1] == 0  # not annotated
    assert terms[2] > 0  # an empty mask: everything is outside
    assert terms[4] == 0  # a full one: nothing is


@pytest.mark.parametrize("classes", [2, 4])
def test_the_gradient_is_captums(classes):
    network = SmoothNetwork(classes)
    pictures, labels, saliency, annotated = rows_of_every_kind(classes)
    explained = Saliency(lambda x: network(x).log_softmax(dim=1).sum(dim=1))
    gradient = explained.attribute(pictures.clone().requires_grad_(), abs=False)
    off = (1 - saliency).unsqueeze(1)
    n = SIZE[0] * SIZE[1]
    expected = n * n / off.sum(dim=(1, 2, 3)) * (gradient * off).square().sum(dim=(1, 2, 3))
    terms = RRR().terms(batch_of(network, pictures, labels, saliency, annotated))
    for row in (0, 2, 3):
        assert terms[row].item() == pytest.approx(expected[row].item(), rel=1e-9)


def test_with_two_classes_it_is_gradmasks_gradient_times_the_confidence_squared():
    network = SmoothNetwork(2)
    pictures, labels, saliency, annotated = rows_of_every_kind(2)
    batch = batch_of(network, pictures, labels, saliency, annotated)
    probabilities = batch.logits.softmax(dim=1)
    confidence = (probabilities[:, 1] - probabilities[:, 0]).square()
    # The L2 form of GradMask is the root of the same sum, with the same factor.
    expected = confidence * GradMask(norm="l2").terms(batch).square()
    torch.testing.assert_close(RRR().terms(batch), expected)
    x = pictures.clone().requires_grad_()
    logits = network(x)
    (contrast,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)
    squares = (contrast * (1 - saliency).unsqueeze(1)).square().sum(dim=(1, 2, 3))
    reference = RRR(reduction="reference").terms(batch)
    torch.testing.assert_close(reference, torch.where(annotated, confidence * squares, 0.0))


def test_confident_pictures_keep_their_gradient():
    """`log(softmax + eps)` loses it: most of the term is gone at a logit scale of 60."""
    network = SmoothNetwork(3, scale=60.0)
    pictures, labels, saliency, annotated = rows_of_every_kind(3)
    terms = RRR(reduction="reference").terms(batch_of(network, pictures, labels, saliency, annotated))
    expected = oracle(network, pictures, labels, saliency, annotated, "reference", 1)
    torch.testing.assert_close(terms, torch.stack(expected))
    x = pictures.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((network(x).softmax(dim=1) + 1e-11).log().sum(), x)
    with_epsilon = (gradient * (1 - saliency).unsqueeze(1)).square().sum(dim=(1, 2, 3))[annotated].sum()
    assert with_epsilon < 0.7 * terms.sum()
    assert torch.isfinite(terms).all()


def test_in_float32_a_saturated_model_has_a_finite_term():
    network = SmoothNetwork(4, scale=1e4).float()
    pictures, labels, saliency, annotated = rows_of_every_kind(4)
    terms = RRR().terms(batch_of(network, pictures.float(), labels, saliency.float(), annotated))
    assert terms.dtype == torch.float32
    assert (terms[[0, 2, 3]] > 0).all()
    for gradient in torch.autograd.grad(terms.sum(), list(network.parameters()), allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_at_the_features_of_an_average_and_a_linear_layer_it_is_a_square_of_the_heads_weights(classes):
    generator = torch.Generator().manual_seed(classes)
    features = torch.randn(3, 5, 4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    head = torch.randn(classes, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1])
    saliency = (torch.rand(3, 4, 6, generator=generator) > 0.5).double()
    annotated = torch.tensor([True, True, False])
    batch = batch_at_features(features, head, labels, saliency, annotated)
    for b, term in enumerate(RRR(at="features").terms(batch)):
        weights = log_probability_weights(list(batch.logits[b]))
        # g is sum_k w_k W_k / n in every cell, so n * n / n_out * sum over n_out cells of g^2 is the sum over channels
        expected = sum(sum(weights[k] * head[k, c] for k in range(classes)) ** 2 for c in range(5))
        assert term.item() == pytest.approx(expected.item() if annotated[b] else 0.0, rel=1e-9)


def test_full_masks_and_no_annotation_count_nothing():
    network = SmoothNetwork(2)
    pictures, labels, saliency, annotated = rows_of_every_kind(2)
    terms = RRR().terms(batch_of(network, pictures, labels, torch.ones_like(saliency), annotated))
    assert not terms.any()
    for gradient in torch.autograd.grad(terms.sum(), list(network.parameters()), allow_unused=True):
        assert gradient is None or not gradient.any()
    nobody = torch.zeros(5, dtype=torch.bool)
    terms = RRR().terms(batch_of(network, pictures, labels, saliency, nobody))
    assert terms.tolist() == [0.0] * 5
    assert not terms.requires_grad


def test_what_it_is():
    method = RRR()
    assert (method.name, method.cost, method.needs_maps, method.accepts_empty_masks) == (
        "rrr",
        "gradient",
        False,
        True,
    )
    assert (method.default_task_weight, method.default_weight) == (1.0, 0.2)
    assert (method.gradient_at, method.gradient_engine) == ("input", "auto")
    assert "1703.03717" in method.paper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "logits"}, "at='logits'"),
        ({"reduction": "mean"}, "reduction='mean'"),
        ({"gradient_engine": "central"}, "gradient_engine='central'"),
        ({"at": "features", "gradient_engine": "finite_difference"}, 'take "double_backward" or "auto"'),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RRR(**options)
