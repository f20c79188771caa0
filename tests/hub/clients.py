"""The real clients of a local Hub: in a new process, with any version of huggingface_hub, or in this one."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from .local_hub import LocalHub

# Clients wait longer and longer between tries; here they do not.
IMPATIENT = """
import time as _time, types as _types, huggingface_hub.utils._http as _http
_http.time = _types.SimpleNamespace(**{**vars(_time), "sleep": lambda seconds: None})
"""


@dataclass
class Finished:
    """A process that ended."""

    returncode: int
    stdout: str
    stderr: str


def environment(hub: LocalHub, token: str | None, hub_version: str | Path | None = None) -> dict[str, str]:
    """The surroundings of a client's process: this Hub and no other, caches of its own."""
    dropped = ("HF_", "HUGGING", "TRANSFORMERS_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(dropped) and "PROXY" not in name.upper() and name != "PYTHONPATH"
    }
    root = str(Path(__file__).parents[2])
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(hub.home),
        "NO_PROXY": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # another number of threads adds up in another order
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([*([str(hub_version)] if hub_version else []), root, f"{root}/tests"]),
    }
    return kept | settings | ({"HF_TOKEN": token} if token else {})


def run_client(
    hub: LocalHub,
    code: str | Path,
    *,
    token: str | None,
    hub_version: str | Path | None = None,
    python: str = sys.executable,
    variables: dict[str, str] | None = None,
    patient: bool = False,
    timeout: float = 300,
) -> Finished:
    """
    Runs a client in a new process.

    Args:
        hub (`LocalHub`): its Hub.
        code (`str` or `Path`): what to run, or the file in which it stands.
        token (`str`, *optional*): what `HF_TOKEN` is set to; `None` for nobody.
        hub_version (`str` or `Path`, *optional*): a folder with another version of huggingface_hub.
        python (`str`): the interpreter.
        variables (`dict`, *optional*): further environment variables.
        patient (`bool`): whether it waits between tries, as clients do.
        timeout (`float`): in seconds.
    """
    text = code.read_text() if isinstance(code, Path) else code
    finished = subprocess.run(
        [python, "-c", ("" if patient else IMPATIENT) + text],
        env=environment(hub, token, hub_version) | (variables or {}),
        cwd=hub.home,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(finished.returncode, finished.stdout, finished.stderr)


def connect(hub: LocalHub, monkeypatch, token: str | None) -> list[float]:
    """
    Lets the huggingface_hub of this process, transformers and timm with it, talk to a local Hub.

    Returns:
        `list[float]`: how long clients would have waited between tries; it grows as they do.
    """
    import transformers.utils.hub
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    for name in [name for name in os.environ if name.upper().startswith(("HF_TOKEN", "HUGGING", "HF_OIDC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    changed = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({*constants.HF_URL_HOSTS, "127.0.0.1"}),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HOME": str(hub.home),
        "HF_HUB_CACHE": str(hub.home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(hub.home / "hub"),
        "HF_TOKEN_PATH": str(hub.home / "token"),
        "HF_STORED_TOKENS_PATH": str(hub.home / "stored_tokens"),
    }
    for name, value in changed.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    origin = ("http", "127.0.0.1", int(hub.url.rsplit(":")[-1]))
    monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset({origin}), raising=False)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    waits: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": waits.append}))
    _http.close_session()
    return waits
