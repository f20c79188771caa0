"""The token is in nothing that is uploaded, written or logged, however it is given and whatever goes wrong."""

import base64
import io
import logging
import pickle
import traceback
import zipfile
import zlib

import pytest
import torch
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_salguide.cli import main
from hf_salguide.hub import PushError

from .clients import run_client
from .hub_state import User
from .published import train, trainer_of, tree_of

SECRET = "hf_OnceUponAMidnightDrearyWhileIPondered"
LOGGERS = (None, "transformers", "huggingface_hub", "hf_salguide", "httpx", "httpx2", "httpcore", "httpcore2")


def forms_of(secret):
    """How a secret may be written: plain, in UTF-16, in base64 at each of the three alignments."""
    plain = secret.encode()
    shifted = [base64.b64encode(b"x" * shift + plain)[4:-4] for shift in range(3)]
    return [plain, secret.encode("utf-16-le"), *shifted]


def opened(place, data):
    """A file, and what lies in it where it is an archive or compressed."""
    yield place, data
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from opened(f"{place}/{name}", archive.read(name))
    if data[:1] == b"\x78":
        try:
            yield f"{place} (inflated)", zlib.decompress(data)
        except zlib.error:
            return


def places_of(secret, named):
    """Where a secret is found, of pairs of a place and its bytes."""
    forms = forms_of(secret)
    inside = [pair for place, data in named for pair in opened(place, data)]
    assert inside
    return [place for place, data in inside if any(form in data for form in forms)]


@pytest.fixture
def heard():
    """Everything that is logged, by anybody, at any level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    verbosity = transformers_logging.get_verbosity()
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield stream
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)
    transformers_logging.set_verbosity(verbosity)


@pytest.fixture
def hub(online_hub, monkeypatch):
    """A Hub that knows nobody but the owner of the secret; no token in the environment."""
    monkeypatch.delenv("HF_TOKEN")
    online_hub.users = {SECRET: User("user")}
    return online_hub


def everywhere(hub, folder, heard, capfd):
    """What was uploaded, what lies in the run's folder and in the clients' caches, what was said."""
    out, err = capfd.readouterr()
    named = [*hub.everything(), *tree_of(folder).items(), *tree_of(hub.home).items()]
    assert len(heard.getvalue()) > 1000
    return [*named, ("stdout", out.encode()), ("stderr", err.encode()), ("log", heard.getvalue().encode())]


def test_it_would_be_found(online_hub, tmp_path):
    """In a file, a message, an archive, a pickle of arguments, compressed, and in other codes."""
    arguments = TrainingArguments(str(tmp_path), hub_token=SECRET)
    torch.save({"arguments": arguments.hub_token}, tmp_path / "saved.bin")
    planted = {
        "a.json": f'{{"token": "{SECRET}"}}'.encode(),
        "saved.bin": (tmp_path / "saved.bin").read_bytes(),
        "b.pkl": pickle.dumps(arguments),
        "c.z": zlib.compress(SECRET.encode()),
        "d.txt": base64.b64encode(f"user:{SECRET}".encode()),
        "e.txt": SECRET.encode("utf-16"),
    }
    online_hub.add("user/planted", planted, message=f"Bearer {SECRET}")
    found = " ".join(places_of(SECRET, online_hub.everything()))
    for place in [*planted, "message"]:
        assert f" {place}" in f" {found}", place
    assert not places_of(SECRET, [("a", b"something else")])


@pytest.mark.parametrize("given", ["arguments", "environment", "login", "call"])
def test_it_is_nowhere(hub, tmp_path, heard, capfd, monkeypatch, given):
    if given == "environment":
        monkeypatch.setenv("HF_TOKEN", SECRET)
    if given == "login":
        (hub.home / "token").write_text(SECRET)
    if given == "call":
        trainer = trainer_of("timm_resnet", tmp_path, "user/model", push_to_hub=False)
        trainer.train()
        trainer.push_to_hub(token=SECRET)
    else:
        token = {"hub_token": SECRET} if given == "arguments" else {}
        trainer = train("timm_resnet", tmp_path, "user/model", "all_checkpoints", **token)
        trainer.push_to_hub()
        assert {path.split("/")[0] for path in hub["user/model"].files() if "/" in path} >= {"checkpoint-1"}
    assert hub["user/model"].pushes()
    (hub.home / "token").unlink(missing_ok=True)
    assert not places_of(SECRET, everywhere(hub, tmp_path, heard, capfd))


@pytest.mark.parametrize("path", ["repos/create", "/objects/batch", "/commit/"])
@pytest.mark.parametrize("status", [401, 403, 500, "cut"])
def test_it_is_in_no_message_of_a_push_that_fails(hub, tmp_path, heard, capfd, status, path):
    trainer = trainer_of("timm_resnet", tmp_path, "user/model", push_to_hub=False, hub_token=SECRET)
    hub.fail("*", path, status, times=None)
    with pytest.raises(PushError) as caught:
        trainer.push_to_hub()
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    found = [*everywhere(hub, tmp_path, heard, capfd), ("traceback", text.encode())]
    assert not places_of(SECRET, found)


def test_a_hub_that_repeats_it_is_not_repeated(hub, tmp_path):
    """What a server, or a proxy before it, says of a request is told without the token that came with it."""
    trainer = trainer_of("timm_resnet", tmp_path, "user/model", push_to_hub=False)
    hub.says = f"Bad header: Bearer {SECRET}"
    hub.fail("*", "/commit/", 403, times=None)
    with pytest.raises(PushError, match="403") as caught:
        trainer.push_to_hub(token=SECRET)
    assert not places_of(SECRET, [*tree_of(tmp_path).items(), ("message", str(caught.value).encode())])


def test_pushes_of_the_training_that_fail(hub, tmp_path, heard, capfd):
    hub.fail("*", "/commit/", 500, times=None)
    trainer = train("timm_resnet", tmp_path, "user/model", "checkpoint", hub_token=SECRET)
    assert trainer.state.global_step == 2
    trainer._finish_current_push()
    assert "status 500" in heard.getvalue() or "500 Internal" in heard.getvalue()
    assert not hub["user/model"].pushes()
    assert not places_of(SECRET, everywhere(hub, tmp_path, heard, capfd))


def test_the_command(hub, tmp_path, heard, capfd, monkeypatch):
    trainer = trainer_of("timm_resnet", tmp_path, "user/model", push_to_hub=False)
    trainer.save_model()
    monkeypatch.setenv("HF_TOKEN", SECRET)
    fault = hub.fail("*", "/commit/", 403)
    assert main(["push", str(tmp_path), "user/model"]) != 0
    assert fault.fired
    assert main(["push", str(tmp_path), "user/model"]) == 0
    assert hub["user/model"].pushes()
    assert not places_of(SECRET, everywhere(hub, tmp_path, heard, capfd))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["newest", "oldest"])
def test_a_process_that_tells_all_it_does(local_hub, tmp_path, version, request):
    """huggingface_hub writes each request as a command with `HF_DEBUG`; TensorBoard is given the arguments."""
    pytest.importorskip("tensorboard")
    library = request.getfixturevalue("oldest_hub_library") if version == "oldest" else None
    local_hub.users = {SECRET: User("user")}
    code = f"""
import logging
logging.basicConfig(level=logging.DEBUG)
import transformers
transformers.logging.set_verbosity_debug()
transformers.logging.enable_propagation()
from hub.published import train
more = {{"report_to": "tensorboard", "hub_token": {SECRET!r}}}
trainer = train("timm_resnet", {str(tmp_path)!r}, "user/model", "checkpoint", **more)
print(trainer.args)
trainer.push_to_hub()
print(trainer.args.to_json_string())
"""
    done = run_client(local_hub, code, token=SECRET, hub_version=library, variables={"HF_DEBUG": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "curl" in done.stderr
    said = [("stdout", done.stdout.encode()), ("stderr", done.stderr.encode())]
    named = [*local_hub.everything(), *tree_of(tmp_path).items(), *tree_of(local_hub.home).items(), *said]
    assert local_hub["user/model"].pushes()
    assert any("tfevents" in place for place, _ in named)
    assert not places_of(SECRET, named)
