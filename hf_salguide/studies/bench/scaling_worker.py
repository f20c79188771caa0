"""One process of a scaling benchmark: steps of the plain and the guided trainers in turn, wrapped as in training."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from .setting import PLAIN_METHOD, BenchMethod, BenchSetting
from .step import Step
from .timing import interleaved


def work(job: Path, output: Path) -> None:
    """
    Runs a job, see [`~scaling.bench_scaling`], and writes the seconds of each step from process 0.

    Args:
        job (`Path`): JSON with `setting`, `methods`, `annotated` and `repeats`.
        output (`Path`): JSON with `processes` and `times`.
    """
    content = json.loads(job.read_text())
    whole = BenchSetting(**content["setting"])
    methods = [PLAIN_METHOD, *(BenchMethod(**method) for method in content["methods"])]
    steps: dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            step = Step(whole, method, folder)
            args = step.trainer.args
            share = whole.batch_size // args.world_size
            args.per_device_train_batch_size = share
            first = share * args.process_index
            batch = replace(whole, device="cpu").batch(content["annotated"])
            step.batch = {name: value[first : first + share] for name, value in batch.items()}
            steps["plain" if method == PLAIN_METHOD else str(method)] = step
        times = interleaved(steps, content["repeats"], "wall", "cpu")
        if args.process_index == 0:
            partial = output.with_suffix(".partial")
            partial.write_text(json.dumps({"processes": args.world_size, "times": times}))
            partial.rename(output)
        # A process that ends early takes the other with it.
        step.trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
