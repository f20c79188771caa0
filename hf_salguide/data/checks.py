"""Checks: what a table shows before any compute, and what only reading the pictures shows."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from ..rng import preserve_rng
from .adapt import adapt_datasets
from .facts import RowFacts
from .folder import FolderTable, read_folder
from .images import is_missing
from .labels import as_integer, similar_names
from .loading import open_source
from .prepare import PreparedDataset, PreparedIterableDataset, undecoded
from .report import CheckReport
from .tables import TableOptions, check_groups, clean_weight

_LONG = 500  # rows, from which on a progress bar is shown
_PLACEHOLDER = re.compile(r"LABEL_\d+")


def _unwrapped(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, PreparedDataset | PreparedIterableDataset) else dataset


def _column(dataset: Any, names: Sequence[str]) -> list[Any] | None:
    """A column without reading a picture; `None` where there is none or only reading every row would tell."""
    if hasattr(dataset, "select_columns") and hasattr(dataset, "__len__"):
        name = next((name for name in names if name in dataset.column_names), None)
        if name is None:
            return None
        return dataset.select_columns([name]).with_format("arrow")[:].column(name).to_pylist()
    if isinstance(dataset, list | tuple) and all(isinstance(row, Mapping) for row in dataset):
        found = [next((row[name] for name in names if row.get(name) is not None), None) for row in dataset]
        return found if any(value is not None for value in found) else None
    return None


def annotated_rows(dataset: Any) -> list[bool] | None:
    """
    Which rows are annotated, without decoding a map.

    Args:
        dataset: a `datasets.Dataset` or a list of rows, prepared or not.

    Returns:
        `list[bool]`, or `None` where only reading every row would tell (a torch data set, an iterable one).
    """
    dataset = _unwrapped(dataset)
    if hasattr(dataset, "select_columns") and hasattr(dataset, "__len__"):
        if "saliency" not in dataset.column_names:
            # A transform of the user's own may add the column when a row is read.
            return None if dataset.format.get("type") == "custom" else [False] * len(dataset)
        flags: list[bool] = []
        for batch in dataset.select_columns(["saliency"]).with_format("arrow").iter(batch_size=1000):
            values = batch.column("saliency")
            if str(values.type).startswith("struct"):
                fields = [pc.is_null(pc.struct_field(values, name)) for name in ("bytes", "path")]
                flags += [not (a and b) for a, b in zip(*(part.to_pylist() for part in fields), strict=True)]
            elif str(values.type).startswith(("list", "large_list")):
                lengths = pc.fill_null(pc.list_value_length(values), 0).to_pylist()
                flags += [length > 0 for length in lengths]
            else:
                flags += [not null for null in pc.is_null(values).to_pylist()]
        return flags
    if isinstance(dataset, list | tuple) and all(isinstance(row, Mapping) for row in dataset):
        return [not is_missing(row.get("saliency")) for row in dataset]
    return None


def annotated_share(dataset: Any) -> float:
    """
    The share of rows that are annotated.

    Args:
        dataset: a map-style data set, prepared or not. Where the table does not tell, every row is read.

    Returns:
        `float` in [0, 1].

    Raises:
        ValueError: for an iterable data set, which would have to be consumed, and for one without rows.
    """
    flags = annotated_rows(dataset)
    if flags is None:
        rows = _unwrapped(dataset)
        if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise ValueError(
                f"dataset is a {type(rows).__name__}, which must be consumed to count its annotated rows; use a "
                "map-style data set, or leave rescale_annotated out and divide guidance_weight by the share yourself."
            )
        with _quiet_reading(len(rows)) as bar:
            flags = []
            for index in range(len(rows)):
                flags.append(not is_missing(rows[index].get("saliency")))
                bar.update()
    if not flags:
        raise ValueError("dataset has no rows; there is no annotated share.")
    return sum(flags) / len(flags)


def check_table(
    dataset: Any, label_names: Sequence[str] | None = None, needs_annotation: bool = False, training: bool = True
) -> None:
    """
    Raises on what the table alone shows; no picture is read. Torch data sets that are no lists show nothing.

    Args:
        dataset: a data set, prepared or not, or a mapping of split names to data sets (of which `train`, or the first,
            is what a model is trained on).
        label_names (`Sequence[str]`, *optional*): the model's class names, in its order. Names that are transformers'
            placeholders (`LABEL_0`) are compared in number only.
        needs_annotation (`bool`, *optional*, defaults to `False`): whether a training set without any annotated row is
            an error.
        training (`bool`, *optional*, defaults to `True`): whether a single data set is to be trained on; an evaluation
            set may hold one class only, and no annotation.

    Raises:
        ValueError: for no rows, labels outside the class list, a class list that differs from the model's in names or
            order, one class only, a bad weight, no annotation where it is needed, a group in two splits.
    """
    if isinstance(dataset, Mapping):
        first = "train" if "train" in dataset else next(iter(dataset), None)
        for name, split in dataset.items():
            check_table(split, label_names, needs_annotation and name == first, training and name == first)
        groups: list[Any] = []
        homes: list[str] = []
        for name, split in dataset.items():
            column = _column(_unwrapped(split), ["group"]) or []
            groups += column
            homes += [str(name)] * len(column)
        CheckReport(check_groups(groups, homes, "group")).raise_for_errors("the data set cannot be used")
        return
    dataset = _unwrapped(dataset)
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError("the data set has no rows; look at where= and split_column= of load_saliency_dataset.")
    features = getattr(dataset, "features", None) or {}
    feature = next((features[name] for name in ("labels", "label") if name in features), None)
    names = getattr(feature, "names", None)
    if names is not None and label_names is not None:
        _compare_names(list(names), list(label_names))
    classes = names if names is not None else label_names
    labels = _column(dataset, ["labels", "label"])
    if labels is not None and not any(isinstance(value, list) or getattr(value, "ndim", 0) for value in labels):
        _check_labels(labels, classes, training)
    weights = _column(dataset, ["weight"])
    for index, weight in enumerate(weights or []):
        _, problem = clean_weight(weight, "weight", None, f"row {index}")
        if problem is not None:
            raise ValueError(f"{problem}.")
    if needs_annotation and training:
        flags = annotated_rows(dataset)
        if flags is not None and not any(flags):
            raise ValueError(
                f"none of the {len(flags)} training rows is annotated (saliency is None throughout); guidance would "
                'do nothing. Fill in the saliency column (mask_file_name in a folder), or train with guidance="none".'
            )


def _compare_names(names: list[str], label_names: list[str]) -> None:
    if all(_PLACEHOLDER.fullmatch(str(name)) for name in label_names):
        if len(names) != len(label_names):
            raise ValueError(
                f"the model has {len(label_names)} classes and the data set {len(names)} ({', '.join(names[:10])}); "
                "build the model with label_names of the data set."
            )
        return
    if names == label_names:
        return
    order = "the same classes in another order" if sorted(names) == sorted(label_names) else "other classes"
    raise ValueError(
        f"the model's classes are {label_names[:10]} and the data set's {names[:10]}: {order}. Build the model with "
        'label_names=dataset["train"].features["label"].names, or cast the column: dataset.cast_column("label", '
        "datasets.ClassLabel(names=...)) after mapping the integers."
    )


def _check_labels(labels: Sequence[Any], classes: Sequence[str] | None, training: bool) -> None:
    integers = [as_integer(label) for label in labels]
    for index, (value, label) in enumerate(zip(integers, labels, strict=True)):
        if value is None or value < 0 or (classes is not None and value >= len(classes)):
            known = f"0 to {len(classes) - 1} ({', '.join(map(str, classes[:10]))})" if classes else "0 and up"
            raise ValueError(
                f"row {index} has the label {label}, outside the class list {known}; give the row its class, or drop "
                "it."
            )
    present = set(integers)
    if training and len(present) == 1:
        only = present.pop()
        name = classes[only] if classes and only is not None else only
        raise ValueError(f'every row of the training set has the label "{name}"; a classifier needs two classes.')


def _label_text(row: Mapping[str, Any], names: Sequence[str] | None) -> str:
    label = row.get("labels", row.get("label"))
    if label is None or isinstance(label, list) or getattr(label, "ndim", 0) > 0:
        return ""
    value = as_integer(label)
    if names is not None and value is not None and 0 <= value < len(names):
        return str(names[value])
    return str(label if value is None else value)


@contextlib.contextmanager
def _quiet_reading(total: int) -> Iterator[tqdm]:
    """A progress bar for long reads; generators as they were; one thread: the operations are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            preserve_rng(),
            tqdm(total=total, desc="checking pictures", unit="row", disable=total < _LONG, leave=False) as bar,
        ):
            yield bar
    finally:
        torch.set_num_threads(threads)


def _read_rows(
    facts: RowFacts, dataset: Any, split: str, indices: Iterable[int], bar: tqdm, num_labels: int | None = None
) -> None:
    feature = (getattr(dataset, "features", None) or {}).get("label")
    names = getattr(feature, "names", None)
    dataset = undecoded(dataset)
    for index in indices:
        row = dataset[index]
        label = _label_text(row, names)
        facts.add(row, f"row {index}", split, label)
        value = as_integer(row.get("labels", row.get("label"))) if label and num_labels is not None else None
        if value is not None and num_labels is not None and not 0 <= value < num_labels:
            facts.error(f"row {index}", f"label {value} lies outside the {num_labels} classes of the model.")
        bar.update()


def check_rows(dataset: Any, limit: int | None = 256, num_labels: int | None = None) -> CheckReport:
    """
    Reads pictures and maps and raises on what only reading shows.

    Args:
        dataset: a map-style data set, prepared or not, or a mapping of names to them. Global generators are left as
            they were. Iterable data sets are not read ahead: their rows are checked as they pass.
        limit (`int`, *optional*, defaults to 256): how many rows of each split are read, evenly spread; `None` for
            all.
        num_labels (`int`, *optional*): the number of classes, for data sets whose table does not show the labels.

    Returns:
        [`CheckReport`], whose problems are warnings.

    Raises:
        ValueError: for pictures or maps that are missing, unreadable, out of range or NaN, for maps of another shape
            than their picture, labels outside the classes, and where every picture is constant; the message lists the
            first files.
    """
    splits = dataset if isinstance(dataset, Mapping) else {"": dataset}
    facts = RowFacts()
    chosen = {}
    for name, split in splits.items():
        rows = _unwrapped(split)
        if hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
            count = len(rows) if limit is None else min(limit, len(rows))
            chosen[str(name)] = (rows, [position * len(rows) // count for position in range(count)])
    with _quiet_reading(sum(len(indices) for _, indices in chosen.values())) as bar:
        for name, (rows, indices) in chosen.items():
            _read_rows(facts, rows, name, indices, bar, num_labels)
    report = facts.report()
    report.raise_for_errors("the data set cannot be used")
    return report


def check_folder(path: str | os.PathLike | Dataset | DatasetDict, **options: Any) -> CheckReport:
    """
    Reads a whole data set, table, pictures and maps, and lists every problem, not the first only.

    Args:
        path: a folder, or whatever [`load_saliency_dataset`] takes.
        **options: `split_column`, `image_column`, `label_column`, `saliency_column`, `where`, `group_column`,
            `weight_column` and `label_names`, as in [`load_saliency_dataset`].

    Returns:
        [`CheckReport`]; what is wrong with the data is listed, not raised. Its `summary` has rows and annotated share
        by split and label, empty masks by label, picture sizes and modes, constant and repeated pictures, and groups.
    """
    columns = TableOptions(**options)
    facts = RowFacts()
    groups: dict[str, set[Any]] = {}
    try:
        source = open_source(path)
        if isinstance(source, tuple):
            folder, file = source
            table, problems = read_folder(folder, file, columns)
            facts.problems += problems
            groups = _read_table(facts, table)
        else:
            dataset = adapt_datasets(source, "the data set" if source is path else f'"{path}"', columns)
            with _quiet_reading(sum(map(len, dataset.values()))) as bar:
                for name, split in dataset.items():
                    _read_rows(facts, split, name, range(len(split)), bar)
                    groups[name] = set(_column(split, ["group"]) or ())
    except (ValueError, OSError) as error:
        facts.error(None, str(error))
    report = facts.report()
    if any(groups.values()):
        report.summary["groups"] = {split: len(members) for split, members in groups.items()}
    return report


def _read_table(facts: RowFacts, table: FolderTable) -> dict[str, set[Any]]:
    groups: dict[str, set[Any]] = {}
    if table.dropped:
        facts.warning(None, f"{table.dropped} rows have an empty split and are left out", "name their split")
    similar = similar_names(table.label_names)
    if similar:
        facts.warning(None, f"class names differ only in case: {', '.join(similar)}", "write each class in one way")
    if table.saliency_column is None:
        facts.warning(
            None,
            f"there is no column mask_file_name, only {', '.join(table.columns)}: no picture is annotated",
            "name the column with saliency_column",
        )
    with _quiet_reading(len(table.rows)) as bar:
        for row in table.rows:
            bar.update()
            if row.group is not None:
                groups.setdefault(row.split, set()).add(row.group)
            if row.image is None:
                continue
            label = table.label_names[row.label] if 0 <= row.label < len(table.label_names) else ""
            values = {"image": row.image, "saliency": row.saliency or None, "file_name": row.file_name}
            facts.add(values, row.place, row.split, label)
    return groups
