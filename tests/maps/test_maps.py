"""Pure map functions against loops written from their formulae, and their edge cases."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_salguide.maps import (
    class_activation_map,
    grad_cam,
    hirescam,
    keyed_uniform,
    min_max,
    random_saliency,
    saliency_target,
    squared_error,
)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_class_activation_map_is_the_weighted_sum_of_channels():
    features, weights = rand(2, 3, 4, 5), rand(2, 3, seed=1)
    maps = class_activation_map(features, weights)
    assert maps.shape == (2, 4, 5)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                expected = sum(weights[b, c] * features[b, c, i, j] for c in range(3))
                assert math.isclose(maps[b, i, j].item(), expected.item(), abs_tol=1e-12)


def test_grad_cam_and_hirescam_equal_the_class_activation_map_for_an_average_and_a_linear_layer():
    features = rand(2, 3, 4, 5).requires_grad_()
    head = rand(6, 3, seed=1)
    logits = features.mean(dim=(2, 3)) @ head.T
    classes = torch.tensor([1, 4])
    gradients = torch.autograd.grad(logits[torch.arange(2), classes].sum(), features)[0]
    expected = class_activation_map(features, head[classes])
    torch.testing.assert_close(grad_cam(features, gradients), expected)
    torch.testing.assert_close(hirescam(features, gradients), expected)
    torch.testing.assert_close(expected.mean(dim=(1, 2)), logits[torch.arange(2), classes])


def test_hirescam_weights_each_cell_by_its_own_gradient():
    features, gradients = rand(1, 3, 2, 4), rand(1, 3, 2, 4, seed=1)
    expected = (features * gradients).sum(1) * 8
    torch.testing.assert_close(hirescam(features, gradients), expected)
    assert not torch.allclose(hirescam(features, gradients), grad_cam(features, gradients))


@pytest.mark.parametrize("function", [grad_cam, hirescam, class_activation_map])
def test_maps_are_differentiable_in_both_arguments(function):
    features = rand(2, 3, 2, 4).requires_grad_()
    other = (rand(2, 3, seed=1) if function is class_activation_map else rand(2, 3, 2, 4, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(function, (features, other))


def test_min_max_is_per_map():
    maps = torch.stack([rand(3, 4), 100 * rand(3, 4, seed=1) + 7])
    normalized, valid = min_max(maps)
    assert valid.all()
    for one, raw in zip(normalized, maps, strict=True):
        torch.testing.assert_close(one, (raw - raw.min()) / (raw.max() - raw.min()))


def test_min_max_is_blind_to_scale_and_flips_with_sign():
    maps = rand(2, 3, 4)
    torch.testing.assert_close(min_max(3.5 * maps + 2)[0], min_max(maps)[0])
    torch.testing.assert_close(min_max(-maps)[0], 1 - min_max(maps)[0])


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-30])
def test_constant_maps_are_zeros_with_zero_gradient(value):
    maps = torch.full((1, 3, 4), value, requires_grad=True)
    normalized, valid = min_max(maps)
    normalized.square().sum().backward()
    assert not valid.any()
    assert torch.equal(normalized.detach(), torch.zeros(1, 3, 4))
    assert torch.equal(maps.grad, torch.zeros(1, 3, 4))


@pytest.mark.parametrize("value", [1.0, -3.0, 1e6])
def test_rounding_is_no_map(value):
    noise = rand(1, 3, 4)
    maps = (value + 1e-7 * value * noise / noise.abs().max()).requires_grad_()
    normalized, valid = min_max(maps)
    (normalized * rand(1, 3, 4, seed=1)).sum().backward()
    assert not valid.any()
    assert not normalized.any()
    assert not maps.grad.any()


def test_a_range_that_overflows_is_no_map():
    maps = torch.tensor([[[-3e38, 3e38]]], requires_grad=True)
    normalized, valid = min_max(maps)
    normalized.sum().backward()
    assert not valid.any()
    assert not normalized.any()
    assert not maps.grad.any()


def test_the_range_floor_is_that_of_each_map():
    maps = torch.stack([rand(3, 4), 1e6 * rand(3, 4, seed=1)])
    alone = torch.cat([min_max(maps[:1])[0], min_max(maps[1:])[0]])
    assert torch.equal(min_max(maps)[0], alone)


def test_the_range_floor_bounds_the_gradient():
    pattern = rand(1, 3, 4)
    pattern = (pattern - pattern.min()) / (pattern.max() - pattern.min())
    gradients = []
    for spread in (1e-2, 1e-4, 1e-5):
        maps = (1 + spread * pattern).requires_grad_()
        min_max(maps)[0].square().sum().backward()
        gradients.append(maps.grad.abs().max().item())
    assert gradients[1] < 20 * gradients[0]  # unbounded, it would be 100 times larger
    assert gradients[2] < 2 * gradients[1]  # and 10 times


def test_saliency_target_is_the_area_mean():
    saliency = torch.zeros(1, 4, 6)
    saliency[0, 0, 0] = 1.0
    saliency[0, 2:, 3:] = 0.5
    target, placed = saliency_target(saliency, (2, 2))
    assert placed.all()
    torch.testing.assert_close(target, torch.tensor([[[1 / 6, 0.0], [0.0, 0.5]]]) / 0.5)


def test_saliency_target_keeps_rows_and_columns():
    saliency = torch.zeros(1, 8, 16)
    saliency[0, :2, 12:] = 1.0
    target, _ = saliency_target(saliency, (4, 8))
    assert target.shape == (1, 4, 8)
    assert target[0, 0, 6:].eq(1).all()
    assert target.sum() == 2


def test_saliency_target_keeps_soft_maps_soft():
    saliency = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    for resize in ("area", "bilinear"):
        target, _ = saliency_target(saliency, (4, 4), resize)
        assert target.unique().numel() == 16, resize


def test_bilinear_target_equals_pillows():
    from PIL import Image

    saliency = torch.rand(12, 20, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(saliency.numpy(), mode="F").resize((5, 3), Image.Resampling.BILINEAR)
    import numpy as np

    expected = torch.from_numpy(np.array(picture))
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    torch.testing.assert_close(saliency_target(saliency[None], (3, 5), "bilinear")[0][0], expected, atol=1e-5, rtol=0)


def test_empty_and_full_masks_have_no_place():
    _, placed = saliency_target(torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]), (2, 2))
    assert not placed.any()


def test_saliency_target_refuses_an_unknown_resize():
    with pytest.raises(ValueError, match='resize="nearest"'):
        saliency_target(torch.ones(1, 4, 4), (2, 2), "nearest")


def test_squared_error_is_the_mean_over_cells():
    a, b = rand(2, 3, 4), rand(2, 3, 4, seed=1)
    expected = F.mse_loss(a, b, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(squared_error(a, b), expected)


def test_keyed_draws_depend_on_their_key_alone():
    rows = torch.arange(8)
    whole = keyed_uniform(rows, 50, seed=3, step=7)
    torch.testing.assert_close(keyed_uniform(rows[4:], 50, seed=3, step=7), whole[4:], rtol=0, atol=0)
    for other in (keyed_uniform(rows, 50, 4, 7), keyed_uniform(rows, 50, 3, 8), keyed_uniform(rows + 8, 50, 3, 7)):
        assert (other == whole).float().mean() < 0.01


def test_keyed_draws_are_uniform():
    from scipy.stats import kstest

    draws = keyed_uniform(torch.arange(200), 100, seed=0, step=0)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert kstest(draws.flatten().numpy(), "uniform").pvalue > 0.01
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.5


def test_keyed_draws_touch_no_global_generator():
    state = torch.random.get_rng_state()
    random_saliency(torch.arange(4), (16, 24), seed=0, step=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_random_saliency_is_a_soft_map_of_the_size_asked_for():
    maps = random_saliency(torch.arange(4), (16, 24), seed=0, step=1)
    assert maps.shape == (4, 16, 24)
    assert maps.min() >= 0
    assert maps.max() < 1
    assert len(maps[0].unique()) > 100


def test_random_saliency_is_smooth_along_rows_and_columns():
    maps = random_saliency(torch.arange(4), (60, 96), seed=0, step=1)
    assert maps.diff(dim=1).abs().max() <= 6 / 60 + 1e-6  # from one of the six cells of a side to the next
    assert maps.diff(dim=2).abs().max() <= 6 / 96 + 1e-6
