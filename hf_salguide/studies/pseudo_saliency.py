"""Saliency from a guided teacher, for the pictures that nobody annotated."""

import dataclasses
import io
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, Image, List, Value
from PIL import Image as PILImage
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..backbones import data_config, logits_of, resolve_feature_layer, saliency_maps
from ..backbones.attribution import METHODS
from ..backbones.forward import evaluation
from ..data import SaliencyTransform, check_table, make_transforms
from ..data.images import is_missing, load_picture
from ..data.prepare import row_name, undecoded
from ..guidance.base import check_choice
from .predictions import MapClass, guided_layer

logger = logging.getLogger(__name__)
SOURCE = "saliency_source"
_NO_LABEL = -1  # as in the `datasets` library


def pseudo_saliency(
    model: PreTrainedModel,
    dataset: Dataset,
    method: str = "auto",
    map_class: MapClass = "true",
    batch_size: int = 32,
    progress: bool = True,
) -> Dataset:
    """
    Gives every picture without saliency the map of a teacher, a model that was guided by the pictures with saliency.

    The map is the positive part of the evidence for the picture's class, scaled to its maximum. The teacher sees the
    whole picture, resized to its input without a crop, whatever its own preparation cuts away: so the map covers the
    picture. Rows that are annotated stay as they are, one whose mask is empty too. The maps are kept in memory, as
    8-bit PNG files of the pictures' sizes.

    Source: Crum and Czajka, "Teaching AI to Teach: Leveraging Limited Human Salience Data Into Unlimited
    Saliency-Based Training", BMVC 2023. The teacher is trained with CYBORG on the annotated pictures, the student on
    all of them. The paper takes RISE maps as well, which are not offered here.

    Args:
        model ([`~transformers.PreTrainedModel`]): the teacher; its mode and the random generators are left as they
            were.
        dataset (`datasets.Dataset`): one split, as [`load_saliency_dataset`] gives it: `image`, `label`, and
            `saliency`, `None` where the picture is not annotated.
        method (`str`, *optional*, defaults to `"auto"`): the kind of map, see [`saliency_maps`].
        map_class (`"true"` or `"predicted"`, *optional*, defaults to `"true"`): whose map is taken; a picture without
            a label (`None` or -1) gets that of the predicted class.
        batch_size (`int`, *optional*, defaults to 32): pictures a forward.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Returns:
        `datasets.Dataset`: the same rows and columns, `saliency` filled in, and `saliency_source`: `"human"`,
        `"teacher"`, or `None` where the teacher's map is nowhere positive, which leaves the picture without saliency.
        A source that is recorded already stays. Rows are in Python's format.

    Raises:
        ValueError: for anything but one `Dataset` of pictures that are not prepared, a saliency column that holds no
            pictures, classes that are not the model's, a picture that cannot be read (named), a map with NaN, and an
            unknown `method` or `map_class` or a `batch_size` below 1.
    """
    check_choice("method", method, ("auto", *METHODS.values(), "input_gradient"))
    check_choice("map_class", map_class, ("true", "predicted"))
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} has to be an integer of 1 or more.")
    _check_dataset(dataset)
    feature = _saliency_feature(dataset)
    labels = _labels(model, dataset) if map_class == "true" else [_NO_LABEL] * len(dataset)
    values, sources = _annotations(dataset)
    rows = [row for row, value in enumerate(values) if value is None]
    if not rows:
        logger.warning("every row of the data set is annotated; the teacher has nothing to add.")
    layer = None if method == "input_gradient" or not rows else _guided_layer(model)
    transform = _whole_picture(model)
    pictures = undecoded(dataset.with_format(None))
    pictures = pictures.select_columns([name for name in ("image", "file_name") if name in pictures.column_names])
    bar = tqdm(total=len(rows), desc="Teacher's maps", unit="picture", disable=not progress or not rows, leave=False)
    with bar, evaluation(model), torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            read = [_read(pictures[row], transform, row) for row in batch]
            pixels = torch.stack([pixel_values for pixel_values, _ in read]).to(model.device, model.dtype)
            target = _target(model, pixels, [labels[row] for row in batch])
            maps = saliency_maps(model, pixels, target, method, layer).float().cpu()
            for row, values_of_row, (_, size) in zip(batch, maps, read, strict=True):
                picture = _as_picture(values_of_row, size, row)
                if picture is not None:
                    values[row] = [picture] if isinstance(feature, List) else picture
                    sources[row] = "teacher"
            bar.update(len(batch))
    flat = sum(values[row] is None for row in rows)
    if flat:
        logger.warning(
            "the teacher's map is nowhere positive in %d of %d pictures without annotation: they stay without "
            "saliency.",
            flat,
            len(rows),
        )
    return _replaced(dataset, values, sources, feature)


def record_source(dataset: Dataset) -> Dataset:
    """
    Adds the column `saliency_source` alone, for splits that no teacher is to annotate but that are kept together with
    one that it did: splits of one data set have the same columns.

    Args:
        dataset (`datasets.Dataset`): one split, as for [`pseudo_saliency`].

    Returns:
        `datasets.Dataset`, with `saliency_source`: `"human"`, or `None` where the picture is not annotated.

    Raises:
        ValueError: as [`pseudo_saliency`] for the data set.
    """
    _check_dataset(dataset)
    return _replaced(dataset, *_annotations(dataset), _saliency_feature(dataset))


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, DatasetDict):
        raise ValueError(
            f"dataset has the splits {', '.join(dataset)}; give one of them, as dataset[{next(iter(dataset), '')!r}]."
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}; give a datasets.Dataset of pictures that are not prepared yet, "
            "as load_saliency_dataset gives it."
        )
    if "pixel_values" in dataset.column_names or dataset.format["type"] == "custom":
        raise ValueError(
            "dataset has rows that are prepared already (pixel_values, or a transform of your own): a map would not "
            "fit the pictures that they came from. Give the pictures, in the column image and without a transform "
            "(dataset.with_format(None)), and prepare the result."
        )
    if "image" not in dataset.column_names:
        raise ValueError(
            f"dataset has no column image, only {', '.join(dataset.column_names) or 'none'}; load it by "
            "load_saliency_dataset(dataset, image_column=...)."
        )


def _saliency_feature(dataset: Dataset) -> Any:
    """The type of the saliency column: pictures, or lists of them."""
    feature = dataset.features.get("saliency", Image())
    if isinstance(feature, Image) or (isinstance(feature, List) and isinstance(feature.feature, Image)):
        return feature
    if getattr(feature, "dtype", None) == "null":
        return Image()
    raise ValueError(
        f"dataset has a column saliency of the type {type(feature).__name__}, which takes no pictures; save the maps "
        "as grey pictures and cast the column: dataset.cast_column('saliency', datasets.Image())."
    )


def _column(dataset: Dataset, name: str) -> list[Any]:
    """A column's values as they are stored: pictures are not decoded."""
    values: list[Any] = dataset.select_columns([name]).with_format("arrow")[:].column(name).to_pylist()
    return values


def _labels(model: PreTrainedModel, dataset: Dataset) -> list[int]:
    """The true classes, -1 where there is none; classes that are not the model's are refused."""
    name = next((name for name in ("labels", "label") if name in dataset.column_names), None)
    if name is None:
        return [_NO_LABEL] * len(dataset)
    labels = [_NO_LABEL if label is None else label for label in _column(dataset, name)]
    known = {name: [0 if label == _NO_LABEL else label for label in labels]}
    checked = Dataset.from_dict(known, features=dataset.select_columns([name]).features)
    classes = [model.config.id2label[index] for index in range(model.config.num_labels)]
    check_table(checked, label_names=classes, training=False)
    return [int(label) for label in labels]


def _annotations(dataset: Dataset) -> tuple[list[Any], list[str | None]]:
    """Each row's saliency, as it is stored, and its source; both `None` where the row is not annotated."""
    values = _column(dataset, "saliency") if "saliency" in dataset.column_names else [None] * len(dataset)
    values = [None if is_missing(value) else value for value in values]
    recorded = _column(dataset, SOURCE) if SOURCE in dataset.column_names else [None] * len(dataset)
    sources = [None if value is None else source or "human" for value, source in zip(values, recorded, strict=True)]
    return values, sources


def _guided_layer(model: PreTrainedModel) -> Any:
    return resolve_feature_layer(model, feature_layer=guided_layer(model))


def _whole_picture(model: PreTrainedModel) -> SaliencyTransform:
    """The model's preparation, but of the whole picture: no crop, whatever the picture's shape."""
    return make_transforms(dataclasses.replace(data_config(model), crop_pct=1.0, resize_mode="squash"), train=False)


def _read(row: dict[str, Any], transform: SaliencyTransform, index: int) -> tuple[Tensor, tuple[int, int]]:
    """A row's pixel values, `(C, H, W)`, and its picture's own size, in the frame that its EXIF orientation gives."""
    try:
        picture = load_picture(row["image"], transform.channels, transform.bit_depth)
    except ValueError as error:
        name = row_name(row)
        raise ValueError(f"row {index}{f' ({name})' if name else ''}: {error}") from error
    pixel_values, _ = transform(picture)
    return pixel_values, (picture.shape[1], picture.shape[2])


def _target(model: PreTrainedModel, pixels: Tensor, labels: Sequence[int]) -> Tensor | None:
    """The class whose map is taken, `(B,)`; `None` where it is the predicted one throughout."""
    target = torch.tensor(labels, device=pixels.device)
    known = target != _NO_LABEL
    if not known.any():
        return None
    return target if known.all() else torch.where(known, target, logits_of(model(pixels)).argmax(dim=1))


def _as_picture(values: Tensor, size: tuple[int, int], row: int) -> dict[str, Any] | None:
    """
    The positive part of a map, `(h, w)`, as an 8-bit grey picture of `size`, `(H, W)`, whose maximum is 255.

    Scaled after resizing, which may pass between the cells' centres; antialiased where the picture is smaller than
    the map, so that no cell is passed over.
    """
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"model gives a map with NaN or infinite values for row {row}; take another teacher.")
    positive = values.clamp(min=0)[None, None]
    resized = F.interpolate(positive, size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    highest = resized.max()
    if not highest > 0:
        return None
    stream = io.BytesIO()
    PILImage.fromarray((resized / highest * 255).round().to(torch.uint8).numpy()).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def _replaced(dataset: Dataset, values: list[Any], sources: list[str | None], feature: Any) -> Dataset:
    """The data set with its saliency and the saliency's sources replaced; the columns keep their order."""
    names = [name for name in dataset.column_names if name != SOURCE]
    names += [] if "saliency" in names else ["saliency"]
    replaced = [name for name in dataset.column_names if name in ("saliency", SOURCE)]
    kept = dataset.with_format(None).remove_columns(replaced)
    filled = kept.add_column("saliency", values, feature=feature)
    return filled.add_column(SOURCE, sources, feature=Value("string")).select_columns([*names, SOURCE])
