"""Pictures to predict on: a folder with or without a table, of which only the pictures have to be usable."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Image

from .folder import Files, metadata_file, read_table
from .labels import as_integer, encode_labels, places_in
from .report import Problem, raise_errors
from .tables import need_column

logger = logging.getLogger(__name__)
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")


def load_pictures(
    path: str | os.PathLike,
    label_names: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
) -> Dataset:
    """
    The pictures of a folder: every row of its `metadata.csv` or `.jsonl`, or, without one, every picture below it.

    Labels are taken where each row has one of the model's classes, and left out with a warning otherwise; saliency is
    not read.

    Args:
        path: the folder.
        label_names (`Sequence[str]`): the model's classes, in its order.
        image_column (`str`, *optional*): the column of file names: `file_name`, or else the first column whose cells
            all name pictures.
        label_column (`str`, *optional*): the column of classes: `label` and `label_name`.

    Returns:
        `Dataset` with `image`, `file_name`, and `label` where it is usable.

    Raises:
        ValueError: for no folder, no picture, an unknown column, a picture that is missing or outside the folder, and
            labels that give the model's classes in another order.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f'data="{path}" is not a folder.')
    file = metadata_file(folder)
    if file is None:
        found = sorted(entry for entry in folder.rglob("*") if entry.suffix.lower() in PICTURES)
        if not found:
            raise ValueError(f'data="{path}" holds no picture ({", ".join(PICTURES)}).')
        return _dataset([str(entry) for entry in found], [str(entry.relative_to(folder)) for entry in found])
    columns, numbered = read_table(file)
    if not numbered:
        raise ValueError(f"{file} has no rows; write one a picture, with its file_name.")
    rows = [row for _, row in numbered]
    image_column = _image_column(columns, rows, image_column, file)
    files, images, problems = Files(folder), [], []
    for number, row in numbered:
        place = f"line {number} of {file.name}"
        if row[image_column] is None:
            problems.append(Problem("error", None, f"{image_column} is empty ({place})", "fill it in"))
            continue
        image, problem = files.resolve(str(row[image_column]), image_column, place)
        images.append(image or "")
        problems += [problem] if problem else []
    raise_errors(problems, f"{file} cannot be loaded")
    dataset = _dataset(images, [str(row[image_column]) for row in rows])
    codes = _codes(columns, rows, label_column, label_names, file)
    if codes is None:
        return dataset
    return dataset.add_column("label", codes, feature=ClassLabel(names=list(label_names)))


def _dataset(images: list[str], names: list[str]) -> Dataset:
    return Dataset.from_dict({"image": images, "file_name": names}).cast_column("image", Image())


def _image_column(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], named: str | None, file: Path) -> str:
    if named is not None:
        return need_column(columns, named, "image_column", str(file))
    if "file_name" in columns:
        return "file_name"
    for column in columns:
        if all(row[column] is not None and str(row[column]).lower().endswith(PICTURES) for row in rows):
            logger.warning('%s: the pictures are taken from the column "%s".', file, column)
            return column
    raise ValueError(
        f"{file} has no column file_name, only {', '.join(columns)}; name the pictures' column with image_column."
    )


def _codes(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    label_column: str | None,
    label_names: Sequence[str],
    file: Path,
) -> list[int] | None:
    """Each row's place in the class list, or `None` where the table does not tell it for every row."""
    if label_column is not None:
        need_column(columns, label_column, "label_column", str(file))
    column = label_column or ("label" if "label" in columns else None)
    labels = None if column is None else [row[column] for row in rows]
    named = "label_name" in columns and column in (None, "label")
    names = [row["label_name"] for row in rows] if named else None
    if all(value is None for value in [*(labels or []), *(names or [])]):
        return None
    places = [f"row {index}" for index in range(len(rows))]
    _, given, _ = encode_labels(labels, names, places)
    if labels is not None and names is not None and set(given) <= set(label_names):
        _, problem = places_in(given, label_names, ordered=any(as_integer(label) is not None for label in labels))
        raise_errors([problem] if problem else [], f"{file} cannot be used with this model")
    codes, _, problems = encode_labels(labels, names, places, label_names)
    if problems:
        logger.warning("%s: the labels are left out (%s).", file, problems[0])
        return None
    return codes
