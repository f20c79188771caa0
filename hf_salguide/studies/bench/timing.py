"""Timing side by side: what is compared takes turns in one process, and ratios are taken turn by turn."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from tqdm.auto import tqdm

Clock = Literal["cpu", "wall"]
WARM_UP = 3


@dataclass(frozen=True)
class Ratio:
    """
    How many times longer one takes than another.

    Attributes:
        median (`float`): over the turns.
        low, high (`float`): the quartiles.
    """

    median: float
    low: float
    high: float


def check_clock(clock: str | None, device: str) -> Clock:
    """
    The clock to take: the process's CPU time on a CPU, which other processes hardly touch, else the time that passes.

    Raises:
        ValueError: for an unknown clock, and for CPU time on a GPU, which it does not see.
    """
    if clock is None:
        return "cpu" if device == "cpu" else "wall"
    if clock not in get_args(Clock):
        raise ValueError(f'clock="{clock}" is not known; choose "cpu" or "wall".')
    if clock == "cpu" and device != "cpu":
        raise ValueError(f'clock="cpu" does not see what device="{device}" does; take clock="wall".')
    return clock  # type: ignore[return-value]


def check_repeats(repeats: int) -> None:
    """
    Raises:
        ValueError: for fewer than one.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} measures nothing; give at least 1.")


def seconds(run: Callable[[], object], clock: Clock, device: str) -> float:
    """Seconds of one call, the device's queue drained before and after, without Python's garbage collector."""
    read = time.process_time if clock == "cpu" else time.perf_counter
    collects = gc.isenabled()
    gc.disable()
    try:
        synchronize(device)
        started = read()
        run()
        synchronize(device)
        return read() - started
    finally:
        if collects:
            gc.enable()


def synchronize(device: str) -> None:
    """Waits for what a GPU has been told to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    runners: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Clock,
    device: str,
    warm_up: int = WARM_UP,
    description: str = "",
) -> dict[str, list[float]]:
    """
    Runs several things in turn, the order turned round at each repeat, so that what else the machine does meets all.

    Args:
        runners (mapping from a name to a callable): what is compared.
        repeats (`int`): turns that count.
        clock (`str`): `"cpu"`, the process's CPU time over all its threads, or `"wall"`.
        device (`str`): whose queue is drained, `"cpu"` or `"cuda"`.
        warm_up (`int`, *optional*, defaults to 3): turns that do not count.
        description (`str`, *optional*): for the progress bar.

    Returns:
        `dict` from a name to the seconds of each turn.
    """
    for _ in range(warm_up):
        for run in runners.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for repeat in tqdm(range(repeats), desc=description, unit="turn", leave=False):
        order = list(runners) if repeat % 2 == 0 else list(runners)[::-1]
        for name in order:
            times[name].append(seconds(runners[name], clock, device))
    return times


def ratio_of(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Median and quartiles of the quotients of two series, turn by turn."""
    quotients = [one / other for one, other in zip(over, under, strict=True)]
    if len(quotients) == 1:
        return Ratio(quotients[0], quotients[0], quotients[0])
    low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return Ratio(median, low, high)
