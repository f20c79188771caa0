"""Attention behind the feature layer: only the prefix tokens' rows carry gradients, and nothing changes by it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from backbones.zoo import CASES

from hf_salguide.backbones import FeatureCapture, as_classifier, class_maps, resolve_feature_layer
from hf_salguide.backbones.attention import PrefixAttention

CLASS_TOKENS = ["vit_class_token", "hf_vit"]


@pytest.mark.parametrize("name", CASES)
def test_it_is_for_class_token_models_alone(name):
    case = CASES[name]
    layer = resolve_feature_layer(case.build())
    assert layer.prefix_attention == (layer.readout == "generic" and layer.num_prefix_tokens > 0)


@pytest.mark.parametrize(
    ("pool", "name"), [("avg", "timm_model.blocks.5.norm1"), ("token", "timm_model.blocks.3.norm1")]
)
def test_it_is_not_where_other_tokens_are_read_or_attention_comes_twice(pool, name):
    model = as_classifier("test_vit", num_labels=3, image_size=64, global_pool=pool)
    assert not resolve_feature_layer(model, feature_layer=name).prefix_attention


@pytest.mark.parametrize("name", CLASS_TOKENS)
def test_loss_maps_and_every_gradient_are_those_of_the_whole(name):
    case = CASES[name]
    results = []
    for prefix in (True, False):
        torch.manual_seed(0)
        model = case.build().train()
        layer = resolve_feature_layer(model)
        assert layer.prefix_attention
        layer = replace(layer, prefix_attention=prefix)
        images = case.images()
        with FeatureCapture(model, layer, tail_gradient=True) as capture:
            logits = model(images).logits
        weights = F.one_hot(torch.arange(len(images)) % logits.shape[1], logits.shape[1]).float()
        maps = class_maps(capture, layer, model, logits, weights, create_graph=True)
        loss = logits.square().mean() + maps.square().mean() / maps.detach().square().mean()
        loss.backward()
        gradients = {key: value.grad for key, value in model.named_parameters()}
        results.append((logits.detach(), maps.detach(), gradients))
    (logits, maps, gradients), (whole_logits, whole_maps, whole_gradients) = results
    torch.testing.assert_close(logits, whole_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps, whole_maps, rtol=1e-3, atol=1e-4 * whole_maps.abs().max().item())
    for key, gradient in gradients.items():
        expected = whole_gradients[key]
        assert (gradient - expected).norm() <= 1e-3 * expected.norm() + 1e-6, key


def test_other_lengths_masks_and_causal_attention_are_left_alone():
    query = torch.randn(2, 2, 6, 4, requires_grad=True)
    expected = F.scaled_dot_product_attention(query, query, query)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    with PrefixAttention(1, 6):
        read = F.scaled_dot_product_attention(query, query, query)
        masked = F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        causal = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    with PrefixAttention(1, 5):
        other = F.scaled_dot_product_attention(query, query, query)
    torch.testing.assert_close(read, expected)
    torch.testing.assert_close(masked, causal)
    (gradient,) = torch.autograd.grad(read[:, :, 1:].sum() + 0 * read.sum(), query)
    assert not gradient.any()
    assert torch.autograd.grad(other[:, :, 1:].sum(), query)[0].any()
    assert torch.autograd.grad(causal[:, :, 1:].sum(), query)[0].any()
