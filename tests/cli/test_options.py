"""Options: those of training, and those that stand in a file."""

import json

import pytest

from hf_salguide import SaliencyTrainingArguments
from hf_salguide.cli import common, main
from hf_salguide.cli import train as train_command
from hf_salguide.cli.evaluate import EvaluateArguments
from hf_salguide.cli.parsing import parse
from hf_salguide.studies import predictions

from .helpers import copy_of, train_on

# ---- Options of train ----


def test_a_folder_with_checkpoints_is_refused_unless_resumed(folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert train_on(tmp_path, folder, "--resume_from_checkpoint", "true") == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert train_on(tmp_path, folder, save_strategy="steps", save_steps=2) == 0
    capsys.readouterr()
    results = tmp_path / "run" / "results.json"
    before = results.read_text()
    assert train_on(tmp_path, folder) == 2
    error = capsys.readouterr().err
    assert "checkpoint-2" in error
    assert "--resume_from_checkpoint true" in error
    assert results.read_text() == before
    assert train_on(tmp_path, folder, "--resume_from_checkpoint", "true", max_steps=4) == 0
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 4


def test_an_earlier_runs_figures_do_not_outlive_a_run_that_breaks_off(folder, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")

    def broken(*args, **kwargs):
        raise ValueError("broken off")

    monkeypatch.setattr(train_command.SaliencyTrainer, "train", broken)
    assert train_on(tmp_path, folder) == 2
    assert not (tmp_path / "run" / "results.json").exists()


def test_options_reach_what_they_are_for(folder, tmp_path, monkeypatch):
    other = copy_of(
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
    assert train_on(tmp_path, other, *arguments, guidance="none", **evaluation) == 0
    loaded = spied["load_saliency_dataset"]
    assert loaded["where"] == {"split": ["train", "val"]}
    assert (loaded["group_column"], loaded["weight_column"]) == ("patient", "w")
    built = spied["as_classifier"]
    assert built["drop_rate"] == 0.25
    assert built["pretrained"] is True
    assert built["label_names"] == ["zero", "one"]
    _, callback = spied["SaliencyTrainer"]["callbacks"]  # beside the model card's
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
    other = copy_of(folder, tmp_path / "other", lambda rows: [row for row in rows if row["split"] == "train"])
    assert train_on(tmp_path, other) == 2
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
    ("text", "arguments", "expected"),
    [
        ("", [], None),
        ("feature_layer: norm", [], "norm"),
        ("feature_layer: [norm]", [], "norm"),
        ("feature_layer: [norm1, norm2]", [], ["norm1", "norm2"]),
        ("feature_layer: [norm1, norm2]", ["--feature_layer", "layer4"], "layer4"),
        ("", ["--feature_layer", "norm2", "norm1"], ["norm2", "norm1"]),
    ],
)
def test_one_feature_layer_or_several(tmp_path, text, arguments, expected):
    config = tmp_path / "options.yaml"
    config.write_text(f"output_dir: out\n{text}\n")
    (training,) = parse([SaliencyTrainingArguments], [str(config), *arguments], "train", "")
    assert training.feature_layer == expected


@pytest.mark.parametrize(
    "value", ["", [], [""], ["norm1", ""], ["norm1", "norm1"], ["norm1", None], 4, {"norm1": 1}, ["norm1", 2]], ids=str
)
def test_feature_layers_that_name_nothing_or_one_module_twice(tmp_path, value):
    with pytest.raises(ValueError, match=r"feature_layer=.* has to be the name of a module, or a list of different"):
        SaliencyTrainingArguments(str(tmp_path), feature_layer=value)


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
