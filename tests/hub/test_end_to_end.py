"""
Train, push, delete the folder, load by id in a new process: the same logits, bit for bit, whoever loads.

The new process knows nothing of this package where transformers and timm load.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from hf_salguide.cli import main
from hf_salguide.hub import load_guided

from .clients import run_client
from .local_hub import OTHER, TOKEN
from .published import MODELS, RESUMED_FROM, SAVED, is_pickle, train, trainer_of, tree_of, write_expected

STRATEGIES = ["end", "every_save", "checkpoint", "all_checkpoints"]
HERE = Path(__file__).parent
CHECKPOINTS = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-1", "checkpoint-2"]}


def task_of(name, repo, strategy, folder, revision="main"):
    """What one published model is loaded from."""
    places = [None, *CHECKPOINTS.get(strategy, [])[-1:]]
    task = {"repo": repo, "revision": revision, "expected": str(folder / "expected.pt")}
    return [
        {**task, "subfolder": place, "timm": name.startswith("timm") and not place, "name": name} for place in places
    ]


def check_loads(hub, tasks, folder, **client):
    """Loads what is listed in a new process, first without this package, and checks what it found."""
    file, results = folder / "tasks.json", folder / "results.json"
    file.write_text(json.dumps(tasks))
    variables = {"TASKS": str(file), "RESULTS": str(results)}
    done = run_client(hub, HERE / "load_run.py", token=None, variables=variables, **client)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(results.read_text())
    for task, row in zip(tasks, found, strict=True):
        size = list(MODELS[task["name"]][1])
        expected = {
            "transformers": True,
            "processor": True,
            "size": size,
            "names": ["ant", "bee", "cat"],
            "guidance": "cyborg",
        }
        if not task["subfolder"]:
            assert row.pop("pipeline") < 1e-6, task
            expected |= {"load_guided": True, "load_guided_processor": True, "load_guided_guidance": "cyborg"}
        if task["timm"]:
            expected |= {"timm": True, "timm_size": size}
        assert row == expected, task


def check_commits(repository, name, strategy, final=False):
    """That each commit holds a whole model with its card, and no pickle but what checkpoints are resumed from."""
    saved = SAVED | ({"preprocessor_config.json"} if name.startswith("transformers") else set())
    pushes = repository.pushes()
    assert pushes
    assert all(commit.changed for commit in pushes)
    for commit in pushes:
        files = {path: file.data for path, file in commit.files.items() if path != ".gitattributes"}
        places = {path.split("/")[0] for path in files if "/" in path}
        assert {path for path in files if "/" not in path} == saved
        assert places <= set(CHECKPOINTS.get(strategy, []))
        for place in places:
            held = {path.removeprefix(f"{place}/") for path in files if path.startswith(f"{place}/")}
            assert held == saved | RESUMED_FROM
        assert {path for path, data in files.items() if is_pickle(data)} == {
            f"{place}/{file}" for place in places for file in RESUMED_FROM if not file.endswith(".json")
        }
        card = files["README.md"].decode()
        assert repository.id in card
        assert "More information needed" not in card
        assert json.loads(files["card.json"])
    assert {path.split("/")[0] for path in repository.files() if "/" in path} == set(CHECKPOINTS.get(strategy, []))


def published(hub, name, strategy, folder, repo=None, **arguments):
    """Trains, publishes and deletes the run's folder."""
    repo = repo or f"user/{name}_{strategy}"
    folder.mkdir()
    trainer = train(name, folder / "run", repo, strategy, **arguments)
    write_expected(trainer, folder / "expected.pt")
    shutil.rmtree(folder / "run")
    return trainer


def test_what_is_pushed_loads_anywhere(online_hub, tmp_path):
    """A CNN of timm at the end of training, a transformer of transformers with its checkpoint."""
    tasks = []
    for name, strategy in (("timm_resnet", "end"), ("transformers_vit", "checkpoint")):
        published(online_hub, name, strategy, tmp_path / name)
        repo = f"user/{name}_{strategy}"
        check_commits(online_hub[repo], name, strategy)
        tasks += task_of(name, repo, strategy, tmp_path / name)
    check_loads(online_hub, tasks, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["newest", "oldest"])
def test_every_strategy(local_hub, tmp_path, version, request):
    """Both kinds of networks, of timm and of transformers, by each strategy, all in new processes."""
    library = request.getfixturevalue("oldest_hub_library") if version == "oldest" else None
    jobs, tasks = [], []
    for name in MODELS:
        for strategy in STRATEGIES:
            folder, repo = tmp_path / name / strategy, f"user/{name}_{strategy}"
            folder.mkdir(parents=True)
            jobs.append({"name": name, "repo": repo, "strategy": strategy, "folder": str(folder)})
            tasks += task_of(name, repo, strategy, folder)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    code = f"import huggingface_hub\nfrom hub.published import main\nmain({str(tmp_path / 'jobs.json')!r})\n"
    code += "print(huggingface_hub.__version__)"
    done = run_client(local_hub, code, token=TOKEN, hub_version=library, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split()[-1].startswith("1.31.0" if library else "")
    assert "failed" not in done.stderr
    for job in jobs:
        check_commits(local_hub[job["repo"]], job["name"], job["strategy"])
        shutil.rmtree(Path(job["folder"]) / "run")
    check_loads(local_hub, tasks, tmp_path, hub_version=library, timeout=500)


def test_training_goes_on_from_a_downloaded_checkpoint(online_hub, tmp_path):
    whole = trainer_of("timm_resnet", tmp_path / "whole", "user/whole", max_steps=4, push_to_hub=False)
    whole.train()
    train("timm_resnet", tmp_path / "first", "user/first", "checkpoint")
    shutil.rmtree(tmp_path / "first")
    down = Path(snapshot_download("user/first", allow_patterns="last-checkpoint/*", local_dir=tmp_path / "down"))
    resumed = trainer_of("timm_resnet", tmp_path / "again", "user/again", max_steps=4, push_to_hub=False)
    resumed.train(resume_from_checkpoint=str(down / "last-checkpoint"))
    assert resumed.state.global_step == 4
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_privately_and_on_a_branch(online_hub, tmp_path):
    trainer = trainer_of("timm_resnet", tmp_path, "user/model", hub_private_repo=True, hub_revision="draft")
    trainer.train()
    trainer.push_to_hub(commit_message="A first draft")
    repository = online_hub["user/model"]
    assert repository.private
    assert set(repository.files()) == {".gitattributes"}
    assert set(repository.files("draft")) == {*SAVED, ".gitattributes"}
    assert repository.commit("draft").message == "A first draft"
    trainer.push_to_hub(revision="main")
    assert set(repository.files()) == {*SAVED, ".gitattributes"}
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("user/model", token=OTHER)
    loaded = load_guided("user/model", revision="draft").model.state_dict()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(loaded[key].cpu(), value), key


def test_the_command_pushes_and_pushes_nothing_new(online_hub, tmp_path, capsys):
    trainer = trainer_of("timm_resnet", tmp_path / "run", "user/unused", push_to_hub=False)
    trainer.train()
    trainer.save_model()
    before = tree_of(tmp_path / "run")
    assert main(["push", str(tmp_path / "run"), "user/model"]) == 0
    repository = online_hub["user/model"]
    assert repository.commit().oid in capsys.readouterr().out
    assert {
        path: data for path, data in repository.files().items() if path not in (".gitattributes", "README.md")
    } == {path: before[path] for path in SAVED - {"README.md"}}
    for _ in range(2):
        assert main(["push", str(tmp_path / "run"), "user/model"]) == 0
    assert len(repository.pushes()) == 1
    assert tree_of(tmp_path / "run") == before
    main(["push", str(tmp_path / "run"), "user/model", "--revision", "b", "--commit_message", "M", "--tags", "x-ray"])
    assert repository.commit("b").message == "M"
    assert "x-ray" in repository.files("b")["README.md"].decode()


def test_the_last_push_after_those_of_the_training(online_hub, tmp_path):
    """It adds nothing but the card's last words, and leaves the checkpoint where it was."""
    trainer = train("timm_resnet", tmp_path, "user/model", "checkpoint")
    count = len(online_hub["user/model"].pushes())
    trainer.push_to_hub()
    trainer.push_to_hub()
    pushes = online_hub["user/model"].pushes()
    assert len(pushes) <= count + 1
    assert all(set(commit.changed) <= {"README.md", "card.json"} for commit in pushes[count:])
    assert "last-checkpoint/optimizer.pt" in pushes[-1].files
