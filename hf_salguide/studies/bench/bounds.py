"""What guidance may cost at most, and whether the measured figures keep to it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .extraction import OURS, ExtractionResult
from .loader import LoaderResult
from .scaling import ScalingResult
from .startup import StartupResult
from .steps import BenchResult

DIRECT = ("exact", "uniform")


@dataclass(frozen=True)
class Figures:
    """The results of a benchmark, as its JSON file holds them."""

    steps: Sequence[BenchResult] = ()
    extraction: Sequence[ExtractionResult] = ()
    startup: Sequence[StartupResult] = ()
    scaling: Sequence[ScalingResult] = ()
    loader: Sequence[LoaderResult] = ()

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Figures":
        """The results of a parsed JSON file."""
        return cls(
            [BenchResult(**result) for result in content.get("steps", ())],
            [ExtractionResult(**result) for result in content.get("extraction", ())],
            [StartupResult(**result) for result in content.get("startup", ())],
            [ScalingResult(**result) for result in content.get("scaling", ())],
            [LoaderResult(**result) for result in content.get("loader", ())],
        )


@dataclass(frozen=True)
class Measured:
    """One figure that a bound is held against, the better one of its quartiles, and what it belongs to."""

    label: str
    value: float
    better: float | None = None


@dataclass(frozen=True)
class Bound:
    """
    A limit on what guidance costs.

    Attributes:
        what (`str`): of what.
        limit (`float`): the most that is allowed, or the least, where `least`.
        figures (`Callable`): finds what it is held against.
        why (`str`): why it is missed, where it is.
        unit (`str`): `"×"`, or `"s"` for seconds that are added.
        least (`bool`): whether the limit is from below.
    """

    what: str
    limit: float
    figures: Callable[[Figures], list[Measured]]
    why: str
    unit: Literal["×", "s"] = "×"
    least: bool = False

    def keeps(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit

    def written(self, value: float, digits: int = 3) -> str:
        return f"{value:+.2f} s" if self.unit == "s" else f"{value:.{digits}f} ×"


@dataclass(frozen=True)
class Finding:
    """A bound, and the figures that it was held against, the worst one last."""

    bound: Bound
    measured: list[Measured]

    @property
    def kept(self) -> int:
        return sum(self.bound.keeps(figure.value) for figure in self.measured)

    @property
    def verdict(self) -> str:
        if not self.measured:
            return "not measured"
        if self.kept == len(self.measured):
            return "met"
        return f"met by {self.kept} of {len(self.measured)}" if self.kept else "**missed**"


def findings(figures: Figures) -> list[Finding]:
    """Every bound with the figures at hand."""
    return [
        Finding(bound, sorted(bound.figures(figures), key=lambda figure: figure.value, reverse=bound.least))
        for bound in BOUNDS
    ]


def bounds_table(figures: Figures) -> str:
    """The bounds as a Markdown table: the limit, the median and the worst of the figures, the verdict."""
    lines = ["| what | bound | median | worst | verdict |", "|---|---|---|---|---|"]
    for finding in findings(figures):
        bound, measured = finding.bound, finding.measured
        limit = f"{'≥' if bound.least else '≤'} {bound.written(bound.limit, 2)}"
        median = bound.written(statistics.median(figure.value for figure in measured)) if measured else ""
        worst = f"{bound.written(measured[-1].value)}, {measured[-1].label}" if measured else ""
        lines.append(f"| {bound.what} | {limit} | {median} | {worst} | {finding.verdict} |")
    return "\n".join(lines)


def shortfalls(figures: Figures) -> str:
    """What misses its bound, with each figure that does, and why, as a Markdown list."""
    lines = []
    for finding in findings(figures):
        bound = finding.bound
        missing = [figure for figure in reversed(finding.measured) if not bound.keeps(figure.value)]
        if missing:
            listed = "; ".join(_missed(bound, figure) for figure in missing)
            lines.append(f"- **{bound.what}**: {listed}. {bound.why}")
    return "\n".join(lines) if lines else "Nothing."


def _missed(bound: Bound, figure: Measured) -> str:
    within = figure.better is not None and bound.keeps(figure.better)
    return f"{figure.label} {bound.written(figure.value)}{' (a quartile keeps to it)' if within else ''}"


def _steps(
    kinds: Sequence[str],
    readouts: Sequence[str | None] | None = None,
    engine: str | None = None,
    value: Callable[[BenchResult], float | None] = lambda result: result.time_ratio,
    better: Callable[[BenchResult], float | None] = lambda result: result.time_ratio_low,
) -> Callable[[Figures], list[Measured]]:
    def found(figures: Figures) -> list[Measured]:
        return [
            Measured(_step_label(result), number, better(result))
            for result in figures.steps
            if result.kind in kinds
            and (readouts is None or result.readout in readouts)
            and (engine is None or result.engine == engine)
            and (number := value(result)) is not None
        ]

    return found


def _step_label(result: BenchResult) -> str:
    share = "" if result.annotated == 1 else f" {result.annotated:.0%} annotated"
    size = f" {result.image_size} px × {result.batch_size}"
    how = "" if result.precision == "float32" else f" {result.precision}"
    how += "" if result.compile_backend is None else " compiled"
    return f"{result.model} {result.method}{share}{size}{how}"


def _maps(
    libraries: Sequence[str],
    value: Callable[[ExtractionResult], float],
    better: Callable[[ExtractionResult], float] = lambda result: result.ours_ratio_low,
) -> Callable[[Figures], list[Measured]]:
    def found(figures: Figures) -> list[Measured]:
        return [
            Measured(_maps_label(result), value(result), better(result))
            for result in figures.extraction
            if result.library in libraries
        ]

    return found


def _maps_label(result: ExtractionResult) -> str:
    return f"{result.model} {result.image_size} px × {result.batch_size}, {result.library} {result.method}"


def _startup(figures: Figures) -> list[Measured]:
    return [Measured(f"{result.model} {result.method}", result.added_seconds) for result in figures.startup]


def _scaling(figures: Figures) -> list[Measured]:
    return [
        Measured(f"{result.model} {result.method} {result.annotated:.0%} annotated", result.ratio)
        for result in figures.scaling
    ]


BOUNDS = (
    Bound(
        "map terms, exact or uniform read-out: time",
        1.03,
        _steps(["map"], DIRECT),
        (
            "The term is some dozens of operations on the grid, and the saliency has to be brought to it: calls "
            "whose time hardly depends on the network, so that they weigh where the plain step is short."
        ),
    ),
    Bound(
        "map terms, exact or uniform read-out: peak memory",
        1.03,
        _steps(["map"], DIRECT, value=lambda result: result.memory_ratio, better=lambda result: None),
        "The maps and their targets are kept for the backward pass.",
    ),
    Bound(
        "feature-gradient terms, exact or uniform read-out: time",
        1.08,
        _steps(["feature gradient"], DIRECT),
        (
            "The gradient at the layer is one more backward pass through the head, and its derivative: calls "
            "whose time hardly depends on the network, so that they weigh where the plain step is short."
        ),
    ),
    Bound(
        "map and feature-gradient terms, class-token read-out: time",
        1.15,
        _steps(["map", "feature gradient"], ["generic"]),
        (
            "The map is a gradient through the last block, which is run once more for the class token's row and "
            "differentiated twice: about a block more of as many as the network has, and its calls."
        ),
    ),
    Bound(
        "two views (ActDiff), three views (SAGE): time, over the plain step of as many pictures",
        1.03,
        _steps(["views"], None, None, lambda result: result.enlarged_ratio, lambda result: result.enlarged_ratio_low),
        (
            "The views are made first (shuffled, filled, masked), and batch normalisation takes the statistics of "
            "the pictures for views as well, in operations that torch has not fused; the discriminator of "
            "actdiff_adversarial is arithmetic that the plain step does not have."
        ),
    ),
    Bound(
        "input gradients, double backward (CNN): time",
        3.0,
        _steps(["input gradient"], engine="double_backward"),
        (
            "The double backward of convolutions and of batch normalisation is made of several unfused operations "
            "each, which take longer than their arithmetic."
        ),
    ),
    Bound(
        "input gradients, finite difference (transformer with fused attention; ConvNeXt): time",
        2.6,
        _steps(["input gradient"], engine="finite_difference"),
        (
            "The second forward is not the whole of it: the shifted pictures are made, and the activations of two "
            "forwards are read and written."
        ),
    ),
    Bound(
        "map extraction over a plain forward",
        1.1,
        _maps([OURS], lambda result: result.forward_ratio, lambda result: result.forward_ratio_low),
        (
            "Where the read-out is not exact, the map is a gradient through what follows the layer: a backward "
            "pass through the last block, where a class token is read. For exact ones it is the calls, which "
            "weigh where the forward is short."
        ),
    ),
    Bound(
        "map extraction over that of torchcam and captum",
        1.02,
        _maps(["torchcam", "captum"], lambda result: result.ours_ratio),
        (
            "Ours is a whole call from pictures to maps, which checks its arguments and sets its hooks each time; "
            "theirs keep their hooks. It shows where the forward is short, at single pictures."
        ),
    ),
    Bound(
        "map extraction over that of pytorch-grad-cam",
        1.0,
        _maps(["pytorch-grad-cam"], lambda result: result.ours_ratio),
        "It is slower than ours wherever this stands empty.",
    ),
    Bound(
        "start-up (import, resolve, first step), more than the plain Trainer's",
        2.0,
        _startup,
        "The layer is found by trying the model out, and input gradients try both engines.",
        unit="s",
    ),
    Bound(
        "speed-up by 2 processes on 2 cores, same global batch, over the plain Trainer's own",
        0.95,
        _scaling,
        (
            "Where annotation is uneven over the processes, one waits for the other: the extra work is on the "
            "rows that are annotated. Times between processes are of the wall clock, and scatter with whatever else "
            "the machine does."
        ),
        least=True,
    ),
)
