"""Panels of pictures, human saliency and maps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .explain import Explanation, explain
from .figures import Sheet, draw_box, draw_contour, draw_map, draw_picture, save_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Explanation",
    "draw_class_means",
    "draw_comparison",
    "draw_difference",
    "draw_panel",
    "explain",
    "save_panel",
]

_SIGNS = "Orange speaks for the class, blue against it."
_LINE = "Line: human saliency at half of its maximum."
_CLASSES = 12  # of which the mean maps are drawn


def draw_panel(
    explanations: Sequence[Explanation], titles: Sequence[str] | None = None, width: str = "double"
) -> "Figure":
    """
    Draws one row a picture: picture, human saliency, map of the true class, map of the other class, the prediction.

    Both maps of a picture share one colour scale, symmetric around 0: orange speaks for the class, blue against it.

    Args:
        explanations (sequence of [`Explanation`]): see [`explain`].
        titles (sequence of `str`, *optional*): a line above each row's picture, such as its file name.
        width (`str`, *optional*, defaults to `"double"`): `"double"`, 175 mm, or `"single"`, 85 mm.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    note = f"{_SIGNS} Both maps of a picture share a scale. {_LINE}"
    sheet = _sheet(explanations, 4, width, note)
    for index, (row, explanation) in enumerate(zip(sheet.axes, explanations, strict=True)):
        _draw_given(sheet, row, explanation, titles[index] if titles else "picture")
        limit = float(max(abs(explanation.true_map).max(), abs(explanation.other_map).max()))
        _draw_map(sheet, row[2], explanation, explanation.true_map, _true_title(explanation), limit)
        _draw_map(sheet, row[3], explanation, explanation.other_map, f"other class: {explanation.other_name}", limit)
    return sheet.figure


def draw_difference(
    explanations: Sequence[Explanation],
    titles: Sequence[str] | None = None,
    boxes: Sequence[tuple[int, int, int, int] | None] | None = None,
    width: str = "double",
) -> "Figure":
    """
    Draws one row a picture: picture, human saliency, map of the true class, map of the false class, their difference.

    No map is normalised, and each has its own colour scale, symmetric around 0.

    Source: the figure of Piland, Sweet, Czajka, "Divisive Decisions", arXiv 2507.17000.

    Args:
        explanations (sequence of [`Explanation`]): see [`explain`].
        titles (sequence of `str`, *optional*): a line above each row's picture, such as its file name.
        boxes (sequence of `tuple`, *optional*): a region to mark in each picture, see [`Region`], or `None`.
        width (`str`, *optional*, defaults to `"double"`): `"double"`, 175 mm, or `"single"`, 85 mm.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    marked = boxes if boxes is not None else [None] * len(explanations)
    known = "true" if any(explanation.correct is not None for explanation in explanations) else "predicted"
    note = (
        f"Maps as they are, each with its own scale. {_SIGNS} The difference is the {known} class's map minus the "
        f"other's: what decides. {_LINE}"
    )
    if any(box is not None for box in marked):
        note += " Box: the region with the most evidence."
    sheet = _sheet(explanations, 5, width, note)
    for index, (row, explanation) in enumerate(zip(sheet.axes, explanations, strict=True)):
        _draw_given(sheet, row, explanation, titles[index] if titles else "picture")
        false = "false" if explanation.correct is not None else "other"
        _draw_map(sheet, row[2], explanation, explanation.true_map, _true_title(explanation))
        _draw_map(sheet, row[3], explanation, explanation.other_map, f"{false} class: {explanation.other_name}")
        _draw_map(sheet, row[4], explanation, explanation.difference_map, "difference")
        box = marked[index]
        for axis in (row[0], row[4]):
            if box is not None:
                draw_box(axis, box)
    return sheet.figure


def draw_comparison(models: Mapping[str, Sequence[Explanation]]) -> "Figure":
    """
    Draws one row a picture: picture, human saliency, and for each model its map of the true class and what it says.

    Each map has its own colour scale, symmetric around 0: orange speaks for the class, blue against it.

    Args:
        models (mapping from `str` to sequences of [`Explanation`]): each model's explanations of the same pictures.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    pictures = list(zip(*models.values(), strict=True))
    first = [explanations[0] for explanations in pictures]
    sheet = _sheet(first, 2 + len(models), "double", f"{_SIGNS} Each map has its own scale. {_LINE}")
    for row, explanations in zip(sheet.axes, pictures, strict=True):
        shown = explanations[0]
        _draw_given(sheet, row, shown, "picture" if shown.correct is None else f"picture: {shown.true_name}", "")
        for axis, name, explanation in zip(row[2:], models, explanations, strict=True):
            _draw_map(sheet, axis, explanation, explanation.true_map, f"{name}\n{_short_verdict(explanation)}")
    return sheet.figure


def draw_class_means(
    maps: np.ndarray, counts: Sequence[int] | np.ndarray, names: Sequence[str], width: str = "double"
) -> "Figure":
    """
    Draws the mean difference map of each class over a data set, on one colour scale; of the 12 with most pictures.

    Args:
        maps (`array` of shape `(K, h, w)`): the mean maps.
        counts (`array` of shape `(K,)`): how many pictures each is a mean of; a class with none is left out.
        names (sequence of `str`): the classes.
        width (`str`, *optional*, defaults to `"double"`): `"double"`, 175 mm, or `"single"`, 85 mm.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
        ValueError: if no class has a picture.
    """
    chosen = [int(index) for index in np.argsort(-np.asarray(counts), kind="stable")[:_CLASSES] if counts[index] > 0]
    if not chosen:
        raise ValueError("counts are all 0; there is no class whose mean map could be drawn.")
    chosen.sort()
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    note = f"Mean difference map of each class, its map minus its rivals'. {_SIGNS}"
    if len(chosen) < int((np.asarray(counts) > 0).sum()):
        note += f" The {_CLASSES} classes with the most pictures."
    sheet = Sheet(rows, columns, maps.shape[1] / maps.shape[2], width, note)
    limit = float(abs(maps[chosen]).max())
    for index, axis in enumerate(sheet.axes.flat):
        if index >= len(chosen):
            axis.set_axis_off()
            continue
        place = chosen[index]
        image = draw_map(axis, None, maps[place], limit)
        sheet.title(axis, f"{names[place]}\n{counts[place]} pictures")
        sheet.colour_bar(axis, image)
    return sheet.figure


def _sheet(explanations: Sequence[Explanation], columns: int, width: str, note: str) -> Sheet:
    height, breadth = explanations[0].picture.shape[:2]
    return Sheet(len(explanations), columns, height / breadth, width, note)


def _verdict(explanation: Explanation) -> str:
    right = {None: "", True: " (right)", False: " (wrong)"}[explanation.correct]
    return f"says {explanation.predicted_name}, {explanation.probability:.0%}{right}"


def _short_verdict(explanation: Explanation) -> str:
    right = {None: "", True: " right", False: " wrong"}[explanation.correct]
    return f"{explanation.predicted_name} {explanation.probability:.0%}{right}"


def _true_title(explanation: Explanation) -> str:
    return f"{'predicted' if explanation.correct is None else 'true'} class: {explanation.true_name}"


def _draw_given(sheet: Sheet, row: Any, explanation: Explanation, title: str, below: str | None = None) -> None:
    """The first two columns: the picture with the verdict, and human saliency."""
    draw_picture(row[0], explanation.picture)
    sheet.title(row[0], title)
    sheet.below(row[0], _verdict(explanation) if below is None else below)
    sheet.title(row[1], "human saliency")
    if explanation.saliency is None:
        row[1].set_axis_off()
        sheet.words(row[1], "not annotated")
    else:
        row[1].imshow(explanation.saliency, cmap="gray", vmin=0, vmax=1)
        if not explanation.saliency.any():
            sheet.below(row[1], "annotated, empty")


def _draw_map(
    sheet: Sheet, axis: Any, explanation: Explanation, values: np.ndarray, title: str, limit: float | None = None
) -> None:
    image = draw_map(axis, explanation.picture, values, limit)
    draw_contour(axis, explanation.saliency)
    sheet.title(axis, title)
    sheet.colour_bar(axis, image)
