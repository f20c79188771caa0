"""`hf-salguide train`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from ..arguments import SaliencyTrainingArguments
from ..backbones import as_classifier
from ..callbacks import SaliencyPanelCallback
from ..hub.callback import ModelCardCallback
from ..hub.facts import check_facts
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
    card: dict | str | None = field(
        default=None,
        metadata={
            "help": 'What the model card is to say beside what the run shows, as JSON: {"license": "mit", '
            '"dataset_license": "cc-by-4.0", "saliency_source": "two readers", "baseline": "out/plain"}.'
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better metric_for_best_model before training stops."}
    )


def run(argv: Sequence[str]) -> int:
    """Trains a classifier on a data set of pictures and saliency, guided or plain, and saves it."""
    args, training = parse([TrainArguments, SaliencyTrainingArguments], argv, "train", run.__doc__ or "", "data")
    card = model_card(args, bool(training.push_to_hub))
    resume = resume_from(training.resume_from_checkpoint)
    refuse_used(str(training.output_dir), resume)
    dataset = args.load()
    train = split_of(dataset, "train_split", args.train_split)
    evaluated = args.eval_split not in (None, "none", "")
    if evaluated and args.eval_split not in dataset:
        raise ValueError(
            f'eval_split="{args.eval_split}" is not a split of the data; it has {", ".join(dataset)}. Name one of '
            "them, or train without evaluation: --eval_split none."
        )
    validation = dataset[args.eval_split] if evaluated else None
    set_seed(training.seed)
    try:
        model = as_classifier(
            args.model,
            label_names=train.features["label"].names,
            pretrained=args.pretrained,
            image_size=training.image_size,
            **as_dict("model_args", args.model_args),
        )
    except TypeError as error:
        raise ValueError(f"model_args: {error}") from error
    patience = args.early_stopping_patience
    trainer = SaliencyTrainer(
        model,
        training,
        train_dataset=train,
        eval_dataset=validation,
        callbacks=[card, *([] if patience is None else [EarlyStoppingCallback(patience)])],
    )
    if card.facts.publish_pictures and card.facts.panel is None:
        card.draw = SaliencyPanelCallback(train if validation is None else validation).draw
    results = Path(str(training.output_dir)) / "results.json"
    results.unlink(missing_ok=True)  # of an earlier run: it would outlive a run that is broken off
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(_internal_call=True)  # published below, with the results in its card
    trainer.save_state()
    if validation is not None:
        metrics = trainer.evaluate()
        trainer.create_model_card()
        if trainer.is_world_process_zero():
            print(table(["metric", "value"], sorted(metrics.items())))
            print(f"Written to {write_json(results, metrics)}")
    if training.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        print(f"Model saved in {training.output_dir}; next: hf-salguide evaluate --model {training.output_dir} ...")
    return 0


def model_card(args: TrainArguments, pushes: bool) -> ModelCardCallback:
    """
    The card that the options describe; the data set and the evaluation split are known without being told.

    Args:
        args ([`TrainArguments`]): the options.
        pushes (`bool`): whether the model is published, so that a data set without a license is worth a warning.

    Raises:
        ValueError: for a fact that there is not, or one of a wrong type.
    """
    told = as_dict("card", args.card)
    check_facts(told)
    split = args.eval_split or "none"
    known: dict[str, Any] = {"dataset": args.data, "split_names": {} if split == "none" else {"eval": split}}
    card = ModelCardCallback(**{**known, **told})
    card.reminds = bool(told) or pushes
    return card


def resume_from(value: str | bool | None) -> str | bool | None:
    """`resume_from_checkpoint` as `Trainer` takes it: `True` for the latest checkpoint, or a checkpoint's folder."""
    words = {"true": True, "false": None, "none": None, "": None}
    return words.get(str(value).lower(), value)


def refuse_used(output_dir: str, resume: str | bool | None) -> None:
    """
    Refuses to mix two runs in one folder, and to resume from nothing.

    Raises:
        ValueError: if the folder holds checkpoints and none is resumed from, or the other way round.
    """
    checkpoints = sorted(path.name for path in Path(output_dir).glob("checkpoint-*"))
    if checkpoints and not resume:
        raise ValueError(
            f'output_dir="{output_dir}" holds {checkpoints[0]} of an earlier run; give another --output_dir, or go on '
            "with --resume_from_checkpoint true."
        )
    if resume is True and not checkpoints:
        raise ValueError(
            f'resume_from_checkpoint=true, but output_dir="{output_dir}" holds no checkpoint; leave the option out.'
        )
