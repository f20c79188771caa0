"""How the plots of a comparison look: colours and shapes, inline SVG in the page's theme, files for papers."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..comparison.records import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MILLIMETRE = 1 / 25.4
COLUMN, PAGE = 85 * MILLIMETRE, 175 * MILLIMETRE  # widths of a journal's column and page, inches
FONTS = ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"]

# Each colour of the light theme occurs once, so that the SVG's can be turned into the page's variables. The hues are
# those of Okabe and Ito, darkened (light) or lightened (dark) to a contrast of 4.5 to the page.
LIGHT = {
    "ink": "#1b1d1f",
    "muted": "#5c6269",
    "grid": "#dfe3e6",
    "band": "#e9ecee",
    "paper": "#ffffff",
    "plain": "#3a3f44",
    "maps": "#0069a8",
    "divisive": "#b84a00",
    "gradients": "#00755a",
    "embeddings": "#a33f7b",
    "inputs": "#856000",
    "other": "#6b5bc2",
}
DARK = {
    "ink": "#e8eaec",
    "muted": "#a4abb2",
    "grid": "#33383d",
    "band": "#2a2f33",
    "paper": "#16191b",
    "plain": "#c9ced3",
    "maps": "#56b4e9",
    "divisive": "#ff9457",
    "gradients": "#2fc79f",
    "embeddings": "#e79bc6",
    "inputs": "#e6b422",
    "other": "#b3a8f5",
}


@dataclass(frozen=True)
class Family:
    """A family of methods and its marker: colour and shape say the same thing twice."""

    key: str
    title: str
    marker: str
    members: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """What the marker's size is multiplied by, for shapes to look as large as each other."""
        return {"D": 0.84, "^": 1.2, "v": 1.2, "h": 1.1, "p": 1.1}.get(self.marker, 1.0)

    @property
    def rise(self) -> float:
        """How far the middle of the shape is above that of its box, as a share of its size."""
        return {"^": -0.14, "v": 0.14}.get(self.marker, 0.0)


FAMILIES = (
    Family("plain", "plain training", "o", ("none",)),
    Family("maps", "map matching", "s", ("cyborg", "energy", "cam_entropy", "map_guidance")),
    Family("divisive", "divisive", "D", ("divisive_difference", "divisive_complement", "divisive_divergence")),
    Family("gradients", "input gradients", "^", ("gradmask", "rrr")),
    Family("embeddings", "embeddings", "h", ("actdiff", "actdiff_adversarial", "sage")),
    Family("inputs", "changed inputs", "v", ("masked_input", "shuffled_input", "mask_everything")),
    Family("other", "other methods", "p"),
)


def family_of(arm: Arm) -> Family:
    """The family that an arm's method belongs to; the last one for a method that the package does not know."""
    return next((family for family in FAMILIES if arm.method in family.members), FAMILIES[-1])


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "hf_salguide",
        "pdf.fonttype": 42,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.sans-serif": FONTS,
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": LIGHT["ink"],
        "axes.labelsize": 8,
        "axes.labelcolor": LIGHT["ink"],
        "axes.edgecolor": LIGHT["muted"],
        "axes.facecolor": "none",
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": LIGHT["grid"],
        "grid.linewidth": 0.5,
        "xtick.color": LIGHT["muted"],
        "ytick.color": LIGHT["muted"],
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "text.color": LIGHT["ink"],
        "legend.frameon": False,
        "legend.fontsize": 7.5,
        "figure.facecolor": "none",
    }
    with matplotlib.rc_context(settings):
        yield


def draw(painter: Callable[["Figure", bool], None], narrow: bool) -> "Figure":
    """
    Draws a figure of a journal's column (85 mm) or page (175 mm).

    Args:
        painter (callable): takes an empty figure and `narrow`, sets its height and draws.
        narrow (`bool`): whether it is for a column, or for a phone, which is as wide.

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The report's plots need matplotlib: pip install 'hf_salguide[plots]'.") from error
    with _style():
        figure = Figure(figsize=(COLUMN if narrow else PAGE, 3))
        figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.06)
        painter(figure, narrow)
        figure.draw_without_rendering()  # ticks and texts take their style and place here, while it is set
        figure.set_layout_engine("none")
    return figure


def inline_svg(figure: "Figure", name: str, words: str) -> str:
    """
    A figure as an SVG element for an HTML page: text stays text, colours are the page's variables.

    Args:
        figure (`matplotlib.figure.Figure`): drawn by [`draw`].
        name (`str`): unique in the page; every id begins with it.
        words (`str`): what the figure shows, for those who do not see it.

    Returns:
        `str`: the same for the same figure; without date, address, or style that could leak into the page.
    """
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ((?:\w+ )*)([\d.]+)px [^;\"]*", r"font: \1\2px var(--sans, sans-serif)", text)
    for role, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{role}, {colour})")
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg class="plot" {box.group() if box else ""} role="img" aria-label="{_attribute(words)}">'
    return opening + text[text.index(">") + 1 :].replace("xlink:href", "href").rstrip() + "\n"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def save_figure(figure: "Figure", path: Path) -> list[Path]:
    """Writes a figure as PDF (fonts embedded, no date) and as PNG (300 dpi, white ground); gives the paths back."""
    with _style():
        pdf, png = path.with_suffix(".pdf"), path.with_suffix(".png")
        figure.savefig(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
        figure.savefig(png, dpi=300, facecolor="white", metadata={"Software": None})
    return [pdf, png]
