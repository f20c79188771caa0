"""The base class of guidance methods, and what a method sees of a micro-batch."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..maps import one_hot, saliency_target

Place = Literal["input", "features"]
Resolution = Literal["picture", "grid"]
Engine = Literal["auto", "double_backward", "finite_difference"]
BatchNorm = Literal["pictures", "separate", "running", "concat"]


@dataclass(frozen=True)
class Pictures:
    """
    What a method that makes pictures sees, before the forward.

    Attributes:
        pixel_values (`Tensor` of shape `(B, C, H, W)`): the prepared pictures.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency, float32 in [0, 1], zeros in rows without one.
        annotated (`Tensor` of shape `(B,)`): boolean, `True` in rows that count, see [`GuidanceBatch`].
        uniform (`Callable`): takes a number `n` and gives `(B, n)` float32 in [0, 1), keyed by the run's seed, the
            method, the optimizer step and each row's place in the global batch: the same on every call.
    """

    pixel_values: Tensor
    saliency: Tensor
    annotated: Tensor
    uniform: Callable[[int], Tensor]

    def rows(self, index: Tensor) -> "Pictures":
        """The pictures at the places `index`, `(A,)` int64."""
        return Pictures(
            self.pixel_values[index], self.saliency[index], self.annotated[index], lambda n: self.uniform(n)[index]
        )


@dataclass(frozen=True)
class View:
    """
    What the model made of one of a method's views, for the `A` rows that count, in their order.

    Attributes:
        logits (`Tensor` of shape `(A, K)`): float32, in the graph.
        features (`dict` from a name of `Guidance.layers` to a `Tensor` of shape `(A, ...)`): float32, in the graph.
    """

    logits: Tensor
    features: Mapping[str, Tensor]


def _no_gradients(scalar: Any, penalty: Any) -> Tensor:
    raise RuntimeError("a method whose gradient_at is None asked for a gradient; set gradient_at on it.")


@dataclass(frozen=True)
class GuidanceBatch:
    """
    What a guidance method sees of one micro-batch of `B` pictures and `K` classes.

    Attributes:
        logits (`Tensor` of shape `(B, K)`): float32, in the graph.
        labels (`Tensor` of shape `(B,)`): true classes, int64.
        saliency (`Tensor` of shape `(B, H, W)`): human saliency, float32 in [0, 1], zeros in rows without one. Where
            every method's `saliency_at` is `"grid"`, `H` and `W` may be less than the picture's.
        annotated (`Tensor` of shape `(B,)`): boolean, `True` in rows that count: those with a saliency map, and, with
            `empty_mask="skip"`, with one that is not empty.
        map_of (`Callable`): takes weights `(B, K)` and gives the map `(B, h, w)` of the scalar
            `sum_k weights[b, k] * logits[b, k]`, float32, signed, differentiable when the model trains.
        gradient_penalty (`Callable`): takes `scalar`, which maps logits `(B, K)` to one number a row `(B,)`, and
            `penalty`, which maps the gradient of that number with respect to what `Guidance.gradient_at` says,
            `(B, C, h, w)` float32, to `(B,)`. Gives the penalty `(B,)`, differentiable when the model trains by the
            engine of the method.
        features (`dict` from a name of `Guidance.layers` to a `Tensor` of shape `(B, ...)`): float32, in the graph.
        views (`Sequence` of [`View`]): what the model made of each of the pictures of [`Guidance.views`].
        global_batch_size (`int`): the pictures of one optimizer step, over all micro-batches and processes.
        training (`bool`): whether this batch trains the model, or evaluates it.
        find_rows (`Callable`, *optional*): gives [`~GuidanceBatch.rows`], found once for all methods.
        targets (`dict`): what [`~GuidanceBatch.target`] has made, for all methods of the micro-batch.
    """

    logits: Tensor
    labels: Tensor
    saliency: Tensor
    annotated: Tensor
    map_of: Callable[[Tensor], Tensor]
    gradient_penalty: Callable[[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], Tensor] = _no_gradients
    features: Mapping[str, Tensor] = field(default_factory=dict)
    views: Sequence[View] = ()
    global_batch_size: int = 1
    training: bool = True
    find_rows: Callable[[], Tensor] | None = field(default=None, repr=False)
    targets: dict[tuple[tuple[int, int], str], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def target(self, grid: tuple[int, int], resize: str = "area") -> tuple[Tensor, Tensor]:
        """
        What maps are compared with, see [`~maps.saliency_target`]; made once, whoever asks and how often.

        Args:
            grid (`tuple[int, int]`): `(h, w)`, the size of the maps.
            resize (`str`, *optional*, defaults to `"area"`): `"area"` or `"bilinear"`.

        Returns:
            `tuple` of a `Tensor` of shape `(B, h, w)` in [0, 1], which is not to be changed, and a boolean `(B,)`,
            whether it has a place.
        """
        key = ((int(grid[0]), int(grid[1])), resize)
        if key not in self.targets:
            self.targets[key] = saliency_target(self.saliency, key[0], resize)
        return self.targets[key]

    def class_map(self, classes: Tensor) -> Tensor:
        """
        The map of one class a sample.

        Args:
            classes (`Tensor` of shape `(B,)`): class ids, int64.

        Returns:
            `Tensor` of shape `(B, h, w)`, signed, in the scale of the logit.
        """
        return self.map_of(one_hot(classes, self.logits))

    @property
    def rows(self) -> Tensor:
        """The places of the rows that count, `(A,)` int64, in their order. On a GPU the host waits for them."""
        return self.annotated.nonzero().squeeze(1) if self.find_rows is None else self.find_rows()

    def of_annotated(self, values: Tensor) -> Tensor:
        """The rows of `values`, `(B, ...)`, that count: `(A, ...)`, in the order of the views' rows."""
        return values.index_select(0, self.rows)

    def to_batch(self, values: Tensor) -> Tensor:
        """Values of the rows that count, `(A,)`, at their places in the batch, `(B,)`: 0 elsewhere."""
        return values.new_zeros(len(self.annotated)).index_copy(0, self.rows, values)


class Guidance(ABC):
    """
    A guidance method: a term of the loss, one number a sample.

    A subclass sets the class attributes, takes its own choices as keyword arguments of `__init__`, checks them there
    and implements [`~Guidance.terms`]; `@register_guidance` makes it known by its `name`.

    Class attributes:
        name (`str`): what users write in `guidance=`.
        paper (`str`): authors, title, venue, arXiv id.
        formula (`str`): the term, in one line of text.
        reconstructed (`bool`): whether the formula had to be reconstructed because the paper's is not public.
        default_weight, default_task_weight (`float`): the published weights of the term and of the task's loss.
        cost (`str`): what a step takes beside the plain one: `"none"`, `"map"` (a map of the forward that is run
            anyway), `"views"` (more pictures in it), `"gradient"` (a gradient with respect to the pictures, and its
            derivative).
        transforms_inputs (`bool`): whether it changes the pictures ([`~Guidance.transform`]) and adds no term.
        transforms_evaluation (`bool`): whether it changes them in evaluation too.
        needs_annotation (`bool`): whether it does nothing for pictures without saliency.
        draws (`bool`): whether it draws random numbers.
        needs_maps (`bool`): whether it asks for maps of the model, [`GuidanceBatch.map_of`].
        accepts_empty_masks (`bool`): whether `empty_mask="penalise_all"` has a meaning for it: it penalises what is
            outside the mask, and needs no target to match.

    Attributes:
        gradient_at (`str`, *optional*): `"input"` or `"features"` for a method that calls
            [`GuidanceBatch.gradient_penalty`]: what the gradient is taken with respect to.
        gradient_engine (`str`): how that gradient is differentiated, `"auto"`, `"double_backward"` or
            `"finite_difference"`.
        layers (`tuple[str, ...]`): names of the modules whose outputs it reads, in [`GuidanceBatch.features`];
            `"pooled"` is the vector `(B, D)` that the classifier's last layer reads.
        batch_norm (`str`): how batch normalisation treats the views while the model trains: by the batch statistics of
            the `"pictures"`, by those of each kind of view (`"separate"`), by the `"running"` ones, or as one batch
            with the pictures (`"concat"`). But for the last, the pictures are normalised as in plain training, and
            views update nothing.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]
    reconstructed: ClassVar[bool] = False
    default_weight: ClassVar[float] = 1.0
    default_task_weight: ClassVar[float] = 1.0
    cost: ClassVar[str] = "map"
    transforms_inputs: ClassVar[bool] = False
    transforms_evaluation: ClassVar[bool] = False
    needs_annotation: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = True
    accepts_empty_masks: ClassVar[bool] = False
    gradient_at: Place | None = None
    gradient_engine: Engine = "auto"
    layers: tuple[str, ...] = ()
    batch_norm: BatchNorm = "pictures"

    @abstractmethod
    def terms(self, batch: GuidanceBatch) -> Tensor:
        """
        The method's term, unweighted.

        Args:
            batch ([`GuidanceBatch`]): logits, labels, saliency and maps of one micro-batch.

        Returns:
            `Tensor` of shape `(B,)`, float32: 0, with a gradient of exactly 0, in rows that do not count.
        """

    def views(self, pictures: Pictures) -> list[Tensor]:
        """
        Further pictures that the model is to see in the same forward.

        Args:
            pictures ([`Pictures`]): the `A` rows that count.

        Returns:
            `list[Tensor]`, each `(A, C, H, W)`: none, unless a method says otherwise. What the model makes of them is
            in [`GuidanceBatch.views`], in this order.
        """
        return []

    def transform(self, pictures: Pictures) -> Tensor:
        """
        The pictures that the model is to see in place of the given ones, for a method with `transforms_inputs`.

        Args:
            pictures ([`Pictures`]): the whole micro-batch.

        Returns:
            `Tensor` of shape `(B, C, H, W)`; rows that do not count are left as they are.
        """
        return pictures.pixel_values

    def check_classes(self, count: int) -> None:  # noqa: B027
        """
        Refuses options that a model with `count` classes cannot meet; called before training.

        Raises:
            ValueError: naming the option, the value and the remedy.
        """

    @property
    def saliency_at(self) -> Resolution:
        """
        The resolution at which it reads saliency: the `"picture"`'s, unless a method says `"grid"`: it reads nothing
        but area means over the cells of the feature layer's grid. Training then carries less of each map.
        """
        return "picture"

    @property
    def makes_views(self) -> bool:
        """Whether it has [`~Guidance.views`] of its own."""
        return type(self).views is not Guidance.views

    @property
    def options(self) -> dict[str, Any]:
        """The method's own choices, by the names of its keyword arguments."""
        taken = inspect.signature(type(self).__init__).parameters
        return {name: vars(self)[name] for name in taken if name in vars(self)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


class StatefulGuidance(Guidance):
    """
    A guidance method with something of its own to train or to keep, such as a discriminator.

    What [`~Guidance.terms`] reads of it stays as it is within an optimizer step; it changes in
    [`~StatefulGuidance.step`] alone. So accumulation and the number of processes change nothing.
    """

    @abstractmethod
    def setup(self, sizes: Mapping[str, torch.Size], device: torch.device, seed: int) -> None:
        """
        Makes the state anew, before training; no global generator is touched.

        Args:
            sizes (`dict` from a name of `Guidance.layers` to `torch.Size`): one row's feature, without the batch.
            device (`torch.device`): where the model is.
            seed (`int`): the run's seed: every process makes the same state.
        """

    @abstractmethod
    def step(self, average: Callable[[list[Tensor]], None]) -> None:
        """
        Called once at the end of each optimizer step, on every process.

        Args:
            average (`Callable`): replaces tensors, in place, by their means over the processes.
        """

    def forget(self) -> None:
        """Drops what an optimizer step that was not finished has left behind; the state stays."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors, numbers and containers of them."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what [`~StatefulGuidance.state_dict`] gave; called after [`~StatefulGuidance.setup`]."""


def check_choice(argument: str, value: Any, choices: tuple[str, ...]) -> Any:
    """
    Checks an option that takes one of a few words.

    Raises:
        ValueError: naming the option, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{argument}={value!r} is not known; choose one of {', '.join(map(repr, choices))}.")
    return value


def check_positive(argument: str, value: Any) -> float:
    """
    Checks an option that takes a number above 0.

    Raises:
        ValueError: naming the option and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{argument}={value!r} has to be a number above 0.")
    return float(value)


def check_weight(argument: str, value: Any) -> float:
    """
    Checks an option that takes a number of at least 0.

    Raises:
        ValueError: naming the option and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{argument}={value!r} has to be a number, 0 or above.")
    return float(value)


def check_flag(argument: str, value: Any) -> bool:
    """
    Checks an option that is true or false.

    Raises:
        ValueError: naming the option and the value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{argument}={value!r} has to be true or false.")
    return value


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def outside(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """
    How far each cell lies outside what people marked.

    Args:
        saliency (`Tensor` of shape `(B, H, W)`): human saliency in [0, 1]; soft maps stay soft.
        size (`tuple[int, int]`): `(h, w)`; each cell is the mean of what it covers.

    Returns:
        `Tensor` of shape `(B, h, w)` in [0, 1]: `1 - S`.
    """
    if saliency.shape[1:] == torch.Size(size):
        return 1 - saliency
    return 1 - F.adaptive_avg_pool2d(saliency.unsqueeze(1), size).squeeze(1)
