"""
Penalties on the gradient of a model's output, differentiable with respect to the model: two engines, and the choice.

`double_backward` differentiates the gradient itself. It is exact for every layer that has a second derivative, which
the fused attention kernels and compiled models have not. `finite_difference` needs first derivatives alone: with
`v = dP/dg` held fixed, the parameters' derivative of a penalty `P(g)` on `g = ds/dx` is that of the directional
derivative `v . ds/dx`, which a second forward at `x + t v` gives as `(s(x + t v) - s(x)) / t`. It is right where the
network is smooth and where each picture's output depends on that picture alone.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from ..backbones.forward import (
    REFUSALS,
    checkpointing_failed,
    describe,
    image_pair,
    input_shape,
    logits_of,
    probe_images,
    size_refused,
    unwrap_model,
)
from ..rng import preserve_rng

RELATIVE_STEP = 1e-4  # of a picture's standard deviation: above float32's rounding, below the network's curvature
CONSTANT_BELOW = 1e-2  # of a picture's root mean square: its deviation is then no measure for a step
AGREEMENT = 0.999  # cosine of the two engines' parameter gradients from which on the cheaper one is taken

Scalar = Callable[[Tensor], Tensor]
Penalty = Callable[[Tensor], Tensor]


# ---- The engines ----


def double_backward(
    logits: Tensor,
    source: Tensor,
    to_maps: Callable[[Tensor], Tensor],
    scalar: Scalar,
    penalty: Penalty,
    create_graph: bool,
) -> Tensor:
    """
    A penalty on a gradient, by differentiating the gradient.

    Source: Drucker and Le Cun, "Improving generalization performance using double backpropagation", 1992.

    Args:
        logits (`Tensor` of shape `(B, K)`): in the graph of `source`.
        source (`Tensor`): what the gradient is taken with respect to: pictures that require a gradient, or a captured
            feature.
        to_maps (`Callable`): maps the gradient, in the layout of `source`, to `(B, C, h, w)`.
        scalar (`Callable`): maps logits to one number a row, `(B,)`; the gradient is that of their sum.
        penalty (`Callable`): maps the gradient `(B, C, h, w)`, float32 (float64 stays), to `(B,)`.
        create_graph (`bool`): whether the penalty is to be differentiable.

    Returns:
        `Tensor` of shape `(B,)`.

    Raises:
        RuntimeError: if the logits carry no gradient to `source`, or something in between has no second derivative;
            the message names the remedy.
    """
    with torch.autocast(logits.device.type, enabled=False):
        gradient = _gradient(logits, source, scalar, create_graph)
        return penalty(_full(to_maps(gradient)))


def finite_difference(
    logits: Tensor,
    pixel_values: Tensor,
    scalar: Scalar,
    penalty: Penalty,
    again: Callable[[Tensor], Tensor],
    rows: Tensor,
    create_graph: bool,
    relative_step: float = RELATIVE_STEP,
) -> Tensor:
    """
    A penalty on the gradient with respect to the pictures, by a second forward at shifted pictures.

    The value is that of [`double_backward`]; its derivative is that of a forward difference of the signed scalar along
    `dP/dg`, each row with a step of its own. On vision transformers and ConvNeXts in float32, trained or not, the
    cosine of its parameter gradients with those of the double backward is 0.99995 and better, at 2.3 to 2.5 times a
    plain step; a central difference (1.00000) costs another plain step.

    Args:
        logits (`Tensor` of shape `(B, K)`): in the graph of `pixel_values`.
        pixel_values (`Tensor` of shape `(B, C, H, W)`): pictures that require a gradient.
        scalar (`Callable`): maps logits `(B, K)` to one number a row, `(B,)`.
        penalty (`Callable`): maps the gradient `(B, C, H, W)`, float32 (float64 stays), to `(B,)`.
        again (`Callable`): maps pictures of the rows `rows`, `(A, C, H, W)`, to their logits `(A, K)` as the first
            forward would have given them, see [`Replay`].
        rows (`Tensor` of shape `(A,)`): the rows whose penalties count, int64. The others' have no gradient.
        create_graph (`bool`): whether the penalty is to be differentiable; if not, there is no second forward.
        relative_step (`float`, *optional*, defaults to 1e-4): the root mean square of a row's shift, in standard
            deviations of its picture.

    Returns:
        `Tensor` of shape `(B,)`.

    Raises:
        RuntimeError: if the logits carry no gradient to the pictures.
    """
    with torch.autocast(logits.device.type, enabled=False):
        gradient = _full(_gradient(logits, pixel_values, scalar, create_graph=False)).requires_grad_(create_graph)
        value = penalty(gradient)
        if not create_graph or len(rows) == 0 or not value.requires_grad:
            return value.detach()
        (derivative,) = torch.autograd.grad(value.sum(), gradient)
        pictures = pixel_values.detach()[rows]
        shift, inverse_step = _shift(_full(pictures), derivative[rows], relative_step)
    shifted_logits = again(pictures + shift.to(pictures.dtype))
    with torch.autocast(logits.device.type, enabled=False):
        # The scalar knows the labels of all rows, so the shifted ones take their places in the whole.
        exchanged = logits.detach().index_copy(0, rows, shifted_logits.to(logits.dtype))
        slope = (scalar(exchanged) - scalar(logits))[rows] * inverse_step
        return value.detach().index_add(0, rows, slope - slope.detach())


def _shift(pictures: Tensor, derivative: Tensor, relative_step: float) -> tuple[Tensor, Tensor]:
    """`t v` for each row, `(A, C, H, W)`, and `1 / t`, `(A,)`: both 0 where `v` is."""
    largest = derivative.abs().amax(dim=(1, 2, 3))
    moves = largest > 0
    # By the largest entry first: the square of a small derivative underflows.
    direction = derivative / torch.where(moves, largest, 1.0)[:, None, None, None]
    length = direction.square().mean(dim=(1, 2, 3)).sqrt()
    deviation = pictures.flatten(1).std(dim=1, correction=0)
    magnitude = pictures.square().mean(dim=(1, 2, 3)).sqrt()
    spread = torch.where(deviation > CONSTANT_BELOW * magnitude, deviation, 1.0)
    scale = relative_step * spread / torch.where(moves, length, 1.0)
    return direction * scale[:, None, None, None], largest / scale


def _full(values: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def _gradient(logits: Tensor, source: Tensor, scalar: Scalar, create_graph: bool) -> Tensor:
    gradient = None
    if logits.requires_grad and source.requires_grad:
        try:
            with torch.enable_grad():
                total = scalar(logits).sum()
            (gradient,) = torch.autograd.grad(
                total, source, create_graph=create_graph, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            if not checkpointing_failed(error):
                raise
            # The forward is run again outside the context in which attention was plain; the reentrant kind not at all.
            raise RuntimeError(
                "gradients of the logits do not go with gradient checkpointing of fused attention, nor with its "
                "reentrant kind (use_reentrant=True). Switch gradient checkpointing off; or, where it is not "
                'reentrant, take gradient_engine="finite_difference", or switch fused attention off: '
                "timm.layers.set_fused_attn(False) before a timm model is built, "
                'attn_implementation="eager" for a transformers model.'
            ) from error
    if gradient is None:
        raise RuntimeError(
            "the logits carry no gradient to what the penalty is taken with respect to. Run the forward with grad "
            "mode on, on pictures that require a gradient, and detach nothing on the way."
        )
    if create_graph:
        _refuse_missing_second_derivatives(gradient)
    return gradient


def _refuse_missing_second_derivatives(gradient: Tensor) -> None:
    """torch finds out in the backward pass of the loss, far from here; a walk of the graph takes a millisecond."""
    waiting, seen = [gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    names = {node.name() for node in seen}
    if any(name.startswith("CompiledFunctionBackwardBackward") for name in names):
        cause = "a compiled model"
    elif names & {"torch::autograd::NotImplemented", "torch::autograd::Error"}:
        cause = ", ".join(sorted(name for name in names if "Attention" in name)) or "a layer"
    else:
        return
    raise RuntimeError(
        f"the gradient cannot be differentiated: the second derivative of {cause} is not implemented. Run the forward "
        "inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH) where attention is fused, leave torch.compile out, or "
        'take gradient_engine="finite_difference".'
    )


# ---- The forwards ----


def reusable_graph() -> AbstractContextManager[None]:
    """
    A context from the forward of a compiled model to the last gradient that is taken before the loss's backward pass.

    What is compiled outside of it overwrites the graph's buffers in its first backward pass, and torch raises in the
    gradient. Models that are not compiled need no such context.
    """
    return functorch_config.patch(donated_buffer=False)


class Replay:
    """
    What a second forward needs in order to be like the first: the same random draws, the same batch statistics.

    Make it right before the first forward and call [`~Replay.stop`] right after it. Inside the context, which can be
    entered any number of times, dropout and drop-path draw what they drew in the first forward (from pictures of the
    same batch size: they draw one mask for the whole batch), and the running statistics and counters of normalisation
    layers are lent copies. On leaving, on an exception too, generators and buffers are as they were.

    Args:
        model (`nn.Module`): the model, wrapped or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrap_model(model)
        self._device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        self._before = self._states()
        self._after = self._before
        self._stack = ExitStack()

    def _states(self) -> list[Tensor]:
        states = [torch.random.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states

    def stop(self) -> None:
        """Called right after the first forward."""
        self._after = self._states()

    @property
    def drew(self) -> bool:
        """Whether the first forward drew random numbers."""
        return any(not torch.equal(one, other) for one, other in zip(self._before, self._after, strict=True))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(preserve_rng())
            norms = (module for module in self._model.modules() if isinstance(module, _NormBase))
            stack.enter_context(_lent_buffers(norms))
            torch.random.set_rng_state(self._before[0])
            for state in self._before[1:]:
                torch.cuda.set_rng_state(state, self._device)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


@contextmanager
def _lent_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """
    Copies in the places of modules' buffers, for as long as the context is entered.

    Writing the old values back would not do: a graph that read a buffer can no longer be differentiated then.
    """
    owned = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    try:
        for module, name, buffer in owned:
            module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, name, buffer in owned:
            module._buffers[name] = buffer


# ---- The choice ----


@dataclass(frozen=True)
class Choice:
    """
    The engine of a run.

    Attributes:
        engine (`str`): `"double_backward"` or `"finite_difference"`.
        agreement (`float`, *optional*): the lowest cosine of the two engines' parameter gradients on noise pictures;
            `None` where they were not compared, NaN where a gradient was zero.
        reason (`str`): why this one.
    """

    engine: Literal["double_backward", "finite_difference"]
    agreement: float | None
    reason: str


def choose_engine(
    model: nn.Module,
    size: int | tuple[int, int],
    requested: str = "auto",
    compiled: bool = False,
    mixed_precision: bool = False,
) -> Choice:
    """
    Finds out which engine a model can do, by trying both on three noise pictures.

    `"auto"` takes finite differences, which cost less and go with fused attention, where their parameter gradients of
    an absolute and of a squared penalty, on two of the three pictures, have a cosine of 0.999 or more with those of
    the double backward; else the double backward. ReLU networks, whose gradient jumps, and networks whose pictures
    see each other through batch statistics, as batch normalisation does in training, do not pass.

    Args:
        model (`nn.Module`): the classifier. Parameters and their gradients, buffers, modes and random states are
            left as they were. Weights that are all zero, as those of new heads may be, are random in the trial.
        size (`int` or pair): the pictures' `(H, W)`.
        requested (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"double_backward"` or `"finite_difference"`.
        compiled (`bool`, *optional*, defaults to `False`): whether the model will be compiled, which leaves no second
            derivative.
        mixed_precision (`bool`, *optional*, defaults to `False`): whether it will run under autocast, which leaves
            finite differences nothing but rounding; so does a model in half precision.

    Returns:
        [`Choice`]

    Raises:
        ValueError: for an unknown engine, one that the model cannot do, a model that can do neither, or a size that
            it does not take; the message has the measured agreement and the remedy.
    """
    engines = ("double_backward", "finite_difference")
    if requested not in ("auto", *engines):
        raise ValueError(
            f'gradient_engine="{requested}" is not known; choose "auto", "double_backward" or "finite_difference".'
        )
    model = unwrap_model(model)
    obstacles: dict[str, str] = {}
    if compiled:
        obstacles["double_backward"] = "a compiled model (torch_compile=True) has no second derivative"
    if mixed_precision or any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        obstacles["finite_difference"] = "differences of logits in half precision are rounding noise"
    agreement = None
    if requested not in obstacles and len(obstacles) < 2:
        trial = "double_backward" if "finite_difference" in obstacles else requested
        agreement = _try_engines(model, image_pair(size), trial, obstacles)
    if requested == "auto":
        for engine, reason in (
            ("finite_difference", f"its parameter gradients agree with those of double_backward, cosine {agreement}"),
            ("double_backward", obstacles.get("finite_difference", "")),
        ):
            if engine not in obstacles:
                return Choice(engine, agreement, reason)  # type: ignore[arg-type]
    elif requested not in obstacles:
        return Choice(requested, agreement, "as requested")  # type: ignore[arg-type]
    raise ValueError(_refusal(describe(model), requested, obstacles, compiled))


def _refusal(model: str, requested: str, obstacles: dict[str, str], compiled: bool) -> str:
    remedies = {
        "double_backward": 'leave torch_compile out, or take gradient_engine="finite_difference"'
        if compiled
        else 'switch gradient checkpointing off if it is on, or take gradient_engine="finite_difference" or '
        'at="features"',
        "finite_difference": 'take gradient_engine="double_backward" or "auto", or train in float32 where half '
        "precision is the reason",
        "auto": "leave torch_compile out"
        if compiled
        else 'switch gradient checkpointing off if it is on, or take at="features" or another backbone',
    }
    reasons = [f"{engine}: {reason}" for engine, reason in obstacles.items() if requested in ("auto", engine)]
    return f'gradient_engine="{requested}" is not possible for {model} ({"; ".join(reasons)}); {remedies[requested]}.'


def _try_engines(model: nn.Module, size: tuple[int, int], requested: str, obstacles: dict[str, str]) -> float | None:
    """Adds what stands in the way of each engine, and gives their agreement where finite differences may be taken."""
    with _undisturbed(model):
        trial = _Trial(model, input_shape(model, size))
        expected = None
        try:
            expected = trial.double_backward(math_everywhere=False)
        except RuntimeError as error:
            obstacles.setdefault("double_backward", _cause(error))
        if requested == "double_backward":
            return None
        try:
            # Where checkpointing runs the forward again, attention has to be plain once more.
            expected = trial.double_backward(math_everywhere=True) if expected is None else expected
            cosines = [_cosine(*pair) for pair in zip(trial.finite_difference(), expected, strict=True)]
            agreement = float(torch.tensor(cosines).min())  # NaN if any is
        except RuntimeError as error:
            obstacles["finite_difference"] = f"it cannot be checked against double_backward: {_cause(error)}"
            return None
    if not agreement >= AGREEMENT:
        obstacles["finite_difference"] = (
            f"its parameter gradients do not agree with those of double_backward: cosine {agreement:.5f}, below "
            f"{AGREEMENT}, as in networks with kinks (ReLU) or batch statistics"
        )
    return agreement


def _cause(error: RuntimeError) -> str:
    """An error's first sentence; what follows is a remedy, or torch's advice."""
    return str(error).splitlines()[0].split(". ")[0].rstrip(".")


class _Trial:
    """Three noise pictures, two of them annotated, half of each outside; one absolute and one squared penalty."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int]) -> None:
        self.model = model
        self.images = probe_images(model, shape, count=3, seed=0).requires_grad_()
        self.rows = torch.tensor([0, 2], device=self.images.device)
        self.outside = torch.zeros(shape[1:], device=self.images.device)
        self.outside[:, shape[2] // 2 :] = 1
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def _logits(self, images: Tensor) -> Tensor:
        return _full(logits_of(self.model(images)))

    def _first_logits(self) -> Tensor:
        try:
            return self._logits(self.images)
        except REFUSALS as error:
            raise size_refused(self.model, (self.images.shape[2], self.images.shape[3]), error) from error

    def _penalties(self) -> list[tuple[Scalar, Penalty]]:
        def contrast(logits: Tensor) -> Tensor:
            index = torch.arange(len(logits), device=logits.device)
            return logits[index, index % logits.shape[1]] - logits[index, (index + 1) % logits.shape[1]]

        def log_probabilities(logits: Tensor) -> Tensor:
            return logits.log_softmax(dim=1).sum(dim=1)

        return [
            (contrast, lambda gradient: (gradient * self.outside).abs().sum(dim=(1, 2, 3))),
            (log_probabilities, lambda gradient: (gradient * self.outside).square().sum(dim=(1, 2, 3))),
        ]

    def _parameter_gradients(self, terms: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(terms[self.rows].sum(), self.parameters, retain_graph=True, allow_unused=True))

    def double_backward(self, math_everywhere: bool) -> list[list[Tensor | None]]:
        """For each penalty, the gradient of every parameter; attention is plain in the forward, or throughout."""
        torch.manual_seed(0)  # both engines see the same dropout
        with sdpa_kernel(SDPBackend.MATH):
            logits = self._first_logits()
        with sdpa_kernel(SDPBackend.MATH) if math_everywhere else nullcontext():
            return [
                self._parameter_gradients(
                    double_backward(logits, self.images, lambda raw: raw, scalar, penalty, create_graph=True)
                )
                for scalar, penalty in self._penalties()
            ]

    def finite_difference(self) -> list[list[Tensor | None]]:
        """For each penalty, the gradient of every parameter."""
        torch.manual_seed(0)
        replay = Replay(self.model)
        logits = self._first_logits()
        replay.stop()

        def again(pictures: Tensor) -> Tensor:
            with replay:
                if replay.drew:  # dropout draws one mask for the whole batch
                    return self._logits(self.images.detach().index_copy(0, self.rows, pictures))[self.rows]
                return self._logits(pictures)

        return [
            self._parameter_gradients(
                finite_difference(logits, self.images, scalar, penalty, again, self.rows, create_graph=True)
            )
            for scalar, penalty in self._penalties()
        ]


def _cosine(found: list[Tensor | None], expected: list[Tensor | None]) -> float:
    """Of two gradients over all parameters; NaN where one of them is zero or not finite."""
    dot = found_square = expected_square = 0.0
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            dot += float((one.double() * other.double()).sum())
        found_square += 0.0 if one is None else float(one.double().square().sum())
        expected_square += 0.0 if other is None else float(other.double().square().sum())
    lengths = (found_square * expected_square) ** 0.5
    return dot / lengths if lengths > 0 else float("nan")


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Training mode, lent buffers, random weights in the places of zero ones, and random states put back."""
    modes = [(module, module.training) for module in model.modules()]
    zeros = [
        (module, weight)
        for module in model.modules()
        if isinstance(weight := module._parameters.get("weight"), nn.Parameter)
        and weight.ndim > 1
        and not weight.detach().any()
    ]
    with preserve_rng(), torch.enable_grad(), _lent_buffers(model.modules()):
        try:
            model.train()
            for module, weight in zeros:
                drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
                lively = nn.Parameter(drawn / weight[0].numel() ** 0.5, requires_grad=weight.requires_grad)
                module._parameters["weight"] = lively
            yield
        finally:
            for module, weight in zeros:
                module._parameters["weight"] = weight
            for module, training in modes:
                module.training = training
