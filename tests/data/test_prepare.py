import random

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hf_salguide.data import (
    SaliencyCollator,
    SaliencyTransform,
    agreement,
    check_rows,
    images,
    load_saliency_dataset,
    make_transforms,
    prepare_dataset,
)

from .test_transforms import config


class Rows(TorchDataset):
    """A data set of the user's own."""

    def __init__(self, rows):
        self.rows = rows
        self.reads = 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.reads += 1
        random.random(), np.random.rand(), torch.rand(())
        return self.rows[index]


@pytest.fixture
def transform():
    return make_transforms(config(size=(16, 24)), train=False)


def _check(rows):
    assert rows[0].keys() >= {"pixel_values", "saliency", "labels"}
    assert rows[0]["pixel_values"].shape == (3, 16, 24)
    assert rows[0]["saliency"].dtype == torch.uint8
    assert rows[3]["saliency"] is None
    assert [row["labels"] for row in rows[:4]] == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", ["datasets", "decoded", "torch", "list", "iterable", "torch iterable"])
def test_every_kind_of_data_set(folder, transform, kind):
    table = load_saliency_dataset(folder.write())["train"]
    source = {
        "datasets": lambda: table,
        "decoded": lambda: table.cast_column("image", Image()).cast_column("saliency", Image()),
        "torch": lambda: Rows(list(table)),
        "list": lambda: list(table),
        "iterable": lambda: table.to_iterable_dataset(),
        "torch iterable": lambda: iter(list(table)),
    }[kind]()
    prepared = prepare_dataset(source, transform)
    rows = list(prepared) if "iterable" in kind else [prepared[index] for index in range(len(prepared))]
    _check(rows)
    assert prepare_dataset(prepared, transform) is prepared
    assert SaliencyCollator()(rows)["has_saliency"].tolist() == [True, True, True, False]


def test_batches_are_fetched_at_once_and_by_workers(folder, transform):
    prepared = prepare_dataset(load_saliency_dataset(folder.write())["train"], transform)
    _check(prepared.__getitems__([0, 1, 2, 3]))
    batch = next(iter(DataLoader(prepared, batch_size=4, num_workers=1, collate_fn=SaliencyCollator())))
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    assert prepared.features["label"].names == ["zebra", "ant"]
    assert "image" in prepared.column_names


def test_weights_and_groups_travel(folder, transform):
    for index, row in enumerate(folder.rows):
        row["w"], row["patient"] = index / 2, f"p{index}"
    table = load_saliency_dataset(folder.write(), weight_column="w", group_column="patient")["train"]
    row = prepare_dataset(table, transform)[2]
    assert (row["weight"], row["group"]) == (1.0, "p2")
    assert set(row) == {"pixel_values", "saliency", "labels", "weight", "group"}


def test_rows_that_are_prepared_already_stay(transform):
    row = {"pixel_values": torch.zeros(3, 4, 4), "labels": 0}
    for dataset in (Rows([row]), [row], Dataset.from_dict({"pixel_values": [[1.0]], "labels": [0]})):
        assert prepare_dataset(dataset, transform) is dataset
    table = Dataset.from_dict({"label": [0, 1]}).with_transform(lambda rows: {"pixel_values": rows["label"]})
    assert prepare_dataset(table, transform) is table


def test_a_transform_of_the_users_own_is_given_decoded_pictures(folder, transform):
    table = load_saliency_dataset(folder.write())["train"].cast_column("image", Image())

    def own(rows):
        return {"pixel_values": [torch.full((3, *picture.size), float(i)) for i, picture in enumerate(rows["image"])]}

    assert prepare_dataset(table.with_transform(own), transform)[0]["pixel_values"].shape == (3, 30, 20)
    with pytest.raises(ValueError, match="all 4 pictures that were read are constant"):
        check_rows(table.with_transform(own))


def test_a_formatted_data_set(folder, transform):
    table = load_saliency_dataset(folder.write())["train"].with_format("torch")
    assert prepare_dataset(table, transform)[1]["labels"] == 1


def test_looking_at_a_row_leaves_the_generators(transform):
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    dataset = Rows([{"pixel_values": torch.zeros(3, 4, 4)}])
    prepare_dataset(dataset, transform)
    assert dataset.reads == 1
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_a_mapping_of_data_sets(folder, transform):
    prepared = prepare_dataset(load_saliency_dataset(folder.write()), transform)
    assert not isinstance(prepared, DatasetDict)
    assert len(prepared["train"]) == 4


def test_an_error_names_row_and_file(folder, transform):
    dataset = prepare_dataset(load_saliency_dataset(folder.write())["train"], transform)
    (folder.path / "images/1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"row 1 \(images/1\.png, saliency .*masks/1\.png\): .*cannot be read"):
        dataset[1]
    (folder.path / "masks/2.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"row 2 \(images/2\.png.*masks/2\.png cannot be read"):
        dataset.__getitems__([0, 2])


def test_rows_without_a_picture_and_things_that_are_no_data_set(transform):
    with pytest.raises(ValueError, match="row 0 has neither pixel_values nor image, only picture; rename"):
        prepare_dataset([{"picture": 3}], transform)[0]
    with pytest.raises(TypeError, match="dataset is a int"):
        prepare_dataset(3, transform)


def test_unlabelled_rows(folder, transform):
    rows = load_saliency_dataset(folder.write())["train"].select_columns(["image"])
    assert set(prepare_dataset(rows, transform)[0]) == {"pixel_values", "saliency"}


def test_the_agreement_of_annotators_is_kept_for_evaluation(folder):
    folder.rows[0]["mask_file_name"] = "masks/0.png;masks/1.png"
    dataset = load_saliency_dataset(folder.write())["train"]
    evaluated = prepare_dataset(dataset, make_transforms(config(), train=False))
    expected = agreement([folder.path / "masks/0.png", folder.path / "masks/1.png"])
    assert evaluated[0]["agreement"] == pytest.approx(expected)
    assert "agreement" not in evaluated[1]
    assert "agreement" not in prepare_dataset(dataset, make_transforms(config(), train=True))[0]
    kept = SaliencyCollator()([evaluated[0], evaluated[1]])["agreement"]
    assert kept[0].item() == pytest.approx(expected)
    assert kept[1].isnan()
    assert "agreement" not in SaliencyCollator()([evaluated[1]])


def test_annotators_whose_maps_differ_in_size_agree_at_the_pictures_size(folder, monkeypatch):
    coarse = np.zeros((10, 15), dtype=np.uint8)
    coarse[:5] = 255
    PILImage.fromarray(coarse).save(folder.path / "masks/coarse.png")
    PILImage.fromarray(np.kron(coarse, np.ones((2, 2), dtype=np.uint8))).save(folder.path / "masks/fine.png")
    folder.rows[0]["mask_file_name"] = "masks/coarse.png;masks/fine.png"
    dataset = load_saliency_dataset(folder.write())["train"]
    decoded = []
    original = images._load_map
    monkeypatch.setattr(images, "_load_map", lambda value: decoded.append(value) or original(value))
    row = prepare_dataset(dataset, make_transforms(config(), train=False))[0]
    assert row["agreement"] == pytest.approx(1)
    assert len(decoded) == 2


def test_a_subclass_of_the_transform_is_called(folder):
    class Doubled(SaliencyTransform):
        def __call__(self, image, saliency=None):
            pixels, human = super().__call__(image, saliency)
            return 2 * pixels, human

    dataset = load_saliency_dataset(folder.write())["train"]
    plain = prepare_dataset(dataset, SaliencyTransform(config(), train=False))[0]
    doubled = prepare_dataset(dataset, Doubled(config(), train=False))[0]
    assert torch.equal(doubled["pixel_values"], 2 * plain["pixel_values"])


def test_errors_of_maps_name_their_own_file(folder):
    PILImage.new("L", (11, 20)).save(folder.path / "masks/odd.png")
    PILImage.new("RGB", (30, 20), (255, 0, 0)).save(folder.path / "masks/red.png")
    folder.rows[0]["mask_file_name"] = "masks/0.png;masks/odd.png"
    folder.rows[1]["mask_file_name"] = "masks/0.png;masks/red.png"
    dataset = prepare_dataset(load_saliency_dataset(folder.write())["train"], make_transforms(config(), train=False))
    with pytest.raises(ValueError, match=r"row 0 \(images/0\.png.*masks/odd\.png: the saliency map is 20 × 11"):
        dataset[0]
    with pytest.raises(ValueError, match=r"masks/red\.png: the saliency map has colours"):
        dataset[1]
