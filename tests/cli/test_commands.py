"""Every command, as a user runs it, on a small folder of pictures and masks."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_salguide import SaliencyTrainingArguments, load_saliency_dataset, saliency_maps
from hf_salguide.backbones import data_config
from hf_salguide.cli import COMMANDS, common, main
from hf_salguide.cli import train as train_command
from hf_salguide.cli.evaluate import EvaluateArguments
from hf_salguide.cli.parsing import parse, parse_model
from hf_salguide.data import make_transforms
from hf_salguide.studies import panels, predictions

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


@pytest.fixture(scope="module")
def folder(digits_folder):
    return digits_folder


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("model")
    config = output / "train.yaml"
    config.write_text(yaml.safe_dump({**TRAIN, "guidance": "cyborg", "output_dir": "overridden"}))
    assert main(["train", str(config), "--data", str(folder), "--output_dir", str(output)]) == 0
    return output


def test_train_saves_a_model_and_its_figures(model):
    assert (model / "model.safetensors").exists()
    results = json.loads((model / "results.json").read_text())
    assert 0 <= results["eval_auroc"] <= 1
    assert results["eval_cyborg_loss"] > 0
    config = json.loads((model / "config.json").read_text())
    assert config["label_names"] == ["zero", "one"]
    assert list(config["pretrained_cfg"]["input_size"]) == [3, 32, 32]


def test_evaluate_prints_a_table_and_writes_json(model, folder, tmp_path, capsys):
    output = tmp_path / "figures.json"
    arguments = ["--model", str(model), "--splits", "test", "ood", "--json", str(output)]
    assert main(["evaluate", str(folder), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "| test " in printed
    assert "energy_inside" in printed
    figures = json.loads(output.read_text())
    assert set(figures) == {"test", "ood"}
    for metrics in figures.values():
        assert metrics["pictures"] == metrics["annotated"] > 0
        assert 0 <= metrics["energy_pictures"] <= metrics["annotated"]
        assert metrics["energy_inside"] is None or 0 < metrics["energy_inside"] < 1
        assert 0 <= metrics["auroc"] <= 1


@pytest.mark.parametrize("labelled", [True, False])
def test_predict_writes_scores_and_maps(model, folder, tmp_path, labelled):
    data = folder if labelled else folder / "images"
    assert main(["predict", str(data), "--model", str(model), "--output_dir", str(tmp_path)]) == 0
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    files = sorted((folder / "images").glob("*.png"))
    assert len(rows) == len(files)
    assert ("label" in rows[0]) == labelled
    for row in rows:
        assert float(row["zero"]) + float(row["one"]) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(("zero", "one"), key=lambda name: float(row[name]))
    maps = np.load(tmp_path / "maps.npz")
    assert maps["maps"].shape[0] == len(files)
    assert maps["maps"].ndim == 3
    assert np.isfinite(maps["maps"]).all()
    assert [row["file_name"] for row in rows] == list(maps["file_names"])


def test_explain_draws_a_panel(model, folder, tmp_path):
    panel = tmp_path / "panel.png"
    assert main(["explain", str(folder), "--model", str(model), "--rows", "0", "2", "--output", str(panel)]) == 0
    first = Image.open(panel)
    assert min(first.size) > 200
    assert len(np.unique(np.asarray(first.convert("L")))) > 50
    picture = next((folder / "images").glob("*.png"))
    alone = tmp_path / "alone.png"
    assert main(["explain", "--model", str(model), "--pictures", str(picture), "--output", str(alone)]) == 0
    assert Image.open(alone).size[1] < first.size[1]


def test_check_reads_everything_and_says_what_is_wrong(folder, tmp_path, capsys):
    assert main(["check", str(folder), "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["summary"]["rows"]["train"]
    capsys.readouterr()
    broken = tmp_path / "broken"
    broken.mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(broken / "a.png")
    (broken / "b.png").write_bytes(b"not a picture")
    (broken / "metadata.csv").write_text("file_name,mask_file_name,label\na.png,missing.png,0\nb.png,,1\n")
    assert main(["check", str(broken)]) == 1
    printed = capsys.readouterr().out
    assert "missing.png" in printed
    assert "b.png" in printed


def test_methods_lists_the_family(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert "`cyborg`" in printed
    assert "2112.00686" in printed


def test_bench_compares_in_one_run(tmp_path, capsys):
    output = tmp_path / "bench.json"
    arguments = ["--models", "test_resnet", "test_vit:global_pool=avg", "--image_size", "160", "--batch_size", "2"]
    assert main(["bench", *arguments, "--repeats", "3", "--memory", "false", "--json", str(output)]) == 0
    results = json.loads(output.read_text())
    assert [result["model"] for result in results["steps"]] == ["test_resnet", "test_vit(global_pool=avg)"]
    for result in results["steps"]:
        assert result["repeats"] == 3
        assert result["time_ratio"] > 0
        assert result["time_ratio_low"] <= result["time_ratio"] <= result["time_ratio_high"]
    assert results["loader"]["JPEG"] > 0
    assert "guided / plain" in capsys.readouterr().out


def test_models_of_the_bench_take_keyword_arguments():
    assert parse_model("model", "vit_tiny_patch16_224:global_pool=avg,depth=2") == (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "depth": 2},
    )
    with pytest.raises(ValueError, match='models="a:b": write keyword arguments'):
        parse_model("models", "a:b")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"hf-salguide {command}" in capsys.readouterr().out


def test_the_overview(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "'trian' is no command"),
        (["train", "absent.yaml"], "absent.yaml: no such configuration file"),
        (["train", "--data", "nowhere", "--output_dir", "out"], "nowhere"),
        (["evaluate", "--data", "{folder}"], "model: give the folder or Hub id"),
        (
            ["evaluate", "--data", "{folder}", "--model", "{model}", "--splits", "tests"],
            'splits="tests" is not a split',
        ),
        (["evaluate", "--data", "{folder}", "--model", "{model}", "--map_class", "all"], 'map_class="all"'),
        (["explain", "--data", "{folder}", "--model", "{model}", "--rows", "999"], r"rows=[999] not in split 'test'"),
        (["explain", "--data", "{folder}", "--model", "{model}", "--files", "x.png"], "files: x.png not in"),
        (["explain", "--model", "{model}"], "data: give a data set"),
        (["predict", "--data", "{folder}", "--model", "resnet18x"], "resnet18x"),
        (["train", "--data", "{folder}", "--output_dir", "{out}", "--guidance", "cybrog"], 'did you mean "cyborg"'),
        (["train", "--data", "{folder}", "--output_dir", "{out}", "--eval_split", "dev"], 'eval_split="dev"'),
        (["bench", "--methods", "cybrog"], 'did you mean "cyborg"'),
    ],
)
def test_bad_input_is_told_without_a_traceback(arguments, message, folder, model, tmp_path, capsys):
    filled = [part.format(folder=folder, model=model, out=tmp_path / "out") for part in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_unknown_option_in_the_file_gets_the_nearest(tmp_path, folder, capsys):
    config = tmp_path / "train.yaml"
    config.write_text("guidence: cyborg\n")
    assert main(["train", str(config), "--data", str(folder)]) == 2
    assert '"guidence" in the configuration file is not an option; did you mean "guidance"' in capsys.readouterr().err


def _copy(folder, path, change=lambda rows: rows):
    """The folder with its rows changed."""
    shutil.copytree(folder, path)
    with (path / "metadata.csv").open(newline="") as file:
        rows = change(list(csv.DictReader(file)))
    with (path / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("command", ["evaluate", "predict", "explain"])
def test_another_class_order_is_refused(command, tmp_path, folder, model, capsys):
    def swap(rows):
        return [{**row, "label": 1 - int(row["label"])} for row in rows]

    other = _copy(folder, tmp_path / "swapped", swap)
    assert main([command, "--data", str(other), "--model", str(model)]) == 2
    assert "another order" in capsys.readouterr().err


@pytest.mark.parametrize("where", [True, False])
def test_one_class_alone_is_evaluated_and_explained(where, tmp_path, folder, model):
    def ones(rows):
        return [row for row in rows if where or row["label_name"] == "one"]

    other = str(_copy(folder, tmp_path / "ones", ones))
    select = ["--where", '{"label_name": "one"}'] if where else []
    output = tmp_path / "figures.json"
    assert main(["evaluate", other, "--model", str(model), "--splits", "test", "--json", str(output), *select]) == 0
    rows = _table(folder)
    expected = [row for row in rows if row["split"] == "test" and row["label_name"] == "one"]
    assert json.loads(output.read_text())["test"]["pictures"] == len(expected)
    assert main(["explain", other, "--model", str(model), "--output", str(tmp_path / "panel.png"), *select]) == 0


def _table(folder):
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _scores(path):
    with (path / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_labels_of_the_scores_are_those_of_the_table(folder, model, tmp_path):
    assert main(["predict", str(folder), "--model", str(model), "--output_dir", str(tmp_path / "out")]) == 0
    table = {row["file_name"]: row["label_name"] for row in _table(folder)}
    assert {row["file_name"]: row["label"] for row in _scores(tmp_path / "out")} == table
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

    other = _copy(folder, tmp_path / "other", change)
    arguments = ["--model", str(model), "--output_dir", str(tmp_path / "out")]
    arguments += ["--label_column", "finding"] if kind == "own columns" else []
    assert main(["predict", str(other), *arguments]) == 0
    scores = _scores(tmp_path / "out")
    assert len(scores) == len(_table(other))
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
    for name in ("hf_salguide.studies.predictions.predict", "hf_salguide.studies.panels.explain"):
        monkeypatch.setattr(name, _never)
    monkeypatch.setattr("hf_salguide.studies.bench.bench", _never)
    monkeypatch.setattr("hf_salguide.cli.check.check_folder", _never)
    assert main(filled) == 2
    assert message.format(**places) in capsys.readouterr().err


def _never(*args, **kwargs):
    raise AssertionError("compute was spent")


@pytest.mark.parametrize("broken", ["images", "masks"])
def test_explain_names_the_file_that_cannot_be_read(broken, folder, model, tmp_path, capsys):
    other = _copy(folder, tmp_path / "other")
    row = next(row for row in _table(other) if row["split"] == "test")
    file = row["file_name"] if broken == "images" else row["mask_file_name"]
    (other / file).write_bytes(b"broken")
    assert main(["explain", str(other), "--model", str(model), "--rows", "0"]) == 2
    assert file in capsys.readouterr().err
    picture = tmp_path / "alone.png"
    picture.write_bytes(b"broken")
    assert main(["explain", "--model", str(model), "--pictures", str(picture)]) == 2
    assert "alone.png" in capsys.readouterr().err


def test_maps_are_drawn_at_the_layer_that_was_guided(folder, tmp_path):
    assert _train(tmp_path, folder, guidance="cyborg", feature_layer="timm_model.layer3") == 0
    run = tmp_path / "run"
    assert main(["predict", str(folder), "--model", str(run), "--output_dir", str(tmp_path / "out")]) == 0
    model = common.load_model(str(run))
    row = load_saliency_dataset(folder)["train"][0]
    pixels, _ = make_transforms(data_config(model), train=False)(row["image"])
    expected = saliency_maps(model, pixels[None], feature_layer="timm_model.layer3").detach()[0].numpy()
    drawn = np.load(tmp_path / "out" / "maps.npz")
    index = list(drawn["file_names"]).index(row["file_name"])
    np.testing.assert_allclose(drawn["maps"][index], expected, atol=1e-4 * abs(expected).max())


def test_explain_draws_the_rows_that_are_named(folder, model, tmp_path, monkeypatch):
    drawn = []
    original = panels.explain

    def explain(model, rows):
        drawn.append(original(model, rows))
        return drawn[-1]

    monkeypatch.setattr(panels, "explain", explain)
    output = ["--output", str(tmp_path / "panel.png")]
    assert main(["explain", str(folder), "--model", str(model), "--rows", "3", "1", *output]) == 0
    files = [row["file_name"] for row in _table(folder) if row["split"] == "test"]
    assert main(["explain", str(folder), "--model", str(model), "--files", files[3], files[1], *output]) == 0
    expected = [np.asarray(Image.open(folder / files[index]).convert("L").resize((32, 32))) for index in (3, 1)]
    assert not np.array_equal(*expected)
    for explanations in drawn:
        for explanation, picture in zip(explanations, expected, strict=True):
            seen = explanation.picture.mean(axis=2)
            assert np.corrcoef(seen.ravel(), picture.ravel())[0, 1] > 0.9


# ---- Options of train ----


def _train(tmp_path, folder, *arguments, **options):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**TRAIN, **options}))
    return main(["train", str(config), "--data", str(folder), "--output_dir", str(tmp_path / "run"), *arguments])


def test_a_folder_with_checkpoints_is_refused_unless_resumed(folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert _train(tmp_path, folder, "--resume_from_checkpoint", "true") == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert _train(tmp_path, folder, save_strategy="steps", save_steps=2) == 0
    capsys.readouterr()
    results = tmp_path / "run" / "results.json"
    before = results.read_text()
    assert _train(tmp_path, folder) == 2
    error = capsys.readouterr().err
    assert "checkpoint-2" in error
    assert "--resume_from_checkpoint true" in error
    assert results.read_text() == before
    assert _train(tmp_path, folder, "--resume_from_checkpoint", "true", max_steps=4) == 0
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 4


def test_an_earlier_runs_figures_do_not_outlive_a_run_that_breaks_off(folder, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")

    def broken(*args, **kwargs):
        raise ValueError("broken off")

    monkeypatch.setattr(train_command.SaliencyTrainer, "train", broken)
    assert _train(tmp_path, folder) == 2
    assert not (tmp_path / "run" / "results.json").exists()


def test_options_reach_what_they_are_for(folder, tmp_path, monkeypatch):
    other = _copy(
        folder, tmp_path / "other", lambda rows: [{**row, "w": 2, "patient": row["file_name"]} for row in rows]
    )
    spied = {}

    def spy(target, name):
        original = getattr(target, name)

        def called(*args, **kwargs):
            spied[name] = kwargs
            return original(*args, **({**kwargs, "pretrained": False} if name == "as_classifier" else kwargs))

        monkeypatch.setattr(target, name, called)

    spy(common, "load_saliency_dataset")
    spy(train_command, "as_classifier")
    spy(train_command, "SaliencyTrainer")
    arguments = ["--where", '{"split": ["train", "val"]}', "--group_column", "patient", "--weight_column", "w"]
    arguments += ["--model_args", '{"drop_rate": 0.25}', "--pretrained", "true", "--early_stopping_patience", "7"]
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "auroc"}
    assert _train(tmp_path, other, *arguments, guidance="none", **evaluation) == 0
    loaded = spied["load_saliency_dataset"]
    assert loaded["where"] == {"split": ["train", "val"]}
    assert (loaded["group_column"], loaded["weight_column"]) == ("patient", "w")
    built = spied["as_classifier"]
    assert built["drop_rate"] == 0.25
    assert built["pretrained"] is True
    assert built["label_names"] == ["zero", "one"]
    (callback,) = spied["SaliencyTrainer"]["callbacks"]
    assert callback.early_stopping_patience == 7
    assert set(spied["SaliencyTrainer"]["train_dataset"]["weight"]) == {2.0}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("true", True),
        ("True", True),
        (True, True),
        ("false", None),
        (None, None),
        ("run/checkpoint-2", "run/checkpoint-2"),
    ],
)
def test_resume_from_checkpoint(given, expected):
    assert train_command.resume_from(given) == expected


def test_a_missing_evaluation_split_names_the_way_out(folder, tmp_path, capsys):
    other = _copy(folder, tmp_path / "other", lambda rows: [row for row in rows if row["split"] == "train"])
    assert _train(tmp_path, other) == 2
    assert "--eval_split none" in capsys.readouterr().err


def test_evaluate_hands_on_the_class_of_the_map(folder, model, monkeypatch):
    seen = []
    original = predictions.predict
    monkeypatch.setattr(predictions, "predict", lambda *args: (seen.append(args[2]), original(*args))[1])
    assert main(["evaluate", str(folder), "--model", str(model), "--splits", "test", "--map_class", "true"]) == 0
    assert seen == ["true"]


# ---- Files of options ----


def _parsed(tmp_path, text):
    config = tmp_path / "options.yaml"
    config.write_text(text)
    return parse([EvaluateArguments, SaliencyTrainingArguments], [str(config)], "evaluate", "")


def test_values_of_a_file_are_read_as_on_the_command_line(tmp_path):
    args, training = _parsed(
        tmp_path,
        "data: 7\nsplits: test\nbatch_size: '4'\nlearning_rate: 1e-3\nsave_strategy: no\nuse_cpu: yes\n"
        "where: {site: a}\nimage_size: 64\nguidance_options: {cam_class: predicted}\n",
    )
    assert (args.data, args.splits, args.batch_size, args.where) == ("7", ["test"], 4, {"site": "a"})
    assert training.learning_rate == 0.001
    assert training.save_strategy == "no"
    assert training.use_cpu is True
    assert training.pixels == (64, 64)
    assert training.guidance_options == {"cam_class": "predicted"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size: many", "batch_size='many' in the configuration file is not of the type int"),
        ("use_cpu: maybe", "use_cpu='maybe' in the configuration file is not of the type true or false"),
        ("save_strategy: never", "save_strategy='never' in the configuration file is not known; choose one of no,"),
    ],
)
def test_values_of_a_file_of_the_wrong_type(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        _parsed(tmp_path, f"data: x\n{text}\n")
