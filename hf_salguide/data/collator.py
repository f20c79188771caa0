"""From prepared rows to a batch that holds tensors only."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..maps import reduced_saliency
from .images import unit_saliency

_DENSITY_SUM = 0.05  # how far from 1 the sum of a density may lie


class SaliencyCollator:
    """
    Stacks prepared rows; rows without annotation are marked, not dropped.

    A row holds `pixel_values` `(C, H, W)`, `labels` or `label`, `saliency` and, where rows are weighted, `weight`.
    Everything else in a row is left out of the batch. Saliency is `(H, W)` or `(1, H, W)` of the picture's size: uint8
    in 0 to 255, float in [0, 1], or bool; `None` or absent where the picture is not annotated. Other integers are
    read as 0 and 1 where they do not exceed 1, and as 0 to 255 otherwise. Rows are never changed.

    The batch holds
    * `pixel_values`, float `(B, C, H, W)`;
    * `labels`, int64 `(B,)` (float `(B, K)` for several labels a picture), unless no row has one;
    * `saliency`, uint8 `(B, H, W)`, zeros where a row is not annotated: integers, because DeepSpeed casts every
      floating input to its own precision, and a quarter of the bytes. It is there in batches without annotation as
      well: processes that share out or gather batches need the same keys and shapes in each;
    * `has_saliency`, bool `(B,)`;
    * `sample_weight`, float32 `(B,)`, where the rows carry `weight`.

    Args:
        saliency_sizes (`Mapping`, *optional*): from a picture's `(H, W)` to the `(h, w)` that the saliency of such
            pictures is reduced to, see [`~maps.reduced_saliency`]. Pictures of other sizes keep all of theirs. For
            training, a [`SaliencyTrainer`] fills it in where its methods do not notice; evaluation keeps every pixel.

    Raises:
        ValueError: for pixel values or saliency of a wrong type, size or range, NaN included, and where only some rows
            have labels or weights; the message names the row's place in the batch.
    """

    def __init__(self, saliency_sizes: Mapping[tuple[int, int], tuple[int, int]] | None = None) -> None:
        self.saliency_sizes = dict(saliency_sizes or {})

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if len(rows) == 0:
            raise ValueError("rows is empty; a batch needs one row at least.")
        pixels = [self._pixels(row, position) for position, row in enumerate(rows)]
        shapes = [tuple(values.shape) for values in pixels]
        if len(set(shapes)) > 1:
            odd = next(position for position, shape in enumerate(shapes) if shape != shapes[0])
            raise ValueError(
                f"pixel_values of row {odd} has the shape {shapes[odd]}, row 0 has {shapes[0]}; give every picture "
                "the same size, with make_transforms or a transform of your own."
            )
        if len({values.dtype for values in pixels}) > 1:  # a worker would take the first one's
            dtype = reduce(torch.promote_types, (values.dtype for values in pixels))
            pixels = [values.to(dtype) for values in pixels]
        size = (shapes[0][-2], shapes[0][-1])
        maps = [self._saliency(row.get("saliency"), size, position) for position, row in enumerate(rows)]
        batch = {
            "pixel_values": _stack(pixels),
            "saliency": self._carried(maps, size),
            "has_saliency": torch.tensor([saliency is not None for saliency in maps]),
        }
        labels = self._column(rows, ("labels", "label"))
        if labels is not None:
            stacked = torch.stack([torch.as_tensor(label) for label in labels])
            batch["labels"] = stacked if stacked.is_floating_point() else stacked.to(torch.int64)
        weights = self._column(rows, ("weight",))
        if weights is not None:
            batch["sample_weight"] = torch.tensor([float(weight) for weight in weights], dtype=torch.float32)
        if any(row.get("agreement") is not None for row in rows):
            agreed = [row.get("agreement") for row in rows]
            batch["agreement"] = torch.tensor([float("nan") if value is None else float(value) for value in agreed])
        return batch

    def _carried(self, maps: Sequence[Tensor | None], size: tuple[int, int]) -> Tensor:
        """The maps of a batch at the size that they travel in, zeros where there is none."""
        carried = self.saliency_sizes.get(size, size)
        empty = torch.zeros(carried, dtype=torch.uint8)
        if carried != size:
            annotated = [saliency for saliency in maps if saliency is not None]
            reduced = iter(reduced_saliency(torch.stack(annotated), carried) if annotated else ())
            maps = [None if saliency is None else next(reduced) for saliency in maps]
        return _stack([empty if saliency is None else saliency for saliency in maps])

    @staticmethod
    def _pixels(row: Mapping[str, Any], position: int) -> Tensor:
        if "pixel_values" not in row:
            raise ValueError(
                f"row {position} has no pixel_values, only {', '.join(map(str, row)) or 'nothing'}; prepare the data "
                "set with prepare_dataset(dataset, transform)."
            )
        pixels = torch.as_tensor(row["pixel_values"])
        if pixels.ndim != 3 or not pixels.is_floating_point():
            raise ValueError(
                f"pixel_values of row {position} is {pixels.dtype} of the shape {tuple(pixels.shape)}; expected a "
                "float tensor (C, H, W)."
            )
        return pixels

    @staticmethod
    def _column(rows: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> list[Any] | None:
        values = [next((row[name] for name in names if row.get(name) is not None), None) for row in rows]
        missing = [position for position, value in enumerate(values) if value is None]
        if len(missing) == len(rows):
            return None
        if missing:
            raise ValueError(
                f"row {missing[0]} has no {names[0]}, other rows of the batch have; give it to every row or to none."
            )
        return values

    @staticmethod
    def _saliency(value: Any, size: tuple[int, ...], position: int) -> Tensor | None:
        if value is None:
            return None
        saliency = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        if saliency.ndim == 3 and saliency.shape[0] == 1:
            saliency = saliency[0]
        if tuple(saliency.shape) != tuple(size):
            raise ValueError(
                f"saliency of row {position} has the shape {tuple(saliency.shape)}, its pixel_values {tuple(size)}; "
                "resize the map with its picture (make_transforms does)."
            )
        if saliency.dtype == torch.uint8:
            return saliency
        if saliency.dtype == torch.bool:
            return saliency.to(torch.uint8) * 255
        if saliency.is_floating_point() and not bool(torch.isfinite(saliency).all()):
            raise ValueError(
                f"saliency of row {position} has NaN or infinite values; write 0 where there is no value."
            )
        low, high = float(saliency.min()), float(saliency.max())
        if low < 0:
            raise ValueError(f"saliency of row {position} has negative values (minimum {low:g}); expected [0, 1].")
        if saliency.is_floating_point():
            # The tail that a crop leaves of a soft map may be as faint; a density gives itself away by its sum.
            if not 0 < high < 1 / 255 or abs(float(saliency.sum()) - 1) < _DENSITY_SUM:
                try:
                    saliency = unit_saliency(saliency, high)
                except ValueError as error:
                    raise ValueError(f"saliency of row {position}: {error}") from error
            return saliency.to(torch.float32).mul(255).round().to(torch.uint8)
        if high > 255:
            raise ValueError(f"saliency of row {position} has integers up to {high:g}; expected 0 to 255.")
        return (saliency * 255 if high <= 1 else saliency).to(torch.uint8)


def _stack(tensors: list[Tensor]) -> Tensor:
    """Rows as a batch; in a worker straight into the memory that it shares with the main process."""
    stacked: Tensor = default_collate(tensors)
    return stacked
