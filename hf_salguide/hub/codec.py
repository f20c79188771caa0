"""Dataclasses to JSON and back, where what is not known is left out."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def without_unknown(value: Any) -> Any:
    """A value as JSON takes it, without entries that are `None` or empty; a number that is not finite is `None`."""
    if isinstance(value, dict):
        kept = {str(key): without_unknown(entry) for key, entry in value.items()}
        empty = [key for key, entry in kept.items() if entry is None or (isinstance(entry, list | dict) and not entry)]
        return {key: entry for key, entry in kept.items() if key not in empty}
    if isinstance(value, list | tuple):
        return [without_unknown(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_as(kind: Any, content: Any, place: str, unknown: list[str]) -> Any:
    """
    A value of an annotated type from JSON.

    Args:
        kind: the annotation: a dataclass, a list or dict of a type, a type or `None`, or a plain type.
        content: what JSON gave.
        place (`str`): where it stands, for messages.
        unknown (`list[str]`): takes the names of entries that a dataclass does not have.

    Raises:
        ValueError: for content of another type; the message names its place.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if content is None else read_as(arguments[0], content, place, unknown)
    if is_dataclass(kind):
        if not isinstance(content, Mapping):
            raise ValueError(f"{place or 'it'} is a {type(content).__name__}, not a mapping")
        hints = typing.get_type_hints(kind)
        known = {entry.name for entry in fields(kind)}
        unknown += [f"{place}{name}" for name in content if name not in known]
        given = {
            name: read_as(hints[name], value, f"{place}{name}.", unknown)
            for name, value in content.items()
            if name in known
        }
        return kind(**given)  # type: ignore[operator]
    if origin is list:
        if not isinstance(content, list):
            raise ValueError(f"{place.rstrip('.')} is a {type(content).__name__}, not a list")
        return [read_as(arguments[0], entry, place, unknown) for entry in content]
    if origin is dict:
        return {str(name): read_as(arguments[1], entry, f"{place}{name}.", unknown) for name, entry in content.items()}
    if kind is float and isinstance(content, int):
        return float(content)
    if kind is not Any and isinstance(kind, type) and not isinstance(content, kind):
        raise ValueError(f"{place.rstrip('.')} is {content!r}, not of the type {kind.__name__}")
    return content
