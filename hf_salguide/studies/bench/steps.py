"""A guided step against the plain one, and against the plain one of as many pictures."""

import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from ...steps import guarded_hooks
from .memory import peak_bytes
from .passes import Passes, count_passes
from .setting import PLAIN_METHOD, BenchMethod, BenchSetting
from .step import Step
from .timing import Clock, check_clock, check_repeats, interleaved, ratio_of


@dataclass(frozen=True)
class BenchResult:
    """
    The cost of a guided step.

    Attributes:
        model (`str`), method (`str`), device (`str`), image_size (`int`), batch_size (`int`): what was measured.
        annotated (`float`): share of the pictures that had saliency.
        precision (`str`): `"float32"` or `"bfloat16"`.
        compile_backend (`str`, *optional*): of `torch.compile`, where the model was compiled.
        kind (`str`): what the method takes: `"map"`, `"feature gradient"`, `"input gradient"`, `"views"` or
            `"inputs"`.
        readout (`str`, *optional*): how the head reads the layer of the maps, `"exact"`, `"uniform"` or `"generic"`.
        engine (`str`, *optional*): how an input gradient was differentiated.
        rows (`int`): pictures in the forward, views included.
        clock (`str`): `"cpu"`, the process's CPU time, or `"wall"`.
        plain_ms, guided_ms (`float`): median milliseconds of a step.
        plain_rate, guided_rate (`float`): pictures of the batch a second, by the medians.
        time_ratio (`float`): median over the repeats of guided over plain, the two run side by side.
        time_ratio_low, time_ratio_high (`float`): its quartiles.
        theoretical_ratio (`float`): the same of the floating point operations, counted.
        enlarged_ratio, enlarged_ratio_low, enlarged_ratio_high (`float`, *optional*): guided over the plain step of
            `rows` pictures, where there are views.
        plain_bytes, guided_bytes (`int`, *optional*): peak memory of a step.
        memory_ratio (`float`, *optional*): guided over plain.
        enlarged_memory_ratio (`float`, *optional*): guided over the plain step of `rows` pictures.
        repeats (`int`): how many turns.
    """

    model: str
    method: str
    device: str
    image_size: int
    batch_size: int
    annotated: float
    precision: str
    compile_backend: str | None
    kind: str
    readout: str | None
    engine: str | None
    rows: int
    clock: str
    plain_ms: float
    guided_ms: float
    plain_rate: float
    guided_rate: float
    time_ratio: float
    time_ratio_low: float
    time_ratio_high: float
    theoretical_ratio: float
    enlarged_ratio: float | None
    enlarged_ratio_low: float | None
    enlarged_ratio_high: float | None
    plain_bytes: int | None
    guided_bytes: int | None
    memory_ratio: float | None
    enlarged_memory_ratio: float | None
    repeats: int


def bench(
    setting: BenchSetting,
    methods: Sequence[BenchMethod],
    annotated: Sequence[float] = (1.0,),
    repeats: int = 20,
    memory: bool = True,
    clock: str | None = None,
    report: Callable[[str], object] | None = None,
) -> list[BenchResult]:
    """
    Measures guided steps against the plain one: the trainers live in one process, and their steps alternate, the order
    turned round at each repeat, so that what else the machine does meets all.

    Args:
        setting ([`BenchSetting`]): backbone, picture and batch size.
        methods (sequence of [`BenchMethod`]): the guidance methods.
        annotated (sequence of `float`, *optional*, defaults to `(1.0,)`): shares of the pictures that have saliency.
        repeats (`int`, *optional*, defaults to 20): turns of a plain and a guided step.
        memory (`bool`, *optional*, defaults to `True`): whether to measure peak memory too.
        clock (`str`, *optional*): `"cpu"` or `"wall"`, see [`~timing.check_clock`].
        report (`Callable`, *optional*): told of methods that the model or the machine refuses, which are left out.

    Returns:
        `list` of [`BenchResult`], one for each method and share.

    Raises:
        ValueError: for fewer than one repeat, an unknown clock, and a method that the model cannot do, unless there is
            `report`.
    """
    check_repeats(repeats)
    taken = check_clock(clock, setting.device)
    setting.build()  # what the architecture does not take is no method's fault
    results: list[BenchResult] = []
    with tempfile.TemporaryDirectory() as folder, _apart(setting):
        yardstick = _Yardstick(setting, folder, memory)
        for method in methods:
            try:
                guided = Step(setting, method, folder)
                counted = guided if setting.compile_backend is None else _uncompiled(setting, method, guided, folder)
            except ValueError as error:
                if report is None:
                    raise
                report(f"{setting.name}, {method}: left out. {error}")
                continue
            for share in annotated:
                guided.batch = counted.batch = setting.batch(share)
                results.append(_measure(yardstick, guided, counted, method, share, repeats, taken))
            del guided, counted
            gc.collect()
    return results


def _apart(setting: BenchSetting) -> AbstractContextManager[Any]:
    """Keeps what is compiled for one model from another of its class, which has other hooks, and from the limit."""
    return nullcontext() if setting.compile_backend is None else guarded_hooks()


class _Yardstick:
    """The plain step, of the batch and of larger ones, built and counted once."""

    def __init__(self, setting: BenchSetting, folder: str, memory: bool) -> None:
        self.setting = setting
        self.memory = memory
        self._folder = folder
        self._steps: dict[int, Step] = {}
        self._bytes: dict[int, int] = {}
        self._passes: Passes | None = None

    def step(self, rows: int) -> Step:
        if rows not in self._steps:
            self._steps[rows] = Step(replace(self.setting, batch_size=rows), PLAIN_METHOD, self._folder)
        return self._steps[rows]

    def peak(self, rows: int) -> int:
        if rows not in self._bytes:
            self._bytes[rows] = peak_bytes(self.step(rows))
        return self._bytes[rows]

    @property
    def passes(self) -> Passes:
        if self._passes is None:
            self._passes = count_passes(Step(replace(self.setting, compile_backend=None), PLAIN_METHOD, self._folder))
        return self._passes


def _uncompiled(setting: BenchSetting, method: BenchMethod, guided: Step, folder: str) -> Step:
    """The same step of a model that is not compiled, with the engine that the compiled one takes."""
    engine = {} if guided.engine is None else {"gradient_engine": guided.engine}
    options = {**method.options, **engine}
    return Step(replace(setting, compile_backend=None), BenchMethod(method.name, options), folder)


def _measure(
    yardstick: _Yardstick, guided: Step, counted: Step, method: BenchMethod, share: float, repeats: int, clock: Clock
) -> BenchResult:
    setting = yardstick.setting
    passes = count_passes(counted)
    runners: dict[str, Step] = {"plain": yardstick.step(setting.batch_size), "guided": guided}
    if passes.rows > setting.batch_size:
        runners["enlarged"] = yardstick.step(passes.rows)
    description = f"{setting.name}, {method}, {share:.0%}"
    times = interleaved(runners, repeats, clock, setting.device, description=description)
    ratio = ratio_of(times["guided"], times["plain"])
    enlarged = ratio_of(times["guided"], times["enlarged"]) if "enlarged" in times else None
    plain_bytes = guided_bytes = enlarged_bytes = None
    if yardstick.memory:
        plain_bytes, guided_bytes = yardstick.peak(setting.batch_size), peak_bytes(guided)
        enlarged_bytes = None if enlarged is None else yardstick.peak(passes.rows)
    plain_seconds, guided_seconds = statistics.median(times["plain"]), statistics.median(times["guided"])
    return BenchResult(
        model=setting.name,
        method=str(method),
        device=setting.device,
        image_size=setting.image_size,
        batch_size=setting.batch_size,
        annotated=share,
        precision=setting.precision,
        compile_backend=setting.compile_backend,
        kind=guided.kind,
        readout=guided.readout,
        engine=guided.engine,
        rows=passes.rows,
        clock=clock,
        plain_ms=1000 * plain_seconds,
        guided_ms=1000 * guided_seconds,
        plain_rate=setting.batch_size / plain_seconds,
        guided_rate=setting.batch_size / guided_seconds,
        time_ratio=ratio.median,
        time_ratio_low=ratio.low,
        time_ratio_high=ratio.high,
        theoretical_ratio=passes.flops / yardstick.passes.flops,
        enlarged_ratio=None if enlarged is None else enlarged.median,
        enlarged_ratio_low=None if enlarged is None else enlarged.low,
        enlarged_ratio_high=None if enlarged is None else enlarged.high,
        plain_bytes=plain_bytes,
        guided_bytes=guided_bytes,
        memory_ratio=guided_bytes / plain_bytes if plain_bytes and guided_bytes else None,
        enlarged_memory_ratio=guided_bytes / enlarged_bytes if enlarged_bytes and guided_bytes else None,
        repeats=repeats,
    )
