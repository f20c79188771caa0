"""Pictures that are named on the command line: rows and files of a split, picture files, all of a folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..data import load_pictures
from ..data.folder import metadata_file, read_table
from ..data.prepare import undecoded
from .common import DataArguments, class_names, split_of

FIRST_ROWS = 4


@dataclass
class ChosenArguments(DataArguments):
    """Which pictures."""

    data: str = field(
        default="", metadata={"help": "Data set, or folder of pictures without a table; leave out with --pictures."}
    )
    split: str = field(default="test", metadata={"help": "The split to take rows from."})
    rows: list[int] | None = field(
        default=None,
        metadata={"help": "Row numbers in the split (default: maps: the first 4; difference: all, to output_dir)."},
    )
    files: list[str] | None = field(default=None, metadata={"help": "File names in the split, instead of rows."})
    pictures: list[str] | None = field(default=None, metadata={"help": "Picture files without labels."})


def all_rows(args: ChosenArguments, model: PreTrainedModel) -> Any:
    """
    The pictures of a split, or those of a folder that has no labels, with their files unopened.

    Raises:
        ValueError: if no data set is named, or rows are to be selected where there is no table.
    """
    if not args.data:
        raise ValueError("data: give a data set, --data FOLDER, or picture files, --pictures FILE ...")
    folder = Path(args.data)
    if folder.is_dir() and is_unlabelled(folder, args.label_column):
        if args.where:
            raise ValueError(f'where={args.where} selects by a table with labels, which data="{args.data}" has not.')
        return undecoded(load_pictures(folder, class_names(model), args.image_column))
    return undecoded(split_of(args.load_for(model), "split", args.split))


def is_unlabelled(folder: Path, label_column: str | None) -> bool:
    """Whether a folder is one of pictures alone, or its table has no labels."""
    file = metadata_file(folder)
    if file is None:
        saved = ("dataset_dict.json", "state.json")
        return not any((folder / name).is_file() for name in saved) and not _holds_tables(folder)
    columns, _ = read_table(file)
    return label_column is None and not {"label", "label_name"} & set(columns)


def _holds_tables(folder: Path) -> bool:
    """Whether a folder holds what the datasets library loads as a table, or pictures sorted into splits or classes."""
    return any(
        entry.is_dir() or entry.suffix in (".parquet", ".arrow", ".csv", ".jsonl") for entry in folder.iterdir()
    )


def chosen_rows(args: ChosenArguments, model: PreTrainedModel) -> tuple[list[dict[str, Any]], list[str]]:
    """
    The rows that the options name, their files unopened, and a title for each.

    Raises:
        ValueError: if a row or a file is not in the split, nothing is named, or rows are named in two ways.
    """
    named = [option for option in ("rows", "files", "pictures") if getattr(args, option)]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} name pictures in two ways; give one of them.")
    if args.pictures:
        missing = [path for path in args.pictures if not Path(path).is_file()]
        if missing:
            raise ValueError(f"pictures: {', '.join(missing)} not found.")
        return [{"image": path} for path in args.pictures], [Path(path).name for path in args.pictures]
    split = all_rows(args, model)
    indices = list(range(min(FIRST_ROWS, len(split)))) if args.rows is None else args.rows
    names = [str(name) for name in split["file_name"]] if "file_name" in split.column_names else None
    if args.files:
        absent = [file for file in args.files if names is None or file not in names]
        if absent or names is None:
            raise ValueError(f"files: {', '.join(absent)} not in the file_name column of split {args.split!r}.")
        indices = [names.index(file) for file in args.files]
    outside = [index for index in indices if not 0 <= index < len(split)]
    if outside:
        raise ValueError(f"rows={outside} not in split {args.split!r}, which has {len(split)} rows, counted from 0.")
    titles = [Path(names[index]).name if names else f"row {index}" for index in indices]
    return [split[index] for index in indices], titles
