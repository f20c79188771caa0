"""What tests of the command line share."""

import csv
import shutil

import yaml

from hf_salguide.cli import main

TRAIN = {
    "model": "test_resnet",
    "image_size": 32,
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


def copy_of(folder, path, change=lambda rows: rows):
    """The folder with its rows changed."""
    shutil.copytree(folder, path)
    with (path / "metadata.csv").open(newline="") as file:
        rows = change(list(csv.DictReader(file)))
    with (path / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def table_of(folder):
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores_of(path):
    with (path / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def train_on(tmp_path, folder, *arguments, **options):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**TRAIN, **options}))
    return main(["train", str(config), "--data", str(folder), "--output_dir", str(tmp_path / "run"), *arguments])
