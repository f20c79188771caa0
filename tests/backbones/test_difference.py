"""Difference Salience: completeness, against captum's maps of the scalar contrast, against maps of single classes."""

import re

import pytest
import torch
from backbones.zoo import CASES, EXACT
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import nn

from hf_salguide import as_classifier, difference_salience, saliency_maps
from hf_salguide.backbones import FeatureCapture, class_maps, resolve_feature_layer
from hf_salguide.backbones.difference import completeness_error
from hf_salguide.maps import RIVALS

LABELS = torch.tensor([2, 0, 1])
COMPLETE = ["resnet18", "densenet", "efficientnet_b0", "swin", "vit_average_exact", "hf_resnet", "hf_swin"]


class Contrast(nn.Module):
    """`z_0 - z_1` alone, by a forward of its own."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        logits = self.model(pixel_values).logits
        return logits[:, :1] - logits[:, 1:2]


def binary(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = as_classifier(
        case.model if isinstance(case.model, str) else case.model(),
        label_names=["live", "attack"],
        image_size=case.size,
        **(case.arguments or {}),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model, case.images()


def assert_same(ours, theirs):
    ours, theirs = ours.detach(), theirs.detach()
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def shares(logits, labels, rival):
    """The rivals' weights, picture by picture."""
    rows = []
    for row, label in zip(logits, labels, strict=True):
        others = [index for index in range(len(row)) if index != label]
        weights = torch.zeros(len(row))
        if rival == "softmax":
            weights[others] = row[others].exp() / row[others].exp().sum()
        elif rival == "mean":
            weights[others] = 1 / len(others)
        else:
            weights[others[int(row[others].argmax())]] = 1
        rows.append(weights)
    return torch.stack(rows)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", COMPLETE)
def test_the_map_and_the_biases_add_up_to_the_contrast(name, rival):
    case = CASES[name]
    assert name in EXACT
    model, images = case.build(), case.images()
    with torch.no_grad():
        logits = model(images).logits
        bias = model.get_submodule(case.head).bias
        maps = difference_salience(model, images, LABELS, rival)
    assert maps.shape == (3, *case.grid)
    q = shares(logits, LABELS, rival)
    rows = torch.arange(3)
    left = maps.mean((1, 2)) + bias[LABELS] - (q * bias).sum(1)
    right = logits[rows, LABELS] - (q * logits).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))
    assert bias.abs().max() > 1e-3  # without its share the sum would be wrong


@pytest.mark.parametrize("name", ["resnet18", "test_convnext"])
def test_captum_at_the_difference_of_two_logits(name):
    model, images = binary(name)
    layer = resolve_feature_layer(model)
    theirs = LayerGradCam(Contrast(model), model.get_submodule(layer.name)).attribute(images, target=0)[:, 0]
    cells = layer.grid[0] * layer.grid[1]
    assert_same(difference_salience(model, images, 0), theirs * cells)
    assert_same(difference_salience(model, images, 1), -theirs * cells)


def test_captum_at_a_class_token():
    model, images = binary("vit_class_token")
    layer = resolve_feature_layer(model)
    assert layer.readout == "generic"
    theirs = LayerGradientXActivation(Contrast(model), model.get_submodule(layer.name)).attribute(images, target=0)
    cells = layer.grid[0] * layer.grid[1]
    assert_same(difference_salience(model, images, 0), layer.to_maps(theirs).sum(1) * cells)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token", "hf_dinov2"])
def test_it_is_the_map_of_the_class_minus_that_of_the_other(name):
    model, images = binary(name)
    expected = saliency_maps(model, images, 1) - saliency_maps(model, images, 0)
    assert_same(difference_salience(model, images, torch.tensor([1, 1, 1])), expected)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token"])
def test_of_several_classes_it_is_the_map_of_the_class_minus_the_weighted_others(name, rival):
    case = CASES[name]
    model, images = case.build(), case.images()
    logits = model(images).logits.detach()
    maps = torch.stack([saliency_maps(model, images, index).detach() for index in range(3)], dim=1)
    q = shares(logits, LABELS, rival)
    expected = maps[torch.arange(3), LABELS] - (q[:, :, None, None] * maps).sum(1)
    assert_same(difference_salience(model, images, LABELS, rival), expected)


def test_without_labels_it_is_the_predicted_class_against_the_others():
    case = CASES["test_resnet"]
    model, images = case.build(), case.images()
    predicted = model(images).logits.argmax(1)
    assert torch.equal(difference_salience(model, images), difference_salience(model, images, predicted))
    assert not torch.equal(difference_salience(model, images), difference_salience(model, images, (predicted + 1) % 3))


def test_what_the_maps_have_in_common_leaves_the_difference_as_it_is():
    """Passive fooling: a map that is added to every class moves no decision and no difference."""
    case = CASES["test_resnet"]
    model, images = case.build(), case.images()
    with torch.no_grad():
        maps, difference = saliency_maps(model, images, 0), difference_salience(model, images, 0)
        head = model.get_submodule(case.head)
        head.weight.add_(torch.randn(1, head.weight.shape[1], generator=torch.Generator().manual_seed(1)))
        fooled = saliency_maps(model, images, 0)
        assert (fooled - maps).abs().max() > 0.5 * maps.abs().max()
        assert_same(difference_salience(model, images, 0), difference)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token"])
def test_it_is_trained_through(name):
    case = CASES[name]
    model = case.build().train()
    difference_salience(model, case.images(), LABELS).square().mean().backward()
    first = next(p.grad for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 4)
    head = [parameter for parameter in model.parameters() if parameter.ndim == 2 and len(parameter) == 3][-1]
    for gradient in (first, head.grad):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    case = CASES["test_resnet"]
    model, images = case.build().double(), case.images(1).double()
    head = model.get_submodule(case.head)

    def value():
        # The rivals' weights are constants in the gradient, so they must not move here either.
        return difference_salience(model, images, LABELS[:1], "mean").square().sum()

    (gradient,) = torch.autograd.grad(value(), head.weight)
    place = divmod(int(gradient.abs().argmax()), gradient.shape[1])
    step = 1e-2
    with torch.no_grad():
        head.weight[place] += step
        above = value()
        head.weight[place] -= 2 * step
        below = value()
    assert float((above - below) / (2 * step)) == pytest.approx(float(gradient[place]), rel=1e-3)


def test_under_no_grad_at_another_layer_and_at_another_size():
    case = CASES["resnet18"]
    model, images = case.build(), case.images()
    with torch.no_grad():
        plain = difference_salience(model, images, LABELS)
        assert not plain.requires_grad
        assert plain.dtype == torch.float32
        assert difference_salience(model, torch.randn(2, 3, 96, 128), 1).shape == (2, 3, 4)
        assert difference_salience(model, images, LABELS, feature_layer="timm_model.layer3.1").shape == (3, 4, 6)
    assert_same(difference_salience(model, images, LABELS), plain)


def test_completeness_is_promised_where_the_read_out_is_exact():
    case = CASES["test_resnet"]
    model, images = case.build(), case.images()
    layer = resolve_feature_layer(model)
    with torch.no_grad(), FeatureCapture(model, layer) as capture:
        logits = model(images).logits
    weights = torch.tensor([[1.0, -0.5, -0.5]]).expand(3, 3)
    maps = class_maps(capture, layer, model, logits, weights)
    error = completeness_error(maps, logits, weights, model, layer)
    assert error.max() < 1e-4 * logits.abs().max()
    torch.testing.assert_close(completeness_error(maps + 2, logits, weights, model, layer), torch.full((3,), 2.0))
    convnext = CASES["test_convnext"].build()
    assert completeness_error(maps, logits, weights, convnext, resolve_feature_layer(convnext)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rival": "softmin"}, 'rival="softmin" is not known'),
        ({"labels": 3}, "labels hold 3 to 3, outside the model's 3 classes, 0 to 2"),
        ({"labels": torch.tensor([0, 1])}, r"labels has shape (2,); give one class for each of 3 pictures"),
        ({"labels": torch.zeros(3)}, "labels has the type torch.float32; give classes, as integers"),
        ({"feature_layer": "layer9"}, "is not a module of"),
    ],
)
def test_arguments_are_checked(arguments, message):
    case = CASES["test_resnet"]
    with pytest.raises(ValueError, match=re.escape(message)):
        difference_salience(case.build(), case.images(), **arguments)


def test_an_unknown_rival_is_told_before_the_forward():
    with pytest.raises(ValueError, match="rival="):
        difference_salience(nn.Identity(), torch.zeros(1, 3, 8, 8), rival="none")


def test_one_picture_must_be_a_batch():
    case = CASES["test_resnet"]
    with pytest.raises(ValueError, match=r"give a batch, \(B, C, H, W\)"):
        difference_salience(case.build(), case.images()[0])


def test_one_logit_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="the model has 1 logit"):
        difference_salience(model, torch.randn(2, 3, 64, 64))
