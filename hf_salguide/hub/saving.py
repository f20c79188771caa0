"""What is written beside a saved model's weights, and which files of a folder are published."""

import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from .record import FILE as RECORD_FILE
from .record import PANEL, CardRecord

ARGUMENTS_FILE = "training_args.json"
PICKLED_ARGUMENTS_FILE = "training_args.bin"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
# What a trainer writes into a folder for others to load, but for shards and the card.
MODEL_FILES = ("config.json", WEIGHTS_FILE, "preprocessor_config.json")
ADAPTER_FILES = ("adapter_config.json", ADAPTER_WEIGHTS_FILE, "saliency_guide.json")
BESIDE_FILES = ("preprocessor_config.json", ARGUMENTS_FILE, RECORD_FILE)
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".sav", ".tar", ".distcp")
WRAPPED = "timm_model."  # what transformers' wrapper puts before timm's own names
# Arguments that say where a run was, not what it did, and those that may hold a secret.
LEFT_OUT = ("output_dir", "logging_dir", "resume_from_checkpoint", "local_rank", "run_name")


def write_under_timm_names(folder: str | Path) -> None:
    """
    Renames the weights of a wrapped timm model to timm's own names, under which timm and transformers both load them.

    `timm.create_model("local-dir:FOLDER")` knows no other names; transformers' wrapper takes either. The file is
    replaced at once: it is never half written.

    Args:
        folder (`str` or `Path`): where `save_pretrained` has saved a `TimmWrapperForImageClassification`. Folders
            without a single `model.safetensors` (adapters alone, shards) are left as they are.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        if not any(name.startswith(WRAPPED) for name in names):
            return
        tensors = {name.removeprefix(WRAPPED): file.get_tensor(name) for name in names}
    part = path.with_name(f"_{path.name}")
    save_file(tensors, part, metadata=metadata)
    part.replace(path)


def published_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Training arguments as they may be read by anybody: no tokens, no paths.

    Args:
        values (`dict`): `TrainingArguments.to_dict()`.

    Returns:
        `dict` without tokens and folders of the run; of what looks like a path the last part stays.
    """
    kept = {name: value for name, value in values.items() if name not in LEFT_OUT and not name.endswith("_token")}
    return {name: value if name == "hub_model_id" else _without_folders(value) for name, value in kept.items()}


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(_without_folders(str(name))): _without_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str) and re.search(r"[/\\]|^~", text):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1].removeprefix("~")
    return value


def write_training_arguments(folder: str | Path, values: Mapping[str, Any]) -> None:
    """
    Writes `training_args.json` in the place of `training_args.bin`, a pickle, which nobody should have to open.

    Args:
        folder (`str` or `Path`): where the model is saved.
        values (`dict`): `TrainingArguments.to_dict()`.
    """
    content = json.dumps(published_arguments(values), indent=2, sort_keys=True, default=str)
    (Path(folder) / ARGUMENTS_FILE).write_text(content + "\n", encoding="utf-8")
    (Path(folder) / PICKLED_ARGUMENTS_FILE).unlink(missing_ok=True)


def saved_files(folder: str | Path, adapters: bool | None = None) -> list[str]:
    """
    The files of a folder that belong to the model saved there, the card apart: no file of anybody else.

    Args:
        folder (`str` or `Path`): where a trainer has saved a model.
        adapters (`bool`, *optional*): whether it is adapters alone. Defaults to what the folder holds.

    Returns:
        `list` of `str`: their names, those that exist.

    Raises:
        ValueError: if the folder does not exist, holds no model in safetensors, or both a model and adapters, or one
            of the files is a link to somewhere else.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'folder="{folder}" is no folder; give the output_dir of a training, where its model is.')
    weights = [WEIGHTS_FILE] if (folder / WEIGHTS_FILE).is_file() else _shards(folder)
    whole = weights if (folder / "config.json").is_file() else []
    added = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    partial = added if {"adapter_config.json", ADAPTER_WEIGHTS_FILE} <= set(added) else []
    if adapters is None and whole and partial:
        raise ValueError(
            f'folder="{folder}" holds a model ({whole[0]}) and adapters ({ADAPTER_WEIGHTS_FILE}), of two trainings; '
            "move one of them to a folder of its own."
        )
    chosen = partial if adapters or (adapters is None and partial) else whole
    if not chosen:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise ValueError(
            f'folder="{folder}" holds no model (config.json and {WEIGHTS_FILE}), but {held}; give the output_dir of '
            "a training, or one of its checkpoints. Weights that are a pickle are not published: save them with "
            "save_pretrained."
        )
    names = [*([] if chosen is partial else ["config.json"]), *chosen]
    names += [name for name in BESIDE_FILES if (folder / name).is_file()]
    record = CardRecord.read(folder)
    if record is not None and record.panel == PANEL and (folder / PANEL).is_file():
        names.append(PANEL)
    for name in names:
        # Weights may well be links, into a cache; what else is one could name any file of this machine.
        outside = not (folder / name).resolve().is_relative_to(folder.resolve())
        if outside and not name.endswith(".safetensors"):
            raise ValueError(f"{folder / name} is a link out of its folder, and is not published; put a copy there.")
    return names


def _shards(folder: Path) -> list[str]:
    """The index of weights in several files, and these, where they are all there."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return []
    shards = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    ours = all(SHARD.fullmatch(name) and (folder / name).is_file() for name in shards)
    return [INDEX_FILE, *shards] if ours and shards else []


def other_kind(names: Sequence[str]) -> list[str]:
    """The files of a repository that would contradict these: adapters beside a model, or a model beside adapters."""
    if "adapter_config.json" in names:
        return [name for name in MODEL_FILES if name not in names]
    return [name for name in ADAPTER_FILES if name not in names]


def may_be_pickle(path: Path) -> bool:
    """Whether a file looks like one that runs code where it is opened, by its name or its first bytes."""
    if path.suffix.lower() in PICKLES:
        return True
    with path.open("rb") as file:
        start = file.read(256)
    if start[:1] == b"\x80" or (start[:6] == b"\x93NUMPY" and b"|O" in start):
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith((".pkl", ".pickle")) for name in archive.namelist())
    return False
