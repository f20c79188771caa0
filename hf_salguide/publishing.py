"""`Trainer` whose saved folders and pushes hold what others load: no pickle, a card, nothing that is not ours."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TimmWrapperForImageClassification
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress, logging

from .evaluation import MeasuredTrainer
from .hub import (
    KEY,
    README,
    ModelCardCallback,
    add_card,
    add_to_stage,
    again,
    api,
    check_revision,
    going_on,
    has_edited_card,
    make_stage,
    open_repository,
    saved_files,
    stage_of,
    upload,
    write_guidance,
    write_training_arguments,
    write_under_timm_names,
)
from .rng import preserve_rng

logger = logging.get_logger(__name__)


class PublishingTrainer(MeasuredTrainer):
    """
    [`~transformers.Trainer`] that saves and publishes folders which transformers, timm and [`load_guided`] load.

    Each saved folder, checkpoints included, holds the weights in safetensors (of a timm model under timm's own names),
    the configuration with what guided the training, `training_args.json` in the place of a pickle, and the card with
    the record that it was rendered from. A push holds these files and no others, checkpoints where `hub_strategy` asks
    for them; each is one commit.
    """

    _uploads: Any = None  # whose thread uploads in the background
    _read_from: str | None = None  # the checkpoint that is being read

    def _set_up_card(self) -> None:
        """After the constructor's work: a card is written, with what the run itself tells."""
        if self.model_card is None:
            self.add_callback(ModelCardCallback())

    @property
    def model_card(self) -> ModelCardCallback | None:
        """The callback that keeps the record of the run, and writes its card; `None` where it was removed."""
        return next((each for each in self.callback_handler.callbacks if isinstance(each, ModelCardCallback)), None)

    def add_callback(self, callback: Any) -> None:
        """As in `Trainer`; a [`ModelCardCallback`] takes the place of another."""
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, ModelCardCallback):
            self.remove_callback(ModelCardCallback)
        super().add_callback(callback)

    def guidance_block(self) -> dict[str, Any] | None:
        """What the saved configuration says about guidance; `None` for plain training."""
        return None

    # ---- Saving ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        # Adapters bring a card of their own. Another process must not touch what this one writes.
        with _unchanged(folder / README) if self.args.should_save else nullcontext():
            super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(model, TimmWrapperForImageClassification):
            write_under_timm_names(folder)
        # Weights that this trainer has not trained are guided as they came.
        trained = self.state.global_step > 0
        write_guidance(folder, self.guidance_block() if trained else getattr(model.config, KEY, None))
        write_training_arguments(folder, self.args.to_dict())
        card = self.model_card
        if self.is_world_process_zero() and card is not None:
            try:
                card.write(folder)
            except Exception as error:  # whatever it is, a card is not worth a training
                logger.warning(f"The card of {folder} could not be written, and the model is saved without: {error}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with self._reading(self.state.best_model_checkpoint):
            super()._load_best_model()

    @contextmanager
    def _reading(self, folder: str | None) -> Iterator[None]:
        self._read_from = folder
        try:
            yield
        finally:
            self._read_from = None

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """
        As in `Trainer`, after the weights are read again where they were not: `save_pretrained` writes the names of
        some classes' weights (ViT's) as earlier releases called them, and `Trainer` reads them by the names of today,
        with a warning and random weights. `from_pretrained` knows both.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self._read_from is not None and load_result.missing_keys and isinstance(model, PreTrainedModel):
            try:
                with preserve_rng():
                    loaded, report = type(model).from_pretrained(
                        self._read_from,
                        config=deepcopy(model.config),
                        attn_implementation=model.config._attn_implementation,
                        dtype=model.dtype,
                        output_loading_info=True,
                    )
            except Exception as error:  # a class that needs more than its configuration, say
                logger.warning(f"{type(model).__name__}.from_pretrained cannot read {self._read_from}: {error}")
            else:
                if not report["missing_keys"]:
                    model.load_state_dict(loaded.state_dict())
                    return
        super()._issue_warnings_after_load(load_result)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """
        Writes the card and its record into the output folder, with what the run and the arguments tell.

        Args:
            language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
                (*optional*): as in `Trainer`; what [`ModelCardCallback`] was told is replaced.
        """
        if self.model_card is None:
            return
        self.model_card.told(
            language=language,
            license=license,
            tags=tags,
            model_name=model_name,
            finetuned_from=finetuned_from,
            tasks=tasks,
            dataset_tags=dataset_tags,
            dataset=dataset,
            dataset_args=dataset_args,
        )
        if self.is_world_process_zero():
            self.model_card.write(self.args.output_dir)

    # ---- Publishing ----

    @property
    def _saves_adapters(self) -> bool:
        return hasattr(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), "peft_config")

    @property
    def _repository(self) -> tuple[str, str]:
        """The repository that is asked for, and what messages call it."""
        if self.args.hub_model_id is not None:
            return self.args.hub_model_id, "hub_model_id"
        return Path(str(self.args.output_dir)).absolute().name, "hub_model_id, by default output_dir,"

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Makes sure that the repository of `hub_model_id` is there and may be written to.

        Raises:
            ValueError: for a name that the Hub does not allow, or a public repository that was to be private.
            PushError: if the Hub refuses, or cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        named, argument = self._repository
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id = open_repository(named, private, token or self.args.hub_token, argument)
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Saves the model and publishes it, with its card, in the repository `hub_model_id`.

        Args:
            commit_message (`str`, *optional*): defaults to `"End of training"`.
            blocking (`bool`, *optional*, defaults to `True`): whether to wait for the upload's end.
            token (`str`, *optional*): defaults to `hub_token`, then to what is stored. It is written nowhere.
            revision (`str`, *optional*): the branch, which is made if it does not exist; defaults to `hub_revision`.
            private (`bool`, *optional*): whether a new repository is private; defaults to `hub_private_repo`.
            kwargs (*optional*): go to [`~SaliencyTrainer.create_model_card`].

        Returns:
            [`~huggingface_hub.CommitInfo`], or a `Future` of it with `blocking=False`; `None` on other processes.

        Raises:
            ValueError: for a name that the Hub does not allow, or a public repository that was to be private.
            PushError: if the Hub refuses, or the upload breaks off; the saved folder is whole, and the message says
                how to go on.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        check_revision(revision)
        if self.is_fsdp_enabled and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            raise ValueError(
                "fsdp_state_dict_type=SHARDED_STATE_DICT saves no model that others load, so none is published; take "
                'FULL_STATE_DICT: trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT").'
            )
        # Before anybody may refuse it: what was trained is not to be lost.
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        self.create_model_card(
            tags=[*dict.fromkeys([*tags, *(getattr(self.model, "model_tags", None) or [])])], **kwargs
        )
        self._finish_current_push()
        folder, named = Path(str(self.args.output_dir)), self.hub_model_id or self._repository[0]
        revision = self.args.hub_revision if revision is None else revision
        sentence = f"{again(folder, named, private, revision)}, or trainer.push_to_hub()"
        with going_on(sentence):
            self.init_hf_repo(token=token, private=private)
            repo_id = str(self.hub_model_id)
            stage = stage_of(folder, saved_files(folder, self._saves_adapters), repo_id)
            publish = partial(upload, stage, repo_id, commit_message or "End of training", revision, token)
            return publish() if blocking else self._in_background(publish, f"The push failed: {{}} {sentence}")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes a checkpoint's model and, where `hub_strategy` asks for it, the checkpoint; as in `Trainer`."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress
        busy = running is not None and not running.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder, repo_id = Path(checkpoint_folder), str(self.hub_model_id)
        revision, token = self.args.hub_revision, self.args.hub_token
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        failed = (
            f"The push of {folder.name} failed, and training goes on: {{}} trainer.push_to_hub() at its end publishes "
            f"the model; for that of {folder.name}, {again(folder, repo_id, revision=revision)}"
        )
        try:
            stage = self._checkpoint_stage(folder, repo_id)
        except Exception as error:  # a full disk, say: no push is worth a training
            logger.warning(failed.replace("{}", f"it could not be prepared ({error}).", 1))
            return
        publish = partial(upload, stage, repo_id, f"Training in progress, {done}", revision, token)
        job = self._in_background(publish, failed)
        if running is not None and not running.is_done():
            running.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _checkpoint_stage(self, folder: Path, repo_id: str) -> Path:
        """What is published of a checkpoint, for the caller to remove."""
        strategy, stage = self.args.hub_strategy, make_stage(str(self.args.output_dir))
        try:
            # A checkpoint's files are never written again, but may be deleted before the upload ends.
            for name in saved_files(folder, self._saves_adapters):
                add_to_stage(stage, folder / name, name, link=True)
            kept = Path(str(self.args.output_dir))
            add_card(stage, kept if has_edited_card(kept) else folder, repo_id)
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else folder.name
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    add_to_stage(stage, path, f"{place}/{path.relative_to(folder).as_posix()}", link=True)
                _without_place(stage / place / TRAINER_STATE_NAME)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        return stage

    def _in_background(self, publish: Callable[[], Any], failed: str) -> Any:
        """A `Future` of an upload; if it fails, a warning says so, with the reason in the place of `{}`."""

        def told(job: Any) -> None:
            error = None if job.cancelled() else job.exception()
            if error is not None:
                logger.warning(failed.replace("{}", str(error), 1))

        if self._uploads is None:
            self._uploads = api()
        job = self._uploads.run_as_future(publish)  # one after the other
        job.add_done_callback(told)
        return job


@contextmanager
def _unchanged(path: Path) -> Iterator[None]:
    """Leaves a file as it was, whatever is written to it meanwhile."""
    content = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if content is None:
            if path.is_file():
                path.unlink()
        elif path.read_bytes() != content:
            path.write_bytes(content)


def _without_place(path: Path) -> None:
    """Takes the folder of the run out of a copy of a trainer's state; what the copy was linked from stays."""
    if not path.is_file():
        return
    state = json.loads(path.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if best is not None and Path(best).is_absolute():
        path.unlink()
        path.write_text(
            json.dumps({**state, "best_model_checkpoint": Path(best).name}, indent=2, sort_keys=True) + "\n"
        )
