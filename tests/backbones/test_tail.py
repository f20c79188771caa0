"""What comes behind a feature layer, run once more: logits, maps and gradients are those of the model."""

import copy

import pytest
import torch
from support import MODELS, SIZES, build
from torch import nn

from hf_salguide.backbones import FeatureCapture, class_maps, logits_of, resolve_feature_layer, resolve_tail
from hf_salguide.backbones.layer import FeatureLayer

CHAINS = ["resnet", "convnext", "vit_average", "swin"]


def pictures(name, count=3):
    return torch.randn(count, 3, *SIZES.get(name, (64, 96)), generator=torch.Generator().manual_seed(1))


def resolved(name, **kwargs):
    model = build(name, **kwargs)
    size = SIZES.get(name, (64, 96))
    layer = resolve_feature_layer(model, size)
    return model, layer, resolve_tail(model, layer, size)


def maps_and_gradients(model, layer, images, tail, weights):
    model.zero_grad()
    with FeatureCapture(model, layer, tail_gradient=tail is None) as capture:
        logits = logits_of(model(images))
    if tail is None:
        maps = class_maps(capture, layer, model, logits, weights, "gradcam", create_graph=True)
    else:
        replayed = tail(model, capture.raw)
        (gradient,) = torch.autograd.grad(replayed, capture.raw, weights, create_graph=True)
        features, gradient = layer.to_maps(capture.raw), layer.to_maps(gradient)
        maps = (features * gradient.sum(dim=(2, 3), keepdim=True)).sum(dim=1)
    maps.square().sum().backward()
    return maps.detach(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", CHAINS)
def test_a_replay_gives_the_logits_the_maps_and_the_gradients_of_the_model(name):
    model, layer, tail = resolved(name)
    model.eval()
    images, weights = pictures(name), torch.tensor([[1.0, 0, 0], [0, 1, -1], [0.5, 0, 0.5]])
    with FeatureCapture(model, layer) as capture:
        logits = logits_of(model(images))
    torch.testing.assert_close(tail(model, capture.raw), logits, rtol=1e-5, atol=1e-6)
    maps, gradients = maps_and_gradients(model, layer, images, tail, weights)
    expected, expected_gradients = maps_and_gradients(model, layer, images, None, weights)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    present = {key: gradient for key, gradient in expected_gradients.items() if gradient is not None}
    largest = max(float(gradient.abs().max()) for gradient in present.values())
    assert largest > 1e-6
    for key, gradient in present.items():
        found = torch.zeros_like(gradient) if gradients[key] is None else gradients[key]
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_looking_for_it_leaves_the_model_as_it_was(name):
    model = build(name).train()
    state = copy.deepcopy(model.state_dict())
    size = SIZES.get(name, (64, 96))
    layer, random = resolve_feature_layer(model, size), torch.random.get_rng_state()
    try:
        resolve_tail(model, layer, size)
    except ValueError:
        assert name not in CHAINS
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("name", ["vit_class_token", "transformers_vit"])
def test_a_class_token_that_attends_to_the_map_has_no_chain(name):
    model = build(name)
    size = SIZES.get(name, (64, 96))
    with pytest.raises(ValueError, match="cannot be run by itself: the logits are no chain.*class token attends"):
        resolve_tail(model, resolve_feature_layer(model, size), size)


class NormBehind(nn.Module):
    """Batch normalisation of the pooled vector."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x).mean(dim=(2, 3))))


def test_batch_normalisation_behind_the_layer_is_refused():
    layer = FeatureLayer("stem", "NCHW", (4, 4), 8, readout="uniform")
    with pytest.raises(ValueError, match="cannot be run a second time: it holds batch normalisation"):
        resolve_tail(NormBehind(), layer, 32)


def test_several_layers_are_refused():
    part = FeatureLayer("stem", "NCHW", (4, 4), 8)
    layer = FeatureLayer("fc", "NCHW", (4, 4), 8, others=(part,))
    with pytest.raises(ValueError, match="the head reads several layers"):
        resolve_tail(NormBehind(), layer, 32)


def test_a_replay_draws_nothing_and_is_in_float32_whatever_surrounds_it():
    model, layer, tail = resolved("convnext", drop_rate=0.5)
    model.train()
    with FeatureCapture(model, layer) as capture, torch.autocast("cpu", dtype=torch.bfloat16):
        logits_of(model(pictures("convnext")))
    random = torch.random.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        replayed = tail(model, capture.raw)
    assert replayed.dtype is torch.float32
    assert torch.equal(tail(model, capture.raw), replayed)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_tail_holds_no_weights_and_follows_the_models():
    model, layer, tail = resolved("vit_average")
    assert all(weight.is_meta for module in tail.modules for weight in module.parameters())
    raw = torch.randn(2, layer.num_prefix_tokens + layer.grid[0] * layer.grid[1], layer.channels)
    before = tail(model, raw)
    with torch.no_grad():
        model.get_submodule(tail.names[-1]).bias.add_(1.0)
    torch.testing.assert_close(tail(model, raw), before + 1.0)
