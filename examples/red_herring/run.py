"""The synthetic column of the table of "Saliency is a Possible Red Herring", run again with `SaliencyTrainer`.

    python examples/red_herring/run.py --data FOLDER --jobs 2     # every method and seed of config.yaml
    python examples/red_herring/run.py --data FOLDER --full_size  # the paper's width, one seed of three methods
    python examples/red_herring/run.py --table                    # the results as the tables of README.md

Runs that the results hold already are left out, so a call that was stopped goes on where it was.
"""

import argparse
import csv
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import network  # noqa: F401 (tells timm the network's name)
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments, as_classifier, load_saliency_dataset
from hf_salguide.backbones import data_config
from hf_salguide.data import make_transforms, prepare_dataset

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("HF_SALGUIDE_DATA", HERE.parents[1] / "../shared/data"))
COLUMNS = ("method", "seed", "test_auc", "ood_auc", "seconds")

Config = dict[str, Any]
Rows = list[dict[str, Any]]
Task = tuple[str, int]  # method and seed


def read_config(path: Path = HERE / "config.yaml") -> Config:
    """The hyper-parameters, see config.yaml."""
    return yaml.safe_load(path.read_text())


def full_size(config: Config) -> Config:
    """The configuration of the runs at the paper's width."""
    own = config["full_size"]
    methods = {method: {**config["methods"][method], **options} for method, options in own["methods"].items()}
    return {**config, "network": own["network"], "seeds": own["seeds"], "methods": methods}


# ---- Data ----


def load(folder: Path, config: Config) -> dict[str, Rows]:
    """
    Reads and prepares every picture once.

    Args:
        folder (`Path`): the data folder.
        config (`dict`): its `data` holds the arguments of `load_saliency_dataset`, its `network` the network's.

    Returns:
        `dict` from the name of a split to its rows: `pixel_values` `(1, H, W)`, `labels` and `saliency` `(H, W)`.
    """
    dataset = load_saliency_dataset(folder, **config["data"])
    transform = make_transforms(data_config(build(config)), train=False)
    prepared = {split: prepare_dataset(dataset[split], transform) for split in ("train", "validation", "test", "ood")}
    return {split: [rows[index] for index in range(len(rows))] for split, rows in prepared.items()}


def mirrored(rows: Rows) -> Rows:
    """The pictures seen in a mirror: the distractor is on the side of the other class."""
    return [
        {**row, "pixel_values": row["pixel_values"].flip(-1), "saliency": row["saliency"].flip(-1)} for row in rows
    ]


def dilate(saliency: Tensor, radius: int) -> Tensor:
    """
    Makes a mask larger.

    The authors blur a mask and take all of it that is above 0. Their Gaussian ends at 4 standard deviations, so that
    is a dilation by a square of `2 * radius + 1` pixels, `radius = int(4 * sigma + 0.5)`.

    Args:
        saliency (`Tensor` of shape `(H, W)`): uint8.
        radius (`int`): by how many pixels; 0 leaves the mask as it is.

    Returns:
        `Tensor` of shape `(H, W)`, uint8.
    """
    larger = F.max_pool2d(saliency[None].float(), 2 * radius + 1, stride=1, padding=radius)
    return larger.squeeze(0).to(torch.uint8)


# ---- One run ----


def build(config: Config) -> Any:
    """The network of the configuration, with random weights."""
    options = dict(config["network"])
    return as_classifier(options.pop("name"), label_names=config["label_names"], **options)


class LowestLoss(TrainerCallback):
    """
    Keeps the weights of the epoch with the lowest loss on the validation pictures, the later one of equals.

    Args:
        rows (`list[dict]`): the validation pictures.
        burn_in (`int`): epochs that are not looked at.
    """

    def __init__(self, rows: Rows, burn_in: int) -> None:
        self.pictures = torch.stack([row["pixel_values"] for row in rows])
        self.labels = torch.tensor([int(row["labels"]) for row in rows])
        self.burn_in = burn_in
        self.lowest = float("inf")
        self.weights: dict[str, Tensor] = {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Called by the trainer."""
        if round(state.epoch) <= self.burn_in and state.global_step < state.max_steps:
            return
        model.eval()
        with torch.no_grad():
            logits = torch.cat([model(pixel_values=part).logits for part in self.pictures.split(128)])
        model.train()
        loss = float(F.cross_entropy(logits, self.labels))
        if loss <= self.lowest or not self.weights:
            self.lowest = loss
            self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train(method: str, seed: int, config: Config, rows: Rows, validation: Rows) -> SaliencyTrainer:
    """
    Trains one network from random weights; the epoch with the lowest validation loss is what counts.

    Args:
        method (`str`): the registered name of a method of the configuration.
        seed (`int`): of the weights, the order of the pictures and what the method draws.
        config (`dict`): the hyper-parameters.
        rows, validation (`list[dict]`): the pictures, see [`load`].

    Returns:
        [`SaliencyTrainer`], after training.
    """
    arguments = {**config["training"], **config["methods"][method]}
    radius = arguments.pop("mask_radius", config["mask_radius"])
    set_seed(seed)
    model = build(config)
    larger = [{**row, "saliency": dilate(row["saliency"], radius)} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        args = SaliencyTrainingArguments(
            folder,
            guidance=method,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **arguments,
        )
        best = LowestLoss(validation, config["burn_in_epochs"])
        trainer = SaliencyTrainer(model, args, train_dataset=larger, callbacks=[best])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.load_state_dict(best.weights)
    return trainer


def auc(trainer: SaliencyTrainer, rows: Rows) -> float:
    """The area under the ROC curve of the probability of the second class."""
    pictures = [{"pixel_values": row["pixel_values"]} for row in rows]  # without labels no loss is computed
    logits = torch.as_tensor(trainer.predict(pictures).predictions)
    return float(roc_auc_score([int(row["labels"]) for row in rows], logits.softmax(dim=1)[:, 1]))


def run(task: Task, config: Config, splits: Mapping[str, Rows], tuning: bool = False) -> dict[str, Any]:
    """
    Trains and evaluates one network.

    Args:
        task (`tuple[str, int]`): method and seed.
        config (`dict`): the hyper-parameters.
        splits (`dict`): the pictures, see [`load`].
        tuning (`bool`, *optional*, defaults to `False`): evaluate on the validation pictures, as they are and
            mirrored, in place of test and ood.

    Returns:
        `dict` of `COLUMNS`.
    """
    started = time.perf_counter()
    method, seed = task
    trainer = train(method, seed, config, splits["train"], splits["validation"])
    inside, outside = splits["test"], splits["ood"]
    if tuning:
        inside, outside = splits["validation"], mirrored(splits["validation"])
    scores = (f"{auc(trainer, rows):.4f}" for rows in (inside, outside))
    return dict(zip(COLUMNS, (method, seed, *scores, f"{time.perf_counter() - started:.1f}"), strict=True))


# ---- All runs ----


def read_results(path: Path) -> list[dict[str, str]]:
    """The rows of a file of results; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_result(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one row to a file of results."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


@cache
def _splits(folder: Path, config: str) -> dict[str, Rows]:
    """The pictures, read once in each process."""
    return load(folder, yaml.safe_load(config))


def _start_process(threads: int) -> None:
    torch.set_num_threads(threads)
    logging.set_verbosity_error()


def _attempt(task: Task, folder: Path, config: Config, tuning: bool) -> dict[str, Any] | str:
    """The row of a run, or the traceback of its failure."""
    try:
        return run(task, config, _splits(folder, yaml.safe_dump(config)), tuning)
    except Exception:
        return traceback.format_exc()


def attempts(
    tasks: Sequence[Task], folder: Path, config: Config, jobs: int, threads: int, tuning: bool
) -> Iterator[tuple[Task, dict[str, Any] | str]]:
    """Each task, as it ends, with the row of its run or the traceback of its failure."""
    # Threads of another process that are asleep between two small operations cost more than they give.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_process, initargs=(threads,)) as pool:
        futures = {pool.submit(_attempt, task, folder, config, tuning): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


# ---- The tables of README.md ----


def table(results: Sequence[Mapping[str, str]], config: Config) -> str:
    """
    Mean ± standard deviation over the seeds, in Markdown.

    Args:
        results (sequence of `dict`): rows of a file of results.
        config (`dict`): names the methods, in their order, and the `published` figures.

    Returns:
        `str`: a line a method.
    """
    lines = [
        "| method | seeds | test AUC | ood AUC | published ood AUC | seconds a run |",
        "|---|---|---|---|---|---|",
    ]
    for method in config["methods"]:
        rows = [row for row in results if row["method"] == method]
        if rows:
            test, ood = (_mean_sd([float(row[name]) for row in rows]) for name in ("test_auc", "ood_auc"))
            seconds = np.mean([float(row["seconds"]) for row in rows])
            published = config["published"].get(method, "")
            lines.append(f"| `{method}` | {len(rows)} | {test} | {ood} | {published} | {seconds:.0f} |")
    return "\n".join(lines)


def _mean_sd(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """The text with each table between its marks, `<!-- NAME: ... -->` and `<!-- /NAME -->`."""
    for name, lines in tables.items():
        start, end = text.index("-->", text.index(f"<!-- {name}:")) + len("-->"), text.index(f"<!-- /{name} -->")
        text = f"{text[:start]}\n{lines}\n{text[end:]}"
    return text


def tables(config: Config, folder: Path = HERE) -> dict[str, str]:
    """The table of each file of results, by the file's name."""
    parts = {"results": config, "full_size": full_size(config)}
    return {name: table(read_results(folder / f"{name}.csv"), part) for name, part in parts.items()}


# ---- The command ----


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and does what it asks for; returns the exit status, 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds srh_synth (default: %(default)s)")
    parser.add_argument("--config", type=Path, default=HERE / "config.yaml", help="hyper-parameters")
    parser.add_argument("--output", type=Path, help="file of results (default: next to this script)")
    parser.add_argument("--methods", nargs="+", help="only these methods")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds in place of the configuration's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a process each (default: 1)")
    parser.add_argument("--threads", type=int, help="threads a process (default: 1; with --full_size 2)")
    parser.add_argument("--full_size", action="store_true", help="the runs at the paper's width, to full_size.csv")
    parser.add_argument(
        "--tuning", action="store_true", help="evaluate on validation and mirrored validation pictures"
    )
    parser.add_argument("--table", action="store_true", help="write the tables of README.md, and print them")
    options = parser.parse_args(arguments)
    config = read_config(options.config)
    if options.table:
        written = tables(config)
        readme = HERE / "README.md"
        readme.write_text(with_tables(readme.read_text(), written))
        print(*written.values(), sep="\n\n")
        return 0

    if options.tuning and options.output is None:
        parser.error("--tuning: these are no results; name another file with --output.")
    name = "results"
    if options.full_size:
        name, config = "full_size", full_size(config)
    output = options.output or HERE / f"{name}.csv"
    unknown = sorted(set(options.methods or ()) - set(config["methods"]))
    if unknown:
        parser.error(f"--methods {' '.join(unknown)}: choose from {', '.join(config['methods'])}.")
    folder = options.data / "srh_synth"
    if not folder.is_dir():
        parser.error(f"--data {options.data}: there is no folder srh_synth in it.")

    done = {(row["method"], int(row["seed"])) for row in read_results(output)}
    tasks = [
        (method, seed) for seed in options.seeds or config["seeds"] for method in options.methods or config["methods"]
    ]
    tasks = [task for task in tasks if task not in done]
    threads = options.threads or (2 if options.full_size else 1)
    failures = 0
    for (method, seed), result in attempts(tasks, folder, config, options.jobs, threads, options.tuning):
        if isinstance(result, str):
            failures += 1
            print(f"{method}, seed {seed} failed:\n{result}", file=sys.stderr, flush=True)
        else:
            append_result(output, result)
            print(", ".join(f"{key} {value}" for key, value in result.items()), flush=True)
    print(f"{len(tasks) - failures} runs done, {failures} failed, {len(done)} were in {output} already.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
