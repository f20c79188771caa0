"""From a YAML file and options on top to dataclasses."""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..data.pictures import PICTURES

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def parse(
    types: Iterable[type],
    argv: Sequence[str],
    command: str,
    description: str,
    positional: str | None = None,
    pictures: str | None = None,
) -> tuple[Any, ...]:
    """
    Parses `[CONFIG.yaml] [POSITIONAL] [--option value ...] [PICTURE ...]` into dataclasses; options win over the file.

    Args:
        types (iterable of dataclasses): their fields are the options.
        argv (sequence of `str`): the command's arguments.
        command (`str`): for the usage line.
        description (`str`): for `--help`.
        positional (`str`, *optional*): the option that a leading argument without dashes stands for.
        pictures (`str`, *optional*): the option, a list, that picture files without an option stand for: in front, or
            behind an option's value.

    Returns:
        `tuple` of the dataclasses' instances, in the order of `types`.

    Raises:
        ValueError: for an option in the file that no dataclass has (with the nearest one), and what the dataclasses
            raise themselves.
        FileNotFoundError: for a file that is not there.
    """
    types = list(types)
    arguments = list(argv)
    usage = (
        f"hf-salguide {command} [CONFIG.yaml]{f' [{positional.upper()}]' if positional else ''} [--option value ...]"
        f"{' [PICTURE ...]' if pictures else ''}"
    )
    parser = HfArgumentParser(types, prog=f"hf-salguide {command}", usage=usage, description=description)
    parser.allow_abbrev = False
    defaults: dict[str, Any] = {}
    named: list[str] = []
    while arguments and not arguments[0].startswith("-"):
        if arguments[0].endswith(CONFIG_SUFFIXES):
            defaults |= read_config(arguments.pop(0))
        elif pictures is not None and arguments[0].lower().endswith(PICTURES):
            named.append(arguments.pop(0))
        elif positional is not None and f"--{positional}" not in arguments:
            arguments[:1] = [f"--{positional}", arguments[0]]
            break
        else:
            raise ValueError(f"{arguments[0]!r} is neither an option nor a {', '.join(CONFIG_SUFFIXES)} file.")
    known = [field.name for kind in types for field in dataclasses.fields(kind) if field.init]
    for name in defaults:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f'"{name}" in the configuration file is not an option; did you mean "{nearest}"?')
    for action in parser._actions:
        if action.dest in defaults:
            action.required = False
            defaults[action.dest] = _typed(action, defaults[action.dest])
    parser.set_defaults(**defaults)
    *parsed, rest = parser.parse_args_into_dataclasses(
        args=arguments, look_for_args_file=False, return_remaining_strings=True
    )
    _check_rest(rest, pictures)
    if pictures is not None and named + rest:
        if f"--{pictures}" in arguments:
            raise ValueError(f"{' '.join(named + rest)} and --{pictures} name pictures in two ways; give one of them.")
        setattr(next(part for part in parsed if hasattr(part, pictures)), pictures, named + rest)
    return tuple(parsed)


def _check_rest(rest: Sequence[str], pictures: str | None) -> None:
    """
    Checks what no option takes.

    Raises:
        ValueError: for an unknown option, a configuration file behind the options, and what is no picture.
    """
    unknown = [argument for argument in rest if argument.startswith("-")] if pictures is not None else rest
    if unknown:
        raise ValueError(f"{' '.join(unknown)}: no such option or argument; --help lists them.")
    late = [argument for argument in rest if argument.endswith(CONFIG_SUFFIXES)]
    if late:
        raise ValueError(f"{late[0]!r}: a configuration file stands in front of the options.")
    folders = [argument for argument in rest if Path(argument).is_dir()]
    if folders:
        raise ValueError(f"{folders[0]!r} is a folder; a data set stands in front of the options, or behind --data.")


def _typed(action: argparse.Action, value: Any) -> Any:
    """
    A value of a file, as the same option would read it from the command line; dicts and null stay.

    Raises:
        ValueError: naming the option and the value.
    """
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, list):
        return [_typed_one(action, item) for item in value]
    one = _typed_one(action, value)
    return [one] if action.nargs in ("+", "*") else one


def _typed_one(action: argparse.Action, value: Any) -> Any:
    kind = action.type
    if not callable(kind) or value is None or isinstance(value, dict | list) or (kind is str and value is True):
        return value
    try:
        read = kind(str(value))
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        expected = getattr(kind, "__name__", "value")
        if expected == "string_to_bool":
            expected = "true or false"
        raise ValueError(
            f"{action.dest}={value!r} in the configuration file is not of the type {expected}."
        ) from error
    if action.choices is not None and read not in action.choices:
        listed = ", ".join(str(choice) for choice in action.choices)
        raise ValueError(f"{action.dest}={value!r} in the configuration file is not known; choose one of {listed}.")
    return read


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are booleans: `no` is a strategy's name."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


# YAML 1.1 wants a point in 1e-4.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_config(path: str) -> dict[str, Any]:
    """
    Reads a YAML or JSON file of options.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it does not hold one mapping.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such configuration file.")
    try:
        config = yaml.load(Path(path).read_text(), Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} has to hold one mapping of options to values.")
    return config


def as_dict(argument: str, value: Any) -> dict[str, Any]:
    """
    An option that takes a dict, or JSON of one.

    Raises:
        ValueError: naming the option and the value.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{argument}={value!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f'{argument}={value!r} has to be a mapping, such as {{"key": "value"}}.')
    return value


def parse_model(argument: str, text: str) -> tuple[str, dict[str, Any]]:
    """
    Reads a model's name and keyword arguments, `name:key=value,key=value`.

    Raises:
        ValueError: if a part has no `=`.
    """
    name, _, rest = text.partition(":")
    model_args = {}
    for part in filter(None, rest.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise ValueError(f'{argument}="{text}": write keyword arguments as name:key=value,key=value.')
        model_args[key] = yaml.safe_load(value)
    return name, model_args
