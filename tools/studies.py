"""Fills examples/studies/NAME from the folder of a finished comparison; no figure in it is typed by hand.

    hf-salguide compare examples/studies/skin/compare.yaml --data FOLDER --jobs 2
    python tools/studies.py runs/studies/skin

`results.csv` is copied, the table and the conclusions are put between the marks of README.md, and a plot beside it.
What stands below the last mark stays.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from hf_salguide.studies.comparison.publish import publish
from hf_salguide.studies.comparison.records import load_study

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "examples" / "studies"
PLOTS = {
    "differences-0-175mm.png": "differences.png",
    "alignment-0-175mm.png": "alignment.png",
}
CAPTIONS = {
    "differences.png": "Differences to plain training, one point a seed, with their intervals",
    "alignment.png": "Alignment against AUROC, one point a run",
}


def record(output: Path) -> Path:
    """Publishes a finished comparison, and fills its folder in examples/."""
    study = load_study(output)
    published = publish(study, output)
    folder = STUDIES / study.settings["name"]
    shutil.copy(output / "results.csv", folder / "results.csv")
    for plot, name in PLOTS.items():
        shutil.copy(output / "plots" / plot, folder / name)
    seconds = sorted(run.seconds for run in study.runs if run.arm.is_plain)
    parts = {
        "setting": setting(study.settings, seconds[len(seconds) // 2]),
        "table": published.table.strip(),
        "conclusion": f"> {published.conclusion}",
        "plots": "\n\n".join(f"![{CAPTIONS[name]}]({name})" for name in PLOTS.values()),
    }
    page = folder / "README.md"
    text = page.read_text()
    for name, content in parts.items():
        mark = re.compile(rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not mark.search(text):
            raise ValueError(f"{page} has no marks <!-- {name} --> and <!-- /{name} -->.")
        text = mark.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    page.write_text(text)
    return page


def setting(settings: dict[str, Any], seconds: float) -> str:
    """What was run, as a list."""
    training, splits = settings["training"], []
    for name, facts in settings["rows"].items():
        classes = ", ".join(f"{count} {label}" for label, count in facts["classes"].items())
        splits.append(f"{name} {facts['pictures']} pictures ({classes}; {facts['annotated']} annotated)")
    backbones = "; ".join(
        name + (f" with {json.dumps(options)}" if options else "") for name, options in settings["backbones"].items()
    )
    weights = "pretrained" if settings["pretrained"] else "random"
    seeds = ", ".join(map(str, settings["seeds"]))
    lines = [
        f"Data: {'; '.join(splits)}.",
        f"Backbone: {backbones}, {weights} weights, {settings['image_size']} px; {training['num_train_epochs']:g} "
        f"epochs, batch {training['per_device_train_batch_size']}, learning rate {training['learning_rate']:g}; the "
        f"best epoch by validation {settings['metric'].upper()}.",
        f"Budget: {settings['budget']}",
        f"Seeds: {seeds}. A plain run took {seconds:.0f} s (median; two runs at a time, one core each, beside other "
        "work).",
        f"Versions: {', '.join(f'{name} {version}' for name, version in settings['versions'].items())}.",
    ]
    return "\n".join(f"* {line}" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, nargs="+", help="Folders of finished comparisons.")
    for output in parser.parse_args().output:
        print(record(output))


if __name__ == "__main__":
    main()
