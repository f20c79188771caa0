"""Methods × seeds × annotated fractions × backbones on one data set: planned, checked, run, resumed."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...guidance import guidance_class
from .checks import METRICS, check_arms, check_comparison, is_done, refuse_others
from .jobs import run_jobs
from .records import (
    BASELINE,
    FAILED,
    RUNS,
    SALIENCIES,
    SEARCH,
    Arm,
    RunRecord,
    Study,
    load_study,
    read_run,
    write_run,
    write_study,
)
from .results import write_results
from .run import RunSpec, execute
from .search import Budget
from .settings import settings_of, table_digest

__all__ = ["METRICS", "Comparison", "run_comparison"]


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
    open_specs = [spec for spec in specs if not is_done(spec)]
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
