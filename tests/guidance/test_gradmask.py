"""GradMask against float64 loops over rows, channels and pixels, and against captum's input gradient."""

import math

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


def margin_weights(label, contrast):
    """Derivatives of `z_y - logsumexp of the others`, or of `z_y - max of the others`, by the logits."""

    def weights_of(logits):
        others = [k for k in range(len(logits)) if k != label]
        if contrast == "max":
            largest = max(others, key=lambda k: float(logits[k].detach()))
            return [1.0 if k == label else -1.0 if k == largest else 0.0 for k in range(len(logits))]
        total = sum(torch.exp(logits[k]) for k in others)
        return [1.0 if k == label else -torch.exp(logits[k]) / total for k in range(len(logits))]

    return weights_of


def oracle(network, pictures, labels, saliency, annotated, norm, contrast, reduction, global_batch_size):
    expected = []
    rows, columns = SIZE
    for b in range(len(pictures)):
        term = torch.zeros((), dtype=torch.float64)
        off = [[1 - float(saliency[b, i, j]) for j in range(columns)] for i in range(rows)]
        n, n_out = rows * columns, sum(map(sum, off))
        if annotated[b] and n_out > 0:
            gradient = gradient_by_hand(network, pictures[b], margin_weights(int(labels[b]), contrast))
            for c in range(CHANNELS):
                for i in range(rows):
                    for j in range(columns):
                        value = gradient[c][i][j] * off[i][j]
                        term = term + (torch.abs(value) if norm == "l1" else value**2)
            if norm == "l2":
                term = torch.sqrt(term)
            if reduction == "reference":
                term = global_batch_size * term
            elif norm == "l1":
                term = n / n_out * term
            else:
                term = math.sqrt(n * n / n_out) * term
        expected.append(term)
    return expected


@pytest.mark.parametrize("reduction", ["normalised", "reference"])
@pytest.mark.parametrize("contrast", ["logsumexp", "max"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_and_gradients_equal_a_float64_loop(classes, norm, contrast, reduction):
    network = SmoothNetwork(classes)
    rows = rows_of_every_kind(classes)
    method = GradMask(norm=norm, contrast=contrast, reduction=reduction)
    terms = method.terms(batch_of(network, *rows, global_batch_size=7))
    compare(network, terms, oracle(network, *rows, norm, contrast, reduction, global_batch_size=7))
    assert terms[1] == 0  # not annotated
    assert terms[2] > 0  # an empty mask: everything is outside
    assert terms[4] == 0  # a full one: nothing is


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_gradient_is_captums(norm):
    network = SmoothNetwork(4)
    pictures, labels, saliency, annotated = rows_of_every_kind(4)

    def margin(x):
        logits = network(x)
        rows = [logits[b, [k for k in range(4) if k != labels[b]]].logsumexp(0) for b in range(len(x))]
        return logits[torch.arange(len(x)), labels] - torch.stack(rows)

    gradient = Saliency(margin).attribute(pictures.clone().requires_grad_(), abs=False)
    off = (1 - saliency).unsqueeze(1)
    n_out = off.sum(dim=(1, 2, 3))
    n = SIZE[0] * SIZE[1]
    if norm == "l1":
        expected = n / n_out * (gradient * off).abs().sum(dim=(1, 2, 3))
    else:
        expected = (n * n / n_out * (gradient * off).square().sum(dim=(1, 2, 3))).sqrt()
    terms = GradMask(norm=norm).terms(batch_of(network, pictures, labels, saliency, annotated))
    for row in (0, 2, 3):
        assert terms[row].item() == pytest.approx(expected[row].item(), rel=1e-9)


def test_two_classes_give_the_papers_difference_of_the_logits():
    network = SmoothNetwork(2)
    pictures, labels, saliency, annotated = rows_of_every_kind(2)
    x = pictures.clone().requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).abs().sum(), x)
    expected = (gradient * (1 - saliency).unsqueeze(1)).abs().sum(dim=(1, 2, 3))
    for contrast in ("logsumexp", "max"):
        method = GradMask(contrast=contrast, reduction="reference")
        terms = method.terms(batch_of(network, pictures, labels, saliency, annotated))
        torch.testing.assert_close(terms[[0, 2, 3]], expected[[0, 2, 3]])


def test_it_is_applied_to_the_given_classes_alone():
    network = SmoothNetwork(4)
    pictures, labels, saliency, _ = rows_of_every_kind(4)
    everyone = torch.ones(5, dtype=torch.bool)
    every = GradMask().terms(batch_of(network, pictures, labels, saliency, everyone))
    some = GradMask(classes=[0, 3]).terms(batch_of(network, pictures, labels, saliency, everyone))
    guided = (labels == 0) | (labels == 3)
    torch.testing.assert_close(some, torch.where(guided, every, 0.0))
    assert guided.tolist() == [False, True, True, True, False]
    assert (every[:3] > 0).all()


def test_permuting_the_classes_changes_nothing():
    network = SmoothNetwork(4)
    pictures, labels, saliency, annotated = rows_of_every_kind(4)
    before = GradMask().terms(batch_of(network, pictures, labels, saliency, annotated))
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        network.W2.copy_(network.W2[order])
        network.b2.copy_(network.b2[order])
    after = GradMask().terms(batch_of(network, pictures, order.argsort()[labels], saliency, annotated))
    torch.testing.assert_close(after, before)


def test_half_a_saliency_is_not_fully_outside():
    network = SmoothNetwork(2)
    pictures, labels, _, _ = rows_of_every_kind(2)
    everyone = torch.ones(5, dtype=torch.bool)
    half, empty = torch.full((5, *SIZE), 0.5), torch.zeros(5, *SIZE)
    reference = GradMask(reduction="reference")
    of_half = reference.terms(batch_of(network, pictures, labels, half, everyone))
    of_empty = reference.terms(batch_of(network, pictures, labels, empty, everyone))
    torch.testing.assert_close(of_half, 0.5 * of_empty)
    # By the share outside, a constant map says nothing but how much is outside, which does not matter.
    of_half = GradMask().terms(batch_of(network, pictures, labels, half, everyone))
    torch.testing.assert_close(of_half, of_empty)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_no_gradient_where_nothing_is_outside_and_where_the_model_is_flat(norm):
    network = SmoothNetwork(3)
    pictures, labels, saliency, annotated = rows_of_every_kind(3)
    with torch.no_grad():
        network.W2.zero_()
    terms = GradMask(norm=norm).terms(batch_of(network, pictures, labels, saliency, annotated))
    assert not terms.any()
    for gradient in torch.autograd.grad(terms.sum(), list(network.parameters()), allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()
    network = SmoothNetwork(3)
    terms = GradMask(norm=norm).terms(batch_of(network, pictures, labels, torch.ones_like(saliency), annotated))
    assert not terms.any()
    for gradient in torch.autograd.grad(terms.sum(), list(network.parameters()), allow_unused=True):
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("reduction", ["normalised", "reference"])
def test_a_full_mask_counts_nothing_on_a_grid_that_rounds(reduction):
    """The cells' means of ones are not all one; what rounding leaves outside is nothing."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 7, 7, generator=generator).requires_grad_()
    head = torch.randn(2, 3, generator=generator)
    everyone = torch.ones(2, dtype=torch.bool)
    full = torch.ones(2, 224, 224)
    full[1] -= 1e-7
    batch = batch_at_features(features, head, torch.tensor([0, 1]), full, everyone)
    terms = GradMask(at="features", reduction=reduction).terms(batch)
    assert terms.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("classes", [2, 4])
def test_at_the_features_of_an_average_and_a_linear_layer_it_is_a_norm_of_the_heads_weights(classes):
    generator = torch.Generator().manual_seed(classes)
    features = torch.randn(3, 5, 4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    head = torch.randn(classes, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1])
    saliency = torch.rand(3, 16, 24, generator=generator, dtype=torch.float64)
    annotated = torch.tensor([True, True, False])
    batch = batch_at_features(features, head, labels, saliency, annotated)
    cells = 4 * 6
    for b, term in enumerate(GradMask(at="features").terms(batch)):
        weights = margin_weights(int(labels[b]), "logsumexp")(list(batch.logits[b]))
        in_each_cell = [sum(weights[k] * head[k, c] for k in range(classes)) / cells for c in range(5)]
        # n / n_out * sum over cells of |g| O, the same g in every cell
        expected = cells * sum(value.abs() for value in in_each_cell) if annotated[b] else torch.zeros(())
        assert term.item() == pytest.approx(expected.item(), rel=1e-9)


def test_without_annotation_nothing_is_computed():
    network = SmoothNetwork(2)
    pictures, labels, saliency, _ = rows_of_every_kind(2)
    nobody = torch.zeros(5, dtype=torch.bool)
    terms = GradMask().terms(batch_of(network, pictures, labels, saliency, nobody))
    assert terms.tolist() == [0.0] * 5
    assert not terms.requires_grad


def test_what_it_is():
    method = GradMask()
    assert (method.name, method.cost, method.needs_maps, method.accepts_empty_masks) == (
        "gradmask",
        "gradient",
        False,
        True,
    )
    assert (method.default_task_weight, method.default_weight) == (1.0, 3.25)
    assert (method.gradient_at, method.gradient_engine) == ("input", "auto")
    assert GradMask(at="features").gradient_at == "features"
    assert "1904.07478" in method.paper
    assert "1910.00199" in method.paper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "logits"}, "at='logits' is not known; choose one of 'input', 'features'"),
        ({"norm": "l3"}, "norm='l3'"),
        ({"contrast": "mean"}, "contrast='mean'"),
        ({"reduction": "sum"}, "reduction='sum'"),
        ({"gradient_engine": "central"}, "gradient_engine='central'"),
        ({"at": "features", "gradient_engine": "finite_difference"}, 'take "double_backward" or "auto"'),
        ({"classes": []}, r"classes=\[\] has to be a list of class ids"),
        ({"classes": 1}, "classes=1 has to be"),
        ({"classes": [True]}, r"classes=\[True\] has to be"),
        ({"classes": [-1]}, r"classes=\[-1\] has to be"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradMask(**options)


def test_a_class_that_the_model_does_not_have_is_refused():
    batch = batch_of(SmoothNetwork(2), *rows_of_every_kind(2))
    with pytest.raises(ValueError, match=r"classes=\[1, 2\] has 2, and the model's classes are 0 to 1"):
        GradMask(classes=[1, 2]).terms(batch)
