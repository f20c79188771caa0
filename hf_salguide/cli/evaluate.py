"""`hf-salguide evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ..hub.facts import CardFacts, check_facts
from ..hub.record import SplitResult
from ..hub.results import is_out_of_distribution, split_result
from ..hub.update import update_card
from ..metrics import auroc, bootstrap_interval, presentation_attack_metrics
from .common import DataArguments, class_names, load_model, split_of, table, writable, write_json
from .parsing import as_dict, parse

if TYPE_CHECKING:
    from ..studies.predictions import Predictions

VALIDATION = "validation"

COLUMNS = [
    "split",
    "pictures",
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "auroc_low",
    "auroc_high",
    "equal_error_rate",
    "calibration_error",
    "acer",
    "apcer_at_bpcer_1",
    "bpcer_at_bpcer_1",
    "energy_inside",
    "iou",
    "pointing_game",
    "annotated",
    "energy_inside_pictures",
    "annotator_agreement",
]


@dataclass
class EvaluateArguments(DataArguments):
    """What is evaluated, on which splits."""

    model: str = field(default="", metadata={"help": "Folder or Hub id of a trained model."})
    splits: list[str] | None = field(default=None, metadata={"help": "Splits to evaluate on (default: all)."})
    intervals: bool = field(
        default=False, metadata={"help": "Bootstrap intervals of the AUROC, 0.95, by group where there is a column."}
    )
    bona_fide: str | None = field(
        default=None,
        metadata={"help": "Class of genuine pictures: adds APCER, BPCER and ACER, thresholds from split validation."},
    )
    attack_type_column: str | None = field(
        default=None,
        metadata={"help": "Column with the attack type, with bona_fide: APCER is that of the worst type."},
    )
    map_class: str = field(default="predicted", metadata={"help": "Whose map: predicted or true."})
    batch_size: int = field(default=32, metadata={"help": "Pictures a forward."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read pictures."})
    card: dict | str | None = field(
        default=None,
        metadata={
            "help": "true: the results, with intervals, go into the card of the model's folder; or facts for it, as "
            'JSON: {"baseline": "out/plain", "license": "mit"}.'
        },
    )
    json: str | None = field(default=None, metadata={"help": "File for the figures as JSON."})


def run(argv: Sequence[str]) -> int:
    """Accuracy, AUROC, calibration, and how much of the maps lies on the annotated evidence, split by split."""
    (args,) = parse([EvaluateArguments], argv, "evaluate", run.__doc__ or "", "data")
    from ..studies.predictions import predict

    check(args)
    facts = card_facts(args)
    model = load_model(args.model)
    names = class_names(model)
    if args.bona_fide is not None and args.bona_fide not in names:
        raise ValueError(f'bona_fide="{args.bona_fide}" is not a class of the model; it has {", ".join(names)}.')
    dataset = args.load_for(model)
    splits = {name: split_of(dataset, "splits", name) for name in args.splits or dataset}
    types = {name: _attack_types(split, args.attack_type_column) for name, split in splits.items()}
    thresholds = {VALIDATION: dataset[VALIDATION]} if args.bona_fide is not None and VALIDATION in dataset else {}
    judged = {
        name: predict(model, split, args.map_class, args.batch_size, args.num_workers)
        for name, split in {**splits, **thresholds}.items()
    }
    results = {name: judged[name].metrics() for name in splits}
    for name in splits:
        if args.intervals:
            results[name] |= _interval(judged[name])
        if args.bona_fide is not None:
            reference = None if name == VALIDATION else judged.get(VALIDATION)
            bona_fide = names.index(args.bona_fide)
            results[name] |= _presentation_attack(judged[name], bona_fide, types[name], reference)
    columns = [key for key in COLUMNS if key == "split" or any(key in metrics for metrics in results.values())]
    print(table(columns, [[name, *(metrics.get(key) for key in columns[1:])] for name, metrics in results.items()]))
    print(
        f"energy_inside, iou, pointing_game: of the map of the {args.map_class} class, means over the annotated "
        "pictures for which they are defined (energy_inside_pictures, where that is not all of them)."
    )
    if args.bona_fide is not None:
        where = "on validation" if VALIDATION in judged else "on the pictures themselves, which is optimistic"
        column = args.attack_type_column
        pooled = "pooled over attack types" if column is None else f"of the worst attack type, by column {column}"
        print(
            f"acer: at the threshold 0.5; apcer_at_bpcer_1, and bpcer_at_bpcer_1, the BPCER that is reached there: at "
            f"the threshold with a BPCER of 1 % {where}. APCER is {pooled}."
        )
    if args.json:
        print(f"Written to {write_json(args.json, results)}")
    if facts is not None:
        shown = [name for name in splits if name != "train"]  # figures of the training pictures tell nothing
        update_card(args.model, model, [card_result(name, judged[name], facts) for name in shown], facts, args.data)
        print(f"The card of {args.model} has the results of {', '.join(shown)}.")
    return 0


def card_facts(args: EvaluateArguments) -> CardFacts | None:
    """
    What goes into the card beside the results; `None` where none is to be written.

    Raises:
        ValueError: for a model on the Hub, whose card cannot be written, a fact that there is not, and maps of another
            class than those of the card.
    """
    wanted = args.card
    if wanted is None or (isinstance(wanted, str) and wanted.lower() in ("false", "none", "")) or wanted is False:
        return None
    told = {} if str(wanted).lower() == "true" else as_dict("card", wanted)
    if not Path(args.model).is_dir():
        raise ValueError(
            f'card: model="{args.model}" is no folder, and only a folder\'s card can be written; download the model, '
            "evaluate the folder, and push it."
        )
    if args.map_class != "predicted":
        raise ValueError(
            f'card: its maps are those of the predicted class, not map_class="{args.map_class}"; leave map_class out.'
        )
    return check_facts(told)


def card_result(name: str, predictions: "Predictions", facts: CardFacts) -> SplitResult:
    """What a card says of one split."""
    outside = is_out_of_distribution(name) or name in (facts.out_of_distribution or ())
    return split_result(
        name,
        predictions.labels,
        predictions.probabilities,
        predictions.alignment,
        predictions.annotated,
        groups=predictions.groups,
        out_of_distribution=outside,
    )


def check(args: EvaluateArguments) -> None:
    """
    Checks the options before a model is loaded.

    Raises:
        ValueError: for an option out of its range, or one that goes with another.
    """
    if args.map_class not in ("predicted", "true"):
        raise ValueError(f'map_class="{args.map_class}" is not known; choose "predicted" or "true".')
    if args.attack_type_column is not None and args.bona_fide is None:
        raise ValueError(
            f'attack_type_column="{args.attack_type_column}" goes with bona_fide; name the class of genuine pictures.'
        )
    if args.json:
        writable("json", args.json)


def _attack_types(split: Dataset, column: str | None) -> list[Any] | None:
    """Each picture's attack type, without reading a picture."""
    if column is None:
        return None
    if column not in split.column_names:
        raise ValueError(
            f'attack_type_column="{column}" is not a column of the data; it has {", ".join(split.column_names)}.'
        )
    return split.select_columns([column]).with_format(None)[column][:]


def _interval(predictions: "Predictions") -> dict[str, float]:
    if predictions.labels is None or len(set(predictions.labels)) < predictions.probabilities.shape[1]:
        return {}  # AUROC is not defined, and neither is its interval
    low, high = bootstrap_interval(auroc, predictions.labels, predictions.probabilities, predictions.groups)
    return {"auroc_low": low, "auroc_high": high}


def _presentation_attack(
    predictions: "Predictions", bona_fide: int, types: list[Any] | None, validation: "Predictions | None"
) -> dict[str, float]:
    if predictions.labels is None:
        return {}
    reference = None
    if validation is not None and validation.labels is not None:
        reference = (validation.labels, validation.probabilities)
    return presentation_attack_metrics(
        predictions.labels, predictions.probabilities, bona_fide, types, validation=reference
    )
