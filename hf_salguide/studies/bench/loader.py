"""How fast pictures and masks are read, transformed and collated, and what of them travels."""

import io
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as HubImage
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2 as T

from ...backbones import DataConfig
from ...data import SaliencyCollator, make_transforms, prepare_dataset
from ...guidance import get_guidance
from ...steps import carried_size
from .timing import interleaved, ratio_of

KINDS = ("JPEG", "PNG")
SMALL, LARGE = (256, 256), (2000, 1500)  # width and height of the pictures that are read
SHARE = 8  # of the small pictures' number, which is how many large ones are read
BATCH = 8
CELL = 32  # pixels a side of a cell of the feature layer's grid, as of most convolutional networks
_JITTER, _SCALE = 0.2, (0.6, 1.0)  # of make_transforms


@dataclass(frozen=True)
class LoaderResult:
    """
    The loader's speed for one kind of picture, by the CPU time of one process with one thread.

    Attributes:
        kind (`str`): the pictures' file format; masks are PNG, of the pictures' size.
        width, height (`int`): of the pictures, in pixels.
        image_size (`int`): side in pixels that they are brought to.
        rate (`float`): annotated pictures a second, read, augmented with their masks, and collated.
        unannotated_rate (`float`): pictures a second of the same without masks.
        plain_rate (`float`): pictures a second of torchvision's own transforms, which know no saliency.
        ratio, ratio_low, ratio_high (`float`): rate over plain rate, median and quartiles over turns.
        unannotated_ratio (`float`): the same of pictures without masks.
        picture_bytes, saliency_bytes (`int`): what a picture and its saliency take in a batch.
        reduced_bytes (`int`): what its saliency takes for methods that read nothing but area means on a grid.
    """

    kind: str
    width: int
    height: int
    image_size: int
    rate: float
    unannotated_rate: float
    plain_rate: float
    ratio: float
    ratio_low: float
    ratio_high: float
    unannotated_ratio: float
    picture_bytes: int
    saliency_bytes: int
    reduced_bytes: int


def bench_loader(
    image_size: int,
    count: int = 64,
    repeats: int = 5,
    kinds: Sequence[str] = KINDS,
    pictures: Sequence[tuple[int, int]] = (SMALL, LARGE),
) -> list[LoaderResult]:
    """
    Measures the loader beside torchvision's own transforms, the three taking turns in one process.

    Args:
        image_size (`int`): side in pixels that pictures are brought to, as in training.
        count (`int`, *optional*, defaults to 64): pictures of a turn; an eighth as many where they are large.
        repeats (`int`, *optional*, defaults to 5): turns.
        kinds (`Sequence[str]`, *optional*): file formats, of `"JPEG"` and `"PNG"`.
        pictures (`Sequence[tuple[int, int]]`, *optional*): width and height of the pictures.

    Returns:
        `list[LoaderResult]`, one a kind and size.
    """
    with _one_thread():
        return [
            _measured(kind, size, image_size, count if size[0] * size[1] < 2**20 else max(count // SHARE, 1), repeats)
            for size in pictures
            for kind in kinds
        ]


def loader_table(results: Sequence[LoaderResult]) -> str:
    """The results as a Markdown table, a row each."""
    lines = [
        "| pictures | to px | with mask | no mask | torchvision, no mask | with mask / torchvision (quartiles) | "
        "no mask / torchvision | bytes of a picture | of its saliency | reduced |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lines.append(
            f"| {result.kind}, {result.width} × {result.height} | {result.image_size} | {result.rate:.0f}/s | "
            f"{result.unannotated_rate:.0f}/s | {result.plain_rate:.0f}/s | {result.ratio:.2f} × "
            f"({result.ratio_low:.2f}–{result.ratio_high:.2f}) | {result.unannotated_ratio:.2f} × | "
            f"{result.picture_bytes:,} | {result.saliency_bytes:,} | {result.reduced_bytes:,} |"
        )
    return "\n".join(lines)


class _Pipelines:
    """The three that are compared, over the same rows."""

    def __init__(self, kind: str, size: tuple[int, int], image_size: int, count: int) -> None:
        picture, mask = _picture(size)
        rows: dict[str, list[Any]] = {
            "image": [{"bytes": _encoded(picture, kind), "path": None}] * count,
            "saliency": [{"bytes": _encoded(mask, "PNG"), "path": None}] * count,
            "label": [0] * count,
        }
        table = Dataset.from_dict(rows).cast_column("image", HubImage()).cast_column("saliency", HubImage())
        bare = table.remove_columns("saliency")
        config = DataConfig((image_size, image_size), (0.5,) * 3, (0.5,) * 3)
        transform = make_transforms(config, train=True, crop_scale=_SCALE, color_jitter=_JITTER)
        whole, grid = (image_size, image_size), (max(image_size // CELL, 1),) * 2
        self.count = count
        self.collator = SaliencyCollator({whole: carried_size([get_guidance("cyborg")], grid, whole)})
        self.with_masks, self.without = prepare_dataset(table, transform), prepare_dataset(bare, transform)
        self.plain = _plain_reader(bare, config, transform.interpolation, count)

    def annotated(self) -> None:
        for indices in _batches(self.count):
            self.collator(self.with_masks.__getitems__(indices))

    def unannotated(self) -> None:
        for indices in _batches(self.count):
            self.collator(self.without.__getitems__(indices))


def _measured(kind: str, size: tuple[int, int], image_size: int, count: int, repeats: int) -> LoaderResult:
    pipelines = _Pipelines(kind, size, image_size, count)
    runners: dict[str, Callable[[], object]] = {
        "annotated": pipelines.annotated,
        "unannotated": pipelines.unannotated,
        "plain": pipelines.plain,
    }
    times = interleaved(runners, repeats, "cpu", "cpu", warm_up=1, description=f"{kind}, {size[0]} × {size[1]}")
    rates = {name: count / statistics.median(taken) for name, taken in times.items()}
    ratio = ratio_of(times["plain"], times["annotated"])
    row = [pipelines.with_masks[0]]
    whole, reduced = SaliencyCollator()(row), pipelines.collator(row)
    return LoaderResult(
        kind=kind,
        width=size[0],
        height=size[1],
        image_size=image_size,
        rate=rates["annotated"],
        unannotated_rate=rates["unannotated"],
        plain_rate=rates["plain"],
        ratio=ratio.median,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        unannotated_ratio=ratio_of(times["plain"], times["unannotated"]).median,
        picture_bytes=whole["pixel_values"].nbytes,
        saliency_bytes=whole["saliency"].nbytes,
        reduced_bytes=reduced["saliency"].nbytes,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _batches(count: int) -> Iterable[list[int]]:
    return (list(range(first, min(first + BATCH, count))) for first in range(0, count, BATCH))


def _plain_reader(table: Dataset, config: DataConfig, interpolation: Any, count: int) -> Callable[[], object]:
    """What one would write with torchvision alone: the same augmentation of the picture, and no saliency."""
    transform = T.Compose(
        [
            T.PILToTensor(),
            T.RandomResizedCrop(config.size, scale=_SCALE, interpolation=interpolation, antialias=True),
            T.RandomHorizontalFlip(),
            T.ToDtype(torch.float32, scale=True),
            T.ColorJitter(brightness=_JITTER, contrast=_JITTER, saturation=_JITTER),
            T.Normalize(config.mean, config.std),
        ]
    )
    decoded = table.with_transform(
        lambda rows: {"pixel_values": [transform(picture.convert("RGB")) for picture in rows["image"]]}
    )

    def read() -> list[Tensor]:
        return [
            torch.stack([row["pixel_values"] for row in decoded.__getitems__(indices)]) for indices in _batches(count)
        ]

    return read


def _picture(size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """A picture with shapes and grain, which compresses about as a photograph does, and a mask of its bright parts."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    shapes = coarse.resize(size, Image.Resampling.BICUBIC)
    grain = generator.normal(0.0, 6.0, (size[1], size[0], 3))
    values = np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(values), shapes.convert("L").point([255 * (level > 127) for level in range(256)])


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()
