"""What a comparison refuses before any compute is spent."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import DatasetDict

from ...data import load_saliency_dataset
from ...data.checks import annotated_rows
from ...guidance import guidance_class, list_guidance
from .records import BASELINE, DONE, SALIENCIES, SEARCH, STUDY_FILE, read_run
from .run import RunSpec, make_trainer
from .search import SEARCH_FILE
from .settings import labels_of

if TYPE_CHECKING:
    from .plan import Comparison

METRICS = ("auroc", "accuracy", "balanced_accuracy", "average_precision")
_NEEDS_EVERY_CLASS = ("auroc", "average_precision")


def is_done(spec: RunSpec) -> bool:
    """Whether a run's result is there."""
    found = read_run(spec.folder)
    return found is not None and found[0].status == DONE


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
    missing = sorted(set(range(len(names))) - set(labels_of(dataset[name])))
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
        if key in seen or is_done(spec):
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
