"""Distances against scipy, scikit-learn and loops over the cells, and at the edges of what they take."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error

from hf_salguide.maps import (
    absolute_error,
    correlation_distance,
    energy_outside,
    entropy,
    kl_divergence,
    min_max,
    squared_error,
    ssim_distance,
)

NORMALISED = [absolute_error, correlation_distance, kl_divergence, squared_error, ssim_distance]
ALL = [*NORMALISED, energy_outside]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(count=3, seed=0):
    """Two sets of normalised maps, the cells of each with a 0 and a 1 among them."""
    return min_max(rand(count, 3, 4, seed=seed))[0], min_max(rand(count, 3, 4, seed=seed + 1))[0]


def ssim_loop(a, b):
    """Wang et al. 2004, over one window, population variances."""
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    var_a, var_b = sum((x - mean_a) ** 2 for x in a) / n, sum((y - mean_b) ** 2 for y in b) / n
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / n
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return 1 - similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def energy_loop(a, b):
    positive = [x if x > 0 else 0 * x for x in a]
    return 1 - sum(x * y for x, y in zip(positive, b, strict=True)) / sum(positive)


def entropy_loop(a):
    shares = [x / sum(a) for x in a]
    return -sum(share * torch.log(share) for share in shares if share > 0)


ORACLES = {
    absolute_error: mean_absolute_error,
    squared_error: mean_squared_error,
    correlation_distance: lambda a, b: 1 - scipy.stats.pearsonr(a, b).statistic,
    kl_divergence: lambda a, b: scipy.stats.entropy(np.asarray(b) + 0.01, np.asarray(a) + 0.01),
    ssim_distance: ssim_loop,
    energy_outside: energy_loop,
}
LOOPS = {
    absolute_error: lambda a, b: sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a),
    squared_error: lambda a, b: sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a),
    ssim_distance: ssim_loop,
    energy_outside: energy_loop,
}


def named(function):
    return function.__name__


@pytest.mark.parametrize("function", ALL, ids=named)
def test_a_distance_is_that_of_an_independent_implementation(function):
    maps, target = pair()
    if function is energy_outside:
        maps = rand(3, 3, 4, seed=5)
    expected = [
        ORACLES[function](one.flatten().tolist(), other.flatten().tolist())
        for one, other in zip(maps, target, strict=True)
    ]
    torch.testing.assert_close(function(maps, target), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("function", list(LOOPS), ids=named)
def test_the_gradient_is_that_of_a_loop(function):
    maps, target = rand(2, 3, 4).requires_grad_(), pair(2)[1]
    (given,) = torch.autograd.grad(function(maps, target).sum(), maps)
    loop = sum(LOOPS[function](list(one.flatten()), list(b.flatten())) for one, b in zip(maps, target, strict=True))
    (expected,) = torch.autograd.grad(loop, maps)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("function", NORMALISED, ids=named)
def test_gradients_are_those_of_finite_differences(function):
    maps, target = pair(2)
    inner = (0.1 + 0.8 * maps).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: function(values, target), inner)


@pytest.mark.parametrize("function", NORMALISED, ids=named)
def test_a_distance_is_0_from_itself_and_above_from_another(function):
    maps, target = pair()
    torch.testing.assert_close(function(maps, maps), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (function(maps, target) > 1e-3).all()


@pytest.mark.parametrize("function", ALL, ids=named)
def test_rows_are_measured_alone(function):
    maps, target = pair()
    alone = torch.cat([function(maps[row : row + 1], target[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(function(maps, target), alone)


@pytest.mark.parametrize("function", ALL, ids=named)
@pytest.mark.parametrize("target_value", [0.0, 0.1, 1.0, None])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, None])
def test_constant_maps_and_targets_have_finite_distances_and_gradients(function, value, target_value):
    maps, target = (values.float() for values in pair())
    maps = maps if value is None else torch.full_like(maps, value)
    target = target if target_value is None else torch.full_like(target, target_value)
    maps.requires_grad_()
    distance = function(maps, target)
    distance.sum().backward()
    assert torch.isfinite(distance).all()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad.abs().max() < 100
    assert (distance > -1e-6).all()


def test_a_constant_has_no_correlation():
    maps, target = (values.float() for values in pair())
    for one, other in ((torch.full_like(maps, 0.1), target), (maps, torch.full_like(maps, 0.1))):
        one = one.requires_grad_()
        distance = correlation_distance(one, other)
        distance.sum().backward()
        assert torch.equal(distance, torch.ones(3))
        assert not one.grad.any()


def test_correlation_and_divergence_know_the_best_and_the_worst():
    maps, _ = pair()
    torch.testing.assert_close(correlation_distance(1 - maps, maps), torch.full((3,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(correlation_distance(5 * maps + 3, maps), torch.zeros(3, dtype=torch.float64))
    left, right = torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)
    left[..., :2], right[..., 2:] = 1, 1
    expected = (1.01 - 0.01) * 2 / 2.04 * math.log(101)
    torch.testing.assert_close(kl_divergence(left, right), torch.tensor([expected]))


def test_divergence_is_from_the_target():
    maps, target = pair()
    assert not torch.allclose(kl_divergence(maps, target), kl_divergence(target, maps))


def test_energy_outside_is_one_minus_relevance_mass_accuracy_on_maps_that_are_not_negative():
    maps, mask = rand(4, 3, 4).abs(), (rand(4, 3, 4, seed=1) > 0).double()
    for row in range(4):
        inside = sum(float(value) for value, hit in zip(maps[row].flatten(), mask[row].flatten(), strict=True) if hit)
        accuracy = inside / float(maps[row].sum())
        assert 1 - energy_outside(maps, mask)[row].item() == pytest.approx(accuracy)


def test_energy_outside_of_what_is_nowhere_positive_is_0():
    maps = torch.stack([-rand(3, 4).abs(), torch.zeros(3, 4, dtype=torch.float64)]).requires_grad_()
    outside = energy_outside(maps, torch.zeros(2, 3, 4))
    outside.sum().backward()
    assert not outside.any()
    assert not maps.grad.any()


def test_the_share_of_almost_no_energy_has_a_floor():
    maps = -torch.ones(1, 1, 4, dtype=torch.float64)
    distances = []
    for positive in (2e-3, 1e-3, 1e-6, 1e-12):
        maps = maps.detach()
        maps[0, 0, 0] = positive
        maps.requires_grad_()
        outside = energy_outside(maps, torch.zeros(1, 1, 4))
        (gradient,) = torch.autograd.grad(outside.sum(), maps)
        assert gradient.abs().max() < 1001
        distances.append(outside.item())
    assert distances == pytest.approx([1, 1, 1e-3, 1e-9])


def test_energy_outside_has_no_scale():
    maps, target = rand(3, 3, 4), pair()[1]
    torch.testing.assert_close(energy_outside(1e-20 * maps, target), energy_outside(maps, target))


def test_entropy_of_cells_that_are_all_the_same_is_the_logarithm_of_their_number():
    border = torch.zeros(1, 7, 7)
    border.view(-1)[:28] = 1.0
    maps = torch.cat([torch.ones(1, 7, 7), border, torch.zeros(1, 7, 7)])
    one = torch.zeros(1, 7, 7)
    one[0, 3, 3] = 1.0
    expected = torch.tensor([math.log(49), math.log(28), 0.0, 0.0])
    torch.testing.assert_close(entropy(torch.cat([maps, one])), expected)
    assert entropy(border).item() == pytest.approx(3.332, abs=1e-3)


def test_entropy_is_scipys_and_its_gradient_a_loops():
    maps = pair()[0]
    expected = [scipy.stats.entropy(one.flatten().numpy()) for one in maps]
    torch.testing.assert_close(entropy(maps), torch.tensor(expected))
    positive = (0.1 + maps).requires_grad_()
    (given,) = torch.autograd.grad(entropy(positive).sum(), positive)
    (wanted,) = torch.autograd.grad(sum(entropy_loop(list(one.flatten())) for one in positive), positive)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("value", [0.0, 1.0, None])
def test_the_gradient_of_the_entropy_is_finite_in_empty_cells(value):
    maps = torch.zeros(1, 3, 4) if value is not None else pair(1)[0].float()
    if value:
        maps[0, 1, 2] = value
    maps.requires_grad_()
    entropy(maps).sum().backward()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad.abs().max() < 30
