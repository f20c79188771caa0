"""From rows with pictures to rows that a model takes, whatever kind of data set holds them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from ..rng import preserve_rng
from .images import image_name, open_image
from .transforms import SaliencyTransform

Transform = Callable[[Any, Any], tuple[Any, Any]]
_KEPT = ("weight", "group")


def row_name(row: Mapping[str, Any]) -> str | None:
    """The file that a row's picture came from: its `file_name`, or its picture's path."""
    name = row.get("file_name") or image_name(row.get("image"))
    return None if name is None else str(name)


def prepare_row(row: Mapping[str, Any], transform: Transform, index: int) -> dict[str, Any]:
    """
    Applies a joint transform to one row; a row that holds `pixel_values` passes as it is.

    Args:
        row (`Mapping`): holds `image`, and may hold `label` (or `labels`), `saliency`, `weight` and `group`.
        transform (`Callable`): called with picture and saliency (or `None`).
        index (`int`): the row's place in its data set, for messages.

    Returns:
        `dict` with `pixel_values`, `saliency` (or `None`), and `labels`, `weight` and `group` where the row has them;
        under an evaluation transform also `agreement`, where several annotators marked the picture.

    Raises:
        ValueError: where the picture or the saliency cannot be read or transformed; names the row and its file.
    """
    if "pixel_values" in row:
        return dict(row)
    if "image" not in row:
        raise ValueError(
            f"row {index} has neither pixel_values nor image, only {', '.join(map(str, row)) or 'nothing'}; rename "
            "the picture's column to image (load_saliency_dataset does with image_column=)."
        )
    agreed = None
    try:
        image, saliency = row["image"], row.get("saliency")
        if not isinstance(transform, SaliencyTransform):
            pixels, saliency = transform(_opened(image), _opened(saliency))
        elif type(transform).__call__ is not SaliencyTransform.__call__:  # a subclass, which reads files itself too
            pixels, saliency = transform(image, saliency)
        else:
            pixels, saliency, agreed = transform.with_agreement(image, saliency)
    except Exception as error:
        names = [name for name in (row_name(row), image_name(row.get("saliency"))) if name]
        described = f" ({', saliency '.join(names)})" if names else ""
        raise ValueError(f"row {index}{described}: {error}") from error
    prepared: dict[str, Any] = {"pixel_values": pixels, "saliency": saliency}
    label = row.get("labels", row.get("label"))
    if label is not None:
        prepared["labels"] = label
    if agreed is not None:
        prepared["agreement"] = agreed
    prepared.update({name: row[name] for name in _KEPT if row.get(name) is not None})
    return prepared


def _opened(value: Any) -> Any:
    """The pictures of an undecoded column, as PIL pictures, for a transform of the user's own."""
    if isinstance(value, list):
        return [_opened(part) for part in value]
    return open_image(value) if isinstance(value, dict) else value


class PreparedDataset(Dataset):
    """
    A map-style data set whose rows are prepared when they are read.

    A wrapper, not `Dataset.with_transform`: only it knows the index of the row that cannot be read, and it serves a
    list or any other map-style data set alike. `features` and `column_names` are those of what it wraps.

    Args:
        dataset: anything with `__len__` and `__getitem__` that gives rows as dictionaries.
        transform (`Callable`): called with picture and saliency (or `None`), returns both.
    """

    def __init__(self, dataset: Any, transform: Transform):
        self.dataset = dataset
        self.transform = transform

    @property
    def features(self) -> Any:
        return getattr(self.dataset, "features", None)

    @property
    def column_names(self) -> list[str] | None:
        return getattr(self.dataset, "column_names", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return prepare_row(self.dataset[index], self.transform, index)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        rows = fetch(indices) if fetch is not None else [self.dataset[index] for index in indices]
        return [prepare_row(row, self.transform, index) for row, index in zip(rows, indices, strict=True)]


class PreparedIterableDataset(IterableDataset):
    """
    An iterable data set whose rows are prepared as they pass; the row's number in messages counts what this process
    has read.

    Args:
        dataset: an iterable over rows as dictionaries, `datasets.IterableDataset` for example.
        transform (`Callable`): called with picture and saliency (or `None`), returns both.
    """

    def __init__(self, dataset: Any, transform: Transform):
        self.dataset = dataset
        self.transform = transform

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(self.dataset):
            yield prepare_row(row, self.transform, index)


def undecoded(dataset: Any) -> Any:
    """A `datasets` data set with its pictures left as paths and bytes: decoding is ours, and names the file."""
    features = getattr(dataset, "features", None)
    if not hasattr(dataset, "cast_column") or features is None:
        return dataset
    kind = dataset.format["type"] if isinstance(getattr(dataset, "format", None), dict) else None
    if kind == "custom":
        return dataset  # a transform of the user's own, which expects what it was written for
    if kind is not None:
        dataset = dataset.with_format(None)
    from datasets import Image, List

    for name, feature in features.items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image) and feature.feature.decode:
            dataset = dataset.cast_column(name, List(Image(decode=False)))
    return dataset


def _holds_pixels(dataset: Any) -> bool:
    """Whether rows are prepared already, by the columns where there are any, by the first row otherwise."""
    if "pixel_values" in (getattr(dataset, "column_names", None) or ()):
        return True
    formatted = getattr(dataset, "format", None)
    if isinstance(formatted, dict) and formatted.get("type") != "custom":
        return False
    if len(dataset) == 0:
        return False
    with preserve_rng():  # looking at a row may run a random transform
        return "pixel_values" in dataset[0]


def prepare_dataset(dataset: Any, transform: Transform) -> Any:
    """
    A data set whose rows hold `pixel_values`, `labels`, `saliency`, and `weight` and `group` where present.

    Pictures are read and transformed when a row is, in the worker that reads it. Applying it twice is harmless.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`, a torch data set of either kind, a list of rows, or a
            mapping of names to any of these.
        transform (`Callable`): called with picture and saliency (or `None`), returns both; see [`make_transforms`].

    Returns:
        [`PreparedDataset`] or [`PreparedIterableDataset`]; the data set itself where its rows hold `pixel_values`
        already; a `dict` for a mapping.

    Raises:
        TypeError: for something that is no data set.
    """
    if isinstance(dataset, Mapping):
        return {name: prepare_dataset(split, transform) for name, split in dataset.items()}
    if isinstance(dataset, PreparedDataset | PreparedIterableDataset):
        return dataset
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return dataset if _holds_pixels(dataset) else PreparedDataset(undecoded(dataset), transform)
    if hasattr(dataset, "__iter__"):
        if "pixel_values" in (getattr(dataset, "column_names", None) or ()):
            return dataset
        return PreparedIterableDataset(undecoded(dataset), transform)
    raise TypeError(
        f"dataset is a {type(dataset).__name__}; give a datasets.Dataset, a torch data set, a list of rows, or a "
        "mapping of those."
    )
