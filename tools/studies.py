"""Fills examples/studies/NAME from the folder of a finished comparison; no figure in it is typed by hand.

    hf-salguide compare examples/studies/skin/compare.yaml --data FOLDER --jobs 2
    python tools/studies.py runs/studies/skin

`results.csv`, `analysis.json`, `conclusions.txt` and two plots are copied, the table and the conclusions are put
between the marks of the folder's README.md, and a line for each study into the README of the repository.
"""

import argparse
import csv
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

from hf_salguide.studies.comparison.records import Arm, load_study
from hf_salguide.studies.comparison.words import number, p_value, with_interval
from hf_salguide.studies.report.publish import publish

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "examples" / "studies"
PLOTS = {
    "differences-0-175mm.pdf": "differences.pdf",
    "alignment-0-175mm.pdf": "alignment.pdf",
}
CAPTIONS = {
    "differences.pdf": "Differences to plain training, one point a seed, with their intervals",
    "alignment.pdf": "Alignment against AUROC, one point a run",
}


def record(output: Path) -> Path:
    """Publishes a finished comparison, and fills its folder in examples/."""
    study = load_study(output)
    published = publish(study, output)
    folder = STUDIES / study.settings["name"]
    for name in ("results.csv", "analysis.json", "conclusions.txt"):
        shutil.copy(output / name, folder / name)
    for plot, name in PLOTS.items():
        shutil.copy(output / "plots" / plot, folder / name)
    seconds = sorted(run.seconds for run in study.runs if run.arm.is_plain)
    parts = {
        "setting": setting(study.settings, seconds[len(seconds) // 2]),
        "table": published.table.strip(),
        "conclusion": f"> {published.conclusion}",
        "maps": maps(folder),
        "plots": "\n".join(f"* [{CAPTIONS[name]}]({name})" for name in PLOTS.values()),
    }
    page = folder / "README.md"
    fill(page, parts)
    return page


def maps(folder: Path) -> str:
    """Where the maps of each way of training lie, from the recorded runs: means over the seeds."""
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [f"{split}_{kind}energy_inside" for split in ("test", "ood") for kind in ("", "difference_")]
    lines = [
        "| training | class map: test | difference map: test | class map: ood | difference map: ood |",
        "|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(Arm(row["method"], row["saliency"]) for row in rows):
        own = [row for row in rows if (row["method"], row["saliency"]) == (arm.method, arm.saliency)]
        means = [number(statistics.fmean(float(row[column]) for row in own)) for column in columns]
        lines.append(f"| {arm.name} | {' | '.join(means)} |")
    return "\n".join(lines)


def fill(page: Path, parts: dict[str, str]) -> None:
    """Puts each part between its marks."""
    text = page.read_text()
    for name, content in parts.items():
        mark = re.compile(rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not mark.search(text):
            raise ValueError(f"{page} has no marks <!-- {name} --> and <!-- /{name} -->.")
        text = mark.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    page.write_text(text)


def summary() -> str:
    """A line for each recorded study, for the README of the repository."""
    lines = [
        "| data | plain: test, ood AUROC | largest difference to plain, ood | cyborg minus its inverted control, "
        "ood | alignment and ood AUROC, r over runs |",
        "|---|---|---|---|---|",
    ]
    for folder in sorted(path.parent for path in STUDIES.glob("*/analysis.json")):
        analysis = json.loads((folder / "analysis.json").read_text())
        out = [row for row in analysis["comparisons"] if row["split"] == "out"]
        plain = {row["split"]: row["mean"] for row in analysis["comparisons"] if row["arm"]["method"] == "none"}
        guided = [row for row in out if row["arm"]["method"] != "none" and row["arm"]["saliency"] == "human"]
        best = max((row for row in guided if row["difference"] is not None), key=lambda row: row["difference"])
        control = next(row for row in analysis["controls"] if row["split"] == "out")
        found = next(
            row for row in analysis["correlations"] if row["split"] == "out" and row["alignment"] == "energy_inside"
        )
        largest = with_interval(best["difference"], best["difference_low"], best["difference_high"], signed=True)
        cells = [
            f"[{folder.name}](examples/studies/{folder.name}/README.md)",
            f"{plain['in']:.3f}, {plain['out']:.3f}",
            f"`{best['arm']['method']}` {largest}, p (Holm) {p_value(best['p_holm'])}",
            f"{with_interval(control['difference'], control['low'], control['high'], signed=True)}, "
            f"p {p_value(control['p_holm'])}",
            with_interval(found["pearson"], found["low"], found["high"], signed=True),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
    fill(ROOT / "README.md", {"studies": summary()})


if __name__ == "__main__":
    main()
