"""The demo: plain, guided and inverted training on decoy digits, over several seeds."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import PreTrainedModel, set_seed

from ..arguments import SaliencyTrainingArguments
from ..backbones import as_classifier, data_config, image_processor
from ..data import decoy_digits, make_transforms
from ..guidance import PLAIN, guidance_class, list_guidance
from ..trainer import SaliencyTrainer
from .comparison.statistics import paired_difference
from .explanation.panels import draw_comparison, explain, save_panel
from .predictions import predict


@dataclass(frozen=True)
class Arm:
    """One way of training: `saliency` is what the method is told: `human`, `inverted`, or `-` for no guidance."""

    method: str
    saliency: str

    @property
    def name(self) -> str:
        if self.method == PLAIN:
            return "plain"
        return self.method if self.saliency == "-" else f"{self.method}, {self.saliency}"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"guidance": self.method, "invert_saliency": self.saliency == "inverted"}


PANEL_PICTURES = 4
PANEL_ARMS = 6
BASELINE = Arm(PLAIN, "-")
ARMS = (BASELINE, Arm("cyborg", "human"), Arm("cyborg", "inverted"))


def arms_of(methods: Sequence[str]) -> tuple[Arm, ...]:
    """
    Plain training, and each of the methods with the human saliency.

    Args:
        methods (sequence of `str`): names of guidance methods, or `"all"`: every preset.

    Raises:
        ValueError: for an unknown name.
    """
    names = [name for name in list_guidance() if name != "map_guidance"] if "all" in methods else list(methods)
    names = [name for name in dict.fromkeys(names) if name != PLAIN]  # plain training is there anyway
    return (BASELINE, *(Arm(name, "human" if guidance_class(name).needs_annotation else "-") for name in names))


@dataclass(frozen=True)
class Run:
    """The result of one training run: accuracies in and out of distribution, and map energy on the digits' strokes."""

    method: str
    saliency: str
    seed: int
    test_accuracy: float
    ood_accuracy: float
    energy_inside: float
    seconds: float


def train_run(
    arm: Arm,
    seed: int,
    dataset: DatasetDict,
    epochs: int,
    model_name: str,
    model_args: Mapping[str, Any],
    image_size: int,
    output_dir: Path,
) -> tuple[PreTrainedModel, Run]:
    """
    Trains one model on decoy digits. The arms differ in their guidance alone: data, initial weights, order,
    augmentation, optimizer and the weight of the task's loss are the same for a seed.

    Returns:
        `tuple` of the model and its [`Run`].
    """
    started = time.perf_counter()
    set_seed(seed)
    names = dataset["train"].features["label"].names
    model = as_classifier(model_name, label_names=names, image_size=image_size, **model_args)
    args = SaliencyTrainingArguments(
        str(output_dir),
        **arm.arguments,
        guidance_weight=_relative_weight(arm.method),
        task_weight=1.0,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        seed=seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
    )
    # No crop, in the model's own configuration too, and no augmentation: a crop could cut the patch or the digit
    # away, and a digit has no mirror image.
    config = dataclasses.replace(data_config(model), crop_pct=1.0)
    image_processor(model, config)
    transform = make_transforms(config, train=False)
    trainer = SaliencyTrainer(model, args, train_dataset=dataset["train"], train_transform=transform)
    trainer.train()
    test, ood = (
        predict(model, dataset[split], progress=False, guidance=trainer.guidance_block() or {}).metrics()
        for split in ("test", "ood")
    )
    run = Run(
        arm.method,
        arm.saliency,
        seed,
        test["accuracy"],
        ood["accuracy"],
        ood["energy_inside"],
        time.perf_counter() - started,
    )
    return model, run


def run_demo(
    output_dir: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 8,
    model_name: str = "resnet10t",
    model_args: Mapping[str, Any] | None = None,
    image_size: int = 48,
    arms: Sequence[Arm] = ARMS,
    report: Callable[[str], None] = print,
    **dataset_options: Any,
) -> list[Run]:
    """
    Trains every arm with every seed, writes `results.json`, `results.md` and `panel.png`, and reports a table.

    Args:
        output_dir (`str` or `Path`): where the results go.
        seeds (sequence of `int`, *optional*): of the weights, the order and the augmentation; the data set stays.
        epochs (`int`, *optional*, defaults to 8): passes over the training set.
        model_name (`str`, *optional*, defaults to `"resnet10t"`): a timm model, trained from random weights.
        model_args (mapping, *optional*): its keyword arguments. Defaults to an `output_stride` of 16, which gives
            maps of 3 × 3 cells on 48 pixels.
        image_size (`int`, *optional*, defaults to 48): the canvas of a digit, in pixels.
        arms (sequence of [`Arm`], *optional*): the ways of training, plain training first.
        report (`Callable`, *optional*, defaults to `print`): takes the lines that are meant for the user.
        **dataset_options: of [`~data.decoy_digits`].

    Returns:
        `list` of [`Run`].
    """
    model_args = {"output_stride": 16} if model_args is None else model_args
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    dataset = decoy_digits(size=image_size, **dataset_options)
    report(
        f"Decoy digits: {len(dataset['train'])} pictures of {image_size} px to train on. A grey patch in a corner "
        "gives the class away in train and test, and is random out of distribution.\n"
        f"{model_name}, random weights, {epochs} epochs, {len(seeds)} seeds, {len(arms)} ways of training."
    )
    runs: list[Run] = []
    examples: dict[str, PreTrainedModel] = {}
    for seed in seeds:
        for arm in arms:
            model, run = train_run(
                arm, seed, dataset, epochs, model_name, model_args, image_size, output_dir / "trainer"
            )
            runs.append(run)
            report(
                f"seed {seed}  {arm.name:<18} in {run.test_accuracy:.3f}  out {run.ood_accuracy:.3f}  "
                f"map energy on the digit {run.energy_inside:.2f}  {run.seconds:.0f} s"
            )
            if seed == seeds[0] and len(examples) < PANEL_ARMS:
                examples[arm.name] = model
    (output_dir / "results.json").write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=2))
    table = demo_table(runs)
    (output_dir / "results.md").write_text(table + "\n")
    report(table)
    panel = _panel(examples, dataset)
    report(f"Maps of out-of-distribution pictures: {save_panel(panel, output_dir / 'panel.png')}")
    return runs


def demo_table(runs: Sequence[Run]) -> str:
    """The results as a Markdown table: mean ± standard deviation over the seeds, and the difference to plain."""
    lines = [
        "| training | in distribution | out of distribution | out, difference to plain (95 % CI) | energy on digit |",
        "|---|---|---|---|---|",
    ]
    by_arm: dict[Arm, list[Run]] = {}
    for run in runs:
        by_arm.setdefault(Arm(run.method, run.saliency), []).append(run)
    plain = [run.ood_accuracy for run in by_arm[BASELINE]]
    for arm, members in by_arm.items():
        ood = [run.ood_accuracy for run in members]
        mean, low, high = paired_difference(ood, plain)
        interval = f" [{low:+.3f}, {high:+.3f}]" if len(members) > 1 else ""
        difference = "" if arm == BASELINE else f"{mean:+.3f}{interval}"
        lines.append(
            f"| {arm.name} | {_mean_sd([run.test_accuracy for run in members])} | {_mean_sd(ood)} | {difference} | "
            f"{_mean_sd([run.energy_inside for run in members])} |"
        )
    return "\n".join(lines)


def _relative_weight(method: str) -> float:
    """The method's published weight beside a task weight of 1."""
    cls = guidance_class(method)
    return cls.default_weight / cls.default_task_weight


def _mean_sd(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _panel(models: dict[str, PreTrainedModel], dataset: DatasetDict) -> Any:
    """The first out-of-distribution pictures under each way of training."""
    rows = [dataset["ood"][index] for index in range(min(PANEL_PICTURES, len(dataset["ood"])))]
    return draw_comparison({name: explain(model, rows) for name, model in models.items()})
