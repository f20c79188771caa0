"""Reading a saliency data folder: pictures, maps, and a `metadata.csv` or `metadata.jsonl` that joins them."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .labels import encode_labels
from .report import Problem
from .tables import TableOptions, check_groups, clean_weight, matches_where, need_column, split_name

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
ANNOTATOR_SEPARATOR = ";"


@dataclass
class FolderRow:
    """One row of the table, its files resolved: `values` are the table's own cells."""

    place: str
    values: dict[str, Any]
    split: str = "train"
    file_name: str = ""
    image: str | None = None
    saliency: list[str] = field(default_factory=list)
    label: int = -1
    group: str | None = None
    weight: float | None = None


@dataclass
class FolderTable:
    """A folder's table: the rows that are selected, the class names, and the table's columns."""

    rows: list[FolderRow]
    label_names: list[str]
    columns: list[str]
    dropped: int
    image_column: str
    saliency_column: str | None
    has_groups: bool
    has_weights: bool


def metadata_file(folder: Path) -> Path | None:
    """
    The folder's table, or `None` where it has none.

    Raises:
        ValueError: where there are two of them.
    """
    present = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(present) > 1:
        raise ValueError(f"{folder} has both metadata.csv and metadata.jsonl; keep one of them.")
    return present[0] if present else None


def read_table(file: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """
    The columns of a CSV or JSON lines file, and its rows with their line numbers; empty cells are `None`.

    Raises:
        ValueError: for a file that is no UTF-8, has a column twice, a row with too many cells, or bad JSON.
    """
    try:
        return _read_csv(file) if file.suffix == ".csv" else _read_jsonl(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error}); save it as UTF-8.") from error


def _read_csv(file: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        if len(set(columns)) < len(columns):
            twice = sorted({name for name in columns if columns.count(name) > 1})
            raise ValueError(f'{file} has the column "{twice[0]}" twice; keep one of them.')
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(
                    f"line {reader.line_num} of {file} has more cells than the header has columns ({len(columns)}); "
                    "quote cells that hold a comma."
                )
            rows.append((reader.line_num, {name: (value or "").strip() or None for name, value in row.items()}))
    return columns, rows


def _read_jsonl(file: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    columns: dict[str, None] = {}
    rows = []
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {file} is not JSON ({error}); write one object a line.") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {file} is a {type(row).__name__}; write one object a line.")
            columns.update(dict.fromkeys(row))
            rows.append((number, {name: None if value == "" else value for name, value in row.items()}))
    for _, row in rows:
        for name in columns:
            row.setdefault(name, None)
    return list(columns), rows


class Files:
    """Resolves the file names of a table; what leaves the folder is refused, by `..` or by a link."""

    def __init__(self, folder: Path):
        self.folder = os.path.abspath(folder)
        root = os.path.realpath(folder)
        self.roots = [root]
        # A snapshot in the cache of the Hub holds links to the blobs beside it.
        snapshots, repository = os.path.dirname(root), os.path.dirname(os.path.dirname(root))
        if os.path.basename(snapshots) == "snapshots" and os.path.isdir(os.path.join(repository, "blobs")):
            self.roots.append(os.path.join(repository, "blobs"))
        self.parents: dict[str, str] = {}

    def _real(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        parent, name = os.path.split(path)
        if parent not in self.parents:
            self.parents[parent] = os.path.realpath(parent)
        return os.path.join(self.parents[parent], name)

    def resolve(self, name: str, column: str, place: str) -> tuple[str | None, Problem | None]:
        named = f'{column} "{name}" ({place})'
        if os.path.isabs(name):
            return None, Problem(
                "error", name, f"{named} is an absolute path", "write it relative to the folder that holds the table"
            )
        path = os.path.normpath(os.path.join(self.folder, name))
        real = self._real(path)
        if not any(real.startswith(root + os.sep) for root in self.roots):
            return None, Problem(
                "error", name, f"{named} leaves the folder {self.folder}", "copy the file into the folder"
            )
        if not os.path.isfile(path):
            return None, Problem(
                "error",
                name,
                f"{named} does not exist in {self.folder}",
                "correct the name, or leave the cell empty where the picture is not annotated"
                if column not in ("file_name",)
                else "correct the name, or drop the row",
            )
        return path, None


def _mask_names(value: Any) -> list[str]:
    if value is None:
        return []
    parts = value if isinstance(value, list) else str(value).split(ANNOTATOR_SEPARATOR)
    return [str(part).strip() for part in parts if part is not None and str(part).strip()]


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that are used."""

    image: str
    label: str | None
    label_name: str | None
    saliency: str | None
    split: str | None


def _used_columns(columns: Sequence[str], options: TableOptions, what: str) -> _Columns:
    for argument in ("label_column", "saliency_column", "split_column", "group_column", "weight_column"):
        name = getattr(options, argument)
        if name is not None:
            need_column(columns, name, argument, what)
    label = options.label_column or ("label" if "label" in columns else None)
    label_name = "label_name" if "label_name" in columns and label in (None, "label") else None
    if label is None and label_name is None:
        raise ValueError(
            f"{what} has neither the column label nor label_name, only {', '.join(columns)}; add one of them, or name "
            "the column with label_column."
        )
    if options.image_column is None and "file_name" not in columns:
        raise ValueError(
            f"{what} has no column file_name, only {', '.join(columns)}; name the pictures' column with image_column."
        )
    return _Columns(
        image=need_column(columns, options.image_column or "file_name", "image_column", what),
        label=label,
        label_name=label_name,
        saliency=options.saliency_column or ("mask_file_name" if "mask_file_name" in columns else None),
        split=options.split_column or ("split" if "split" in columns else None),
    )


def _select_rows(
    numbered: Sequence[tuple[int, dict[str, Any]]], used: _Columns, where: Mapping[str, Any] | None, file: Path
) -> tuple[list[FolderRow], int]:
    """The rows that `where` selects and that have a split, and how many have none."""
    selected = [(number, row) for number, row in numbered if matches_where(row, where)]
    if not selected:
        values = {name: sorted({str(row[name]) for _, row in numbered})[:10] for name in where or {}}
        raise ValueError(f"where={dict(where or {})} leaves no row of {file}; the columns hold {values}.")
    rows = []
    for number, values in selected:
        split = "train" if used.split is None else split_name(values[used.split])
        if split:
            rows.append(FolderRow(place=f"line {number} of {file.name}", values=values, split=split))
    if not rows:
        raise ValueError(
            f'split_column="{used.split}" is empty in every row of {file} that is selected; name the rows\' split, or '
            "give another split_column."
        )
    return rows, len(selected) - len(rows)


def read_folder(folder: Path, file: Path, options: TableOptions) -> tuple[FolderTable, list[Problem]]:
    """
    Reads and checks a folder's table; no picture is opened.

    Args:
        folder (`Path`): the folder.
        file (`Path`): its table, from [`metadata_file`].
        options ([`TableOptions`]): columns and selection.

    Returns:
        `tuple` of the table and the problems of single rows.

    Raises:
        ValueError: for what no row can be read without: columns, an empty table, an unknown split or `where` column.
    """
    columns, numbered = read_table(file)
    if not numbered:
        raise ValueError(f"{file} has no rows; write one a picture, with file_name, mask_file_name and label.")
    used = _used_columns(columns, options, str(file))
    for column in options.where or {}:
        need_column(columns, column, "where", str(file))
    rows, dropped = _select_rows(numbered, used, options.where, file)
    problems = _resolve_rows(Files(folder), rows, used.image, used.saliency)
    codes, label_names, label_problems = encode_labels(
        None if used.label is None else [row.values[used.label] for row in rows],
        None if used.label_name is None else [row.values[used.label_name] for row in rows],
        [f"{row.values[used.image]} ({row.place})" for row in rows],
        options.label_names,
    )
    problems += label_problems
    for row, code in zip(rows, codes, strict=True):
        row.label = code
        if options.group_column is not None and row.values[options.group_column] is not None:
            row.group = str(row.values[options.group_column])
        if options.weight_column is not None:
            weight = row.values[options.weight_column]
            row.weight, problem = clean_weight(weight, options.weight_column, row.file_name, row.place)
            problems += [problem] if problem else []
    groups, splits = [row.group for row in rows], [row.split for row in rows]
    problems += check_groups(groups, splits, options.group_column or "group")
    table = FolderTable(
        rows=rows,
        label_names=label_names,
        columns=columns,
        dropped=dropped,
        image_column=used.image,
        saliency_column=used.saliency,
        has_groups=options.group_column is not None,
        has_weights=options.weight_column is not None,
    )
    return table, problems


def _resolve_rows(
    files: Files, rows: Sequence[FolderRow], image_column: str, saliency_column: str | None
) -> list[Problem]:
    """Finds every row's files; fills the rows in and returns what is wrong."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for row in rows:
        name = row.values[image_column]
        if name is None:
            problems.append(Problem("error", None, f"{image_column} is empty ({row.place})", "fill it in"))
            continue
        row.file_name = str(name)
        normal = os.path.normpath(row.file_name)
        if normal in seen:
            problems.append(
                Problem(
                    "error",
                    row.file_name,
                    f'{image_column} "{row.file_name}" ({row.place}) is the same file as in {seen[normal]}',
                    f'keep one row a picture; several annotators are joined with "{ANNOTATOR_SEPARATOR}"',
                )
            )
            continue
        seen[normal] = row.place
        row.image, problem = files.resolve(row.file_name, image_column, row.place)
        problems += [problem] if problem else []
        for mask in _mask_names(row.values[saliency_column]) if saliency_column is not None else []:
            path, problem = files.resolve(mask, saliency_column or "", row.place)
            if path is not None:
                row.saliency.append(path)
            problems += [problem] if problem else []
    return problems
