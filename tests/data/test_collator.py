import copy

import numpy as np
import pytest
import torch

from hf_salguide.data import SaliencyCollator


def _row(index=0, **changes):
    generator = torch.Generator().manual_seed(index)
    return {"pixel_values": torch.rand(3, 4, 5, generator=generator), "labels": index % 3} | changes


def test_fully_partly_and_not_annotated_batches():
    maps = [torch.full((4, 5), 10 * index, dtype=torch.uint8) for index in range(3)]
    for annotated in ([True] * 3, [False, True, False], [False] * 3):
        rows = [_row(i, saliency=maps[i] if annotated[i] else None) for i in range(3)]
        batch = SaliencyCollator()(rows)
        assert set(batch) == {"pixel_values", "labels", "saliency", "has_saliency"}
        assert all(isinstance(value, torch.Tensor) for value in batch.values())
        assert batch["has_saliency"].tolist() == annotated
        assert batch["has_saliency"].dtype == torch.bool
        assert batch["saliency"].dtype == torch.uint8
        assert batch["saliency"].shape == (3, 4, 5)
        assert batch["saliency"][:, 0, 0].tolist() == [10 * i * annotated[i] for i in range(3)]
        assert batch["labels"].tolist() == [0, 1, 2]
        assert torch.equal(batch["pixel_values"][1], rows[1]["pixel_values"])


def test_an_empty_mask_is_annotated_and_an_absent_key_is_not():
    batch = SaliencyCollator()([_row(saliency=torch.zeros(4, 5, dtype=torch.uint8)), _row()])
    assert batch["has_saliency"].tolist() == [True, False]


@pytest.mark.parametrize(
    "saliency",
    [
        torch.full((4, 5), 255, dtype=torch.uint8),
        torch.ones(4, 5),
        torch.ones(1, 4, 5, dtype=torch.float64),
        torch.ones(4, 5, dtype=torch.bool),
        torch.ones(4, 5, dtype=torch.int64),
        np.ones((4, 5), np.float32),
        np.full((4, 5), 255, np.uint8),
    ],
)
def test_every_kind_of_map(saliency):
    assert SaliencyCollator()([_row(saliency=saliency)])["saliency"].unique().tolist() == [255]


def test_soft_maps_stay_soft_and_faint_crops_pass():
    soft = torch.linspace(0, 1, 20).reshape(4, 5)
    batch = SaliencyCollator()([_row(saliency=soft), _row(saliency=soft / 500)])
    torch.testing.assert_close(batch["saliency"][0] / 255, soft, atol=0.002, rtol=0)
    assert batch["saliency"][1].max() == 1
    assert SaliencyCollator()([_row(saliency=torch.ones(4, 5, dtype=torch.uint8))])["saliency"].max() == 1


def test_rows_are_not_changed():
    rows = [_row(0, saliency=torch.rand(4, 5), group="a"), _row(1, saliency=None, group="b")]
    before = copy.deepcopy(rows)
    batch = SaliencyCollator()(rows)
    batch["pixel_values"].zero_()
    batch["saliency"].zero_()
    for row, old in zip(rows, before, strict=True):
        assert row.keys() == old.keys()
        assert torch.equal(row["pixel_values"], old["pixel_values"])
    assert torch.equal(rows[0]["saliency"], before[0]["saliency"])


def test_label_label_names_weights_and_no_labels():
    rows = [{"pixel_values": torch.zeros(1, 2, 2), "label": torch.tensor(i), "weight": i / 2} for i in range(2)]
    batch = SaliencyCollator()(rows)
    assert batch["labels"].tolist() == [0, 1]
    assert batch["labels"].dtype == torch.int64
    assert batch["sample_weight"].tolist() == [0, 0.5]
    assert batch["sample_weight"].dtype == torch.float32
    assert "labels" not in SaliencyCollator()([{"pixel_values": torch.zeros(1, 2, 2)}])
    assert SaliencyCollator()([_row(labels=[0.0, 1.0])])["labels"].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixel_values": torch.zeros(3, 6, 5)}, r"pixel_values of row 1 has the shape \(3, 6, 5\), row 0 has"),
        ({"pixel_values": torch.zeros(3, 4, 5, dtype=torch.uint8)}, "pixel_values of row 1 is torch.uint8"),
        ({"saliency": torch.zeros(5, 4)}, r"saliency of row 1 has the shape \(5, 4\), its pixel_values \(4, 5\)"),
        ({"saliency": torch.full((4, 5), torch.nan)}, "saliency of row 1 has NaN"),
        ({"saliency": torch.full((4, 5), -0.5)}, "saliency of row 1 has negative values"),
        ({"saliency": torch.full((4, 5), 200.0)}, "saliency of row 1: .*divide it by 255"),
        ({"saliency": torch.full((4, 5), 300)}, "saliency of row 1 has integers up to 300"),
        ({"labels": None}, "row 1 has no labels"),
    ],
)
def test_bad_rows_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        SaliencyCollator()([_row(), _row(**changes)])


def test_a_density_is_named():
    density = torch.full((40, 50), 1 / 2000)
    with pytest.raises(ValueError, match=r"saliency of row 0: .*density"):
        SaliencyCollator()([{"pixel_values": torch.zeros(3, 40, 50), "saliency": density}])


def test_rows_without_pixels_and_without_rows():
    with pytest.raises(ValueError, match=r"row 0 has no pixel_values, only image; prepare .* with prepare_dataset"):
        SaliencyCollator()([{"image": 3}])
    with pytest.raises(ValueError, match="rows is empty"):
        SaliencyCollator()([])
