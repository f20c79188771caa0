"""What guidance costs: a guided step as a multiple of the plain step, in one run, interleaved."""

import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as HubImage
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import set_seed

from ..arguments import SaliencyTrainingArguments
from ..backbones import DataConfig, as_classifier
from ..data import SaliencyCollator, make_transforms, prepare_dataset
from ..guidance import PLAIN
from ..trainer import SaliencyTrainer

WARM_UP = 3


@dataclass(frozen=True)
class BenchSetting:
    """
    One backbone under the benchmark.

    Attributes:
        model (`str`): timm model name.
        model_args (`dict`): keyword arguments of the timm model.
        image_size (`int`): side of the pictures in pixels.
        batch_size (`int`): pictures a step.
        annotated (`float`): share of the pictures that have saliency.
    """

    model: str
    model_args: dict[str, Any]
    image_size: int
    batch_size: int
    annotated: float = 1.0

    @property
    def name(self) -> str:
        extras = ", ".join(f"{key}={value}" for key, value in self.model_args.items())
        return f"{self.model}({extras})" if extras else self.model


@dataclass(frozen=True)
class BenchMethod:
    """
    One method under the benchmark.

    Attributes:
        name (`str`): of a guidance method.
        options (`dict`): its own choices.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        extras = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({extras})" if extras else self.name


@dataclass(frozen=True)
class BenchResult:
    """
    The cost of a guided step.

    Attributes:
        model (`str`), method (`str`), device (`str`), image_size (`int`), batch_size (`int`): what was measured.
        annotated (`float`): share of the pictures that had saliency.
        engine (`str`, *optional*): how an input gradient was differentiated.
        plain_ms, guided_ms (`float`): median milliseconds of a step.
        time_ratio (`float`): median over the repeats of guided over plain, the two run side by side.
        time_ratio_low, time_ratio_high (`float`): its quartiles.
        plain_bytes, guided_bytes (`int`, *optional*): peak memory of a step.
        memory_ratio (`float`, *optional*): guided over plain.
        repeats (`int`): how many pairs of steps.
    """

    model: str
    method: str
    device: str
    image_size: int
    batch_size: int
    annotated: float
    engine: str | None
    plain_ms: float
    guided_ms: float
    time_ratio: float
    time_ratio_low: float
    time_ratio_high: float
    plain_bytes: int | None
    guided_bytes: int | None
    memory_ratio: float | None
    repeats: int


class _Step:
    """One optimizer step of a trainer, on a fixed batch."""

    def __init__(self, setting: BenchSetting, method: BenchMethod, output_dir: str) -> None:
        set_seed(0)
        kwargs = {"image_size": setting.image_size, **setting.model_args}
        model = as_classifier(setting.model, num_labels=2, **kwargs)
        args = SaliencyTrainingArguments(
            output_dir,
            guidance=method.name,
            guidance_options=method.options,
            per_device_train_batch_size=setting.batch_size,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
        )
        self.trainer = SaliencyTrainer(model, args)
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        self.batch = _batch(setting, torch.device(args.device))

    def __call__(self) -> None:
        self.trainer.training_step(self.trainer.model, self.batch)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()

    def timed(self) -> float:
        """Seconds of one step, the device's queue drained before and after."""
        _synchronize()
        started = time.perf_counter()
        self()
        _synchronize()
        return time.perf_counter() - started


def _batch(setting: BenchSetting, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    count, side = setting.batch_size, setting.image_size
    batch = {
        "pixel_values": torch.randn(count, 3, side, side, generator=generator),
        "labels": torch.randint(0, 2, (count,), generator=generator),
        "saliency": torch.randint(0, 256, (count, side, side), generator=generator, dtype=torch.uint8),
        "has_saliency": torch.arange(count) < round(setting.annotated * count),
    }
    return {name: value.to(device) for name, value in batch.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(setting: BenchSetting, method: BenchMethod) -> int:
    """
    Peak bytes of one training step: the allocator's on CUDA, the profiler's on a CPU, weights, gradients and the
    optimizer's state included. Meant to run in a process of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        step = _Step(setting, method, folder)
        for _ in range(2):
            step()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            step()
            _synchronize()
            return torch.cuda.max_memory_allocated()
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            step()
        return _resident(step.trainer) + _profiled_peak(profiler)


def _profiled_peak(profiler: Any) -> int:
    """The highest sum of the CPU allocator's events over time."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    used = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        highest = max(highest, used)
    return highest


def _resident(trainer: SaliencyTrainer) -> int:
    """Bytes of what is there before a step: weights, buffers and the optimizer's state; gradients are dropped."""
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    for state in trainer.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bench(
    setting: BenchSetting,
    method: BenchMethod,
    repeats: int = 20,
    memory: bool = True,
    plain_bytes: int | None = None,
) -> BenchResult:
    """
    Measures a guided step against the plain one: both trainers live in one process, and their steps alternate, the
    order turned round at each repeat, so that what else the machine does meets both.

    Args:
        setting ([`BenchSetting`]): backbone, picture and batch size.
        method ([`BenchMethod`]): the guidance method.
        repeats (`int`, *optional*, defaults to 20): pairs of steps.
        memory (`bool`, *optional*, defaults to `True`): whether to measure peak memory too, each variant in a process
            of its own.
        plain_bytes (`int`, *optional*): the plain step's peak memory, where it has been measured before.

    Returns:
        [`BenchResult`]

    Raises:
        ValueError: for fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} measures nothing; give at least 1.")
    with tempfile.TemporaryDirectory() as folder:
        plain, guided = _Step(setting, BenchMethod(PLAIN), folder), _Step(setting, method, folder)
        for _ in range(WARM_UP):
            plain()
            guided()
        times: dict[str, list[float]] = {"plain": [], "guided": []}
        for repeat in tqdm(range(repeats), desc=f"{setting.name}, {method}", unit="pair", leave=False):
            order = (("plain", plain), ("guided", guided))
            for name, step in order if repeat % 2 == 0 else reversed(order):
                times[name].append(step.timed())
        device = str(plain.trainer.args.device)
        engines = [choice.engine for choice in guided.trainer.gradient_engines.values()]
    ratios = [guided / plain for plain, guided in zip(times["plain"], times["guided"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    guided_bytes = None
    if memory:
        plain_bytes = _in_own_process(setting, BenchMethod(PLAIN)) if plain_bytes is None else plain_bytes
        guided_bytes = _in_own_process(setting, method)
    return BenchResult(
        model=setting.name,
        method=str(method),
        device=device,
        image_size=setting.image_size,
        batch_size=setting.batch_size,
        annotated=setting.annotated,
        engine=engines[0] if engines else None,
        plain_ms=1000 * statistics.median(times["plain"]),
        guided_ms=1000 * statistics.median(times["guided"]),
        time_ratio=statistics.median(ratios),
        time_ratio_low=low,
        time_ratio_high=high,
        plain_bytes=plain_bytes,
        guided_bytes=guided_bytes,
        memory_ratio=guided_bytes / plain_bytes if plain_bytes and guided_bytes else None,
        repeats=repeats,
    )


def _in_own_process(setting: BenchSetting, method: BenchMethod) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory, (setting, method))


def loader_rate(image_size: int, count: int = 128) -> dict[str, float]:
    """
    How many pictures and masks one process decodes, transforms as in training and collates in a second.

    Args:
        image_size (`int`): side in pixels that they are brought to.
        count (`int`, *optional*, defaults to 128): pictures that are read, of 256 × 256 pixels.

    Returns:
        `dict` from the pictures' file format to pictures a second; masks are PNG.
    """
    generator = np.random.default_rng(0)
    field = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(field).resize((256, 256), Image.Resampling.BICUBIC)
    mask = _encoded(picture.convert("L"), "PNG")
    config = DataConfig((image_size, image_size), (0.5,) * 3, (0.5,) * 3)
    rates = {}
    for kind in ("JPEG", "PNG"):
        row = {"bytes": _encoded(picture, kind), "path": None}
        columns = {"image": [row] * count, "label": [0] * count, "saliency": [{"bytes": mask, "path": None}] * count}
        dataset = Dataset.from_dict(columns).cast_column("image", HubImage()).cast_column("saliency", HubImage())
        prepared = prepare_dataset(dataset, make_transforms(config, train=True))
        collator = SaliencyCollator()
        started = time.perf_counter()
        for first in range(0, count, 8):
            collator([prepared[index] for index in range(first, min(first + 8, count))])
        rates[kind] = count / (time.perf_counter() - started)
    return rates


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def cost_table(results: Sequence[BenchResult]) -> str:
    """The ratios as a Markdown table: a row a method and annotated share, a column a model."""
    models = list(dict.fromkeys((result.model, result.image_size, result.batch_size) for result in results))
    header = [f"{model}, {size} px × {batch}" for model, size, batch in models]
    lines = [f"| method | annotated | {' | '.join(header)} |", "|---|---|" + "---|" * len(models)]
    rows: dict[tuple[str, float], dict[Any, BenchResult]] = {}
    for result in results:
        key = (result.model, result.image_size, result.batch_size)
        rows.setdefault((result.method, result.annotated), {})[key] = result
    for (method, annotated), found in rows.items():
        cells = [_cost(found[model]) if model in found else "" for model in models]
        lines.append(f"| {method} | {annotated:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cost(result: BenchResult) -> str:
    memory = "" if result.memory_ratio is None else f", {result.memory_ratio:.2f} ×"
    engine = " (difference)" if result.engine == "finite_difference" else ""
    return f"{result.time_ratio:.2f} ×{memory}{engine}"


def bench_table(results: Sequence[BenchResult]) -> str:
    """The results as a Markdown table, a row each."""
    lines = [
        "| model | method | annotated | px | batch | device | plain step | guided step | "
        "time, guided / plain (quartiles) | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        memory = "" if result.memory_ratio is None else f"{result.memory_ratio:.3f} ×"
        method = f"{result.method}, {result.engine.replace('_', ' ')}" if result.engine else result.method
        lines.append(
            f"| {result.model} | {method} | {result.annotated:.0%} | {result.image_size} | {result.batch_size} | "
            f"{result.device} | {result.plain_ms:.0f} ms | {result.guided_ms:.0f} ms | {result.time_ratio:.3f} × "
            f"({result.time_ratio_low:.3f}–{result.time_ratio_high:.3f}) | {memory} |"
        )
    return "\n".join(lines)
