"""One forward of a micro-batch, and everything in it that guidance methods read."""

import copy
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from ..backbones import FeatureCapture, FeatureTap, class_maps, logits_of, split_batch_norm, twice_differentiable
from ..guidance import Guidance, GuidanceBatch, Pictures, View
from .draws import Draws
from .gradients import Replay, double_backward, exact_convolutions, finite_difference
from .plan import IGNORED, Plan

SIZES = 4  # numbers of views that are compiled for, where each size is compiled by itself: quarters of the batch
ROWS_BY_THEMSELVES = ("pictures", "running")  # kinds of batch statistics in which a view more changes no other


class GuidedForward:
    """
    A model that is called once, like the one it holds, and sees the methods' pictures as well.

    Calling it runs the wrapped model on the micro-batch's pictures, transformed by the methods that transform them,
    with the methods' views of the rows that count behind them. It returns the outputs of the pictures alone, and
    keeps what [`~GuidedForward.batch`] hands to each method. Views are given no label, so the model's own loss is that
    of the pictures.

    Args:
        model (`nn.Module`): the model to call, wrapped or not.
        plan ([`Plan`]): what to gather.
        pictures ([`Pictures`]): of the micro-batch; `uniform` is not read.
        draws ([`Draws`]): what random numbers are keyed by.
        unwrapped (`nn.Module`): the model inside `model`.
        training (`bool`): whether gradients of the terms are wanted.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        pictures: Pictures,
        draws: Draws,
        unwrapped: nn.Module,
        training: bool,
    ) -> None:
        self.model = model
        self.plan = plan
        self.draws = draws
        self.unwrapped = unwrapped
        self.training = training
        self.count = len(pictures.pixel_values)
        self.pictures = self._transformed(pictures)
        self._views = self._make_views()
        self._others: dict[str, Any] = {}
        self._targets: dict[tuple[tuple[int, int], str], tuple[Tensor, Tensor]] = {}
        self._source: Tensor | None = None
        self._logits: Tensor | None = None
        self._capture: FeatureCapture | None = None
        self._tap: FeatureTap | None = None
        self._replay: Replay | None = None

    def _transformed(self, pictures: Pictures) -> Pictures:
        for method in self.plan.methods:
            if method.transforms_inputs and (self.training or method.transforms_evaluation):
                seen = replace(pictures, uniform=self.draws.uniform(method.name))
                pictures = replace(pictures, pixel_values=method.transform(seen).detach())
        return pictures

    @cached_property
    def _rows(self) -> Tensor:
        """The places of the rows that count, int64. On a GPU the host waits for them, so they are found on demand."""
        return self.pictures.annotated.nonzero().squeeze(1)

    @cached_property
    def _shown(self) -> Tensor:
        """The places of the rows of which the model sees views."""
        return self._repeated(self._rows)

    def _repeated(self, values: Tensor) -> Tensor:
        """Values of the rows that count, `(A, ...)`, some of them twice where the model is compiled for few sizes."""
        count = len(values)
        if not self.plan.few_sizes or self.plan.batch_norm not in ROWS_BY_THEMSELVES or count == 0:
            return values
        share = -(-self.count // SIZES)
        padded = min(self.count, -(-count // share) * share)
        return values if padded == count else values[torch.arange(padded, device=values.device) % count]

    def _make_views(self) -> dict[str, list[Tensor]]:
        if not self.plan.makes_views or len(self._rows) == 0:
            return {}
        views = {}
        for method in self.plan.methods:
            seen = replace(self.pictures, uniform=self.draws.uniform(method.name))
            with torch.no_grad():
                made = method.views(seen.rows(self._shown))
            if made:
                views[method.name] = made
        return views

    # ---- The forward ----

    def __call__(self, **inputs: Any) -> Any:
        """
        Runs the model.

        Args:
            **inputs: what the model takes; `pixel_values` are exchanged for the transformed pictures.

        Returns:
            The model's output, of the pictures alone.
        """
        plan, pixel_values = self.plan, self.pictures.pixel_values
        self._others = {name: value for name, value in inputs.items() if name not in ("pixel_values", "labels")}
        labels = {"labels": self._unlabelled_views(inputs["labels"])} if inputs.get("labels") is not None else {}
        with ExitStack() as stack:
            if plan.input_gradient:
                stack.enter_context(torch.enable_grad())
                pixel_values = self._source = pixel_values.detach().clone().requires_grad_()
            if plan.double_backward and self.training:
                stack.enter_context(twice_differentiable())
            if plan.finite_difference and self.training:
                self._replay = Replay(self.unwrapped)
                stack.enter_context(exact_convolutions(pixel_values.device))
            if plan.feature_layer is not None:
                capture = FeatureCapture(self.unwrapped, plan.feature_layer, tail_gradient=plan.tail_gradient)
                self._capture = stack.enter_context(capture)
            if plan.pooled is not None or plan.layers:
                self._tap = stack.enter_context(FeatureTap(self.unwrapped, plan.layers, plan.pooled))
            outputs = self._run(self.model, pixel_values, **labels)
            # In here, where half precision is not cut off from the map in an evaluation.
            self._logits = logits_of(outputs).float()
        if self._replay is not None:
            self._replay.stop()
        if not self._parts:
            return outputs
        total = self.count + sum(len(part) for part in self._parts)
        own = copy.copy(outputs)
        for name, value in outputs.items():
            own[name] = _first_rows(value, self.count, total)
        return own

    @property
    def _parts(self) -> list[Tensor]:
        return [view for views in self._views.values() for view in views]

    def _run(self, model: nn.Module, pixel_values: Tensor, **labels: Tensor) -> Any:
        """The model on the pictures, and on the views behind them."""
        parts = self._parts
        if not parts:
            return model(pixel_values=pixel_values, **labels, **self._others)
        repeated = torch.cat([torch.arange(self.count, device=self._rows.device), *[self._shown] * len(parts)])
        others = {name: self._rows_of(value, repeated) for name, value in self._others.items()}
        with split_batch_norm([self.count, *(len(part) for part in parts)], self.plan.batch_norm):
            return model(pixel_values=torch.cat([pixel_values, *parts]), **labels, **others)

    def _rows_of(self, value: Any, rows: Tensor) -> Any:
        """The rows of what else the model takes, where it has a row a picture."""
        return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == self.count else value

    def _unlabelled_views(self, labels: Tensor) -> Tensor:
        added = sum(len(part) for part in self._parts)
        return torch.cat([labels, labels.new_full((added,), IGNORED)]) if added else labels

    # ---- What methods read ----

    def batch(self, method: Guidance, labels: Tensor, global_batch_size: int) -> GuidanceBatch:
        """
        What one method sees, after the forward.

        Args:
            method ([`Guidance`]): one of the plan's.
            labels (`Tensor` of shape `(B,)`): true classes, int64.
            global_batch_size (`int`): pictures of the optimizer step.

        Returns:
            [`GuidanceBatch`]
        """
        logits, features = self._all_logits, {} if self._tap is None else self._tap.features
        wanted = {name: features[name] for name in method.layers}
        return GuidanceBatch(
            logits=logits[: self.count],
            labels=labels,
            saliency=self.pictures.saliency,
            annotated=self.pictures.annotated,
            map_of=self._map_of if method.needs_maps else _no_maps,
            gradient_penalty=partial(self._gradient_penalty, method),
            features={name: value[: self.count] for name, value in wanted.items()},
            views=[
                View(logits[rows], {name: value[rows] for name, value in wanted.items()})
                for rows in self._rows_of_views(method)
            ],
            global_batch_size=global_batch_size,
            training=self.training,
            find_rows=lambda: self._rows,
            targets=self._targets,
        )

    def zero(self) -> Tensor:
        """A scalar 0 on the logits' device, float32."""
        return self._all_logits.new_zeros(())

    @property
    def _all_logits(self) -> Tensor:
        if self._logits is None:
            raise RuntimeError("the forward has not been run; call it before asking for a batch.")
        return self._logits

    def _rows_of_views(self, method: Guidance) -> list[slice]:
        """Where the views of a method are in the batch that the model saw."""
        first, found = self.count, []
        for name, views in self._views.items():
            for view in views:
                if name == method.name:
                    found.append(slice(first, first + len(self._rows)))
                first += len(view)
        return found

    def _map_of(self, weights: Tensor) -> Tensor:
        logits, layer = self._all_logits, self.plan.feature_layer
        if self._capture is None or layer is None:
            raise RuntimeError("no feature layer was captured.")
        return class_maps(
            self._capture, layer, self.unwrapped, logits, weights, create_graph=self.training, tail=self.plan.tail
        )

    def _gradient_penalty(
        self, method: Guidance, scalar: Callable[[Tensor], Tensor], penalty: Callable[[Tensor], Tensor]
    ) -> Tensor:
        logits, layer = self._all_logits, self.plan.feature_layer

        def own(all_logits: Tensor) -> Tensor:
            return scalar(all_logits[: self.count])

        if method.gradient_at == "features" and self._capture is not None and layer is not None:
            raw = self._capture.raw
            if self.plan.tail is not None:
                raw, logits = self._capture.replay(self.plan.tail, self.unwrapped, self.count)
            return double_backward(
                logits,
                raw,
                lambda gradient: layer.to_maps(gradient)[: self.count],
                own,
                penalty,
                create_graph=self.training,
            )
        if method.gradient_at != "input" or self._source is None:
            raise RuntimeError(f'guidance="{method.name}" asked for a gradient; set gradient_at on it.')
        if self.plan.engines[method.name].engine == "double_backward" or not self.training:
            return double_backward(logits, self._source, lambda raw: raw, own, penalty, create_graph=self.training)
        return finite_difference(
            logits[: self.count], self._source, scalar, penalty, self._again, self._rows, create_graph=True
        )

    def _again(self, pictures: Tensor) -> Tensor:
        """The logits of other pictures in the rows that count, with what the first forward drew."""
        if self._replay is None:
            raise RuntimeError("the forward was not run in training; there is nothing to replay.")
        # Other attention would round differently.
        attention = twice_differentiable() if self.plan.double_backward else nullcontext()
        model = _of_this_process(self.model)
        with self._replay, attention, exact_convolutions(pictures.device):
            if self._replay.drew:  # dropout draws one mask for the whole batch
                whole = self.pictures.pixel_values.index_copy(0, self._rows, pictures)
                return logits_of(self._run(model, whole))[self._rows].float()
            others = {name: self._rows_of(value, self._shown) for name, value in self._others.items()}
            return logits_of(model(pixel_values=self._repeated(pictures), **others))[: len(pictures)].float()


def _of_this_process(model: nn.Module) -> nn.Module:
    """
    The model without `DistributedDataParallel`, compiled as it is: a second forward of that would broadcast the
    buffers again, which processes without a row that counts would not.
    """
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, DistributedDataParallel):
        return model
    return inner.module if inner is model else OptimizedModule(inner.module, cast(Any, model).dynamo_ctx)


def _first_rows(value: Any, count: int, total: int) -> Any:
    """The first `count` rows of an output that has `total`, and of each in a tuple or a list of them."""
    if isinstance(value, tuple | list):
        parts = [_first_rows(part, count, total) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value[:count] if isinstance(value, Tensor) and value.ndim and len(value) == total else value


def _no_maps(weights: Tensor) -> Tensor:
    raise RuntimeError("a method that sets needs_maps=False asked for a map; set needs_maps=True on its class.")
