"""`hf-salguide explain`: both tools, every way of naming pictures, bad input."""

import csv
import json

import pytest

from hf_salguide.cli import main
from hf_salguide.studies.explanation import difference_files, panels

from .helpers import copy_of, table_of

TABLES = {"class_means.npz", "difference.csv", "flattering.csv", "regions.csv", "summary.json"}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def difference(model, *arguments):
    return main(["explain", "--tool", "difference", "--model", str(model), *map(str, arguments)])


def test_a_whole_split_is_written_to_a_folder(folder, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert difference(model, "--data", folder, "--split", "ood", "--output_dir", out, "--panels", 1) == 0
    printed = capsys.readouterr().out
    expected = [row for row in table_of(folder) if row["split"] == "ood"]
    rows = rows_of(out / "difference.csv")
    assert [(row["file_name"], row["label"]) for row in rows] == [
        (row["file_name"], row["label_name"]) for row in expected
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["pictures"] == summary["annotated"] == len(expected)
    assert set(TABLES) | {"regions.png", "class_means.png"} <= {path.name for path in out.iterdir()}
    line = next(line for line in printed.splitlines() if "difference on the annotation" in line)
    assert line.startswith("| share of the absolute difference on the annotation ")
    assert line.count("|") == 4  # a table of three columns
    assert f"Written to {out}" in printed
    assert "nan" not in printed.lower()


@pytest.mark.parametrize("kind", ["pdf", "png"])
def test_chosen_rows_are_a_panel(kind, folder, model, tmp_path, capsys):
    panel = tmp_path / f"panel.{kind}"
    assert difference(model, "--data", folder, "--rows", 2, 0, "--output", panel) == 0
    printed = capsys.readouterr().out
    files = [row["file_name"] for row in table_of(folder) if row["split"] == "test"]
    assert printed.index(files[2]) < printed.index(files[0])
    assert "fooling gap" in printed
    assert panel.stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == [panel.name]


def test_chosen_files_may_be_a_folder_too(folder, model, tmp_path):
    files = [row["file_name"] for row in table_of(folder) if row["split"] == "test"][1:3]
    out = tmp_path / "out"
    assert difference(model, "--data", folder, "--files", *files, "--output_dir", out, "--panels", 0) == 0
    assert [row["file_name"] for row in rows_of(out / "difference.csv")] == files
    assert {path.name for path in out.iterdir()} == TABLES


def test_picture_files_have_no_labels(folder, model, tmp_path, capsys):
    picture = folder / table_of(folder)[0]["file_name"]
    assert difference(model, "--pictures", picture, "--output", tmp_path / "panel.png") == 0
    printed = capsys.readouterr().out
    assert "There are no labels: each map is of the predicted class against the others." in printed
    assert "No picture is annotated" in printed
    assert "nan" not in printed.lower()


@pytest.mark.parametrize("place", ["behind", "in front", "behind, of two"])
def test_picture_files_need_no_option(place, folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = [str(folder / row["file_name"]) for row in table_of(folder)[: 2 if "two" in place else 1]]
    config = tmp_path / "config.yaml"
    config.write_text("rival: mean\npictures: [of_the_file.png]\n")
    options = ["--model", str(model), "--output", "out.png"]
    arguments = [*pictures, *options] if place == "in front" else [*options, *pictures]
    assert main(["explain", str(config), *arguments]) == 0
    assert f"Panel of {len(pictures)} picture(s): out.png" in capsys.readouterr().out
    assert (tmp_path / "out.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pictures", "a.png", "--split", "test", "b.png"], "b.png and --pictures name pictures in two ways"),
        (["a.png", "--pictures", "b.png"], "a.png and --pictures name pictures in two ways"),
        (["--splits", "test"], "--splits: no such option or argument; --help lists them"),
        (["--split", "test", "late.yaml"], "'late.yaml': a configuration file stands in front of the options"),
        (["--split", "test", "."], "'.' is a folder; a data set stands in front of the options, or behind --data"),
        (["--split", "test", "nowhere.png"], "pictures: nowhere.png not found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_stands_without_an_option(arguments, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    front = [arguments.pop(0)] if arguments[0] == "a.png" else []
    assert main(["explain", *front, "--model", str(model), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet1x", "neither a timm architecture, nor a local folder, nor a Hub id"),
        ("./nowhere", 'path_or_id="./nowhere" is no folder on this machine'),
        ("owner/name@", "HF_HUB_OFFLINE is set"),
    ],
)
def test_models_that_are_not_there(name, message, folder, capsys):
    assert main(["explain", "--model", name, str(folder / table_of(folder)[0]["file_name"])]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["no table", "no labels"])
def test_a_folder_without_labels_is_explained(kind, folder, model, tmp_path):
    other = copy_of(folder, tmp_path / "other", lambda rows: [{"file_name": row["file_name"]} for row in rows])
    count = len(table_of(other))
    data = other / "images" if kind == "no table" else other
    out = tmp_path / "out"
    assert difference(model, "--data", data, "--output_dir", out, "--panels", 0) == 0
    rows = rows_of(out / "difference.csv")
    assert len(rows) == count
    assert {row["label"] for row in rows} == {row["inside"] for row in rows} == {""}
    assert rows_of(out / "flattering.csv") == []
    assert main(["explain", str(data), "--model", str(model), "--output", str(tmp_path / "panel.png")]) == 0


@pytest.mark.parametrize("tool", ["maps", "difference"])
def test_the_layer_of_the_maps_is_chosen(tool, folder, model, tmp_path, capsys, monkeypatch):
    layers, original = [], panels.explain

    def explain(model, rows, rival, feature_layer):
        layers.append(feature_layer)
        return original(model, rows, rival, feature_layer)

    monkeypatch.setattr(panels, "explain", explain)
    monkeypatch.setattr(difference_files, "explain", explain)
    chosen = ["--data", str(folder), "--feature_layer", "timm_model.layer2", "--tool", tool]
    arguments = [*chosen, "--rows", "0", "--output", str(tmp_path / "panel.png")]
    assert main(["explain", "--model", str(model), *arguments]) == 0
    assert list(layers.pop()) == ["timm_model.layer2"]
    assert main(["explain", "--model", str(model), *chosen[:3], "timm_model.layer22", "--tool", tool]) == 2
    assert "timm_model.layer22" in capsys.readouterr().err
    if tool == "difference":
        out = tmp_path / "out"
        assert main(["explain", "--model", str(model), *chosen, "--output_dir", str(out), "--panels", "1"]) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["feature_layers"] == ["timm_model.layer2"]
        assert summary["map_size"] == [4, 4]
        assert {tuple(layer) for layer in layers} == {("timm_model.layer2",)}


def test_the_maps_tool_takes_a_rival(folder, model, tmp_path):
    panel = tmp_path / "panel.svg"
    arguments = ["--rows", "0", "--rival", "mean", "--output", str(panel)]
    assert main(["explain", str(folder), "--model", str(model), *arguments]) == 0
    assert "other class" in panel.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tool", "differ"], 'tool="differ" is not known; choose "maps" or "difference"'),
        (["--rival", "none"], 'rival="none" is not known; choose softmax, max, mean'),
        (["--figures", "gif"], 'figures="gif" is not known; choose png or pdf'),
        (["--panels", "-1"], "panels=-1 is negative"),
        (["--share", "1"], "share=1.0 of a map's maximum is out of range"),
        (["--batch_size", "0"], "batch_size=0 is not a number of pictures"),
        (["--tool", "maps", "--output_dir", "x"], 'output_dir="x" goes with --tool difference'),
        (["--output_dir", "{full}"], "holds thesis.tex, which is not ours; name a new folder"),
        (["--output_dir", "{full}/thesis.tex"], "is a file"),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(arguments, message, folder, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    filled = [argument.format(full=full) for argument in arguments]
    assert difference("nowhere", "--data", folder, *filled) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "later"], 'split="later" is not a split of the data'),
        (["--rows", "999"], "rows=[999] not in split 'test'"),
        ([], "data: give a data set"),
    ],
)
def test_pictures_that_are_not_there(arguments, message, folder, model, tmp_path, capsys):
    data = ["--data", folder] if arguments else []
    assert difference(model, *data, *arguments, "--output_dir", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_class_that_the_model_does_not_have(folder, model, tmp_path, capsys):
    def change(rows):
        return [{**row, "label": "", "label_name": "seven"} for row in rows]

    other = copy_of(folder, tmp_path / "other", change)
    assert difference(model, "--data", other, "--output_dir", tmp_path / "out") == 2
    assert "seven" in capsys.readouterr().err


def test_the_picture_that_cannot_be_read_is_named(folder, model, tmp_path, capsys):
    other = copy_of(folder, tmp_path / "other")
    file = [row["file_name"] for row in table_of(other) if row["split"] == "test"][-1]
    (other / file).write_bytes(b"broken")
    assert difference(model, "--data", other, "--output_dir", tmp_path / "out") == 2
    assert file in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
