"""Methods × seeds × annotated fractions × backbones on one data set: planned, checked, run, resumed."""

import dataclasses
import enum
import hashlib
import importlib.metadata
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from filelock import FileLock, Timeout

from ...data import load_saliency_dataset
from ...data.checks import annotated_rows
from ...data.prepare import undecoded
from ...guidance import guidance_class, list_guidance
from .jobs import run_jobs
from .records import (
    BASELINE,
    DONE,
    FAILED,
    RUNS,
    SALIENCIES,
    SEARCH,
    STUDY_FILE,
    Arm,
    RunRecord,
    Study,
    load_study,
    read_run,
    write_run,
    write_study,
)
from .results import write_results
from .run import RunSpec, execute, make_trainer, run_arguments
from .search import SEARCH_FILE, Budget

METRICS = ("auroc", "accuracy", "balanced_accuracy", "average_precision")
_NEEDS_EVERY_CLASS = ("auroc", "average_precision")
_USUAL = ("per_device_train_batch_size", "optim", "learning_rate", "lr_scheduler_type", "weight_decay")
_VERSIONS = ("hf_salguide", "torch", "transformers", "timm")


@dataclass(frozen=True)
class Comparison:
    """
    What is compared, on which data.

    Attributes:
        output_dir (`Path`): where everything goes.
        data (`dict`): arguments of [`load_saliency_dataset`].
        methods (sequence of `str`): guidance methods; plain training is always run.
        inverted, random (sequence of `str`): methods that are run with inverted, and with random saliency, as well.
        seeds (sequence of `int`): one run of each arm with each.
        annotated_fractions (sequence of `float`): shares of the annotation that are tried.
        backbones (mapping): the models' names and their keyword arguments.
        pretrained (`bool`): whether training starts from pretrained weights.
        train_split, eval_split, test_split, ood_split (`str`): where runs learn, select, and are judged in and out of
            distribution; `ood_split=None` for none.
        metric (`str`): one of [`METRICS`]; what is compared, and what the best epoch is selected by.
        training (mapping): arguments of [`SaliencyTrainingArguments`], for all.
        method_arguments (mapping): more of them, for single methods.
        budget ([`Budget`]): of the search for hyper-parameters.
        name (`str`): the study's.
        keep_models (`bool`): whether the models of the runs are saved.
    """

    output_dir: Path
    data: Mapping[str, Any]
    methods: Sequence[str]
    seeds: Sequence[int]
    backbones: Mapping[str, Mapping[str, Any]]
    inverted: Sequence[str] = ()
    random: Sequence[str] = ()
    annotated_fractions: Sequence[float] = (1.0,)
    pretrained: bool = False
    train_split: str = "train"
    eval_split: str = "validation"
    test_split: str = "test"
    ood_split: str | None = "ood"
    metric: str = "auroc"
    training: Mapping[str, Any] = field(default_factory=dict)
    method_arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    name: str = "comparison"
    keep_models: bool = False

    @property
    def arms(self) -> list[Arm]:
        """Plain training first, then each method with the human saliency, then the controls."""
        names = [name for name in dict.fromkeys(self.methods) if name != BASELINE.method]
        controls = [Arm(name, kind) for kind in SALIENCIES[1:] for name in dict.fromkeys(getattr(self, kind))]
        return [BASELINE, *(Arm(name) for name in names), *controls]

    def fractions_of(self, arm: Arm) -> list[float]:
        """The shares of the annotation that make a difference to a way of training."""
        return list(self.annotated_fractions) if guidance_class(arm.method).needs_annotation else [1.0]

    def specs(self, digest: str) -> list[RunSpec]:
        """The runs, seed after seed, so that what is there after a while can be compared in pairs."""
        return [
            self.spec(arm, seed, fraction, backbone, digest)
            for backbone in self.backbones
            for seed in self.seeds
            for arm in self.arms
            for fraction in self.fractions_of(arm)
        ]

    def _folder_name(self, backbone: str) -> str:
        """A backbone's part of a run's folder: the last part of its name, or all of it where two share that."""
        short = {name: re.sub(r"[^\w.-]+", "_", name.rstrip("/").rpartition("/")[2]) for name in self.backbones}
        shared = Counter(short.values())[short[backbone]] > 1
        return re.sub(r"[^\w.-]+", "_", backbone) if shared else short[backbone]

    def spec(
        self, arm: Arm, seed: int, fraction: float, backbone: str, digest: str, stage: str = RUNS, label: str = ""
    ) -> RunSpec:
        """One run."""
        share = "" if fraction == 1 else f"_{fraction:g}"
        model = self._folder_name(backbone)
        folder = f"{arm.method}_{arm.saliency}_{model}{share}_seed{seed}{label}"
        splits = (self.test_split,) if self.ood_split is None else (self.test_split, self.ood_split)
        return RunSpec(
            folder=self.output_dir / stage / folder,
            arm=arm,
            seed=seed,
            annotated_fraction=fraction,
            backbone=backbone,
            model_args=self.backbones[backbone],
            pretrained=self.pretrained,
            data=self.data,
            train_split=self.train_split,
            eval_split=self.eval_split,
            test_splits=() if stage == SEARCH else splits,
            training={**self.training, **self.method_arguments.get(arm.method, {})},
            metric=self.metric,
            digest=digest,
            keep_model=self.keep_models and stage == RUNS,
        )


def run_comparison(
    comparison: Comparison, jobs: int = 1, report: Callable[[str], None] = print, dry: bool = False
) -> Study:
    """
    Checks a comparison, runs what is not done yet, and reads all of it back.

    A run that was broken off goes on from its last checkpoint; one that failed is tried again; one that is done is
    left alone. Failures do not stop the others. Hyper-parameters are selected on the validation split alone.

    Args:
        comparison ([`Comparison`]): what is compared.
        jobs (`int`, *optional*, defaults to 1): runs at a time, each in a process of its own.
        report (`Callable`, *optional*, defaults to `print`): takes the lines that are meant for the user.
        dry (`bool`, *optional*, defaults to `False`): check and plan only.

    Returns:
        [`Study`], whose runs also stand in `results.csv`.

    Raises:
        ValueError: for settings, data or an output folder that the comparison cannot work with, before any compute is
            spent.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs} has to be at least 1.")
    dataset = check_comparison(comparison)
    specs = comparison.specs(table_digest(dataset))
    trials = comparison.budget.trials_of(comparison, table_digest(dataset))
    check_arms([*specs, *trials], dataset)
    output, settings = comparison.output_dir, settings_of(comparison, dataset)
    plan = [_planned(comparison, spec) for spec in specs]
    if dry:
        report(f"{len(trials)} runs of the search for hyper-parameters and {len(specs)} runs are planned.")
        return Study(settings, [], missing=len(specs))
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            refuse_others(output)
            if trials:
                found = comparison.budget.found_before(output, trials)
                if found is None:
                    _refuse_other_settings(trials)
                    _run_all(trials, jobs, report, "search")
                    found = comparison.budget.find(output, trials)
                specs, settings = found.applied_to(specs), {**settings, "chosen": found.chosen}
            _refuse_other_settings(specs)
            write_study(output, settings, plan)
            _run_all(specs, jobs, report, "run")
            study = load_study(output)
            write_results(study, output / "results.csv")
    except Timeout as error:
        raise ValueError(
            f'output_dir="{output}" is in use by another comparison; wait for it, or name another folder.'
        ) from error
    return study


def _planned(comparison: Comparison, spec: RunSpec) -> dict[str, Any]:
    told = guidance_class(spec.arm.method).needs_annotation
    fractions = [spec.annotated_fraction] if told else list(comparison.annotated_fractions)
    return {"folder": spec.folder.name, "fractions": fractions}


def _run_all(specs: Sequence[RunSpec], jobs: int, report: Callable[[str], None], what: str) -> None:
    """Runs what is not done yet."""
    open_specs = [spec for spec in specs if not _is_done(spec)]
    if len(open_specs) < len(specs):
        report(f"{len(specs) - len(open_specs)} of {len(specs)} are done already.")
    count = len(specs) - len(open_specs)

    def done(spec: RunSpec, record: RunRecord | None, death: str) -> None:
        nonlocal count
        count += 1
        if record is None:
            record = _died(spec, death)
        outcome = record.error.splitlines()[0] if record.error else _figures(record, spec)
        report(f"{what} {count}/{len(specs)}  {spec.folder.name}  {outcome}  {record.seconds:.0f} s")

    run_jobs(execute, open_specs, jobs, done)


def _figures(record: RunRecord, spec: RunSpec) -> str:
    splits = dict.fromkeys((spec.eval_split, *spec.test_splits))
    return "  ".join(f"{split} {record.metrics[split][spec.metric]:.3f}" for split in splits)


def _died(spec: RunSpec, death: str) -> RunRecord:
    """The record of a run whose process is gone."""
    record = RunRecord(
        spec.arm, spec.seed, spec.annotated_fraction, spec.backbone_name, FAILED, death, 0.0, {}, {}, spec.folder
    )
    spec.folder.mkdir(parents=True, exist_ok=True)
    write_run(record, spec.configuration())
    return record


def _is_done(spec: RunSpec) -> bool:
    """Whether a run's result is there."""
    found = read_run(spec.folder)
    return found is not None and found[0].status == DONE


def _refuse_other_settings(specs: Sequence[RunSpec]) -> None:
    """
    Refuses to count runs that were made with other settings.

    Raises:
        ValueError: naming the run and what differs.
    """
    for spec in specs:
        found, wanted = read_run(spec.folder), spec.configuration()
        if found is None or found[0].status == FAILED or found[1] == wanted:
            continue  # what failed is run again; its settings may be what was mended
        different = [name for name in wanted if found[1].get(name) != wanted[name]]
        raise ValueError(
            f"{spec.folder.name} was run with another {', '.join(different) or 'configuration'}; name another "
            "output_dir, or remove that run's folder to have it run again."
        )


def check_comparison(comparison: Comparison) -> DatasetDict:
    """
    Checks the settings against each other and the data, and loads the data's table.

    Raises:
        ValueError: naming the argument, the value and the remedy.
    """
    known = [*list_guidance(), BASELINE.method]
    for argument in ("methods", "inverted", "random", "method_arguments"):
        for name in getattr(comparison, argument):
            if name not in known:
                raise ValueError(f'{argument}: "{name}" is no guidance method; choose from {", ".join(known)}.')
    for argument in SALIENCIES[1:]:
        for name in getattr(comparison, argument):
            if name not in comparison.methods or not guidance_class(name).needs_annotation:
                raise ValueError(
                    f'{argument}: "{name}" has to be among methods, and to use saliency, to have a control.'
                )
    if not [name for name in comparison.methods if name != BASELINE.method]:
        raise ValueError("methods is empty; name the guidance methods to compare with plain training.")
    if not comparison.seeds or len(set(comparison.seeds)) < len(comparison.seeds):
        raise ValueError(f"seeds={list(comparison.seeds)} has to be a list of different whole numbers.")
    fractions = list(comparison.annotated_fractions)
    if not fractions or len(set(fractions)) < len(fractions) or not all(0 < share <= 1 for share in fractions):
        raise ValueError(f"annotated_fractions={fractions} have to be different numbers above 0, at most 1.")
    if comparison.metric not in METRICS:
        raise ValueError(f'metric="{comparison.metric}" is not known; choose one of {", ".join(METRICS)}.')
    dataset = load_saliency_dataset(**comparison.data)
    for argument in ("train_split", "eval_split", "test_split", "ood_split"):
        name = getattr(comparison, argument)
        if name is not None or argument != "ood_split":
            _check_split(dataset, argument, name, comparison.metric)
    if comparison.test_split == comparison.ood_split:
        raise ValueError(
            f'ood_split="{comparison.ood_split}" is the test split as well; name the split of pictures from '
            "elsewhere, or write none where there is no such split."
        )
    judged = {comparison.test_split, comparison.ood_split}
    if comparison.eval_split in judged or comparison.train_split in judged | {comparison.eval_split}:
        raise ValueError(
            f"train_split={comparison.train_split}, eval_split={comparison.eval_split} and the test splits have to be "
            "different: what a run learns or selects on tells nothing about it."
        )
    if not any(annotated_rows(dataset[comparison.train_split]) or []):
        raise ValueError(
            f'no picture of train_split="{comparison.train_split}" is annotated; guidance has nothing to learn from. '
            "Name the column of maps with saliency_column, or annotate some pictures."
        )
    return dataset


def _check_split(dataset: DatasetDict, argument: str, name: str | None, metric: str) -> None:
    if name not in dataset:
        remedy = "; write none where there is no such split" if argument == "ood_split" else ""
        raise ValueError(f'{argument}="{name}" is not a split of the data; it has {", ".join(dataset)}{remedy}.')
    if argument == "train_split" or metric not in _NEEDS_EVERY_CLASS:
        return
    names = dataset[name].features["label"].names
    missing = sorted(set(range(len(names))) - set(_labels(dataset[name])))
    if missing:
        raise ValueError(
            f'{argument}="{name}" has no picture of {", ".join(names[label] for label in missing)}, so that '
            f'metric="{metric}" is not defined on it; take another split, or metric="accuracy".'
        )


def check_arms(specs: Sequence[RunSpec], dataset: DatasetDict) -> None:
    """
    Builds each way of training once, so that what the trainer refuses is known before the first run.

    Raises:
        ValueError: naming the arm and what was wrong.
    """
    seen = set()
    for spec in specs:
        key = (spec.arm, spec.backbone, repr(sorted(spec.training.items())))
        if key in seen or _is_done(spec):
            continue
        seen.add(key)
        with tempfile.TemporaryDirectory() as folder:
            try:
                make_trainer(dataclasses.replace(spec, folder=Path(folder)), dataset).get_train_dataloader()
            except Exception as error:  # an architecture may raise anything for bad arguments
                words = str(error) or type(error).__name__
                raise ValueError(f"{spec.arm.name} with {spec.backbone} cannot be trained: {words}") from error


def refuse_others(output: Path) -> None:
    """
    Refuses a folder that holds something else.

    Raises:
        ValueError: naming what is there.
    """
    if (output / STUDY_FILE).is_file():
        return
    ours = (".lock", SEARCH, SEARCH_FILE)
    others = sorted(path.name for path in output.iterdir() if path.name not in ours and path.suffix != ".part")
    if others:
        raise ValueError(f'output_dir="{output}" holds {others[0]}, which is no comparison\'s; name another folder.')


def table_digest(dataset: DatasetDict) -> str:
    """A fingerprint of the splits' rows: names, labels, groups and which are annotated; not of the pixels."""
    digest = hashlib.sha256()
    for name, split in dataset.items():
        columns = [column for column in ("file_name", "label", "group") if column in split.column_names]
        bare = undecoded(split).select_columns(columns)
        digest.update(repr((name, [bare[column][:] for column in columns], annotated_rows(split))).encode())
    return digest.hexdigest()[:16]


def settings_of(comparison: Comparison, dataset: DatasetDict) -> dict[str, Any]:
    """What the report tells about how the study was made; nothing of the machine's folders."""
    train = dataset[comparison.train_split]
    used = [comparison.train_split, comparison.eval_split, comparison.test_split, comparison.ood_split]
    names = train.features["label"].names
    specs = {name: comparison.spec(BASELINE, 0, 1.0, name, "") for name in comparison.backbones}
    return {
        "name": comparison.name,
        "metric": comparison.metric,
        "class_names": names,
        "backbones": {spec.backbone_name: dict(spec.model_args) for spec in specs.values()},
        "pretrained": comparison.pretrained,
        "image_size": comparison.training.get("image_size"),
        "splits": {
            "train": comparison.train_split,
            "validation": comparison.eval_split,
            "in": comparison.test_split,
            "out": comparison.ood_split,
        },
        "rows": {split: _facts(dataset[split], names) for split in used if split is not None},
        "columns": {name: value for name, value in comparison.data.items() if name != "path" and value is not None},
        "methods": list(comparison.methods),
        "controls": {kind: list(getattr(comparison, kind)) for kind in SALIENCIES[1:]},
        "seeds": list(comparison.seeds),
        "annotated_fractions": list(comparison.annotated_fractions),
        "training": {**_usual_arguments(next(iter(specs.values()))), **comparison.training},
        "method_arguments": {name: dict(given) for name, given in comparison.method_arguments.items()},
        "budget": comparison.budget.describe(comparison.method_arguments),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def _usual_arguments(spec: RunSpec) -> dict[str, Any]:
    """The training arguments that a reader looks for, whether the user set them or not."""
    args = run_arguments(dataclasses.replace(spec, folder=Path(tempfile.gettempdir())))
    length = "max_steps" if args.max_steps > 0 else "num_train_epochs"
    values = {name: getattr(args, name) for name in (length, *_USUAL)}
    return {name: value.value if isinstance(value, enum.Enum) else value for name, value in values.items()}


def _facts(split: Dataset, names: Sequence[str]) -> dict[str, Any]:
    labels = np.array(_labels(split))
    counts = {name: int((labels == index).sum()) for index, name in enumerate(names)}
    return {"pictures": len(split), "annotated": sum(annotated_rows(split) or []), "classes": counts}


def _labels(split: Dataset) -> list[int]:
    labels: list[int] = split.select_columns(["label"]).with_format(None)["label"][:]
    return labels
