"""`hf-salguide compare`."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from hf_salguide.cli import main
from hf_salguide.cli.parsing import read_config

SETTINGS = {
    "methods": ["cyborg", "masked_input"],
    "inverted": ["cyborg"],
    "seeds": [0, 1],
    "backbones": ["test_resnet"],
    "image_size": 32,
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "resamples": 50,
}


def written(path, **changes):
    path.write_text(yaml.safe_dump({**SETTINGS, **changes}))
    return str(path)


def rows_of(output):
    with (output / "results.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_a_comparison_from_a_file(digits_folder, tmp_path, capsys):
    config = written(tmp_path / "compare.yaml", methods=["cyborg"], inverted=[], seeds=[0])
    output = tmp_path / "study"
    assert main(["compare", config, "--data", str(digits_folder), "--output_dir", str(output), "--jobs", "2"]) == 0
    shown = capsys.readouterr().out
    assert [(row["method"], row["status"]) for row in rows_of(output)] == [("none", "done"), ("cyborg", "done")]
    assert (output / "conclusions.txt").read_text().strip() in shown
    assert (output / "report.html").is_file()
    assert "run 2/2" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": ["cyborg"]}, '"metods" in the configuration file is not an option; did you mean "methods"?'),
        ({"seed": 3}, "seed=3 is not for you to set in a comparison; see seeds"),
        ({"guidance_weight": 2.0}, "guidance_weight=2.0 is not for you to set in a comparison; see method_arguments"),
        ({"metric_for_best_model": "loss"}, "see metric"),
        ({"method_arguments": {"cyborg": {"guidance_wieght": 1}}}, 'did you mean "guidance_weight"?'),
        ({"method_arguments": {"cyborg": {"seed": 1}}}, "method_arguments: cyborg: seed=1 is not for you to set"),
        ({"method_arguments": {"cyborg": 1}}, "method_arguments: cyborg=1 has to be a mapping"),
        ({"save_only_model": True}, "save_only_model=True is not for you to set"),
        ({"methods": None}, "methods is empty; give a value, or leave the line out"),
        ({"resamples": 0}, "resamples=0 has to be at least 2"),
        ({"backbones": ["test_resnet:drop_rate=0.1", "test_resnet"]}, "names one twice"),
        ({"trials": 3}, "give both a number of trials above 1 and ranges"),
        ({"jobs": 0}, "jobs=0 has to be at least 1"),
        ({"methods": ["cybrog"]}, '"cybrog" is no guidance method'),
        ({"test_split": "tset"}, 'test_split="tset" is not a split of the data'),
    ],
)
def test_bad_settings(digits_folder, tmp_path, capsys, changes, message):
    config, output = written(tmp_path / "compare.yaml", **changes), tmp_path / "study"
    assert main(["compare", config, "--data", str(digits_folder), "--output_dir", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_no_data(tmp_path, capsys):
    assert main(["compare", written(tmp_path / "compare.yaml")]) == 2
    assert "data: give a data set" in capsys.readouterr().err


def test_arguments_of_training_reach_the_runs(digits_folder, tmp_path, capsys, monkeypatch):
    config = written(tmp_path / "c.yaml", learning_rate=0.004, lr_scheduler_type="cosine", dry_run=True)
    output = tmp_path / "study"
    planned = []
    monkeypatch.setattr("hf_salguide.studies.comparison.plan.check_arms", lambda specs, dataset: planned.extend(specs))
    assert main(["compare", config, "--data", str(digits_folder), "--output_dir", str(output)]) == 0
    assert "8 runs are planned" in capsys.readouterr().out
    for spec in planned:
        wanted = {"learning_rate": 0.004, "lr_scheduler_type": "cosine", "max_steps": 4}
        assert wanted.items() <= spec.training.items()


def test_numbers_without_a_point(tmp_path):
    """YAML 1.1 takes 1e-4 for a word."""
    (tmp_path / "c.yaml").write_text("a: 1e-4\nb: [1e-4, 2.5E+3]\nc: {d: 1e3}\ne: 1e\n")
    assert read_config(str(tmp_path / "c.yaml")) == {"a": 1e-4, "b": [1e-4, 2500.0], "c": {"d": 1000.0}, "e": "1e"}


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_to_the_same_figures(digits_folder, tmp_path):
    """Killed with SIGKILL in the middle of runs, some of which then go on from a checkpoint."""
    changes = {
        "num_train_epochs": 5,
        "eval_strategy": "epoch",
        "methods": ["cyborg", "sage"],
        "learning_rate": 0.003,
        "warmup_steps": 12,
    }
    config = written(tmp_path / "compare.yaml", max_steps=-1, **changes)
    command = [sys.executable, "-m", "hf_salguide.cli", "compare", config, "--data", str(digits_folder), "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("whole", "broken"):
        subprocess_of = [*command, "--output_dir", str(tmp_path / name)]
        if name == "broken":
            for wanted in (1, 4):  # twice: once in the first runs, once with some done
                kill_in_the_middle(subprocess_of, environment, tmp_path / name, wanted)
                assert not (tmp_path / name / "results.csv").exists()
        subprocess.run(subprocess_of, env=environment, check=True, capture_output=True)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert rows_of(whole) == rows_of(broken)
    assert len(rows_of(whole)) == 8
    for name in ("conclusions.txt", "table.md", "analysis.json", "report.html"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def kill_in_the_middle(command, environment, output, wanted):
    """Kills the comparison when `wanted` runs have been begun and one of them is between two checkpoints."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        while not (
            len(list(output.glob("runs/*"))) >= wanted
            and list(output.glob("runs/*/training/checkpoint-*/trainer_state.json"))
        ):
            assert time.monotonic() < end, "no checkpoint was written"
            assert process.poll() is None, "the comparison was over before it was killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    # The processes of the runs go with it; what they had written stays.
    unfinished = [path for path in output.glob("runs/*") if not (path / "run.json").is_file()]
    assert unfinished
    time.sleep(1)
