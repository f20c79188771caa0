"""From labels as a table writes them, integers or names, to the class list and the codes in it."""

from collections.abc import Sequence
from typing import Any

from .report import Problem


def as_integer(value: Any) -> int | None:
    """The integer that a cell holds, or `None`: 3, 3.0, "3" and numpy's kinds of it."""
    if isinstance(value, bool):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def encode_labels(
    labels: Sequence[Any] | None,
    names: Sequence[Any] | None,
    places: Sequence[str],
    label_names: Sequence[str] | None = None,
) -> tuple[list[int], list[str], list[Problem]]:
    """
    Codes and class names: names in the order of their integers, or sorted where there are none.

    With `label_names` the class list is given: names are looked up in it, integers without a name are places in it,
    and rows of a single class are no problem.

    Args:
        labels (sequence or `None`): a row's label each, integers or names.
        names (sequence or `None`): a row's class name each.
        places (`Sequence[str]`): how messages name each row.
        label_names (`Sequence[str]`, *optional*): the class list.

    Returns:
        `tuple` of the codes (0 to K - 1, -1 where a row's label cannot be used), the K class names, and the problems.
    """
    problems: list[Problem] = []
    codes = [-1] * len(places)
    if labels is None or all(label is None for label in labels):
        labels, names = names, None
    if labels is None:
        labels = [None] * len(places)
    integers = [None if label is None else as_integer(label) for label in labels]
    missing = [index for index, label in enumerate(labels) if label is None]
    for index in missing:
        problems.append(Problem("error", places[index], "the row has no label", "fill it in, or drop the row"))
    known = [index for index in range(len(places)) if labels[index] is not None]
    numeric = [index for index in known if integers[index] is not None]
    if numeric and len(numeric) < len(known):
        odd = next(index for index in known if integers[index] is None)
        problems.append(
            Problem(
                "error",
                places[odd],
                f'label "{labels[odd]}" is not an integer, other rows have integers',
                "write integers (with the names in label_name) or names throughout",
            )
        )
        return codes, [], problems
    if not numeric:
        classes: list[Any] = sorted({str(labels[index]) for index in known})
        keys: list[Any] = [None if label is None else str(label) for label in labels]
        class_names = [str(name) for name in classes]
    else:
        for index in numeric:
            if (integers[index] or 0) < 0:
                problems.append(
                    Problem(
                        "error",
                        places[index],
                        f"label {integers[index]} lies outside the class list, which starts at 0",
                        "give the row its class, or drop it",
                    )
                )
        keys = [value if value is not None and value >= 0 else None for value in integers]
        classes = sorted({key for key in keys if isinstance(key, int)})
        class_names, name_problems = _names_of(classes, keys, names, places)
        problems += name_problems
    place = {key: code for code, key in enumerate(classes)}
    if label_names is not None:
        named = not numeric or (names is not None and any(name is not None for name in names))
        given, problem = places_in(class_names, label_names, ordered=bool(numeric), named=named)
        problems += [problem] if problem else []
        return [-1 if key is None else given[place[key]] for key in keys], list(label_names), problems
    codes = [-1 if key is None else place[key] for key in keys]
    if len(class_names) == 1:
        problems.append(
            Problem("error", None, f'every row has the label "{class_names[0]}"', "a classifier needs two classes")
        )
    return codes, class_names, problems


def places_in(
    class_names: Sequence[str], label_names: Sequence[str], ordered: bool, named: bool = True
) -> tuple[list[int], Problem | None]:
    """
    The places of a table's classes in a class list that is given.

    Args:
        class_names (`Sequence[str]`): the table's classes.
        label_names (`Sequence[str]`): the class list.
        ordered (`bool`): whether the table orders its classes, by their integers: the list has to agree.
        named (`bool`, *optional*, defaults to `True`): whether the table names its classes; otherwise they are the
            integers as text.

    Returns:
        `tuple` of one place for each of `class_names` (-1 where it has none) and the problem, if there is one.
    """
    known = {name: index for index, name in enumerate(label_names)}
    if not named and not all(name in known for name in class_names):
        known = {str(index): index for index in range(len(label_names))}
    found = [known.get(name, -1) for name in class_names]
    listed = f"the class list {list(label_names)[:10]}"
    if -1 in found:
        odd = class_names[found.index(-1)]
        return found, Problem(
            "error",
            None,
            f'the class "{odd}" is not in {listed}',
            "name the classes as the model does, or drop the rows",
        )
    if ordered and found != sorted(found):
        return found, Problem(
            "error",
            None,
            f"the classes are {list(class_names)[:10]} by their integers, and {listed} has them in another order",
            "give each class the integer that the model knows it by, or leave the integers out",
        )
    return found, None


def similar_names(class_names: Sequence[str]) -> list[str]:
    """Class names that differ in upper and lower case alone."""
    lower = [name.lower() for name in class_names]
    return [name for name, folded in zip(class_names, lower, strict=True) if lower.count(folded) > 1]


def _names_of(
    classes: Sequence[Any], keys: Sequence[Any], names: Sequence[Any] | None, places: Sequence[str]
) -> tuple[list[str], list[Problem]]:
    """One name for each integer; names that contradict one another are problems."""
    if names is None or all(name is None for name in names):
        return [str(key) for key in classes], []
    problems: list[Problem] = []
    first: dict[Any, str] = {}
    owner: dict[str, Any] = {}
    for index, (key, name) in enumerate(zip(keys, names, strict=True)):
        if key is None:
            continue
        if name is None:
            problems.append(Problem("error", places[index], f"label {key} has no label_name", "fill it in"))
            continue
        name = str(name)
        if first.setdefault(key, name) != name:
            problems.append(
                Problem(
                    "error",
                    places[index],
                    f'label {key} is called "{name}" here and "{first[key]}" before',
                    "give each integer one label_name",
                )
            )
        elif owner.setdefault(name, key) != key:
            problems.append(
                Problem(
                    "error",
                    places[index],
                    f'label_name "{name}" stands for {key} here and for {owner[name]} before',
                    "give each label_name one integer",
                )
            )
    return [first.get(key, str(key)) for key in classes], problems
