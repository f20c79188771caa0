"""What a trainer shows of a run: the model, the training, the data, the machine."""

import importlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..data import annotated_rows
from ..guidance import Guidance
from ..guidance.registry import guidance_options
from .facts import hub_id
from .metadata import KEY
from .papers import citations
from .record import MethodFacts, ModelFacts, SplitFacts, TrainingFacts

# Arguments that change the result. Paths, logging, output and the Hub's are none of them.
HYPERPARAMETERS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "optim",
    "optim_args",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "image_size",
    "bf16",
    "fp16",
    "tf32",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "data_seed",
    "full_determinism",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "eval_strategy",
    "eval_steps",
)
OF_THE_OPTIMIZER = ("optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
OF_THE_SCHEDULER = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
LIBRARIES = ("hf_salguide", "torch", "transformers", "timm", "accelerate", "datasets")


def model_facts(model: Any) -> ModelFacts:
    """
    What a classifier's configuration says.

    Args:
        model ([`~transformers.PreTrainedModel`]): the classifier, or adapters of peft around one.
    """
    config = model.config
    adapted = hasattr(model, "peft_config")
    base = model.get_base_model() if adapted else model
    is_timm = getattr(config, "model_type", None) == "timm_wrapper"
    labels = getattr(config, "id2label", None) or {}
    channels, size = _input(config)
    return ModelFacts(
        architecture=str(config.architecture) if is_timm else type(base).__name__,
        library="peft" if adapted else "timm" if is_timm else "transformers",
        label_names=[str(labels[index]) for index in sorted(labels)],
        image_size=size,
        channels=channels,
        parameters=sum(parameter.numel() for parameter in base.parameters()),
        base_model=hub_id(getattr(config, "name_or_path", None) or getattr(config, "_name_or_path", None)),
    )


def _input(config: Any) -> tuple[int | None, list[int] | None]:
    """Channels and `[H, W]` of the pictures, as far as a configuration has them."""
    recorded = getattr(config, "pretrained_cfg", None)
    if isinstance(recorded, Mapping) and recorded.get("input_size"):
        channels, *size = recorded["input_size"]
        told = (getattr(config, "model_args", None) or {}).get("in_chans")
        return int(told or channels), [int(side) for side in size]
    channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    pair = [size, size] if isinstance(size, int) else list(size) if isinstance(size, list | tuple) else None
    return channels if isinstance(channels, int) else None, pair


def method_facts(method: Guidance, weight: float) -> MethodFacts:
    """A guidance method as it was used: its formula, paper, and the options that are not the default."""
    kind = type(method)
    defaults = guidance_options(kind)
    paper = getattr(kind, "paper", None)
    return MethodFacts(
        name=method.name,
        weight=None if kind.transforms_inputs else float(weight),
        formula=getattr(kind, "formula", None),
        paper=paper,
        citations=[] if paper is None else citations(paper),
        reconstructed=kind.reconstructed,
        transforms_inputs=kind.transforms_inputs,
        transforms_evaluation=kind.transforms_evaluation,
        options={name: plain(value) for name, value in method.options.items() if value != defaults.get(name)},
    )


def own_choices(trainer: Any) -> dict[str, Any]:
    """What a user gave a trainer beside its arguments, that changes the result: an optimizer, a schedule, a loss."""
    found: dict[str, Any] = {}
    optimizer, scheduler = getattr(trainer, "optimizer", None), getattr(trainer, "lr_scheduler", None)
    if optimizer is not None:
        found["optimizer"] = _call(type(optimizer), getattr(optimizer, "defaults", {}))
    if scheduler is not None:
        found["lr_scheduler"] = type(scheduler).__name__
    kind = getattr(trainer, "optimizer_cls_and_kwargs", None)
    if kind is not None:
        found["optimizer"] = _call(*kind)
    loss = getattr(trainer, "compute_loss_func", None)
    if loss is not None:
        found["compute_loss_func"] = getattr(loss, "__name__", type(loss).__name__)
    return found


def _call(kind: type, options: Mapping[str, Any]) -> str:
    """A class and its numbers, as it is called."""
    told = {name: value for name, value in options.items() if value and isinstance(value, bool | int | float | tuple)}
    return f"{kind.__name__}({', '.join(f'{name}={value}' for name, value in told.items())})"


def training_facts(trainer: Any, own: Mapping[str, Any] | None = None) -> TrainingFacts:
    """
    How a trainer trains: its guidance and the arguments that are not the default.

    Args:
        trainer: a [`SaliencyTrainer`], or any `Trainer`, which has no guidance.
        own (`dict`, *optional*): what [`own_choices`] found before training.
    """
    args, own = trainer.args, own or {}
    told = {**hyperparameters(args), **own}
    if "optimizer" in own:
        told = {name: value for name, value in told.items() if name not in OF_THE_OPTIMIZER}
    if "lr_scheduler" in own:
        told = {name: value for name, value in told.items() if name not in OF_THE_SCHEDULER}
    for callback in getattr(getattr(trainer, "callback_handler", None), "callbacks", []):
        if hasattr(callback, "early_stopping_patience"):
            told["early_stopping_patience"] = callback.early_stopping_patience
    if getattr(trainer, "has_own_train_transform", False):
        told["train_transform"] = "given by the user"
    block: Mapping[str, Any] = getattr(trainer, "guidance_block", lambda: None)() or {}
    methods = [
        method_facts(method, weight)
        for method, weight in zip(
            getattr(trainer, "guidance", []), getattr(trainer, "guidance_weights", []), strict=True
        )
    ]
    task_weight = getattr(trainer, "task_weight", None)
    schedule, empty_mask = (block.get(name) for name in ("guidance_schedule", "empty_mask"))
    control = "random" if block.get("random_saliency") else "inverted" if block.get("invert_saliency") else None
    return TrainingFacts(
        methods=methods,
        task_weight=task_weight if methods or task_weight != 1.0 else None,
        schedule=None if schedule == "constant" else schedule,
        feature_layers=as_list(block.get("feature_layer")),
        empty_mask=None if empty_mask == "skip" else empty_mask,
        control=control,
        annotated_scale=bool(block.get("rescale_annotated")),
        hyperparameters=told,
        continued=as_list((getattr(trainer.model.config, KEY, None) or {}).get("name")),
        seed=getattr(args, "seed", None),
        processes=getattr(args, "world_size", None),
        hardware=hardware(args.device, getattr(args, "world_size", 1)),
        versions=versions(),
    )


def hyperparameters(args: Any) -> dict[str, Any]:
    """The training arguments of [`HYPERPARAMETERS`] that are not the default of their class."""
    defaults = {}
    for entry in fields(args):
        defaults[entry.name] = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    found = {}
    for name in HYPERPARAMETERS:
        if name not in defaults:
            continue
        value, default = plain(getattr(args, name, None)), plain(defaults[name])
        if value not in (default, None, {}, []) or (value == 0 and default not in (0, None)):
            found[name] = value
    if not getattr(args, "load_best_model_at_end", False):
        for name in ("metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps"):
            found.pop(name, None)  # evaluation changes the weights where it selects them
    if found.get("max_steps", -1) > 0:
        found.pop("num_train_epochs", None)
    return found


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def as_list(value: Any) -> list[str]:
    """One name or several, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else [str(entry) for entry in value]


def versions() -> dict[str, str]:
    """The versions of the libraries that training ran with, and of Python."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            told = getattr(importlib.import_module(name), "__version__", None)
            if told:
                found[name] = str(told)
    return {**found, "python": platform.python_version()}


def hardware(device: torch.device, processes: int = 1) -> str:
    """What so many processes, each on such a device, run on: model and number, never a host's name."""
    if device.type == "cuda":
        return f"{processes} × {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return device.type.upper()
    threads, name = torch.get_num_threads(), _processor()
    return f"CPU{f' {name}' if name else ''}, {threads} thread{'' if threads == 1 else 's'} a process"


def _processor() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    name = lines[0] if lines else platform.processor()
    return name if name and name.lower() != "unknown" else None


def split_facts(name: str, dataset: Any) -> SplitFacts | None:
    """The size of a split, and how many of its rows are annotated where the table tells; no picture is read."""
    if dataset is None or not hasattr(dataset, "__len__"):
        return None
    flags = annotated_rows(dataset)
    return SplitFacts(name, len(dataset), None if flags is None else sum(flags))


def column_of(dataset: Any, names: Sequence[str]) -> list[Any] | None:
    """A column of a data set without reading a picture; `None` where only reading the rows would tell."""
    table = getattr(dataset, "dataset", dataset)
    name = next((name for name in names if name in (getattr(table, "column_names", None) or [])), None)
    if name is None or not hasattr(table, "select_columns") or not hasattr(table, "__len__"):
        return None
    values: list[Any] = table.select_columns([name]).with_format("arrow")[:].column(name).to_pylist()
    return values
