"""A small saliency data folder that each test bends to its needs."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


class Folder:
    """Pictures, masks and a table; `write` puts the table on disk."""

    def __init__(self, path: Path):
        self.path = path
        (path / "images").mkdir(parents=True)
        (path / "masks").mkdir()
        generator = np.random.default_rng(0)
        self.rows: list[dict[str, Any]] = []
        for index in range(8):
            name, mask = f"images/{index}.png", f"masks/{index}.png"
            Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path / name)
            Image.fromarray(generator.integers(0, 256, (20, 30), dtype=np.uint8)).save(path / mask)
            self.rows.append(
                {
                    "file_name": name,
                    "mask_file_name": mask if index % 4 != 3 else "",
                    "label": index % 2,
                    "label_name": ("zebra", "ant")[index % 2],
                    "split": ("train", "train", "train", "train", "val", "test", "ood", "")[index],
                }
            )

    def write(self, name: str = "metadata.csv") -> Path:
        with (self.path / name).open("w", newline="") as stream:
            if name.endswith(".csv"):
                writer = csv.DictWriter(stream, fieldnames=list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
            else:
                stream.writelines(json.dumps(row) + "\n" for row in self.rows)
        return self.path

    def drop_column(self, name: str) -> None:
        for row in self.rows:
            del row[name]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "data")
