"""
Maps against captum's and torchcam's, at the same layer.

What an oracle cannot do, as measured:

* captum's `LayerGradCam` takes axis 1 for the channels and averages the gradient over the others: channels-last and
  token maps come out with a wrong shape. So an identity is put behind the layer for it to watch, which is given the
  layer's output with its axes in the order that captum wants, and without prefix tokens.
* torchcam's `CAM` needs an exact read-out and a linear head; its gradient methods apply a ReLU, switched off here.
  Its hooks take the layout through `reshape_transform`.
* both detach: neither can be trained through, so gradients have tests of their own.
"""

import copy

import pytest
import torch
from backbones.zoo import CASES, EXACT, INEXACT
from captum.attr import LayerGradCam, LayerGradientXActivation, Saliency
from torch import nn
from torchcam.methods import CAM, GradCAM

from hf_salguide.backbones import FeatureCapture, class_maps, resolve_feature_layer, saliency_maps

FAMILIES = [
    "resnet18",
    "densenet",
    "efficientnet_b0",
    "test_convnext",
    "swin",
    "vit_average",
    "vit_average_exact",
    "hf_resnet",
    "hf_efficientnet",
    "hf_convnext",
    "hf_swin",
]
GRAD_CAM = [*FAMILIES, "vit_class_token", "hf_vit", "vit_registers", "hf_dinov2", "hf_dinov2_registers"]
CLASSES = torch.tensor([2, 0, 1])


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def assert_same(ours, theirs):
    ours, theirs = ours.detach(), theirs.detach()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


class Around(nn.Module):
    """A layer, and behind it an identity through which its grid passes as `(B, C, h, w)`."""

    def __init__(self, module, layout, grid, prefix):
        super().__init__()
        self.module, self.layout, self.grid, self.prefix = module, layout, grid, prefix
        self.watched = nn.Identity()

    def forward(self, *args, **kwargs):
        output = self.module(*args, **kwargs)
        if self.layout == "NCHW":
            return self.watched(output)
        if self.layout == "NHWC":
            return self.watched(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        prefix, tokens = output.split([self.prefix, output.shape[1] - self.prefix], dim=1)
        maps = self.watched(tokens.reshape(len(output), *self.grid, -1).permute(0, 3, 1, 2))
        return torch.cat([prefix, maps.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def captum_grad_cam(case, images):
    """captum's map at the layer that the case names, the mean gradient for weights; a model of its own."""
    model = case.build()
    around = Around(model.get_submodule(case.layer), case.layout, case.grid, case.prefix)
    model.set_submodule(case.layer, around)
    maps = LayerGradCam(Logits(model), around.watched).attribute(images, target=CLASSES)
    assert maps.shape == (len(images), 1, *case.grid)
    return maps[:, 0]


@pytest.mark.parametrize("name", GRAD_CAM)
def test_captum(name):
    """Each layout, with and without prefix tokens, at each kind of read-out."""
    case = CASES[name]
    model, images = case.build(), case.images()
    theirs = captum_grad_cam(case, images) * case.grid[0] * case.grid[1]
    assert theirs.std() > 1e-3 * theirs.abs().max()
    assert_same(saliency_maps(model, images, CLASSES, method="gradcam"), theirs)
    if case.readout != "generic":
        assert_same(saliency_maps(model, images, CLASSES), theirs)


def test_each_kind_of_layout_is_among_them():
    cases = [CASES[name] for name in GRAD_CAM]
    kinds = {(case.layout, case.prefix) for case in cases}
    assert kinds >= {("NCHW", 0), ("NHWC", 0), ("NLC", 0), ("NLC", 1), ("NLC", 5)}
    assert {case.readout for case in cases if case.prefix} == {"exact", "uniform", "generic"}


@pytest.mark.parametrize("name", ["vit_class_token", "hf_vit", "vit_registers"])
def test_captum_at_a_generic_read_out(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    layer = resolve_feature_layer(model)
    products = LayerGradientXActivation(Logits(model), model.get_submodule(layer.name)).attribute(
        images, target=CLASSES
    )
    cells = layer.grid[0] * layer.grid[1]
    assert_same(saliency_maps(model, images, CLASSES), layer.to_maps(products).sum(1) * cells)


@pytest.mark.parametrize("name", FAMILIES)
def test_torchcam_grad_cam(name):
    case = CASES[name]
    model, images = Logits(case.build()), case.images()
    layer = resolve_feature_layer(model.model)
    with GradCAM(model, f"model.{layer.name}", reshape_transform=layer.to_maps) as extractor:
        extractor._relu = False
        logits = model(images.requires_grad_())
        (theirs,) = extractor(CLASSES.tolist(), logits, normalized=False)
    cells = layer.grid[0] * layer.grid[1]
    assert_same(saliency_maps(model.model, images.detach(), CLASSES), theirs * cells)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name in EXACT])
def test_torchcam_cam(name):
    case = CASES[name]
    model, images = Logits(case.build()), case.images()
    layer = resolve_feature_layer(model.model)
    head = f"model.{layer.head}"
    with CAM(model, f"model.{layer.name}", head, reshape_transform=layer.to_maps) as extractor, torch.no_grad():
        model(images)
        (theirs,) = extractor(CLASSES.tolist(), normalized=False)
    assert_same(saliency_maps(model.model, images, CLASSES, method="cam"), theirs)


def test_captum_input_gradient():
    case = CASES["vit_class_token"]
    model, images = case.build(), case.images()
    theirs = Saliency(Logits(model)).attribute(images.clone(), target=CLASSES, abs=False).sum(1)
    assert_same(saliency_maps(model, images, CLASSES, method="input_gradient"), theirs)


@pytest.mark.parametrize("method", ["auto", "gradcam", "hirescam", "input_gradient"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token"])
def test_under_no_grad_the_maps_are_the_same(name, method):
    case = CASES[name]
    model, images = case.build(), case.images()
    maps = saliency_maps(model, images, method=method)
    with torch.no_grad():
        plain = saliency_maps(model, images, method=method)
        assert not torch.is_grad_enabled()
    assert maps.requires_grad
    assert not plain.requires_grad
    assert maps.shape[1:] == (case.size if method == "input_gradient" else case.grid)
    assert_same(plain, maps)


@pytest.mark.parametrize("method", ["auto", "gradcam", "hirescam", "input_gradient"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token", "hf_vit"])
def test_maps_are_trained_through(name, method):
    """Down to the first layer, and up to the head, which is in most maps through the gradient alone."""
    case = CASES[name]
    model = case.build().train()
    maps = saliency_maps(model, case.images(), method=method)
    maps.square().mean().backward()
    gradient = next(p.grad for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 4)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    head = [parameter for parameter in model.parameters() if parameter.ndim == 2 and len(parameter) == 3][-1]
    assert head.grad is not None
    assert head.grad.abs().sum() > 0
    assert model.training


def test_the_predicted_class_is_the_default():
    case = CASES["test_resnet"]
    model, images = case.build(), case.images()
    predicted = model(images).logits.argmax(1)
    assert torch.equal(saliency_maps(model, images), saliency_maps(model, images, predicted))
    assert torch.equal(saliency_maps(model, images, 1), saliency_maps(model, images, torch.tensor([1, 1, 1])))
    assert not torch.equal(saliency_maps(model, images, 1), saliency_maps(model, images, 2))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token", "swin"])
def test_each_picture_has_a_map_of_its_own(name):
    """What else is in the batch does not matter."""
    case = CASES[name]
    model, images = case.build(), case.images()
    alone = torch.cat([saliency_maps(model, images[[row]], CLASSES[[row]]) for row in range(3)])
    assert_same(saliency_maps(model, images, CLASSES), alone)


def test_another_layer_and_another_size():
    case = CASES["resnet18"]
    model, images = case.build(), case.images()
    assert saliency_maps(model, images, feature_layer="timm_model.layer3.1").shape == (3, 4, 6)
    assert saliency_maps(model, torch.randn(2, 3, 96, 128)).shape == (2, 3, 4)


def test_an_exact_map_without_one_head_takes_gradients():
    """Two heads that are averaged: exact, but no single module holds the weights."""

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 6, 8, stride=8)
            self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            pooled = self.stem(x).mean((2, 3))
            return (self.one(pooled) + self.two(pooled)) / 2

    model, images = TwoHeads(), torch.randn(2, 3, 32, 64)
    layer = resolve_feature_layer(model, (32, 64))
    assert (layer.readout, layer.head, layer.needs_gradient) == ("exact", None, True)
    maps = saliency_maps(model, images, 1)
    weight = (model.one.weight[1] + model.two.weight[1]) / 2
    assert_same(maps, torch.einsum("c,bchw->bhw", weight, model.stem(images)))


@pytest.mark.parametrize("name", ["test_resnet", *INEXACT[:2]])
def test_a_gradient_reaches_the_weights_that_make_the_map(name):
    case = CASES[name]
    model = case.build()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer, tail_gradient=True) as capture:
        logits = model(case.images()).logits
    maps = class_maps(capture, layer, model, logits, torch.eye(3), create_graph=True)
    maps.square().mean().backward()
    assert model.timm_model.get_classifier().weight.grad.abs().sum() > 0


def test_the_model_is_left_as_it_was():
    case = CASES["vit_class_token"]
    model = case.build()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        saliency_maps(model, case.images())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"method": "gradcamm"},
            'method="gradcamm" is not known; choose "cam", "gradcam", "hirescam", "input_gradient" or '
            '"attention_rollout", or "auto"',
        ),
        ({"method": "attention_rollout", "target": 1}, "target=1 is given, but .* the same for every class"),
        ({"method": "attention_rollout"}, "its forward shows no attention"),
        ({"target": 3}, "target=3 is outside the model's 3 classes"),
        ({"target": torch.tensor([0, 1])}, "target has shape"),
        ({"target": -1}, "target=-1 is outside"),
        ({"feature_layer": "layer9"}, "is not a module of"),
    ],
)
def test_arguments_are_checked(arguments, message):
    case = CASES["test_resnet"]
    with pytest.raises(ValueError, match=message):
        saliency_maps(case.build(), case.images(), **arguments)


def test_one_picture_must_be_a_batch():
    case = CASES["test_resnet"]
    with pytest.raises(ValueError, match=r"give a batch, \(B, C, H, W\)"):
        saliency_maps(case.build(), case.images()[0])
