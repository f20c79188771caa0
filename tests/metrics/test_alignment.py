"""Alignment of maps with saliency: cases done by hand, a loop in double precision, quantus and scipy, invariances."""

import math
import statistics
import time

import numpy as np
import pytest
import torch
from scipy import stats

from hf_salguide.metrics import (
    alignment_metrics,
    alignment_summary,
    energy_inside,
    kl_divergence_of_maps,
    matched_area,
    pointing_game,
    relevance_mass,
    relevance_rank,
    similarity,
    spearman,
)

pytestmark = pytest.mark.filterwarnings("error")
KEYS = ["energy_inside", "iou", "map_precision", "map_recall", "pointing_game", "relevance_mass", "relevance_rank"]
KEYS += ["spearman", "kl", "similarity"]
BY_ORDER = ["iou", "map_precision", "map_recall", "pointing_game", "relevance_rank", "spearman"]
BY_MASS = ["energy_inside", "relevance_mass", "kl", "similarity"]


def random_case(count=6, grid=(5, 7), size=(30, 42), seed=0):
    """Signed maps and soft saliency with zeros around it."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, *grid, generator=generator)
    saliency = torch.rand(count, *size, generator=generator) * (torch.rand(count, *size, generator=generator) < 0.4)
    return maps, saliency


def upsampled(values, size):
    """Bilinear interpolation between the centres of the cells, the outermost repeated beyond them."""
    for axis, length in enumerate(size):
        cells = values.shape[axis]
        places = np.clip((np.arange(length) + 0.5) * cells / length - 0.5, 0, cells - 1)
        low = np.floor(places).astype(int)
        high, part = np.minimum(low + 1, cells - 1), places - low
        part = part[:, None] if axis == 0 else part
        values = values.take(low, axis) * (1 - part) + values.take(high, axis) * part
    return values


def by_loop(values, saliency):
    """All measures of one picture, for maps without ties, in double precision."""
    values, saliency = values.double().numpy(), saliency.double().numpy()
    full, positive = upsampled(values, saliency.shape).ravel(), upsampled(values.clip(0), saliency.shape).ravel()
    flat = saliency.ravel()
    mask = flat >= 0.5
    chosen = np.argsort(-full)[: mask.sum()]
    height, width = (saliency.shape[axis] // values.shape[axis] for axis in (0, 1))
    cells = saliency.reshape(values.shape[0], height, values.shape[1], width).mean((1, 3)).ravel()
    given, wanted = values.clip(0).ravel() / values.clip(0).sum(), cells / cells.sum()
    inside = mask[chosen].sum()
    return {
        "energy_inside": (positive * flat).sum() / positive.sum(),
        "iou": len(set(chosen) & set(np.flatnonzero(mask))) / len(set(chosen) | set(np.flatnonzero(mask))),
        "map_precision": inside / len(chosen),
        "map_recall": inside / mask.sum(),
        "pointing_game": float(mask[full.argmax()]),
        "relevance_mass": positive[mask].sum() / positive.sum(),
        "relevance_rank": flat[chosen].sum() / np.sort(flat)[-len(chosen) :].sum(),
        "spearman": stats.spearmanr(values.ravel(), cells).statistic,
        "kl": sum(q * math.log(2**-52 + q / (2**-52 + p)) for p, q in zip(given, wanted, strict=True)),
        "similarity": np.minimum(given, wanted).sum(),
    }


@pytest.mark.parametrize(("grid", "size"), [((5, 7), (30, 42)), ((8, 8), (8, 8)), ((6, 5), (24, 65))])
def test_all_measures_equal_a_loop(grid, size):
    maps, saliency = random_case(grid=grid, size=size)
    # The pixels along the border of an upsampled map tie: its cells are made the lowest, out of the mask's reach.
    maps[:, [0, -1]], maps[:, :, [0, -1]] = -5.0, -5.0
    maps[:, 1, 1] = 1.0
    for given, tolerance in ((maps, 1e-4), (maps.double(), 1e-9)):
        metrics = alignment_metrics(given, saliency)
        assert list(metrics) == KEYS
        for row in range(len(maps)):
            for key, expected in by_loop(maps[row], saliency[row]).items():
                assert metrics[key][row].item() == pytest.approx(expected, abs=tolerance), (key, row)


def test_the_functions_are_what_the_dictionary_holds():
    maps, saliency = random_case()
    area = matched_area(maps, saliency)
    alone = [energy_inside(maps, saliency), area.iou, area.precision, area.recall, pointing_game(maps, saliency)]
    alone += [relevance_mass(maps, saliency), relevance_rank(maps, saliency), spearman(maps, saliency)]
    alone += [kl_divergence_of_maps(maps, saliency), similarity(maps, saliency)]
    together = alignment_metrics(maps, saliency)
    assert all(torch.equal(together[key], value) for key, value in zip(KEYS, alone, strict=True))


def test_quantus_agrees_where_it_is_right():
    quantus = pytest.importorskip("quantus", exc_type=ImportError)  # its OpenCV wants libraries of the system
    generator = np.random.default_rng(1)
    maps = generator.random((8, 16, 16)).astype(np.float32)  # quantus takes relevance that is not negative
    masks = generator.random((8, 16, 16)) < np.linspace(0.05, 0.9, 8)[:, None, None]
    metrics = alignment_metrics(torch.from_numpy(maps), torch.from_numpy(masks))
    pairs = {
        "relevance_mass": quantus.RelevanceMassAccuracy,
        "relevance_rank": quantus.RelevanceRankAccuracy,
        "pointing_game": quantus.PointingGame,
    }
    for key, metric in pairs.items():
        reference = metric(abs=False, normalise=False, disable_warnings=True)
        expected = reference.evaluate_batch(a_batch=maps[:, None].astype(np.float64), s_batch=masks[:, None])
        assert metrics[key].numpy() == pytest.approx(np.asarray(expected, dtype=float), abs=1e-6), key


@pytest.mark.parametrize(("columns", "share"), [(slice(0, 4), 1.0), (slice(4, 8), 0.0), (slice(2, 6), 0.5)])
def test_all_in_none_in_half_in(columns, share):
    ramp = 1 + torch.arange(8.0).flip(0).repeat(8, 1) / 100  # no ties between columns
    maps = torch.where(torch.arange(8) < 4, ramp, 0.0).unsqueeze(0)
    saliency = torch.zeros(1, 8, 8)
    saliency[:, :, columns] = 1.0
    area = matched_area(maps, saliency)
    assert area.precision.item() == area.recall.item() == pytest.approx(share)
    assert area.iou.item() == pytest.approx(share / (2 - share))
    assert relevance_rank(maps, saliency).item() == pytest.approx(share)
    assert relevance_mass(maps, saliency).item() == pytest.approx(share, abs=0.01)
    assert similarity(maps, saliency).item() == pytest.approx(share, abs=0.01)
    assert pointing_game(maps, saliency).item() == float(columns.start == 0)


def test_a_quarter_of_the_mass_and_of_the_pixels():
    maps = torch.tensor([[[4.0, 3.0, 2.0, 1.0], [-1.0, -2.0, -3.0, -4.0]]])
    saliency = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]]])
    assert matched_area(maps, saliency).precision.item() == pytest.approx(1 / 4)
    assert matched_area(maps, saliency).iou.item() == pytest.approx(1 / 7)
    assert relevance_mass(maps, saliency).item() == pytest.approx(2 / 10)


def test_pixels_that_tie_share_what_is_left_of_the_area():
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, :2] = 2.0  # one of two in the mask
    maps[0, 1], maps[0, 2, :2] = 1.0, 1.0  # three of six in the mask, two to be taken
    saliency = torch.zeros(1, 4, 4)
    saliency[0, 0, 0], saliency[0, 1, :3] = 1.0, 1.0
    assert matched_area(maps, saliency).precision.item() == pytest.approx((1 + 2 * 3 / 6) / 4)
    assert matched_area(maps, saliency).iou.item() == pytest.approx(2 / 6)
    assert pointing_game(maps, saliency).item() == pytest.approx(1 / 2)


def test_ties_that_upsampling_makes_are_ties():
    maps = torch.tensor([[[0.3, 0.1], [0.1, -0.7]]])
    saliency = torch.zeros(1, 28, 28)
    saliency[0, :7, :3] = 1.0  # the corner of 7 x 7 pixels has the map's highest value throughout
    assert pointing_game(maps, saliency).item() == pytest.approx(3 / 7)
    assert matched_area(maps, saliency).precision.item() == pytest.approx(3 / 7)


def test_the_mask_is_what_is_half_salient():
    maps = torch.arange(9.0).reshape(1, 3, 3)
    saliency = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.49, 0.5, 0.9]]])
    assert matched_area(maps, saliency).precision.item() == 1
    assert relevance_mass(maps, saliency).item() == pytest.approx(15 / 36)
    assert relevance_rank(-maps, saliency).item() == 0
    shifted = saliency.roll(1, 2)  # 0.9, 0.49, 0.5 under the ranks 3, 2, 1
    assert matched_area(maps, shifted).precision.item() == pytest.approx(1 / 2)
    assert relevance_rank(maps, shifted).item() == pytest.approx((0.5 + 0.49) / (0.5 + 0.9))


def test_saliency_that_is_nowhere_half_has_the_mask_of_its_brighter_half():
    maps, saliency = random_case()
    saliency = saliency / saliency.amax((1, 2), keepdim=True)
    strong, faint = alignment_metrics(maps, saliency), alignment_metrics(maps, saliency / 4)
    for key in set(KEYS) - {"energy_inside"}:
        assert torch.allclose(strong[key], faint[key], atol=1e-5), key


DEGENERATE = {
    "constant": torch.full((4, 4), 0.7),
    "constant and negative": torch.full((4, 4), -0.7),
    "zero": torch.zeros(4, 4),
    "negative": -1 - torch.arange(16.0).reshape(4, 4),
    "not a number": torch.arange(16.0).reshape(4, 4).index_fill(0, torch.tensor(1), torch.nan),
    "infinite": torch.arange(16.0).reshape(4, 4).index_fill(0, torch.tensor(1), torch.inf),
    "minus infinity": torch.arange(16.0).reshape(4, 4).index_fill(0, torch.tensor(1), -torch.inf),
}
DEFINED = {"constant": set(BY_MASS), "negative": set(BY_ORDER)}


@pytest.mark.parametrize("name", DEGENERATE)
def test_what_is_not_defined_is_nan_and_nothing_else_is(name):
    half = torch.zeros(8, 8)
    half[:4] = 1.0
    maps = DEGENERATE[name].expand(3, 4, 4)
    metrics = alignment_metrics(maps, torch.stack([half, torch.ones(8, 8), torch.zeros(8, 8)]))
    defined = DEFINED.get(name, set())
    assert {key for key in KEYS if not metrics[key][0].isnan()} == defined
    assert {key for key in KEYS if not metrics[key][1].isnan()} == defined - {"spearman"}
    assert all(metrics[key][2].isnan() for key in KEYS)
    shares = defined & {"energy_inside", "relevance_mass"}
    assert [metrics[key][0].item() for key in shares] == [0.5] * len(shares)


def test_other_rows_change_nothing():
    maps, saliency = random_case()
    alone = alignment_metrics(maps[2:3], saliency[2:3])
    maps[0], maps[1], saliency[3] = torch.nan, 0.0, 0.0
    together = alignment_metrics(maps, saliency)
    assert all(torch.allclose(together[key][2], alone[key][0]) for key in KEYS)


def test_scale_offset_and_reflection():
    maps, saliency = random_case()
    metrics = alignment_metrics(maps, saliency)
    changed = {
        "scale": (alignment_metrics(1e-6 * maps, saliency), KEYS),
        "offset": (alignment_metrics(2 * maps + 5, saliency), BY_ORDER),
        "reflection": (alignment_metrics(maps.flip(2), saliency.flip(2)), KEYS),
        "transposition": (alignment_metrics(maps.mT, saliency.mT), KEYS),
    }
    for change, (others, keys) in changed.items():
        for key in keys:
            assert torch.allclose(metrics[key], others[key], atol=1e-4), (change, key)


def test_a_map_that_is_finer_than_the_saliency_is_averaged():
    maps = torch.zeros(2, 64, 64)
    maps[0, :32:4, ::4], maps[0, 32:36, 0] = 1.0, 8.0  # 128 of 160, and none of it where interpolation would look
    maps[1] = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) - 0.3
    saliency = torch.zeros(2, 16, 16)
    saliency[:, :8] = 1.0
    metrics = alignment_metrics(maps, saliency)
    assert metrics["energy_inside"][0].item() == pytest.approx(128 / 160)
    coarse = maps.relu().reshape(2, 16, 4, 16, 4).mean((2, 4))
    torch.testing.assert_close(metrics["energy_inside"], energy_inside(coarse, saliency))
    signed = maps.reshape(2, 16, 4, 16, 4).mean((2, 4))
    torch.testing.assert_close(metrics["iou"], matched_area(signed, saliency).iou)
    assert metrics["pointing_game"][0].item() == 0
    narrow = maps[:, :, ::8].repeat_interleave(2, 1)  # finer along one side alone, 128 x 8
    expected = energy_inside(narrow.relu().reshape(2, 16, 8, 8).mean(2), saliency)
    torch.testing.assert_close(energy_inside(narrow, saliency), expected)


def test_saliency_is_clamped_where_it_leaves_its_range_by_rounding():
    maps, saliency = random_case()
    saliency[:, :6, :6] = 1.0
    there = alignment_metrics(maps, saliency)
    rounded = torch.where(saliency == 1, 1 + 2.4e-7, saliency - 1e-8)
    assert rounded.max() > 1
    for key, value in alignment_metrics(maps, rounded).items():
        torch.testing.assert_close(value, there[key], atol=1e-5, rtol=0, equal_nan=True)
    wide = torch.where(saliency == 1, 1.0009, torch.where(saliency == 0, -0.0009, saliency))
    torch.testing.assert_close(energy_inside(maps, wide), there["energy_inside"])
    for value in (1.002, -0.002):
        with pytest.raises(ValueError, match=r"it has to lie in \[0, 1\]"):
            energy_inside(maps, torch.full_like(saliency, value))


def test_types_and_batches_of_nothing():
    maps, saliency = random_case(grid=(6, 6), size=(12, 12))
    assert alignment_metrics(maps.double(), saliency)["kl"].dtype == torch.float64
    half = alignment_metrics(maps.half(), saliency)
    assert half["iou"].dtype == torch.float32
    assert torch.equal(half["iou"], alignment_metrics(maps.half().float(), saliency)["iou"])
    assert all(value.shape == (0,) for value in alignment_metrics(maps[:0], saliency[:0]).values())


def test_wrong_arguments_are_named():
    maps, saliency = random_case()
    with pytest.raises(ValueError, match=r"saliency holds values from 0 to 255; it has to lie in \[0, 1\]"):
        energy_inside(maps, (saliency > 0.5) * 255)
    with pytest.raises(ValueError, match=r"saliency holds values from nan"):
        pointing_game(maps, saliency.masked_fill(saliency > 0.5, torch.nan))
    with pytest.raises(ValueError, match=r"the same B"):
        alignment_metrics(maps[:1], saliency)
    with pytest.raises(ValueError, match=r"maps has the shape \(6, 1, 5, 7\)"):
        spearman(maps.unsqueeze(1), saliency)


def test_the_summary_is_a_mean_of_what_is_defined_and_says_of_how_many():
    nan = math.nan
    values = {"iou": torch.tensor([0.5, nan, 0.1]), "kl": np.array([nan, nan, 3.0]), "spearman": [nan] * 3}
    expected = {"iou": 0.3, "kl": 3.0, "spearman": nan, "annotated": 2, "kl_pictures": 1, "spearman_pictures": 0}
    assert alignment_summary(values) == pytest.approx(expected, nan_ok=True)
    assert alignment_summary(values, [True] * 3) == pytest.approx(
        expected | {"annotated": 3, "iou_pictures": 2}, nan_ok=True
    )
    assert alignment_summary({"iou": []}) == pytest.approx({"iou": nan, "annotated": 0}, nan_ok=True)
    with pytest.raises(ValueError, match=r"'kl': \(2,\)"):
        alignment_summary({"iou": [0.1] * 3, "kl": [0.1] * 2})


@pytest.mark.slow
def test_all_measures_cost_less_than_a_tenth_of_a_forward():
    import timm

    network = timm.create_model("resnet18").eval()
    maps, saliency = random_case(count=32, grid=(7, 7), size=(224, 224))
    pictures, seconds, threads = torch.randn(32, 3, 224, 224), {"forward": [], "metrics": []}, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(3):
                for name, call in (
                    ("forward", lambda: network(pictures)),
                    ("metrics", lambda: alignment_metrics(maps, saliency)),
                ):
                    start = time.perf_counter()
                    call()
                    seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert statistics.median(seconds["metrics"]) < 0.1 * statistics.median(seconds["forward"])
