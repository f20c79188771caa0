"""Fills the tables of README.md and docs/ from recorded results; no figure in them is typed by hand.

    hf-salguide demo --output_dir runs/demo
    hf-salguide demo --methods all --output_dir runs/demo_all
    python tools/bench.py --output_dir runs/bench
    hf-salguide backbones --train true --processes 2 --json runs/backbones.json
    python tools/readme.py --demo runs/demo --demo_all runs/demo_all --bench runs/bench/*.json \
        --backbones runs/backbones.json

The results are copied to docs/ and the tables are rendered from there; tests compare the two. `--demo_all` and
`--bench` take several, whose results are put together.
"""

import argparse
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from hf_salguide.cli.methods import methods_table
from hf_salguide.studies.bench.bounds import Figures, bounds_table, shortfalls
from hf_salguide.studies.bench.loader import loader_table
from hf_salguide.studies.bench.plot import save_plot
from hf_salguide.studies.bench.steps import BenchResult
from hf_salguide.studies.bench.tables import (
    bench_table,
    cost_table,
    extraction_table,
    machine_line,
    scaling_table,
    startup_table,
)
from hf_salguide.studies.demo import Run, demo_table
from hf_salguide.studies.survey import Row, survey_counts, survey_summary, survey_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README_METHODS = ("cyborg", "energy", "gradmask(at=features)", "actdiff", "sage", "gradmask", "rrr")
PAGES = ("README.md", "docs/cost.md", "docs/input.md", "docs/backbones.md")


def recorded(name: str) -> Any:
    """A file of recorded results in docs/."""
    return json.loads((DOCS / name).read_text())


def tables() -> dict[str, str]:
    """The tables by the name of their section, from the code and the results in docs/."""
    bench = recorded("bench.json")
    costs = Figures.read(bench)
    survey = recorded("backbones.json")
    rows = [Row(**row) for row in survey["rows"]]
    return {
        "methods": methods_table(),
        "demo": demo_table([Run(**run) for run in recorded("demo.json")]),
        "demo_all": demo_table([Run(**run) for run in recorded("demo_all.json")]),
        "cost": cost_table([result for result in costs.steps if _in_readme(result, costs.steps[0])]),
        "machine": machine_line(bench["machine"]),
        "bounds": bounds_table(costs),
        "shortfalls": shortfalls(costs),
        "costs": cost_table(costs.steps),
        "steps": bench_table(costs.steps),
        "extraction": extraction_table(costs.extraction),
        "startup": startup_table(costs.startup),
        "scaling": scaling_table(costs.scaling),
        "loader": loader_table(costs.loader),
        "survey": f"{measured_with(survey['versions'])}\n\n{survey_summary(rows)}",
        "zoo": survey_counts(rows),
        "timm": survey_table([row for row in rows if row.library == "timm"]),
        "transformers": survey_table([row for row in rows if row.library == "transformers"]),
    }


def _in_readme(result: BenchResult, first: BenchResult) -> bool:
    """The methods that stand for the others, at the first of the sizes."""
    sized = (result.image_size, result.batch_size) == (first.image_size, first.batch_size)
    return sized and result.method in README_METHODS


def put_together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """
    The results of several benchmarks in one.

    Raises:
        ValueError: if they were measured with other versions, or on other machines.
    """
    content: dict[str, Any] = {"machine": {}}
    for part in parts:
        for name, value in part["machine"].items():
            if content["machine"].setdefault(name, value) != value:
                raise ValueError(f"{name}: {value} in one file, {content['machine'][name]} in another; measure anew.")
        for name, results in part.items():
            if name != "machine":
                content.setdefault(name, []).extend(results)
    return content


def measured_with(versions: dict[str, str]) -> str:
    """The libraries and the hardware of a survey, in a sentence."""
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "cpu_cores")
    return f"Measured with {libraries}, random weights, on a machine with {versions['cpu_cores']} CPU cores."


def fill(page: str, found: dict[str, str]) -> str:
    """A page with its tables filled in."""
    text = (ROOT / page).read_text()
    for name, table in found.items():
        pattern = rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="output folder of a demo")
    parser.add_argument("--demo_all", type=Path, nargs="+", help="output folders of demos with --methods all")
    parser.add_argument("--bench", type=Path, nargs="+", help="JSON files of benchmarks")
    parser.add_argument("--backbones", type=Path, help="JSON file of a survey of backbones")
    options = parser.parse_args()
    if options.demo:
        shutil.copy(options.demo / "results.json", DOCS / "demo.json")
        shutil.copy(options.demo / "panel.png", DOCS / "demo_panel.png")
    if options.demo_all:
        runs = [run for folder in options.demo_all for run in json.loads((folder / "results.json").read_text())]
        (DOCS / "demo_all.json").write_text(json.dumps(runs, indent=2))
    if options.bench:
        content = put_together([json.loads(path.read_text()) for path in options.bench])
        (DOCS / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
        steps = [result for result in Figures.read(content).steps if result.annotated == 1]
        counts = Counter((result.image_size, result.batch_size) for result in steps)
        most = counts.most_common(1)[0][0]
        save_plot([result for result in steps if (result.image_size, result.batch_size) == most], DOCS / "bench.png")
    if options.backbones:
        (DOCS / "backbones.json").write_text(options.backbones.read_text())
    found = tables()
    for page in PAGES:
        (ROOT / page).write_text(fill(page, found))


if __name__ == "__main__":
    main()
