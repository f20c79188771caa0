"""Second derivatives of what torch has none for."""

import pytest
import torch
import torch.nn.functional as F
from backbones.zoo import NAMES
from torch import nn

from hf_salguide.backbones import as_classifier, twice_differentiable


def test_torch_has_no_second_derivative_of_the_hard_sigmoid():
    x = torch.randn(5, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.hardsigmoid(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_hard_sigmoid_is_the_same_and_differentiable_twice(inplace):
    x = torch.linspace(-5, 5, 41, dtype=torch.float64, requires_grad=True)
    expected = (x.detach() / 6 + 0.5).clamp(0, 1)
    with twice_differentiable():
        found = nn.Hardsigmoid(inplace=inplace)(x * 1)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    inside = (x.detach() > -3) & (x.detach() < 3)
    torch.testing.assert_close(second, torch.where(inside, 2.0 / 36, 0.0).double())


def test_the_input_gradient_of_a_gated_network_trains():
    """By central differences of the penalty, in float64, along one direction of a convolution's weight."""
    torch.manual_seed(0)
    model = as_classifier("mobilenetv3_small_050", label_names=NAMES, image_size=64).double().eval()
    assert any(isinstance(module, nn.Hardsigmoid) for module in model.modules())
    pictures = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    weight = model.timm_model.conv_stem.weight

    def penalty():
        with twice_differentiable():
            logits = model(pictures).logits
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), pictures, create_graph=True)
        return gradient.square().sum() * 1e6

    (gradient,) = torch.autograd.grad(penalty(), weight)
    assert gradient.any()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double()
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight.add_(step * direction)
        values.append(float(penalty().detach()))
        with torch.no_grad():
            weight.sub_(step * direction)
    expected = (values[0] - values[1]) / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5)
