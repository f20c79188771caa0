"""The local Hub's faults, as the real clients see them."""

from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, whoami
from huggingface_hub.utils import get_session

from .local_hub import TOKEN
from .small_uploads import FILES, push, uploaded


@pytest.mark.parametrize("path", ["/preupload/", "/objects/batch", "/objects/[0-9a-f]"])
@pytest.mark.parametrize("action", [500, 429, "cut", "lost"])
def test_faults_that_clients_get_over(api, online_hub, folder, path, action):
    fault = online_hub.fail("*", path, action, times=2, seconds=7)
    push(folder)
    assert fault.fired == 2
    assert uploaded(online_hub) == FILES
    assert online_hub.waits == ([8.0, 8.0] if action == 429 else [1, 2])


@pytest.mark.parametrize("action", [500, 401, 403, 429, "cut"])
@pytest.mark.parametrize("path", ["/objects/[0-9a-f]", "/commit/"])
def test_faults_that_last(api, online_hub, folder, path, action):
    online_hub.fail("*", path, action, times=None)
    with pytest.raises(Exception, match=r".") as caught:
        push(folder)
    texts = [str(caught.value), str(caught.value.__cause__)]
    expected = "" if action == "cut" else str(action)
    assert any(expected in text for text in texts)
    assert TOKEN not in "".join(texts)
    assert not online_hub["user/model"].pushes()
    online_hub.heal()
    push(folder)
    assert uploaded(online_hub) == FILES


def test_a_fault_in_the_middle(api, online_hub, folder):
    (folder / "second.safetensors").write_bytes(b"second" * 100)
    fault = online_hub.fail("PUT", "/objects/", 401, after=1)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        push(folder)
    assert fault.fired == 1
    assert len(online_hub.objects) == 1
    push(folder)
    assert len(online_hub.objects) == 2
    assert len(online_hub["user/model"].pushes()) == 1


def test_an_answer_that_is_lost(api, online_hub, folder):
    """The commit was made, the client does not know: a second push finds nothing to do."""
    online_hub.fail("POST", "/commit/", "lost")
    with pytest.raises(Exception, match=r"(?i)disconnect|reset"):
        push(folder)
    assert uploaded(online_hub) == FILES
    push(folder)
    assert len(online_hub["user/model"].pushes()) == 1


def test_a_download_that_is_cut(api, online_hub, folder, tmp_path):
    push(folder)
    online_hub.fail("GET", "/objects/", "cut")
    assert Path(hf_hub_download("user/model", "model.safetensors")).read_bytes() == FILES["model.safetensors"]
    assert len(online_hub.asked("GET", "/objects/")) == 2


def test_a_slow_server(api, online_hub, folder):
    online_hub.fail("GET", "whoami", "slow", seconds=30)
    with pytest.raises(Exception, match="timed out"):
        get_session().get(f"{online_hub.url}/api/whoami-v2", timeout=0.1)
    assert whoami()["name"] == "user"


def test_a_file_that_changes_under_way(api, online_hub, folder):
    path = folder / "model.safetensors"
    online_hub.before("/objects/batch", lambda request: path.write_bytes(b"changed" * 10))
    with pytest.raises(Exception, match=r"."):
        push(folder)
    assert not online_hub["user/model"].pushes()
    push(folder)
    assert uploaded(online_hub)["model.safetensors"] == b"changed" * 10
