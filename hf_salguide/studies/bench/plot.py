"""The multiples of the plain step as horizontal bars, the arithmetic marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..report.plot_style import LIGHT, draw
from .steps import BenchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
COLUMNS = 2
# A colour and a hatch say the same thing twice.
KINDS = {
    "map": ("maps", ""),
    "feature gradient": ("gradients", "...."),
    "views": ("embeddings", "////"),
    "input gradient": ("divisive", "xxxx"),
    "inputs": ("inputs", "----"),
}


def check_plot() -> None:
    """
    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'hf_salguide[plots]'.") from error


def save_plot(results: Sequence[BenchResult], path: str | Path) -> Path:
    """
    Draws a panel a setting: a bar for each method, its quartiles, and a mark where the arithmetic alone would be.

    Args:
        results (sequence of [`BenchResult`]): at least one.
        path (`str` or `Path`): ends in .png, .svg or .pdf.

    Returns:
        `Path`

    Raises:
        ImportError: if matplotlib is missing.
    """
    panels: dict[str, list[BenchResult]] = {}
    for result in results:
        how = "" if result.precision == "float32" else f", {result.precision}"
        how += "" if result.compile_backend is None else ", compiled"
        model = result.model.replace("(", "\n(")  # its arguments on a line of their own
        title = f"{model}\n{result.image_size} px × {result.batch_size}{how}, {result.device}"
        panels.setdefault(title, []).append(result)

    def paint(figure: "Figure", narrow: bool) -> None:
        columns = min(COLUMNS, len(panels))
        lines = -(-len(panels) // columns)
        longest = max(len(rows) for rows in panels.values())
        figure.set_figheight(lines * (0.9 + 0.17 * longest))
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        highest = max(max(row.time_ratio_high, row.theoretical_ratio) for row in results)
        for axis, (title, rows) in zip(axes, panels.items(), strict=False):
            _panel(axis, title, sorted(rows, key=_place), highest)
            axis.set_ylim(longest - 0.4, -0.6)
        for axis in axes[len(panels) :]:
            axis.remove()
        _legend(figure, results)

    figure = draw(paint, narrow=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=180, facecolor="white", metadata=_undated(path.suffix))
    return path


def _undated(suffix: str) -> dict[str, None]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix.lower(), {})


def _panel(axis: "Axes", title: str, rows: Sequence[BenchResult], highest: float) -> None:
    for place, row in enumerate(rows):
        role, hatch = KINDS[row.kind]
        # White on the colour: the hatch has to be seen.
        axis.barh(place, row.time_ratio, height=0.7, color=LIGHT[role], hatch=hatch, edgecolor="white", linewidth=0)
        axis.plot([row.time_ratio_low, row.time_ratio_high], [place] * 2, color=LIGHT["ink"], linewidth=1)
        axis.plot(row.theoretical_ratio, place, marker="D", markersize=4, color="white", markeredgecolor=LIGHT["ink"])
        right = max(row.time_ratio_high, row.theoretical_ratio)
        axis.annotate(
            f"{row.time_ratio:.2f}", (right, place), (5, 0), textcoords="offset points", va="center", fontsize=6.5
        )
    axis.axvline(1, color=LIGHT["ink"], linewidth=0.8)
    axis.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=6.5)
    axis.set_xlim(0, 1.15 * highest)
    axis.grid(visible=False, axis="y")
    axis.set_title(title)
    axis.set_xlabel("time, plain steps")


def _place(row: BenchResult) -> tuple[int, float]:
    """Kind by kind, the cheapest first."""
    return list(KINDS).index(row.kind), row.time_ratio


def _name(row: BenchResult) -> str:
    engine = {"finite_difference": ", difference"}.get(row.engine or "", "")
    share = "" if row.annotated == 1 else f", {row.annotated:.0%}"
    return f"{row.method}{engine}{share}"


def _legend(figure: "Figure", results: Sequence[BenchResult]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = {result.kind for result in results}
    handles: list[object] = [
        Patch(facecolor=LIGHT[role], hatch=hatch, edgecolor="white", label=kind)
        for kind, (role, hatch) in KINDS.items()
        if kind in present
    ]
    mark = Line2D([], [], linestyle="none", marker="D", markersize=4, label="arithmetic alone")
    mark.set(markerfacecolor="white", markeredgecolor=LIGHT["ink"])
    handles.append(mark)
    handles.append(Line2D([], [], color=LIGHT["ink"], linewidth=1, label="quartiles"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
