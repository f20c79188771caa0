"""`Trainer`, with the classification of pictures and the alignment of maps in its evaluation."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, default_compute_objective
from transformers.utils import logging

from ..arguments import SaliencyTrainingArguments
from ..inputs import check_evaluated, model_inputs, prepared
from ..steps import run_options
from .defaults import ALIGNMENT, CLASSIFICATION, ClassificationOfPredictions, has_exclusive_classes
from .evaluated import Evaluated, evaluated
from .record import EvaluationRecord
from .selection import (
    NO_PICTURE,
    NOT_EVERY_CLASS,
    SPEED,
    check_metric_name,
    check_metric_value,
    undefined_metrics,
)

logger = logging.get_logger(__name__)


class MeasuredTrainer(Trainer):
    """
    [`~transformers.Trainer`] whose evaluation reports, on each set, what the model classifies and what it looks at.

    Without a `compute_metrics` of the user's, [`~metrics.classification_metrics`]; and, on pictures with saliency, the
    means of [`~metrics.alignment_metrics`] of the predicted class's map. Each can be `metric_for_best_model`.
    """

    args: SaliencyTrainingArguments
    eval_transform: Callable

    def _set_up_evaluation(self, default_metrics: bool) -> None:
        """After the constructor's work: `default_metrics` says whether the user asked for no others."""
        if default_metrics:
            self.compute_metrics = ClassificationOfPredictions()
        # The accelerator may be another one later.
        self._record = EvaluationRecord(
            lambda rows: self.accelerator.gather_for_metrics(rows), self.args.feature_layer, self.args.eval_alignment
        )
        self.evaluated: dict[str, Evaluated] = {}  # the last evaluation of each set, by its prefix
        self._added: set[str] = set()  # the metrics that are not Trainer's own
        self._is_own_set = False  # whether the evaluation is of eval_dataset, or of one of its sets
        self._batch_key = (-1, -1)  # optimizer step, micro-batch within it

    @property
    def _has_default_metrics(self) -> bool:
        return isinstance(self.compute_metrics, ClassificationOfPredictions)

    @property
    def label_names_of_model(self) -> list[str]:
        """The class names of the model's configuration, in the order of its logits."""
        id2label = self.model.config.id2label
        return [id2label[index] for index in range(len(id2label))]

    def add_callback(self, callback: Any) -> None:
        """As in `Trainer`; callbacks that draw pictures are told of the trainer."""
        super().add_callback(callback)
        for each in self.callback_handler.callbacks:
            if hasattr(each, "attach"):
                each.attach(self)

    # ---- What a guided trainer knows better ----

    def _expect(self, inputs: Mapping[str, Any]) -> None:
        """Finds what the loss of a batch needs of the model, before anything of it is captured."""

    @property
    def _loss_components(self) -> list[str]:
        """The names of the loss's components in the evaluation."""
        return []

    @property
    def _draws_maps(self) -> bool:
        """Whether the loss of a labelled batch draws maps, and offers them to the record."""
        return False

    def _unlabelled(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the model is given of a batch without labels."""
        return model_inputs(inputs)

    # ---- Training ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`, after a check that the metric that selects the best model is one that is reported."""
        self._check_selected()
        return super().train(*args, **kwargs)

    def _check_selected(self) -> None:
        selected, kind = self.args.metric_for_best_model, type(self)
        own = kind.evaluate is Trainer.evaluate and kind.evaluation_loop is MeasuredTrainer.evaluation_loop
        if not (own and self._has_default_metrics) or selected is None or self.eval_dataset is None:
            return
        if self.args.eval_strategy == "no" or selected.endswith(SPEED):
            return
        names = ["loss", *self._loss_components, *self._classification]
        if self.args.eval_alignment:
            names += ALIGNMENT
        sets = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
        try:
            check_metric_name(selected, names, sets)
        except ValueError as error:
            adding = [callback for callback in self.callback_handler.callbacks if _may_add_metrics(callback)]
            if not adding:
                raise
            logger.warning(f"{error} Training starts, for on_evaluate of {type(adding[0]).__name__} may add it.")

    @property
    def _classification(self) -> list[str]:
        """The default classification metrics of an evaluation with labels."""
        config = self.model.config
        if not self._has_default_metrics or not has_exclusive_classes(config) or self.args.prediction_loss_only:
            return []
        return [name for name in CLASSIFICATION if name != "equal_error_rate" or config.num_labels == 2]

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `Trainer`; by default the evaluation loss is optimised, or the sum of what `compute_metrics` gives."""
        objective = self._objective if compute_objective is None else compute_objective
        return super().hyperparameter_search(hp_space, objective, *args, **kwargs)

    def _objective(self, metrics: dict[str, float]) -> float:
        objective: float = default_compute_objective(
            {name: value for name, value in metrics.items() if name not in self._added}
        )
        return objective

    # ---- Evaluation ----

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in `Trainer`; pictures are brought to the model's size."""
        named = eval_dataset is None or isinstance(eval_dataset, str)
        self._is_own_set = named or eval_dataset is self.eval_dataset
        if named:
            return super().get_eval_dataloader(eval_dataset)
        check_evaluated(eval_dataset, self.label_names_of_model)
        return super().get_eval_dataloader(prepared(eval_dataset, self.eval_transform))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As in `Trainer`; pictures are brought to the model's size."""
        self._is_own_set = False
        check_evaluated(test_dataset, self.label_names_of_model)
        return super().get_test_dataloader(prepared(test_dataset, self.eval_transform))

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """As in `Trainer`; loss components and alignment are kept for [`~MeasuredTrainer.evaluation_loop`]."""
        labelled, key = inputs.get("labels") is not None, self._batch_key
        if labelled:
            self._expect(inputs)
        given = inputs if labelled else self._unlabelled(inputs)
        predict = partial(super().prediction_step, model, given, prediction_loss_only, ignore_keys)

        def step() -> Any:
            self._batch_key = key  # as it was, should the step be run again
            return predict()

        return self._record.run(step, inputs, draws_maps=labelled and self._draws_maps)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        As in `Trainer`, with the mean of each component of the loss and the alignment among the metrics.

        Raises:
            ValueError: in training, if the metric that selects the best model is one of ours, has no value on the
                trainer's own evaluation set, and never had one.
        """
        self._batch_key = (-1, -1)
        self._record.begin(self.model, self._obstacle())
        if isinstance(self.compute_metrics, ClassificationOfPredictions):
            self.compute_metrics.reset()
        judged, self._is_own_set = self._is_own_set and self.is_in_train and self.state.global_step > 0, False
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        own = {f"{metric_key_prefix}_{name}": value for name, value in self._record.finish().items()}
        self._added |= own.keys() - output.metrics.keys()
        if self._has_default_metrics:
            self._added |= {f"{metric_key_prefix}_{name}" for name in CLASSIFICATION}
        reasons = self._reasons(output.metrics, metric_key_prefix)
        output.metrics.update({name: value for name, value in own.items() if name not in output.metrics})
        selected = self.args.metric_for_best_model
        if judged and selected is not None and self.state.best_metric is None:
            check_metric_value(selected, output.metrics, metric_key_prefix, reasons)
        if self.is_world_process_zero():
            for sentence in undefined_metrics(output.metrics, metric_key_prefix, reasons):
                logger.warning_once(sentence)
        record, config = self._record, self.model.config
        self.evaluated[metric_key_prefix] = evaluated(
            output,
            metric_key_prefix,
            has_exclusive_classes(config) and self.preprocess_logits_for_metrics is None,
            record.aligned,
            record.annotated,
            self.state.global_step,
        )
        return output

    def _reasons(self, metrics: Mapping[str, float], prefix: str) -> dict[str, str]:
        """Why each metric of ours would have no value, by its name; `metrics` are those before the alignment."""
        reason = getattr(self.compute_metrics, "reason", None) or NOT_EVERY_CLASS
        reasons = dict.fromkeys(self._classification, reason)
        if self.args.eval_alignment:  # a name that the user's compute_metrics takes is the user's
            names = [name for name in ALIGNMENT if f"{prefix}_{name}" not in metrics]
            reasons |= dict.fromkeys(names, self._record.reason or NO_PICTURE)
        return reasons

    def _obstacle(self) -> str | None:
        """Why no maps can be made of the model as it is run, where that is known before."""
        spread = spread_weights(self)
        if spread is not None:
            return f"under {spread} the weights are not in one place"
        # After training it is evaluated as it is, not as the accelerator has compiled it.
        in_place = getattr(self.model, "_compiled_call_impl", None) is not None
        compiled = run_options(self.accelerator, self.args, self.model)["compiled"]
        if compiled and not self._draws_maps and (in_place or not self.accelerator._models):
            return "hooks on a compiled model do not fire"
        return None


def spread_weights(trainer: Trainer) -> str | None:
    """What spreads a trainer's weights over processes, by the arguments or `accelerate launch`; `None` for nothing."""
    if trainer.is_fsdp_enabled or trainer.is_fsdp_xla_enabled:
        return "FSDP"
    zero = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return "DeepSpeed ZeRO-3" if zero is not None and zero.zero_stage == 3 else None


def _may_add_metrics(callback: TrainerCallback) -> bool:
    """Whether a callback's `on_evaluate`, which is given the metrics, is the user's own."""
    return callback.on_evaluate.__module__.split(".")[0] not in ("transformers", __name__.split(".")[0])
