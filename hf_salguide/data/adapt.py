"""Any data set of the `datasets` library, brought to the columns that this library works with."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets

from .labels import encode_labels, places_in, similar_names
from .prepare import undecoded
from .report import Problem, raise_errors
from .tables import (
    RESERVED,
    TableOptions,
    check_groups,
    clean_weight,
    matches_where,
    need_column,
    split_name,
    split_order,
)

logger = logging.getLogger(__name__)
_IMAGE_NAMES = ("image", "img", "picture", "images", "pixel", "photo")
_LABEL_NAMES = ("label", "labels", "class", "category", "target", "label_name")
_SALIENCY_NAMES = (
    "saliency",
    "mask",
    "saliency_map",
    "annotation",
    "heatmap",
    "gaze",
    "segmentation",
    "mask_file_name",
)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, Image)


def _is_map(feature: Any) -> bool:
    """Images, lists of them, and numbers in rows and columns."""
    if isinstance(feature, List):
        return isinstance(feature.feature, Image | List)
    return isinstance(feature, Image) or type(feature).__name__ == "Array2D"


def _find(
    features: Features, names: Sequence[str], fits: Any, taken: Sequence[str | None], alone: Any = None
) -> str | None:
    """A column by its usual name and feature type, or the only one of the type (or of the type `alone`)."""
    lower = {column.lower(): column for column in features if column not in taken}
    for name in names:
        if name in lower and fits(features[lower[name]]):
            return lower[name]
    candidates = [column for column in lower.values() if (alone or fits)(features[column])]
    return candidates[0] if len(candidates) == 1 else None


def _described(features: Features) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())


def _columns(features: Features, options: TableOptions, name: str) -> tuple[str, str, str | None]:
    """The picture's, the label's and the saliency's column: named, or found."""
    image, label, saliency = options.image_column, options.label_column, options.saliency_column
    for argument, column in (("image_column", image), ("label_column", label), ("saliency_column", saliency)):
        if column is not None:
            need_column(list(features), column, argument, name)
    if image is None:
        image = _find(features, _IMAGE_NAMES, _is_image, [saliency, *(set(features) & set(_SALIENCY_NAMES))])
        if image is None:
            raise ValueError(f"no picture column is found in {name} ({_described(features)}); name it: image_column=.")
    elif not _is_image(features[image]):
        raise ValueError(
            f'image_column="{image}" of {name} is a {type(features[image]).__name__}, not an Image; cast it with '
            f'dataset.cast_column("{image}", datasets.Image()).'
        )
    if label is None:
        # A lone number or text may be anything, an age or a site.
        label = _find(
            features,
            _LABEL_NAMES,
            lambda feature: isinstance(feature, ClassLabel | Value),
            [image],
            alone=lambda feature: isinstance(feature, ClassLabel),
        )
        if label is None:
            raise ValueError(f"no label column is found in {name} ({_described(features)}); name it: label_column=.")
    if saliency is None:
        saliency = _find(features, _SALIENCY_NAMES, _is_map, [image])
    elif not _is_map(features[saliency]) and getattr(features[saliency], "dtype", None) != "null":
        raise ValueError(
            f'saliency_column="{saliency}" of {name} is a {type(features[saliency]).__name__}, not an Image or a list '
            f'of them; cast it with dataset.cast_column("{saliency}", datasets.Image()).'
        )
    return image, label, saliency


def _plain(dataset: Dataset, column: str) -> list[Any]:
    """A column's values as Python's own."""
    return dataset.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()


def _matching(merged: Dataset, where: Mapping[str, Any] | None, name: str) -> list[int]:
    """The rows that `where` selects; a class may be asked for by its name or by its integer."""
    forms: dict[str, list[tuple[Any, ...]]] = {}
    for column in where or {}:
        need_column(merged.column_names, column, "where", name)
        feature = merged.features[column]
        forms[column] = [
            (value, feature.names[value]) if isinstance(feature, ClassLabel) and value is not None else (value,)
            for value in _plain(merged, column)
        ]
    keep = [
        index
        for index in range(len(merged))
        if all(
            any(matches_where({column: form}, {column: wanted}) for form in forms[column][index])
            for column, wanted in (where or {}).items()
        )
    ]
    if not keep:
        found = {column: sorted({str(form[-1]) for form in values})[:10] for column, values in forms.items()}
        raise ValueError(f"where={dict(where or {})} leaves no row of {name}; the columns hold {found}.")
    return keep


def _label_codes(
    merged: Dataset,
    label: str,
    keep: Sequence[int],
    places: Sequence[str],
    label_names: Sequence[str] | None,
) -> tuple[list[int], list[str], list[Problem]]:
    feature, column = merged.features[label], _plain(merged, label)
    values = [column[index] for index in keep]
    if not isinstance(feature, ClassLabel):
        names = None
        if label == "label" and "label_name" in merged.column_names:
            column = _plain(merged, "label_name")
            names = [column[index] for index in keep]
        return encode_labels(values, names, places, label_names)
    problems = [
        Problem(
            "error",
            place,
            f"label {value} lies outside the class list of {len(feature.names)} ({', '.join(feature.names[:10])})",
            "give the row its class, or drop it",
        )
        for value, place in zip(values, places, strict=True)
        if value is None or not 0 <= value < len(feature.names)
    ]
    present = set(values)
    if label_names is not None:
        if problems:
            return values, list(label_names), problems
        used = sorted(present)
        given, problem = places_in([feature.names[code] for code in used], label_names, ordered=True)
        place = dict(zip(used, given, strict=True))
        return [place[value] for value in values], list(label_names), [problem] if problem else []
    if not problems and len(present) == 1:
        problems.append(
            Problem(
                "error",
                None,
                f'every row has the label "{feature.names[present.pop()]}"',
                "a classifier needs two classes",
            )
        )
    return values, feature.names, problems


def adapt_datasets(source: Dataset | DatasetDict, name: str, options: TableOptions) -> DatasetDict:
    """
    Renames, selects and checks; pictures stay as they are stored, and are decoded when a row is read.

    Args:
        source (`Dataset` or `DatasetDict`): the data set.
        name (`str`): what messages call it.
        options ([`TableOptions`]): columns and selection.

    Returns:
        `DatasetDict`, as [`load_saliency_dataset`].

    Raises:
        ValueError: as [`load_saliency_dataset`].
    """
    if isinstance(source, Dataset):
        split = split_name(source.split)
        source = DatasetDict({split if split.isidentifier() else "train": source})
    parts = {split: undecoded(part.with_format(None)) for split, part in source.items()}
    if len({tuple(sorted(part.column_names)) for part in parts.values()}) > 1:
        listed = "; ".join(f"{split}: {', '.join(part.column_names)}" for split, part in parts.items())
        raise ValueError(f"the splits of {name} have different columns ({listed}); give them the same.")
    merged = concatenate_datasets(list(parts.values()))
    if len(merged) == 0:
        raise ValueError(f"{name} has no rows.")
    columns = _columns(merged.features, options, name)
    for argument in ("split_column", "group_column", "weight_column"):
        column = getattr(options, argument)
        if column is not None:
            need_column(merged.column_names, column, argument, name)
    split_column = options.split_column
    if split_column is None and len(parts) == 1 and "split" in merged.column_names:
        split_column = "split"
    splits = _splits(merged, parts, split_column)
    selected = _matching(merged, options.where, name)
    keep = [index for index in selected if splits[index]]
    if not keep:
        raise ValueError(f'split_column="{split_column}" is empty in every row of {name} that is selected.')
    if len(keep) < len(selected):
        logger.warning("%s: %d rows have an empty split and are left out.", name, len(selected) - len(keep))
    return _finish(merged, splits, keep, columns, options, name)


def _splits(merged: Dataset, parts: Mapping[str, Dataset], split_column: str | None) -> list[str]:
    """Each row's split, from a column or from the split that the row came in."""
    if split_column is None:
        return [split_name(split) for split, part in parts.items() for _ in range(len(part))]
    feature = merged.features[split_column]
    return [
        split_name(feature.names[value] if isinstance(feature, ClassLabel) and value is not None else value)
        for value in _plain(merged, split_column)
    ]


def _finish(
    merged: Dataset,
    splits: Sequence[str],
    keep: Sequence[int],
    columns: tuple[str, str, str | None],
    options: TableOptions,
    name: str,
) -> DatasetDict:
    image, label, saliency = columns
    group_column, weight_column = options.group_column, options.weight_column
    indices: dict[str, list[int]] = {}
    places = []
    for index in keep:
        chosen = indices.setdefault(splits[index], [])
        places.append(f"row {len(chosen)} of {splits[index]}")
        chosen.append(index)
    codes, label_names, problems = _label_codes(merged, label, keep, places, options.label_names)
    similar = similar_names(label_names)
    if similar:
        logger.warning("%s: class names differ only in case: %s.", name, ", ".join(similar))
    added: dict[str, tuple[list[Any], Any]] = {"label": (codes, ClassLabel(names=label_names))}
    if group_column is not None:
        groups = _plain(merged, group_column)
        named = [None if groups[index] is None else str(groups[index]) for index in keep]
        problems += check_groups(named, [splits[index] for index in keep], group_column)
        added["group"] = (named, Value("string"))
    if weight_column is not None:
        weights = _plain(merged, weight_column)
        cleaned = [
            clean_weight(weights[index], weight_column, None, place) for index, place in zip(keep, places, strict=True)
        ]
        problems += [problem for _, problem in cleaned if problem is not None]
        added["weight"] = ([weight for weight, _ in cleaned], Value("float32"))
    raise_errors(problems, f"{name} cannot be loaded")
    if saliency is None:
        logger.warning("%s has no saliency column (%s): no picture is annotated.", name, ", ".join(merged.features))
        added["saliency"] = ([None] * len(keep), Image())
    elif getattr(merged.features[saliency], "dtype", None) == "null":
        merged = merged.cast_column(saliency, Image())
    kept = {image: "image"} | ({saliency: "saliency"} if saliency is not None else {})
    for column in RESERVED:
        if column in merged.column_names and column not in kept:
            if column not in added and column != label:
                logger.warning(
                    '%s: the column "%s" is left out; name it with %s_column to use it.', name, column, column
                )
            merged = merged.remove_columns(column)
    merged = merged.rename_columns({old: new for old, new in kept.items() if old != new})
    for column, feature in merged.features.items():
        if isinstance(feature, Image):
            merged = merged.cast_column(column, Image())
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            merged = merged.cast_column(column, List(Image()))
    # Columns are added to the whole table, before rows are selected: afterwards it would copy every picture.
    for column, (values, feature) in added.items():
        whole: list[Any] = [None] * len(merged)
        for index, value in zip(keep, values, strict=True):
            whole[index] = value
        merged = merged.add_column(column, whole, feature=feature)
    return DatasetDict({split: merged.select(indices[split]) for split in split_order(indices)})
