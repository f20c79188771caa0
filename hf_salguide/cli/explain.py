"""`hf-salguide explain`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..data.prepare import undecoded
from .common import DataArguments, load_model, split_of, writable
from .parsing import parse


@dataclass
class ExplainArguments(DataArguments):
    """Which pictures, by which model."""

    data: str = field(default="", metadata={"help": "Data set to take rows from; leave out with --pictures."})
    model: str = field(default="", metadata={"help": "Folder or Hub id of a trained model."})
    split: str = field(default="test", metadata={"help": "The split to take rows from."})
    rows: list[int] | None = field(default=None, metadata={"help": "Row numbers in the split (default: the first 4)."})
    files: list[str] | None = field(default=None, metadata={"help": "File names in the split, instead of rows."})
    pictures: list[str] | None = field(default=None, metadata={"help": "Picture files without labels."})
    output: str = field(default="panel.png", metadata={"help": "The picture that is written: .png, .pdf or .svg."})


def run(argv: Sequence[str]) -> int:
    """A panel of chosen pictures: human saliency, maps of the true and of the other class, the prediction."""
    (args,) = parse([ExplainArguments], argv, "explain", run.__doc__ or "", "data")
    from ..studies.panels import draw_panel, explain, save_panel

    writable("output", args.output, (".png", ".pdf", ".svg"))
    model = load_model(args.model)
    rows, titles = chosen_rows(args, model)
    panel = draw_panel(explain(model, rows), titles)
    print(f"Panel of {len(rows)} picture(s): {save_panel(panel, args.output)}")
    return 0


def chosen_rows(args: ExplainArguments, model: PreTrainedModel) -> tuple[list[dict[str, Any]], list[str]]:
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
    if not args.data:
        raise ValueError("data: give a data set, --data FOLDER, or picture files, --pictures FILE ...")
    split = undecoded(split_of(args.load_for(model), "split", args.split))
    indices = list(range(min(4, len(split)))) if args.rows is None else args.rows
    names = [str(name) for name in split["file_name"]] if "file_name" in split.column_names else None
    if args.files:
        absent = [file for file in args.files if names is None or file not in names]
        if absent or names is None:
            raise ValueError(f"files: {', '.join(absent)} not in the file_name column of split {args.split!r}.")
        indices = [names.index(file) for file in args.files]
    outside = [index for index in indices if not 0 <= index < len(split)]
    if outside:
        raise ValueError(f"rows={outside} not in split {args.split!r}, which has {len(split)} rows, counted from 0.")
    return [split[index] for index in indices], [names[index] if names else f"row {index}" for index in indices]
