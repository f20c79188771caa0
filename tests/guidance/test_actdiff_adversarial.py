"""Adversarial ActDiff against float64 loops: its term, its discriminator, and the discriminator's own training."""

import copy
import io
import math
import threading

import numpy as np
import pytest
import torch
from views_support import TinyNetwork, assert_same_gradients, example, loop_degraded, run

from hf_salguide.guidance.actdiff_adversarial import ActDiffAdversarial
from hf_salguide.guidance.base import Pictures
from hf_salguide.names import POOLED

SIZES = {POOLED: torch.Size([6])}


@pytest.fixture(autouse=True)
def _double():
    """A discriminator in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def alone(tensors):
    """One process: the mean is the value."""


def made(seed=0, **options):
    method = ActDiffAdversarial(**{"hidden_sizes": (5, 4), **options})
    method.setup(SIZES, torch.device("cpu"), seed)
    return method


def frozen(method):
    return copy.deepcopy(method.state_dict()["discriminator"])


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def layers_of(state):
    """
    Weight and bias of each linear layer, and, but for the last, which is not normalised, the two vectors of its power
    iteration, from what a checkpoint keeps.
    """
    *hidden, last = sorted({int(key.split(".")[0]) for key in state})
    layers = [
        {
            "W": state[f"{n}.parametrizations.weight.original"].clone().requires_grad_(),
            "b": state[f"{n}.bias"].clone().requires_grad_(),
            "u": state[f"{n}.parametrizations.weight.0._u"].clone(),
            "v": state[f"{n}.parametrizations.weight.0._v"].clone(),
        }
        for n in hidden
    ]
    plain = {name: state[f"{last}.{key}"].clone().requires_grad_() for name, key in (("W", "weight"), ("b", "bias"))}
    return [*layers, plain]


def discriminate(layers, features):
    """The discriminator's logit for one row: `W / (u' W v)` but in the last layer, ReLU between."""
    for number, layer in enumerate(layers):
        sigma = layer["u"] @ (layer["W"] @ layer["v"]) if "u" in layer else 1
        features = layer["W"] / sigma @ features + layer["b"]
        if number < len(layers) - 1:
            features = features.clamp_min(0)
    return features[0]


def cross_entropy(logit, target):
    probability = 1 / (1 + torch.exp(-logit))
    return -torch.log(probability if target else 1 - probability)


def features_of(network, pictures):
    """The pooled vectors of each row that counts: of the picture, and of the destroyed one."""
    numbers = pictures.uniform(20)
    for row in pictures.annotated.nonzero().flatten().tolist():
        picture = pictures.pixel_values[row]
        degraded = loop_degraded(picture, pictures.saliency[row], numbers[row])
        yield tuple(network(one.unsqueeze(0))[1][POOLED][0] for one in (picture, degraded))


@pytest.mark.parametrize("classes", [2, 4])
def test_terms_and_gradients_equal_a_float64_loop(classes):
    pictures, labels = example(classes)
    network, method = TinyNetwork(classes), made()
    terms = method.terms(run(method, network, pictures, labels))
    assert (terms[~pictures.annotated] == 0).all()
    assert (terms[pictures.annotated] > 0).all()
    layers = layers_of(frozen(method))
    expected = sum(
        cross_entropy(discriminate(layers, picture), 0) + cross_entropy(discriminate(layers, view), 1)
        for picture, view in features_of(network, pictures)
    )
    assert_same_gradients(network, terms.sum(), expected)


def test_the_discriminator_is_that_of_the_paper():
    method = ActDiffAdversarial()
    method.setup({POOLED: torch.Size([7])}, torch.device("cpu"), 0)
    layers = layers_of(frozen(method))
    assert [tuple(layer["W"].shape) for layer in layers] == [(1024, 7), (1024, 1024), (1024, 1024), (1, 1024)]
    for layer in layers[:-1]:
        sigma = torch.linalg.matrix_norm(layer["W"], 2)
        assert float((layer["u"] @ layer["W"] @ layer["v"] / sigma).detach()) == pytest.approx(1, abs=0.05)


def test_the_term_trains_the_model_and_not_the_discriminator():
    pictures, labels = example()
    network, method = TinyNetwork(3), made()
    before = frozen(method)
    batch = run(method, network, pictures, labels)
    first = method.terms(batch)
    first.sum().backward()
    assert same(frozen(method), before)  # no step, and no power iteration either
    assert torch.equal(method.terms(batch), first)
    discriminator = method._trained[0]
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert not discriminator.training
    method.step(alone)
    assert not same(frozen(method), before)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in discriminator.parameters())
    assert not discriminator.training


@pytest.mark.parametrize("steps", [1, 3])
def test_the_discriminators_training_equals_a_float64_loop(steps):
    """Power iteration, binary cross-entropy over the optimizer step's pictures, and Adam, each from its formula."""
    pictures, labels = example()
    network = TinyNetwork(3)
    method = made(discriminator_steps=steps, discriminator_learning_rate=0.02)
    layers = layers_of(frozen(method))
    moments = {(n, name): [0.0, 0.0] for n in range(len(layers)) for name in "Wb"}
    for step in range(1, 3):
        given = Pictures(pictures.pixel_values * step, pictures.saliency, pictures.annotated, pictures.uniform)
        method.terms(run(method, network, given, labels))
        method.step(alone)
        seen = [tuple(one.detach() for one in pair) for pair in features_of(network, given)]
        for repeat in range(1, steps + 1):
            for layer in layers[:-1]:
                image = layer["W"].detach() @ layer["v"]
                layer["u"] = image / image.norm()
                image = layer["W"].detach().T @ layer["u"]
                layer["v"] = image / image.norm()
            loss = sum(
                cross_entropy(discriminate(layers, picture), 1) + cross_entropy(discriminate(layers, view), 0)
                for picture, view in seen
            )
            loss = loss / 6  # pictures, not rows that count
            gradients = torch.autograd.grad(loss, [layer[name] for layer in layers for name in "Wb"])
            count = (step - 1) * steps + repeat
            for (key, moment), gradient in zip(moments.items(), gradients, strict=True):
                moment[0] = 0.9 * moment[0] + 0.1 * gradient
                moment[1] = 0.999 * moment[1] + 0.001 * gradient**2
                change = moment[0] / (1 - 0.9**count) / ((moment[1] / (1 - 0.999**count)).sqrt() + 1e-8)
                parameter = layers[key[0]][key[1]]
                layers[key[0]][key[1]] = (parameter - 0.02 * change).detach().requires_grad_()
    for layer, expected in zip(layers_of(frozen(method)), layers, strict=True):
        for name in layer:
            torch.testing.assert_close(layer[name].detach(), expected[name].detach(), rtol=1e-6, atol=1e-9)


def test_the_discriminator_learns_to_tell_the_features_apart():
    pictures, labels = example()
    network, method = TinyNetwork(3), made(hidden_sizes=(32, 32), discriminator_learning_rate=1e-2)
    terms = []
    for _ in range(60):
        terms.append(method.terms(run(method, network, pictures, labels))[[0, 2, 5]].sum().item())
        method.step(alone)
    assert terms[-1] > terms[0] + 1  # what the model pays grows as the discriminator gets better


def test_accumulation_changes_nothing():
    pictures, labels = example()
    network = TinyNetwork(3)
    parts = {"whole": [range(6)], "halves": [range(3), range(3, 6)], "with an empty one": [[0, 2, 3, 5], [1, 4]]}
    states, terms = {}, {}
    for name, split in parts.items():
        method = made(discriminator_steps=2)
        terms[name] = torch.zeros(6)
        for rows in map(torch.tensor, map(list, split)):
            found = method.terms(run(method, network, pictures.rows(rows), labels[rows]))
            terms[name][rows] = found.detach()
        method.step(alone)
        states[name] = frozen(method)
    for name in ("halves", "with an empty one"):
        torch.testing.assert_close(terms[name], terms["whole"])
        for key, value in states["whole"].items():
            torch.testing.assert_close(states[name][key], value, rtol=1e-9, atol=1e-12, msg=key)


class Processes:
    """Threads that stand for processes; `average` is a mean over them, in step, and counts its calls."""

    def __init__(self, count):
        self.barrier, self.given, self.calls = threading.Barrier(count, timeout=30), [None] * count, [0] * count

    def average(self, rank):
        def mean(tensors):
            self.calls[rank] += 1
            self.given[rank] = [tensor.clone() for tensor in tensors]
            self.barrier.wait()
            means = [sum(parts) / len(self.given) for parts in zip(*self.given, strict=True)]
            self.barrier.wait()
            for tensor, value in zip(tensors, means, strict=True):
                tensor.copy_(value)

        return mean


@pytest.mark.parametrize("split", [[[0, 1, 2], [3, 4, 5]], [[0, 2, 3, 5], [1, 4, 1, 4]]], ids=["mixed", "one bare"])
def test_two_processes_equal_one(split):
    pictures, labels = example()
    network = TinyNetwork(3)
    indices = [torch.tensor(rows) for rows in split]
    whole = made(discriminator_steps=3)
    everything = torch.cat(indices)
    parts = [made(discriminator_steps=3) for _ in split]
    processes = Processes(2)
    for _ in range(2):
        whole.terms(run(whole, network, pictures.rows(everything), labels[everything]))
        whole.step(alone)
        for method, rows in zip(parts, indices, strict=True):
            method.terms(run(method, network, pictures.rows(rows), labels[rows]))
        threads = [threading.Thread(target=parts[k].step, args=(processes.average(k),)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert processes.calls == [8, 8]  # the count of rows and each of three steps, twice
    assert same(frozen(parts[0]), frozen(parts[1]))
    for key, value in frozen(whole).items():
        torch.testing.assert_close(frozen(parts[0])[key], value, rtol=1e-9, atol=1e-12, msg=key)
    assert not same(frozen(whole), frozen(made()))


def test_nobody_annotated_anywhere_trains_nothing():
    pictures, labels = example()
    nobody = Pictures(pictures.pixel_values, pictures.saliency, torch.zeros(6, dtype=torch.bool), pictures.uniform)
    method = made()
    before = copy.deepcopy(method.state_dict())
    terms = method.terms(run(method, TinyNetwork(3), nobody, labels))
    assert terms.tolist() == [0] * 6
    calls = []
    method.step(calls.append)
    assert len(calls) == 1
    method.step(calls.append)  # nor does a step in which no term was asked for
    assert same(frozen(method), before["discriminator"])
    assert method.state_dict()["optimizer"]["state"] == {}


def test_evaluation_trains_nothing_and_gives_the_same_terms():
    pictures, labels = example()
    network, method, other = TinyNetwork(3), made(), made()
    trained = method.terms(run(method, network, pictures, labels))
    other.terms(run(other, network, pictures, labels))
    with torch.no_grad():
        for _ in range(3):
            evaluated = other.terms(run(other, network, pictures, labels, training=False))
    assert torch.equal(evaluated, trained.detach())
    method.step(alone)
    other.step(alone)
    assert same(frozen(method), frozen(other))
    once = frozen(method)
    other.terms(run(other, network, pictures, labels, training=False))
    other.step(alone)
    assert same(frozen(other), once)


def test_what_was_trained_on_is_forgotten():
    pictures, labels = example()
    network, method = TinyNetwork(3), made()
    method.terms(run(method, network, pictures, labels))
    assert all(not feature.requires_grad for pair in method._seen for feature in pair)
    method.step(alone)
    once = frozen(method)
    method.step(alone)
    assert same(frozen(method), once)


def test_resuming_is_exact():
    pictures, labels = example()
    network, method = TinyNetwork(3), made(discriminator_steps=2)

    def train(method, steps):
        for _ in range(steps):
            method.terms(run(method, network, pictures, labels))
            method.step(alone)

    train(method, 3)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    resumed = made(seed=9, discriminator_steps=2)
    resumed.terms(run(resumed, network, pictures, labels))  # of an optimizer step that the checkpoint does not know
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(frozen(resumed), frozen(method))
    train(method, 2)
    train(resumed, 2)
    assert same(frozen(resumed), frozen(method))
    moments = [one.state_dict()["optimizer"]["state"][0] for one in (method, resumed)]
    assert same(*moments)
    assert moments[0]["step"] == 10


def test_setting_up_is_a_function_of_the_seed_and_touches_no_generator():
    torch.manual_seed(3)
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = made(seed=1), made(seed=1), made(seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert same(frozen(first), frozen(again))
    assert not same(frozen(first), frozen(other))
    pictures, labels = example()
    first.terms(run(first, TinyNetwork(3), pictures, labels))
    first.step(alone)
    first.terms(run(first, TinyNetwork(3), pictures, labels))
    first.setup(SIZES, torch.device("cpu"), 1)  # anew
    assert same(frozen(first), frozen(again))
    first.step(alone)
    assert same(frozen(first), frozen(again))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_confident_logits_do_not_saturate():
    pictures, labels = example()
    network, method = TinyNetwork(3), made()
    with torch.no_grad():
        method._trained[0][-1].bias.fill_(200.0)
    batch = run(method, network, pictures, labels)
    terms = method.terms(batch)
    assert terms[[0, 2, 3, 5]].tolist() == pytest.approx([200] * 4, abs=5)
    gradient = torch.autograd.grad(terms.sum(), batch.features[POOLED])[0]
    assert gradient[0].abs().max() > 1e-3  # a sigmoid before the logarithm would leave nothing
    assert math.isfinite(float(gradient.sum()))


def test_it_has_to_be_set_up():
    pictures, labels = example()
    method = ActDiffAdversarial()
    with pytest.raises(
        RuntimeError, match='guidance="actdiff_adversarial" has no discriminator yet; call setup first'
    ):
        method.terms(run(method, TinyNetwork(3), pictures, labels))
    with pytest.raises(RuntimeError, match="call setup first"):
        method.step(alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator_steps": 0}, "discriminator_steps=0 has to be a whole number, 1 or above"),
        ({"discriminator_steps": 1.5}, "discriminator_steps=1.5 has to be a whole number"),
        ({"discriminator_learning_rate": 0}, "discriminator_learning_rate=0 has to be a number above 0"),
        ({"hidden_sizes": [8, 0]}, "hidden_sizes=.8, 0. has to be a list of whole numbers"),
        ({"hidden_sizes": 8}, "hidden_sizes=8 has to be a list of whole numbers"),
        ({"fill": "black"}, "fill='black' is not known"),
        ({"sigma": -1}, "sigma=-1 has to be a number above 0"),
        ({"batch_norm": "eval"}, "batch_norm='eval' is not known"),
    ],
    ids=str,
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ActDiffAdversarial(**options)


def test_its_options_are_shown_and_its_modules_are_not():
    method = made(hidden_sizes=[5, 4])
    assert repr(method) == (
        "ActDiffAdversarial(discriminator_steps=1, discriminator_learning_rate=0.001, hidden_sizes=(5, 4), "
        "fill='shuffle', sigma=16.0, batch_norm='pictures')"
    )
    assert (method.default_weight, method.default_task_weight, method.layers) == (1.0, 1.0, (POOLED,))
    assert "1910.00199" in method.paper
