"""Evaluate, predict and explain: class order, what data they need, where results go."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_salguide import load_saliency_dataset, saliency_maps
from hf_salguide.backbones import data_config
from hf_salguide.cli import common, main
from hf_salguide.data import make_transforms
from hf_salguide.studies.explanation import panels

from .helpers import copy_of, scores_of, table_of, train_on


@pytest.mark.parametrize("command", ["evaluate", "predict", "explain"])
def test_another_class_order_is_refused(command, tmp_path, folder, model, capsys):
    def swap(rows):
        return [{**row, "label": 1 - int(row["label"])} for row in rows]

    other = copy_of(folder, tmp_path / "swapped", swap)
    assert main([command, "--data", str(other), "--model", str(model)]) == 2
    assert "another order" in capsys.readouterr().err


@pytest.mark.parametrize("where", [True, False])
def test_one_class_alone_is_evaluated_and_explained(where, tmp_path, folder, model):
    def ones(rows):
        return [row for row in rows if where or row["label_name"] == "one"]

    other = str(copy_of(folder, tmp_path / "ones", ones))
    select = ["--where", '{"label_name": "one"}'] if where else []
    output = tmp_path / "figures.json"
    assert main(["evaluate", other, "--model", str(model), "--splits", "test", "--json", str(output), *select]) == 0
    rows = table_of(folder)
    expected = [row for row in rows if row["split"] == "test" and row["label_name"] == "one"]
    assert json.loads(output.read_text())["test"]["pictures"] == len(expected)
    assert main(["explain", other, "--model", str(model), "--output", str(tmp_path / "panel.png"), *select]) == 0


def test_the_labels_of_the_scores_are_those_of_the_table(folder, model, tmp_path):
    assert main(["predict", str(folder), "--model", str(model), "--output_dir", str(tmp_path / "out")]) == 0
    table = {row["file_name"]: row["label_name"] for row in table_of(folder)}
    assert {row["file_name"]: row["label"] for row in scores_of(tmp_path / "out")} == table
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["maps.npz", "scores.csv"]


@pytest.mark.parametrize("kind", ["no labels", "other classes", "one class", "broken masks", "own columns"])
def test_predict_needs_pictures_only(kind, folder, model, tmp_path):
    def change(rows):
        if kind == "no labels":
            return [{"file_name": row["file_name"]} for row in rows]
        if kind == "other classes":
            return [{**row, "label": "", "label_name": "cat"} for row in rows]
        if kind == "one class":
            return [row for row in rows if row["label"] == "1"]
        if kind == "broken masks":
            return [{**row, "mask_file_name": "masks/absent.png"} for row in rows]
        return [{"finding": row["label_name"], "photo": row["file_name"]} for row in rows]

    other = copy_of(folder, tmp_path / "other", change)
    arguments = ["--model", str(model), "--output_dir", str(tmp_path / "out")]
    arguments += ["--label_column", "finding"] if kind == "own columns" else []
    assert main(["predict", str(other), *arguments]) == 0
    scores = scores_of(tmp_path / "out")
    assert len(scores) == len(table_of(other))
    assert ("label" in scores[0]) == (kind in ("one class", "broken masks", "own columns"))
    if kind == "one class":
        assert {row["label"] for row in scores} == {"one"}


def test_an_interrupted_predict_leaves_what_was_there(folder, model, tmp_path, monkeypatch):
    (tmp_path / "scores.csv").write_text("earlier")

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert main(["predict", str(folder / "images"), "--model", str(model), "--output_dir", str(tmp_path)]) == 2
    assert (tmp_path / "scores.csv").read_text() == "earlier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--json", "{here}"], 'json="{here}" is a folder'),
        (["evaluate", "--json", "{file}/x.json"], "{file} is a file"),
        (["check", "--json", "{here}"], 'json="{here}" is a folder'),
        (["bench", "--json", "{here}"], 'json="{here}" is a folder'),
        (["explain", "--output", "panel.docx"], 'output="panel.docx" has to end in .png, .pdf, .svg'),
        (["explain", "--output", "{file}/x.png"], "{file} is a file"),
        (["predict", "--output_dir", "{file}"], 'output_dir="{file}" is a file'),
        (["bench", "--repeats", "0"], "repeats=0 measures nothing"),
        (["explain", "--rows", "0", "--files", "a.png"], "rows and files name pictures in two ways"),
    ],
)
def test_outputs_are_checked_before_any_compute(arguments, message, folder, model, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    places = {"here": tmp_path, "file": tmp_path / "file"}
    filled = [part.format(**places) for part in arguments]
    if arguments[0] != "bench":
        filled += ["--data", str(folder)]
    if arguments[0] not in ("bench", "check"):
        filled += ["--model", str(model)]
    for name in ("predictions.predict", "explanation.panels.explain", "explanation.difference.study_difference"):
        monkeypatch.setattr(f"hf_salguide.studies.{name}", _never)
    monkeypatch.setattr("hf_salguide.studies.bench.bench", _never)
    monkeypatch.setattr("hf_salguide.cli.check.check_folder", _never)
    assert main(filled) == 2
    assert message.format(**places) in capsys.readouterr().err


def _never(*args, **kwargs):
    raise AssertionError("compute was spent")


@pytest.mark.parametrize("broken", ["images", "masks"])
def test_explain_names_the_file_that_cannot_be_read(broken, folder, model, tmp_path, capsys):
    other = copy_of(folder, tmp_path / "other")
    row = next(row for row in table_of(other) if row["split"] == "test")
    file = row["file_name"] if broken == "images" else row["mask_file_name"]
    (other / file).write_bytes(b"broken")
    assert main(["explain", str(other), "--model", str(model), "--rows", "0"]) == 2
    assert file in capsys.readouterr().err
    picture = tmp_path / "alone.png"
    picture.write_bytes(b"broken")
    assert main(["explain", "--model", str(model), "--pictures", str(picture)]) == 2
    assert "alone.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("test_resnet", "timm_model.layer3"),
        ("test_vit", ["timm_model.blocks.4.norm1", "timm_model.blocks.5.norm1"]),  # the class token reads both
    ],
)
def test_maps_are_drawn_at_the_layer_that_was_guided(architecture, layers, folder, tmp_path):
    assert train_on(tmp_path, folder, guidance="cyborg", model=architecture, feature_layer=layers) == 0
    run = tmp_path / "run"
    assert main(["predict", str(folder), "--model", str(run), "--output_dir", str(tmp_path / "out")]) == 0
    model = common.load_model(str(run))
    row = load_saliency_dataset(folder)["train"][0]
    pixels, _ = make_transforms(data_config(model), train=False)(row["image"])
    expected = saliency_maps(model, pixels[None], feature_layer=layers).detach()[0].numpy()
    assert model.config.saliency_guide["feature_layer"] == layers
    drawn = np.load(tmp_path / "out" / "maps.npz")
    index = list(drawn["file_names"]).index(row["file_name"])
    np.testing.assert_allclose(drawn["maps"][index], expected, atol=1e-4 * abs(expected).max())


def test_explain_draws_the_rows_that_are_named(folder, model, tmp_path, monkeypatch):
    drawn = []
    original = panels.explain

    def explain(model, rows, *options):
        drawn.append(original(model, rows, *options))
        return drawn[-1]

    monkeypatch.setattr(panels, "explain", explain)
    output = ["--output", str(tmp_path / "panel.png")]
    assert main(["explain", str(folder), "--model", str(model), "--rows", "3", "1", *output]) == 0
    files = [row["file_name"] for row in table_of(folder) if row["split"] == "test"]
    assert main(["explain", str(folder), "--model", str(model), "--files", files[3], files[1], *output]) == 0
    expected = [np.asarray(Image.open(folder / files[index]).convert("L").resize((32, 32))) for index in (3, 1)]
    assert not np.array_equal(*expected)
    for explanations in drawn:
        for explanation, picture in zip(explanations, expected, strict=True):
            seen = explanation.picture.mean(axis=2)
            assert np.corrcoef(seen.ravel(), picture.ravel())[0, 1] > 0.9
