"""`hf-salguide compare`."""

import dataclasses
import difflib
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..arguments import SaliencyTrainingArguments
from .common import DataArguments, writable
from .parsing import as_dict, parse, parse_model

_SET_BY_THE_COMPARISON = {
    "output_dir": "the folder of the comparison",
    "guidance": "methods",
    "seed": "seeds",
    "invert_saliency": "inverted",
    "random_saliency": "random",
    "metric_for_best_model": "metric",
    "greater_is_better": "metric",
    "load_best_model_at_end": "metric",
    "save_strategy": "eval_strategy",
    "resume_from_checkpoint": "output_dir: what is there is gone on with",
    "push_to_hub": "keep_models",
    "save_only_model": "output_dir: a run that is broken off needs its optimizer to go on",
    "save_steps": "eval_steps",
    "ignore_data_skip": "output_dir: a run that is broken off goes on as it would have",
    "eval_on_start": "metric",
    "guidance_weight": "method_arguments, for one method",
    "guidance_options": "method_arguments, for one method",
}


@dataclass
class CompareArguments(DataArguments):
    """What is compared. Every training argument can be given as well, and holds for all runs."""

    data: str = field(default="", metadata={"help": "Folder with metadata.csv or .jsonl, or a data set's Hub id."})
    methods: list[str] = field(default_factory=list, metadata={"help": "Guidance methods, beside plain training."})
    inverted: list[str] = field(
        default_factory=list, metadata={"help": "Methods to run with inverted saliency as well, as a control."}
    )
    random: list[str] = field(
        default_factory=list, metadata={"help": "Methods to run with random saliency as well, as a control."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        metadata={"help": "Seeds; each way of training is run once with each."},
    )
    annotated_fractions: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Shares of the annotated training pictures to try."}
    )
    backbones: list[str] = field(
        default_factory=lambda: ["resnet18"],
        metadata={"help": "timm names, Hub ids or folders, with arguments as name:key=value,key=value."},
    )
    model_args: dict | str | None = field(
        default=None, metadata={"help": 'Keyword arguments of every backbone, as JSON: {"global_pool": "avg"}.'}
    )
    pretrained: bool = field(default=False, metadata={"help": "Start from pretrained weights."})
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "The split to select on."})
    test_split: str = field(default="test", metadata={"help": "The split to judge on, in distribution."})
    ood_split: str | None = field(
        default="ood", metadata={"help": "The split to judge on, out of distribution; none for none."}
    )
    metric: str = field(default="auroc", metadata={"help": "auroc, accuracy, balanced_accuracy or average_precision."})
    method_arguments: dict | str | None = field(
        default=None, metadata={"help": 'Training arguments of single methods, as JSON: {"rrr": {"task_weight": 1}}.'}
    )
    trials: int = field(default=1, metadata={"help": "Configurations tried for every method; 1: nothing is tuned."})
    search: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Ranges to search, as JSON: {"learning_rate": [0.0001, 0.01], "guidance_weight": [0.1, 10]}.'
        },
    )
    search_seed: int = field(default=9000, metadata={"help": "Seed of the search's runs; none of seeds."})
    name: str | None = field(default=None, metadata={"help": "The study's name (default: the data folder's)."})
    jobs: int = field(default=1, metadata={"help": "Runs at a time."})
    keep_models: bool = field(default=False, metadata={"help": "Save the model of each run."})
    pictures: bool = field(
        default=False, metadata={"help": "Put pictures of the data into the report; they may be patients."}
    )
    resamples: int = field(default=1000, metadata={"help": "Bootstrap resamples behind the intervals, at least 2."})
    dry_run: bool = field(default=False, metadata={"help": "Check everything and say how many runs it would be."})


def run(argv: Sequence[str]) -> int:
    """Compares guidance methods with plain training over seeds, and answers whether guidance helped on your data."""
    args, training = parse([CompareArguments, SaliencyTrainingArguments], argv, "compare", run.__doc__ or "", "data")
    from ..studies.comparison.plan import Comparison, run_comparison
    from ..studies.comparison.search import Budget

    if not args.data:
        raise ValueError("data: give a data set, --data FOLDER.")
    for option in dataclasses.fields(CompareArguments):
        given = getattr(args, option.name)
        if option.name != "ood_split" and (given is None or given == [None]) and option.default is not None:
            raise ValueError(f"{option.name} is empty; give a value, or leave the line out.")
    if args.resamples < 2:
        raise ValueError(f"resamples={args.resamples} has to be at least 2; 1000 is usual.")
    if find_spec("matplotlib") is None:
        raise ImportError("The report's plots need matplotlib: pip install 'hf_salguide[plots]'.")
    backbones = [parse_model("backbones", backbone) for backbone in args.backbones]
    names = [name for name, _ in backbones]
    if len(set(names)) < len(names):
        raise ValueError(f"backbones={args.backbones} names one twice; compare its variants in two comparisons.")
    output = writable("output_dir", str(training.output_dir), folder=True)
    comparison = Comparison(
        output_dir=output,
        data=args.load_arguments(),
        methods=args.methods,
        inverted=args.inverted,
        random=args.random,
        seeds=args.seeds,
        annotated_fractions=args.annotated_fractions,
        backbones={name: {**as_dict("model_args", args.model_args), **options} for name, options in backbones},
        pretrained=args.pretrained,
        train_split=args.train_split,
        eval_split=args.eval_split,
        test_split=args.test_split,
        ood_split=None if args.ood_split in (None, "", "none") else args.ood_split,
        metric=args.metric,
        training=shared_arguments(training),
        method_arguments=own_arguments(as_dict("method_arguments", args.method_arguments)),
        budget=Budget(args.trials, as_dict("search", args.search), args.search_seed),
        name=args.name or Path(args.data).name,
        keep_models=args.keep_models,
    )
    study = run_comparison(comparison, args.jobs, dry=args.dry_run)
    if args.dry_run:
        return 0
    from ..studies.report.publish import publish

    published = publish(study, output, comparison.data if args.pictures else None, args.resamples)
    print(published.table)
    print()
    print(published.conclusion)
    print(f"Report: {published.report}")
    return 0 if any(run.status == "done" for run in study.runs) else 1


def shared_arguments(training: SaliencyTrainingArguments) -> dict[str, Any]:
    """
    The training arguments that the user set, which hold for every run.

    Raises:
        ValueError: for one that differs from run to run and is the comparison's to set.
    """
    default = SaliencyTrainingArguments(training.output_dir)
    given = {}
    for option in dataclasses.fields(SaliencyTrainingArguments):
        value = getattr(training, option.name)
        if option.init and option.name != "output_dir" and value != getattr(default, option.name):
            given[option.name] = value.value if isinstance(value, enum.Enum) else value
    _refuse_set(given, "")
    return given


def own_arguments(methods: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """
    The training arguments of single methods.

    Raises:
        ValueError: for something else than a mapping, an unknown argument, or one that is the comparison's to set.
    """
    known = [option.name for option in dataclasses.fields(SaliencyTrainingArguments) if option.init]
    for method, given in methods.items():
        if not isinstance(given, dict):
            raise ValueError(
                f'method_arguments: {method}={given!r} has to be a mapping, such as {{"task_weight": 1}}.'
            )
        for name in given:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f'method_arguments: {method}: "{name}" is no training argument; did you mean "{nearest}"?'
                )
        _refuse_set(given, f"method_arguments: {method}: ", allowed=("guidance_weight", "guidance_options"))
    return methods


def _refuse_set(given: dict[str, Any], where: str, allowed: Sequence[str] = ()) -> None:
    for name in given:
        if name in _SET_BY_THE_COMPARISON and name not in allowed:
            instead = _SET_BY_THE_COMPARISON[name]
            raise ValueError(f"{where}{name}={given[name]!r} is not for you to set in a comparison; see {instead}.")
