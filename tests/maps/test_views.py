"""Views against loops written from their formulae, and what they keep and lose of a picture."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.distance import jensenshannon
from views_support import loop_blended, loop_degraded, loop_permuted, uniform_of

from hf_salguide.maps import (
    FILLS,
    composite,
    degrade_outside,
    feature_distance,
    fill_pictures,
    gaussian_blur,
    gaussian_noise,
    has_place,
    jensen_shannon,
    keyed_uniform,
    permute_pixels,
    unit_vectors,
)


def pictures_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def soft_saliency(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def triples(picture, where):
    """The pixels of a picture in some places, each with all its channels, in an order of their own."""
    return sorted(tuple(pixel.tolist()) for pixel in picture[:, where].T)


# ---- Permuting pixels ----


def test_pixels_are_permuted_as_a_loop_permutes_them():
    pictures, uniform = pictures_of(3, 3, 4, 5), uniform_of(3)
    movable = soft_saliency(3, 4, 5) < 0.6
    whole = [[True] * 5] * 4
    for row in range(3):
        expected = loop_permuted(pictures[row], uniform(20)[row], movable[row])
        assert torch.equal(permute_pixels(pictures, uniform, movable)[row], expected)
        assert torch.equal(
            permute_pixels(pictures, uniform)[row], loop_permuted(pictures[row], uniform(20)[row], whole)
        )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_inside_keeps_every_bit_and_the_outside_its_pixels(channels):
    pictures = pictures_of(4, channels, 16, 24).float()
    saliency = (soft_saliency(4, 16, 24) > 0.7).float()
    degraded = degrade_outside(pictures, saliency, uniform_of(4))
    for row in range(4):
        inside = saliency[row] == 1
        assert torch.equal(degraded[row][:, inside], pictures[row][:, inside])
        assert triples(degraded[row], ~inside) == triples(pictures[row], ~inside)
        moved = (degraded[row] != pictures[row]).any(dim=0)
        assert moved[~inside].float().mean() > 0.9


def test_a_soft_mask_stays_soft():
    pictures, uniform = pictures_of(2, 3, 6, 6), uniform_of(2)
    half = torch.full((2, 6, 6), 0.5, dtype=torch.float64)
    assert torch.equal(degrade_outside(pictures, half, uniform), pictures)  # not under 1/2: nothing moves
    almost_one = torch.full((2, 6, 6), 1 - 1e-7, dtype=torch.float64)  # a rounded resize
    assert torch.equal(degrade_outside(pictures, almost_one, uniform), pictures)
    torch.testing.assert_close(degrade_outside(pictures, half, uniform, fill="zero"), pictures / 2)
    quarter = torch.full((2, 6, 6), 0.25, dtype=torch.float64)
    expected = 0.25 * pictures + 0.75 * permute_pixels(pictures, uniform)
    torch.testing.assert_close(degrade_outside(pictures, quarter, uniform), expected)


def test_an_empty_mask_moves_everything_and_a_full_one_nothing():
    pictures, uniform = pictures_of(2, 3, 6, 6), uniform_of(2)
    empty = torch.zeros(2, 6, 6, dtype=torch.float64)
    assert torch.equal(degrade_outside(pictures, empty, uniform), permute_pixels(pictures, uniform))
    assert torch.equal(degrade_outside(pictures, empty + 1, uniform), pictures)


def test_each_row_is_made_of_its_own_numbers_and_no_generator_is_touched():
    pictures, saliency = pictures_of(4, 3, 8, 8).float(), soft_saliency(4, 8, 8).float()
    rows = torch.arange(4)
    state = torch.random.get_rng_state()
    for fill in FILLS:
        whole = degrade_outside(pictures, saliency, lambda n: keyed_uniform(rows, n, 7, 3), fill)
        again = degrade_outside(pictures, saliency, lambda n: keyed_uniform(rows, n, 7, 3), fill)
        assert torch.equal(whole, again)
        part = degrade_outside(pictures[2:3], saliency[2:3], lambda n: keyed_uniform(rows[2:3], n, 7, 3), fill)
        torch.testing.assert_close(part, whole[2:3], rtol=1e-5, atol=1e-6)
        next_step = degrade_outside(pictures, saliency, lambda n: keyed_uniform(rows, n, 7, 4), fill)
        assert torch.equal(whole, next_step) == (fill not in ("shuffle", "noise"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_order_of_the_pixels_is_as_likely_as_every_other():
    picture = torch.arange(3.0).expand(6000, 1, 1, 3)
    rows = torch.arange(6000)
    orders = permute_pixels(picture, lambda n: keyed_uniform(rows, n, 0, 0)).flatten(1)
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 850
    assert counts.max() < 1150


# ---- Fills ----


def test_the_blur_is_that_of_scipy():
    pictures = pictures_of(2, 3, 7, 9)
    for sigma in (0.8, 2.0, 11.0):  # the last kernel is longer than the picture
        expected = gaussian_filter1d(pictures.numpy(), sigma, axis=2, mode="nearest")
        expected = gaussian_filter1d(expected, sigma, axis=3, mode="nearest")
        torch.testing.assert_close(gaussian_blur(pictures, sigma), torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
        assert torch.equal(fill_pictures(pictures, uniform_of(2), "blur", sigma), gaussian_blur(pictures, sigma))


def test_the_noise_is_gaussian_with_the_pictures_mean_and_spread():
    scale = torch.tensor([1.0, 5.0, 0.1]).reshape(1, 3, 1, 1)
    pictures = (pictures_of(2, 3, 80, 81) * scale + 3 * scale).float()
    rows = torch.arange(2)
    noise = gaussian_noise(pictures, lambda n: keyed_uniform(rows, n, 0, 0))
    standard = (noise - pictures.mean((2, 3), keepdim=True)) / pictures.std((2, 3), keepdim=True, correction=0)
    values = standard.flatten(2)
    assert values.mean(2).abs().max() < 0.05
    assert (values.std(2) - 1).abs().max() < 0.04
    for bound, share in ((-1.0, 0.15866), (0.0, 0.5), (1.0, 0.84134), (2.0, 0.97725)):
        assert ((values < bound).double().mean(2) - share).abs().max() < 0.02
    between = torch.corrcoef(torch.cat([values[0], values[1]]))
    assert (between - torch.eye(6)).abs().max() < 0.06


def test_the_noise_is_that_of_box_and_muller():
    pictures = pictures_of(2, 1, 3, 3)
    uniform = uniform_of(2)
    noise = gaussian_noise(pictures, uniform)
    numbers = uniform(10).double()
    for row in range(2):
        spread = math.sqrt(((pictures[row] - pictures[row].mean()) ** 2).mean())
        for k in range(9):
            radius = math.sqrt(-2 * math.log(1 - numbers[row, k % 5]))
            angle = 2 * math.pi * numbers[row, 5 + k % 5]
            normal = radius * (math.cos(angle) if k < 5 else math.sin(angle))
            expected = pictures[row].mean().item() + spread * normal
            assert noise[row].flatten()[k].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_zero_is_zero_and_mean_is_the_pictures_own_colour():
    pictures = pictures_of(2, 3, 5, 4)
    assert not fill_pictures(pictures, uniform_of(2), "zero").any()
    filled = fill_pictures(pictures, uniform_of(2), "mean")
    for row in range(2):
        for channel in range(3):
            expected = sum(pictures[row, channel].flatten().tolist()) / 20
            assert filled[row, channel].flatten().tolist() == pytest.approx([expected] * 20)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_fills_are_finite_for_constant_pictures_and_the_ends_of_the_draws(fill, number):
    pictures = torch.full((2, 3, 5, 6), 1.7)
    filled = fill_pictures(pictures, lambda n: torch.full((2, n), number), fill)
    torch.testing.assert_close(filled, torch.zeros_like(pictures) if fill == "zero" else pictures)
    random = fill_pictures(pictures_of(2, 3, 5, 6), lambda n: torch.full((2, n), number), fill)
    assert torch.isfinite(random).all()


def test_an_unknown_fill_is_refused():
    with pytest.raises(ValueError, match="fill='black' is not known; choose one of 'shuffle'"):
        fill_pictures(pictures_of(1, 3, 4, 4), uniform_of(1), "black")


# ---- The matte ----


def test_saliency_is_the_alpha_matte():
    first, second = pictures_of(2, 3, 4, 5), pictures_of(2, 3, 4, 5, seed=5)
    saliency = soft_saliency(2, 4, 5)
    saliency[:, 0], saliency[:, 1] = 0, 1
    blended = composite(saliency, first, second)
    for row in range(2):
        torch.testing.assert_close(blended[row], loop_blended(saliency[row], first[row], second[row]))
    assert torch.equal(blended[:, :, 0], second[:, :, 0])
    assert torch.equal(blended[:, :, 1], first[:, :, 1])


def test_degrading_equals_a_loop_over_pixels():
    pictures, saliency, uniform = pictures_of(3, 3, 4, 5), soft_saliency(3, 4, 5), uniform_of(3)
    degraded = degrade_outside(pictures, saliency, uniform)
    for row in range(3):
        torch.testing.assert_close(degraded[row], loop_degraded(pictures[row], saliency[row], uniform(20)[row]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fill", FILLS)
def test_the_pictures_type_is_kept(fill, dtype):
    pictures = pictures_of(2, 3, 6, 6).to(dtype)
    assert degrade_outside(pictures, soft_saliency(2, 6, 6).float(), uniform_of(2), fill).dtype == dtype


def test_constant_saliency_has_no_place():
    saliency = torch.zeros(4, 3, 3)
    saliency[1], saliency[2], saliency[3, 0, 0] = 1.0, 0.3, 0.2
    assert has_place(saliency).tolist() == [False, False, False, True]


# ---- Distances between what a model makes of two pictures ----


def test_distances_equal_loops():
    first, second = pictures_of(3, 2, 2, 3), pictures_of(3, 2, 2, 3, seed=4)
    for row in range(3):
        a, b = first[row].flatten().tolist(), second[row].flatten().tolist()
        lengths = [math.sqrt(sum(value**2 for value in vector)) for vector in (a, b)]
        plain = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
        unit = math.sqrt(sum((x / lengths[0] - y / lengths[1]) ** 2 for x, y in zip(a, b, strict=True)))
        cosine = 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])
        assert feature_distance(first, second)[row].item() == pytest.approx(plain, rel=1e-10)
        assert feature_distance(first, second, normalise=True)[row].item() == pytest.approx(unit, rel=1e-10)
        assert feature_distance(first, second, "cosine")[row].item() == pytest.approx(cosine, rel=1e-10)
    with pytest.raises(ValueError, match="distance='l1' is not known"):
        feature_distance(first, second, "l1")


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_equal_and_zero_features_have_a_finite_gradient(distance, normalise):
    first = torch.stack([torch.arange(4.0), torch.zeros(4), torch.full((4,), 1e-12), torch.ones(4)]).requires_grad_()
    second = torch.stack([torch.arange(4.0), torch.zeros(4), torch.ones(4), torch.zeros(4)]).requires_grad_()
    found = feature_distance(first, second, distance, normalise)
    found.sum().backward()
    assert torch.isfinite(found).all()
    for gradient in (first.grad, second.grad):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 2
        assert gradient[:2].abs().max() < 1e-6
    if distance == "euclidean":
        assert found[:2].tolist() == [0, 0]
        assert not first.grad[:2].any()


def test_unit_vectors_and_distances_pass_a_gradient_check():
    first, second = pictures_of(2, 5).requires_grad_(), pictures_of(2, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(unit_vectors, (first,))
    for distance in ("euclidean", "cosine"):
        assert torch.autograd.gradcheck(lambda a, b, name=distance: feature_distance(a, b, name), (first, second))
    assert torch.autograd.gradcheck(jensen_shannon, (first, second))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_divergence_is_that_of_scipy(classes):
    first, second = pictures_of(5, classes) * 3, pictures_of(5, classes, seed=2) * 3
    expected = jensenshannon(first.softmax(1).numpy(), second.softmax(1).numpy(), axis=1) ** 2
    torch.testing.assert_close(jensen_shannon(first, second), torch.from_numpy(expected), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(jensen_shannon(second, first), jensen_shannon(first, second))
    assert jensen_shannon(first, first + 2).abs().max() < 1e-12


def test_the_divergence_of_confident_rows_is_bounded_and_keeps_its_gradient():
    wide = torch.tensor([[60.0, 0.0, -60.0], [200.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 60.0, -60.0], [0.0, 200.0, 0.0]])
    found = jensen_shannon(wide, other)
    torch.testing.assert_close(found, torch.full((2,), math.log(2)))
    assert (found <= math.log(2) + 1e-6).all()
    for scale in (3.0, 30.0):
        single = (torch.tensor([[1.0, 0.0]]) * scale).requires_grad_()
        double = single.detach().double().requires_grad_()
        jensen_shannon(single, torch.zeros(1, 2)).sum().backward()
        jensen_shannon(double, torch.zeros(1, 2, dtype=torch.float64)).sum().backward()
        p = 1 / (1 + math.exp(-scale))
        middle = (p + 0.5) / 2
        # d JSD / d p = (log(p / m) - log((1 - p) / (1 - m))) / 2, and d p / d z = p (1 - p); 1 - p = exp(-scale) p.
        complement = math.exp(-scale) * p
        exact = 0.5 * (math.log(p / middle) - math.log(complement / (1 - middle))) * p * complement
        assert double.grad[0, 0].item() == pytest.approx(exact, rel=1e-6)
        assert single.grad[0, 0].item() == pytest.approx(exact, rel=1e-3, abs=1e-7)
