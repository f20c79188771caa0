"""What goes into a trainer, checked: models, data sets and batches."""

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import getclosurevars
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from .data import annotated_share, check_rows, check_table, prepare_dataset
from .guidance import Guidance
from .hub import check_json

ROWS_CHECKED = 256
GUIDANCE_KEYS = ("saliency", "has_saliency", "sample_weight", "agreement")  # of a batch; the model takes the others
MIXING = ("MixUp", "CutMix", "Mixup", "FastCollateMixup")  # torchvision's and timm's


def check_model(model: Any) -> None:
    """
    Refuses a model that is no image classifier of transformers.

    Raises:
        ValueError: naming the remedy.
    """
    if model is None:
        raise ValueError("model=None: give a model, such as as_classifier('resnet18', label_names=[...]).")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel):
        raise ValueError(
            f"model is a {type(base).__name__}, which takes no labels and has no configuration to save; wrap it: "
            "as_classifier(model, label_names=[...])."
        )


def check_guidable(model: PreTrainedModel, methods: Sequence[Guidance]) -> None:
    """
    Refuses what methods cannot be right with: a model whose pictures have no true class or several, and options that
    it cannot meet or that cannot be saved.

    Args:
        model ([`~transformers.PreTrainedModel`]): the classifier.
        methods (`Sequence[Guidance]`): the methods.

    Raises:
        ValueError: naming the remedy.
    """
    names, config = [method.name for method in methods], model.config
    if config.num_labels < 2 or config.problem_type in ("multi_label_classification", "regression"):
        raise ValueError(
            f"guidance={', '.join(names)} needs one true class a picture, and the model has num_labels="
            f'{config.num_labels} and problem_type={config.problem_type!r}; use guidance="none", or a classifier '
            "with at least two exclusive classes."
        )
    check_json(methods)
    for method in methods:
        method.check_classes(config.num_labels)


def model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the model takes."""
    return {key: value for key, value in inputs.items() if key not in GUIDANCE_KEYS}


def annotated_scale(dataset: Any) -> float:
    """
    What terms that read saliency are multiplied by, where few pictures have it: one over the annotated share.

    Raises:
        ValueError: if no picture is annotated.
    """
    share = annotated_share(dataset)
    if share == 0.0:
        raise ValueError("rescale_annotated=True: no picture of train_dataset has a saliency map.")
    return 1.0 / share


def prepared(dataset: Any, transform: Any) -> Any:
    """A data set, or a dict of them, whose pictures are transformed when they are read; `None` stays `None`."""
    if isinstance(dataset, Mapping):
        return {name: prepared(part, transform) for name, part in dataset.items()}
    return None if dataset is None else prepare_dataset(dataset, transform)


def check_evaluated(dataset: Any, label_names: list[str]) -> None:
    """
    Checks the tables of data sets that a model is evaluated on: classes in another order would be scored wrongly.

    Args:
        dataset: a data set, a dict of them, or `None`.
        label_names (`list[str]`): the model's classes, in its order.

    Raises:
        ValueError: see [`~data.check_table`].
    """
    for part in dataset.values() if isinstance(dataset, Mapping) else [dataset]:
        if part is not None:
            check_table(part, label_names, training=False)


def check_first_rows(train: Any, evaluated: Any, num_labels: int, needs_annotation: bool) -> list[str]:
    """
    Checks what only decoding shows on the first rows of each data set; the rest is checked when it is read.

    Args:
        train: the training set, or `None`.
        evaluated: the evaluation set, a dict of them, or `None`.
        num_labels (`int`): the model's classes.
        needs_annotation (`bool`): whether training without any saliency map would do nothing.

    Returns:
        `list[str]`: what is suspicious and no error.

    Raises:
        ValueError: see [`~data.check_rows`]; and if no row of a training set that was read whole is annotated.
    """
    parts = evaluated if isinstance(evaluated, Mapping) else {"eval_dataset": evaluated}
    named = {name: part for name, part in {"train_dataset": train, **parts}.items() if part is not None}
    if not named:
        return []
    report = check_rows(named, limit=ROWS_CHECKED, num_labels=num_labels)
    warnings = [str(warning) for warning in report.warnings]
    shares = report.summary["annotated_share"].get("train_dataset", {})
    if needs_annotation and shares and not any(shares.values()):
        if len(train) <= ROWS_CHECKED:
            raise ValueError(
                "train_dataset: no row has a saliency map, and guidance would do nothing; give rows a saliency, or "
                'train with guidance="none".'
            )
        warnings.append(f"train_dataset: none of the {ROWS_CHECKED} rows that were read has a saliency map.")
    return warnings


def class_labels(inputs: Mapping[str, Any]) -> Tensor:
    """
    The batch's labels, one class id a picture, `(B,)`.

    Raises:
        ValueError: if there are none, or they are of another kind.
    """
    labels = inputs.get("labels")
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        met = "none" if labels is None else f"{labels.dtype} of the shape {tuple(labels.shape)}"
        raise ValueError(
            f"labels: guidance and row weights need one class id a picture, (B,) integers; the batch has {met}. Give "
            'rows a label, or train with guidance="none" and no weights.'
        )
    return labels.long()


def weighted_task_loss(
    model: Any, inputs: dict[str, Any], weight: Tensor, label_smoothing: float
) -> tuple[Tensor, Any]:
    """
    The cross-entropy with a weight for each row, and the model's outputs.

    Raises:
        ValueError: see [`class_labels`].
    """
    labels = class_labels(inputs)
    outputs = model(**inputs)
    losses = F.cross_entropy(outputs["logits"].float(), labels, reduction="none", label_smoothing=label_smoothing)
    return (losses * weight).mean(), outputs


def refuse_mixing(**callables: Any) -> None:
    """
    Refuses MixUp and CutMix, which blend pictures and leave each picture with several classes and no saliency.

    Args:
        **callables: transforms and collators by the argument's name; what they hold is looked through as well: their
            attributes, lists of transforms, closures and partial functions.

    Raises:
        ValueError: naming the argument and the remedy.
    """
    for argument, value in callables.items():
        found = _mixing(value, depth=6, seen=set())
        if found is not None:
            raise ValueError(
                f"{argument} holds {found}, which mixes pictures but not their saliency, and leaves no true class a "
                'picture; leave it out, or train with guidance="none".'
            )


def _mixing(value: Any, depth: int, seen: set[int]) -> str | None:
    """The name of a mixing transform inside a callable, or `None`."""
    if value is None or depth == 0 or id(value) in seen or isinstance(value, str | bytes | int | float | Tensor):
        return None
    seen.add(id(value))
    if type(value).__name__ in MIXING:
        return type(value).__name__
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set):
        parts = list(value)
    elif isinstance(value, partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        parts = [value.__self__]
    elif isinstance(value, FunctionType):
        captured = getclosurevars(value)
        parts = [*captured.nonlocals.values(), *captured.globals.values()]
    elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType | PreTrainedModel):
        parts = list(vars(value).values())
    return next((found for part in parts if (found := _mixing(part, depth - 1, seen))), None)
