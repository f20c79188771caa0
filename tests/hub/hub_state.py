"""What a local Hub holds: users, repositories, branches, commits, files; and its rules for cards and names."""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import yaml

LFS_SUFFIXES = {
    ".arrow",
    ".bin",
    ".ckpt",
    ".h5",
    ".npy",
    ".npz",
    ".onnx",
    ".parquet",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
}
LFS_SUFFIXES |= {".safetensors", ".tar", ".zip"}
LARGE = 10 * 2**20  # bytes; from here on a file is stored as a large one, whatever its name
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES)).encode()
NAME_RULE = (
    "Only regular characters and '-', '_', '.' are accepted. '--' and '..' are forbidden. '-' and '.' cannot start or "
    'end the name. The name cannot end with ".git". Max length is 96.'
)
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class HubError(Exception):
    """An answer that is an error: its status, its message and the code that clients look for."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class User:
    name: str
    organizations: tuple[str, ...] = ()
    writes: bool = True

    def may_write(self, namespace: str) -> bool:
        return self.writes and namespace in (self.name, *self.organizations)


@dataclass(frozen=True)
class File:
    data: bytes
    large: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()
        )

    @cached_property
    def blob(self) -> str:
        """Git's name of what is stored in the commit: of a large file, the pointer."""
        data = self.pointer if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @cached_property
    def oid(self) -> str:
        """By which clients know a file that has not changed."""
        return self.sha256 if self.large else self.blob


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    description: str
    author: str
    parents: tuple[str, ...]
    files: dict[str, File] = field(repr=False)
    changed: tuple[str, ...]  # paths added, changed or deleted; none in a commit that changes nothing


@dataclass
class Repository:
    id: str
    owner: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)  # by oid, in the order in which they were made
    branches: dict[str, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def __post_init__(self) -> None:
        self.branches["main"] = ""
        self.add("main", "initial commit", "", self.owner, {".gitattributes": File(GITATTRIBUTES, large=False)})

    def add(self, branch: str, message: str, description: str, author: str, files: dict[str, File]) -> Commit:
        parent = self.branches[branch]
        before = self.commits[parent].files if parent else {}
        changed = tuple(sorted(path for path in before.keys() | files.keys() if before.get(path) != files.get(path)))
        text = f"{self.id} {next(self.numbers)} {parent} {message}"
        commit = Commit(
            hashlib.sha1(text.encode()).hexdigest(),
            message,
            description,
            author,
            (parent,) if parent else (),
            files,
            changed,
        )
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def commit(self, revision: str = "main") -> Commit:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self.commit(revision).files.items()}

    def history(self, revision: str = "main") -> list[Commit]:
        """From the newest commit back to the initial one, as clients are told."""
        commits = [self.commit(revision)]
        while commits[-1].parents:
            commits.append(self.commits[commits[-1].parents[0]])
        return commits

    def pushes(self, revision: str = "main") -> list[Commit]:
        """What clients committed, oldest first."""
        return self.history(revision)[-2::-1]

    def info(self, revision: str = "main") -> dict[str, Any]:
        """What is told of a model."""
        commit = self.commit(revision)
        card = metadata_of(commit.files["README.md"].data.decode()) if "README.md" in commit.files else None
        card = card or {}
        siblings = [
            {"rfilename": path, "size": len(file.data), "blobId": file.blob}
            | (
                {"lfs": {"sha256": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}}
                if file.large
                else {}
            )
            for path, file in sorted(commit.files.items())
        ]
        return {
            "_id": hashlib.sha1(self.id.encode()).hexdigest()[:24],
            "id": self.id,
            "modelId": self.id,
            "author": self.id.split("/")[0],
            "sha": commit.oid,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": self.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags", []),
            **{key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card},
            "cardData": card,
            "siblings": siblings,
        }

    def tree(self, revision: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders in a folder."""
        files = self.commit(revision).files
        inside = {path: file for path, file in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        entries = []
        folders = {
            str(parent)
            for path in inside
            for parent in PurePosixPath(path).parents
            if str(parent) not in (".", folder)
        }
        for path in sorted(folders):
            if (recursive or str(PurePosixPath(path).parent) == (folder or ".")) and path.startswith(folder):
                entries.append(
                    {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
                )
        for path, file in sorted(inside.items()):
            if recursive or str(PurePosixPath(path).parent) == (folder or "."):
                entries.append(entry_of(path, file))
        return entries


def entry_of(path: str, file: File) -> dict[str, Any]:
    large = (
        {"lfs": {"oid": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}} if file.large else {}
    )
    return {"type": "file", "oid": file.blob, "size": len(file.data), "path": path, **large}


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is stored as a large one: by its name, its size, or where it is no text."""
    return size > 0 and (PurePosixPath(path).suffix in LFS_SUFFIXES or size > LARGE or b"\0" in sample)


def check_name(name: str, refused: set[str] = frozenset()) -> None:
    wrong = name in refused or not re.fullmatch(r"[\w.-]{1,96}", name, re.ASCII) or "--" in name or ".." in name
    if wrong or name[0] in "-." or name[-1] in "-." or name.endswith(".git"):
        raise HubError(400, NAME_RULE)


def metadata_of(card: str) -> Any:
    """The front matter of a card; `None` where there is none."""
    found = FRONT_MATTER.match(card)
    return yaml.safe_load(found[1]) if found else None


def card_errors(card: str) -> list[str]:
    """What is wrong in a card's metadata."""
    try:
        metadata = metadata_of(card)
    except yaml.YAMLError as error:
        return [f"Invalid YAML in metadata: {error}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["metadata must be a mapping"]
    errors = []
    for key, kinds in (("license", (str, list)), ("language", (str, list)), ("base_model", (str, list))):
        if key in metadata and not isinstance(metadata[key], kinds):
            errors.append(f'"{key}" must be a string or an array')
    for key in ("library_name", "pipeline_tag"):
        if key in metadata and not isinstance(metadata[key], str):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "metrics", "datasets"):
        values = metadata.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            errors.append(f'"{key}" must be an array of strings')
    return errors + index_errors(metadata.get("model-index", []))


def index_errors(index: Any) -> list[str]:
    """What is wrong in a card's `model-index`."""
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for number, model in enumerate(index):
        at = f"model-index[{number}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            errors.append(f'"{at}.name" is required')
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list):
            errors.append(f'"{at}.results" is required')
            continue
        for row, result in enumerate(results):
            for part, keys in (("task", ("type",)), ("dataset", ("type", "name")), ("metrics", ())):
                value = result.get(part) if isinstance(result, dict) else None
                if not isinstance(value, list if part == "metrics" else dict) or not value:
                    errors.append(f'"{at}.results[{row}].{part}" is required')
                    continue
                missing = [key for key in keys if not isinstance(value.get(key), str) or not value[key]]
                errors.extend(f'"{at}.results[{row}].{part}.{key}" is required' for key in missing)
            for metric in (result.get("metrics") or []) if isinstance(result, dict) else []:
                if not isinstance(metric, dict) or not isinstance(metric.get("type"), str) or "value" not in metric:
                    errors.append(f'"{at}.results[{row}].metrics" need a type and a value')
    return errors
