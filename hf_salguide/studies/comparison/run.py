"""One run of a comparison: trained, selected on validation, judged on every split, written down."""

import contextlib
import dataclasses
import gc
import json
import math
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import set_seed

from ...arguments import SaliencyTrainingArguments
from ...backbones import as_classifier, data_config
from ...data import load_saliency_dataset
from ...data.checks import annotated_rows
from ...data.prepare import undecoded
from ...trainer import SaliencyTrainer
from ..predictions import layer_of_maps, predict
from .records import DONE, FAILED, Arm, RunRecord, SplitPredictions, predictions_file, write_json, write_run

VALIDATION = "validation"
_TRAINING, _MODEL, _LOG, _STARTED = "training", "model", "log.txt", "configuration.json"
_FRACTION_KEY = 0xA110


@dataclass(frozen=True)
class RunSpec:
    """
    Everything that a run is told.

    Attributes:
        folder (`Path`): where it writes.
        arm ([`Arm`]), seed (`int`), annotated_fraction (`float`), backbone (`str`): what is run.
        model_args (`dict`), pretrained (`bool`): how the backbone is built, see [`as_classifier`].
        data (`dict`): arguments of [`load_saliency_dataset`].
        train_split, eval_split, test_splits (`str`, `str`, `tuple`): where it learns, selects, and is judged.
        training (`dict`): arguments of [`SaliencyTrainingArguments`].
        metric (`str`): what the best epoch is selected by, on `eval_split`.
        digest (`str`): of the data set's table, so that a run of other data is noticed.
        keep_model (`bool`): whether the model is saved.
    """

    folder: Path
    arm: Arm
    seed: int
    annotated_fraction: float
    backbone: str
    model_args: Mapping[str, Any]
    pretrained: bool
    data: Mapping[str, Any]
    train_split: str
    eval_split: str
    test_splits: tuple[str, ...]
    training: Mapping[str, Any]
    metric: str
    digest: str
    keep_model: bool = False

    @property
    def backbone_name(self) -> str:
        """The backbone as it is written down: a folder of this machine by its last part."""
        place = Path(self.backbone)
        return place.name if place.is_absolute() or place.exists() else self.backbone

    def configuration(self) -> dict[str, Any]:
        """What the result depends on, as JSON gives it back."""
        left_out = ("folder", "data", "keep_model", "arm")
        content = {name: value for name, value in vars(self).items() if name not in left_out}
        columns = {name: value for name, value in self.data.items() if name != "path" and value is not None}
        content |= {"method": self.arm.method, "saliency": self.arm.saliency, "columns": columns}
        content["backbone"] = self.backbone_name
        read: dict[str, Any] = json.loads(json.dumps(content, default=str))
        return read


def run_arguments(spec: RunSpec) -> SaliencyTrainingArguments:
    """
    The training arguments of a run: the study's, the arm's, and selection on validation.

    Raises:
        ValueError: for arguments that [`SaliencyTrainingArguments`] refuses.
    """
    strategy = spec.training.get("eval_strategy", "epoch")
    steps = {"save_steps": spec.training["eval_steps"]} if "eval_steps" in spec.training else {}
    settings = {
        "save_total_limit": 1,
        "logging_strategy": "epoch",
        "disable_tqdm": True,
        "report_to": "none",
        "eval_alignment": False,  # the maps are judged once, at the end
        **spec.training,
        **steps,
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "load_best_model_at_end": True,
        "metric_for_best_model": spec.metric,
        "greater_is_better": True,
        "guidance": spec.arm.method,
        "invert_saliency": spec.arm.saliency == "inverted",
        "random_saliency": spec.arm.saliency == "random",
        "seed": spec.seed,
    }
    return SaliencyTrainingArguments(str(spec.folder / _TRAINING), **settings)


def make_trainer(spec: RunSpec, dataset: DatasetDict) -> SaliencyTrainer:
    """
    The trainer of a run, with a new model.

    Raises:
        ValueError: for whatever [`SaliencyTrainer`] refuses, before any compute is spent.
    """
    set_seed(spec.seed)
    args = run_arguments(spec)
    train = dataset[spec.train_split]
    model = as_classifier(
        spec.backbone,
        label_names=train.features["label"].names,
        pretrained=spec.pretrained,
        image_size=args.pixels,
        **spec.model_args,
    )
    return SaliencyTrainer(
        model,
        args,
        train_dataset=partly_annotated(train, spec.annotated_fraction, spec.seed),
        eval_dataset=dataset[spec.eval_split],
    )


def partly_annotated(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """
    A training set in which a share of the annotated pictures keeps its saliency.

    The share is drawn by the seed, within each class, and what a small share keeps, a larger one keeps too.

    Args:
        dataset (`Dataset`): with `label` and `saliency`.
        fraction (`float`): of the annotated pictures of each class, in [0, 1], rounded to whole pictures, one at
            least unless it is 0.
        seed (`int`): of the draw.

    Returns:
        `Dataset`; the data set itself for a fraction of 1.
    """
    if fraction >= 1:
        return dataset
    bare = undecoded(dataset)
    annotated = np.array(annotated_rows(dataset))
    labels = np.array(bare.select_columns(["label"]).with_format(None)["label"][:])
    kept = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.random.default_rng([_FRACTION_KEY, seed, int(label)]).permutation(
            np.flatnonzero(annotated & (labels == label))
        )
        count = max(round(fraction * len(rows)), 1 if fraction > 0 else 0)
        kept[rows[:count]] = True
    maps = [value if keep else None for value, keep in zip(bare["saliency"][:], kept, strict=True)]
    return dataset.remove_columns("saliency").add_column("saliency", maps, feature=dataset.features["saliency"])


@lru_cache(maxsize=1)
def _loaded(data: str) -> DatasetDict:
    return load_saliency_dataset(**json.loads(data))


def execute(spec: RunSpec) -> RunRecord:
    """
    Carries out a run; one that was broken off goes on from its last checkpoint.

    Args:
        spec ([`RunSpec`]): what is run.

    Returns:
        [`RunRecord`], which is also written into the run's folder, last of all. What goes wrong is recorded in it.
    """
    _start_or_go_on(spec)
    started = time.perf_counter()
    metrics: dict[str, dict[str, float]] = {}
    config: dict[str, Any] = {}
    error = ""
    with (spec.folder / _LOG).open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            metrics, config = _train_and_judge(spec)
        except Exception as failure:
            traceback.print_exc()
            error = f"{type(failure).__name__}: {failure}"
    gc.collect()  # a Trainer is part of reference cycles, and holds the model
    record = RunRecord(
        arm=spec.arm,
        seed=spec.seed,
        annotated_fraction=spec.annotated_fraction,
        backbone=spec.backbone_name,
        status=FAILED if error else DONE,
        error=error,
        seconds=time.perf_counter() - started,
        hyperparameters=dict(spec.training),
        metrics=metrics,
        folder=spec.folder,
        data_config=config,
    )
    write_run(record, spec.configuration())
    shutil.rmtree(spec.folder / _TRAINING, ignore_errors=True)
    return record


def _start_or_go_on(spec: RunSpec) -> None:
    """Notes what a run is started with, and clears away what was left of one with other settings."""
    file, configuration = spec.folder / _STARTED, spec.configuration()
    if spec.folder.exists() and not (file.is_file() and json.loads(file.read_text()) == configuration):
        shutil.rmtree(spec.folder)
    spec.folder.mkdir(parents=True, exist_ok=True)
    write_json(file, configuration)


def _train_and_judge(spec: RunSpec) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    dataset = _loaded(json.dumps(spec.data))
    trainer = make_trainer(spec, dataset)
    # Before training, so that a run that goes on reads its maps where the run that was broken off would have.
    layer = layer_of_maps(trainer.model, trainer.args.feature_layer)
    trainer.train(resume_from_checkpoint=last_checkpoint(spec.folder / _TRAINING))
    state = trainer.state
    metrics = {
        _TRAINING: {
            "epochs": float(state.epoch or 0),
            "steps": state.global_step,
            "best_step": state.best_global_step,
            f"best_{spec.metric}": float(state.best_metric or math.nan),
        }
    }
    for split in dict.fromkeys((spec.eval_split, *spec.test_splits)):
        predictions = predict(
            trainer.model,
            dataset[split],
            batch_size=trainer.args.per_device_eval_batch_size,
            num_workers=trainer.args.dataloader_num_workers,
            progress=False,
            guidance=trainer.guidance_block() or {},
            difference=True,
            feature_layer=layer,
        )
        metrics[split] = predictions.metrics()
        SplitPredictions(
            probabilities=predictions.probabilities,
            labels=np.asarray(predictions.labels),
            groups=predictions.groups,
            annotated=predictions.annotated,
            alignment=predictions.alignment,
            maps=predictions.maps.astype(np.float16),
            file_names=predictions.file_names,
        ).save(predictions_file(spec.folder, split))
    if spec.keep_model:
        trainer.save_model(str(spec.folder / _MODEL))
    return metrics, dataclasses.asdict(data_config(trainer.model))


def last_checkpoint(folder: Path) -> str | None:
    """
    The last whole checkpoint from which a run goes on exactly as it would have; what came after it is removed.

    That is one at the end of an epoch: within an epoch, `Trainer` restores the random state only after the next batch
    has been augmented. Where there is none, the run starts again.

    Args:
        folder (`Path`): of the checkpoints; need not exist.

    Returns:
        `str`, or `None` where there is none.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for checkpoint in reversed(checkpoints):
        file = checkpoint / "trainer_state.json"
        try:
            state = json.loads(file.read_text())  # written last
        except (OSError, ValueError):
            state = {"epoch": math.nan}
        best = Path(state.get("best_model_checkpoint") or checkpoint)
        if float(state["epoch"]).is_integer() and (folder / best.name).is_dir():
            # The comparison's folder may have been moved, or be named from elsewhere.
            write_json(file, {**state, "best_model_checkpoint": str(folder / best.name)})
            return str(checkpoint)
        shutil.rmtree(checkpoint)
    return None
