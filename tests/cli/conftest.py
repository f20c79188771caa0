"""A folder of digits and a model that is trained on it."""

import pytest
import yaml

from hf_salguide.cli import main

from .helpers import TRAIN


@pytest.fixture(scope="session")
def folder(digits_folder):
    return digits_folder


@pytest.fixture(scope="session")
def model(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("model")
    config = output / "train.yaml"
    config.write_text(yaml.safe_dump({**TRAIN, "guidance": "cyborg", "output_dir": "overridden"}))
    assert main(["train", str(config), "--data", str(folder), "--output_dir", str(output)]) == 0
    return output
