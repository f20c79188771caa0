"""`hf-salguide check`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data import check_folder
from .common import DataArguments, writable, write_json
from .parsing import as_dict, parse


@dataclass
class CheckArguments(DataArguments):
    """Which data."""

    json: str | None = field(default=None, metadata={"help": "File for the report as JSON."})


def run(argv: Sequence[str]) -> int:
    """Reads every picture and map of a data set and lists what is wrong; exit status 1 if it cannot be used."""
    (args,) = parse([CheckArguments], argv, "check", run.__doc__ or "", "data")
    if args.json:
        writable("json", args.json)
    report = check_folder(
        args.data,
        split_column=args.split_column,
        image_column=args.image_column,
        label_column=args.label_column,
        saliency_column=args.saliency_column,
        where=as_dict("where", args.where) or None,
        group_column=args.group_column,
        weight_column=args.weight_column,
    )
    print(report)
    if args.json:
        print(f"Written to {write_json(args.json, report.to_dict())}")
    return 1 if report.errors else 0
