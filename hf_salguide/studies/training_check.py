"""Whether each kind of guidance trains a model: one step, by its term alone."""

import inspect
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..arguments import SaliencyTrainingArguments
from ..backbones import logits_of
from ..rng import preserve_rng
from ..trainer import SaliencyTrainer
from .layer_checks import noise
from .zoo import NUM_LABELS

# One method of each kind: what it compares comes from a map, from a gradient with respect to the picture, from the
# features of the picture and of a changed one, and from the logits and features of two changed ones.
KINDS = {"map": "cyborg", "input gradient": "rrr", "features": "actdiff", "views": "sage"}
PICTURES = 3
MANY = 10_000_000  # parameters, from which on a step is costly


def train_step(model: PreTrainedModel, kind: str, size: tuple[int, int], names: Sequence[str] = ()) -> str:
    """
    One optimizer step by the guidance term alone, with [`SaliencyTrainer`] on three annotated pictures.

    Args:
        model (`PreTrainedModel`): a classifier with three labels; it is trained.
        kind (`str`): of [`KINDS`].
        size (`tuple[int, int]`): the pictures' `(H, W)`.
        names (sequence of `str`, *optional*): the feature layers, where they are named.

    Returns:
        `str`: empty if all gradients are finite and one of the first tenth of the parameters has one other than zero;
        otherwise what is wrong.
    """
    options: dict[str, Any] = {}
    if kind == "features" and names:
        options["layers"] = list(names)  # a head that reads several maps has no one vector to compare
    if kind == "input gradient" and model.num_parameters() > MANY:
        options["gradient_engine"] = "double_backward"  # trying both takes longer than all the rest
    with tempfile.TemporaryDirectory() as folder, preserve_rng():
        args = SaliencyTrainingArguments(
            folder,
            guidance=KINDS[kind],
            guidance_options=options or None,
            task_weight=0.0,
            image_size=list(size),
            feature_layer=list(names) or None,
            use_cpu=True,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        # A classifier that is made for evaluation takes no labels.
        takes_labels = "labels" in inspect.signature(model.forward).parameters
        trainer = SaliencyTrainer(model, args, compute_loss_func=None if takes_labels else _cross_entropy)
        trainer.create_optimizer()
        trainer.training_step(model, _batch(size))
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        fault = _fault_of([(name, parameter.grad) for name, parameter in named])
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        if not fault and not all(bool(parameter.isfinite().all()) for _, parameter in named):
            fault = "the step made weights that are not finite"
    model.eval()
    return fault


def _fault_of(gradients: Sequence[tuple[str, Tensor | None]]) -> str:
    wrong = [name for name, gradient in gradients if gradient is not None and not gradient.isfinite().all()]
    if wrong:
        return f"{len(wrong)} of {len(gradients)} gradients are not finite, such as that of {wrong[0]}"
    early = [gradient for _, gradient in gradients[: max(1, len(gradients) // 10)]]
    if not any(gradient is not None and bool(gradient.any()) for gradient in early):
        return f"no gradient at the first {len(early)} parameters"
    return ""


def _cross_entropy(outputs: Any, labels: Tensor, **kwargs: Any) -> Tensor:
    return F.cross_entropy(logits_of(outputs), labels)


def _batch(size: tuple[int, int]) -> dict[str, Tensor]:
    """Noise, with a salient rectangle at another place in each picture."""
    height, width = size
    saliency = torch.zeros(PICTURES, height, width, dtype=torch.uint8)
    for row in range(PICTURES):
        top, left = row * height // 5, (PICTURES - row) * width // 5
        saliency[row, top : top + height // 3, left : left + width // 3] = 255
    return {
        "pixel_values": noise(PICTURES, size, seed=4),
        "labels": torch.arange(PICTURES) % NUM_LABELS,
        "saliency": saliency,
        "has_saliency": torch.ones(PICTURES, dtype=torch.bool),
    }
