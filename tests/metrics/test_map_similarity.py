"""A map and saliency as rankings and as distributions, against scipy and cases done by hand."""

import math

import pytest
import torch
from scipy import stats

from hf_salguide.metrics import kl_divergence_of_maps, map_entropy, similarity, spearman

pytestmark = pytest.mark.filterwarnings("error")


def random_case(grid, size):
    """Signed maps and soft saliency with zeros."""
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(6, *size, generator=generator)
    return torch.randn(6, *grid, generator=generator), saliency * (saliency > 0.4)


def test_a_plateau_of_saliency_stays_a_plateau_on_a_grid_that_does_not_divide_it():
    maps = random_case((7, 7), (50, 50))[0]
    saliency = torch.zeros(len(maps), 50, 50)
    saliency[:, :, :29] = 1.0
    assert torch.allclose(spearman(maps, saliency), spearman(maps, saliency * (201 / 255)))


def test_kl_divergence_and_similarity_of_positive_maps():
    maps, saliency = random_case((6, 6), (6, 6))
    maps = maps.abs() + 0.01
    given, wanted = maps.flatten(1).double().numpy(), saliency.flatten(1).double().numpy()
    expected = [stats.entropy(wanted[row], given[row]) for row in range(len(maps))]
    assert kl_divergence_of_maps(maps, saliency).numpy() == pytest.approx(expected, abs=1e-5)
    assert kl_divergence_of_maps(saliency, saliency).numpy() == pytest.approx(0, abs=1e-6)
    assert similarity(saliency, saliency).numpy() == pytest.approx(1)


def test_kl_divergence_of_a_map_that_misses_half():
    maps = torch.tensor([[[1.0, -1.0]]])
    saliency = torch.tensor([[[0.5, 0.5]]])
    missed = 0.5 * math.log(0.5 / 2**-52) + 0.5 * math.log(0.5)
    assert kl_divergence_of_maps(maps, saliency).item() == pytest.approx(missed, abs=1e-4)
    assert similarity(maps, saliency).item() == pytest.approx(0.5)


def test_entropy_is_of_the_positive_part():
    maps = random_case((5, 7), (5, 7))[0]
    expected = [stats.entropy(row.clip(0).ravel()) for row in maps.double().numpy()]
    assert map_entropy(maps).numpy() == pytest.approx(expected, abs=1e-5)
    assert map_entropy(torch.ones(1, 4, 4)).item() == pytest.approx(math.log(16))
    assert map_entropy(torch.tensor([[[3.0, -1.0]], [[-3.0, -1.0]], [[torch.inf, 1.0]]])).tolist() == pytest.approx(
        [0.0, math.nan, math.nan], nan_ok=True
    )


def test_spearman_gives_ties_their_average_rank():
    maps = torch.tensor([[1.0, 1.0, -2.0, 3.0, 0.5, 0.5, 0.5, 9.0]]).reshape(1, 2, 4)
    saliency = torch.tensor([[0.0, 0.2, 0.0, 0.0, 1.0, 0.2, 0.0, 1.0]]).reshape(1, 2, 4)
    expected = stats.spearmanr(maps.flatten().numpy(), saliency.flatten().numpy()).statistic
    assert spearman(maps, saliency).item() == pytest.approx(expected, abs=1e-6)
    assert spearman(saliency, saliency).item() == pytest.approx(1)
    assert spearman(-saliency, saliency).item() == pytest.approx(-1)


def test_saliency_is_averaged_over_the_cells_of_the_map():
    maps = torch.tensor([[[3.0, 1.0]]])
    saliency = torch.zeros(1, 4, 4)
    saliency[0, 0, :2], saliency[0, 1, 3] = 0.5, 1.0  # half of the saliency in each cell
    assert similarity(maps, saliency).item() == pytest.approx(1 / 4 + 1 / 2)
    assert spearman(maps, saliency).isnan().all()
