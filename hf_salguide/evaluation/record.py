"""What one evaluation gathers over its batches: the components of the loss, and how well maps match the annotation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from ..backbones import FeatureCapture, FeatureLayer, class_maps, logits_of, resolve_feature_layer
from ..guidance import batch_saliency
from ..means import RunningMeans
from ..metrics import alignment_metrics, alignment_summary
from .defaults import ALIGNMENT, DIVERGED

logger = logging.get_logger(__name__)


class EvaluationRecord:
    """
    The components of the loss, and the alignment of the predicted class's map with the annotation, of one evaluation.

    The maps are made of the layer's output in the forward that is run anyway, and only for batches in which a picture
    is annotated. A few numbers a picture are kept. Where maps cannot be made, for whatever reason, that evaluation
    leaves the alignment out, with one warning a model.

    Args:
        gather (`Callable`): brings a tensor of one row a picture together over the processes, the rows that were added
            to fill the last batch left out.
        feature_layer (`str` or `list[str]`, *optional*): the layer or layers that maps are made of; default: resolved.
        alignment (`bool`, *optional*, defaults to `True`): whether maps are made at all.

    Attributes:
        annotated (`array` of shape `(N,)`, *optional*): of the last evaluation, boolean; `None` where no maps were
            made.
        aligned (`dict` of `array` of shape `(N,)`): of the last evaluation, NaN in rows that are not annotated.
    """

    def __init__(
        self,
        gather: Callable[[Tensor], Tensor],
        feature_layer: str | Sequence[str] | None = None,
        alignment: bool = True,
    ) -> None:
        self.alignment = alignment
        self.reason: str | None = None
        self._gather = gather
        self._feature_layer = feature_layer
        self._means = RunningMeans()
        self._model: nn.Module | None = None
        self._warned: WeakSet[nn.Module] = WeakSet()
        self._recording = False
        self.annotated: np.ndarray | None = None
        self.aligned: dict[str, np.ndarray] = {}
        self._clear()

    def _clear(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._maps: Tensor | None = None
        self._waiting = False
        self._layers: dict[tuple[int, int], FeatureLayer] = {}
        self._tables: list[Tensor] = []
        self._means = RunningMeans()

    def begin(self, model: nn.Module, obstacle: str | None = None) -> None:
        """
        Starts an evaluation.

        Args:
            model (`nn.Module`): the model, neither wrapped nor compiled.
            obstacle (`str`, *optional*): why maps cannot be made of it, where that is known.
        """
        self._clear()
        self.annotated, self.aligned = None, {}
        self._model, self.reason = model, None
        if self.alignment and obstacle is not None:
            self._refuse(obstacle)
        # The same in every process, for recording gathers.
        self._recording = self.alignment and obstacle is None

    def run(self, step: Callable[[], Any], batch: Mapping[str, Any], draws_maps: bool = False) -> Any:
        """
        Runs a step of the evaluation.

        Args:
            step (`Callable`): runs the model once on the batch.
            batch (`dict`): `pixel_values` `(B, C, H, W)` and, where there is annotation, `saliency` and
                `has_saliency`, see [`SaliencyCollator`].
            draws_maps (`bool`, *optional*, defaults to `False`): whether the step itself will call [`offer_maps`].

        Returns:
            What the step returns.
        """
        self._terms, self._maps = {}, None
        wanted = self._waiting = self._recording and self.reason is None and _has_annotation(batch)
        try:
            output = self._captured(step, batch) if wanted and not draws_maps else step()
        finally:
            self._waiting = False
        if wanted and self._maps is None and self.reason is None:
            self._refuse("compute_loss, which draws the maps for guidance, gave none")
        if self._terms:
            gathered = self._gather(torch.stack(list(self._terms.values()), dim=1))
            self._means.add({name: gathered[:, index] for index, name in enumerate(self._terms)})
        if self._recording and "pixel_values" in batch:
            self._tables.append(self._gather(self._table(batch)))
        return output

    def add_terms(self, terms: dict[str, Tensor]) -> None:
        """Takes the components of the batch's loss, each `(B,)`, detached."""
        self._terms = terms

    def offer_maps(self, logits: Tensor, map_of: Callable[[Tensor], Tensor]) -> None:
        """
        Takes the batch's maps from a step that has captured the layer itself; does nothing where none are wanted.

        Args:
            logits (`Tensor` of shape `(B, K)`): the batch's.
            map_of (`Callable`): gives the maps `(B, h, w)` of `sum_k weights[b, k] * logits[b, k]`.
        """
        if not self._waiting:
            return
        try:
            self._maps = _predicted_maps(logits, map_of)
        except Exception as error:
            self._refuse(str(error))

    def finish(self) -> dict[str, float]:
        """
        Ends the evaluation.

        Returns:
            `dict` of the means of the loss's components, and of what [`~metrics.alignment_summary`] gives where there
            is an annotated picture.
        """
        found, tables = self._means.pop(None), self._tables
        if tables:
            found |= self._summary(torch.cat(tables).cpu())
        self._recording, self._model = False, None
        self._clear()
        return found

    def _summary(self, table: Tensor) -> dict[str, float]:
        """The alignment, by the rows of all processes."""
        annotated, failed, *columns = table.unbind(dim=1)
        if failed.any():
            if self.reason is None:
                self._refuse("another process could not make the maps")
            return {}
        rows = annotated > 0
        self.annotated = rows.numpy()
        if not rows.any():
            return {}
        self.aligned = {name: column.numpy() for name, column in zip(ALIGNMENT, columns, strict=True)}
        values = {name: column[rows] for name, column in zip(ALIGNMENT, columns, strict=True)}
        return alignment_summary(values, torch.ones(int(rows.sum())))

    # ---- One batch ----

    def _captured(self, step: Callable[[], Any], batch: Mapping[str, Any]) -> Any:
        """The step, with the layer captured in its forward."""
        output, model = None, self._model
        assert model is not None
        # Whatever goes wrong with the maps, the evaluation goes on without them.
        try:
            height, width = batch["pixel_values"].shape[-2:]
            if (height, width) not in self._layers:
                if any(bool(held.isnan().any()) for held in (*model.parameters(), *model.buffers())):
                    raise ValueError(DIVERGED)  # the search would say that there is no layer
                self._layers[height, width] = resolve_feature_layer(model, (height, width), self._feature_layer)
            layer = self._layers[height, width]
            with FeatureCapture(model, layer, tail_gradient=layer.needs_gradient) as capture, _first(model) as outputs:
                output = step()
                logits = logits_of(outputs[0]).float()
            self._maps = _predicted_maps(logits, lambda weights: class_maps(capture, layer, model, logits, weights))
        except Exception as error:
            reason = str(error)
            if output is None:
                with _first(model) as outputs:
                    output = step()  # raises again what is no fault of the capture
                with suppress(Exception):
                    reason = reason if bool(logits_of(outputs[0]).isfinite().all()) else DIVERGED
            self._refuse(reason)
        return output

    def _refuse(self, reason: str) -> None:
        self.reason = reason
        if self._model is None or self._model in self._warned:
            return
        self._warned.add(self._model)
        logger.warning(
            f"The evaluation leaves out the alignment of maps with the annotation: {reason.rstrip('.')}. "
            "eval_alignment=False switches it off."
        )

    def _table(self, batch: Mapping[str, Any]) -> Tensor:
        """A row a picture: whether it is annotated, whether maps failed, its alignment, NaN where there is none."""
        pictures = batch["pixel_values"]
        table = pictures.new_full((len(pictures), 2 + len(ALIGNMENT)), torch.nan, dtype=torch.float32)
        table[:, :2] = 0
        if self._maps is not None and self.reason is None:
            try:
                maps = self._maps[: len(pictures)]
                saliency, annotated = batch_saliency(
                    pictures, batch["saliency"], batch["has_saliency"], empty_mask="penalise_all"
                )
                rows = annotated.nonzero().squeeze(1)
                values = alignment_metrics(maps[rows.to(maps.device)], saliency[rows].to(maps.device))
                table[:, 0] = annotated
                table[rows, 2:] = torch.stack([values[name] for name in ALIGNMENT], dim=1).to(table)
            except Exception as error:
                self._refuse(str(error))
        table[:, 1] = self.reason is not None
        self._maps = None
        return table


def _has_annotation(batch: Mapping[str, Any]) -> bool:
    annotated = batch.get("has_saliency")
    return (
        "pixel_values" in batch
        and batch.get("saliency") is not None
        and annotated is not None
        and bool(annotated.any())
    )


def _predicted_maps(logits: Tensor, map_of: Callable[[Tensor], Tensor]) -> Tensor:
    """
    The maps `(B, h, w)` of the predicted classes, detached.

    Raises:
        ValueError: if logits are not finite.
    """
    if not logits.isfinite().all():
        raise ValueError(DIVERGED)
    return map_of(F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)).detach()


@contextmanager
def _first(model: nn.Module) -> Iterator[list[Any]]:
    """A list to which a model's outputs are added, as they leave it, with the graph that they carry."""
    outputs: list[Any] = []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()
