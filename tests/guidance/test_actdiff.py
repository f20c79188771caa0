"""ActDiff against a float64 loop over samples and pixels, written from the formula with none of the library's code."""

import pytest
import torch
from views_support import (
    TinyNetwork,
    assert_same_gradients,
    example,
    gradients_of,
    loop_blended,
    loop_degraded,
    run,
)

from hf_salguide.guidance.actdiff import ActDiff
from hf_salguide.guidance.base import Pictures
from hf_salguide.names import POOLED


def oracle(network, pictures, degraded, layers=(POOLED,), stop=None, unit=False):
    """`sum_i mean_layers || a(x~_i) - a(x_i) ||_2`, sample by sample and feature by feature."""
    total = torch.zeros((), dtype=torch.float64)
    for row in pictures.annotated.nonzero().flatten().tolist():
        picture = network(pictures.pixel_values[row : row + 1])[1]
        view = network(degraded(row).unsqueeze(0))[1]
        for layer in layers:
            first = [value.detach() if stop == "picture" else value for value in picture[layer].flatten()]
            second = [value.detach() if stop == "view" else value for value in view[layer].flatten()]
            if unit:
                lengths = [sum(value**2 for value in vector).sqrt() for vector in (first, second)]
                first = [value / lengths[0] for value in first]
                second = [value / lengths[1] for value in second]
            squared = sum((one - other) ** 2 for one, other in zip(first, second, strict=True))
            if squared > 0:  # the root of 0 has no gradient
                total = total + squared.sqrt() / len(layers)
    return total


def shuffled(pictures):
    numbers = pictures.uniform(20)
    return lambda row: loop_degraded(pictures.pixel_values[row], pictures.saliency[row], numbers[row])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": ["stem", POOLED]},
        {"layers": "stem"},
        {"stop_gradient": "picture"},
        {"stop_gradient": "view"},
        {"normalise": True},
    ],
    ids=str,
)
def test_terms_and_gradients_equal_a_float64_loop(options, classes):
    pictures, labels = example(classes)
    network, method = TinyNetwork(classes), ActDiff(**options)
    terms = method.terms(run(method, network, pictures, labels))
    assert (terms[~pictures.annotated] == 0).all()
    assert terms[3] == 0  # a full mask: nothing is outside
    assert (terms[[0, 2, 5]] > 0).all()
    layers = options.get("layers", POOLED)
    layers = (layers,) if isinstance(layers, str) else layers
    expected = oracle(
        network, pictures, shuffled(pictures), layers, options.get("stop_gradient"), options.get("normalise", False)
    )
    assert_same_gradients(network, terms.sum(), expected)


def test_other_fills_are_laid_under_the_saliency():
    pictures, labels = example()
    network = TinyNetwork(3)
    for fill, other in (
        ("zero", torch.zeros_like),
        ("mean", lambda picture: picture.mean((1, 2), keepdim=True) + 0 * picture),
    ):
        method = ActDiff(fill=fill)
        terms = method.terms(run(method, network, pictures, labels))
        expected = oracle(
            network,
            pictures,
            lambda row, other=other: loop_blended(
                pictures.saliency[row], pictures.pixel_values[row], other(pictures.pixel_values[row])
            ),
        )
        assert_same_gradients(network, terms.sum(), expected)
    drawn = [ActDiff(fill=fill).views(pictures)[0] for fill in ("shuffle", "zero", "mean", "noise", "blur")]
    assert all(not torch.equal(one, other) for k, one in enumerate(drawn) for other in drawn[:k])
    assert not torch.equal(ActDiff(fill="blur", sigma=1.0).views(pictures)[0], drawn[-1])


def test_stopping_a_branch_stops_its_gradient():
    pictures, labels = example()
    network = TinyNetwork(3)
    for stop, alive in (("picture", "view"), ("view", "picture"), (None, "both")):
        method = ActDiff(stop_gradient=stop)
        batch = run(method, network, pictures, labels)
        own, other = batch.features[POOLED], batch.views[0].features[POOLED]
        found = torch.autograd.grad(method.terms(batch).sum(), (own, other), allow_unused=True)
        assert (found[0] is not None and bool(found[0].any())) == (alive in ("picture", "both"))
        assert (found[1] is not None and bool(found[1].any())) == (alive in ("view", "both"))


@pytest.mark.parametrize("options", [{}, {"normalise": True}, {"layers": ["stem", POOLED]}], ids=str)
def test_no_distance_has_no_gradient(options):
    pictures, labels = example()
    full = Pictures(pictures.pixel_values, torch.ones_like(pictures.saliency), pictures.annotated, pictures.uniform)
    network, method = TinyNetwork(3), ActDiff(**options)
    terms = method.terms(run(method, network, full, labels))
    assert not terms.any()
    assert not any(gradient.any() for gradient in gradients_of(network, terms.sum()).values())


def test_rows_without_saliency_change_nothing_and_have_no_gradient():
    pictures, labels = example()
    network, method = TinyNetwork(3), ActDiff()
    batch = run(method, network, pictures, labels)
    terms = method.terms(batch)
    gradient = torch.autograd.grad(terms.sum(), batch.features[POOLED])[0]
    assert not gradient[~pictures.annotated].any()
    assert gradient[[0, 2, 5]].abs().amax(1).gt(0).all()
    rows = pictures.annotated.nonzero().flatten()
    alone = method.terms(run(method, network, pictures.rows(rows), labels[rows]))
    torch.testing.assert_close(terms[rows], alone)
    changed = torch.where(pictures.annotated[:, None, None, None], pictures.pixel_values, 9.0)
    other = Pictures(changed, pictures.saliency, pictures.annotated, pictures.uniform)
    torch.testing.assert_close(method.terms(run(method, network, other, labels)), terms)
    nobody = Pictures(pictures.pixel_values, pictures.saliency, torch.zeros(6, dtype=torch.bool), pictures.uniform)
    assert method.terms(run(method, network, nobody, labels)).tolist() == [0] * 6


def test_views_are_drawn_by_key_and_detached():
    pictures, _ = example()
    pixels = pictures.pixel_values.clone().requires_grad_()
    seen = Pictures(pixels, pictures.saliency, pictures.annotated, pictures.uniform)
    state = torch.random.get_rng_state()
    (view,) = ActDiff().views(seen)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not view.requires_grad
    assert torch.equal(view, ActDiff().views(seen)[0])
    assert view.shape == pixels.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "black"}, "fill='black' is not known"),
        ({"sigma": 0}, "sigma=0 has to be a number above 0"),
        ({"stop_gradient": "both"}, "stop_gradient='both' is not known; choose one of 'picture', 'view'"),
        ({"layers": []}, r"layers=[]: give \"pooled\", or a list of names".replace("[]", r"\[\]")),
        ({"layers": [3]}, 'give "pooled", or a list of names of modules'),
        ({"batch_norm": "eval"}, "batch_norm='eval' is not known"),
    ],
    ids=str,
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ActDiff(**options)


def test_its_defaults_are_the_published_ones():
    method = ActDiff()
    assert (method.default_weight, method.default_task_weight) == (1.0, 1.0)
    assert (method.layers, method.fill, method.stop_gradient, method.normalise) == ((POOLED,), "shuffle", None, False)
    assert "1910.00199" in method.paper
    assert (method.cost, method.draws, method.needs_maps, method.accepts_empty_masks) == ("views", True, False, False)
    assert ActDiff(layers=["stem", "norm"]).layers == ("stem", "norm")
