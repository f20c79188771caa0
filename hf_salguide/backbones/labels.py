"""Names and number of the classes, checked."""

from collections.abc import Sequence


def check_labels(label_names: Sequence[str] | None, num_labels: int | None) -> list[str] | None:
    """
    The classes' names in order, made up as `LABEL_0`, ... where only their number is given; `None` where neither is.

    Raises:
        ValueError: for fewer than two classes, a name that occurs twice, or a number that is not that of the names.
        TypeError: if `label_names` is a string or holds anything but strings.
    """
    if label_names is None:
        if num_labels is None:
            return None
        if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 2:
            raise ValueError(f"num_labels={num_labels!r}; a classifier needs two labels or more.")
        return [f"LABEL_{index}" for index in range(num_labels)]
    if isinstance(label_names, str) or not all(isinstance(name, str) for name in label_names):
        raise TypeError(f'label_names={label_names!r}; give a list of strings, such as ["normal", "tuberculosis"].')
    names = list(label_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"label_names={names} names {twice} more than once; give each class a name of its own.")
    if len(names) < 2:
        raise ValueError(f"label_names={names}; a classifier needs two labels or more.")
    if num_labels is not None and num_labels != len(names):
        raise ValueError(f"num_labels={num_labels}, but label_names has {len(names)} names; leave num_labels out.")
    return names


def label_maps(names: Sequence[str]) -> dict[str, dict]:
    """`id2label`, with integer keys, and `label2id`, as a transformers configuration takes them."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
