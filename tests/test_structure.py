"""Imports go one way, the exports are lazy, and what is documented exists."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_salguide

ROOT = Path(hf_salguide.__file__).parent
FOUNDATION = {"rng", "means", "names"}  # tools that know of none of the others
LAYERS = {
    "maps": set(),
    "backbones": {"maps"},
    "data": {"maps"},
    "guidance": {"maps", "backbones", "data"},
    "steps": {"maps", "backbones", "guidance"},
    "metrics": {"maps", "backbones", "data", "guidance"},
    "hub": {"maps", "backbones", "data", "guidance", "metrics"},
    "arguments": {"maps", "backbones", "data", "guidance", "metrics"},
    "inputs": {"data", "guidance", "hub"},
    "evaluation": {"backbones", "guidance", "steps", "metrics", "hub", "arguments", "inputs"},
    "publishing": {"hub", "evaluation"},
    "trainer": {"backbones", "data", "guidance", "steps", "metrics", "hub", "arguments", "inputs", "publishing"},
    "studies": {
        "maps",
        "backbones",
        "data",
        "guidance",
        "steps",
        "metrics",
        "hub",
        "arguments",
        "evaluation",
        "trainer",
    },
}
LAYERS["callbacks"] = LAYERS["studies"] | {"studies"}
LAYERS["cli"] = LAYERS["callbacks"] | {"callbacks"}
FILES = sorted(ROOT.rglob("*.py"))


def part_of(path):
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported_parts(path):
    """The parts of the package that a file imports, wherever in the file."""
    package = ["hf_salguide", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module.split(".") if node.module else [])]
            names = [full] if len(full) > 1 else [[*full, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from (name[1] for name in names if name[0] == "hf_salguide" and len(name) > 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = part_of(path)
    if part == "__init__":
        return
    allowed = {part} | FOUNDATION | LAYERS.get(part, set())
    allowed |= {"__version__"} if part == "cli" else set()
    assert set(imported_parts(path)) <= allowed


def test_every_part_has_its_place():
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert parts <= set(LAYERS) | FOUNDATION


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_optional_is_imported_where_it_is_used(path):
    if "modules" in path.parts:  # of evaluate, which loads them itself
        return
    optional = {"matplotlib", "evaluate", "tensorboard", "wandb", "trackio"}
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.split(".")[0] for name in names} & optional


@pytest.mark.parametrize("part", ["maps", "backbones", "data", "guidance"])
def test_the_lower_parts_know_nothing_of_the_trainer(part):
    code = (
        f"import sys, hf_salguide.{part}; "
        "assert 'transformers.trainer' not in sys.modules, 'transformers.trainer was imported'; "
        "assert 'matplotlib' not in sys.modules, 'matplotlib was imported'"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, hf_salguide; print(sorted({'torch', 'transformers', 'timm', 'datasets'} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_what_training_does_not_need_is_imported_later():
    code = (
        "import sys, hf_salguide.trainer; print(sorted({'sklearn', 'scipy.stats', 'matplotlib'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_the_public_names_can_be_had():
    for name in hf_salguide.__all__:
        assert getattr(hf_salguide, name).__doc__, name
    assert set(hf_salguide.__all__) <= set(dir(hf_salguide))
    with pytest.raises(AttributeError, match="no attribute 'SaliencyTrainor'"):
        _ = hf_salguide.SaliencyTrainor


def test_the_package_is_typed():
    assert (ROOT / "py.typed").exists()
