"""What a study of differences leaves in a folder: tables, mean maps, panels, a summary."""

import csv
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ...data.prepare import undecoded
from .difference import DifferenceStudy
from .figures import require_matplotlib, save_panel
from .panels import draw_class_means, draw_difference, explain
from .regions import first_of_pictures

FIGURES = ("png", "pdf")
SUMMARY = "summary.json"
_TABLES = ("difference.csv", "regions.csv", "flattering.csv", "class_means.npz")
_PANELS = ("regions", "flattering", "class_means")
_PART = ".part"
_OURS = {SUMMARY, *_TABLES, *(f"{name}.{kind}" for name in _PANELS for kind in FIGURES)}
_MEASURES = ("inside", "positive_inside", "entropy", "iou_true", "iou_difference", "fooling_gap")


def check_folder(output: Path) -> None:
    """
    Checks that a folder is new, empty, or holds an earlier study, which is written over.

    Raises:
        ValueError: if it holds anything else.
    """
    found = [entry.name for entry in output.iterdir()] if output.is_dir() else []
    others = sorted(set(found) - _OURS - {_PART})
    if others:
        raise ValueError(f'output_dir="{output}" holds {", ".join(others[:3])}, which is not ours; name a new folder.')


def summarise(study: DifferenceStudy) -> dict[str, Any]:
    """
    The figures of a study over its pictures: means with the number of pictures that each is a mean of, and notes that
    say of every figure that is not defined why.

    Args:
        study ([`DifferenceStudy`]): the study.

    Returns:
        `dict` that JSON can hold; `None` where a figure is not defined.
    """
    means = {name: getattr(study, name) for name in _MEASURES}
    defined = {name: int((~np.isnan(values)).sum()) for name, values in means.items()}
    complete = study.completeness
    return {
        "tool": "difference",
        "pictures": len(study.predicted),
        "annotated": int(study.annotated.sum()),
        "accuracy": None if study.labels is None else float((study.labels == study.predicted).mean()),
        "explained": "predicted class" if study.labels is None else "true class",
        "rival": study.rival,
        "picture_size": list(study.size),
        "map_size": list(study.class_means.shape[1:]),
        "feature_layers": list(study.feature_layers),
        "readout": study.readout,
        "largest_completeness_error": None if complete is None else float(complete.max()),
        "mean_contrast": float(study.contrasts.mean()),
        "means": {name: float(np.nanmean(values)) if defined[name] else None for name, values in means.items()},
        "counts": defined,
        "largest_entropy": math.log(study.class_means[0].size),
        "region_share": study.share,
        "regions": len(study.regions),
        "flattering": len(study.flattering),
        "class_counts": dict(zip(study.class_names, study.class_counts.tolist(), strict=True)),
        "notes": _notes(study, defined),
    }


def _notes(study: DifferenceStudy, defined: dict[str, int]) -> list[str]:
    notes = []
    if study.labels is None:
        notes.append("There are no labels: each map is of the predicted class against the others.")
    if study.completeness is None:
        notes.append(
            f"Not complete: the read-out of {', '.join(study.feature_layers)} is {study.readout}, so that the maps "
            "need not add up to the logits."
        )
    annotated = int(study.annotated.sum())
    if not annotated:
        notes.append("No picture is annotated: inside, positive_inside, the IoUs and the fooling gap are left out.")
    elif defined["fooling_gap"] < annotated:
        notes.append(
            f"The fooling gap is not defined for {annotated - defined['fooling_gap']} of {annotated} annotated "
            "pictures, whose annotation is empty or whose map is constant."
        )
    if defined["entropy"] < len(study.predicted):
        nowhere = len(study.predicted) - defined["entropy"]
        notes.append(f"The difference is nowhere positive in {nowhere} of {len(study.predicted)} pictures.")
    missing = [name for name, count in zip(study.class_names, study.class_counts, strict=True) if count == 0]
    if missing:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        notes.append(f"No picture is explained for {named}: no mean map.")
    return notes


def write_study(
    study: DifferenceStudy,
    model: PreTrainedModel,
    dataset: Any,
    output: Path,
    figures: str = "png",
    panels: int = 6,
) -> dict[str, Any]:
    """
    Writes `difference.csv` (a row a picture), `regions.csv`, `flattering.csv` (both ranked), `class_means.npz`,
    panels of the first pictures of both lists, and last of all `summary.json`.

    Everything is written beside first and then renamed: no file is ever half there, and a folder with a
    `summary.json` is whole.

    Args:
        study ([`DifferenceStudy`]): the study.
        model ([`~transformers.PreTrainedModel`]): the model that was studied.
        dataset: the rows that it was studied on.
        output (`Path`): a folder, see [`check_folder`].
        figures (`str`, *optional*, defaults to `"png"`): `"png"` or `"pdf"`.
        panels (`int`, *optional*, defaults to 6): pictures in a panel; 0 draws nothing, and needs no matplotlib.

    Returns:
        `dict`: the summary, see [`summarise`].

    Raises:
        ImportError: if panels are wanted and matplotlib is missing.
        ValueError: if the folder holds something else.
    """
    check_folder(output)
    if panels:
        require_matplotlib()
    part = output / _PART
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        summary = summarise(study)
        _write_tables(study, part)
        if panels:
            _write_panels(study, model, dataset, part, figures, panels)
        (part / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
        _exchange(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return summary


def _exchange(part: Path, output: Path) -> None:
    """Puts the new files in place of an earlier study's, the summary last."""
    for old in (SUMMARY, *sorted(_OURS)):
        (output / old).unlink(missing_ok=True)
    for new in sorted(part.iterdir(), key=lambda file: file.name == SUMMARY):
        new.replace(output / new.name)


def _write_tables(study: DifferenceStudy, folder: Path) -> None:
    names, explained = study.class_names, study.explained
    measures = {name: getattr(study, name) for name in _MEASURES}
    complete = study.completeness
    columns = ["file_name", "label", "predicted", "probability", "contrast", "completeness_error", *_MEASURES]
    rows = (
        [
            file,
            "" if study.labels is None else names[study.labels[row]],
            names[study.predicted[row]],
            study.probabilities[row],
            study.contrasts[row],
            "not complete" if complete is None else complete[row],
            *(values[row] for values in measures.values()),
        ]
        for row, file in enumerate(study.file_names)
    )
    _write_csv(folder / "difference.csv", columns, rows)
    columns = ["rank", "file_name", "class", "evidence", "share", "inside", "left", "top", "right", "bottom", "cells"]
    rows = (
        [
            rank,
            study.file_names[region.row],
            names[explained[region.row]],
            region.evidence,
            region.share,
            region.inside,
            *region.box,
            region.cells,
        ]
        for rank, region in enumerate(study.regions, start=1)
    )
    _write_csv(folder / "regions.csv", columns, rows)
    columns = ["rank", "file_name", "class", "predicted", "fooling_gap", "iou_true", "iou_difference"]
    flat = [study.fooling_gap, study.iou_true, study.iou_difference]
    rows = (
        [
            rank,
            study.file_names[row],
            names[explained[row]],
            names[study.predicted[row]],
            *(values[row] for values in flat),
        ]
        for rank, row in enumerate(study.flattering, start=1)
    )
    _write_csv(folder / "flattering.csv", columns, rows)
    means = study.class_means.astype(np.float32)
    np.savez(folder / "class_means.npz", class_names=np.array(names), maps=means, counts=study.class_counts)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    """A number with six digits, nothing where it is not defined."""
    if not isinstance(value, float | np.floating):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def _write_panels(
    study: DifferenceStudy, model: PreTrainedModel, dataset: Any, folder: Path, kind: str, count: int
) -> None:
    table = undecoded(dataset)
    leading = first_of_pictures(study.regions, count)
    if leading:
        rows = [table[region.row] for region in leading]
        explanations = explain(model, rows, study.rival, study.feature_layers)
        titles = [
            f"{Path(study.file_names[region.row]).name}\nregion: {region.evidence:+.3g} logits" for region in leading
        ]
        figure = draw_difference(explanations, titles, [region.box for region in leading])
        save_panel(figure, folder / f"regions.{kind}")
    flattered = study.flattering[:count]
    if flattered:
        explanations = explain(model, [table[row] for row in flattered], study.rival, study.feature_layers)
        titles = [f"{Path(study.file_names[row]).name}\nfooling gap {study.fooling_gap[row]:.2f}" for row in flattered]
        save_panel(draw_difference(explanations, titles), folder / f"flattering.{kind}")
    if any(study.class_counts):
        save_panel(
            draw_class_means(study.class_means, study.class_counts, study.class_names), folder / f"class_means.{kind}"
        )
