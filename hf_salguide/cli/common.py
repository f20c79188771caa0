"""What several commands share: options for data and models, tables and JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel

from ..backbones import as_classifier
from ..data import load_saliency_dataset
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

    def load(self) -> DatasetDict:
        """Loads the data set that the options describe."""
        return load_saliency_dataset(
            self.data,
            split_column=self.split_column,
            image_column=self.image_column,
            label_column=self.label_column,
            saliency_column=self.saliency_column,
            group_column=self.group_column,
            weight_column=self.weight_column,
            where=as_dict("where", self.where) or None,
        )


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
    """Loads a trained classifier from a folder or the Hub, in evaluation mode."""
    return as_classifier(path, pretrained=True).eval()


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
    path.write_text(json.dumps(_jsonable(content), indent=2) + "\n")
    return path


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
