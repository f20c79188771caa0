"""`SaliencyTrainer`: `transformers.Trainer` whose `compute_loss` adds guidance terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TimmWrapperImageProcessor
from transformers.utils import logging

from .arguments import SaliencyTrainingArguments
from .backbones import DataConfig, FeatureLayer, data_config, image_processor, set_image_size
from .data import SaliencyCollator, check_table, make_transforms
from .guidance import ADAPTIVE, Guidance, Pictures, schedule_factor
from .hub import guidance_block
from .inputs import (
    annotated_scale,
    check_evaluated,
    check_first_rows,
    check_guidable,
    check_model,
    class_labels,
    model_inputs,
    prepared,
    refuse_mixing,
    weighted_task_loss,
)
from .means import RunningMeans
from .publishing import PublishingTrainer
from .steps import (
    Choice,
    Draws,
    EndOfStep,
    GuidanceState,
    GuidedForward,
    Plan,
    as_checkpointed,
    carried_size,
    guarded_hooks,
    guidance_terms,
    kept_whole,
    make_plan,
    refuse_counted_views,
    refuse_frozen,
    refuse_sharded,
    reusable_graph,
    run_options,
    sharded_engines,
    step_saliency,
)

logger = logging.get_logger(__name__)


class SaliencyTrainer(PublishingTrainer):
    """
    A drop-in [`~transformers.Trainer`] for image classifiers, whose loss adds guidance by human saliency.

    The loss of a micro-batch of `B` pictures is `task_weight * task + guidance_weight * sum_i term_i / B`; pictures
    without saliency have a term of 0. So accumulation, the micro-batch size and the number of processes do not change
    the gradient. With `guidance="none"`, or `guidance_weight=0, task_weight=1`, no guidance code runs and training
    is bit-identical to that of `transformers.Trainer` (where that divides the loss by the accumulation steps, as it
    fails to for most image classifiers).

    Args:
        model ([`~transformers.PreTrainedModel`]): an image classifier, see [`as_classifier`].
        args ([`SaliencyTrainingArguments`], *optional*): defaults to CYBORG with `output_dir="tmp_trainer"`.
        data_collator (`Callable`, *optional*): defaults to [`SaliencyCollator`].
        train_dataset, eval_dataset (*optional*): data sets whose rows hold `image`, `label` and `saliency` (see
            [`load_saliency_dataset`]), which the trainer brings to the model's size, or `pixel_values` `(C, H, W)`,
            `labels` and `saliency` `(H, W)`, float in [0, 1] or uint8, or `None`, already prepared.
        processing_class (*optional*): the image processor that is saved with the model. Defaults to one that does what
            the trainer's own evaluation transform does.
        compute_metrics (`Callable`, *optional*): defaults to [`~metrics.classification_metrics`] of the probabilities.
            The loss's components and, on annotated pictures, [`~metrics.alignment_metrics`] are reported in any case.
        model_init, compute_loss_func, callbacks, optimizers, optimizer_cls_and_kwargs,
        preprocess_logits_for_metrics (*optional*): as in `Trainer`.
        train_transform, eval_transform (`Callable`, *optional*): called with a picture and its saliency, or `None`,
            together; return `pixel_values` `(C, H, W)` and saliency `(H, W)`, or `None`. Default to
            [`~data.make_transforms`] with the model's size, mean, standard deviation and interpolation.

    Raises:
        ValueError: for arguments, a model or data that guidance cannot work with, before any compute is spent.

    Example:

    ```python
    >>> from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments, as_classifier, load_saliency_dataset
    >>> dataset = load_saliency_dataset("path/to/folder")
    >>> model = as_classifier("resnet18", label_names=dataset["train"].features["label"].names)
    >>> args = SaliencyTrainingArguments("out", guidance="cyborg", num_train_epochs=3)
    >>> trainer = SaliencyTrainer(model, args, train_dataset=dataset["train"], eval_dataset=dataset["validation"])
    >>> trainer.train()
    ```
    """

    # Every term is a mean over the micro-batch; most image classifiers take **kwargs and ignore num_items_in_batch.
    loss_is_scaled_for_ga: bool | None = False
    data_collator: Callable

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: SaliencyTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        *,
        train_transform: Callable | None = None,
        eval_transform: Callable | None = None,
    ) -> None:
        args = SaliencyTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, SaliencyTrainingArguments):
            raise ValueError(f"args is a {type(args).__name__}; SaliencyTrainer takes SaliencyTrainingArguments.")
        args.refuse_unsupported()
        if model_init is None or model is not None:
            check_model(model)
        collator = SaliencyCollator()
        super().__init__(
            model=model,
            args=args,
            data_collator=collator if data_collator is None else data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self.model_accepts_loss_kwargs = False
        self._default_collator = collator
        self._carried: dict[tuple[int, int], tuple[int, int]] = {}  # saliency's size, by the picture's
        if compute_loss_func is not None:
            self.loss_is_scaled_for_ga = True  # it gets num_items_in_batch and is expected to divide by it

        self.guidance: list[Guidance] = []
        self._state = GuidanceState([], adaptive=False)
        self._read_guidance()
        if train_dataset is not None:
            check_table(train_dataset, self.label_names_of_model, needs_annotation=self._needs_annotation)
        check_evaluated(eval_dataset, self.label_names_of_model)
        self._unchecked = (train_dataset, eval_dataset)

        if args.pixels is not None:
            set_image_size(self.model, args.pixels)
        config = data_config(self.model, image_size=args.pixels, processor=processing_class)
        self.train_transform = make_transforms(config, train=True) if train_transform is None else train_transform
        self.eval_transform = make_transforms(config, train=False) if eval_transform is None else eval_transform
        self.has_own_train_transform = train_transform is not None
        self._size = config.size
        self._set_up_guidance()
        if train_dataset is not None:
            refuse_frozen(self.model, self._plan, self._size)
        self._data_config = config if eval_transform is None else None
        if eval_transform is None:
            processor = image_processor(self.model, config)
            # A timm model's own config.json is its processor's configuration, and is saved anyway.
            own = isinstance(processor, TimmWrapperImageProcessor)
            if not own and (processing_class is None or args.pixels is not None):
                self.processing_class = processor
        self.train_dataset = prepared(train_dataset, self.train_transform)
        self.eval_dataset = prepared(eval_dataset, self.eval_transform)

        self._train_means = RunningMeans()
        self._set_up_evaluation(default_metrics=compute_metrics is None and preprocess_logits_for_metrics is None)
        self._set_up_card()
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # until the loop says otherwise

    # ---- Set-up ----

    @property
    def is_guided(self) -> bool:
        """Whether any method has a weight other than 0."""
        return bool(self.guidance)

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """As in `Trainer`; a model that is made anew gets the pictures' size and preparation of the first one."""
        model = super().call_model_init(trial)
        check_model(model)
        if self.args.pixels is not None:
            set_image_size(model, self.args.pixels)
        config: DataConfig | None = getattr(self, "_data_config", None)
        if config is not None:
            image_processor(model, config)
        return model

    def _read_guidance(self) -> bool:
        """Methods and weights from the arguments, which a hyperparameter search changes; whether methods differ."""
        weighted = self.args.weighted_guidance()
        self.guidance_weights = [weight for _, weight in weighted]
        self.task_weight = self.args.resolved_task_weight()
        self._state.adaptive = self.args.guidance_schedule == ADAPTIVE
        if [repr(method) for method, _ in weighted] == [repr(method) for method in self.guidance]:
            return False
        self.guidance = [method for method, _ in weighted]
        return True

    def _set_up_guidance(self) -> None:
        """Finds what the methods need of the model at hand, and makes their state anew."""
        self._planned = ref(self.model)
        self._plan, self._plan_size = Plan(methods=()), self._size
        self._how_run = run_options(self.accelerator, self.args, self.model)
        self._state = GuidanceState(self.guidance, adaptive=self.args.guidance_schedule == ADAPTIVE)
        told = self.train_dataset is not None and any(method.needs_annotation for method in self.guidance)
        self._annotated_scale = annotated_scale(self.train_dataset) if self.args.rescale_annotated and told else 1.0
        self.remove_callback(EndOfStep)
        if not self.is_guided:
            return
        check_guidable(self.model, self.guidance)
        refuse_mixing(train_transform=self.train_transform, data_collator=self.data_collator)
        self._make_plan(self._size)
        if self.compute_loss_func is None and self.label_smoother is None:
            refuse_counted_views(self.model, self._plan, self._size)
        self._state.set_up(self._plan.pooled, self.args.device, self.args.seed)
        self.add_callback(EndOfStep(self._state, self._average))

    @property
    def feature_layer(self) -> FeatureLayer | None:
        """The layer that maps are made of, with others if there are several; `None` where no method asks for one."""
        return self._plan.feature_layer

    @property
    def gradient_engines(self) -> Mapping[str, Choice]:
        """How each method's input gradient is differentiated, by the method's name."""
        return self._plan.engines

    def _make_plan(self, size: tuple[int, int]) -> None:
        """Finds what the methods need of the model at hand for pictures of `(H, W)`."""
        refuse_sharded(self.accelerator, self.model, self.guidance, self._how_run["compiled"])
        former, mixed_precision = self._plan.engines, self._how_run["mixed_precision"]
        engines = former or sharded_engines(self.accelerator, self.model, self.guidance, size, mixed_precision)
        with as_checkpointed(self.model, self.args):
            self._plan = make_plan(
                self.model, self.guidance, size, self.args.feature_layer, engines=engines, **self._how_run
            )
        self._plan_size = size
        if self.feature_layer is not None:
            logger.info(f"Guidance reads the feature layer {self.feature_layer}")
        for name, choice in self._plan.engines.items():
            if name not in former and self.is_world_process_zero():
                logger.warning(f'guidance="{name}" takes gradient_engine="{choice.engine}": {choice.reason}')

    def _expect(self, inputs: Mapping[str, Any]) -> None:
        height, width = inputs["pixel_values"].shape[-2:] if self.is_guided else self._plan_size
        if self._plan_size != (height, width):
            self._make_plan((height, width))

    def _average(self, tensors: list[Tensor]) -> None:
        """Replaces tensors by their means over the processes."""
        for tensor in tensors:
            tensor.copy_(self.accelerator.reduce(tensor, reduction="mean"))

    @property
    def _needs_annotation(self) -> bool:
        return self.is_guided and all(method.needs_annotation for method in self.guidance)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`, after a check of the first 256 rows of each data set."""
        (train, evaluated), self._unchecked = self._unchecked, (None, None)
        warnings = check_first_rows(train, evaluated, self.model.config.num_labels, self._needs_annotation)
        if self.is_world_process_zero():
            for warning in warnings:
                logger.warning(warning)
        return super().train(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`, which comes here when the model and the arguments of a run are known."""
        found = run_options(self.accelerator, self.args, self.model)
        if self._read_guidance() or self._planned() is not self.model:
            self._set_up_guidance()
        elif self.is_guided and self._how_run != found:
            self._plan, self._how_run = Plan(methods=()), found
            self._make_plan(self._size)
        refuse_frozen(self.model, self._plan, self._size)
        self._state.forget()
        self._batch_key, self._train_means = (-1, -1), RunningMeans()
        with guarded_hooks() if self.is_guided and self._how_run["compiled"] else nullcontext():
            return super()._inner_training_loop(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; with the default collator, saliency travels at the resolution that the methods read."""
        self._carried, given = {}, self.data_collator
        layer = self.feature_layer
        if given is self._default_collator and layer is not None and not self.args.random_saliency:
            size = self._plan_size
            self._carried = {size: carried_size(self.guidance, layer.grid, size)}
            self.data_collator = SaliencyCollator(self._carried)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = given

    # ---- The loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """
        The weighted sum of the task's loss and the guidance terms.

        Args:
            model (`nn.Module`): the model, wrapped or not; it is called once.
            inputs (`dict`): `pixel_values` `(B, C, H, W)`, `labels` `(B,)`, `saliency` `(B, H, W)` uint8 or float in
                [0, 1], `has_saliency` `(B,)` and, optionally, `sample_weight` `(B,)`. It is left as it is.
            return_outputs (`bool`, *optional*, defaults to `False`): whether to return the outputs as well.
            num_items_in_batch (*optional*): handed to `compute_loss_func`.

        Returns:
            The scalar loss, or a tuple of it and a dict of `loss` and `logits`.
        """

        def task_loss(called: Any) -> tuple[Tensor, Any]:
            return self._task_loss(called, model_inputs(inputs), inputs.get("sample_weight"), num_items_in_batch)

        if not self.is_guided:
            task, outputs = task_loss(model)
            loss = task if self.task_weight == 1.0 else self.task_weight * task
        else:
            compiled = self._how_run["compiled"] and self._plan.input_gradient
            synchronised = self.accelerator.sync_gradients
            with reusable_graph() if compiled else nullcontext(), kept_whole(self.model, self._plan, synchronised):
                loss, outputs = self._guided_loss(model, inputs, task_loss)
        # Whatever else a model returns would be gathered over all processes in evaluation.
        return (loss, {"loss": loss, "logits": outputs["logits"]}) if return_outputs else loss

    def _task_loss(
        self, model: Any, given: dict[str, Any], weight: Tensor | None, num_items_in_batch: Any
    ) -> tuple[Tensor, Any]:
        smoothed = self.label_smoother is not None and self.compute_loss_func is None
        if weight is None and smoothed and isinstance(model, GuidedForward):
            # As in Trainer, which looks into the model that it calls.
            labels = given.pop("labels")
            outputs = model(**given)
            return self.label_smoother(outputs, labels), outputs
        if weight is None:
            return super().compute_loss(model, given, True, num_items_in_batch)
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func cannot weight rows; drop it, or the data set's weight column.")
        return weighted_task_loss(model, given, weight, self.args.label_smoothing_factor)

    def _guided_loss(
        self, model: nn.Module, inputs: dict[str, Any], task_loss: Callable[[Any], tuple[Tensor, Any]]
    ) -> tuple[Tensor, Any]:
        labels, training = class_labels(inputs), model.training
        forward = self._forward(model, inputs, training)
        task, outputs = task_loss(forward)
        # A compute_loss_func has divided the task's loss by the items of all micro-batches.
        divided = bool(self.loss_is_scaled_for_ga) and training
        accumulated = self.current_gradient_accumulation_steps if divided else 1
        components = {"task_loss": (task.detach() * accumulated).expand(len(labels))}
        rows, count, scale = inputs.get("sample_weight"), self._step_size(len(labels), training), self._annotated_scale
        guidance, terms = guidance_terms(forward, self.guidance, self.guidance_weights, labels, rows, count, scale)
        components |= {f"{name}_loss": values for name, values in terms.items()}
        task_factor = guidance_factor = 1.0
        # Evaluation takes the full weight throughout, so that its losses can be compared from epoch to epoch.
        if not training:
            self._record.add_terms(components)
            for method in [method for method in self.guidance if method.needs_maps][:1]:
                self._record.offer_maps(outputs["logits"].float(), forward.batch(method, labels, count).map_of)
        else:
            self._train_means.add({name: values.mean() for name, values in components.items()})
            task_factor, guidance_factor = self._state.factors
            progress = self.state.global_step / self.state.max_steps if self.state.max_steps > 0 else 1.0
            guidance_factor *= schedule_factor(self.args.guidance_schedule, min(1.0, progress))
            self._state.observe(self.task_weight * accumulated * task, guidance)
            if self._state.adaptive:
                self._train_means.add({"task_share": task.new_tensor(self._state.alpha)})
        return task_factor * self.task_weight * task + guidance_factor / accumulated * guidance, outputs

    def _forward(self, model: nn.Module, inputs: dict[str, Any], training: bool) -> GuidedForward:
        """A model to call in place of `model`, which gathers what the methods need."""
        draws = self._draws(len(inputs["pixel_values"]), training, inputs["pixel_values"].device)
        if training and inputs.get("saliency") is None:
            logger.warning_once("A training batch has no saliency: guidance does nothing for it.")
        args = self.args
        saliency, counts = step_saliency(
            inputs,
            draws,
            args.empty_mask,
            random=args.random_saliency,
            invert=args.invert_saliency,
            reduced=self._carried.get((inputs["pixel_values"].shape[-2], inputs["pixel_values"].shape[-1])),
        )
        self._expect(inputs)
        pictures = Pictures(inputs["pixel_values"], saliency, counts, draws.uniform(""))
        return GuidedForward(model, self._plan, pictures, draws, self.model, training)

    def _step_size(self, count: int, training: bool) -> int:
        """The pictures of one optimizer step."""
        if not training:
            return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return count * self.args.world_size * self.current_gradient_accumulation_steps

    def _draws(self, count: int, training: bool, device: torch.device) -> Draws:
        """What random draws are keyed by: the optimizer step, and the rows' positions in its global batch."""
        step = self.state.global_step if training else -1
        last_step, micro = self._batch_key
        micro = micro + 1 if step == last_step else 0
        self._batch_key = (step, micro)
        size = self._train_batch_size if training else self.args.eval_batch_size
        first = (micro * self.args.world_size + self.args.process_index) * size
        return Draws(self.args.seed, step, torch.arange(first, first + count, device=device))

    def guidance_block(self) -> dict[str, Any] | None:
        """What the saved configuration says about guidance; `None` for plain training."""
        layers = () if self.feature_layer is None else self.feature_layer.names
        return guidance_block(self.guidance, self.guidance_weights, self.task_weight, layers, vars(self.args))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and not self._state.empty:
            self._state.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not self._state.empty:
            self._state.load(checkpoint)

    # ---- Logging and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`, with the mean of each component of the loss since the last log."""
        if "loss" in logs:
            logs = {**logs, **self._train_means.pop(self.accelerator)}
        super().log(logs, start_time)

    @property
    def _loss_components(self) -> list[str]:
        names = [method.name for method in self.guidance if not method.transforms_inputs]
        return [f"{name}_loss" for name in ("task", *names)] if self.is_guided else []

    @property
    def _draws_maps(self) -> bool:
        return any(method.needs_maps for method in self.guidance)

    def _unlabelled(self, inputs: dict[str, Any]) -> dict[str, Any]:
        given = super()._unlabelled(inputs)
        if not any(method.transforms_evaluation for method in self.guidance):
            return given
        pictures = self._forward(self.model, self._prepare_inputs(inputs), False).pictures
        return {**given, "pixel_values": pictures.pixel_values}
