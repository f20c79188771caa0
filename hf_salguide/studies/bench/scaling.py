"""Two processes against one, guided and plain: whether guidance scales as the plain Trainer does."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from .setting import BenchMethod, BenchSetting
from .timing import check_repeats

PROCESSES = 2
LAUNCH = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}")
WORKER = ("-m", "hf_salguide.studies.bench.scaling_worker")


@dataclass(frozen=True)
class ScalingResult:
    """
    A step of two processes against a step of one, of the same global batch, on the same machine.

    Attributes:
        model (`str`), method (`str`), image_size (`int`), batch_size (`int`): what was measured; the batch is the
            global one.
        annotated (`float`): share of the pictures that had saliency, the first ones of the global batch.
        clock (`str`): `"wall"`: time that passes, waiting for the other process included.
        plain_ms_one, plain_ms_two, guided_ms_one, guided_ms_two (`float`): median milliseconds of a step of one
            process and of two.
        plain_ratio, guided_ratio (`float`): one process over two: how much faster two are.
        ratio, ratio_low, ratio_high (`float`): median over the launches of the guided ratio over the plain one, and
            extremes; 1 is to scale as the plain Trainer does, less is worse.
        launches (`int`): pairs of a launch of one process and of two.
        repeats (`int`): turns of a plain and a guided step in each.
    """

    model: str
    method: str
    image_size: int
    batch_size: int
    annotated: float
    clock: str
    plain_ms_one: float
    plain_ms_two: float
    guided_ms_one: float
    guided_ms_two: float
    plain_ratio: float
    guided_ratio: float
    ratio: float
    ratio_low: float
    ratio_high: float
    launches: int
    repeats: int


def bench_scaling(
    setting: BenchSetting,
    methods: Sequence[BenchMethod],
    annotated: float = 1.0,
    repeats: int = 10,
    launches: int = 3,
    launch: Callable[[Path, int], dict[str, list[float]]] | None = None,
) -> list[ScalingResult]:
    """
    Measures plain and guided steps, which take turns, in one process and in two of `torchrun` (gloo), each with one
    thread, so that two have twice the cores of one. Every process takes its share of the same global batch.

    Args:
        setting ([`BenchSetting`]): backbone, picture and global batch size, on a CPU.
        methods (sequence of [`BenchMethod`]): the guidance methods.
        annotated (`float`, *optional*, defaults to 1.0): share of the pictures that have saliency.
        repeats (`int`, *optional*, defaults to 10): turns in each launch.
        launches (`int`, *optional*, defaults to 3): how often one process and two are started, in turn.
        launch (`Callable`, *optional*): what runs a job's file with a number of processes and gives the seconds of the
            steps.

    Returns:
        `list` of [`ScalingResult`], one a method.

    Raises:
        ValueError: for a batch that two processes cannot share, another device than the CPU, and counts below 1.
        RuntimeError: if a launch leaves no result, with the end of what it said.
    """
    check_repeats(repeats)
    check_shared(setting)
    launch = launch or launched
    names = [str(method) for method in methods]
    times: dict[int, list[dict[str, list[float]]]] = {1: [], PROCESSES: []}
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        content = {
            "setting": dataclasses.asdict(setting),
            "methods": [dataclasses.asdict(method) for method in methods],
            "annotated": annotated,
            "repeats": repeats,
        }
        job.write_text(json.dumps(content))
        for turn in tqdm(range(launches), desc=f"{setting.name}, processes", unit="launch", leave=False):
            for count in (1, PROCESSES) if turn % 2 == 0 else (PROCESSES, 1):
                times[count].append(launch(job, count))
    return [_result(setting, name, annotated, times, repeats, launches) for name in names]


def check_shared(setting: BenchSetting) -> None:
    """
    Raises:
        ValueError: for a batch that two processes cannot share, and another device than the CPU.
    """
    if setting.batch_size % PROCESSES:
        raise ValueError(
            f"batch_size={setting.batch_size} cannot be shared by {PROCESSES} processes; give an even one."
        )
    if setting.device != "cpu":
        raise ValueError(f'scaling is measured on a CPU, and device="{setting.device}"; take device="cpu".')


def _result(
    setting: BenchSetting,
    name: str,
    annotated: float,
    times: dict[int, list[dict[str, list[float]]]],
    repeats: int,
    launches: int,
) -> ScalingResult:
    def medians(count: int, runner: str) -> list[float]:
        return [statistics.median(found[runner]) for found in times[count]]

    plain_one, plain_two = medians(1, "plain"), medians(PROCESSES, "plain")
    guided_one, guided_two = medians(1, name), medians(PROCESSES, name)
    series = zip(plain_one, plain_two, guided_one, guided_two, strict=True)
    ratios = [(guided / guided2) / (plain / plain2) for plain, plain2, guided, guided2 in series]
    plain_ms = [1000 * statistics.median(values) for values in (plain_one, plain_two)]
    guided_ms = [1000 * statistics.median(values) for values in (guided_one, guided_two)]
    return ScalingResult(
        model=setting.name,
        method=name,
        image_size=setting.image_size,
        batch_size=setting.batch_size,
        annotated=annotated,
        clock="wall",
        plain_ms_one=plain_ms[0],
        plain_ms_two=plain_ms[1],
        guided_ms_one=guided_ms[0],
        guided_ms_two=guided_ms[1],
        plain_ratio=plain_ms[0] / plain_ms[1],
        guided_ratio=guided_ms[0] / guided_ms[1],
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        launches=launches,
        repeats=repeats,
    )


def launched(job: Path, count: int) -> dict[str, list[float]]:
    """
    Runs a job with one process, or with two of `torchrun`, each with one thread.

    Returns:
        `dict` from `"plain"` and each method to the seconds of the steps, as process 0 wrote them. Processes may abort
        on their way out, after all work is done, so that their exit status says nothing.

    Raises:
        RuntimeError: if there is no such file, with the end of what was said.
    """
    output = job.with_name(f"times_{count}.json")
    output.unlink(missing_ok=True)
    command = [sys.executable, *(LAUNCH if count > 1 else ()), *WORKER, str(job), str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if not output.exists():
        raise RuntimeError(f"{count} process(es) left no result: {finished.stderr[-2000:]}")
    content = json.loads(output.read_text())
    if content["processes"] != count:
        raise RuntimeError(f"{count} processes were asked for, and {content['processes']} ran.")
    times: dict[str, list[float]] = content["times"]
    return times
