"""How a comparison was made and how its report is read, in sentences."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from ..comparison.records import Study
from ..comparison.words import metric_name
from . import text as words

if TYPE_CHECKING:
    from ..comparison.findings import Analysis

_TRAINING = {
    "per_device_train_batch_size": "batches of {} pictures a device",
    "gradient_accumulation_steps": "gradient accumulation {}",
    "optim": "optimizer {}",
    "learning_rate": "learning rate {}",
    "lr_scheduler_type": "{} schedule",
    "warmup_ratio": "warm-up {}",
    "warmup_steps": "{} steps of warm-up",
    "weight_decay": "weight decay {}",
}


def how_it_was_made(study: Study, analysis: "Analysis") -> list[str]:
    """Data, training, budget, selection and statistics, a paragraph each, from the study's settings."""
    settings = study.settings
    metric = metric_name(analysis.metric)
    size = settings.get("image_size")
    splits = settings["splits"]
    start = "pretrained weights" if settings.get("pretrained") else "random weights"
    resolution = f"{size} pixels" if isinstance(size, int) else "the model’s own size" if size is None else str(size)
    outside = f"and, out of distribution, on “{splits['out']}”" if splits.get("out") else "and on no other test set"
    backbones = ", ".join(settings.get("backbones") or dict.fromkeys(run.backbone for run in study.runs))
    return [
        f"Every run trained {backbones} from {start} on pictures of {resolution}; runs of one seed share "
        f"the initial weights, the order of the pictures and their augmentation. It was judged on “{splits['in']}” "
        f"{outside}.",
        *training_words(settings.get("training") or {}),
        f"Hyper-parameters. {settings.get('budget') or 'The budget was not recorded.'}",
        f"Selection. A run was evaluated on the validation split as it went on, and the weights that were best there "
        f"by {metric} were kept. No test picture was looked at for it.",
        f"Intervals are at {words.percent(analysis.level)}.",
        *analysis.explanation,
    ]


def training_words(settings: Mapping[str, Any]) -> list[str]:
    """How runs were trained as a sentence: what the settings hold of length, batch, learning rate and schedule."""
    steps, epochs = settings.get("max_steps"), settings.get("num_train_epochs")
    if _is_number(steps) and steps > 0:
        parts = [f"{steps:g} steps"]
    else:
        parts = [f"{epochs:g} epochs"] if _is_number(epochs) else []
    for key, told in _TRAINING.items():
        value = settings.get(key)
        if value is not None:
            parts.append(told.format(f"{value:g}" if _is_number(value) else value))
    return [f"Training, where a method has no hyper-parameters of its own: {', '.join(parts)}."] if parts else []


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def how_to_read(analysis: "Analysis") -> list[str]:
    """The words of the report, explained."""
    return [
        "Arm: a way of training. Plain is training without guidance; the others are named by their method, and what "
        "stands in brackets is a control’s saliency. The numbers are the same in tables and plots.",
        "Difference to plain: the mean over seeds of an arm’s figure minus that of plain training with the same seed. "
        "An interval that includes 0 is no evidence for a difference.",
        "No evidence of a difference is not evidence of none: compare with the smallest difference that could be "
        "found.",
        "Energy inside the annotation: the share of a map’s positive evidence that lies where people annotated, from "
        "0 to 1; only annotated pictures count. The class map is that of the predicted class, the difference map that "
        "of the true class minus the others.",
        "In-distribution: test pictures from the sources of the training pictures. Out-of-distribution: from other "
        "sources, where a shortcut may stop helping.",
    ]
