"""From the runs of a comparison to what people read: analysis, table, conclusions, report, plots."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset

from ...backbones import DataConfig
from ...data import SaliencyCollator, load_saliency_dataset, make_transforms
from ...data.prepare import Transform, prepare_row, undecoded
from ..comparison.analysis import analyse
from ..comparison.conclusions import conclude
from ..comparison.records import DONE, RunRecord, SplitPredictions, Study, write_json
from ..comparison.results import write_results
from ..explanation.explain import Explanation
from ..explanation.panels import draw_comparison
from .page import report_table, write_report
from .plots import save_plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES, ARMS = 6, 4


@dataclass(frozen=True)
class Published:
    """What was written, and its table (Markdown) and paragraph of conclusions."""

    report: Path
    table: str
    conclusion: str


def publish(
    study: Study, output_dir: str | Path, pictures_of: Mapping[str, Any] | None = None, resamples: int = 1000
) -> Published:
    """
    Analyses a comparison and writes `results.csv`, `analysis.json`, `table.md`, `conclusions.txt`, `report.html` and
    the plots, as PDF and PNG, in `plots/`.

    Args:
        study ([`Study`]): the runs, see [`load_study`].
        output_dir (`str` or `Path`): where the files go.
        pictures_of (mapping, *optional*): arguments of [`load_saliency_dataset`] for the data that the runs were made
            with: pictures of it are put into the report, the ones that most ways of training get wrong first. Left
            out, the report holds no picture.
        resamples (`int`, *optional*, defaults to 1000): of the bootstrap.

    Returns:
        [`Published`]

    Raises:
        ValueError: for what [`analyse`] refuses.
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    analysis = analyse(study, resamples=resamples)
    table, conclusion = report_table(analysis), conclude(analysis, study)
    write_results(study, output / "results.csv")
    left_out = dataclasses.replace(analysis, failures=())  # they stand in results.csv, and hold folders
    write_json(output / "analysis.json", dataclasses.asdict(left_out))
    (output / "table.md").write_text(table.rstrip() + "\n")
    (output / "conclusions.txt").write_text(conclusion + "\n")
    panels = [] if pictures_of is None else failure_panels(study, pictures_of)
    report = write_report(study, analysis, output / "report.html", panels)
    save_plots(study, analysis, output / "plots")
    return Published(report, table, conclusion)


def failure_panels(study: Study, data: Mapping[str, Any]) -> list["Figure"]:
    """
    One panel a test split: the pictures that most ways of training get wrong, with each one's map.

    Of each way of training the run with the first seed is shown, of the first backbone and the whole annotation; plain
    training, the first methods with the human saliency and the first control, four in all. A map is of the class that
    the run says.

    Args:
        study ([`Study`]): the runs.
        data (mapping): arguments of [`load_saliency_dataset`].

    Returns:
        `list` of `matplotlib.figure.Figure`; empty where no run is done.
    """
    runs = _shown(study)
    if not runs:
        return []
    dataset, names, transform = (
        load_saliency_dataset(**data),
        study.settings["class_names"],
        _transform(runs[0]),
    )
    controls = [run.arm.name for run in runs if run.arm.is_control][:1]
    shown = [run.arm.name for run in runs if not run.arm.is_control][: ARMS - len(controls)] + controls
    panels = []
    for role, words in (("out", "out of distribution"), ("in", "in distribution")):
        split = study.settings["splits"].get(role)
        if not split:
            continue
        judged = {run.arm.name: run.predictions(split) for run in runs}
        rows = hardest(list(judged.values()), PICTURES)
        pictures = [_picture(dataset[split], row, transform) for row in rows]
        explained = {
            name: [
                _explanation(predictions, row, *picture, names) for row, picture in zip(rows, pictures, strict=True)
            ]
            for name, predictions in judged.items()
            if name in shown
        }
        figure = draw_comparison(explained)
        figure.set_label(
            f"{words.capitalize()}: the pictures that most ways of training get wrong, failures first; maps of the "
            "class that the model says."
        )
        panels.append(figure)
    return panels


def hardest(judged: Sequence[SplitPredictions], count: int) -> list[int]:
    """
    The rows that most of several classifiers get wrong, most first; of equals, the one with the least probability of
    its class on average.

    Args:
        judged (sequence of [`SplitPredictions`]): of the same pictures.
        count (`int`): rows at most.

    Returns:
        `list[int]`
    """
    labels = judged[0].labels
    rows = np.arange(len(labels))
    wrong = sum((one.probabilities.argmax(axis=1) != labels).astype(int) for one in judged)
    sure = np.mean([one.probabilities[rows, labels] for one in judged], axis=0)
    return [int(row) for row in np.lexsort((sure, -np.asarray(wrong)))[:count]]


def _shown(study: Study) -> list[RunRecord]:
    """The first seed's runs of the first backbone with all of the annotation; plain training, methods, controls."""
    done = [run for run in study.runs if run.status == DONE]
    if not done:
        return []
    backbone, share = done[0].backbone, max(run.annotated_fraction for run in done)
    seed = min(run.seed for run in done)
    chosen = [run for run in done if (run.backbone, run.annotated_fraction, run.seed) == (backbone, share, seed)]
    return sorted(chosen, key=lambda run: (not run.arm.is_plain, run.arm.is_control))


def _transform(run: RunRecord) -> Transform:
    """What brings a picture to the frame of a run's maps, without the normalisation."""
    neutral = {**run.data_config, "size": tuple(run.data_config["size"])}
    neutral |= {name: (value,) * neutral["channels"] for name, value in (("mean", 0.0), ("std", 1.0))}
    return make_transforms(DataConfig(**neutral), train=False)


def _picture(split: Dataset, row: int, transform: Transform) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture `(H, W, 3)` and its saliency `(H, W)`, in [0, 1]."""
    prepared = prepare_row(undecoded(split)[row], transform, row)
    batch = SaliencyCollator()([prepared])
    saliency = batch["saliency"][0].float().numpy() / 255 if bool(batch["has_saliency"][0]) else None
    return batch["pixel_values"][0].expand(3, -1, -1).permute(1, 2, 0).numpy(), saliency


def _explanation(
    predictions: SplitPredictions,
    row: int,
    picture: np.ndarray,
    saliency: np.ndarray | None,
    names: Sequence[str],
) -> Explanation:
    size = picture.shape[:2]
    values = torch.from_numpy(predictions.maps[row].astype(np.float32))[None, None]
    drawn = F.interpolate(values, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    predicted, label = int(predictions.probabilities[row].argmax()), int(predictions.labels[row])
    return Explanation(
        picture=picture,
        saliency=saliency,
        true_map=drawn,
        other_map=np.zeros_like(drawn),
        true_name=names[label],
        other_name="",
        predicted_name=names[predicted],
        probability=float(predictions.probabilities[row, predicted]),
        correct=predicted == label,
    )
