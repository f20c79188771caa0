"""Fills the tables of README.md and docs/ from recorded results; no figure in them is typed by hand.

    hf-salguide demo --output_dir runs/demo
    hf-salguide demo --methods all --output_dir runs/demo_all
    hf-salguide bench --json runs/bench.json
    python tools/readme.py --demo runs/demo --demo_all runs/demo_all --bench runs/bench.json

The results are copied to docs/ and the tables are rendered from there; tests compare the two. `--demo_all` and
`--bench` take several, whose results are put together.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from hf_salguide.cli.methods import methods_table
from hf_salguide.studies.bench import BenchResult, bench_table, cost_table
from hf_salguide.studies.demo import Run, demo_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ("README.md", "docs/cost.md")


def recorded(name: str) -> Any:
    """A file of recorded results in docs/."""
    return json.loads((DOCS / name).read_text())


def tables() -> dict[str, str]:
    """The tables by the name of their section, from the code and the results in docs/."""
    steps = [BenchResult(**result) for result in recorded("bench.json")["steps"]]
    return {
        "methods": methods_table(),
        "demo": demo_table([Run(**run) for run in recorded("demo.json")]),
        "demo_all": demo_table([Run(**run) for run in recorded("demo_all.json")]),
        "cost": cost_table(steps),
        "steps": bench_table(steps),
    }


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
    options = parser.parse_args()
    if options.demo:
        shutil.copy(options.demo / "results.json", DOCS / "demo.json")
        shutil.copy(options.demo / "panel.png", DOCS / "demo_panel.png")
    if options.demo_all:
        runs = [run for folder in options.demo_all for run in json.loads((folder / "results.json").read_text())]
        (DOCS / "demo_all.json").write_text(json.dumps(runs, indent=2))
    if options.bench:
        parts = [json.loads(path.read_text()) for path in options.bench]
        steps = [step for part in parts for step in part["steps"]]
        loader = next((part["loader"] for part in parts if "loader" in part), {})
        (DOCS / "bench.json").write_text(json.dumps({"steps": steps, "loader": loader}, indent=2))
    found = tables()
    for page in PAGES:
        (ROOT / page).write_text(fill(page, found))


if __name__ == "__main__":
    main()
