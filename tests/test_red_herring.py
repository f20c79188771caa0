"""The pieces of examples/red_herring/run.py, on a handful of pictures that are drawn here."""

import csv
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_salguide import list_guidance

FOLDER = Path(__file__).parents[1] / "examples" / "red_herring"
DATA = Path(os.environ.get("HF_SALGUIDE_DATA", Path(__file__).parents[1] / "../shared/data"))
METHODS = [
    *("none", "masked_input", "shuffled_input", "actdiff", "actdiff_adversarial", "gradmask", "rrr", "cyborg"),
    *("divisive_difference", "divisive_complement", "divisive_divergence", "sage"),
]


@pytest.fixture(scope="module")
def red_herring():
    """The script as a module."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("red_herring_run", FOLDER / "run.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture
def config(red_herring):
    """The script's configuration, with the smallest of networks and one short epoch."""
    config = red_herring.read_config()
    config["network"]["width"] = 2
    config["training"]["per_device_train_batch_size"] = 4
    for options in config["methods"].values():
        options["num_train_epochs"] = 1
    config["methods"]["actdiff_adversarial"]["guidance_options"]["hidden_sizes"] = [4]
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as srh_synth is one: eight pictures a split, a mark whose column is the class, and a second source."""
    parent = tmp_path_factory.mktemp("data")
    folder = parent / "srh_synth"
    folder.mkdir()
    rows = [["file_name", "mask_file_name", "label", "label_name", "split", "source"]]
    for split in ("train", "val", "test", "ood"):
        for index in range(8):
            label = index % 2
            picture, mask = np.zeros((28, 28), np.uint8), np.zeros((28, 28), np.uint8)
            picture[4 + index, 6 + 15 * label] = mask[4 + index, 6 + 15 * label] = 255
            name = f"{split}_{index}.png"
            Image.fromarray(picture).save(folder / name)
            Image.fromarray(mask).save(folder / f"mask_{name}")
            label_name = ["one_cross", "two_crosses"][label]
            rows.append([name, f"mask_{name}", label, label_name, split, "synth_hard"])
            rows.append([name, f"mask_{name}", 1 - label, "one_cross" if label else "two_crosses", "", "synth_easy"])
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return parent


def test_configuration_covers_the_methods(red_herring):
    config = red_herring.read_config()
    assert sorted(config["methods"]) == sorted(METHODS)
    assert set(METHODS) <= {"none", *list_guidance()}
    assert len(set(config["seeds"])) == 10
    large = red_herring.full_size(config)
    assert large["network"]["width"] == 64
    assert list(large["methods"]) == ["none", "actdiff", "gradmask"]
    assert large["methods"]["gradmask"]["guidance_weight"] == config["methods"]["gradmask"]["guidance_weight"]


def test_network_is_the_papers(red_herring):
    config = red_herring.read_config()
    model = red_herring.build(red_herring.full_size(config))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # torchvision's resnet18 with 3 × 3 × 1 in place of 7 × 7 × 3 weights a channel, and 2 in place of 1000 classes.
    assert parameters == 11_689_512 - 64 * (7 * 7 * 3 - 9) - 998 * (512 + 1)
    assert model.timm_model.forward_features(torch.zeros(1, 1, 28, 28)).shape == (1, 512, 4, 4)
    assert red_herring.build(config).timm_model.conv1.out_channels == config["network"]["width"]


def test_pictures_are_black_where_nothing_is(red_herring, config, data):
    splits = red_herring.load(data / "srh_synth", config)
    assert {split: len(rows) for split, rows in splits.items()} == dict.fromkeys(splits, 8)
    assert list(splits) == ["train", "validation", "test", "ood"]
    for index, row in enumerate(splits["train"]):
        expected = torch.zeros(1, 28, 28)
        expected[0, 4 + index, 6 + 15 * (index % 2)] = 1
        torch.testing.assert_close(row["pixel_values"], expected)
        assert torch.equal(row["saliency"], (255 * expected[0]).to(torch.uint8))
        assert int(row["labels"]) == index % 2


def test_mirror_turns_picture_and_mask(red_herring, config, data):
    row = red_herring.load(data / "srh_synth", config)["validation"][1]
    (turned,) = red_herring.mirrored([row])
    assert turned["pixel_values"][0, 5, 27 - 21] == 1
    assert turned["saliency"][5, 27 - 21] == 255
    assert turned["labels"] == row["labels"]
    assert row["pixel_values"][0, 5, 21] == 1


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_dilation_is_by_a_square(red_herring, radius):
    mask = torch.zeros(28, 28, dtype=torch.uint8)
    mask[1, 10] = 255
    expected = torch.zeros_like(mask)
    expected[max(0, 1 - radius) : 2 + radius, 10 - radius : 11 + radius] = 255
    larger = red_herring.dilate(mask, radius)
    assert larger.dtype == torch.uint8
    assert torch.equal(larger, expected)


@pytest.mark.parametrize("sigma", [0.640, 0.818, 1.0])
def test_radius_is_where_the_blur_ends(red_herring, sigma):
    from scipy.ndimage import gaussian_filter

    mask = np.zeros((28, 28))
    mask[14, 13] = 1
    blurred = torch.from_numpy(gaussian_filter(mask, sigma, truncate=4.0, mode="nearest") > 0)
    larger = red_herring.dilate(torch.from_numpy(mask * 255).to(torch.uint8), int(4 * sigma + 0.5)) > 0
    assert torch.equal(larger, blurred)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_runs(red_herring, config, data, method):
    row = red_herring.run((method, 7), config, red_herring.load(data / "srh_synth", config))
    assert tuple(row) == red_herring.COLUMNS
    assert (row["method"], row["seed"]) == (method, 7)
    assert 0 <= float(row["test_auc"]) <= 1
    assert 0 <= float(row["ood_auc"]) <= 1
    assert float(row["seconds"]) > 0


def test_same_seed_same_weights(red_herring, config, data):
    splits = red_herring.load(data / "srh_synth", config)
    rows = (splits["train"], splits["validation"])
    weights = [red_herring.train("actdiff", seed, config, *rows).model.state_dict() for seed in (3, 3, 4)]
    name = "timm_model.fc.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


def test_epoch_of_the_lowest_validation_loss_after_burn_in(red_herring):
    from types import SimpleNamespace

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.margin = torch.nn.Parameter(torch.zeros(()))

        def forward(self, pixel_values):
            return SimpleNamespace(logits=torch.stack([-self.margin, self.margin]).expand(len(pixel_values), 2))

    rows = [{"pixel_values": torch.zeros(1, 2, 2), "labels": 1}]
    callback, model = red_herring.LowestLoss(rows, burn_in=2), Model()
    for epoch, margin in enumerate([9.0, 8.0, 1.0, 3.0, 2.0], start=1):
        model.margin.data.fill_(margin)
        callback.on_epoch_end(None, SimpleNamespace(epoch=epoch, global_step=epoch, max_steps=5), None, model=model)
    assert callback.weights["margin"] == 3.0
    assert callback.lowest == pytest.approx(np.log1p(np.exp(-6.0)), rel=1e-3)
    assert model.training


def test_auc_is_of_the_second_class(red_herring):
    class Trainer:
        def predict(self, rows):
            assert all(list(row) == ["pixel_values"] for row in rows)
            self.predictions = np.array([[0.0, 1.0], [5.0, 5.5], [1.0, 1.7], [9.0, 8.0]])
            return self

    rows = [{"pixel_values": torch.zeros(1, 2, 2), "labels": label} for label in (1, 0, 1, 0)]
    assert red_herring.auc(Trainer(), rows) == 1.0
    rows[0]["labels"], rows[1]["labels"] = 0, 1
    assert red_herring.auc(Trainer(), rows) == 0.5


def test_runs_are_resumed_and_failures_are_told(red_herring, config, data, tmp_path, monkeypatch, capsys):
    import yaml

    path, output = tmp_path / "config.yaml", tmp_path / "results.csv"
    config["methods"]["cyborg"]["learning_rate"] = "fast"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(red_herring, "attempts", _in_this_process(red_herring))
    call = ["--data", str(data), "--config", str(path), "--output", str(output), "--seeds", "5"]
    assert red_herring.main([*call, "--methods", "none"]) == 0
    first = output.read_text()
    assert red_herring.main([*call, "--methods", "none", "cyborg", "masked_input"]) == 1
    assert "cyborg, seed 5 failed" in capsys.readouterr().err
    assert output.read_text().startswith(first)
    assert [row["method"] for row in red_herring.read_results(output)] == ["none", "masked_input"]
    assert tuple(red_herring.read_results(output)[0]) == red_herring.COLUMNS


def _in_this_process(red_herring):
    def attempts(tasks, folder, config, jobs, threads, tuning):
        for task in tasks:
            yield task, red_herring._attempt(task, folder, config, tuning)

    return attempts


def test_unknown_method_and_folder_are_refused(red_herring, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        red_herring.main(["--data", str(data), "--methods", "grad_mask"])
    assert "grad_mask" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        red_herring.main(["--data", str(tmp_path)])
    assert "no folder srh_synth" in capsys.readouterr().err


def test_table(red_herring):
    config = {"methods": {"none": {}, "rrr": {}, "sage": {}}, "published": {"none": "0.00 ± 0.00"}}
    rows = [
        {"method": "none", "seed": "1", "test_auc": "1.0", "ood_auc": "0.10", "seconds": "10"},
        {"method": "none", "seed": "2", "test_auc": "1.0", "ood_auc": "0.30", "seconds": "14"},
        {"method": "sage", "seed": "1", "test_auc": "0.5", "ood_auc": "0.25", "seconds": "9.6"},
    ]
    assert red_herring.table(rows, config).splitlines()[2:] == [
        "| `none` | 2 | 1.00 ± 0.00 | 0.20 ± 0.14 | 0.00 ± 0.00 | 12 |",
        "| `sage` | 1 | 0.50 | 0.25 |  | 10 |",
    ]
    text = "a\n<!-- results: how -->\nold\n<!-- /results -->\nb\n"
    assert red_herring.with_tables(text, {"results": "new"}) == text.replace("old", "new")


def test_readme_holds_the_tables_of_the_results(red_herring):
    readme = (FOLDER / "README.md").read_text()
    assert red_herring.with_tables(readme, red_herring.tables(red_herring.read_config())) == readme


def test_real_pictures(red_herring, config):
    folder = DATA / "srh_synth"
    if not folder.is_dir():
        pytest.skip("srh_synth is not at hand; HF_SALGUIDE_DATA names the folder that holds it")
    splits = red_herring.load(folder, config)
    assert {split: len(rows) for split, rows in splits.items()} == dict.fromkeys(splits, 512)
    for split, rows in splits.items():
        pixels = torch.stack([row["pixel_values"] for row in rows])
        labels = torch.tensor([int(row["labels"]) for row in rows])
        masks = torch.stack([row["saliency"] for row in rows])
        assert set(pixels.unique().tolist()) == {0.0, 1.0}
        assert labels.bincount().tolist() == [256, 256]
        assert set(masks.unique().tolist()) == {0, 255}
        # The bar is outside the mask, on the left for one cross in training and on the right out of distribution.
        bar = pixels[:, 0] * (masks == 0)
        left = bar[:, :, :14].sum(dim=(1, 2)) > bar[:, :, 14:].sum(dim=(1, 2))
        assert torch.equal(left, labels == (1 if split == "ood" else 0))
