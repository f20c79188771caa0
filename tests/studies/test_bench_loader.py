"""The loader's benchmark: what it compares, and what it says."""

import pytest
import torch

from hf_salguide.studies.bench.loader import _Pipelines, bench_loader, loader_table


def test_the_loader_beside_torchvision():
    threads = torch.get_num_threads()
    results = bench_loader(64, count=8, repeats=2, pictures=((48, 40), (1300, 900)))
    assert torch.get_num_threads() == threads
    assert [(result.kind, result.width) for result in results] == [
        ("JPEG", 48),
        ("PNG", 48),
        ("JPEG", 1300),
        ("PNG", 1300),
    ]
    for result in results:
        assert result.ratio_low <= result.ratio <= result.ratio_high
        assert min(result.rate, result.unannotated_rate, result.plain_rate, result.unannotated_ratio) > 0
        assert result.picture_bytes == 4 * 3 * 64 * 64
        assert result.saliency_bytes == 64 * 64
        assert result.reduced_bytes == 8 * 8  # four parts a side of each of 2 × 2 cells
    lines = loader_table(results).splitlines()
    assert len(lines) == 6
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "49,152" in lines[2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_is_compared_makes_the_same_pictures(kind):
    """Drawn alike, they differ by rounding alone."""
    pipelines = _Pipelines(kind, (48, 40), 32, 1)
    torch.manual_seed(0)
    ours = pipelines.without[0]["pixel_values"]
    torch.manual_seed(0)
    (theirs,) = pipelines.plain()
    torch.testing.assert_close(ours, theirs[0], atol=1e-5, rtol=0)
    torch.manual_seed(0)
    assert torch.equal(pipelines.with_masks[0]["pixel_values"], ours)
