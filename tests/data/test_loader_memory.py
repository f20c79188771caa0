"""A loader that reads a data set again and again holds no more for it: no pictures, no files."""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_salguide.data import SaliencyCollator, make_transforms, prepare_dataset
from hf_salguide.data.prepare import PreparedDataset

from .test_transforms import config

COUNT, SIDE = 240, 224
DECODED = COUNT * SIDE * SIDE * 3  # bytes of all pictures, half of which a worker would keep
EPOCHS, WARM = 5, 2

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures of two formats, with masks for two thirds of them."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    rows = {"image": [], "label": [], "saliency": []}
    values = generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)
    picture = PILImage.fromarray(values).resize((SIDE, SIDE))
    for kind, shown in (("jpg", picture), ("png", picture), ("mask", picture.convert("L"))):
        shown.save(folder / f"{kind}.{'png' if kind == 'mask' else kind}")
    for index in range(COUNT):
        kind = "jpg" if index % 2 else "png"
        file, mask = folder / f"{index}.{kind}", folder / f"{index}_mask.png"
        shutil.copy(folder / f"{kind}.{kind}", file)
        shutil.copy(folder / "mask.png", mask)
        rows["image"].append(str(file))
        rows["saliency"].append(None if index % 3 == 2 else str(mask))
        rows["label"].append(index % 2)
    return Dataset.from_dict(rows).cast_column("image", Image()).cast_column("saliency", Image())


def private_bytes(process):
    """What a process holds for itself alone."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def open_files(process, folder):
    """The files of a folder that a process holds open."""
    found = []
    for handle in Path(f"/proc/{process}/fd").iterdir():
        try:
            found.append(os.readlink(handle))
        except FileNotFoundError:  # that of the listing itself
            continue
    return [name for name in found if name.startswith(str(folder))]


def growth(dataset, folder):
    """
    How many bytes this process and its workers gain in each epoch after the first ones, and the files left open.

    It is the least of the epochs: what is kept is kept in each, while pages that a worker shared with this process
    become its own now and then.
    """
    loader = DataLoader(dataset, 8, num_workers=2, collate_fn=SaliencyCollator(), persistent_workers=True)
    held, files = [], []
    for _ in range(EPOCHS):
        rows = sum(len(batch["labels"]) for batch in loader)
        assert rows == len(dataset)
        workers = [child.pid for child in multiprocessing.active_children()]
        assert len(workers) == 2
        held.append([private_bytes(process) for process in (os.getpid(), *workers)])
        files = [name for process in (os.getpid(), *workers) for name in open_files(process, folder)]
    after = np.array(held)
    del loader
    return np.diff(after[WARM - 1 :], axis=0).min(axis=0).max(), files


def folder_of(table):
    return Path(table.cast_column("image", Image(decode=False))[0]["image"]["path"]).parent


@pytest.mark.parametrize("train", [True, False])
def test_nothing_of_a_picture_is_kept(table, train):
    dataset = prepare_dataset(table, make_transforms(config(size=(64, 64)), train=train))
    gained, files = growth(dataset, folder_of(table))
    assert gained < DECODED / 8
    assert files == []


class Keeping(PreparedDataset):
    """Keeps the pictures of later epochs, as a cache that grows would."""

    def __getitems__(self, indices):
        kept = self.__dict__.setdefault("kept", [])
        self.__dict__["reads"] = self.__dict__.get("reads", 0) + len(indices)
        if self.reads > WARM * COUNT / 2:
            kept += [torch.zeros(3, SIDE, SIDE, dtype=torch.uint8).fill_(1) for _ in indices]
        return super().__getitems__(indices)


class Opening(PreparedDataset):
    """Opens pictures with PIL and does not load them."""

    def __getitems__(self, indices):
        opened = self.__dict__.setdefault("opened", [])
        opened += [PILImage.open(self.dataset[index]["image"]["path"]) for index in indices]
        return super().__getitems__(indices)


def test_what_is_kept_would_be_seen(table):
    """The measurement itself can fail."""
    own = prepare_dataset(table, make_transforms(config(size=(64, 64)), train=True))
    gained, files = growth(Keeping(own.dataset, own.transform), folder_of(table))
    assert gained > DECODED / 4  # each worker reads half of them
    assert files == []
    few = own.dataset.select(range(24))
    _, files = growth(Opening(few, own.transform), folder_of(table))
    assert len(files) > 0
