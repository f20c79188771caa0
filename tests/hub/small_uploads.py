"""A small folder and a repository to push it to, for the tests of the local Hub itself."""

from huggingface_hub import upload_folder

FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 40, "sub/notes.txt": b"hello\n"}


def push(folder, **arguments):
    return upload_folder(repo_id="user/model", folder_path=folder, **arguments)


def uploaded(hub, revision="main"):
    files = hub["user/model"].files(revision)
    assert files.pop(".gitattributes")
    return files
