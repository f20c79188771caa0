"""The local Hub, by the real clients: huggingface_hub in this process and in new ones, transformers and timm."""

import json
import socket
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import (
    HfApi,
    ModelCard,
    file_exists,
    hf_hub_download,
    model_info,
    snapshot_download,
    whoami,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .clients import run_client
from .local_hub import OTHER, READER, TOKEN, LocalHub
from .small_uploads import FILES, push, uploaded

CARD = """---
license: mit
tags:
- vision
model-index:
- name: m
  results:
  - task:
      type: image-classification
    dataset:
      name: d
      type: d
    metrics:
    - type: accuracy
      value: 0.5
---
# A card
"""


def test_who_is_there(online_hub):
    assert whoami()["name"] == "user"
    assert [row["name"] for row in whoami()["orgs"]] == ["team"]
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        whoami(token="hf_wrong")


def test_a_folder_goes_up_and_comes_down(api, online_hub, folder, tmp_path):
    done = push(folder, commit_message="A message", commit_description="More of it")
    commit = online_hub["user/model"].commit()
    assert done.oid == commit.oid
    assert done.commit_url == f"{online_hub.url}/user/model/commit/{commit.oid}"
    assert (commit.message, commit.description, commit.author) == ("A message", "More of it", "user")
    assert commit.changed == tuple(sorted(FILES))
    assert uploaded(online_hub) == FILES
    assert list(online_hub.objects.values()) == [FILES["model.safetensors"]]
    for name, data in FILES.items():
        assert Path(hf_hub_download("user/model", name)).read_bytes() == data
    down = snapshot_download("user/model", local_dir=tmp_path / "down")
    assert {name: (tmp_path / "down" / name).read_bytes() for name in FILES} == FILES
    assert down
    assert [entry.path for entry in api.list_repo_tree("user/model")] == [
        "sub",
        ".gitattributes",
        "config.json",
        "model.safetensors",
    ]
    assert [entry.path for entry in api.get_paths_info("user/model", ["config.json", "none"])] == ["config.json"]
    assert [commit.title for commit in api.list_repo_commits("user/model")] == ["A message", "initial commit"]


def test_the_token_goes_to_the_hub_and_never_to_the_storage(api, online_hub, folder):
    push(folder)
    hf_hub_download("user/model", "model.safetensors", force_download=True)
    storage = [request for request in online_hub.requests if request.server == "storage"]
    assert {request.method for request in storage} == {"PUT", "GET"}
    assert not any(request.authorized for request in storage)
    assert all(request.authorized for request in online_hub.requests if request.server == "hub")


def test_what_has_not_changed_makes_no_commit(api, online_hub, folder):
    first = push(folder)
    again = push(folder)
    assert again.oid == first.oid
    assert len(online_hub["user/model"].pushes()) == 1
    assert not online_hub.asked("POST", "/commit/")[1:]
    (folder / "config.json").write_text("{}")
    push(folder)
    assert online_hub["user/model"].commit().changed == ("config.json",)


def test_a_commit_that_changes_nothing_is_told(api, online_hub):
    lines = [
        {"key": "header", "value": {"summary": "m"}},
        {"key": "file", "value": {"path": "a.txt", "encoding": "base64", "content": "c2FtZQ=="}},
    ]
    for _ in range(2):
        content = "\n".join(json.dumps(line) for line in lines)
        url = f"{online_hub.url}/api/models/user/model/commit/main"
        assert get_session().post(url, content=content, headers=build_hf_headers()).status_code == 200
    assert [commit.changed for commit in online_hub["user/model"].pushes()] == [("a.txt",), ()]


def test_branches(api, online_hub, folder):
    push(folder)
    api.create_branch("user/model", branch="refs/other")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("user/model", branch="refs/other")
    (folder / "config.json").write_text("{}")
    push(folder, revision="refs/other")
    assert uploaded(online_hub, "refs/other")["config.json"] == b"{}"
    assert uploaded(online_hub) == FILES
    assert {branch.name for branch in api.list_repo_refs("user/model").branches} == {"main", "refs/other"}
    assert Path(hf_hub_download("user/model", "config.json", revision="refs/other")).read_text() == "{}"
    assert model_info("user/model", revision="refs/other").sha == online_hub["user/model"].branches["refs/other"]
    with pytest.raises(RevisionNotFoundError):
        push(folder, revision="none")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/model", "config.json", revision="none")


def test_files_and_repositories_that_are_not_there(api, online_hub, folder):
    push(folder)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("user/model", "none.json")
    assert not file_exists("user/model", "none.json")
    with pytest.raises(RepositoryNotFoundError):
        model_info("user/none")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("user/none", "config.json", token=False)
    api.delete_file("config.json", "user/model")
    assert "config.json" not in uploaded(online_hub)
    api.delete_repo("user/model")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("user/model", "none.json")
    assert online_hub.deleted[0].id == "user/model"


def test_private_repositories(online_hub, folder):
    api = HfApi()
    api.create_repo("user/model", private=True)
    push(folder)
    assert model_info("user/model").private
    for token, status in ((OTHER, 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            model_info("user/model", token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("user/model", "config.json", token=token)
    assert hf_hub_download("user/model", "config.json", token=READER)


def test_rights(online_hub, folder):
    api = HfApi()
    api.create_repo("team/model")
    with pytest.raises(HfHubHTTPError, match='create a model under the namespace "other"'):
        api.create_repo("other/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("user/model", token=READER)
    api.create_repo("user/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        push(folder, token=OTHER)
    with pytest.raises(HfHubHTTPError, match="401"):
        push(folder, token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="401"):
        push(folder, token=False)
    assert not online_hub["user/model"].pushes()
    assert not online_hub.objects
    api.auth_check("user/model", write=True)
    api.auth_check("user/model", token=OTHER)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.auth_check("user/model", write=True, token=OTHER)


def test_names(online_hub):
    api = HfApi()
    assert (
        api.create_repo("user/model") == api.create_repo("user/model", exist_ok=True) == f"{online_hub.url}/user/model"
    )
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("user/model")
    with pytest.raises(HFValidationError):
        api.create_repo("user/a--b")
    for name in ("a b", "a--b", ".a", "a.git", "é", "a" * 97):
        answer = get_session().post(
            f"{online_hub.url}/api/repos/create", json={"name": name}, headers=build_hf_headers()
        )
        with pytest.raises(BadRequestError, match="Only regular characters"):
            hf_raise_for_status(answer)
    assert list(online_hub.repositories) == ["user/model"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: [", "Invalid YAML"),
        ("- a", "must be a mapping"),
        ("license: 3", '"license" must be'),
        ("tags: [1]", '"tags" must be'),
        ("model-index: 3", '"model-index" must be'),
        ("model-index:\n- results: []", r'model-index\[0\].name" is required'),
        ("model-index:\n- name: a", r'model-index\[0\].results" is required'),
        ("model-index:\n- name: a\n  results:\n  - task: {type: t}", "dataset"),
    ],
)
def test_cards_are_checked(api, online_hub, folder, metadata, message):
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# A card\n")
    with pytest.raises(ValueError, match=message):
        push(folder)
    assert not online_hub["user/model"].pushes()


@pytest.mark.skipif(huggingface_hub.__version__ < "2", reason="asks huggingface.co, whatever HF_ENDPOINT says")
def test_a_card_asks_this_hub_whether_it_is_good(online_hub):
    ModelCard(CARD).validate()
    with pytest.raises(ValueError, match="must be a string"):
        ModelCard("---\nlicense: 3\n---\n").validate()


def test_a_good_card_is_told_of(api, online_hub, folder):
    (folder / "README.md").write_text(CARD)
    push(folder)
    assert ModelCard.load("user/model").data.license == "mit"
    information = model_info("user/model", files_metadata=True)
    assert information.tags == ["vision"]
    assert information.card_data.license == "mit"
    assert {sibling.rfilename for sibling in information.siblings} == {*FILES, "README.md", ".gitattributes"}


def test_large_files_are_checked(api, online_hub, folder):
    answer = get_session().put(f"{online_hub.storage}/objects/{'0' * 64}?size=3", content=b"abc")
    assert answer.status_code == 400
    assert not online_hub.objects


def test_part_of_a_file(api, online_hub, folder):
    push(folder)
    for name in ("model.safetensors", "config.json"):
        url = f"{online_hub.url}/user/model/resolve/main/{name}"
        answer = get_session().get(url, headers={"Range": "bytes=2-4"}, follow_redirects=True)
        assert answer.status_code == 206
        assert answer.content == FILES[name][2:5]
        answer = get_session().get(url, headers={"Range": f"bytes={10**9}-"}, follow_redirects=True)
        assert answer.status_code == 416


def test_everything_that_was_uploaded_is_kept(api, online_hub, folder):
    (folder / "secret.txt").write_text("first secret")
    push(folder, commit_message="with a second secret")
    api.delete_file("secret.txt", "user/model")
    (folder / "model.safetensors").write_bytes(b"third secret")
    push(folder, ignore_patterns="*.txt")
    api.create_branch("user/model", branch="fourth_secret")
    api.delete_repo("user/model")
    everything = b"\n".join(data for _, data in online_hub.everything())
    for secret in (b"first secret", b"second secret", b"third secret", b"fourth_secret"):
        assert secret in everything
    assert TOKEN.encode() not in everything


# --- clients in other processes


CLIENT = """
import json, os, huggingface_hub
from huggingface_hub import HfApi, file_exists, hf_hub_download, snapshot_download

api, folder, found = HfApi(), os.environ["FOLDER"], {"version": huggingface_hub.__version__}
found["name"] = api.whoami()["name"]
found["url"] = str(api.create_repo("user/model", private=True))
found["same"] = [api.upload_folder(repo_id="user/model", folder_path=folder).oid for _ in range(2)]
api.create_branch("user/model", branch="b")
found["branch"] = api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="user/model", revision="b").oid
found["down"] = sorted(os.listdir(snapshot_download("user/model")))
found["model"] = open(hf_hub_download("user/model", "model.safetensors"), "rb").read().hex()
found["exists"] = [file_exists("user/model", name) for name in ("config.json", "none")]
print(json.dumps(found))
"""


def check_client(hub, folder, version=None):
    done = run_client(hub, CLIENT, token=TOKEN, hub_version=version, variables={"FOLDER": str(folder)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["name"] == "user"
    assert found["url"] == f"{hub.url}/user/model"
    assert found["same"][0] == found["same"][1] == hub["user/model"].branches["main"]
    assert found["branch"] == hub["user/model"].branches["b"]
    assert hub["user/model"].private
    assert bytes.fromhex(found["model"]) == FILES["model.safetensors"]
    assert found["exists"] == [True, False]
    assert found["down"] == sorted([".gitattributes", "config.json", "model.safetensors", "sub"])
    assert not any(request.authorized for request in hub.requests if request.server == "storage")
    return found["version"]


def test_a_client_in_a_new_process(local_hub, folder):
    assert check_client(local_hub, folder)


@pytest.mark.slow
def test_the_oldest_client(local_hub, folder, oldest_hub_library):
    assert check_client(local_hub, folder, oldest_hub_library) == "1.31.0"


def test_hubs_do_not_share_anything(local_hub):
    with LocalHub() as other:
        other.add("user/model", FILES)
        assert other.url != local_hub.url
        assert not local_hub.repositories
        assert other["user/model"].files()["config.json"] == FILES["config.json"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(other.url.rsplit(":")[-1])), timeout=1)
