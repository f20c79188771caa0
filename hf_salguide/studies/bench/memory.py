"""Peak memory of a training step."""

import gc
from typing import Any

import torch

from .step import Step


def peak_bytes(step: Step) -> int:
    """
    Peak bytes of one training step: the allocator's on CUDA, the profiler's on a CPU; weights, gradients and the
    optimizer's state included, and nothing that belongs to another model of the process.

    Args:
        step ([`Step`]): one that has been run before, so that the optimizer's state is there.
    """
    gc.collect()
    if step.trainer.args.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return step.held_bytes() + torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    return step.held_bytes() + profiled_peak(profiler)


def profiled_peak(profiler: Any) -> int:
    """The highest sum of the CPU allocator's events over time."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    used = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        highest = max(highest, used)
    return highest
