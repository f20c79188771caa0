"""Data sets that are read from their beginning to their end, and have no length."""

import pytest
import torch
from datasets import Image, IterableDataset, IterableDatasetDict
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset

from hf_salguide.data import (
    SaliencyCollator,
    annotated_share,
    check_rows,
    check_table,
    load_saliency_dataset,
    make_transforms,
    prepare_dataset,
)

from .test_transforms import config

COUNT = 24


@pytest.fixture
def table(folder):
    """24 rows, a third of them not annotated, each with a weight that is its number."""
    folder.rows = [{**folder.rows[index % 3], "split": "train", "w": index} for index in range(COUNT)]
    for index, row in enumerate(folder.rows):
        copy = folder.path / f"images/copy{index}.png"
        copy.write_bytes((folder.path / row["file_name"]).read_bytes())
        row["file_name"] = f"images/copy{index}.png"
        row["mask_file_name"] = "" if index % 3 == 2 else row["mask_file_name"]
    return load_saliency_dataset(folder.write(), weight_column="w")["train"]


class Sharing(TorchIterableDataset):
    """A stream of the user's own that shares its rows out among the workers."""

    def __init__(self, rows):
        self.rows = rows
        self.started = 0

    def __iter__(self):
        self.started += 1
        worker = get_worker_info()
        yield from self.rows if worker is None else self.rows[worker.id :: worker.num_workers]


def batches(dataset, workers=0, size=4, **options):
    return DataLoader(dataset, size, num_workers=workers, collate_fn=SaliencyCollator(), **options)


def numbers(loader):
    return [int(number) for batch in loader for number in batch["sample_weight"]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["datasets", "decoded", "torch"])
def test_every_row_passes_once_and_as_from_a_table(table, kind, workers):
    transform = make_transforms(config(size=(16, 24)), train=False)
    expected = [prepare_dataset(table, transform)[row] for row in range(COUNT)]
    stream = {
        "datasets": lambda: table.to_iterable_dataset(num_shards=3),
        "decoded": lambda: table.cast_column("image", Image()).to_iterable_dataset(num_shards=3).with_format("torch"),
        "torch": lambda: Sharing(list(table)),
    }[kind]()
    prepared = prepare_dataset(stream, transform)
    assert not hasattr(prepared, "__len__")
    for _ in range(2):  # a second epoch gives them all again
        found = {}
        for batch in batches(prepared, workers):
            for row, number in enumerate(batch["sample_weight"]):
                assert int(number) not in found
                found[int(number)] = {name: values[row] for name, values in batch.items()}
        assert sorted(found) == list(range(COUNT))
        for number, row in found.items():
            assert torch.equal(row["pixel_values"], expected[number]["pixel_values"])
            assert row["labels"] == expected[number]["labels"]
            assert bool(row["has_saliency"]) == (number % 3 != 2)
            if row["has_saliency"]:
                assert torch.equal(row["saliency"], expected[number]["saliency"])


@pytest.mark.parametrize(("workers", "options"), [(0, {}), (2, {}), (2, {"persistent_workers": True})])
def test_a_shuffled_stream_is_shuffled_anew_in_each_epoch(table, workers, options):
    orders = []
    for _ in range(2):
        stream = table.to_iterable_dataset(num_shards=2).shuffle(seed=7, buffer_size=10)
        prepared = prepare_dataset(stream, make_transforms(config(), train=False))
        loader = batches(prepared, workers, **options)
        for epoch in range(2):
            prepared.set_epoch(epoch)
            orders.append(numbers(loader))
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert orders[0] != orders[1]
    assert orders[:2] == orders[2:]


def test_augmentation_of_a_stream_is_drawn_by_the_seed(table):
    prepared = prepare_dataset(table.to_iterable_dataset(num_shards=2), make_transforms(config(), train=True))

    def first(seed):
        torch.manual_seed(seed)
        return torch.cat([batch["pixel_values"] for batch in batches(prepared, workers=2)])

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_checks_read_nothing_of_a_stream(table):
    stream = Sharing(list(table))
    for dataset in (stream, prepare_dataset(stream, make_transforms(config(), train=True)), {"train": stream}):
        check_table(dataset, ["zebra", "ant"], needs_annotation=True)
        assert check_rows(dataset).summary["rows"] == {}
    assert stream.started == 0
    once = iter(list(table))
    check_rows(prepare_dataset(once, make_transforms(config(), train=True)))
    assert len(list(once)) == COUNT


def test_the_classes_of_a_stream_are_compared(table):
    with pytest.raises(ValueError, match="the same classes in another order"):
        check_table(table.to_iterable_dataset(), list(reversed(table.features["label"].names)))


def test_the_share_of_a_stream_cannot_be_counted(table):
    with pytest.raises(ValueError, match="IterableDataset, which must be consumed.*leave rescale_annotated out"):
        annotated_share(table.to_iterable_dataset())


def test_an_unreadable_row_of_a_stream_is_named(table, folder):
    (folder.path / "images/copy1.png").write_bytes(b"broken")
    prepared = prepare_dataset(table.to_iterable_dataset(), make_transforms(config(), train=False))
    with pytest.raises(ValueError, match=r"row 1 \(images/copy1\.png.*cannot be read"):
        list(prepared)


def test_a_stream_is_not_loaded_but_given_to_the_trainer(table):
    stream = table.to_iterable_dataset()
    for given in (stream, IterableDatasetDict({"train": stream})):
        with pytest.raises(ValueError, match=r"path is a IterableDataset.*give it to the trainer.*rename_columns"):
            load_saliency_dataset(given)
    assert isinstance(stream, IterableDataset)
