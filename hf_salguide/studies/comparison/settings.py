"""What is told of how a comparison was made; nothing of the machine's folders."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib.metadata
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, DatasetDict

from ...data.checks import annotated_rows
from ...data.prepare import undecoded
from .records import BASELINE, SALIENCIES
from .run import RunSpec, run_arguments

if TYPE_CHECKING:
    from .plan import Comparison

_USUAL = ("per_device_train_batch_size", "optim", "learning_rate", "lr_scheduler_type", "weight_decay")
_VERSIONS = ("hf_salguide", "torch", "transformers", "timm")


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
    labels = np.array(labels_of(split))
    counts = {name: int((labels == index).sum()) for index, name in enumerate(names)}
    return {"pictures": len(split), "annotated": sum(annotated_rows(split) or []), "classes": counts}


def labels_of(split: Dataset) -> list[int]:
    """The class ids of a split, without reading a picture."""
    labels: list[int] = split.select_columns(["label"]).with_format(None)["label"][:]
    return labels
