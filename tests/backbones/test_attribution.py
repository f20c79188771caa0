"""Maps by what comes after the layer, run once more outside the model, against those of the model's own graph."""

import pytest
import torch
from support import MODELS, SIZES, build, make_batch

from hf_salguide.backbones import FeatureCapture, class_maps, logits_of, resolve_feature_layer, resolve_tail

WITH_TAIL = [name for name in MODELS if name not in ("vit_class_token", "transformers_vit")]
BEHIND = 2  # rows of views behind the pictures


def pictures(name):
    return make_batch(SIZES.get(name, (64, 96)))["pixel_values"]


def maps_of(name, method, by_tail, training=True):
    """The model, and its maps of a mixture of classes for the first rows of a batch."""
    model, images = build(name).train(training), pictures(name)
    layer = resolve_feature_layer(model, tuple(images.shape[2:]))
    tail = resolve_tail(model, layer, tuple(images.shape[2:])) if by_tail else None
    with FeatureCapture(model, layer, tail_gradient=not by_tail) as capture:
        logits = logits_of(model(images))
    weights = torch.tensor([[1.0, 0, 0], [0, 1, -1], [0.2, 0.3, 0.5]])
    assert len(images) == len(weights) + BEHIND
    return model, class_maps(capture, layer, model, logits, weights, method, torch.is_grad_enabled(), tail)


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("name", WITH_TAIL)
def test_maps_and_the_gradients_of_their_losses_are_those_of_the_models_graph(name, method):
    found = []
    for by_tail in (False, True):
        model, maps = maps_of(name, method, by_tail)
        assert maps.shape[0] == 3
        (maps.square().sum() + maps.abs().mean()).backward()
        found.append((maps.detach(), {key: value.grad for key, value in model.named_parameters()}))
    (expected, gradients), (maps, found_gradients) = found
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    largest = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None)
    for key, gradient in gradients.items():
        given = torch.zeros(1) if found_gradients[key] is None else found_gradients[key]
        wanted = torch.zeros(1) if gradient is None else gradient
        torch.testing.assert_close(given.expand_as(wanted), wanted, rtol=1e-3, atol=1e-5 * largest, msg=key)


@pytest.mark.parametrize("name", WITH_TAIL)
def test_maps_in_an_evaluation_without_gradients(name):
    with torch.no_grad():
        model, maps = maps_of(name, "gradcam", by_tail=True, training=False)
        _, expected = maps_of(name, "gradcam", by_tail=False, training=False)
        assert not torch.is_grad_enabled()
    assert not maps.requires_grad
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_tail_is_run_once_for_all_maps_of_a_forward():
    model, images = build("convnext"), pictures("convnext")
    layer = resolve_feature_layer(model, (64, 96))
    tail = resolve_tail(model, layer, (64, 96))
    with FeatureCapture(model, layer) as capture:
        logits = logits_of(model(images))
    for weights in torch.eye(3):
        class_maps(capture, layer, model, logits, weights.expand(5, 3), tail=tail)
    assert capture.replay(tail, model, 5) is capture.replay(tail, model, 5)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="torch.inference_mode.*torch.no_grad"):
        capture.replay(tail, model, 4)


@pytest.mark.parametrize("name", ["vit_class_token", "transformers_vit"])
def test_a_class_token_has_no_tail(name):
    model = build(name)
    size = tuple(pictures(name).shape[2:])
    with pytest.raises(ValueError, match="class token"):
        resolve_tail(model, resolve_feature_layer(model, size), size)
