"""The report of a comparison: one HTML file that needs nothing else, and its table in Markdown."""

import base64
import io
from collections.abc import Iterable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..comparison.conclusions import conclude
from ..comparison.paths import paths_of, without_paths
from ..comparison.records import Study
from ..comparison.words import metric_name
from . import text as words
from .inline_plots import report_plots
from .plot_rows import SPLITS, conditions, splits_of
from .plot_style import DARK, LIGHT
from .prose import how_it_was_made, how_to_read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison.findings import Analysis

    Picture = Figure | tuple[str, bytes]

PANEL_WIDTH = 1400  # pixels: sharp on a page of 58 rem, and small
_QUALITY = 80


def write_report(
    study: Study, analysis: "Analysis", path: str | Path, pictures: Iterable["Picture"] | None = None
) -> Path:
    """
    Writes the report of a comparison as one HTML file, the same bytes for the same figures.

    It loads nothing, runs no script and names no folder of the machine. Plots are inline SVG, panels are embedded.

    Args:
        study ([`Study`]): the settings and the runs.
        analysis ([`Analysis`]): their statistics.
        path (`str` or `Path`): the file; its folder is made if it is not there.
        pictures (iterable, *optional*): panels of maps to embed, in their order: pairs of a title and the bytes of a
            PNG, or matplotlib figures, whose label is the title. They may show patients, so that there are none
            unless they are given.

    Returns:
        `Path`: the file.

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_html(study, analysis, pictures), encoding="utf-8", newline="\n")
    return path


def report_html(study: Study, analysis: "Analysis", pictures: Iterable["Picture"] | None = None) -> str:
    """The text of the file that [`write_report`] writes."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource("report.html.j2"))
    return template.render(**_content(study, analysis), panels=[_panel(picture) for picture in pictures or ()])


def report_table(analysis: "Analysis") -> str:
    """
    The table of the report in Markdown: for each backbone, annotated fraction and test set, plain training, the
    methods, and the controls.

    Args:
        analysis ([`Analysis`]): the statistics of a comparison.

    Returns:
        `str`, with the same figures as the report.
    """
    parts, columns = [], words.table_columns(analysis)
    known = [row.backbone for row in analysis.comparisons] + [str(run.folder) for run in analysis.failures]
    found = conditions(analysis)
    for condition in found:
        for split in splits_of(analysis):
            heading = SPLITS[split] + (f", {words.condition_name(condition)}" if len(found) > 1 else "")
            rows = [row for each in (False, True) for row in words.table_rows(analysis, condition, split, each)]
            cells = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
            table = ["| " + " | ".join(map(words.markdown_cell, line)) + " |" for line in cells]
            parts.append(f"**{words.markdown_cell(without_paths(heading, known))}**\n\n" + "\n".join(table))
    parts += (
        ["\n".join(f"* {words.markdown_cell(without_paths(note, known))}" for note in analysis.notes)]
        if analysis.notes
        else []
    )
    return "\n\n".join(parts) + "\n"


def _content(study: Study, analysis: "Analysis") -> dict[str, Any]:
    settings, found = study.settings, conditions(analysis)
    metric = metric_name(analysis.metric)
    plots = report_plots(study, analysis)
    forests = {plot["name"]: plot for plot in plots["differences"]}
    clean = partial(without_paths, known=paths_of(study))
    return {
        "css": _css(),
        "title": clean(str(settings.get("name", "comparison"))),
        "subtitle": clean(_subtitle(study)),
        "metric": metric[:1].upper() + metric[1:],
        "conclusions": [clean(part) for part in conclude(analysis, study).split("\n\n") if part.strip()],
        "missing": study.missing,
        "columns": words.table_columns(analysis),
        "conditions": [
            _condition(study, analysis, condition, forests.get(f"differences-{index}"))
            for index, condition in enumerate(found)
        ],
        "notes": [clean(note) for note in analysis.notes],
        "alignment": plots["alignment"],
        "correlations": [clean(words.correlation_words(each, analysis.metric)) for each in analysis.correlations],
        "curves": plots["fractions"],
        "controls": [
            {column: clean(cell) for column, cell in words.control_row(control, len(found) > 1).items()}
            for control in analysis.controls
        ],
        "failures": words.failure_rows(study, analysis),
        "made": [clean(part) for part in how_it_was_made(study, analysis)],
        "data": words.data_rows(settings),
        "hyperparameters": words.hyperparameter_rows(study),
        "settings": words.settings_table(study),
        "reading": how_to_read(analysis),
    }


def _condition(
    study: Study, analysis: "Analysis", condition: tuple[str, float], plot: dict[str, Any] | None
) -> dict[str, Any]:
    """The tables of a backbone and an annotated fraction, one a test set, and their plot."""
    tables = []
    for split in splits_of(analysis):
        groups = [
            ("", words.table_rows(analysis, condition, split, controls=False)),
            ("Controls", words.table_rows(analysis, condition, split, controls=True)),
        ]
        caption = f"{SPLITS[split]} test set (“{study.settings['splits'][split]}”): {metric_name(analysis.metric)}"
        tables.append({"caption": caption, "groups": groups})
    name = without_paths(words.condition_name(condition), paths_of(study))
    return {"name": name, "tables": tables, "plot": plot}


def _subtitle(study: Study) -> str:
    settings = study.settings
    backbones = ", ".join(settings.get("backbones") or dict.fromkeys(run.backbone for run in study.runs))
    size = settings.get("image_size")
    pixels = f" at {size} pixels" if isinstance(size, int) else ""
    runs = len({run.folder for run in study.runs})
    return f"{runs} runs of {backbones}{pixels}."


def _panel(picture: "Picture") -> dict[str, Any]:
    """A panel as a small WebP in a data: address."""
    from PIL import Image

    if isinstance(picture, tuple):
        title, content = picture
    else:
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=130, facecolor="white")
        title, content = str(picture.get_label() or picture.get_suptitle() or "Maps"), buffer.getvalue()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.thumbnail((PANEL_WIDTH, 20 * PANEL_WIDTH))
    packed = io.BytesIO()
    image.save(packed, format="WEBP", quality=_QUALITY, method=4)
    source = "data:image/webp;base64," + base64.b64encode(packed.getvalue()).decode()
    return {"title": title, "source": source, "width": image.width, "height": image.height}


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _css() -> str:
    from markupsafe import Markup

    themes = ["\n".join(f"  --{role}: {colour};" for role, colour in theme.items()) for theme in (LIGHT, DARK)]
    return Markup(_resource("report.css").replace("LIGHT_THEME", themes[0]).replace("DARK_THEME", themes[1]))
