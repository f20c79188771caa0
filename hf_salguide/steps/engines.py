"""Which gradient engine a model can do, found out by trying both."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..backbones import FeatureCapture, FeatureLayer, twice_differentiable
from ..backbones.forward import (
    REFUSALS,
    describe,
    image_pair,
    input_shape,
    logits_of,
    probe_images,
    size_refused,
    unwrap_model,
)
from ..rng import preserve_rng
from .gradients import (
    Penalty,
    Replay,
    Scalar,
    double_backward,
    exact_convolutions,
    finite_difference,
    full_precision,
    lent_buffers,
)

AGREEMENT = 0.999  # cosine of the two engines' parameter gradients from which on the cheaper one is taken


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
        obstacles["double_backward"] = (
            "a compiled model (torch_compile=True or model.compile()) has no second derivative"
        )
    if mixed_precision or any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        obstacles["finite_difference"] = "differences of logits in half precision are rounding noise"
    elif next(model.parameters()).is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32":
        obstacles["finite_difference"] = "TF32 (tf32=True) rounds away the difference of two forwards; set tf32=False"
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


def refuse_checkpointed_maps(model: nn.Module, layer: FeatureLayer, size: tuple[int, int]) -> None:
    """
    Refuses maps that are gradients which gradient checkpointing does not give, by a trial on noise pictures.

    Args:
        model (`nn.Module`): the classifier, with gradient checkpointing switched on. It is left as it was.
        layer ([`FeatureLayer`]): where the maps are made.
        size (`tuple[int, int]`): the pictures' `(H, W)`.

    Raises:
        ValueError: naming the remedy.
    """
    model = unwrap_model(model)
    with _undisturbed(model):
        images = probe_images(model, input_shape(model, size), count=2, seed=0)
        try:
            with FeatureCapture(model, layer, tail_gradient=True) as capture:
                logits = logits_of(model(images))
            capture.gradients(logits, torch.ones_like(logits), create_graph=True)
        except RuntimeError as error:
            raise ValueError(f"gradient_checkpointing=True: {error}") from error


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
        if expected is not None and not all(_finite(gradients) for gradients in expected):
            obstacles["double_backward"] = (
                "its parameter gradients are not finite on noise, as where windows of cosine attention are filled up "
                "with zeros: take an image_size that the windows divide"
            )
            obstacles.setdefault("finite_difference", "it cannot be checked against double_backward")
            return None
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
        return full_precision(logits_of(self.model(images)))

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
        with twice_differentiable():
            logits = self._first_logits()
        with twice_differentiable() if math_everywhere else nullcontext():
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
        with exact_convolutions(self.images.device):
            logits = self._first_logits()
        replay.stop()

        def again(pictures: Tensor) -> Tensor:
            with replay, exact_convolutions(self.images.device):
                if replay.drew:  # dropout draws one mask for the whole batch
                    return self._logits(self.images.detach().index_copy(0, self.rows, pictures))[self.rows]
                return self._logits(pictures)

        return [
            self._parameter_gradients(
                finite_difference(logits, self.images, scalar, penalty, again, self.rows, create_graph=True)
            )
            for scalar, penalty in self._penalties()
        ]


def _finite(gradients: list[Tensor | None]) -> bool:
    return all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


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
    eagerly = torch.compiler.set_stance("force_eager")
    with preserve_rng(), torch.enable_grad(), lent_buffers(model.modules()), eagerly:
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
