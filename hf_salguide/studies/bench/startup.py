"""Start-up: from a fresh process to the end of the first step, guided and plain."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tqdm.auto import tqdm

from .setting import PLAIN_METHOD, BenchMethod, BenchSetting
from .timing import check_clock, check_repeats

PLAIN_START = """
import json, sys
import torch
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, Trainer, TrainingArguments
given = json.loads(sys.argv[1])
config = TimmWrapperConfig(architecture=given["model"], num_labels=2, model_args=given["model_args"])
model = TimmWrapperForImageClassification(config)
side = given["image_size"]
rows = [{"pixel_values": torch.rand(3, side, side), "labels": row % 2} for row in range(given["batch_size"])]
args = TrainingArguments(
    given["output_dir"], per_device_train_batch_size=len(rows), max_steps=1, bf16=given["bf16"],
    use_cpu=given["device"] == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
)
Trainer(model, args, train_dataset=rows).train()
"""

GUIDED_START = """
import json, sys
import torch
from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments, as_classifier
given = json.loads(sys.argv[1])
side = given["image_size"]
model = as_classifier(given["model"], num_labels=2, image_size=side, **given["model_args"])
rows = [
    {"pixel_values": torch.rand(3, side, side), "labels": row % 2, "saliency": torch.rand(side, side)}
    for row in range(given["batch_size"])
]
args = SaliencyTrainingArguments(
    given["output_dir"], guidance=given["method"], guidance_options=given["options"] or None,
    per_device_train_batch_size=len(rows), max_steps=1, bf16=given["bf16"],
    use_cpu=given["device"] == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
)
SaliencyTrainer(model, args, train_dataset=rows).train()
"""


@dataclass(frozen=True)
class StartupResult:
    """
    How long a process takes to import, build the model, find its layer and train one step.

    Attributes:
        model (`str`), method (`str`), device (`str`), image_size (`int`), batch_size (`int`): what was measured.
        clock (`str`): `"cpu"`, the process's CPU time, user and system, or `"wall"`.
        plain_seconds, guided_seconds (`float`): medians; plain is `transformers.Trainer` with the same timm model.
        added_seconds, added_seconds_low, added_seconds_high (`float`): median of guided less plain, the two run one
            after the other, and its extremes.
        repeats (`int`): pairs of processes.
    """

    model: str
    method: str
    device: str
    image_size: int
    batch_size: int
    clock: str
    plain_seconds: float
    guided_seconds: float
    added_seconds: float
    added_seconds_low: float
    added_seconds_high: float
    repeats: int


def bench_startup(
    setting: BenchSetting,
    methods: Sequence[BenchMethod],
    repeats: int = 3,
    clock: str | None = None,
    run: Callable[[str, str], tuple[float, float]] | None = None,
) -> list[StartupResult]:
    """
    Measures fresh processes of the plain Trainer and of each method, which take turns.

    Args:
        setting ([`BenchSetting`]): backbone, picture and batch size.
        methods (sequence of [`BenchMethod`]): the guidance methods.
        repeats (`int`, *optional*, defaults to 3): turns, after one that does not count.
        clock (`str`, *optional*): `"cpu"` or `"wall"`, see [`~timing.check_clock`].
        run (`Callable`, *optional*): what runs a script with its setting and gives seconds of wall and CPU time.

    Returns:
        `list` of [`StartupResult`], one a method.

    Raises:
        ValueError: for fewer than one repeat, and an unknown clock.
        RuntimeError: if a process fails, with the end of what it said.
    """
    check_repeats(repeats)
    taken = check_clock(clock, setting.device)
    run = run or start
    times: dict[str, list[float]] = {"": [], **{str(method): [] for method in methods}}
    with tempfile.TemporaryDirectory() as folder:
        scripts = {"": (PLAIN_START, _plain_given(setting, folder))}
        scripts |= {str(method): (GUIDED_START, _given(setting, method, folder)) for method in methods}
        for repeat in tqdm(range(repeats + 1), desc=f"{setting.name}, start", unit="turn", leave=False):
            for name in list(scripts) if repeat % 2 else list(reversed(scripts)):
                wall, cpu = run(*scripts[name])
                if repeat:  # the first one reads the libraries from the disk
                    times[name].append(cpu if taken == "cpu" else wall)
    results = []
    for method in methods:
        pairs = zip(times[str(method)], times[""], strict=True)
        added = [guided - plain for guided, plain in pairs]
        results.append(
            StartupResult(
                model=setting.name,
                method=str(method),
                device=setting.device,
                image_size=setting.image_size,
                batch_size=setting.batch_size,
                clock=taken,
                plain_seconds=statistics.median(times[""]),
                guided_seconds=statistics.median(times[str(method)]),
                added_seconds=statistics.median(added),
                added_seconds_low=min(added),
                added_seconds_high=max(added),
                repeats=repeats,
            )
        )
    return results


def _plain_given(setting: BenchSetting, folder: str) -> str:
    """For the plain Trainer, which is told of the pictures' size in timm's own words, where the model has to know."""
    config = setting.build().config
    told = replace(setting, model=config.architecture, model_args=dict(config.model_args or {}))
    return _given(told, PLAIN_METHOD, folder)


def _given(setting: BenchSetting, method: BenchMethod, folder: str) -> str:
    return json.dumps(
        {
            "model": setting.model,
            "model_args": setting.model_args,
            "image_size": setting.image_size,
            "batch_size": setting.batch_size,
            "device": setting.device,
            "bf16": setting.bf16,
            "method": method.name,
            "options": method.options,
            "output_dir": folder,
        }
    )


def start(script: str, given: str) -> tuple[float, float]:
    """
    Runs a script in a process of its own.

    Returns:
        Seconds that passed, and seconds of CPU time of the process and its children.

    Raises:
        RuntimeError: if it fails, with the end of what it said.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-c", script, given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode:
        raise RuntimeError(f"a process that was to train one step failed: {finished.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
