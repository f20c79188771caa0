"""Open-set splits: one attack type, generator or class is kept out of training and tested on."""

import logging
from collections import Counter
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value, concatenate_datasets

logger = logging.getLogger(__name__)

UNSEEN = "unseen"
_FITTED = ("train", "validation")
_SHOWN = 20


def leave_one_out_split(dataset: DatasetDict, column: str, value: Any) -> DatasetDict:
    """
    Leaves one attack type, generator, site or class out of training and makes a split to test on it.

    Rows whose `column` is `value` leave `train`, `validation` (which selects the model) and `test` (which stays in
    distribution). The new split `"unseen"` holds

    * the rows of `value` of `test`. Where `test` has none, those of `validation` and `train`, which are not fitted any
      more; rows whose `group` (patient, finger) stays in `train` or `validation` are left out of it.
    * the rows of `test` with a label that no row of `value` has: the bona fide pictures when an attack type is left
      out, all known classes when a class is. They are in `test` as well, so that AUROC is defined on both and the two
      differ in the unseen pictures only.

    No row of `train` or `validation` is in `test` or `"unseen"`. Other splits (`ood`) stay as they are. The class list
    does too: a class that is left out keeps its id and an output that is never trained, and what tells its pictures
    is [`open_set_metrics`] with [`known_unknown`].

    Args:
        dataset (`DatasetDict`): with `train` and `test`, and `validation` where there is one, as
            [`load_saliency_dataset`] gives it.
        column (`str`): the column of attack types, generators, sites or classes.
        value (`Any`): the one to leave out; a class by its name or id.

    Returns:
        `DatasetDict`: the splits that were given and `"unseen"`. Pictures are not read. A `validation` or `test`
        that is left with fewer than two classes is warned of: AUROC is not defined on it.

    Raises:
        ValueError: for an unknown column or value (lists those that there are), a split that is missing or already
            named `"unseen"`, fewer than two classes left in `train`, and an unseen split with one class or no rows of
            `value`.

    Example:

    ```python
    splits = leave_one_out_split(load_saliency_dataset("iris"), "attack_type", "contact lens")
    trainer = SaliencyTrainer(..., train_dataset=splits["train"], eval_dataset=splits["validation"])
    trainer.evaluate({"test": splits["test"], "unseen": splits["unseen"]})
    ```
    """
    label_column = _check(dataset, column)
    parts = [name for name in (*_FITTED, "test") if name in dataset]
    chosen = _as_stored(dataset, parts, column, value)
    held = {name: [entry == chosen for entry in _values(dataset[name], column)] for name in parts}
    labels = {name: _values(dataset[name], label_column) for name in parts}
    _check_trained(labels["train"], held["train"], column, value)

    left_out = {label for name in parts for label, out in zip(labels[name], held[name], strict=True) if out}
    reference = [label not in left_out for label in labels["test"]]
    result = DatasetDict(dataset)
    for name in parts:
        result[name] = dataset[name].select([row for row, out in enumerate(held[name]) if not out])
        _warn_of_one_class(name, result[name], label_column, column, value)
    wanted = [row for row, (out, other) in enumerate(zip(held["test"], reference, strict=True)) if out or other]
    unseen = dataset["test"].select(wanted)
    if not any(held["test"]):
        unseen = concatenate_datasets([unseen, *_no_longer_fitted(dataset, result, held, column, value)])
    present = set(_values(unseen, label_column))
    if len(present) < 2:
        raise ValueError(
            f"the split of {column}={value!r} would hold one class only, and AUROC would not be defined: test has no "
            "rows of another class. Put some of them into test."
        )
    result[UNSEEN] = unseen
    return result


def _warn_of_one_class(name: str, rows: Dataset, label_column: str, column: str, value: Any) -> None:
    left = set(_values(rows, label_column)) - {None}
    if len(left) < 2:
        selects = ", and it cannot select a model" if name == "validation" else ""
        logger.warning(
            "Without %s=%r the split %s holds %d class%s: AUROC is not defined on it%s. Put rows of another class "
            "into %s, such as another attack type's.",
            column,
            value,
            name,
            len(left),
            "" if len(left) == 1 else "es",
            selects,
            name,
        )


def _no_longer_fitted(
    dataset: DatasetDict, result: DatasetDict, held: dict[str, list[bool]], column: str, value: Any
) -> list[Dataset]:
    """The rows that left training, without those of groups that are still trained on."""
    fitted = [name for name in _FITTED if name in dataset]
    trained = {group for name in fitted for group in _values(result[name], "group")} - {None}
    found, dropped = [], 0
    for name in fitted:
        rows = [row for row, out in enumerate(held[name]) if out]
        groups = _values(dataset[name], "group")
        kept = [row for row in rows if groups[row] not in trained]
        dropped += len(rows) - len(kept)
        found.append(dataset[name].select(kept))
    count = sum(map(len, found))
    if not count:
        raise ValueError(
            f"test has no rows of {column}={value!r}, and the groups of all {dropped} rows of it are still trained "
            "on; put some groups of it into test."
        )
    logger.warning(
        "test has no rows of %s=%r: the unseen split takes the %d that left training (%d of groups that are still "
        "trained on are left out).",
        column,
        value,
        count,
        dropped,
    )
    return found


def _values(rows: Dataset, column: str) -> list[Any]:
    """A column as it is stored, without reading a picture; `None` everywhere where there is no such column."""
    if column not in rows.column_names:
        return [None] * len(rows)
    return rows.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()


def _check(dataset: DatasetDict, column: str) -> str:
    """Checks splits and column; the name of the column of labels."""
    if not isinstance(dataset, DatasetDict):
        raise ValueError(f"dataset is a {type(dataset).__name__}; give a DatasetDict, as load_saliency_dataset does.")
    missing = [name for name in ("train", "test") if name not in dataset]
    if missing:
        raise ValueError(
            f'dataset has no split "{missing[0]}", only {", ".join(dataset)}; both train and test are needed.'
        )
    if UNSEEN in dataset:
        raise ValueError(f'dataset has a split "{UNSEEN}" already; rename it, or split the data set as it was loaded.')
    for name in [name for name in (*_FITTED, "test") if name in dataset]:
        features = dataset[name].features
        if not isinstance(features.get(column), Value | ClassLabel):
            usable = [known for known, kind in features.items() if isinstance(kind, Value | ClassLabel)]
            raise ValueError(
                f'column="{column}" is no column of names or numbers of split {name}; there are {", ".join(usable)}.'
            )
    found = next((name for name in ("label", "labels") if name in dataset["train"].column_names), None)
    if found is None:
        raise ValueError("dataset has no column label; load it with load_saliency_dataset.")
    return found


def _as_stored(dataset: DatasetDict, parts: list[str], column: str, value: Any) -> Any:
    """The value as the column holds it: the id of a class that was named."""
    feature = dataset["train"].features[column]
    names = feature.names if isinstance(feature, ClassLabel) else None
    counts = Counter(entry for name in parts for entry in _values(dataset[name], column) if entry is not None)
    chosen = names.index(value) if names is not None and value in names else value
    if chosen is None or chosen not in counts:
        shown = [
            f"{(names[entry] if names else entry)!r} ({count} rows)" for entry, count in counts.most_common(_SHOWN)
        ]
        rest = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
        raise ValueError(f'value={value!r} is not in column "{column}"; there are {", ".join(shown)}{rest}.')
    return chosen


def _check_trained(labels: list[Any], held: list[bool], column: str, value: Any) -> None:
    left = {label for label, out in zip(labels, held, strict=True) if not out}
    if len(left) < 2:
        raise ValueError(
            f"without {column}={value!r} train holds {len(left)} of the two classes that training needs; leave out an "
            "attack type, generator or site, not all pictures of a class."
        )
