"""SAGE against a float64 loop over samples and pixels, written from the formula with none of the library's code."""

import math

import pytest
import torch
from views_support import TinyNetwork, assert_same_gradients, example, gradients_of, loop_blended, loop_permuted, run

from hf_salguide.guidance.base import GuidanceBatch, Pictures, View
from hf_salguide.guidance.sage import Sage
from hf_salguide.names import POOLED


def euclidean(first, second):
    return sum((one - other) ** 2 for one, other in zip(first, second, strict=True)).sqrt()


def unit(vector):
    return vector / sum(value**2 for value in vector).sqrt()


def cosine(first, second):
    return 1 - sum(one * other for one, other in zip(unit(first), unit(second), strict=True))


def probabilities(logits, temperature):
    powers = [(value / temperature).exp() for value in logits]
    return [power / sum(powers) for power in powers]


def divergence(first, second):
    """`KL(P, M) / 2 + KL(Q, M) / 2`, class by class."""
    total = 0.0
    for p, q in zip(first, second, strict=True):
        middle = (p + q) / 2
        total = total + 0.5 * p * (p / middle).log() + 0.5 * q * (q / middle).log()
    return total


def degraded(pictures, row, fill):
    picture = pictures.pixel_values[row]
    if fill == "zero":
        return torch.zeros_like(picture)
    if fill == "mean":
        return picture.mean((1, 2), keepdim=True) + 0 * picture
    return loop_permuted(picture, pictures.uniform(20)[row], [[True] * 5] * 4)


def oracle(network, pictures, labels, classes, **options):
    margin, temperature = options.get("margin", 1.0), options.get("temperature", 2.0)
    apart = cosine if options.get("distance") == "cosine" else euclidean
    shorten = unit if options.get("normalise") else (lambda vector: vector)
    total = torch.zeros((), dtype=torch.float64)
    for row in pictures.annotated.nonzero().flatten().tolist():
        saliency, picture = pictures.saliency[row], pictures.pixel_values[row]
        if options.get("hard"):
            saliency = (saliency >= 0.5).double()
        if saliency.min() == saliency.max():
            continue
        other = degraded(pictures, row, options.get("fill", "shuffle"))
        kept, lost = loop_blended(saliency, picture, other), loop_blended(1 - saliency, picture, other)
        (z, e), (z_kept, e_kept), (z_lost, e_lost) = (
            (logits[0], features[POOLED][0])
            for logits, features in (network(one.unsqueeze(0)) for one in (picture, kept, lost))
        )
        if options.get("stop_gradient"):
            z, e = z.detach(), e.detach()
        near = apart(shorten(e), shorten(e_kept))
        hinge = near - apart(shorten(e), shorten(e_lost)) + margin
        if hinge > 0:
            total = total + options.get("triplet_weight", 1.0) * hinge
        alignment = divergence(probabilities(z, temperature), probabilities(z_kept, temperature))
        total = total + options.get("alignment_weight", 1.0) * alignment
        flat = divergence(probabilities(z_lost, temperature), [torch.tensor(1 / classes)] * classes)
        total = total + options.get("degrade_weight", 0.0) * flat
        error = -torch.log(torch.stack(probabilities(z_kept, 1.0)))[labels[row]]
        total = total + options.get("cross_entropy_weight", 0.0) * error
    return total


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fill": "zero", "margin": 0.01},  # some triplets are wide enough
        {"fill": "mean", "temperature": 0.5, "triplet_weight": 0.0},
        {"alignment_weight": 0.0, "triplet_weight": 3.0, "distance": "cosine"},
        {"normalise": True, "margin": 0.3},
        {"hard": True},
        {"stop_gradient": True},
        {"degrade_weight": 0.7, "cross_entropy_weight": 0.3},
    ],
    ids=str,
)
def test_terms_and_gradients_equal_a_float64_loop(options, classes):
    pictures, labels = example(classes)
    network, method = TinyNetwork(classes), Sage(**options)
    terms = method.terms(run(method, network, pictures, labels))
    assert not terms[[1, 2, 3, 4]].any()  # not annotated, empty, full
    assert (terms[[0, 5]] > 0).all()
    assert_same_gradients(network, terms.sum(), oracle(network, pictures, labels, classes, **options))


@pytest.mark.parametrize("fill", ["shuffle", "zero", "mean", "noise", "blur"])
def test_inverted_saliency_swaps_the_views_exactly(fill):
    pictures, _ = example()
    saliency = (pictures.saliency * 256).round() / 256  # 1 - (1 - S) is S, without rounding
    method = Sage(fill=fill)
    views = [
        method.views(Pictures(pictures.pixel_values, matte, pictures.annotated, pictures.uniform))
        for matte in (saliency, 1 - saliency)
    ]
    assert torch.equal(views[0][0], views[1][1])
    assert torch.equal(views[0][1], views[1][0])
    assert not torch.equal(views[0][0], views[0][1])


def test_inverted_saliency_swaps_the_triplet():
    pictures, labels = example()
    inverted = Pictures(pictures.pixel_values, 1 - pictures.saliency, pictures.annotated, pictures.uniform)
    network, method = TinyNetwork(3), Sage(alignment_weight=0.0, margin=10.0)
    terms = [method.terms(run(method, network, given, labels)) for given in (pictures, inverted)]
    torch.testing.assert_close((terms[0] + terms[1])[[0, 5]], torch.full((2,), 20.0, dtype=torch.float64))
    assert (terms[0] - terms[1])[[0, 5]].abs().min() > 1e-3


def test_a_row_without_a_place_has_no_gradient():
    pictures, labels = example()
    network, method = TinyNetwork(3), Sage(degrade_weight=1.0, cross_entropy_weight=1.0)
    for rows in ([2, 3], [1, 4], [1, 2, 3, 4]):
        index = torch.tensor(rows)
        terms = method.terms(run(method, network, pictures.rows(index), labels[index]))
        assert not terms.any()
        if terms.requires_grad:
            assert not any(gradient.any() for gradient in gradients_of(network, terms.sum()).values())
    constant = Pictures(
        pictures.pixel_values, torch.full_like(pictures.saliency, 0.4), pictures.annotated, pictures.uniform
    )
    assert not method.terms(run(method, network, constant, labels)).any()


def test_a_hard_matte_without_a_place_is_skipped():
    pictures, labels = example()
    faint = Pictures(pictures.pixel_values, pictures.saliency * 0.4, pictures.annotated, pictures.uniform)
    network = TinyNetwork(3)
    assert Sage().terms(run(Sage(), network, faint, labels))[[0, 5]].all()
    assert not Sage(hard=True).terms(run(Sage(hard=True), network, faint, labels)).any()


def given(embeddings, logits, saliency, labels=None):
    """A batch in which the embeddings and the logits of the picture and of both views are given."""
    (e, kept, lost), (z, z_kept, z_lost) = embeddings, logits
    labels = torch.zeros(len(e), dtype=torch.long) if labels is None else labels
    return GuidanceBatch(
        z,
        labels,
        saliency,
        torch.ones(len(e), dtype=torch.bool),
        None,
        features={POOLED: e},
        views=[View(z_kept, {POOLED: kept}), View(z_lost, {POOLED: lost})],
    )


@pytest.mark.parametrize("options", [{}, {"normalise": True}, {"distance": "cosine"}], ids=str)
def test_equal_embeddings_and_confident_logits_are_finite(options):
    saliency = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    equal = [torch.ones(2, 5).requires_grad_() for _ in range(3)]
    equal[0].data[1] = equal[1].data[1] = equal[2].data[1] = 0
    wide = torch.tensor([[500.0, 0.0, -500.0]] * 2)
    logits = [wide.clone().requires_grad_(), wide.flip(1).requires_grad_(), wide.clone().requires_grad_()]
    method = Sage(degrade_weight=1.0, **options)
    terms = method.terms(given(equal, logits, saliency))
    terms.sum().backward()
    assert torch.isfinite(terms).all()
    for tensor in (*equal, *logits):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().max() < 3
    alignment = Sage(triplet_weight=0.0).terms(given(equal, logits, saliency))
    torch.testing.assert_close(alignment, torch.full((2,), math.log(2)))  # the largest there is


def test_a_wide_triplet_costs_nothing_and_the_right_order_costs_less():
    saliency = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
    near, far, logits = torch.ones(1, 2), torch.tensor([[1.0, 4.0]]), [torch.zeros(1, 2)] * 3
    assert Sage().terms(given([near, near, far], logits, saliency)).item() == 0
    assert Sage(margin=5.0).terms(given([near, near, far], logits, saliency)).item() == pytest.approx(2.0)
    assert Sage().terms(given([near, far, near], logits, saliency)).item() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "black"}, "fill='black' is not known"),
        ({"margin": 0}, "margin=0 has to be a number above 0"),
        ({"temperature": -1.0}, "temperature=-1.0 has to be a number above 0"),
        ({"triplet_weight": -1}, "triplet_weight=-1 has to be a number, 0 or above"),
        ({"degrade_weight": float("nan")}, "degrade_weight=nan has to be a number, 0 or above"),
        ({"cross_entropy_weight": "1"}, "cross_entropy_weight='1' has to be a number, 0 or above"),
        ({"triplet_weight": 0, "alignment_weight": 0}, "leave no saliency guidance; give one a weight"),
        ({"distance": "l1"}, "distance='l1' is not known; choose one of 'euclidean', 'cosine'"),
        ({"batch_norm": "eval"}, "batch_norm='eval' is not known"),
    ],
    ids=str,
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sage(**options)


def test_it_says_that_it_is_reconstructed():
    assert Sage.reconstructed
    assert "reconstructed" in Sage.__doc__
    assert "2511.12744" in Sage.paper
    assert (Sage.default_weight, Sage.default_task_weight) == (1.0, 1.0)
    assert (Sage.cost, Sage.draws, Sage.needs_maps, Sage.accepts_empty_masks) == ("views", True, False, False)
