"""How panels look: one colour scale for evidence, sheets of a paper's width, files that are the same every time."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = {"single": 85.0, "double": 175.0}  # of a journal's column and page, mm
FONT_SIZE = 6.5  # points, at that width
UNIT = "evidence, logits"
RESOLUTION = 300  # dots per inch of what is not vectors
# From blue, evidence against, over near white, none, to orange, evidence for: on the axis between blue and yellow,
# which people who confuse red with green tell apart as well as others do. Both ends are about as dark, so that neither
# sign looks stronger, and each half gets darker all the way. The hues are ColorBrewer's Blues and Oranges.
SCALE = ("#08519c", "#3182bd", "#6baed6", "#c6dbef", "#f7f7f7", "#fdd0a2", "#fd8d3c", "#e6550d", "#a63603")

_TITLE, _BELOW, _GAP, _MARGIN = 7.0, 9.0, 2.0, 1.5  # mm
_LEAST_COLUMN = 24.0  # mm: narrower ones hold no title
_POINT = 25.4 / 72  # mm
_MEASURED = 100  # size at which text is measured: small glyphs are fitted to whole pixels


def require_matplotlib() -> None:
    """
    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("Panels need matplotlib: pip install 'hf_salguide[plots]'.") from error


def evidence_colours() -> Any:
    """The colour map of signed evidence: blue speaks against a class, orange for it."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("evidence", SCALE)


class Sheet:
    """
    A figure of equal pictures in rows and columns, laid out in millimetres: the width is the paper's.

    Args:
        rows, columns (`int`): how many pictures.
        ratio (`float`, *optional*, defaults to 1.0): of a picture's height to its width.
        width (`str`, *optional*, defaults to `"double"`): `"single"`, a column of 85 mm, or `"double"`, a page of
            175 mm. A sheet whose columns would be under 24 mm is wider than that.
        note (`str`, *optional*): the legend, at the foot.

    Attributes:
        figure (`matplotlib.figure.Figure`): the figure.
        axes (`array` of shape `(rows, columns)`): without ticks.

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
        ValueError: for an unknown width.
    """

    def __init__(self, rows: int, columns: int, ratio: float = 1.0, width: str = "double", note: str = "") -> None:
        if width not in WIDTHS:
            raise ValueError(f'width="{width}" is not known; choose "single" (85 mm) or "double" (175 mm).')
        require_matplotlib()
        from matplotlib.figure import Figure

        total = max(WIDTHS[width], columns * _LEAST_COLUMN)
        self.column = (total - 2 * _MARGIN - (columns - 1) * _GAP) / columns
        note = _fitted(note, total - 2 * _MARGIN)
        foot = _MARGIN + (note.count("\n") + 1) * 1.3 * FONT_SIZE * _POINT if note else _MARGIN
        band = _TITLE + self.column * ratio + _BELOW
        self._size = (total, rows * band + foot)
        self.figure = Figure(figsize=(self._size[0] / 25.4, self._size[1] / 25.4), facecolor="white")
        self.axes = np.empty((rows, columns), dtype=object)
        for row in range(rows):
            bottom = self._size[1] - (row + 1) * band + _BELOW
            for column in range(columns):
                left = _MARGIN + column * (self.column + _GAP)
                axis = self._axes(left, bottom, self.column, self.column * ratio)
                axis.set_xticks([])
                axis.set_yticks([])
                for spine in axis.spines.values():
                    spine.set_linewidth(0.4)
                self.axes[row, column] = axis
        if note:
            self.figure.text(
                _MARGIN / total, _MARGIN / self._size[1], note, fontsize=FONT_SIZE, va="bottom", linespacing=1.2
            )

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Any:
        total, high = self._size
        return self.figure.add_axes((left / total, bottom / high, width / total, height / high))

    def title(self, axis: Any, text: str) -> None:
        """A line or two above a picture; what is longer is cut."""
        axis.set_title(self._wrapped(text), fontsize=FONT_SIZE, pad=2, linespacing=1.1, parse_math=False)

    def below(self, axis: Any, text: str) -> None:
        """A line or two under a picture."""
        axis.set_xlabel(self._wrapped(text), fontsize=FONT_SIZE, labelpad=2, linespacing=1.1, parse_math=False)

    def colour_bar(self, axis: Any, image: Any) -> None:
        """The scale of a map, under it, with its unit."""
        total, high = self._size
        box = axis.get_position()
        left, bottom = box.x0 * total + 0.1 * self.column, box.y0 * high - 2.2
        bar = self.figure.colorbar(
            image, cax=self._axes(left, bottom, 0.8 * self.column, 1.2), orientation="horizontal"
        )
        low, top = image.get_clim()
        bar.set_ticks([low, 0, top], labels=[_number(value) for value in (low, 0, top)])
        bar.ax.tick_params(labelsize=FONT_SIZE, length=1.5, width=0.4, pad=1)
        bar.outline.set_linewidth(0.4)
        bar.set_label(UNIT, fontsize=FONT_SIZE, labelpad=1)

    def words(self, axis: Any, text: str) -> None:
        """A line in place of a picture."""
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=FONT_SIZE, transform=axis.transAxes)

    def _wrapped(self, text: str) -> str:
        """At most two lines: those that the text has, or as many as it needs."""
        lines = text.split("\n")
        return "\n".join(_fitted(line, self.column, 2 if len(lines) == 1 else 1) for line in lines)


def _fitted(text: str, width: float, most: int | None = None) -> str:
    """A text in lines of a width in mm, cut where they are more than `most`."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    font.set_size(_MEASURED, 72)
    for characters in range(int(width / (0.4 * FONT_SIZE * _POINT)), 0, -1):
        lines = textwrap.wrap(text, characters, break_on_hyphens=False)
        if most is not None and len(lines) > most:
            lines = [*lines[: most - 1], lines[most - 1][: characters - 1].rstrip() + "…"]
        if all(_width(line, font) <= width for line in lines):
            break
    return "\n".join(lines)


def _width(line: str, font: Any) -> float:
    """The width of a line in mm."""
    font.set_text(line)
    pixels: float = font.get_width_height()[0] / 64
    return pixels * FONT_SIZE / _MEASURED * _POINT


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "−") if value else "0"


def draw_picture(axis: Any, picture: np.ndarray) -> None:
    """A picture, `(H, W, 3)` in [0, 1]."""
    axis.imshow(picture)


def draw_map(axis: Any, picture: np.ndarray | None, values: np.ndarray, limit: float | None = None) -> Any:
    """
    A signed map, over its picture in pale grey where it has one, zero in the middle of the scale.

    Args:
        axis (`matplotlib.axes.Axes`): where.
        picture (`array` of shape `(H, W, 3)`, *optional*): in [0, 1].
        values (`array` of shape `(H, W)`): the map.
        limit (`float`, *optional*): the scale reaches from `-limit` to `limit`; default: the map's largest magnitude.

    Returns:
        the image, for [`Sheet.colour_bar`].
    """
    limit = limit or float(abs(values).max()) or 1.0
    if picture is not None:
        axis.imshow(0.6 + 0.4 * picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    alpha = 1.0 if picture is None else 0.7
    return axis.imshow(values, cmap=evidence_colours(), vmin=-limit, vmax=limit, alpha=alpha)


def draw_contour(axis: Any, saliency: np.ndarray | None) -> None:
    """The outline of human saliency at half of its maximum: black in white, to be seen on every colour."""
    if saliency is None or not saliency.min() < saliency.max() / 2:
        return
    from matplotlib.patheffects import Normal, Stroke

    lines = axis.contour(saliency, levels=[saliency.max() / 2], colors="black", linewidths=0.7)
    lines.set_path_effects([Stroke(linewidth=1.7, foreground="white"), Normal()])


def draw_box(axis: Any, box: tuple[int, int, int, int]) -> None:
    """A region: left, top, right and bottom in pixels."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    for colour, width, style in (("white", 1.8, "-"), ("black", 0.9, "--")):
        axis.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=colour,
                linewidth=width,
                linestyle=style,
            )
        )


@contextmanager
def _settings() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "hf_salguide"}):
        yield


def save_panel(figure: "Figure", path: str | Path) -> Path:
    """
    Writes a figure to a file, `.png` (300 dpi), `.pdf` (vectors, fonts embedded) or `.svg`, and gives the path back.

    The file holds no date and is the same for the same figure. It is written under another name first, so that it is
    never half there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, None]] = {
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        ".svg": {"Date": None, "Creator": None},
    }
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with _settings():
            figure.savefig(part, dpi=RESOLUTION, metadata=metadata.get(path.suffix.lower()))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
