"""The real data sets, where they are at hand: HF_SALGUIDE_DATA names the folder that holds them."""

import os
from pathlib import Path

import pytest
import torch

from hf_salguide.data import SaliencyCollator, check_rows, load_saliency_dataset, make_transforms, prepare_dataset

from .test_transforms import config

ROOT = Path(os.environ.get("HF_SALGUIDE_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.parametrize(
    ("name", "options", "counts", "names"),
    [
        ("tb_xray", {}, {"train": 396, "validation": 57, "test": 209, "ood": 138}, ["normal", "tuberculosis"]),
        (
            "cub_gaze",
            {"split_column": "split_bgconflict"},
            {"train": 1013, "validation": 182, "test": 1057, "ood": 332},
            ["landbird", "waterbird"],
        ),
        ("skin", {}, {"train": 120, "validation": 20, "test": 60, "ood": 200}, ["other", "melanoma"]),
        (
            "srh_synth",
            {"where": {"source": "synth_hard"}},
            {"train": 512, "validation": 512, "test": 512, "ood": 512},
            ["one_cross", "two_crosses"],
        ),
    ],
)
def test_real_data(name, options, counts, names):
    if not (ROOT / name).is_dir():
        pytest.skip(f"{name} is not at hand; HF_SALGUIDE_DATA names the folder that holds it")
    dataset = load_saliency_dataset(ROOT / name, **options)
    assert {split: len(rows) for split, rows in dataset.items()} == counts
    assert dataset["train"].features["label"].names == names
    check_rows(dataset, limit=24)
    prepared = prepare_dataset(dataset["test"], make_transforms(config(size=(64, 64)), train=True))
    batch = SaliencyCollator()([prepared[index] for index in range(0, len(prepared), 16)])
    assert torch.isfinite(batch["pixel_values"]).all()
    if name == "tb_xray":  # 96 of the test pictures have no mask
        assert 0 < batch["has_saliency"].sum() < len(batch["labels"])
    else:
        assert batch["has_saliency"].all()
    assert (batch["saliency"][batch["has_saliency"]].flatten(1).max(dim=1).values > 127).float().mean() > 0.9
