"""What several commands share: options for data and models, tables and JSON."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel

from ..backbones import as_classifier
from ..data import check_table, load_saliency_dataset
from ..hub.load import load_guided
from ..studies.comparison.records import jsonable
from .parsing import as_dict


@dataclass
class DataArguments:
    """Which data, and what its columns are called."""

    data: str = field(metadata={"help": "Folder with metadata.csv or metadata.jsonl, or a data set's Hub id."})
    split_column: str | None = field(default=None, metadata={"help": "Column that names the split (default: split)."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the pictures (default: found)."})
    label_column: str | None = field(default=None, metadata={"help": "Column with the labels (default: found)."})
    saliency_column: str | None = field(default=None, metadata={"help": "Column with the maps (default: found)."})
    group_column: str | None = field(
        default=None, metadata={"help": "Column with the patient, finger or tile; no group may cross a split."}
    )
    weight_column: str | None = field(default=None, metadata={"help": "Column with a weight for each row."})
    where: dict | str | None = field(default=None, metadata={"help": 'Rows to keep, as JSON: {"source": "site_a"}.'})

    def load(self, label_names: Sequence[str] | None = None) -> DatasetDict:
        """Loads the data set that the options describe; `label_names` fixes its class list."""
        return load_saliency_dataset(**self.load_arguments(), label_names=label_names)

    def load_arguments(self) -> dict[str, Any]:
        """The options as arguments of [`load_saliency_dataset`]."""
        return {
            "path": self.data,
            "split_column": self.split_column,
            "image_column": self.image_column,
            "label_column": self.label_column,
            "saliency_column": self.saliency_column,
            "group_column": self.group_column,
            "weight_column": self.weight_column,
            "where": as_dict("where", self.where) or None,
        }

    def load_for(self, model: PreTrainedModel) -> DatasetDict:
        """
        Loads the data set that a trained model is to be judged on, with the model's classes.

        Raises:
            ValueError: if the data's classes are others, or in another order.
        """
        names = class_names(model)
        # A model without class names says how many there are, not which.
        placeholders = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
        dataset = self.load(None if placeholders else names)
        check_classes(model, *dataset.values())
        return dataset


def split_of(dataset: DatasetDict, argument: str, name: str) -> Any:
    """
    One split of a data set.

    Raises:
        ValueError: naming the splits that there are.
    """
    if name not in dataset:
        raise ValueError(f'{argument}="{name}" is not a split of the data; it has {", ".join(dataset)}.')
    return dataset[name]


def load_model(path: str) -> PreTrainedModel:
    """
    Loads a trained classifier in evaluation mode: from a folder or the Hub as [`load_guided`], or a name of timm.

    Raises:
        ValueError: if none is named, and as [`load_guided`].
        OSError: as [`load_guided`].
    """
    if not path:
        raise ValueError("model: give the folder or Hub id of a trained model, --model FOLDER.")
    if "/" not in path and not Path(path).exists():
        return as_classifier(path, pretrained=True).eval()
    return load_guided(path).model


def check_classes(model: PreTrainedModel, *datasets: Any) -> None:
    """
    Checks that labels mean to the data what they mean to the model.

    Raises:
        ValueError: if the classes are others, or in another order.
    """
    for dataset in datasets:
        check_table(dataset, label_names=class_names(model), training=False)


def class_names(model: PreTrainedModel) -> list[str]:
    """A model's class names, in its order."""
    return [model.config.id2label[index] for index in range(model.config.num_labels)]


def writable(argument: str, path: str, suffixes: Sequence[str] = (), folder: bool = False) -> Path:
    """
    Checks where a result goes, before any compute.

    Args:
        argument (`str`): the option, for messages.
        path (`str`): the file, or the folder.
        suffixes (sequence of `str`, *optional*): the endings that the file may have.
        folder (`bool`, *optional*, defaults to `False`): whether it is a folder.

    Returns:
        `Path`

    Raises:
        ValueError: if it cannot be written; the message names the option and what stands in the way.
    """
    place = Path(path)
    if suffixes and place.suffix.lower() not in suffixes:
        raise ValueError(f'{argument}="{path}" has to end in {", ".join(suffixes)}.')
    if place.exists() and place.is_dir() != folder:
        raise ValueError(f'{argument}="{path}" is a {"file" if folder else "folder"}; name another.')
    existing = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    if existing != place and not existing.is_dir():
        raise ValueError(f'{argument}="{path}" cannot be written: {existing} is a file; name another.')
    if not os.access(existing, os.W_OK):
        raise ValueError(f'{argument}="{path}" cannot be written: no permission for {existing}; name another.')
    return place


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose columns are aligned; numbers with four digits."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[index]) for line in [list(columns), *cells]) for index in range(len(columns))]
    lines = [list(columns), ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def write_json(path: str | Path, content: Any) -> Path:
    """Writes JSON, with null for NaN, which JSON does not have; gives the path back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(jsonable(content), indent=2) + "\n")
    return path
