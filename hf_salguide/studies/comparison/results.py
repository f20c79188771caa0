"""`results.csv`: one row a run."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from .paths import without_paths
from .records import Study, read_run

COLUMNS = (
    "method",
    "saliency",
    "seed",
    "status",
    "val_auroc",
    "test_auroc",
    "ood_auroc",
    "seconds",
    "backbone",
    "annotated_fraction",
)


def results_rows(study: Study) -> list[dict[str, Any]]:
    """
    The runs as rows of `results.csv`: one a run, first the columns of [`COLUMNS`], then every figure of every split.

    `val_`, `test_` and `ood_` stand for the validation split, the in- and the out-of-distribution test split, whatever
    they are called. A figure that is not defined, and every figure of a failed run, is empty.
    """
    splits = study.settings["splits"]
    prefixes = {"val": "validation", "test": splits["in"], "ood": splits["out"]}
    rows, seen = [], set()
    for run in study.runs:
        if run.folder in seen:  # it stands beside every fraction
            continue
        seen.add(run.folder)
        judged = read_run(run.folder)
        row: dict[str, Any] = {
            "method": run.arm.method,
            "saliency": run.arm.saliency,
            "seed": run.seed,
            "status": run.status,
            "seconds": round(run.seconds, 1),
            "backbone": run.backbone,
            "annotated_fraction": judged[0].annotated_fraction if judged else run.annotated_fraction,
        }
        for prefix, split in prefixes.items():
            row[f"{prefix}_auroc"] = None
            row |= {f"{prefix}_{name}": value for name, value in run.metrics.get(split, {}).items()}
        row["error"] = without_paths(run.error.splitlines()[0], [str(run.folder)]) if run.error else ""
        rows.append(row)
    return rows


def write_results(study: Study, path: Path) -> Path:
    """Writes [`results_rows`] as CSV; gives the path back."""
    rows = results_rows(study)
    names = [*COLUMNS, *sorted({name for row in rows for name in row} - {*COLUMNS, "error"}), "error"]
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    os.replace(part, path)
    return path


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
