"""A callback that shows, while a model is trained, what it looks at."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.utils import logging

from .evaluation import spread_weights
from .rng import preserve_rng
from .studies.explanation.explain import explain
from .studies.explanation.panels import draw_panel, save_panel
from .trainer import SaliencyTrainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

FOLDER = "panels"  # in the output folder, and the name of the series in a tracker
PICTURES = 4  # a panel, where the user names no rows
SEARCHED = 64  # rows that are looked through for annotated ones
DPI = 150  # of what a tracker gets: about 1,000 pixels wide; files are written for papers


class SaliencyPanelCallback(TrainerCallback):
    """
    Draws the same few pictures again and again while a model is trained: picture, human saliency, map of the true
    class, map of the likeliest other class, and what the model says.

    The panel goes to the trackers that the trainer reports to, TensorBoard, Weights & Biases and trackio, as the
    series `panels` of the run that the trainer writes; where it reports to none of them, to files
    `output_dir/panels/step_000100.png`. Only the main process draws. The model's modes, its statistics and the random
    states are left as they were. A panel that cannot be drawn is a warning, and training goes on.

    A [`SaliencyTrainer`] makes itself known to the callback: its trackers, its `eval_transform`, and the methods that
    change the pictures in evaluation too (`mask_everything`) are those of the panels. With another `Trainer`, call
    `callback.attach(trainer)` once, else files are written, of pictures prepared as the model's configuration says.

    Args:
        dataset: rows with `image` and optionally `label` and `saliency`, or prepared ones, see [`SaliencyTrainer`].
        rows (`Sequence[int]`, *optional*): which of them. Defaults to the first four that are annotated.
        every (`"evaluate"`, `"save"` or `int`, *optional*, defaults to `"evaluate"`): after each evaluation, after
            each checkpoint, or after so many optimizer steps.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: for an empty data set, a row that it does not have, or an unknown `every`.

    Example:

    ```python
    panels = SaliencyPanelCallback(dataset["validation"], rows=[0, 5, 9])
    trainer = SaliencyTrainer(model, args, train_dataset=dataset["train"], callbacks=[panels])
    ```
    """

    def __init__(self, dataset: Any, rows: Sequence[int] | None = None, every: str | int = "evaluate") -> None:
        if find_spec("matplotlib") is None:
            raise ImportError("SaliencyPanelCallback needs matplotlib: pip install 'hf_salguide[plots]'.")
        if isinstance(every, bool) or not (every in ("evaluate", "save") or (isinstance(every, int) and every > 0)):
            raise ValueError(
                f'every={every!r} is not known; choose "evaluate", "save", or a number of optimizer steps, 1 or more.'
            )
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ValueError(
                f"dataset is a {type(dataset).__name__}, whose rows have no numbers; give one that can be indexed."
            )
        count = len(dataset)
        wrong = [row for row in rows or [] if isinstance(row, bool) or not 0 <= row < count]
        if count == 0 or wrong or (rows is not None and len(rows) == 0):
            raise ValueError(f"rows={wrong or rows}: the data set has {count} rows; give some of 0 to {count - 1}.")
        self.every = every
        self._dataset = dataset
        self._rows = None if rows is None else [int(row) for row in rows]
        self._trainer: Any = None
        self._drawn_at: int | None = None

    def attach(self, trainer: Trainer) -> None:
        """Takes the trackers of a trainer and, of a [`SaliencyTrainer`], what it does to pictures in evaluation."""
        self._trainer = trainer

    # ---- Events ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._drawn_at = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every == "evaluate":
            self._show(args, state, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every == "save":
            self._show(args, state, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if isinstance(self.every, int) and state.global_step % self.every == 0:
            self._show(args, state, **kwargs)

    # ---- Drawing ----

    @property
    def rows(self) -> list[int]:
        """The rows that are drawn."""
        if self._rows is None:
            first = range(min(len(self._dataset), SEARCHED))
            annotated: list[int] = []
            for row in first:
                if len(annotated) < PICTURES and self._dataset[row].get("saliency") is not None:
                    annotated.append(row)
            self._rows = annotated or list(first[:PICTURES])
        return self._rows

    def _show(self, args: TrainingArguments, state: TrainerState, model: Any = None, **kwargs: Any) -> None:
        # Of several evaluation sets each comes here, at the same step.
        if not state.is_world_process_zero or model is None or self._drawn_at == state.global_step:
            return
        self._drawn_at = state.global_step
        spread = None if self._trainer is None else spread_weights(self._trainer)
        spread = "FSDP" if args.fsdp else spread
        if spread is not None:
            logger.warning_once(f"No panels are drawn under {spread}: one process alone cannot run the model.")
            return
        try:
            with _left_alone(model):
                figure = self._panel(model, args)
                if not self._log(figure, state.global_step):
                    save_panel(figure, Path(str(args.output_dir)) / FOLDER / f"step_{state.global_step:06d}.png")
        except Exception as error:  # whatever it is, a picture is not worth a training
            logger.warning_once(f"A saliency panel could not be drawn, and training goes on: {error}")

    def draw(self, trainer: Trainer, path: str | Path) -> None:
        """
        Draws the panel of a trainer's model into a file, for its card:
        `ModelCardCallback(publish_pictures=True, panel=SaliencyPanelCallback(dataset["test"]).draw)`.

        Args:
            trainer ([`~transformers.Trainer`]): whose model it is; a [`SaliencyTrainer`]'s `eval_transform` is taken.
            path (`str` or `Path`): the picture that is written, `.png`, `.pdf` or `.svg`.

        Raises:
            ValueError: for a model whose weights are spread over processes.
        """
        self.attach(trainer)
        spread = spread_weights(trainer)
        if spread is not None:
            raise ValueError(f"No panel is drawn under {spread}: one process alone cannot run the model.")
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        with _left_alone(model):
            save_panel(self._panel(model, trainer.args), path)

    def _panel(self, model: nn.Module, args: TrainingArguments) -> "Figure":
        rows = [self._dataset[row] for row in self.rows]
        explanations = explain(model, rows, **self._evaluation(args))
        return draw_panel(explanations, [f"row {row}" for row in self.rows])

    def _evaluation(self, args: TrainingArguments) -> dict[str, Any]:
        """What `explain` is to do as the trainer does; a plain `Trainer` and its arguments say nothing of it."""
        options = {"feature_layer": getattr(args, "feature_layer", None)}
        if isinstance(self._trainer, SaliencyTrainer):
            # Without methods the block is empty: the configuration may hold that of an earlier training.
            guidance = self._trainer.guidance_block() or {}
            options |= {"transform": self._trainer.eval_transform, "guidance": guidance}
        return options

    def _log(self, figure: "Figure", step: int) -> bool:
        """Hands the panel to the trackers; whether there was one."""
        handler = getattr(self._trainer, "callback_handler", None)
        writers = [callback for callback in getattr(handler, "callbacks", []) if _is_open(callback)]
        picture = _pixels(figure) if writers else None
        for callback in writers:
            if isinstance(callback, TensorBoardCallback):
                callback.tb_writer.add_image(FOLDER, picture, step, dataformats="HWC")
                callback.tb_writer.flush()
            elif isinstance(callback, WandbCallback):
                callback._wandb.log({FOLDER: callback._wandb.Image(picture), "train/global_step": step})
            else:
                callback._trackio.log({FOLDER: callback._trackio.Image(picture), "train/global_step": step})
        return bool(writers)


def _is_open(callback: Any) -> bool:
    """Whether a callback is a tracker's, and has a run to write to."""
    if isinstance(callback, TensorBoardCallback):
        return callback.tb_writer is not None
    return isinstance(callback, WandbCallback | TrackioCallback) and callback._initialized


def _pixels(figure: "Figure") -> np.ndarray:
    """A figure as `(H, W, 3)`, uint8."""
    from PIL import Image

    with BytesIO() as file:
        figure.savefig(file, format="png", dpi=DPI)
        return np.array(Image.open(file).convert("RGB"))


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """Restores the random states and each module's mode, of which those of frozen layers may differ."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with preserve_rng(), torch.compiler.set_stance("force_eager"):  # what is compiled has no hooks
            yield
    finally:
        for module, training in modes:
            module.training = training
