"""What guidance costs, in time, memory and arithmetic, as multiples of plain training and of a plain forward."""

from .extraction import ExtractionResult, bench_extraction
from .loader import LoaderResult, bench_loader
from .scaling import ScalingResult, bench_scaling
from .setting import BenchMethod, BenchSetting
from .startup import StartupResult, bench_startup
from .steps import BenchResult, bench

__all__ = [
    "BenchMethod",
    "BenchResult",
    "BenchSetting",
    "ExtractionResult",
    "LoaderResult",
    "ScalingResult",
    "StartupResult",
    "bench",
    "bench_extraction",
    "bench_loader",
    "bench_scaling",
    "bench_startup",
]
