"""What a push uploads, what it refuses, and how it is told from the command line."""

import json

import pytest
from support import Rows, build, make_batch, make_trainer

from hf_salguide.cli import main
from hf_salguide.hub import PushError, push_folder
from hf_salguide.hub import push as pushing
from hf_salguide.hub.staging import STAGE, copy_of

from .local_hub import OTHER, READER

PUBLISHED = {"README.md", "card.json", "config.json", "model.safetensors", "training_args.json"}


@pytest.fixture
def run(tmp_path):
    """The output folder of a short training."""
    batch = make_batch((64, 96), 4, annotated=[True, False, True, True])
    trainer = make_trainer(
        build("resnet"),
        tmp_path / "run",
        train_dataset=Rows(batch),
        guidance="cyborg",
        max_steps=2,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    trainer.save_model()
    return tmp_path / "run"


def uploaded(hub, repo="user/model", revision="main"):
    return set(hub[repo].files(revision)) - {".gitattributes"}


def test_what_belongs_to_the_model_goes_up_and_nothing_else(run, online_hub):
    for name in ("patients.csv", "notes.txt", "training_args.bin", "pytorch_model.bin", "trainer_state.json"):
        (run / name).write_text("of somebody")
    before = sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))
    push_folder(run, "user/model")
    assert uploaded(online_hub) == PUBLISHED
    assert sorted(path.relative_to(run).as_posix() for path in run.rglob("*")) == before


def test_a_folder_that_has_not_changed_makes_no_commit(run, online_hub):
    first = push_folder(run, "user/model")
    commits = len(online_hub["user/model"].commits)
    again = push_folder(run, "user/model")
    assert len(online_hub["user/model"].commits) == commits
    assert again.oid == first.oid


def test_a_checkpoint_is_published_as_a_model(run, online_hub):
    push_folder(run / "checkpoint-1", "user/model")
    assert uploaded(online_hub) == PUBLISHED


def test_the_card_names_the_repository(run, online_hub):
    push_folder(run, "model", tags=["radiology"])
    card = online_hub["user/model"].files("main")["README.md"].decode()
    assert "user/model" in card
    assert "radiology" in card
    assert "user/model" not in (run / "README.md").read_text()


def test_a_branch_is_made_where_there_is_none(run, online_hub):
    push_folder(run, "user/model", revision="v2", commit_message="The second one")
    assert uploaded(online_hub, revision="v2") == PUBLISHED
    assert uploaded(online_hub) == set()
    newest = online_hub["user/model"].branches["v2"]
    assert online_hub["user/model"].commits[newest].message == "The second one"


def test_private_is_kept(run, online_hub):
    push_folder(run, "user/model", private=True)
    assert online_hub["user/model"].private
    push_folder(run, "user/model", private=True)
    push_folder(run, "user/open")
    with pytest.raises(ValueError, match='private=True, but repo_id="user/open" exists and is public: nothing was'):
        push_folder(run, "user/open", private=True, revision="other")
    assert "other" not in online_hub["user/open"].branches


def test_a_published_pickle_of_arguments_is_removed(run, online_hub):
    online_hub.add("user/model", {"training_args.bin": b"a pickle", "notes.md": b"kept"})
    push_folder(run, "user/model")
    assert uploaded(online_hub) == {*PUBLISHED, "notes.md"}


def test_further_files_have_to_be_asked_for(run, online_hub):
    (run / "results").mkdir()
    (run / "results" / "scores.csv").write_text("1")
    push_folder(run, "user/model", include=["results/*.csv"])
    assert uploaded(online_hub) == {*PUBLISHED, "results/scores.csv"}
    with pytest.raises(ValueError, match=r'include="\*\.txt" fits no file'):
        push_folder(run, "user/model", include=["*.txt"])
    (run / "results" / ".env").write_text("secret")
    push_folder(run, "user/model", include="results/*")
    assert uploaded(online_hub) == {*PUBLISHED, "results/scores.csv"}
    for pattern in ("", "/etc/passwd", "../*", "*.txt"):
        with pytest.raises(ValueError, match="fits no file of"):
            push_folder(run, "user/model", include=[pattern])


PICKLED = {
    "a.joblib": b"x",
    "M.PT": b"x",
    "model.tar": b"x",
    "no_suffix": b"\x80\x04N.",
    "objects.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
}


@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_is_refused_whatever_it_is_called(name, run, online_hub):
    (run / name).write_bytes(PICKLED[name])
    with pytest.raises(ValueError, match=f'include="{name}" fits {name}, which may be a pickle'):
        push_folder(run, "user/model", include=[name])
    with pytest.raises(ValueError, match=r"fits checkpoint-1/optimizer.pt, which may be a pickle"):
        push_folder(run, "user/model", include=["checkpoint-1/*.pt"])
    assert "user/model" not in online_hub.repositories


def test_a_commit_is_no_branch(run, online_hub):
    with pytest.raises(ValueError, match="is a commit; give the name of a branch"):
        push_folder(run, "user/model", revision="a" * 40)
    push_folder(run, "user/model", revision="")
    assert uploaded(online_hub) == PUBLISHED


def test_one_tag_is_one_tag(run, online_hub):
    push_folder(run, "user/model", tags="radiology")
    assert "- radiology\n" in online_hub["user/model"].files("main")["README.md"].decode()


def test_what_contradicts_the_model_goes(run, online_hub):
    """Adapters beside a model, or a panel that the card shows no more, of an earlier push."""
    stale = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "card_panel.png": b"a picture"}
    online_hub.add("user/model", {**stale, "notes.md": b"kept"})
    push_folder(run, "user/model")
    assert uploaded(online_hub) == {*PUBLISHED, "notes.md"}


def test_an_edited_card_goes_up_as_it_is_and_loads_from_there(run, online_hub, caplog):
    path = run / "README.md"
    path.write_text(path.read_text().replace("## Limits", "A line of mine.\n\n## Limits"))
    push_folder(run, "user/model", tags=["more"])
    card = online_hub["user/model"].files("main")["README.md"].decode()
    assert "A line of mine." in card
    assert 'load_guided("user/model")' in card
    assert '"."' not in card
    assert "without the further tags" in caplog.text


def test_an_edited_card_outlives_pushes_in_training(run, online_hub):
    path = run / "README.md"
    path.write_text(path.read_text().replace("## Limits", "A line of mine.\n\n## Limits"))
    options = {"push_to_hub": True, "hub_model_id": "user/model", "hub_strategy": "every_save", "max_steps": 2}
    batch = Rows(make_batch((64, 96), 4, annotated=[True, False, True, True]))
    trainer = make_trainer(build("resnet"), run, train_dataset=batch, save_strategy="steps", save_steps=1, **options)
    trainer.train()
    trainer._finish_current_push()
    assert len(online_hub["user/model"].commits) > 1
    assert "A line of mine." in online_hub["user/model"].files("main")["README.md"].decode()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "names no repository"), ("/", "names no repository"), ("a b", "is not a name"), ("u/m/x", "is not a name")],
    ids=["empty", "slash", "space", "three parts"],
)
def test_names_are_checked_before_anything_is_asked(name, reason, run, online_hub):
    with pytest.raises(ValueError, match=f'repo_id=.*{reason}.*give "owner/name"'):
        push_folder(run, name)
    assert online_hub.requests == []


def test_a_folder_without_a_model_is_refused_before_anything_is_asked(tmp_path, online_hub):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no model.*but notes.txt"):
        push_folder(tmp_path, "user/model")
    assert online_hub.requests == []


@pytest.mark.parametrize(
    ("token", "remedy"),
    [("hf_wrong", "hf auth login"), (READER, "take a token with write permission"), (OTHER, "write permission")],
    ids=["wrong", "reader", "other"],
)
def test_no_rights(token, remedy, run, online_hub):
    with pytest.raises(
        PushError, match=f"user/model cannot be written to: .*{remedy}.*Nothing was uploaded"
    ) as caught:
        push_folder(run, "user/model", token=token)
    assert token not in str(caught.value)
    assert "user/model" not in online_hub.repositories


def test_somebody_elses_repository_is_refused_before_the_upload(run, online_hub):
    online_hub.add("user/model", {"notes.md": b"theirs"})
    with pytest.raises(PushError, match="write permission"):
        push_folder(run, "user/model", token=OTHER)
    assert uploaded(online_hub) == {"notes.md"}
    assert not any("preupload" in request.path for request in online_hub.requests)


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("one")
    add = pushing.copy_of.__globals__["add_to_stage"]

    def slowly(stage, path, name, link=False):
        add(stage, path, name, link)
        (tmp_path / "config.json").write_text("two of them")

    monkeypatch.setitem(pushing.copy_of.__globals__, "add_to_stage", slowly)
    with pytest.raises(ValueError, match=r"config.json of .* changed while it was read.*push again when"):
        copy_of(tmp_path, ["config.json", "model.safetensors"])
    assert not list(tmp_path.glob(f"{STAGE}*"))


def test_a_broken_off_push_says_how_to_go_on(run, online_hub, monkeypatch, caplog):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing.HfApi, "create_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        push_folder(run, "user/model")
    assert f"hf-salguide push {run} user/model" in caplog.text
    assert not list(run.glob(f"{STAGE}*"))


def test_the_command(run, online_hub, capsys):
    assert main(["push", str(run), "user/model", "--private", "true", "--tags", "a", "b"]) == 0
    assert f"{online_hub.url}/user/model/commit/" in capsys.readouterr().out
    assert online_hub["user/model"].private
    assert uploaded(online_hub) == PUBLISHED


def test_the_command_without_a_repository(run, online_hub, capsys):
    assert main(["push", str(run)]) == 2
    assert "repo: give the name of the repository" in capsys.readouterr().err
    assert online_hub.requests == []


def test_the_command_when_the_hub_fails(run, online_hub, capsys):
    online_hub.fail("POST", "/commit/", 500)
    assert main(["push", str(run), "user/model", "--revision", "v2"]) == 2
    error = capsys.readouterr().err
    assert f"{run} is whole; to go on: hf-salguide push {run} user/model --revision v2" in error
    assert main(["push", str(run), "user/model", "--revision", "v2"]) == 0
    assert uploaded(online_hub, revision="v2") == PUBLISHED


def test_the_arguments_of_a_trainer_are_checked_at_its_start(tmp_path, online_hub):
    batch = Rows(make_batch((64, 96), 4))
    with pytest.raises(ValueError, match='hub_model_id="no such name" is not a name'):
        make_trainer(build("resnet"), tmp_path, train_dataset=batch, push_to_hub=True, hub_model_id="no such name")
    with pytest.raises(ValueError, match="hub_model_id, by default output_dir,="):
        make_trainer(build("resnet"), tmp_path / "my model", train_dataset=batch, push_to_hub=True)
    with pytest.raises(PushError, match="other/model cannot be written to"):
        make_trainer(build("resnet"), tmp_path, train_dataset=batch, push_to_hub=True, hub_model_id="other/model")


def test_a_trainer_pushes_what_it_saves(run, tmp_path, online_hub):
    trainer = make_trainer(build("resnet"), tmp_path / "new", train_dataset=Rows(make_batch((64, 96), 4)), max_steps=1)
    trainer.train()
    (tmp_path / "new" / "patients.csv").write_text("of somebody")
    done = trainer.push_to_hub(private=True, tags="radiology", license="mit", revision="v1")
    assert uploaded(online_hub, "user/new", "v1") == PUBLISHED
    assert online_hub["user/new"].private
    assert online_hub["user/new"].branches["v1"] == done.oid
    card = online_hub["user/new"].files("v1")["README.md"].decode()
    assert "radiology" in card
    assert "license: mit" in card
    job = trainer.push_to_hub(blocking=False, revision="v1")
    assert job.result(60).oid == online_hub["user/new"].branches["v1"]
    assert json.loads((tmp_path / "new" / "config.json").read_text())["saliency_guide"]["name"] == "cyborg"
