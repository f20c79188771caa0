import gc

import pytest
import torch
from backbones.zoo import CASES, EXACT, INEXACT
from torch import nn

from hf_salguide.backbones import FeatureCapture, FeatureLayer, class_maps, resolve_feature_layer


def flags():
    cuda = torch.backends.cuda
    return torch.is_grad_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def weights_for(logits, classes):
    return torch.nn.functional.one_hot(torch.tensor(classes), logits.shape[1]).float()


@pytest.mark.parametrize("name", CASES)
def test_maps_are_channels_first_whatever_the_layout(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer) as capture, torch.no_grad():
        model(images)
    assert capture.maps.shape == (3, layer.channels, *case.grid)
    if layer.layout == "NLC":
        tokens = capture.raw[:, layer.num_prefix_tokens :]
        assert torch.equal(capture.maps[:, :, 1, 0], tokens[:, case.grid[1]])
        assert torch.equal(capture.maps[:, :, 0, 1], tokens[:, 1])
    elif layer.layout == "NHWC":
        assert torch.equal(capture.maps[:, :, 1, 0], capture.raw[:, 1, 0])
    assert capture.maps.data_ptr() == capture.raw[:, layer.num_prefix_tokens :].data_ptr() or layer.layout != "NLC"


@pytest.mark.parametrize("tail_gradient", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "vit_class_token"])
def test_in_training_nothing_is_detached(name, tail_gradient):
    case = CASES[name]
    model = case.build().train()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer, tail_gradient) as capture:
        model(case.images())
    capture.maps.square().mean().backward()
    first = next(model.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_capturing_leaves_the_logits_as_they_are(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    layer = resolve_feature_layer(model)
    with torch.no_grad():
        expected = model(images).logits
        with FeatureCapture(model, layer) as capture:
            assert torch.equal(model(images).logits, expected)
        with FeatureCapture(model, layer, tail_gradient=True) as capture:
            logits = model(images).logits
        torch.testing.assert_close(logits, expected)  # attention by another kernel
    assert logits.requires_grad
    assert capture.raw.is_leaf


@pytest.mark.parametrize("name", ["test_resnet", "vit_class_token", "hf_vit"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_flags_and_hooks_are_restored(name, mode):
    case = CASES[name]
    model = case.build()
    layer = resolve_feature_layer(model)
    with mode():
        before = flags()
        with FeatureCapture(model, layer, tail_gradient=True):
            model(case.images())
            assert torch.is_grad_enabled()
            assert flags()[1] is False
        assert flags() == before
        assert hooks(model) == 0


@pytest.mark.parametrize("where", ["before", "behind"])
def test_flags_and_hooks_are_restored_on_exceptions_in_the_forward(where):
    case = CASES["vit_class_token"]
    model = case.build()
    layer = resolve_feature_layer(model)
    broken = model.timm_model.blocks[0] if where == "before" else model.timm_model.norm

    def fail(module, args):
        if where == "behind":
            assert capture.raw is not None  # the layer, in the last block, has fired by now
        raise KeyError("broken")

    handle = broken.register_forward_pre_hook(fail)
    with torch.no_grad():
        before = flags()
        with pytest.raises(KeyError), FeatureCapture(model, layer, tail_gradient=True) as capture:
            model(case.images())
        assert flags() == before
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="captured nothing"):
        _ = capture.raw
    handle.remove()
    with FeatureCapture(model, layer):
        model(case.images())


def test_the_layer_must_fire_once():
    case = CASES["test_resnet"]
    model = case.build()
    layer = resolve_feature_layer(model)
    with pytest.raises(RuntimeError, match="did not fire"), FeatureCapture(model, layer):
        pass
    images = case.images()
    with pytest.raises(RuntimeError, match="fired 2 times"), FeatureCapture(model, layer):
        _ = model(images), model(images)
    assert hooks(model) == 0
    capture = FeatureCapture(model, layer)
    with pytest.raises(RuntimeError, match="captured nothing"):
        _ = capture.maps
    with capture:
        model(images)
        with pytest.raises(RuntimeError, match="entered already"):
            capture.__enter__()


def test_a_container_that_checkpointing_enters_from_the_side_is_an_error():
    case = CASES["test_resnet"]
    model = case.build().train()
    block = resolve_feature_layer(model)
    container = resolve_feature_layer(model, feature_layer="timm_model.layer4")
    model.gradient_checkpointing_enable()
    with pytest.raises(RuntimeError, match="checkpointing"), FeatureCapture(model, container):
        model(case.images())
    with FeatureCapture(model, block) as capture:
        model(case.images())
    capture.maps.sum().backward()


def test_a_map_written_over_in_place_is_an_error():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 8, stride=8)

        def forward(self, x):
            return self.stem(x).relu_().mean((2, 3))

    model = Writes()
    layer = FeatureLayer("stem", "NCHW", (8, 8), 4)
    with pytest.raises(RuntimeError, match="written over in place"), FeatureCapture(model, layer):
        model(torch.randn(2, 3, 64, 64))


def test_tokens_of_another_size_are_an_error():
    layer = FeatureLayer("blocks.1", "NLC", (4, 4), 8, num_prefix_tokens=1)
    with pytest.raises(ValueError, match=r"24 tokens.*image_size"):
        layer.to_maps(torch.zeros(2, 24, 8))
    with pytest.raises(ValueError, match="not NLC"):
        layer.to_maps(torch.zeros(2, 8, 4, 4))


def test_inference_mode_is_refused_with_the_remedy():
    case = CASES["vit_class_token"]
    model = case.build()
    layer = resolve_feature_layer(model)
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="no_grad"),
        FeatureCapture(model, layer, tail_gradient=True),
    ):
        model(case.images())


# -- class_maps


@pytest.mark.parametrize("name", EXACT)
def test_the_three_methods_are_one_where_the_read_out_is_exact(name):
    case = CASES[name]
    model = case.build()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer, tail_gradient=True) as capture, torch.no_grad():
        logits = model(case.images()).logits
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    cam, gradcam, hirescam = (
        class_maps(capture, layer, model, logits, weights, method) for method in ("cam", "gradcam", "hirescam")
    )
    tolerance = 1e-4 * float(cam.detach().abs().max())
    torch.testing.assert_close(gradcam, cam, rtol=1e-4, atol=tolerance)
    torch.testing.assert_close(hirescam, cam, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_a_map_is_linear_in_the_weights(name):
    """The map of true minus false is the difference of the two maps."""
    case = CASES[name]
    model = case.build()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer, tail_gradient=layer.needs_gradient) as capture, torch.no_grad():
        logits = model(case.images()).logits
    one, other = weights_for(logits, [0, 1, 2]), weights_for(logits, [1, 2, 0])
    first, second, both = (class_maps(capture, layer, model, logits, w) for w in (one, other, one - other))
    assert first.dtype == torch.float32
    assert first.shape == (3, *case.grid)
    torch.testing.assert_close(both, first - second, rtol=1e-4, atol=1e-5 * float(first.detach().abs().max()))


@pytest.mark.parametrize("name", INEXACT)
def test_gradient_maps_are_trained_through_twice(name):
    """Fused attention has no second derivative, and is on by default."""
    case = CASES[name]
    model = case.build().train()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer, tail_gradient=True) as capture:
        logits = model(case.images()).logits
    maps = class_maps(capture, layer, model, logits, weights_for(logits, [0, 1, 2]), create_graph=True)
    maps.square().mean().backward()
    first = next(parameter for name, parameter in model.named_parameters() if name.endswith("weight"))
    assert torch.isfinite(first.grad).all()
    assert first.grad.abs().sum() > 0
    # The gradient in the map depends on the tail, which the map itself does not run through.
    head = [parameter for name, parameter in model.named_parameters() if "blocks.5.attn.qkv.weight" in name]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head)


@pytest.mark.parametrize("name", CASES)
def test_the_default_map_is_more_than_rounding(name):
    """HiResCAM on what a layer norm alone reads, the output of a transformer's last block but one, is not."""
    case = CASES[name]
    model = case.build()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer, tail_gradient=True) as capture, torch.no_grad():
        logits = model(case.images()).logits
    weights = weights_for(logits, [0, 1, 2])
    maps = class_maps(capture, layer, model, logits, weights)
    (gradient,) = torch.autograd.grad(logits, capture.raw, grad_outputs=weights)
    cells = maps[0].numel()
    size = cells * (capture.maps.detach() * layer.to_maps(gradient)).abs().sum(1).max()
    assert maps.detach().abs().max() > 0.01 * size
    assert maps.detach().std(dim=(1, 2)).min() > 1e-3 * maps.detach().abs().max()


def test_the_second_derivative_is_right():
    """Against finite differences, in float64."""
    case = CASES["vit_class_token"]
    model = case.build().double()
    layer = resolve_feature_layer(model)
    images = case.images(1).double()
    parameter = model.timm_model.blocks[-1].attn.qkv.weight
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value():
        with FeatureCapture(model, layer, tail_gradient=True) as capture:
            logits = model(images).logits
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), capture.raw, create_graph=True)
        return (capture.maps * layer.to_maps(gradient)).sum(1).square().sum()

    (gradient,) = torch.autograd.grad(value(), parameter)
    found = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            parameter.add_(step * direction)
            with torch.enable_grad():
                found.append(float(value()))
    assert float((gradient * direction).sum()) == pytest.approx((found[0] - found[1]) / 2e-5, rel=1e-5)


def test_a_frozen_backbone_still_has_gradient_maps():
    case = CASES["vit_class_token"]
    model = case.build().train()
    layer = resolve_feature_layer(model)
    model.requires_grad_(False)
    model.timm_model.head.requires_grad_(True)
    with FeatureCapture(model, layer, tail_gradient=True) as capture:
        logits = model(case.images()).logits
    maps = class_maps(capture, layer, model, logits, weights_for(logits, [0, 1, 2]), create_graph=True)
    maps.sum().backward()
    assert model.timm_model.head.weight.grad.abs().sum() > 0


def test_no_gradient_is_an_error_and_never_zeros():
    case = CASES["vit_class_token"]
    model = case.build()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer) as capture, torch.no_grad():
        logits = model(case.images()).logits
    weights = weights_for(logits, [0, 1, 2])
    with pytest.raises(RuntimeError, match="tail_gradient=True"):
        class_maps(capture, layer, model, logits, weights)
    with FeatureCapture(model, layer, tail_gradient=True) as capture:
        model(case.images())
    elsewhere = model(case.images()).logits  # of another forward
    with pytest.raises(RuntimeError, match="no gradient to the map"):
        class_maps(capture, layer, model, elsewhere, weights)


def test_checkpointing_of_fused_attention_is_an_error_that_names_the_way_out():
    case = CASES["vit_class_token"]
    model = case.build().train()
    layer = resolve_feature_layer(model)
    model.gradient_checkpointing_enable()
    with FeatureCapture(model, layer, tail_gradient=True) as capture:
        logits = model(case.images()).logits
    with pytest.raises(RuntimeError, match="set_fused_attn"):
        class_maps(capture, layer, model, logits, weights_for(logits, [0, 1, 2]), create_graph=True)


def test_checkpointing_of_plain_attention_gives_the_same_gradients():
    case = CASES["vit_class_token"]
    found = []
    for checkpointing in (False, True):
        model = case.build().train()
        for block in model.timm_model.blocks:
            block.attn.fused_attn = False
        layer = resolve_feature_layer(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        with FeatureCapture(model, layer, tail_gradient=True) as capture:
            logits = model(case.images()).logits
        maps = class_maps(capture, layer, model, logits, weights_for(logits, [0, 1, 2]), create_graph=True)
        (maps.square().mean() + logits.sum()).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_methods_and_weights_are_checked():
    case = CASES["vit_class_token"]
    model = case.build()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer, tail_gradient=True) as capture:
        logits = model(case.images()).logits
    weights = weights_for(logits, [0, 1, 2])
    with pytest.raises(ValueError, match=r'method="cam" needs .* generic'):
        class_maps(capture, layer, model, logits, weights, "cam")
    with pytest.raises(ValueError, match='method="camm" is not known'):
        class_maps(capture, layer, model, logits, weights, "camm")
    with pytest.raises(ValueError, match="weights has shape"):
        class_maps(capture, layer, model, logits, weights[:, :2])
    with pytest.raises(ValueError, match="weights has shape"):
        class_maps(capture, layer, model, logits, weights[[0, 1, 2, 2]])
    maps = class_maps(capture, layer, model, logits, weights)
    torch.testing.assert_close(class_maps(capture, layer, model, logits, weights[:2]), maps[:2])


def test_arithmetic_is_float32_under_autocast():
    case = CASES["test_resnet"]
    model = case.build()
    layer = resolve_feature_layer(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with FeatureCapture(model, layer) as capture:
            logits = model(case.images()).logits
        maps = class_maps(capture, layer, model, logits, weights_for(logits, [0, 1, 2]))
    assert maps.dtype == torch.float32
    weight = model.get_submodule(layer.head).weight[:3]
    torch.testing.assert_close(maps, torch.einsum("bc,bchw->bhw", weight, capture.maps.float()))


def test_a_capture_holds_nothing_alive_on_the_model():
    case = CASES["test_resnet"]
    model = case.build()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer) as capture, torch.no_grad():
        model(case.images())
    del capture
    gc.collect()
    assert hooks(model) == 0
    assert not any("capture" in key for module in model.modules() for key in vars(module))
