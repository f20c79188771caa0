"""Every command, as a user runs it, on a small folder of pictures and masks."""

import csv
import dataclasses
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from hf_salguide.cli import COMMANDS, main
from hf_salguide.cli.parsing import parse_model
from hf_salguide.studies import predictions

from .helpers import copy_of, table_of


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
        assert 0 <= metrics.get("energy_inside_pictures", metrics["annotated"]) <= metrics["annotated"]
        assert metrics["energy_inside"] is None or 0 < metrics["energy_inside"] < 1
        assert 0 <= metrics["auroc"] <= 1


def test_evaluate_with_intervals_and_presentation_attack_errors(model, folder, tmp_path, capsys):
    output = tmp_path / "figures.json"
    arguments = ["--model", str(model), "--json", str(output), "--bona_fide", "zero", "--intervals", "true"]
    assert main(["evaluate", str(folder), *arguments]) == 0
    assert "acer" in capsys.readouterr().out
    for metrics in json.loads(output.read_text()).values():
        assert metrics["auroc_low"] <= metrics["auroc"] <= metrics["auroc_high"]
        assert metrics["acer"] == pytest.approx((metrics["apcer"] + metrics["bpcer"]) / 2)
        assert 0 <= metrics["apcer_at_bpcer_1"] <= 1
    assert main(["evaluate", str(folder), "--model", str(model), "--bona_fide", "real"]) == 2
    assert 'bona_fide="real" is not a class of the model; it has zero, one.' in capsys.readouterr().err


def score_of(file):
    """A made-up probability of class one; a picture's number, so that all methods of a test know it."""
    return zlib.crc32(file.encode()) % 1000 / 1000


@pytest.fixture
def made_up_scores(monkeypatch):
    """Probabilities that overlap, in place of the little model's."""
    original = predictions.predict

    def predict(*args):
        found = original(*args)
        scores = np.array([score_of(file) for file in found.file_names])
        return dataclasses.replace(found, probabilities=np.stack([1 - scores, scores], axis=1))

    monkeypatch.setattr(predictions, "predict", predict)


@pytest.mark.usefixtures("made_up_scores")
def test_the_worst_attack_type_counts_and_thresholds_are_of_validation(folder, model, tmp_path, capsys):
    """Genuine are zeros; those of validation score up to 0.6, and half of the attacks are hard to find."""

    def typed(rows):
        for row in rows:
            score, genuine = score_of(row["file_name"]), row["label_name"] == "zero"
            kind = "mask" if score < 0.8 else "print"
            yield {**row, "split": "val" if genuine and score < 0.6 else "test", "kind": "" if genuine else kind}

    other = copy_of(folder, tmp_path / "typed", lambda rows: list(typed(rows)))
    rows, output = table_of(other), tmp_path / "figures.json"
    threshold = max(score_of(row["file_name"]) for row in rows if row["split"] == "val") + 1e-6
    missed = {
        (kind, at): np.mean([score_of(row["file_name"]) < at for row in rows if row["kind"] in kind])
        for kind in (("mask",), ("print",), ("mask", "print"))
        for at in (0.5, threshold)
    }
    assert missed[("print",), threshold] < missed[("mask", "print"), threshold] < missed[("mask",), threshold] < 1

    options = ["--model", str(model), "--splits", "test", "--bona_fide", "zero", "--json", str(output)]
    assert main(["evaluate", str(other), *options, "--attack_type_column", "kind"]) == 0
    printed = capsys.readouterr().out
    assert "APCER is of the worst attack type, by column kind." in printed
    assert "BPCER of 1 % on validation" in printed
    assert "bpcer_at_bpcer_1" in printed.splitlines()[0]
    assert not any(line.startswith("| validation") for line in printed.splitlines())
    figures = json.loads(output.read_text())
    assert list(figures) == ["test"]
    assert figures["test"]["apcer"] == pytest.approx(missed[("mask",), 0.5])
    assert figures["test"]["apcer_all"] == pytest.approx(missed[("mask", "print"), 0.5])
    assert figures["test"]["apcer_at_bpcer_1"] == pytest.approx(missed[("mask",), threshold])
    assert figures["test"]["bpcer_at_bpcer_1"] == 1  # what is genuine and scores less is in validation

    assert main(["evaluate", str(other), *options]) == 0
    assert "APCER is pooled over attack types." in capsys.readouterr().out
    pooled = json.loads(output.read_text())["test"]["apcer_at_bpcer_1"]
    assert pooled == pytest.approx(missed[("mask", "print"), threshold])


@pytest.mark.usefixtures("made_up_scores")
@pytest.mark.parametrize("groups", ["none", "pairs"])
def test_intervals_by_group_where_groups_are_missing(groups, folder, model, tmp_path):
    """Pictures without a group are drawn one by one, and not as one group, whose interval has no width."""

    def grouped(rows):
        pairs = [f"pair{index // 2}" if groups == "pairs" and index % 8 < 4 else "" for index in range(len(rows))]
        return [{**row, "patient": pair, "split": "test"} for row, pair in zip(rows, pairs, strict=True)]

    other = copy_of(folder, tmp_path / "grouped", grouped)
    found = {}
    for name, options in (("pictures", []), ("groups", ["--group_column", "patient"])):
        output = tmp_path / f"{name}.json"
        arguments = ["--model", str(model), "--splits", "test", "--intervals", "true", "--json", str(output)]
        assert main(["evaluate", str(other), *arguments, *options]) == 0
        figures = json.loads(output.read_text())["test"]
        found[name] = figures["auroc_low"], figures["auroc_high"]
        assert figures["auroc_high"] - figures["auroc_low"] > 0.1
    assert (found["groups"] == found["pictures"]) == (groups == "none")


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
    assert (
        main(["bench", *arguments, "--repeats", "3", "--memory", "false", "--loader", "false", "--json", str(output)])
        == 0
    )
    results = json.loads(output.read_text())
    assert [result["model"] for result in results["steps"]] == ["test_resnet", "test_vit(global_pool=avg)"]
    for result in results["steps"]:
        assert result["repeats"] == 3
        assert result["time_ratio"] > 0
        assert result["time_ratio_low"] <= result["time_ratio"] <= result["time_ratio_high"]
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
        (
            ["evaluate", "--data", "{folder}", "--model", "nowhere", "--attack_type_column", "kind"],
            'attack_type_column="kind" goes with bona_fide',
        ),
        (
            ["evaluate", "{folder}", "--model", "{model}", "--bona_fide", "zero", "--attack_type_column", "kind"],
            'attack_type_column="kind" is not a column of the data; it has image',
        ),
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
