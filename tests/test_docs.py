"""The README and docs/ say what the code does and what was measured, and the examples run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub.clients import run_client
from hub.local_hub import TOKEN, LocalHub

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("page", "name"),
    [("README.md", name) for name in ("methods", "demo", "demo_all", "cost", "zoo")]
    + [("docs/cost.md", name) for name in ("bounds", "costs", "steps", "extraction", "startup", "scaling", "loader")]
    + [("docs/input.md", "loader")]
    + [("docs/backbones.md", name) for name in ("survey", "timm", "transformers")],
)
def test_the_tables_are_those_that_the_recorded_results_give(page, name):
    sys.path.insert(0, str(ROOT / "tools"))
    from readme import tables

    text = (ROOT / page).read_text()
    found = re.search(rf"<!-- {name}: .*? -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert found, name
    assert found.group(1).strip() == tables()[name]
    assert len(found.group(1).splitlines()) >= 3


@pytest.mark.parametrize("name", ["machine", "shortfalls"])
def test_the_page_of_costs_says_with_what_and_what_falls_short(name):
    sys.path.insert(0, str(ROOT / "tools"))
    from readme import tables

    text = (ROOT / "docs" / "cost.md").read_text()
    assert f"-->\n{tables()[name]}\n<!-- /{name} -->" in text


def test_every_bound_on_the_costs_is_measured():
    from hf_salguide.studies.bench.bounds import Figures, findings

    figures = Figures.read(json.loads((ROOT / "docs" / "bench.json").read_text()))
    assert [finding.bound.what for finding in findings(figures) if not finding.measured] == []
    assert {result.annotated for result in figures.steps} >= {0.25, 1.0}
    assert len({(result.image_size, result.batch_size) for result in figures.steps}) >= 3
    assert (ROOT / "docs" / "bench.png").stat().st_size > 10_000


def test_benchmarks_of_different_versions_are_not_put_together():
    sys.path.insert(0, str(ROOT / "tools"))
    from readme import put_together

    parts = [
        {"machine": {"torch": "2.15"}, "steps": [1]},
        {"machine": {"captum": "0.9"}, "steps": [2], "scaling": [3]},
    ]
    together = {"machine": {"torch": "2.15", "captum": "0.9"}, "steps": [1, 2], "scaling": [3]}
    assert put_together(parts) == together
    with pytest.raises(ValueError, match=r"torch: 2.14 in one file, 2.15 in another"):
        put_together([*parts, {"machine": {"torch": "2.14"}}])


def test_the_commands_of_the_page_of_costs_are_accepted(monkeypatch):
    import shlex

    import torch

    import hf_salguide.cli.bench as command
    from hf_salguide.cli.parsing import parse

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    text = (ROOT / "docs" / "cost.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^hf-salguide bench (.*)$", text, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        (args,) = parse([command.BenchArguments], shlex.split(line), "bench", "")
        settings, methods, _ = command._checked(args)
        assert settings
        assert methods
    sys.path.insert(0, str(ROOT / "tools"))
    from bench import PARTS

    for arguments in PARTS.values():
        (args,) = parse([command.BenchArguments], ["--device", "cpu", *arguments], "bench", "")
        assert command._checked(args)


def test_the_page_of_backbones_has_every_family():
    import timm
    import transformers

    from hf_salguide.studies.zoo import families

    survey = json.loads((ROOT / "docs" / "backbones.json").read_text())
    for library, installed in (("timm", timm.__version__), ("transformers", transformers.__version__)):
        known = [family.name for family in families() if family.library == library]
        shown = [row["family"] for row in survey["rows"] if row["library"] == library]
        if survey["versions"][library] == installed:
            assert shown == known
        else:  # an older one has fewer, a newer one more
            assert len(set(shown) & set(known)) > 0.9 * min(len(shown), len(known))
    if survey["versions"]["transformers"] == transformers.__version__:
        mapping = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
        classes = {name for names in mapping for name in ([names] if isinstance(names, str) else names)}
        assert set(shown) == classes - {"TimmWrapperForImageClassification"}  # it is timm's


def test_the_script_of_the_readme_runs(tmp_path, digits_folder):
    script = re.search(r"## Fifteen lines\n```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in script.splitlines() if line.strip()]) <= 16
    script = script.replace('"path/to/folder"', repr(str(digits_folder))).replace("resnet18", "test_resnet")
    script = script.replace('"out"', f"{str(tmp_path)!r}, max_steps=2, use_cpu=True, report_to='none'")
    with LocalHub() as hub:
        finished = run_client(hub, script, token=TOKEN)
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert {"config.json", "model.safetensors", "README.md"} <= set(hub[f"user/{tmp_path.name}"].files("main"))
    assert "eval_cyborg_loss" in finished.stdout
    from transformers import AutoModelForImageClassification

    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.id2label == {0: "zero", 1: "one"}


def test_the_quickstart_runs(tmp_path):
    script = (ROOT / "examples" / "quickstart.py").read_text()
    script = script.replace("decoy_digits(size=48)", "decoy_digits(size=48, num_train=40, num_test=20, num_ood=20)")
    script = script.replace("num_train_epochs=8", "max_steps=2, use_cpu=True").replace("resnet10t", "test_resnet")
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("accuracy") == 2


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_are_accepted(path, tmp_path):
    from hf_salguide.arguments import SaliencyTrainingArguments
    from hf_salguide.cli.parsing import parse
    from hf_salguide.cli.train import TrainArguments

    arguments = [str(path), "--data", "folder", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    command, training = parse([TrainArguments, SaliencyTrainingArguments], arguments, "train", "", "data")
    expected = yaml.safe_load(path.read_text())
    assert command.model == expected["model"]
    assert training.guidance == expected["guidance"]
    assert training.learning_rate == expected["learning_rate"]


def test_nothing_promises_what_is_not_there():
    for command in re.findall(r"hf-salguide (\w+)", README):
        from hf_salguide.cli import COMMANDS

        assert command in COMMANDS, command
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
