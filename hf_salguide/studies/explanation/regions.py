"""Regions of a map: connected cells that hold much of the evidence, and how they are ranked."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SHARE = 0.5  # of a map's maximum


@dataclass(frozen=True, slots=True)
class Region:
    """
    A connected part of a difference map that speaks for its class.

    Attributes:
        row (`int`): the picture's row in its data set.
        box (`tuple` of four `int`): left, top, right, bottom in pixels of the picture as the model sees it; right and
            bottom lie outside.
        cells (`int`): of the map's grid.
        evidence (`float`): in logits: the sum over its cells, divided by the number of the map's cells.
        share (`float`): of the positive evidence of its picture, in (0, 1].
        inside (`float`): share of its evidence that lies on the annotation, in [0, 1]; NaN where the picture is not
            annotated.
    """

    row: int
    box: tuple[int, int, int, int]
    cells: int
    evidence: float
    share: float
    inside: float


def find_regions(
    map: np.ndarray, row: int, size: tuple[int, int], saliency: np.ndarray | None = None, share: float = SHARE
) -> Iterator[Region]:
    """
    The regions of one map: connected parts, by cells that share an edge, of the cells that exceed a share of its
    maximum.

    Args:
        map (`array` of shape `(h, w)`): signed, in the scale of the logit.
        row (`int`): the picture's row, which the regions carry.
        size (`tuple[int, int]`): the picture's `(H, W)`.
        saliency (`array` of shape `(h, w)`, *optional*): the share of each cell that is annotated, in [0, 1].
        share (`float`, *optional*, defaults to 0.5): of the map's maximum, at least 0 and under 1.

    Yields:
        [`Region`]; none for a map that is nowhere positive.
    """
    high = float(map.max())
    if not high > 0:
        return
    parts, _ = ndimage.label(map > share * high)
    total = float(map[map > 0].sum(dtype=np.float64))
    height, width = map.shape
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        chosen = parts == number
        values = map[chosen].astype(np.float64)
        evidence = float(values.sum())
        inside = float("nan") if saliency is None else float((values * saliency[chosen]).sum()) / evidence
        # A cell covers its pixels in part where the grid does not divide the picture.
        box = (
            columns.start * size[1] // width,
            rows.start * size[0] // height,
            -(-columns.stop * size[1] // width),
            -(-rows.stop * size[0] // height),
        )
        yield Region(row, box, len(values), evidence / map.size, evidence / total, inside)


def rank_regions(regions: Iterable[Region]) -> list[Region]:
    """The regions, the one with the most evidence first; the earlier row first among equals."""
    return sorted(regions, key=lambda region: (-region.evidence, region.row, region.box))


def first_of_pictures(regions: Sequence[Region], count: int) -> list[Region]:
    """The first region of each of the first `count` pictures in a ranked list."""
    found: dict[int, Region] = {}
    for region in regions:
        if len(found) == count:
            break
        found.setdefault(region.row, region)
    return list(found.values())
