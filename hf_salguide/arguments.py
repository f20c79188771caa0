"""Training arguments with guidance."""

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments

from .guidance import PLAIN, Guidance, get_guidance, guidance_class, schedule_factor
from .guidance.base import check_flag

# How names end, beside those of losses.
LOWER_IS_BETTER = re.compile(r"(^|_)(error|error_rate|kl|acer|[ab]pcer|apcer_all|[ab]pcer_at_bpcer_[\d.]+|fpr\d*)$")


@dataclass
class SaliencyTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] with guidance. The loss is
    `task_weight * task + sum_m guidance_weight[m] * guidance[m]`.

    Args:
        guidance (`str` or `list[str]`, *optional*, defaults to `"cyborg"`):
            The method or methods, see [`list_guidance`]; `"none"` is plain training.
        guidance_weight (`float` or `list[float]`, *optional*):
            The weight of the guidance term, one a method. Defaults to each method's published weight.
        task_weight (`float`, *optional*):
            The weight of the classification loss. Defaults to the method's published weight; to 1 where several
            methods differ in it. Setting one weight leaves the other alone: for CYBORG's `alpha`, set both.
        guidance_options (`dict`, *optional*):
            The method's own choices, such as `{"cam_class": "predicted"}`; with several methods one dict a method,
            `{"cyborg": {...}}`. On the command line as JSON.
        guidance_schedule (`str`, *optional*, defaults to `"constant"`):
            How the guidance weight moves over training: `"constant"`, `"linear_increase"`, `"linear_decrease"`,
            `"cosine_decrease"`, `"warmup:0.1"` or `"after:0.2"`, see [`~guidance.schedule_factor`]; or `"adaptive"`:
            task and guidance are balanced by their losses of the previous step, see [`~steps.GuidanceState`].
            Evaluation takes the full weight throughout.
        feature_layer (`str` or `list[str]`, *optional*):
            The module whose output the maps are made of; several for a head that reads several maps, whose maps are
            added up on the finest grid. Defaults to what [`resolve_feature_layer`] finds.
        image_size (`int` or `(H, W)`, *optional*):
            The size in pixels that pictures are brought to. Defaults to the model's own. It is saved with the model.
        empty_mask (`"skip"` or `"penalise_all"`, *optional*, defaults to `"skip"`):
            What an annotated picture with an empty mask means: it counts 0, or everything is outside. The latter only
            for methods that penalise the outside.
        random_saliency (`bool`, *optional*, defaults to `False`):
            Control: every saliency map is replaced by a random one, drawn anew at each step.
        invert_saliency (`bool`, *optional*, defaults to `False`):
            Control: every saliency map `S` is replaced by `1 - S`. If a control helps as much as the method does, the
            gain is not due to the saliency.
        rescale_annotated (`bool`, *optional*, defaults to `False`):
            Divides the guidance term by the annotated share of the training set, a constant, for sparse annotation.
        eval_alignment (`bool`, *optional*, defaults to `True`):
            Whether evaluation reports how well the predicted class's map matches the annotation, see
            [`~metrics.alignment_metrics`], on pictures that have one. It takes no further forward.
        greater_is_better (`bool`, *optional*):
            As in `TrainingArguments`. Defaults to `False` where the name of `metric_for_best_model` ends in `loss`,
            `error`, `error_rate`, `kl` or `fpr95`, or is one of [`~metrics.presentation_attack_metrics`], to `True`
            otherwise.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            As in `TrainingArguments`, which removes them by default, the saliency included.

    Raises:
        ValueError: for an unknown method, option, schedule or `empty_mask`, weights that do not fit the methods, or
            a `feature_layer` that names nothing or one module twice; the message names the argument, the value and
            the remedy.

    `hub_token` is left out when the arguments are pickled: `training_args.bin` is published with the model.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "guidance_options"]

    # HfArgumentParser parses the first member of a union whose second is None, and the second of `str | list`.
    guidance: str | list[str] = field(
        default="cyborg", metadata={"help": "Guidance method or methods; none is plain training.", "default": "cyborg"}
    )
    guidance_weight: list[float] | None | float | str = field(
        default=None, metadata={"help": "Weight of the guidance term, one a method (default: the published one)."}
    )
    task_weight: float | None = field(
        default=None, metadata={"help": "Weight of the classification loss (default: the method's published one)."}
    )
    guidance_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The method's own options, as JSON."}
    )
    guidance_schedule: str = field(
        default="constant",
        metadata={
            "help": "constant, adaptive, linear_increase, linear_decrease, cosine_decrease, warmup:FRACTION "
            "or after:FRACTION."
        },
    )
    feature_layer: list[str] | None | str = field(
        default=None,
        metadata={"help": "Module or modules whose outputs the maps are made of (default: found by their behaviour)."},
    )
    image_size: list[int] | None | int | str = field(
        default=None,
        metadata={"help": "Picture size in pixels, one number or height and width (default: model's)."},
    )
    empty_mask: Literal["skip", "penalise_all"] = field(
        default="skip", metadata={"help": "What an annotated picture with an empty mask means."}
    )
    random_saliency: bool = field(default=False, metadata={"help": "Control: random maps instead of the human ones."})
    invert_saliency: bool = field(default=False, metadata={"help": "Control: 1 - S instead of S."})
    rescale_annotated: bool = field(
        default=False, metadata={"help": "Divide the guidance term by the annotated share of the training set."}
    )
    eval_alignment: bool = field(
        default=True, metadata={"help": "Report how well maps match the annotation in evaluation."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove the columns that the model does not take, the saliency included."}
    )

    def __post_init__(self) -> None:
        if self.greater_is_better is None and LOWER_IS_BETTER.search(self.metric_for_best_model or ""):
            self.greater_is_better: bool | None = False
        super().__post_init__()
        if isinstance(self.guidance, list) and len(self.guidance) == 1:
            self.guidance = self.guidance[0]
        self.image_size = _image_size(self.image_size)
        self.feature_layer = _feature_layer(self.feature_layer)
        schedule_factor(self.guidance_schedule, 0.0)
        self.guidance_weight = _weights(self.guidance_weight, self.guidance_names)
        self.resolved_task_weight()
        for name in ("random_saliency", "invert_saliency", "rescale_annotated", "eval_alignment"):
            check_flag(name, getattr(self, name))
        if self.empty_mask not in ("skip", "penalise_all"):
            raise ValueError(f'empty_mask="{self.empty_mask}" is not known; choose "skip" or "penalise_all".')
        for method in self.build_guidance():
            if self.empty_mask == "penalise_all" and not method.accepts_empty_masks:
                raise ValueError(
                    f'empty_mask="penalise_all" has no meaning for guidance="{method.name}", which matches a map to '
                    'the saliency and has nothing to match in an empty mask; use empty_mask="skip".'
                )
        self.weighted_guidance()

    @property
    def guidance_names(self) -> list[str]:
        """The names of the methods, one or several; `["none"]` for plain training."""
        return list(self.guidance) if isinstance(self.guidance, list | tuple) else [self.guidance]

    @property
    def pixels(self) -> tuple[int, int] | None:
        """`image_size` as `(H, W)`."""
        size = _image_size(self.image_size)
        return (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])

    def build_guidance(self) -> list[Guidance]:
        """
        Builds the methods with their options.

        Raises:
            ValueError: for an unknown method or option, a method named twice, or `"none"` beside another method.
        """
        names = self.guidance_names
        if not names or len(set(names)) < len(names) or (PLAIN in names and len(names) > 1):
            raise ValueError(f"guidance={names} has to name each method once, and none stands alone.")
        options = self.guidance_options or {}
        if not isinstance(options, dict):
            raise ValueError(f"guidance_options={options!r} has to be a dict, or JSON of one.")
        if len(names) > 1:
            for name in options:
                if name not in names or not isinstance(options[name], dict):
                    raise ValueError(
                        f'guidance_options: with several methods, give one dict a method; "{name}" is '
                        f"{options[name]!r}, and the methods are {', '.join(names)}."
                    )
            return [get_guidance(name, **options.get(name, {})) for name in names]
        if set(options) == {names[0]} and isinstance(options[names[0]], dict):
            options = options[names[0]]  # one dict a method, as for several
        return [get_guidance(names[0], **options)]

    def guidance_weights(self) -> list[float]:
        """The weight of each method's term: what the user set, else the published one."""
        if self.guidance_names == [PLAIN]:
            return [0.0]
        defaults = [guidance_class(name).default_weight for name in self.guidance_names]
        weights = _weights(self.guidance_weight, self.guidance_names)  # they may have been set since
        return defaults if weights is None else _as_list(weights)

    def weighted_guidance(self) -> list[tuple[Guidance, float]]:
        """
        The methods that have a weight other than 0, built with their options, each with its weight.

        Raises:
            ValueError: for a schedule where none of them has a term.
        """
        built = zip(self.build_guidance(), self.guidance_weights(), strict=True)
        weighted = [(method, weight) for method, weight in built if weight != 0]
        scheduled = self.guidance_schedule != "constant"
        if scheduled and weighted and all(method.transforms_inputs for method, _ in weighted):
            names = ", ".join(method.name for method, _ in weighted)
            raise ValueError(
                f'guidance_schedule="{self.guidance_schedule}" moves the weight of a term, and guidance={names} '
                "changes the pictures and has none; leave guidance_schedule out."
            )
        return weighted

    def resolved_task_weight(self) -> float:
        """The weight of the classification loss: what the user set, else the published one."""
        weight = self.task_weight
        if weight is not None:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"task_weight={weight!r} has to be a number of at least 0.")
            return float(weight)
        defaults = {guidance_class(name).default_task_weight for name in self.guidance_names}
        return defaults.pop() if len(defaults) == 1 else 1.0

    def refuse_unsupported(self) -> None:
        """
        Refuses what guidance cannot be right under, and an output folder that cannot be written.

        Raises:
            ValueError: naming the argument, the value and the remedy.
        """
        try:
            Path(str(self.output_dir)).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output_dir):
                pass
        except OSError as error:
            raise ValueError(f'output_dir="{self.output_dir}" cannot be written ({error}); choose another.') from error
        if self.remove_unused_columns and any(self.guidance_weights()):
            raise ValueError(
                "remove_unused_columns=True would remove the saliency before the trainer sees it; leave it out."
            )
        if self.ddp_static_graph:
            raise ValueError(
                "ddp_static_graph=True gives wrong gradients with guidance, silently; leave it out, "
                "DistributedDataParallel is exact without it."
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs in one process mean nn.DataParallel, whose replicas share the captured features; "
                f"start one process a GPU with `accelerate launch --multi_gpu --num_processes {self.n_gpu}`, or show "
                "this process a single one with CUDA_VISIBLE_DEVICES=0."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "hub_token": None}


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _weights(value: Any, names: list[str]) -> float | list[float] | None:
    """Checks `guidance_weight` against the methods it belongs to."""
    if value is None:
        return None
    try:
        weights = [float(weight) for weight in _as_list(value)]
    except (TypeError, ValueError):
        weights = []
    flags = any(isinstance(weight, bool) for weight in _as_list(value))
    if flags or not weights or not all(0 <= weight < float("inf") for weight in weights):
        raise ValueError(f"guidance_weight={value!r} has to be a number of at least 0, or a list of them.")
    if len(weights) != len(names):
        raise ValueError(
            f"guidance_weight={value!r} has {len(weights)} number(s) for {len(names)} method(s) "
            f"({', '.join(names)}); give one a method."
        )
    return weights if len(weights) > 1 else weights[0]


def _image_size(value: Any) -> int | list[int] | None:
    """Brings `image_size` to an int or `[H, W]`."""
    if value is None:
        return None
    try:
        size = [int(side) for side in (value.lower().split("x") if isinstance(value, str) else _as_list(value))]
    except (TypeError, ValueError):
        size = []
    if len(size) not in (1, 2) or min(size) < 1:
        raise ValueError(f"image_size={value!r} has to be a number of pixels, or height and width.")
    return size[0] if len(size) == 1 else size


def _feature_layer(value: Any) -> str | list[str] | None:
    """Brings `feature_layer` to one name or a list of several different ones."""
    if value is None:
        return None
    names = _as_list(value)
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"feature_layer={value!r} has to be the name of a module, or a list of different names; leave it out to "
            "have the layer found."
        )
    return names if len(names) > 1 else names[0]
