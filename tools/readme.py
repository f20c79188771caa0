"""Fills the README's tables from recorded results; no figure in it is typed by hand.

    hf-salguide demo --output_dir runs/demo
    hf-salguide bench --json runs/bench.json
    python tools/readme.py --demo runs/demo --bench runs/bench.json

The results are copied to docs/ and the tables are rendered from there; tests compare the two.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from hf_salguide.cli.methods import methods_table
from hf_salguide.studies.bench import BenchResult, bench_table
from hf_salguide.studies.demo import Run, demo_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def tables() -> dict[str, str]:
    """The README's tables by the name of their section, from the code and the results in docs/."""
    found = {"methods": methods_table()}
    if (DOCS / "demo.json").exists():
        found["demo"] = demo_table([Run(**run) for run in json.loads((DOCS / "demo.json").read_text())])
    if (DOCS / "bench.json").exists():
        results = json.loads((DOCS / "bench.json").read_text())["steps"]
        found["bench"] = bench_table([BenchResult(**result) for result in results])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="output folder of a demo")
    parser.add_argument("--bench", type=Path, help="JSON file of a benchmark")
    options = parser.parse_args()
    DOCS.mkdir(exist_ok=True)
    if options.demo:
        shutil.copy(options.demo / "results.json", DOCS / "demo.json")
        shutil.copy(options.demo / "panel.png", DOCS / "demo_panel.png")
    if options.bench:
        shutil.copy(options.bench, DOCS / "bench.json")
    readme = (ROOT / "README.md").read_text()
    for name, table in tables().items():
        pattern = rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- /{name} -->)"
        readme = re.sub(pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", readme, flags=re.DOTALL)
    (ROOT / "README.md").write_text(readme)


if __name__ == "__main__":
    main()
