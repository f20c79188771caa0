"""`hf-salguide train`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import softmax
from transformers import EarlyStoppingCallback, EvalPrediction, set_seed

from ..arguments import SaliencyTrainingArguments
from ..backbones import as_classifier
from ..metrics import classification_metrics
from ..trainer import SaliencyTrainer
from .common import DataArguments, split_of, table, write_json
from .parsing import as_dict, parse


@dataclass
class TrainArguments(DataArguments):
    """What is trained, on which splits."""

    model: str = field(default="resnet18", metadata={"help": "timm name, Hub id or folder."})
    pretrained: bool = field(default=False, metadata={"help": "Start from pretrained weights."})
    model_args: dict | str | None = field(
        default=None, metadata={"help": 'Keyword arguments of the model, as JSON: {"global_pool": "avg"}.'}
    )
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    eval_split: str | None = field(
        default="validation", metadata={"help": "The split to evaluate and select on; none for none."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better metric_for_best_model before training stops."}
    )


def run(argv: Sequence[str]) -> int:
    """Trains a classifier on a data set of pictures and saliency, guided or plain, and saves it."""
    args, training = parse([TrainArguments, SaliencyTrainingArguments], argv, "train", run.__doc__ or "", "data")
    dataset = args.load()
    train = split_of(dataset, "train_split", args.train_split)
    evaluated = args.eval_split not in (None, "none", "")
    validation = split_of(dataset, "eval_split", args.eval_split) if evaluated else None
    set_seed(training.seed)
    model = as_classifier(
        args.model,
        label_names=train.features["label"].names,
        pretrained=args.pretrained,
        image_size=training.image_size,
        **as_dict("model_args", args.model_args),
    )
    patience = args.early_stopping_patience
    trainer = SaliencyTrainer(
        model,
        training,
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=compute_metrics,
        callbacks=None if patience is None else [EarlyStoppingCallback(patience)],
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    if validation is not None:
        metrics = trainer.evaluate()
        if trainer.is_world_process_zero():
            path = write_json(f"{training.output_dir}/results.json", metrics)
            print(table(["metric", "value"], sorted(metrics.items())))
            print(f"Written to {path}")
    if trainer.is_world_process_zero():
        print(f"Model saved in {training.output_dir}; next: hf-salguide evaluate --model {training.output_dir} ...")
    return 0


def compute_metrics(prediction: EvalPrediction) -> dict[str, Any]:
    """Accuracy, balanced accuracy and AUROC, for the trainer."""
    return classification_metrics(np.asarray(prediction.label_ids), softmax(prediction.predictions, axis=1))
