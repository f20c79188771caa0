import gc

import pytest
import torch
from backbones.zoo import CASES
from torch import nn
from torch.nn.parallel import DataParallel

from hf_salguide.backbones import FeatureCapture, FeatureTap, resolve_feature_layer, resolve_pooled_layer

NAMES = ["timm_model.layer2", "timm_model.layer4.0"]


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def kept_by_hand(model, images, name):
    kept = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, args, output: kept.append(output.clone()))
    with torch.no_grad():
        model(images)
    handle.remove()
    return kept[0]


def test_outputs_and_the_vector_are_kept():
    case = CASES["test_resnet"]
    model, images = case.build(), case.images()
    pooled = resolve_pooled_layer(model)
    with FeatureTap(model, NAMES, pooled) as tap, torch.no_grad():
        logits = model(images).logits
    assert list(tap.features) == [*NAMES, "pooled"]
    for name in NAMES:
        assert torch.equal(tap.features[name], kept_by_hand(model, images, name))
    torch.testing.assert_close(tap.features["pooled"], tap.features[NAMES[1]].mean((2, 3)))
    assert torch.equal(model(images).logits, logits)
    assert hooks(model) == 0


@pytest.mark.parametrize("name", CASES)
def test_tapping_leaves_the_logits_as_they_are(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    with torch.no_grad():
        expected = model(images).logits
        with FeatureTap(model, [resolve_feature_layer(model).name], resolve_pooled_layer(model)):
            assert torch.equal(model(images).logits, expected)


def test_features_are_in_the_graph_of_the_logits():
    case = CASES["test_resnet"]
    model = case.build().train()
    with FeatureTap(model, NAMES, resolve_pooled_layer(model)) as tap:
        logits = model(case.images()).logits
    weight = model.timm_model.fc.weight
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), tap.features["pooled"], retain_graph=True)
    assert torch.equal(gradient, weight[1].expand_as(gradient))
    for name in NAMES:
        (gradient,) = torch.autograd.grad(logits.square().sum(), tap.features[name], retain_graph=True)
        assert gradient.abs().sum() > 0
    sum(feature.square().mean() for feature in tap.features.values()).backward()
    assert next(model.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_in_place_behind_a_layer_changes_nothing(inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(64, 2))
    images = torch.randn(2, 3, 6, 6)
    with FeatureTap(model, ["0"]) as tap:
        logits = model(images)
    expected = model[0](images)
    assert (expected < 0).any()
    assert torch.equal(tap.features["0"], expected)
    (gradient,) = torch.autograd.grad(logits.sum() + tap.features["0"].sum(), model[0].bias)
    below = (expected > 0).flatten(1) * model[3].weight.sum(0)
    torch.testing.assert_close(gradient, (1 + below).view(2, 4, 4, 4).sum((0, 2, 3)))


def test_the_first_tensor_of_several_is_kept():
    case = CASES["hf_vit"]
    model, images = case.build(), case.images()
    with FeatureTap(model, ["vit", "vit.layernorm"]) as tap, torch.no_grad():
        model(images)
    assert torch.equal(tap.features["vit"], tap.features["vit.layernorm"])

    class Pair(nn.Module):
        def forward(self, x):
            return None, x + 1, x + 2

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[2]

    model = Model()
    with FeatureTap(model, ["pair"]) as tap:
        assert torch.equal(model(torch.zeros(2)), torch.full((2,), 2.0))
    assert torch.equal(tap.features["pair"], torch.ones(2))


def test_a_layer_without_a_tensor_is_named():
    class Empty(nn.Module):
        def forward(self, x):
            return "words"

    model = nn.Sequential(Empty())
    with pytest.raises(RuntimeError, match='layer "0" gave no tensor but str'), FeatureTap(model, ["0"]):
        model(torch.zeros(1))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_features_are_float32_or_float64(dtype, kept):
    case = CASES["test_resnet"]
    model = case.build().to(dtype)
    with FeatureTap(model, NAMES, resolve_pooled_layer(model)) as tap:
        model(case.images().to(dtype))
    assert {feature.dtype for feature in tap.features.values()} == {kept}


def test_the_inner_model_is_tapped_while_the_wrapped_one_is_called():
    case = CASES["test_resnet"]
    model = case.build()
    wrapped = DataParallel(model)
    with FeatureTap(wrapped, NAMES, resolve_pooled_layer(wrapped)) as tap, torch.no_grad():
        wrapped(case.images())
    assert tap.features["pooled"].shape == (3, 96)


def test_it_goes_with_a_capture_of_the_same_layer():
    case = CASES["vit_class_token"]
    model = case.build()
    layer, pooled = resolve_feature_layer(model), resolve_pooled_layer(model)
    with (
        torch.no_grad(),
        FeatureCapture(model, layer, tail_gradient=True) as capture,
        FeatureTap(model, [layer.name], pooled) as tap,
    ):
        logits = model(case.images()).logits
    assert torch.equal(capture.raw, tap.features[layer.name])
    for feature in (capture.raw, tap.features["pooled"]):
        assert torch.autograd.grad(logits.sum(), feature, retain_graph=True)[0].any()


def test_unknown_names_are_refused_with_the_nearest():
    model = CASES["test_resnet"].build()
    with pytest.raises(ValueError, match=r'layer "timm_model.layer5" is not a module .* "timm_model.layer\d"'):
        FeatureTap(model, ["timm_model.layer5"])
    with pytest.raises(ValueError, match='layer "" is not a module'):
        FeatureTap(model, [""])
    clash = nn.ModuleDict({"pooled": nn.Linear(2, 2)})
    FeatureTap(clash, ["pooled"])
    with pytest.raises(ValueError, match='"pooled" is the pooled vector here'):
        FeatureTap(clash, ["pooled"], resolve_pooled_layer(model))


@pytest.mark.parametrize("layer", ["timm_model.layer2", "pooled"])
def test_layers_must_fire_once(layer):
    case = CASES["test_resnet"]
    model, images = case.build(), case.images()
    pooled = resolve_pooled_layer(model) if layer == "pooled" else None
    names = [] if pooled else [layer]
    called = r'"timm_model.fc" \(pooled\)' if pooled else f'layer "{layer}"'
    with pytest.raises(RuntimeError, match=f"{called} did not fire"), FeatureTap(model, names, pooled):
        pass
    with pytest.raises(RuntimeError, match=f"{called} fired 2 times"), FeatureTap(model, names, pooled):
        _ = model(images), model(images)
    assert hooks(model) == 0
    with FeatureTap(model, names, pooled) as tap:
        model(images)
        with pytest.raises(RuntimeError, match="entered already"):
            tap.__enter__()
    with tap:
        model(images)
    assert list(tap.features) == [layer]


def test_hooks_are_removed_on_exceptions():
    case = CASES["test_resnet"]
    model = case.build()
    pooled = resolve_pooled_layer(model)
    handle = model.register_forward_hook(lambda *_: {}["broken"])
    with pytest.raises(KeyError), FeatureTap(model, NAMES, pooled) as tap:
        model(case.images())
    handle.remove()
    assert hooks(model) == 0
    assert not tap.features
    model.timm_model.fc = None
    with pytest.raises(AttributeError):
        FeatureTap(model, NAMES, pooled).__enter__()
    assert hooks(model) == 0


def test_a_tap_holds_nothing_alive_on_the_model():
    case = CASES["test_resnet"]
    model = case.build()
    with FeatureTap(model, NAMES) as tap, torch.no_grad():
        model(case.images())
    del tap
    gc.collect()
    assert hooks(model) == 0
    assert not any("tap" in key for module in model.modules() for key in vars(module))
