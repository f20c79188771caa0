"""Local Hubs, and the clients that talk to them."""

import shutil
import subprocess
import sys

import pytest
from filelock import FileLock

from . import published
from .clients import connect
from .local_hub import TOKEN, LocalHub
from .small_uploads import FILES

OLDEST = "1.31.0"


@pytest.fixture
def local_hub():
    """An empty Hub."""
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def online_hub(local_hub, monkeypatch):
    """
    An empty Hub that the huggingface_hub of this process talks to, as "user" (`HF_TOKEN`).

    `waits` are the seconds that clients would have waited between tries.
    """
    from huggingface_hub.utils._http import close_session

    local_hub.waits = connect(local_hub, monkeypatch, TOKEN)
    yield local_hub
    close_session()


@pytest.fixture(scope="session")
def oldest_hub_library(tmp_path_factory, worker_id):
    """A folder with the oldest supported huggingface_hub and what it needs; one for all workers of the test run."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / f"huggingface_hub_{OLDEST}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(folder),
    ]
    with FileLock(f"{folder}.lock"):
        if not (folder / "huggingface_hub").exists():
            done = subprocess.run(
                [*command, f"huggingface_hub=={OLDEST}"], capture_output=True, text=True, timeout=300, check=False
            )
            if done.returncode:
                pytest.skip(f"pip cannot install huggingface_hub {OLDEST}: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The output folder of a short training, with what a run leaves behind."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    trainer = published.trainer_of("timm_resnet", folder, "user/model", push_to_hub=False)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def folder(tmp_path):
    """A small folder to upload."""
    path = tmp_path / "model"
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def api(online_hub):
    """A client that has made user/model."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("user/model")
    return api
