"""
Penalties on the gradient of a model's output, differentiable with respect to the model: two engines.

`double_backward` differentiates the gradient itself. It is exact for every layer that has a second derivative, which
the fused attention kernels and compiled models have not. `finite_difference` needs first derivatives alone: with
`v = dP/dg` held fixed, the parameters' derivative of a penalty `P(g)` on `g = ds/dx` is that of the directional
derivative `v . ds/dx`, which a second forward at `x + t v` gives as `(s(x + t v) - s(x)) / t`. It is right where the
network is smooth and where each picture's output depends on that picture alone.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config
from torch.nn.modules.batchnorm import _NormBase

from ..backbones.forward import checkpointing_failed, unwrap_model
from ..rng import preserve_rng

RELATIVE_STEP = 1e-4  # of a picture's standard deviation: above float32's rounding, below the network's curvature
CONSTANT_BELOW = 1e-2  # of a picture's root mean square: its deviation is then no measure for a step

Scalar = Callable[[Tensor], Tensor]
Penalty = Callable[[Tensor], Tensor]


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
        return penalty(full_precision(to_maps(gradient)))


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
        gradient = full_precision(_gradient(logits, pixel_values, scalar, create_graph=False)).requires_grad_(
            create_graph
        )
        value = penalty(gradient)
        if not create_graph or len(rows) == 0 or not value.requires_grad:
            return value.detach()
        (derivative,) = torch.autograd.grad(value.sum(), gradient)
        pictures = pixel_values.detach()[rows]
        shift, inverse_step = _shift(full_precision(pictures), derivative[rows], relative_step)
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


def full_precision(values: Tensor) -> Tensor:
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
        "inside hf_salguide.backbones.twice_differentiable() where attention is fused or sigmoids are hard, leave "
        'torch.compile out, or take gradient_engine="finite_difference".'
    )


# ---- The forwards ----


def reusable_graph() -> AbstractContextManager[None]:
    """
    A context from the forward of a compiled model to the last gradient that is taken before the loss's backward pass.

    What is compiled outside of it overwrites the graph's buffers in its first backward pass, and torch raises in the
    gradient. Models that are not compiled need no such context.
    """
    return functorch_config.patch(donated_buffer=False)


@contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """
    A context for the forwards of a finite difference: on a GPU, convolutions of float32 in float32.

    By itself cuDNN rounds what they take to the ten bits of TF32, and a step of [`finite_difference`] is below that.
    """
    if device.type != "cuda":
        yield
        return
    convolution: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    former = convolution.fp32_precision
    convolution.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolution.fp32_precision = former


@contextmanager
def guarded_hooks() -> Iterator[None]:
    """
    A context for the training of a compiled model in which hooks read features.

    By itself `torch.compile` does not look whether a module has hooks, and would run what it has compiled of another
    model of the same class, without them. What was compiled before is dropped, and compiled again where it is needed.
    """
    torch.compiler.reset()
    with dynamo_config.patch(skip_nnmodule_hook_guards=False):
        yield


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
            stack.enter_context(lent_buffers(norms))
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
def lent_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
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
