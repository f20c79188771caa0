"""What the Hub refuses from the start: nobody is logged in, no rights, names, repositories that exist."""

import pytest
from huggingface_hub import constants, hf_api

from hf_salguide.cli import main
from hf_salguide.hub import PushError, push_folder

from .published import SAVED, check_told, check_whole, trainer_of, tree_of

REPO = "user/model"


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_nobody_is_logged_in(online_hub, run, monkeypatch, token, capsys):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    before = tree_of(run)
    with pytest.raises(PushError, match=r"user/model.*`hf auth login`.*HF_TOKEN"):
        push_folder(run, REPO)
    assert main(["push", str(run), REPO]) != 0
    said = capsys.readouterr().err
    assert "hf auth login" in said
    assert "hf_wrong" not in said
    assert tree_of(run) == before
    assert not online_hub.repositories


def test_a_name_without_its_owner(online_hub, run):
    push_folder(run, "model")
    check_whole(online_hub, run)


def test_no_rights(online_hub, run, tmp_path):
    before = tree_of(run)
    with pytest.raises(PushError, match=r"other/model.*403.*token with write permission") as caught:
        push_folder(run, "other/model")
    assert str(run) in str(caught.value)
    assert tree_of(run) == before
    with pytest.raises(PushError, match=r"other/model.*403"):
        trainer_of("timm_resnet", tmp_path / "new", "other/model")
    assert not online_hub.repositories
    online_hub.add("other/public", {"a.txt": b"a"})
    with pytest.raises(PushError, match=r"other/public.*403.*token with write permission"):
        push_folder(run, "other/public")
    assert len(online_hub["other/public"].pushes()) == 1
    push_folder(run, REPO)
    check_whole(online_hub, run)


def test_a_trained_model_is_saved_before_anybody_may_refuse_it(online_hub, tmp_path):
    trainer = trainer_of("timm_resnet", tmp_path / "run", "other/model", push_to_hub=False, save_strategy="no")
    trainer.train()
    with pytest.raises(PushError, match="other/model") as caught:
        trainer.push_to_hub()
    assert tree_of(tmp_path / "run").keys() >= SAVED
    assert str(tmp_path / "run") in str(caught.value)
    push_folder(tmp_path / "run", REPO)
    check_whole(online_hub, tmp_path / "run")


@pytest.mark.parametrize("name", ["user/a--b", "user/a b", "user/model.git", "user/é", "a/b/c", "user/", ""])
def test_names_that_no_hub_allows(online_hub, run, name, capsys):
    before = tree_of(run)
    with pytest.raises(ValueError, match="repo_id=.*give"):
        push_folder(run, name)
    assert main(["push", str(run), name]) != 0
    assert "owner/name" in capsys.readouterr().err
    if name:  # Trainer calls the repository like the folder where no name is given
        with pytest.raises(ValueError, match="hub_model_id=.*give"):
            trainer_of("timm_resnet", run, name)
    assert not online_hub.requests
    assert tree_of(run) == before


def test_a_name_that_this_hub_does_not_allow(online_hub, run, capsys):
    online_hub.refused.add("settings")
    before = tree_of(run)
    with pytest.raises(PushError, match=r"user/settings.*Only regular characters"):
        push_folder(run, "user/settings")
    assert main(["push", str(run), "user/settings"]) != 0
    assert "Only regular characters" in capsys.readouterr().err
    assert tree_of(run) == before


def test_a_repository_that_exists(online_hub, run):
    """It gets a commit; what else it holds stays."""
    online_hub.add(REPO, {"other.txt": b"theirs", "config.json": b"{}"})
    push_folder(run, REPO)
    files = online_hub[REPO].files()
    assert files.pop("other.txt") == b"theirs"
    assert files["config.json"] == (run / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"private=True.*is public"):
        push_folder(run, REPO, private=True)
    assert len(online_hub[REPO].pushes()) == 2


def test_somebody_made_it_at_the_same_time(online_hub, run):
    online_hub.before("repos/create", lambda request: online_hub.add(REPO, {"a.txt": b"a"}))
    push_folder(run, REPO)
    assert {*SAVED, "a.txt"} <= online_hub[REPO].files().keys()


def test_a_hub_that_cannot_be_reached(online_hub, run, monkeypatch):
    before = tree_of(run)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        patch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
        with pytest.raises(PushError, match=REPO) as caught:
            push_folder(run, REPO)
    check_told(str(caught.value), run)
    assert tree_of(run) == before
