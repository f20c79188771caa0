"""Settings of all tests: no network, one thread a process unless told otherwise."""

import csv
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """Decoy digits 0 and 1, as a folder: every third picture of the training set is not annotated."""
    from hf_salguide.data import decoy_digits

    path = tmp_path_factory.mktemp("digits")
    (path / "images").mkdir()
    (path / "masks").mkdir()
    rows = []
    digits = decoy_digits(size=40, num_train=80, num_validation=40, num_test=40, num_ood=40)
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test"), ("ood", "ood")):
        for index, row in enumerate(digits[split]):
            if row["label"] > 1:
                continue
            file = f"{split}_{index}.png"
            row["image"].save(path / "images" / file)
            annotated = index % 3 or split != "train"
            if annotated:
                row["saliency"].save(path / "masks" / file)
            mask = f"masks/{file}" if annotated else ""
            rows.append([f"images/{file}", mask, row["label"], ["zero", "one"][row["label"]], name])
    with (path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "mask_file_name", "label", "label_name", "split"], *rows])
    return path
