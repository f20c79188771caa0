"""The `evaluate` modules: loaded offline, in one process and over two, they give what the functions give."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import torch

import hf_salguide
from hf_salguide.metrics import (
    alignment_metrics,
    alignment_summary,
    classification_metrics,
    list_modules,
    module_path,
    open_set_metrics,
    presentation_attack_metrics,
)

NAMES = ["alignment", "classification", "open_set", "presentation_attack"]
COUNT, FIRST = 31, 14  # pictures, and how many of them the first of two processes has


def made_rows():
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(COUNT, 20, 24, generator=generator)
    saliency[[3, 20]] = 0.0
    maps = torch.randn(COUNT, 5, 6, generator=generator)
    maps[[4, 21, 22]] = -1.0
    return {
        "maps": maps,
        "saliency": saliency,
        "probabilities": torch.randn(COUNT, 3, generator=generator).double().softmax(1),
        "labels": torch.arange(COUNT) % 3,
        "groups": [f"group {row % 4}" for row in range(COUNT)],
        "scores": torch.rand(COUNT, generator=generator).double(),
        "unknown": torch.arange(COUNT) % 5 == 0,
    }


def by_modules(process, processes, cache):
    """What the modules give to one of the processes, each with its own share of the pictures."""
    rows = made_rows()
    mine = slice(0, COUNT) if processes == 1 else [slice(0, FIRST), slice(FIRST, COUNT)][process]
    validation = rows["labels"][:10], rows["probabilities"][:10]
    rows = {name: values[mine] for name, values in rows.items()}
    maps, saliency, scores = rows["maps"], rows["saliency"], {"predictions": rows["probabilities"]}
    scores["references"] = rows["labels"]

    def load(name, config=None):
        options = {"num_process": processes, "process_id": process, "experiment_id": "test", "cache_dir": cache}
        return evaluate.load(module_path(name), config, **options)

    alignment, attacks = load("alignment"), load("presentation_attack")
    alignment.add_batch(predictions=maps[:5], references=saliency[:5])
    alignment.add_batch(predictions=maps[5:-1].numpy(), references=saliency[5:-1].tolist())
    alignment.add(prediction=maps[-1], reference=saliency[-1])
    attacks.add_batch(**scores)
    by_type = load("presentation_attack", "attack_types")
    return {
        "alignment": alignment.compute(),
        "classification": load("classification").compute(**scores),
        "groups": load("classification", "groups").compute(**scores, groups=rows["groups"]),
        "presentation_attack": attacks.compute(bona_fide=0, validation=validation, threshold=0.4),
        "attack_types": by_type.compute(**scores, attack_types=rows["groups"], bona_fide=0),
        "open_set": load("open_set").compute(predictions=rows["scores"], references=rows["unknown"], positive="known"),
    }


def by_functions():
    rows = made_rows()
    probabilities, labels, groups = rows["probabilities"], rows["labels"], rows["groups"]
    annotated = rows["saliency"].amax((1, 2)) > 0
    return {
        "alignment": alignment_summary(alignment_metrics(rows["maps"], rows["saliency"]), annotated),
        "classification": classification_metrics(labels, probabilities),
        "groups": classification_metrics(labels, probabilities, groups),
        "presentation_attack": presentation_attack_metrics(
            labels, probabilities, 0, validation=(labels[:10], probabilities[:10]), threshold=0.4
        ),
        "attack_types": presentation_attack_metrics(labels, probabilities, 0, groups),
        "open_set": open_set_metrics(rows["unknown"], scores=rows["scores"], positive="known"),
    }


def assert_the_same(figures, expected):
    assert set(figures) == set(expected)
    for name, values in expected.items():
        assert figures[name] == pytest.approx(values, nan_ok=True), name


def started(processes, folder, python_path=None):
    """This file as processes of their own, offline, with a cache that holds nothing yet."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(python_path or Path(hf_salguide.__file__).parents[1])}
    words = [[__file__, str(process), str(processes), str(folder / "cache")] for process in range(processes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([sys.executable, *line], env=environment, cwd=folder, **pipes) for line in words]


def finished(process):
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(printed.splitlines()[-1])


def test_modules_give_what_the_functions_give(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    figures, expected = by_modules(0, 1, str(tmp_path / "cache")), by_functions()
    assert expected["alignment"]["annotated"] == COUNT - 2
    assert expected["alignment"]["iou_pictures"] == COUNT - 5
    assert_the_same(figures, expected)


@pytest.mark.slow
def test_two_processes_give_what_one_does(tmp_path):
    first, second = [finished(process) for process in started(2, tmp_path)]
    assert_the_same(first["figures"], by_functions())
    assert set(second["figures"].values()) == {None}


@pytest.mark.slow
def test_the_modules_are_in_the_installed_package(tmp_path):
    """A wheel built from a copy of the sources holds them, and they load from where it was installed."""
    sources, copy = Path(hf_salguide.__file__).parents[1], tmp_path / "sources"
    shutil.copytree(sources / "hf_salguide", copy / "hf_salguide", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(sources / name, copy / name)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(copy)], check=True, timeout=300)
    (installed,) = map(finished, started(1, tmp_path, tmp_path / "site"))
    assert Path(installed["package"]).is_relative_to(tmp_path / "site")
    assert_the_same(installed["figures"], by_functions())


def test_the_modules_have_a_list_and_a_folder_each():
    assert list_modules() == NAMES
    assert all((Path(module_path(name)) / f"{name}.py").is_file() for name in NAMES)
    with pytest.raises(ValueError, match='name="alignmnt" is no metric module; there are alignment, classification'):
        module_path("alignmnt")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r'pip install "hf_salguide\[evaluate\]"'):
        module_path("alignment")


if __name__ == "__main__":
    figures = by_modules(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    print(json.dumps({"package": hf_salguide.__file__, "figures": figures}))  # noqa: T201
