"""What goes wrong while a model is published: the run stays whole, a message says how to go on, a second push does."""

import logging
import os
import re
import shlex
import signal
import time

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import get_session
from transformers import TrainerCallback

from hf_salguide.cli import main
from hf_salguide.hub import PushError, push_folder

from .clients import connect, run_client
from .local_hub import TOKEN
from .published import SAVED, check_told, check_whole, train, trainer_of, tree_of

FAULTS = {
    "500_in_the_middle": ("PUT", "/objects/", 500),
    "500_at_the_end": ("POST", "/commit/", 500),
    "401_in_the_middle": ("POST", "/objects/batch", 401),
    "401_at_the_end": ("POST", "/commit/", 401),
    "403_at_the_end": ("POST", "/commit/", 403),
    "429_in_the_middle": ("POST", "/objects/batch", 429),
    "429_at_the_end": ("POST", "/commit/", 429),
    "cut_in_the_middle": ("PUT", "/objects/", "cut"),
    "cut_at_the_end": ("POST", "/commit/", "cut"),
    "lost_at_the_end": ("POST", "/commit/", "lost"),
    "slow": ("POST", "/preupload/", "slow"),
}
BY_DEFAULT = {"500_in_the_middle", "401_at_the_end", "cut_at_the_end"}
EACH = [pytest.param(fault, marks=[] if fault in BY_DEFAULT else pytest.mark.slow) for fault in FAULTS]
REPO = "user/model"


def break_off(hub, fault):
    method, path, action = FAULTS[fault]
    hub.fail(method, path, action, times=None, seconds=20)
    if action == "slow":
        get_session().timeout = 0.1  # as a user's own client would; huggingface_hub waits for ever


def mend(hub):
    hub.heal()
    get_session().timeout = None


def told(caplog, words, seconds=10):
    """What was logged, as soon as it holds some words: uploads in the background warn a moment after they end."""
    until = time.monotonic() + seconds
    while words not in caplog.text and time.monotonic() < until:
        time.sleep(0.01)
    return caplog.text


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder(online_hub, run, fault):
    before = tree_of(run)
    break_off(online_hub, fault)
    with pytest.raises(PushError) as caught:
        push_folder(run, REPO)
    check_told(str(caught.value), run)
    assert tree_of(run) == before
    assert len(online_hub[REPO].pushes()) == (fault == "lost_at_the_end")
    mend(online_hub)
    push_folder(run, REPO)
    check_whole(online_hub, run)
    assert len(online_hub[REPO].pushes()) == 1
    assert tree_of(run) == before


@pytest.mark.parametrize("fault", EACH)
def test_the_command(online_hub, run, fault, capsys):
    before = tree_of(run)
    break_off(online_hub, fault)
    assert main(["push", str(run), REPO]) != 0
    said = capsys.readouterr()
    check_told(said.err + said.out, run)
    assert "Traceback" not in said.err
    mend(online_hub)
    command = re.search(r"hf-salguide (push \S+ \S+)", said.err + said.out)[1]
    assert main(command.split()) == 0
    check_whole(online_hub, run)
    assert tree_of(run) == before


@pytest.mark.parametrize("fault", EACH)
def test_the_trainer(online_hub, tmp_path, fault):
    trainer = trainer_of("timm_resnet", tmp_path / "run", REPO, push_to_hub=False, save_strategy="no")
    trainer.train()
    before = {}
    online_hub.before("/preupload/", lambda request: before.update(tree_of(tmp_path / "run")))
    break_off(online_hub, fault)
    with pytest.raises(PushError) as caught:
        trainer.push_to_hub()
    check_told(str(caught.value), tmp_path / "run")
    assert "trainer.push_to_hub" in str(caught.value)
    stage = re.compile("_push_[^/]*/")
    assert tree_of(tmp_path / "run") == {path: data for path, data in before.items() if not stage.match(path)}
    assert before.keys() >= SAVED
    mend(online_hub)
    trainer.push_to_hub()
    check_whole(online_hub, tmp_path / "run")
    assert len(online_hub[REPO].pushes()) == 1


def test_the_trainer_in_the_background(online_hub, tmp_path, caplog):
    trainer = trainer_of("timm_resnet", tmp_path / "run", REPO, push_to_hub=False)
    break_off(online_hub, "500_at_the_end")
    with caplog.at_level(logging.WARNING):
        job = trainer.push_to_hub(blocking=False)
        assert isinstance(job.exception(timeout=60), PushError)
        check_told(told(caplog, "hf-salguide push"), tmp_path / "run")
    mend(online_hub)
    trainer.push_to_hub(blocking=False).result(timeout=60)
    check_whole(online_hub, tmp_path / "run")


@pytest.mark.parametrize("fault", EACH)
def test_training_goes_on(online_hub, tmp_path, fault, caplog):
    trainer = trainer_of("timm_resnet", tmp_path / "run", REPO, hub_strategy="checkpoint")
    break_off(online_hub, fault)
    with caplog.at_level(logging.WARNING):
        trainer.train()
        assert "training goes on" in told(caplog, "checkpoint-2")
    assert trainer.state.global_step == 2
    for step in (1, 2):
        assert f"checkpoint-{step} failed" in caplog.text
    assert TOKEN not in caplog.text
    assert fault == "lost_at_the_end" or not online_hub[REPO].pushes()
    for step in (1, 2):
        assert tree_of(tmp_path / "run" / f"checkpoint-{step}").keys() >= SAVED
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("_")]
    mend(online_hub)
    trainer.push_to_hub()
    check_whole(online_hub, tmp_path / "run")


def test_checkpoints_that_are_deleted_before_they_are_uploaded(online_hub, tmp_path):
    online_hub.fail("POST", "/preupload/", "slow", times=None, seconds=0.3)
    arguments = {"max_steps": 4, "save_total_limit": 1, "hub_strategy": "checkpoint"}
    trainer = trainer_of("timm_resnet", tmp_path / "run", REPO, **arguments)
    weights = {}

    class Kept(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved = tmp_path / "run" / f"checkpoint-{state.global_step}" / "model.safetensors"
            weights[f"Training in progress, step {state.global_step}"] = saved.read_bytes()

    trainer.add_callback(Kept())
    trainer.train()
    pushes = online_hub[REPO].pushes()
    assert [commit.message for commit in pushes] == list(weights)
    for commit in pushes:
        assert commit.files["model.safetensors"].data == weights[commit.message]
        assert commit.files["last-checkpoint/model.safetensors"].data == weights[commit.message]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-4"]


def test_one_push_of_the_training_fails_and_the_next_holds_all(online_hub, tmp_path):
    fault = online_hub.fail("POST", "/commit/", 500, times=1)
    train("timm_resnet", tmp_path / "run", REPO, "checkpoint")
    assert fault.fired == 1
    (commit,) = online_hub[REPO].pushes()
    assert commit.files["model.safetensors"].data == (tmp_path / "run/checkpoint-2/model.safetensors").read_bytes()
    assert "last-checkpoint/optimizer.pt" in commit.files


def command_in(text):
    """The command that a message says to run, as a shell would split it."""
    (line,) = [line for line in text.splitlines() if "hf-salguide push" in line]
    return shlex.split(re.search(r"hf-salguide (push .*?)(, or trainer|$)", line)[1])


def test_the_command_of_the_message_does_all_that_was_asked(online_hub, run):
    """In a folder whose name has a space, to a branch, with further files and tags."""
    folder = run.rename(run.parent / "my run")
    online_hub.fail("POST", "/commit/", 500, times=1)
    with pytest.raises(PushError) as caught:
        push_folder(
            folder,
            REPO,
            revision="draft",
            include=["notes.txt"],
            tags=["x-ray"],
            commit_message="All of it",
            private=True,
        )
    assert main(command_in(str(caught.value))) == 0
    (commit,) = online_hub[REPO].pushes("draft")
    files = online_hub[REPO].files("draft")
    assert online_hub[REPO].private
    assert set(files) == {*SAVED, "notes.txt", ".gitattributes"}
    assert "x-ray" in files["README.md"].decode()
    assert commit.message == "All of it"


def test_a_push_that_cannot_be_prepared(online_hub, run, monkeypatch):
    """As on a full disk: nothing is left behind."""
    before = tree_of(run)

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_salguide.hub.push.published_card", fails)
    with pytest.raises(OSError, match="No space left"):
        push_folder(run, REPO)
    assert tree_of(run) == before
    assert not [path for path in run.iterdir() if path.name.startswith("_push_")]


def test_training_goes_on_where_a_push_cannot_be_prepared(online_hub, tmp_path, monkeypatch, caplog):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_salguide.publishing.add_to_stage", fails)
    with caplog.at_level(logging.WARNING):
        trainer = train("timm_resnet", tmp_path / "run", REPO, "every_save")
    assert trainer.state.global_step == 2
    assert "No space left" in caplog.text
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("_push_")]


# --- changes and interruptions


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "card.json"])
def test_a_file_that_changes_under_way(online_hub, run, name):
    """What was there when the push began is published, whole; the change is kept, and goes with the next push."""
    before, changed = tree_of(run), tree_of(run)[name] + b" "
    online_hub.before("/preupload/|/objects/batch", lambda request: (run / name).write_bytes(changed))
    push_folder(run, REPO)
    files = online_hub[REPO].files()
    assert files[name] == before[name]
    assert tree_of(run) == before | {name: changed}
    if name != "model.safetensors":
        push_folder(run, REPO)
        assert online_hub[REPO].files()[name] == changed


def test_a_push_that_is_broken_off(online_hub, run, caplog, monkeypatch):
    before = tree_of(run)

    def broken_off(client, repo_id, operations, **options):
        """The weights are up, and then somebody presses Ctrl+C."""
        client.preupload_lfs_files(repo_id, additions=[each for each in operations if hasattr(each, "upload_info")])
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "create_commit", broken_off)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        push_folder(run, REPO)
    monkeypatch.undo()
    connect(online_hub, monkeypatch, TOKEN)
    assert online_hub.objects
    check_told(caplog.text, run)
    assert tree_of(run) == before
    push_folder(run, REPO)
    check_whole(online_hub, run)


@pytest.mark.slow
def test_a_process_that_is_killed(local_hub, run, online_hub):
    """Its copy stays behind; it is neither uploaded nor taken for the model."""
    before = tree_of(run)
    pid = run.parent / "pid"
    local_hub.before("/commit/", lambda request: os.kill(int(pid.read_text()), signal.SIGKILL))
    code = f"""
import os
open({str(pid)!r}, "w").write(str(os.getpid()))
from hf_salguide.hub import push_folder
push_folder({str(run)!r}, {REPO!r})
"""
    assert run_client(local_hub, code, token=TOKEN).returncode == -signal.SIGKILL
    left = {path: data for path, data in tree_of(run).items() if not path.startswith("_push_")}
    assert left == before
    assert list(run.glob("_push_*"))
    push_folder(run, REPO, include=["*.txt"])
    files = online_hub[REPO].files()
    assert set(files) == {*SAVED, "notes.txt", ".gitattributes"}
    check = {path: files[path] for path in SAVED - {"README.md"}}
    assert check == {path: before[path] for path in check}
    assert not list(run.glob("_push_*"))  # what a process that is no more left behind goes
