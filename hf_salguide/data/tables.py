"""What tables of every kind share: split names, selection, groups and weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .labels import as_integer
from .report import Problem

RESERVED = ("image", "label", "labels", "saliency", "group", "weight")
_VALIDATION = ("val", "valid", "validation")
_ORDER = ("train", "validation", "test", "ood")
_SHOWN = 5


@dataclass(frozen=True)
class TableOptions:
    """What a table's columns are called and which rows count; see [`load_saliency_dataset`]."""

    split_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    saliency_column: str | None = None
    where: Mapping[str, Any] | None = None
    group_column: str | None = None
    weight_column: str | None = None
    label_names: Sequence[str] | None = None


def split_name(value: Any) -> str:
    """A split's name as it is used: the usual ones in lower case, `val` and `valid` are `validation`."""
    name = "" if value is None else str(value).strip()
    lower = name.lower()
    return "validation" if lower in _VALIDATION else lower if lower in _ORDER else name


def split_order(names: Iterable[str]) -> list[str]:
    """The usual order of splits, others behind in the order they came in."""
    unique = list(dict.fromkeys(names))
    return [name for name in _ORDER if name in unique] + [name for name in unique if name not in _ORDER]


def need_column(columns: Sequence[str], name: str, argument: str, what: str) -> str:
    """
    The column that an argument names.

    Raises:
        ValueError: where there is none of that name; lists those that exist.
    """
    if name not in columns:
        raise ValueError(f'{argument}="{name}" is not a column of {what}; it has {", ".join(columns)}.')
    return name


def _same(cell: Any, wanted: Any) -> bool:
    if cell is None or wanted is None:
        return cell is None and wanted in (None, "")
    if cell == wanted or str(cell) == str(wanted):
        return True
    integer = as_integer(cell)
    return integer is not None and integer == as_integer(wanted)


def matches_where(row: Mapping[str, Any], where: Mapping[str, Any] | None) -> bool:
    """Whether a row is selected: every column has the value, or one of the list of values, that is wanted."""
    for column, wanted in (where or {}).items():
        choices = wanted if isinstance(wanted, list | tuple | set) else [wanted]
        if not any(_same(row[column], choice) for choice in choices):
            return False
    return True


def clean_weight(value: Any, column: str, file: str | None, place: str) -> tuple[float | None, Problem | None]:
    """A row's weight, or the problem that it has."""
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if math.isfinite(weight) and weight >= 0:
        return weight, None
    return None, Problem(
        "error", file, f"{column} is {value!r} ({place})", "give every row a finite weight of 0 or more"
    )


def check_groups(groups: Sequence[Any], splits: Sequence[str], column: str) -> list[Problem]:
    """A group in more than one split lets a model be tested on what it has seen."""
    homes: dict[Any, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        if group is not None:
            homes.setdefault(group, set()).add(split)
    crossing = {group: sorted(home) for group, home in homes.items() if len(home) > 1}
    if not crossing:
        return []
    shown = ", ".join(f'"{group}" ({" and ".join(home)})' for group, home in list(crossing.items())[:_SHOWN])
    rest = f" and {len(crossing) - _SHOWN} more" if len(crossing) > _SHOWN else ""
    return [
        Problem(
            "error",
            None,
            f"{column}: {len(crossing)} groups appear in more than one split: {shown}{rest}",
            "put all rows of a group into one split",
        )
    ]
