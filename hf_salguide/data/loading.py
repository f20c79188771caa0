"""`load_saliency_dataset`: from a folder, the Hub, or any data set of the `datasets` library to one form."""

import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    load_dataset,
    load_from_disk,
)
from PIL import Image as PILImage
from tqdm.auto import tqdm

from .adapt import adapt_datasets
from .folder import FolderRow, FolderTable, metadata_file, read_folder
from .images import read_saliency
from .labels import as_integer, similar_names
from .report import Problem, raise_errors
from .tables import RESERVED, TableOptions, split_order

logger = logging.getLogger(__name__)
_STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def load_saliency_dataset(
    path: str | os.PathLike | Dataset | DatasetDict,
    split_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    saliency_column: str | None = None,
    where: Mapping[str, Any] | None = None,
    group_column: str | None = None,
    weight_column: str | None = None,
    label_names: Sequence[str] | None = None,
) -> DatasetDict:
    """
    Loads pictures, labels and human saliency.

    A folder holds `metadata.csv` or `metadata.jsonl` with the columns `file_name`, `mask_file_name` (empty = not
    annotated; several annotators' files are joined with `;`, or a list in jsonl), `label` and/or `label_name`, and
    optionally `split`. Files are named relative to the folder and may not leave it. Maps are grey pictures, white =
    salient, or `.npy` arrays (float in [0, 1], bool, uint8 or uint16), which are converted to 16-bit PNG in memory.
    Pictures stay on disk until a row is read. Whatever the table shows is checked here.

    Args:
        path: a folder, a Hub id, the local path of a `datasets` data set, or a `Dataset` or `DatasetDict`.
        split_column (`str`, *optional*): the column of split names, `split` where there is one. `val`, `valid` and
            `validation` become `validation`, other names stay, rows with an empty split are dropped. Without such a
            column a data set keeps its splits, and a folder is all `train`.
        image_column (`str`, *optional*): the column of pictures: `file_name` in a folder; elsewhere found by feature
            type and usual name (`image`, `img`, `picture`).
        label_column (`str`, *optional*): the column of classes: `label` and `label_name` in a folder; elsewhere found
            (`label`, `labels`, `class`, ...).
        saliency_column (`str`, *optional*): the column of maps: `mask_file_name` in a folder; elsewhere found
            (`saliency`, `mask`, ...).
        where (`Mapping`, *optional*): selects rows, `{"source": "synth_hard"}`; a list of values means any of them.
        group_column (`str`, *optional*): patient, finger, tile: what must not cross a split.
        weight_column (`str`, *optional*): a weight of each row's loss, finite and 0 or more.
        label_names (`Sequence[str]`, *optional*): the class list of a model that is to be evaluated. Names are looked
            up in it, integers without names are places in it, and the rows may all be of one class.

    Returns:
        `DatasetDict`. Each split has `image` (`Image`, decoded when a row is read), `label` (`ClassLabel`, the same
        list everywhere: names in the order of their integers, or sorted where there are no integers), `saliency`
        (`Image`, a list of them where a picture has several annotators; `None` = not annotated), `file_name` where it
        is known, `group` and `weight` where asked for, and the table's other columns.

    Raises:
        FileNotFoundError: for a path that does not exist and is no Hub id either.
        ValueError: for missing or unknown columns, a missing file, a file that leaves the folder, a file named twice,
            labels that are missing, contradictory, outside the class list or in another order than `label_names`, one
            class only without `label_names`, a group in two splits, a bad weight, a `.npy` map with NaN or out of
            range, both metadata files, no rows. The message lists the first few files and the remedy.
    """
    options = TableOptions(
        split_column, image_column, label_column, saliency_column, where, group_column, weight_column, label_names
    )
    source = open_source(path)
    if isinstance(source, Dataset | DatasetDict):
        name = f'"{path}"' if isinstance(path, str | os.PathLike) else "the data set"
        return adapt_datasets(source, name, options)
    folder, file = source
    table, problems = read_folder(folder, file, options)
    raise_errors(problems, f"{file} cannot be loaded")
    report_table(table, file)
    dataset, problems = assemble(table)
    raise_errors(problems, f"{file} cannot be loaded")
    return dataset


def open_source(path: Any) -> tuple[Path, Path] | Dataset | DatasetDict:
    """
    Finds out what a path is: a folder with a table (folder and table are returned), or a `datasets` data set.

    Raises:
        FileNotFoundError, ValueError: as [`load_saliency_dataset`].
    """
    if isinstance(path, Dataset | DatasetDict):
        return path
    if isinstance(path, IterableDataset | IterableDatasetDict):
        raise ValueError(
            f"path is a {type(path).__name__}, which cannot be looked through; give it to the trainer as it is, its "
            "columns renamed to image, label (integers) and saliency: stream.rename_columns({...})."
        )
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"path is a {type(path).__name__}; give a folder, a Hub id, a datasets.Dataset or a datasets.DatasetDict."
        )
    local = Path(path)
    if local.is_file():
        raise ValueError(f'path="{path}" is a file; give the folder that holds it.')
    if not local.is_dir():
        if local.is_absolute() or str(path).startswith(".") or len(local.parts) > 2:
            raise FileNotFoundError(f'path="{path}" does not exist; give a folder or the id of a data set on the Hub.')
        return _load_dataset(str(path))
    file = metadata_file(local)
    if file is not None:
        return local, file
    if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
        return load_from_disk(str(local))
    if not any(local.iterdir()):
        raise ValueError(f'path="{path}" is an empty folder; it needs metadata.csv or metadata.jsonl.')
    return _load_dataset(str(local))


def _load_dataset(path: str) -> DatasetDict:
    try:
        return load_dataset(path)
    except Exception as error:
        raise FileNotFoundError(
            f'path="{path}" is neither a folder with metadata.csv or metadata.jsonl nor a data set that the datasets '
            f"library can load ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})."
        ) from error


def report_table(table: FolderTable, file: Path) -> None:
    """Says what was left out of a table."""
    if table.dropped:
        logger.warning("%s: %d rows have an empty split and are left out.", file, table.dropped)
    similar = similar_names(table.label_names)
    if similar:
        logger.warning("%s: class names differ only in case: %s.", file, ", ".join(similar))
    if table.saliency_column is None:
        logger.warning(
            "%s has no column mask_file_name, only %s: no picture is annotated. Name the column with saliency_column.",
            file,
            ", ".join(table.columns),
        )
    for name in ("group", "weight"):
        if name in table.columns and not getattr(table, f"has_{name}s"):
            logger.warning('%s: the column "%s" is left out; name it with %s_column to use it.', file, name, name)


def _png_of_array(path: str) -> bytes:
    """A `.npy` map as a 16-bit PNG: what the `datasets` library can decode, at a rounding of 1/131070."""
    values = read_saliency(path)
    deep = (values.to(torch.float64) * 65535).round().numpy().astype(np.uint16)
    stream = io.BytesIO()
    PILImage.fromarray(deep).save(stream, "PNG")
    return stream.getvalue()


def _saliency_structs(row: FolderRow) -> list[dict[str, Any]]:
    return [
        {"bytes": _png_of_array(path) if path.lower().endswith(".npy") else None, "path": path}
        for path in row.saliency
    ]


def _is_integer(text: str) -> bool:
    value = as_integer(text)
    return value is not None and str(value) == text and abs(value) < 2**53


def _is_float(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and repr(value) == text


def _typed(values: list[Any]) -> pa.Array:
    """A column of text as integers or floats where that loses nothing: `001` is a name."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, str) for value in present):
        if all(_is_integer(value) for value in present):
            return pa.array([None if value is None else int(value) for value in values], type=pa.int64())
        if all(_is_integer(value) or _is_float(value) for value in present):
            return pa.array([None if value is None else float(value) for value in values], type=pa.float64())
        return pa.array(values, type=pa.string())
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], type=pa.string())


def assemble(table: FolderTable) -> tuple[DatasetDict, list[Problem]]:
    """
    Builds the data set of a checked table, `.npy` maps read and converted; rows that fail are left out.

    Returns:
        `tuple` of the `DatasetDict` and the problems met in `.npy` maps.
    """
    problems: list[Problem] = []
    arrays = any(path.lower().endswith(".npy") for row in table.rows for path in row.saliency)
    several = any(len(row.saliency) > 1 for row in table.rows)
    rows, structs = [], []
    for row in tqdm(table.rows, desc="reading .npy maps", disable=not arrays, leave=False):
        try:
            structs.append(_saliency_structs(row))
            rows.append(row)
        except ValueError as error:
            problems.append(Problem("error", None, str(error), ""))
    used = {table.image_column, "file_name", *RESERVED}
    extra = {name: _typed([row.values[name] for row in rows]) for name in table.columns if name not in used}
    features = {
        "image": Image(),
        "label": ClassLabel(names=table.label_names),
        "saliency": List(Image()) if several else Image(),
        "file_name": Value("string"),
    }
    saliency: list[Any] = [value or None for value in structs]
    if not several:
        saliency = [None if value is None else value[0] for value in saliency]
    columns: dict[str, pa.Array] = {
        "image": pa.array([{"bytes": None, "path": row.image} for row in rows], type=_STRUCT),
        "label": pa.array([row.label for row in rows], type=pa.int64()),
        "saliency": pa.array(saliency, type=pa.list_(_STRUCT) if several else _STRUCT),
        "file_name": pa.array([row.file_name for row in rows], type=pa.string()),
    }
    if table.has_groups:
        features["group"] = Value("string")
        columns["group"] = pa.array([row.group for row in rows], type=pa.string())
    if table.has_weights:
        features["weight"] = Value("float32")
        columns["weight"] = pa.array([row.weight for row in rows], type=pa.float32())
    columns.update(extra)
    whole = pa.table(columns)
    inferred = Features.from_arrow_schema(whole.select(list(extra)).schema)
    info = DatasetInfo(features=Features({**features, **inferred}))
    splits = {}
    names = [row.split for row in rows]
    for name in split_order(names):
        chosen = pa.array([index for index, split in enumerate(names) if split == name])
        splits[name] = Dataset(_in_memory(whole.take(chosen)), info=info.copy())
    return DatasetDict(splits), problems


def _in_memory(table: pa.Table) -> Any:
    from datasets.table import InMemoryTable

    return InMemoryTable(table)
