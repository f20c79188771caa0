"""The two gradient engines against each other, what they leave behind, and the choice between them."""

import copy
import random

import numpy as np
import pytest
import torch
from gradient_oracle import SmoothNetwork
from support import SIZES, build
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_salguide.backbones import as_classifier
from hf_salguide.steps import engines
from hf_salguide.steps.engines import choose_engine
from hf_salguide.steps.gradients import Replay, double_backward, finite_difference, reusable_graph

SIZE = (64, 96)
SMOOTH = ["vit_class_token", "vit_average", "convnext", "swin", "transformers_vit"]
ROWS = torch.tensor([0, 2])


def pictures_of(model, size=SIZE, count=3):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def contrast(logits):
    return logits[:, 0] - logits[:, 1:].logsumexp(dim=1)


def log_probabilities(logits):
    return logits.log_softmax(dim=1).sum(dim=1)


def absolute(gradient):
    return gradient[..., gradient.shape[-1] // 2 :].abs().sum(dim=(1, 2, 3))


def squared(gradient):
    return gradient[..., gradient.shape[-1] // 2 :].square().sum(dim=(1, 2, 3))


PENALTIES = {"absolute": (contrast, absolute), "squared": (log_probabilities, squared)}


def by_double_backward(model, pictures, scalar, penalty, create_graph=True):
    x = pictures.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        logits = model(x)
    logits = getattr(logits, "logits", logits)
    return double_backward(logits, x, lambda raw: raw, scalar, penalty, create_graph)


def by_finite_difference(model, pictures, scalar, penalty, rows=ROWS, create_graph=True, **options):
    """As a step does it: one forward of all pictures, and one of those that count, with the same draws."""
    x = pictures.clone().requires_grad_()
    replay = Replay(model)
    logits = model(x)
    replay.stop()

    def again(shifted):
        with replay:
            if replay.drew:
                output = model(pictures.index_copy(0, rows, shifted))
                return getattr(output, "logits", output)[rows]
            output = model(shifted)
            return getattr(output, "logits", output)

    logits = getattr(logits, "logits", logits)
    return finite_difference(logits, x, scalar, penalty, again, rows, create_graph, **options)


def parameter_gradient(model, terms, rows=ROWS, retain_graph=True):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.arange(1, len(terms) + 1, dtype=terms.dtype)  # so that no row can pass for another
    found = torch.autograd.grad(
        (terms * weights)[rows].sum(), parameters, retain_graph=retain_graph, allow_unused=True
    )
    return torch.cat(
        [
            torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
    ).double()


def cosine(one, other):
    return float(one @ other / (one.norm() * other.norm()))


# ---- Both engines ----


@pytest.mark.parametrize("penalty", list(PENALTIES))
@pytest.mark.parametrize("name", SMOOTH)
def test_the_engines_agree_on_smooth_networks(name, penalty):
    model = build(name).train()
    pictures = pictures_of(model, SIZES.get(name, SIZE))
    exact = by_double_backward(model, pictures, *PENALTIES[penalty])
    approximate = by_finite_difference(model, pictures, *PENALTIES[penalty])
    torch.testing.assert_close(approximate, exact, rtol=1e-4, atol=1e-6)
    expected, found = parameter_gradient(model, exact), parameter_gradient(model, approximate)
    assert cosine(found, expected) > 0.9995
    assert float(found.norm() / expected.norm()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_they_agree_in_float64_to_the_order_of_the_step(penalty):
    """Pictures of very different contrast: each row has a step of its own, and undoes it."""
    network = SmoothNetwork(4)
    pictures = torch.randn(4, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pictures = pictures * torch.tensor([0.01, 1.0, 10.0, 1.0], dtype=torch.float64)[:, None, None, None]
    pictures[3] = 0.5  # a constant picture
    rows = torch.tensor([3, 0, 2])
    expected = parameter_gradient(network, by_double_backward(network, pictures, *PENALTIES[penalty]), rows)
    for step, tolerance in ((1e-4, 1e-3), (1e-6, 1e-5)):
        terms = by_finite_difference(network, pictures, *PENALTIES[penalty], rows=rows, relative_step=step)
        error = (parameter_gradient(network, terms, rows) - expected).norm() / expected.norm()
        assert error < tolerance


@pytest.mark.parametrize("factor", [2.0, 0.125])
@pytest.mark.parametrize("engine", [by_double_backward, by_finite_difference])
def test_a_penalty_twice_as_large_has_twice_the_gradient(engine, factor):
    model = build("vit_class_token").double().train()
    pictures = pictures_of(model).double()
    scalar, penalty = PENALTIES["squared"]
    once = engine(model, pictures, scalar, penalty)
    more = engine(model, pictures, scalar, lambda gradient: factor * penalty(gradient))
    torch.testing.assert_close(more, factor * once)
    once, more = parameter_gradient(model, once), parameter_gradient(model, more)
    assert once.norm() > 0
    assert (more - factor * once).norm() < 1e-9 * more.norm()


def test_penalties_of_any_scale_have_a_gradient():
    """The square of a derivative of 1e-25 is no float32 any more."""
    model = build("convnext").train()
    pictures = pictures_of(model)
    scalar, penalty = PENALTIES["squared"]
    expected = parameter_gradient(model, by_finite_difference(model, pictures, scalar, penalty))
    for factor in (1e-25, 1e25):
        terms = by_finite_difference(model, pictures, scalar, lambda gradient, f=factor: f * penalty(gradient))
        found = parameter_gradient(model, terms)
        assert cosine(found, expected) > 0.9999
        assert float(found.norm() / (factor * expected.norm())) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("engine", [by_double_backward, by_finite_difference])
def test_rows_without_a_derivative_contribute_nothing(engine):
    model = build("vit_average").train()
    pictures = pictures_of(model)
    off = torch.tensor([1.0, 1.0, 0.0])  # nothing of row 2 is outside
    scalar, penalty = PENALTIES["absolute"]
    terms = engine(model, pictures, scalar, lambda gradient: off * penalty(gradient))
    assert terms[2] == 0
    assert not parameter_gradient(model, terms, torch.tensor([2])).any()
    assert parameter_gradient(model, terms, torch.tensor([0])).any()


def test_finite_differences_give_no_gradient_to_rows_that_do_not_count():
    model = build("vit_average").train()
    terms = by_finite_difference(model, pictures_of(model), *PENALTIES["absolute"])
    exact = by_double_backward(model, pictures_of(model), *PENALTIES["absolute"])
    torch.testing.assert_close(terms[1], exact[1], rtol=1e-4, atol=0)
    assert not parameter_gradient(model, terms, torch.tensor([1])).any()


def test_rows_that_do_not_count_change_nothing():
    model = build("convnext").train()
    pictures = pictures_of(model)
    changed = pictures.clone()
    changed[1] += 1
    found = parameter_gradient(model, by_finite_difference(model, pictures, *PENALTIES["absolute"]))
    other = parameter_gradient(model, by_finite_difference(model, changed, *PENALTIES["absolute"]))
    assert (found - other).norm() < 1e-4 * found.norm()


def test_evaluation_takes_no_second_forward_and_no_graph():
    model = build("vit_average").eval()
    pictures = pictures_of(model)
    scalar, penalty = PENALTIES["absolute"]
    x = pictures.clone().requires_grad_()
    logits = model(x).logits

    def again(shifted):
        raise AssertionError("a second forward was run")

    with torch.no_grad():
        approximate = finite_difference(logits, x, scalar, penalty, again, ROWS, create_graph=False)
        exact = double_backward(logits, x, lambda raw: raw, scalar, penalty, create_graph=False)
    torch.testing.assert_close(approximate, exact)
    assert not approximate.requires_grad
    assert not exact.requires_grad
    nobody = torch.zeros(0, dtype=torch.int64)
    terms = finite_difference(logits, x, scalar, penalty, again, nobody, create_graph=True)
    torch.testing.assert_close(terms, exact)
    assert not terms.requires_grad
    logits.sum().backward()  # the graph is kept


def test_a_penalty_at_a_feature_goes_through_its_layout():
    features = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)  # tokens
    head = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    logits = features.mean(dim=1) @ head.T

    def penalty(gradient):
        assert gradient.shape == (2, 5, 2, 3)
        assert gradient.dtype == torch.float64
        return gradient.square().sum(dim=(1, 2, 3))

    terms = double_backward(
        logits, features, lambda raw: raw.transpose(1, 2).reshape(2, 5, 2, 3), lambda z: z[:, 0], penalty, True
    )
    torch.testing.assert_close(terms, (head[0].square().sum() / 6).expand(2))
    (gradient,) = torch.autograd.grad(terms.sum(), head)
    torch.testing.assert_close(gradient[0], 2 * 2 * head[0] / 6)


def test_half_precision_gradients_are_penalised_in_float32():
    network = SmoothNetwork(3).to(torch.bfloat16)
    x = torch.randn(2, 2, 4, 6, dtype=torch.bfloat16, requires_grad=True)
    seen = []

    def penalty(gradient):
        seen.append(gradient.dtype)
        return absolute(gradient)

    assert double_backward(network(x), x, lambda raw: raw, contrast, penalty, True).dtype == torch.float32
    assert seen == [torch.float32]


# ---- What cannot be done ----


def test_fused_attention_is_refused_with_the_remedy():
    model = build("vit_class_token").train()
    x = pictures_of(model).requires_grad_()
    logits = model(x).logits
    with pytest.raises(
        RuntimeError, match=r"derivative of ScaledDotProduct.* is not implemented\..*twice_differentiable"
    ):
        double_backward(logits, x, lambda raw: raw, contrast, absolute, create_graph=True)
    # Without a second derivative there is nothing to refuse.
    assert double_backward(logits, x, lambda raw: raw, contrast, absolute, create_graph=False).shape == (3,)


def test_a_compiled_model_is_refused_with_the_remedy():
    compiled = torch.compile(SmoothNetwork(3), backend="aot_eager")
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    logits = compiled(x)
    with pytest.raises(RuntimeError, match=r"of a compiled model is not implemented\..*leave torch.compile out"):
        double_backward(logits, x, lambda raw: raw, contrast, absolute, create_graph=True)


def test_finite_differences_go_with_a_compiled_model():
    network = SmoothNetwork(3)
    pictures = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    expected = parameter_gradient(network, by_double_backward(network, pictures, *PENALTIES["absolute"]))
    compiled = torch.compile(network, backend="aot_eager")
    with reusable_graph():
        terms = by_finite_difference(compiled, pictures, *PENALTIES["absolute"])
    assert cosine(parameter_gradient(network, terms, retain_graph=False), expected) > 0.99999


def test_checkpointing_of_fused_attention_is_refused_with_the_remedy():
    model = build("vit_class_token").train()
    model.timm_model.set_grad_checkpointing(True)
    x = pictures_of(model).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        logits = model(x).logits
    with pytest.raises(RuntimeError, match="do not go with gradient checkpointing .*set_fused_attn"):
        double_backward(logits, x, lambda raw: raw, contrast, absolute, create_graph=True)


def test_checkpointing_goes_with_finite_differences():
    model = build("vit_class_token").train()
    pictures = pictures_of(model)
    plain = parameter_gradient(model, by_finite_difference(model, pictures, *PENALTIES["absolute"]))
    model.timm_model.set_grad_checkpointing(True)
    found = parameter_gradient(model, by_finite_difference(model, pictures, *PENALTIES["absolute"]))
    assert cosine(found, plain) > 0.9999
    assert choose_engine(model, SIZE).engine == "finite_difference"
    with pytest.raises(ValueError, match="checkpointing"):
        choose_engine(model, SIZE, "double_backward")


def test_gradients_that_are_not_finite_are_found_before_training():
    """Windows of cosine attention that are filled up with zeros: a norm of zero has no second derivative."""
    tiny = {"embed_dim": 8, "depths": (1, 1, 2), "num_heads": (1, 2, 2), "window_size": 4}
    model = as_classifier("swinv2_tiny_window8_256", num_labels=3, image_size=(64, 96), **tiny)
    for engine in ("auto", "double_backward", "finite_difference"):
        with pytest.raises(ValueError, match=r"not finite on noise|cannot be checked against double_backward"):
            choose_engine(model, (64, 96), engine)
    fits = as_classifier("swinv2_tiny_window8_256", num_labels=3, image_size=(64, 128), **tiny)
    assert choose_engine(fits, (64, 128)).engine == "finite_difference"


@pytest.mark.parametrize("cut", ["pictures", "logits", "elsewhere"])
def test_a_gradient_that_does_not_arrive_is_refused(cut):
    network = SmoothNetwork(3)
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=cut != "pictures")
    logits = network(x)
    logits = logits.detach() if cut == "logits" else logits
    source = torch.randn_like(x).requires_grad_() if cut == "elsewhere" else x
    with pytest.raises(RuntimeError, match="carry no gradient .* pictures that require a gradient"):
        double_backward(logits, source, lambda raw: raw, contrast, absolute, create_graph=True)
    with pytest.raises(RuntimeError, match="carry no gradient"):
        finite_difference(logits, source, contrast, absolute, network, torch.tensor([0]), create_graph=True)


# ---- The second forward ----


class Noisy(nn.Module):
    """Dropout and batch normalisation, and a counter of forwards."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(4, 3)
        self.calls = 0

    def forward(self, pictures):
        self.calls += 1
        return self.head(self.inner(pictures).mean(dim=(2, 3)))


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()


def test_the_second_forward_draws_what_the_first_one_drew():
    torch.manual_seed(0)
    model = Noisy().train()
    pictures = pictures_of(model)
    replay = Replay(model)
    first = model(pictures)
    replay.stop()
    assert replay.drew
    before = states()
    for _ in range(2):
        with replay:
            torch.testing.assert_close(model(pictures), first, rtol=0, atol=0)
        assert states() == before
    assert not torch.equal(model(pictures), first)


def test_without_dropout_nothing_is_drawn():
    model = build("vit_average").train()
    replay = Replay(model)
    model(pictures_of(model))
    replay.stop()
    assert not replay.drew


def test_batch_statistics_move_once_and_the_graph_stays_whole():
    torch.manual_seed(0)
    model = Noisy().train()
    pictures = pictures_of(model)
    twin = copy.deepcopy(model)
    norm = model.inner[1]
    buffers = dict(norm.named_buffers())
    state = torch.random.get_rng_state()
    twin(pictures)
    torch.random.set_rng_state(state)
    terms = by_finite_difference(model, pictures, contrast, absolute)
    assert model.calls == 2
    for name, buffer in norm.named_buffers():
        assert buffer is buffers[name]
        torch.testing.assert_close(buffer, dict(twin.inner[1].named_buffers())[name], rtol=0, atol=0)
    assert norm.num_batches_tracked == 1
    assert parameter_gradient(model, terms).any()


def test_frozen_batch_statistics_can_be_differentiated_after_the_second_forward():
    torch.manual_seed(0)
    model = Noisy().eval()
    pictures = pictures_of(model)
    exact = parameter_gradient(model, by_double_backward(model, pictures, contrast, absolute))
    found = parameter_gradient(model, by_finite_difference(model, pictures, contrast, absolute))
    assert cosine(found, exact) > 0.999


def test_everything_is_put_back_when_the_second_forward_fails(monkeypatch):
    model = Noisy().train()
    replay = Replay(model)
    model(pictures_of(model))
    replay.stop()
    before, buffers = states(), {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    monkeypatch.setattr(model.head, "forward", lambda values: 1 / 0)
    with pytest.raises(ZeroDivisionError), replay:
        model(pictures_of(model))
    assert states() == before
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])


def test_the_engines_agree_under_dropout_and_drop_path():
    model = build("vit_class_token", drop_rate=0.2, drop_path_rate=0.3).train()
    pictures = pictures_of(model)
    torch.manual_seed(5)
    exact = parameter_gradient(model, by_double_backward(model, pictures, *PENALTIES["absolute"]))
    torch.manual_seed(5)
    found = parameter_gradient(model, by_finite_difference(model, pictures, *PENALTIES["absolute"]))
    assert cosine(found, exact) > 0.999
    assert choose_engine(model, SIZE).engine == "finite_difference"


# ---- The choice ----


def resnet_in_training():
    return build("resnet")


def efficientnet():
    torch.manual_seed(0)
    model = as_classifier("test_efficientnet", label_names=["ant", "bee"], image_size=SIZE)
    return model.eval()  # the trial is in training mode whatever the model is in


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_networks_get_finite_differences(name):
    choice = choose_engine(build(name), SIZES.get(name, SIZE))
    assert choice.engine == "finite_difference"
    assert choice.agreement >= 0.9995
    assert str(choice.agreement) in choice.reason
    assert choose_engine(build(name), SIZES.get(name, SIZE), "finite_difference").engine == "finite_difference"


@pytest.mark.parametrize("model", [resnet_in_training, efficientnet])
def test_kinks_and_batch_statistics_get_the_double_backward(model):
    """A ReLU network, and a smooth one whose pictures see each other through the batch's statistics."""
    choice = choose_engine(model(), SIZE)
    assert choice.engine == "double_backward"
    assert choice.agreement < 0.9
    assert "do not agree" in choice.reason


def test_both_penalties_have_to_agree(monkeypatch):
    for cosines in ([1.0, 0.9], [1.0, float("nan")], [float("nan"), 1.0]):
        remaining = iter(cosines)
        monkeypatch.setattr(engines, "_cosine", lambda found, expected, r=remaining: next(r))
        assert choose_engine(build("convnext"), SIZE).engine == "double_backward"


def test_a_gradient_of_zero_agrees_with_nothing():
    model = build("convnext")
    zero = [torch.zeros_like(parameter) for parameter in model.parameters()]
    ones = [torch.ones_like(parameter) for parameter in model.parameters()]
    assert engines._cosine(zero, ones) != engines._cosine(zero, ones)
    assert engines._cosine(ones, [None, *ones[1:]]) < 1
    assert engines._cosine(ones, [-2 * one for one in ones]) == pytest.approx(-1)


def test_an_explicit_double_backward_is_tried_and_not_compared():
    choice = choose_engine(build("vit_class_token"), SIZE, "double_backward")
    assert (choice.engine, choice.agreement) == ("double_backward", None)


def test_finite_differences_that_do_not_agree_are_refused():
    with pytest.raises(
        ValueError,
        match=r'gradient_engine="finite_difference" .*test_resnet.* cosine .*take .*double_b',
    ):
        choose_engine(build("resnet"), SIZE, "finite_difference")


def test_mixed_precision_leaves_the_double_backward():
    choice = choose_engine(build("vit_average"), SIZE, mixed_precision=True)
    assert (choice.engine, choice.agreement) == ("double_backward", None)
    with pytest.raises(ValueError, match='gradient_engine="finite_difference" .*half precision.*float32'):
        choose_engine(build("vit_average"), SIZE, "finite_difference", mixed_precision=True)
    half = build("vit_average").to(torch.bfloat16)
    assert choose_engine(half, SIZE).engine == "double_backward"


def test_a_compiled_model_leaves_finite_differences():
    assert choose_engine(build("convnext"), SIZE, compiled=True).engine == "finite_difference"
    with pytest.raises(ValueError, match='gradient_engine="double_backward" .*torch_compile=True.*leave'):
        choose_engine(build("convnext"), SIZE, "double_backward", compiled=True)
    with pytest.raises(
        ValueError, match='gradient_engine="auto" .*double_backward: .*finite_difference: .*leave torch_compile out'
    ):
        choose_engine(build("resnet"), SIZE, compiled=True)
    with pytest.raises(ValueError, match='gradient_engine="auto" .*half precision.*leave torch_compile out'):
        choose_engine(build("convnext"), SIZE, compiled=True, mixed_precision=True)


class _OnceOnly(torch.autograd.Function):
    """A layer whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh().square())


class OnceOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(4, 3)

    def forward(self, pictures):
        return self.head(_OnceOnly.apply(self.conv(pictures)).mean(dim=(2, 3)))


def test_a_model_that_can_do_neither_is_refused():
    """What cannot be differentiated twice cannot be compared with."""
    for requested in ("auto", "double_backward", "finite_difference"):
        with pytest.raises(ValueError, match=f'gradient_engine="{requested}" is not possible for OnceOnly'):
            choose_engine(OnceOnly(), SIZE, requested)
    with pytest.raises(ValueError, match=r'double_backward: .* derivative of a layer.*finite_difference: .*at="f'):
        choose_engine(OnceOnly(), SIZE)


def test_an_unknown_engine_and_a_wrong_size_are_refused():
    with pytest.raises(ValueError, match='gradient_engine="central" is not known; choose "auto"'):
        choose_engine(build("convnext"), SIZE, "central")
    with pytest.raises(ValueError, match="image_size=.*is refused"):
        choose_engine(build("vit_average"), (63, 95))


def test_a_new_head_of_zeros_is_no_obstacle():
    model = build("vit_average")
    with torch.no_grad():
        model.timm_model.head.weight.zero_()
    head = model.timm_model.head.weight
    assert choose_engine(model, SIZE).engine == "finite_difference"
    assert model.timm_model.head.weight is head
    assert not head.any()


def test_a_frozen_part_stays_frozen():
    model = build("vit_average")
    for parameter in model.timm_model.patch_embed.parameters():
        parameter.requires_grad_(False)
    assert choose_engine(model, SIZE).engine == "finite_difference"
    assert not any(parameter.requires_grad for parameter in model.timm_model.patch_embed.parameters())


def snapshot(model):
    return {
        "tensors": {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()},
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "required": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "random": states(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_unchanged(model, before):
    after = snapshot(model)
    for name, (identity, value) in before.pop("tensors").items():
        other_identity, other = after["tensors"][name]
        assert identity == other_identity, name
        assert torch.equal(value, other), name
    after.pop("tensors")
    for name, gradient in before.pop("gradients").items():
        assert after["gradients"][name] is gradient
    after.pop("gradients")
    assert after == before


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left_behind(failing, monkeypatch):
    model = build("resnet", drop_rate=0.2).eval()
    model.timm_model.layer1.train()
    with torch.no_grad():
        model.timm_model.fc.weight.zero_()
    model.timm_model.conv1.requires_grad_(False)
    model.timm_model.fc.bias.grad = torch.ones_like(model.timm_model.fc.bias)
    if failing:
        monkeypatch.setattr(engines, "finite_difference", lambda *args, **kwargs: 1 / 0)
    before = snapshot(model)
    with torch.no_grad():
        before["grad mode"] = True
        if failing:
            with pytest.raises(ZeroDivisionError):
                choose_engine(model, SIZE)
        else:
            assert choose_engine(model, SIZE).engine == "double_backward"
        assert not torch.is_grad_enabled()
    assert_unchanged(model, before)
