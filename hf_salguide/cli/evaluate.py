"""`hf-salguide evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .common import DataArguments, load_model, split_of, table, writable, write_json
from .parsing import parse

COLUMNS = [
    "split",
    "pictures",
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "energy_inside",
    "annotated",
    "energy_pictures",
    "annotator_agreement",
]


@dataclass
class EvaluateArguments(DataArguments):
    """What is evaluated, on which splits."""

    model: str = field(default="", metadata={"help": "Folder or Hub id of a trained model."})
    splits: list[str] | None = field(default=None, metadata={"help": "Splits to evaluate on (default: all)."})
    map_class: str = field(default="predicted", metadata={"help": "Whose map: predicted or true."})
    batch_size: int = field(default=32, metadata={"help": "Pictures a forward."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read pictures."})
    json: str | None = field(default=None, metadata={"help": "File for the figures as JSON."})


def run(argv: Sequence[str]) -> int:
    """Accuracy, AUROC and the share of map energy on the annotated evidence, split by split."""
    (args,) = parse([EvaluateArguments], argv, "evaluate", run.__doc__ or "", "data")
    from ..studies.predictions import predict

    if args.map_class not in ("predicted", "true"):
        raise ValueError(f'map_class="{args.map_class}" is not known; choose "predicted" or "true".')
    if args.json:
        writable("json", args.json)
    model = load_model(args.model)
    dataset = args.load_for(model)
    splits = {name: split_of(dataset, "splits", name) for name in args.splits or dataset}
    results = {
        name: predict(model, split, args.map_class, args.batch_size, args.num_workers).metrics()
        for name, split in splits.items()
    }
    columns = [key for key in COLUMNS if key == "split" or any(key in metrics for metrics in results.values())]
    print(table(columns, [[name, *(metrics.get(key) for key in columns[1:])] for name, metrics in results.items()]))
    print(
        f"energy_inside: share of the positive map of the {args.map_class} class that lies on the saliency; a mean "
        "over energy_pictures, the annotated pictures whose map is positive somewhere."
    )
    if args.json:
        print(f"Written to {write_json(args.json, results)}")
    return 0
