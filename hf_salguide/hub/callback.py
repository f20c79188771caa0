"""A callback that fills a model's card from its run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import ref

from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from ..rng import preserve_rng
from .card import write_card
from .compared import compared
from .facts import CardFacts, hub_id, stock_facts
from .record import PANEL, CardRecord, TrainingFacts
from .run_facts import model_facts, own_choices, training_facts
from .run_results import RunResults, selected_on

logger = logging.get_logger(__name__)


class ModelCardCallback(TrainerCallback):
    """
    Fills the card of a model from its training and its evaluations, and writes it beside the weights.

    A [`SaliencyTrainer`] has one without being told. Give your own to say what no run can know; what is not told is
    left out of the card.

    Args:
        license (`str`, *optional*): of the weights, as the Hub calls it: `"mit"`, `"cc-by-4.0"`. Another one becomes
            `other`, with its name.
        dataset (`str`, *optional*): what the training data are called: a Hub id `owner/name`, or a title. Of a path
            the last part is published.
        dataset_id (`str`, *optional*): the data set's Hub id, where `dataset` is a title, or it has no owner.
        dataset_license, dataset_url (`str`, *optional*): the data's license, and where they are described.
        dataset_description (`str`, *optional*): Markdown: what the pictures show, and how the splits differ.
        saliency_source (`str`, *optional*): where the saliency is from: who annotated, and how.
        intended_use, out_of_scope, limits (`str`, *optional*): Markdown, beside what the card says anyway.
        language (`str` or `list[str]`, *optional*): codes such as `"en"`, where the pictures hold language.
        tags (`list[str]`, *optional*): further tags.
        base_model (`str`, *optional*): the Hub id of the weights that training started from. Defaults to what the
            model's configuration says.
        model_name (`str`, *optional*): a title. Defaults to the repository's name.
        out_of_distribution (`list[str]`, *optional*): the evaluation sets whose pictures come from elsewhere. Defaults
            to those whose name starts with `ood`, which are so in any case.
        split_names (`dict[str, str]`, *optional*): what sets are to be called, by the prefix of their metrics: with
            `{"eval": "validation"}` the trainer's own evaluation set is `validation`, not `evaluation`.
        baseline, inverted ([`CardRecord`] or folder, *optional*): the same model trained without guidance, and with
            `invert_saliency=True`. Their results stand beside this model's.
        publish_pictures (`bool`, *optional*, defaults to `False`): whether pictures of the data may be published, as a
            panel of maps.
        panel (`Path` or `Callable`, *optional*): a PNG; or what draws one: called with the trainer and the path of the
            file to write.
        panel_caption (`str`, *optional*): what it shows, where the card's own words do not fit.

    Raises:
        ValueError: for a fact of another type, a `panel` without `publish_pictures`, a folder without a record.

    Example:

    ```python
    card = ModelCardCallback(license="mit", dataset="owner/chest-x-rays", saliency_source="two radiologists")
    trainer = SaliencyTrainer(model, args, train_dataset=dataset["train"], callbacks=[card])
    ```
    """

    reminds = True  # whether to warn, once, of data without a license
    draw: Callable[[Any, Path], None] | None = None  # the panel, where the user gives none

    def __init__(
        self,
        *,
        license: str | None = None,
        dataset: str | None = None,
        dataset_id: str | None = None,
        dataset_license: str | None = None,
        dataset_url: str | None = None,
        dataset_description: str | None = None,
        saliency_source: str | None = None,
        intended_use: str | None = None,
        out_of_scope: str | None = None,
        limits: str | None = None,
        language: str | Sequence[str] = (),
        tags: Sequence[str] = (),
        base_model: str | None = None,
        model_name: str | None = None,
        out_of_distribution: Sequence[str] | None = None,
        split_names: Mapping[str, str] | None = None,
        baseline: CardRecord | str | Path | None = None,
        inverted: CardRecord | str | Path | None = None,
        publish_pictures: bool = False,
        panel: str | Path | Callable[[Any, Path], None] | None = None,
        panel_caption: str | None = None,
    ) -> None:
        self.facts = CardFacts(
            license=license,
            dataset=dataset,
            dataset_id=dataset_id,
            dataset_license=dataset_license,
            dataset_url=dataset_url,
            dataset_description=dataset_description,
            saliency_source=saliency_source,
            intended_use=intended_use,
            out_of_scope=out_of_scope,
            limits=limits,
            language=language,  # type: ignore[arg-type]
            tags=tags,  # type: ignore[arg-type]
            base_model=base_model,
            model_name=model_name,
            out_of_distribution=out_of_distribution,  # type: ignore[arg-type]
            split_names=dict(split_names or {}),
            baseline=baseline,  # type: ignore[arg-type]
            inverted=inverted,  # type: ignore[arg-type]
            publish_pictures=publish_pictures,
            panel=panel,
            panel_caption=panel_caption,
        )
        self._trainer: Any = None
        self._forget()

    def _forget(self) -> None:
        self._training: TrainingFacts | None = None
        self._model: Callable[[], Any] = lambda: None  # the one that was trained
        self._began: float | None = None
        self._earlier: tuple[int | None, float | None] = (0, 0.0)  # steps and seconds before this training
        self._own: dict[str, Any] = {}
        self._stale: list[Any] = []  # evaluations of other weights than the model's
        self._results = RunResults()

    def attach(self, trainer: Trainer) -> None:
        """Takes the trainer whose model the card is of; what was known of another one's goes."""
        if trainer is not self._trainer:
            self._forget()
            self._trainer, self._own = trainer, own_choices(trainer)

    def told(self, **keywords: Any) -> None:
        """
        Takes further facts: those of the constructor, and the keywords of `Trainer.create_model_card`.

        Raises:
            ValueError: as the constructor.
        """
        found = stock_facts(keywords)
        if "tags" in found:
            more = found["tags"]
            found["tags"] = list(dict.fromkeys([*self.facts.tags, *([more] if isinstance(more, str) else more)]))
        self.facts = CardFacts(**{**vars(self.facts), **found})

    # ---- Events ----

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._trainer is None:
            return
        former = self._training if model is not None and self._model() is model else None
        training = training_facts(self._trainer, self._own)
        self._earlier = (0, 0.0)
        if state.global_step > 0:
            self._earlier = (0, None)  # resumed: how long it took before is not known
        elif former is not None:  # the weights of a training before are trained on
            self._earlier = (former.steps, former.seconds)
            training.runs = former.runs + 1
        self._training, self._began = training, perf_counter()
        self._model = (lambda: None) if model is None else ref(model)
        self._stale = list(getattr(self._trainer, "evaluated", {}).values())
        if self.facts.baseline is not None or self.facts.inverted is not None:
            self.record()  # refuses what is no fair comparison before any compute is spent

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer is None or self._training is None or self._began is None:
            return
        steps, seconds = self._earlier
        self._training.steps = None if steps is None else steps + int(state.global_step)
        self._training.seconds = None if seconds is None else round(seconds + perf_counter() - self._began, 3)
        self._began = None
        # Where the best weights are loaded at the end, evaluations of later ones are none of theirs.
        step = self._step_of_weights()
        self._training.weights_step = None if step == int(state.global_step) else step
        self._stale += [found for found in getattr(self._trainer, "evaluated", {}).values() if found.step != step]

    # ---- The record ----

    def record(self) -> CardRecord:
        """
        What is known by now.

        Raises:
            ValueError: if no trainer is attached, or a baseline is none of this model's.
        """
        record = self._alone()
        record.baseline = compared(record, self.facts.baseline, "baseline")
        record.inverted = compared(record, self.facts.inverted, "inverted")
        return record

    def _alone(self) -> CardRecord:
        """What is known of the model, without any other beside it."""
        if self._trainer is None:
            raise ValueError("the card has no trainer; call attach(trainer) first.")
        facts, training, args = self.facts, self._training, self._trainer.args
        model = model_facts(self._trainer.model)
        model.name = facts.model_name
        model.base_model = hub_id(facts.base_model) or model.base_model
        if training is not None and self._began is not None:
            training = replace(training, seconds=None, steps=self._steps_so_far())
        steps = (int(self._trainer.state.global_step), self._step_of_weights())
        record = CardRecord(
            model=model,
            training=training,
            data=self._results.data(self._trainer, facts, training is not None),
            results=self._results.measured(self._trainer, facts, steps, self._stale),
            license=facts.license,
            language=facts.language,
            tags=facts.tags,
            intended_use=facts.intended_use,
            out_of_scope=facts.out_of_scope,
            limits=facts.limits,
        )
        ended = training is not None and self._began is None
        if ended and getattr(args, "load_best_model_at_end", False):
            record.selected_by = str(args.metric_for_best_model).removeprefix("eval_")
            record.selected_on = selected_on(self._trainer, facts)
        return record

    def write(self, folder: str | Path) -> None:
        """Writes `card.json` and `README.md` to a folder, on the process that saves."""
        if self._trainer is None or not getattr(self._trainer.args, "should_save", True):
            return
        try:
            record = self.record()
        except ValueError as error:  # of a model that stands beside this one: no reason to lose this one
            logger.warning_once(f"The card goes without what was to stand beside this model: {error}")
            record = self._alone()
        if self.facts.publish_pictures and self._draw(Path(folder)):
            record.panel, record.panel_caption = PANEL, self.facts.panel_caption
        self._remind(record)
        write_card(folder, record)

    def _remind(self, record: CardRecord) -> None:
        """Warns once where weights are to be published, and nobody said under which license their data are."""
        named = record.data is not None and (record.data.name or record.data.hub_id)
        published = named or getattr(self._trainer.args, "push_to_hub", False)
        if record.training is None or not published or self.facts.dataset_license is not None or not self.reminds:
            return
        self.reminds = False
        logger.warning(
            f"No license is told for the training data{f' {named}' if named else ''}, and the card says so; if you "
            'know it, give ModelCardCallback(dataset_license="..."), or --card \'{"dataset_license": "..."}\'.'
        )

    def _draw(self, folder: Path) -> bool:
        """Puts the panel into the folder; whether there is one."""
        panel, path = self.facts.panel or self.draw, folder / PANEL
        if panel is None:
            return False
        spread = any(getattr(self._trainer, f"is_{kind}_enabled", False) for kind in ("fsdp", "deepspeed"))
        if callable(panel) and spread:
            logger.warning_once("The card goes without its panel: one process alone cannot run a sharded model.")
            return False
        try:
            if callable(panel):
                with preserve_rng():
                    panel(self._trainer, path)
            elif Path(panel).resolve() != path.resolve():
                path.write_bytes(Path(panel).read_bytes())
        except Exception as error:  # whatever it is, a picture is not worth a training
            logger.warning_once(f"The card's panel could not be made, and the card goes without: {error}")
            return False
        return path.is_file()

    # ---- What is known of the run ----

    def _steps_so_far(self) -> int | None:
        before = self._earlier[0]
        return None if before is None else before + int(self._trainer.state.global_step)

    def _step_of_weights(self) -> int:
        """The optimizer step after which the model's weights are as they are."""
        state, args = self._trainer.state, self._trainer.args
        best = getattr(state, "best_global_step", None)
        if getattr(args, "load_best_model_at_end", False) and self._began is None and best:
            return int(best)
        return int(state.global_step)
