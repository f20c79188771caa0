"""The results of a benchmark as Markdown tables."""

from collections.abc import Sequence
from typing import Any

from .extraction import ExtractionResult
from .scaling import ScalingResult
from .startup import StartupResult
from .steps import BenchResult

CLOCKS = {"cpu": "CPU time", "wall": "wall time"}


def cost_table(results: Sequence[BenchResult]) -> str:
    """Time, arithmetic and memory as multiples of the plain step: a row a method and share, a column a setting."""
    settings = list(dict.fromkeys(_setting(result) for result in results))
    lines = [f"| method | annotated | {' | '.join(settings)} |", "|---|---|" + "---|" * len(settings)]
    rows: dict[tuple[str, float], dict[str, BenchResult]] = {}
    for result in results:
        rows.setdefault((result.method, result.annotated), {})[_setting(result)] = result
    for (method, annotated), found in rows.items():
        cells = [_cost(found[setting]) if setting in found else "" for setting in settings]
        lines.append(f"| {method} | {annotated:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _setting(result: BenchResult) -> str:
    how = "" if result.precision == "float32" else f", {result.precision}"
    how += "" if result.compile_backend is None else ", compiled"
    return f"{result.model}, {result.image_size} px × {result.batch_size}{how}"


def _cost(result: BenchResult) -> str:
    memory = "" if result.memory_ratio is None else f", {result.memory_ratio:.2f} ×"
    engine = " (difference)" if result.engine == "finite_difference" else ""
    return f"{result.time_ratio:.2f} × (of {result.theoretical_ratio:.2f}){memory}{engine}"


def bench_table(results: Sequence[BenchResult]) -> str:
    """The guided steps, a row each."""
    lines = [
        "| model | method | annotated | px | batch | device | clock | plain step | guided step | pictures/s | "
        "time, guided / plain (quartiles) | arithmetic | time / plain step of as many pictures | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        method = f"{result.method}, {result.engine.replace('_', ' ')}" if result.engine else result.method
        how = result.device if result.precision == "float32" else f"{result.device}, {result.precision}"
        how += "" if result.compile_backend is None else f", {result.compile_backend}"
        lines.append(
            _row(
                result.model,
                method,
                f"{result.annotated:.0%}",
                result.image_size,
                result.batch_size,
                how,
                result.clock,
                f"{result.plain_ms:.0f} ms",
                f"{result.guided_ms:.0f} ms",
                f"{result.guided_rate:.0f} of {result.plain_rate:.0f}",
                _ratio(result.time_ratio, result.time_ratio_low, result.time_ratio_high),
                f"{result.theoretical_ratio:.3f} ×",
                _ratio(result.enlarged_ratio, result.enlarged_ratio_low, result.enlarged_ratio_high),
                _memory(result),
            )
        )
    return "\n".join(lines)


def _memory(result: BenchResult) -> str:
    if result.memory_ratio is None or result.guided_bytes is None:
        return ""
    enlarged = result.enlarged_memory_ratio
    beside = "" if enlarged is None else f"; {enlarged:.3f} × that of as many pictures"
    return f"{result.guided_bytes / 1e6:.0f} MB, {result.memory_ratio:.3f} ×{beside}"


def extraction_table(results: Sequence[ExtractionResult]) -> str:
    """The extraction of maps, a row for each library and model."""
    lines = [
        "| model | read-out | px | batch | device | clock | library | way | forward | maps | pictures/s | "
        "maps / forward (quartiles) | hf_salguide / library (quartiles) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        _row(
            result.model,
            result.readout,
            result.image_size,
            result.batch_size,
            result.device if result.precision == "float32" else f"{result.device}, {result.precision}",
            result.clock,
            result.library,
            result.method,
            f"{result.forward_ms:.1f} ms",
            f"{result.maps_ms:.1f} ms",
            f"{result.rate:.0f}",
            _ratio(result.forward_ratio, result.forward_ratio_low, result.forward_ratio_high),
            _ratio(result.ours_ratio, result.ours_ratio_low, result.ours_ratio_high),
        )
        for result in results
    ]
    return "\n".join(lines)


def startup_table(results: Sequence[StartupResult]) -> str:
    """Start-up, a row for each model and method."""
    lines = [
        "| model | method | px | batch | device | clock | plain Trainer | guided | added (extremes) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        _row(
            result.model,
            result.method,
            result.image_size,
            result.batch_size,
            result.device,
            result.clock,
            f"{result.plain_seconds:.2f} s",
            f"{result.guided_seconds:.2f} s",
            f"{result.added_seconds:+.2f} s ({result.added_seconds_low:+.2f} to {result.added_seconds_high:+.2f})",
        )
        for result in results
    ]
    return "\n".join(lines)


def scaling_table(results: Sequence[ScalingResult]) -> str:
    """Two processes against one, a row for each model and method."""
    lines = [
        "| model | method | annotated | px | global batch | clock | plain step, 1 and 2 processes | guided step | "
        "plain, 1 / 2 | guided, 1 / 2 | guided / plain (extremes) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        _row(
            result.model,
            result.method,
            f"{result.annotated:.0%}",
            result.image_size,
            result.batch_size,
            result.clock,
            f"{result.plain_ms_one:.0f}, {result.plain_ms_two:.0f} ms",
            f"{result.guided_ms_one:.0f}, {result.guided_ms_two:.0f} ms",
            f"{result.plain_ratio:.2f} ×",
            f"{result.guided_ratio:.2f} ×",
            _ratio(result.ratio, result.ratio_low, result.ratio_high),
        )
        for result in results
    ]
    return "\n".join(lines)


def machine_line(found: dict[str, Any]) -> str:
    """The versions and the hardware of a benchmark, in a sentence."""
    beside = ("device", "cpu_cores", "threads")
    libraries = ", ".join(f"{name} {version}" for name, version in found.items() if name not in beside)
    return f"Measured with {libraries}; {found['device']}, {found['cpu_cores']} cores, {found['threads']} thread(s)."


def _ratio(median: float | None, low: float | None, high: float | None) -> str:
    return "" if median is None else f"{median:.3f} × ({low:.3f}–{high:.3f})"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
