"""Keeps model_cards/: small guided models that were trained here, their weights, their records and their cards.

    python tools/cards.py                          # renders every README.md from its record, and the index
    python tools/cards.py --check                  # changes nothing; exits with 1 if a page is out of date
    python tools/cards.py --train [NAME ...]       # trains the models of recipes.yaml anew, a few minutes each

A model is trained for each seed of recipes.yaml plainly, guided, and guided by the inverted saliency. The guided model
of the first seed is the one that is kept; what all of them gave on the splits is kept in seeds/NAME.json.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from card_training import GUIDED, INVERTED, PLAIN, SPLITS, Recipe, comparisons, figures, run

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
RECIPES = CARDS / "recipes.yaml"
SEEDS = CARDS / "seeds"
INDEX = CARDS / "README.md"
ARMS = (PLAIN, GUIDED, INVERTED)
IN_MEANS = {GUIDED: "with guidance", PLAIN: "without", INVERTED: "with the inverted saliency"}


def folder_of(recipe: Recipe) -> Path:
    """Where a model is published."""
    return CARDS / recipe.name


def runs_of(recipe: Recipe) -> Path:
    """Where the runs of all its seeds are recorded."""
    return SEEDS / f"{recipe.name}.json"


def recipes(path: Path = RECIPES) -> dict[str, Recipe]:
    """The recipes by name; each entry of `models` goes over what all have in common, and its limits come on top."""
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    common = content["common"]
    found = {}
    for name, own in content["models"].items():
        parts = {key: {**common.get(key, {}), **own.get(key, {})} for key in ("data", "training", "card")}
        if "limits" in own.get("card", {}):
            parts["card"]["limits"] = f"{own['card']['limits']}\n\n{common['card']['limits']}"
        found[name] = Recipe(
            name=name,
            backbone=own["backbone"],
            backbone_args=own.get("backbone_args", {}),
            guidance=own["guidance"],
            seeds=tuple(own.get("seeds", common["seeds"])),
            **parts,
        )
    return found


# ---- Training ----


def train(recipe: Recipe) -> None:
    """Trains a recipe's models, keeps the guided one of the first seed, and records what all of them gave."""
    from hf_salguide.data import decoy_digits

    dataset = decoy_digits(**recipe.data)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in recipe.seeds:
            kept: dict[str, Any] = {}
            for arm in (PLAIN, INVERTED, GUIDED):  # the card of the guided one shows the two others
                published = seed == recipe.seeds[0]
                beside = comparisons(Path(folder), kept, dataset["ood"]) if published and arm == GUIDED else {}
                trainer, seconds = run(recipe, arm, seed, dataset, Path(folder) / arm, beside)
                kept[arm] = trainer.model
                runs.append({"training": arm, "seed": seed, **figures(trainer)})
                print(f"{recipe.name}, {arm}, seed {seed}: {summary(runs[-1])}, {seconds:.0f} s", flush=True)
                if published:
                    trainer.save_model()
        write_runs(recipe, runs)
        if folder_of(recipe).is_dir():
            shutil.rmtree(folder_of(recipe))
        shutil.copytree(Path(folder) / GUIDED, folder_of(recipe))


def summary(entry: Mapping[str, Any]) -> str:
    """A run in one line."""
    shares = [f"{split} {entry[split]['correct'] / entry[split]['pictures']:.3f}" for split in SPLITS]
    return ", ".join(shares)


# ---- Records and pages ----


def write_runs(recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> None:
    """Writes what every run of a recipe gave, in the order of the seeds, plain training first."""
    ordered = sorted(runs, key=lambda entry: (recipe.seeds.index(entry["seed"]), ARMS.index(entry["training"])))
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in ordered)
    SEEDS.mkdir(parents=True, exist_ok=True)
    runs_of(recipe).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def told(recipe: Recipe) -> Any:
    """The record of a model, with the texts of recipes.yaml and what the runs of all seeds say; `None` without one."""
    from hf_salguide.hub.record import CardRecord

    record = CardRecord.read(folder_of(recipe))
    if record is None:
        return None
    runs = json.loads(runs_of(recipe).read_text(encoding="utf-8"))
    record.intended_use = recipe.card["intended_use"].strip()
    record.out_of_scope = recipe.card["out_of_scope"].strip()
    record.data.name, record.data.url = recipe.card["dataset"], recipe.card.get("dataset_url")
    record.data.description = recipe.card["dataset_description"].strip()
    record.data.license, record.data.saliency_source = recipe.card["dataset_license"], recipe.card["saliency_source"]
    record.limits = f"{recipe.card['limits'].strip()}\n\n{over_seeds(recipe, runs)}"
    return record


def over_seeds(recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> str:
    """What the runs of all seeds say about chance, in sentences."""
    from hf_salguide.studies.comparison.words import listed, number

    seeds = list(map(str, recipe.seeds))
    if len(seeds) == 1:
        return (
            "The same recipe was trained plainly and with the inverted saliency as well, with this seed and no other: "
            "what differs between the three may be chance."
        )
    means = [f"{number(mean_accuracy(runs, arm, 'ood'))} {words}" for arm, words in IN_MEANS.items()]
    compared = []
    for other in (PLAIN, INVERTED):
        test, ood = (with_spread(differences(runs, other, split)) for split in ("test", "ood"))
        compared.append(f"guided minus {other} is {ood} on `ood` and {test} on `test`")
    return (
        f"The same recipe was trained with seeds {listed(seeds)}, each also plainly and with the inverted saliency; "
        f"which of them is published, {seeds[0]}, was fixed beforehand. Mean accuracy on `ood` is {listed(means)}. "
        f"By the paired differences of accuracy, with Student's 95 % intervals over the seeds, {'; '.join(compared)}. "
        f"{verdict(differences(runs, PLAIN, 'ood'))}"
    )


def verdict(difference: tuple[float, float, float]) -> str:
    """What the difference to plain training out of distribution says."""
    _, low, high = difference
    if low > 0:
        return "Out of distribution, guidance helped by more than the seeds differ."
    if high < 0:
        return "Out of distribution, guidance did harm, by more than the seeds differ."
    return "With these few seeds, no help out of distribution is shown: the interval of the difference includes 0."


def accuracies(runs: Sequence[Mapping[str, Any]], arm: str, split: str) -> list[float]:
    """Of the runs of one way of training, in the order of their seeds."""
    own = sorted((entry for entry in runs if entry["training"] == arm), key=lambda entry: entry["seed"])
    return [entry[split]["correct"] / entry[split]["pictures"] for entry in own]


def mean_accuracy(runs: Sequence[Mapping[str, Any]], arm: str, split: str) -> float:
    values = accuracies(runs, arm, split)
    return sum(values) / len(values)


def differences(runs: Sequence[Mapping[str, Any]], other: str, split: str) -> tuple[float, float, float]:
    """Guided minus another way of training: mean over the seeds, and the ends of its 95 % interval."""
    from hf_salguide.studies.comparison.statistics import paired_difference

    return paired_difference(accuracies(runs, GUIDED, split), accuracies(runs, other, split))


def with_spread(figures: tuple[float, float, float]) -> str:
    from hf_salguide.studies.comparison.words import with_interval

    return with_interval(*figures, signed=True)


def index(records: Mapping[str, Any]) -> str:
    """The page of model_cards/, from the records by their names."""
    lines = [
        "| model | method | backbone | test: plain, guided, inverted | ood: plain, guided, inverted | "
        "ood over the seeds: guided − plain (95 % CI), seeds | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        recipe = recipes()[name]
        runs = json.loads(runs_of(recipe).read_text(encoding="utf-8"))
        size = (folder_of(recipe) / "model.safetensors").stat().st_size / 1e6
        cells = [
            f"[{name}]({name}/README.md)",
            ", ".join(method_words(method) for method in record.training.methods),
            f"{record.model.architecture} ({record.model.parameters / 1e6:.2f} M)",
            *(beside(record, split) for split in ("test", "ood")),
            f"{with_spread(differences(runs, PLAIN, 'ood'))}, {len(recipe.seeds)}",
            f"{size:.1f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return PAGE.format(table="\n".join(lines), first=next(iter(records)))


def method_words(method: Any) -> str:
    """A method, its weight, and whether its formula is not public."""
    return f"`{method.name}` × {method.weight:g}{', reconstructed' if method.reconstructed else ''}"


PAGE = """# Guided models that were trained here

Small classifiers of *decoy digits*, the benchmark that `hf_salguide.data.decoy_digits` generates: in `train`, \
`validation` and `test` a grey patch in a corner gives the class away, in `ood` its brightness is random. Each folder \
is what `SaliencyTrainer.save_model` writes and `push_to_hub` publishes: weights, configuration, training arguments, \
the record `card.json`, and the card that is rendered from it.

{table}

Accuracy; the models of one row differ in their guidance alone, and have the same seed, initial weights and order of \
pictures. The last but one column is over all seeds of [recipes.yaml](recipes.yaml), each of which is in \
[seeds/](seeds). The interval is Student's, for so few seeds; the cards have bootstrap intervals over pictures.

```python
from hf_salguide import load_guided, saliency_maps
from hf_salguide.data import decoy_digits

guided = load_guided("model_cards/{first}")
picture = decoy_digits(size=48)["ood"][0]["image"]
pixels = guided.processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
maps = saliency_maps(guided.model, pixels, feature_layer=guided.guidance["feature_layer"])
```

`make cards` renders the pages from the records; `python tools/cards.py --train NAME` trains a model anew. The digits \
are the 1,797 of scikit-learn's `load_digits`, from E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten \
Digits*, UCI Machine Learning Repository, CC BY 4.0, [10.24432/C50P49](https://doi.org/10.24432/C50P49); the weights \
are under Apache-2.0.
"""


def beside(record: Any, split: str) -> str:
    """The accuracies of the plain, the guided and the inverted model on a split."""
    cells = []
    for results in (record.baseline.results, record.results, record.inverted.results):
        result = next(result for result in results if result.name == split)
        cells.append(f"{result.metrics['accuracy'].value:.3f}")
    return ", ".join([cells[0], f"**{cells[1]}**", cells[2]])


def pages() -> dict[Path, str]:
    """Every record and page, as it is to be, by its path."""
    from hf_salguide.hub.card import render_card

    records = {name: record for name, recipe in recipes().items() if (record := told(recipe)) is not None}
    found = {INDEX: index(records)}
    with tempfile.TemporaryDirectory() as folder:
        for name, record in records.items():
            found[CARDS / name / "card.json"] = record.write(folder).read_text(encoding="utf-8")
            found[CARDS / name / "README.md"] = render_card(record)
    return found


def outdated() -> dict[Path, str]:
    """What differs from what is recorded, by its path."""
    return {
        path: text for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def drift(recipe: Recipe) -> list[str]:
    """Where a recipe is no longer the one that its model was trained by."""
    from hf_salguide.hub.record import CardRecord

    record = CardRecord.read(folder_of(recipe))
    if record is None:
        return [f"{recipe.name} has no model: run `python tools/cards.py --train {recipe.name}`"]
    training = record.training
    methods = {method.name: method.weight for method in training.methods}
    trained = {**training.hyperparameters, "task_weight": training.task_weight}
    wanted = {**recipe.training, recipe.guidance["guidance"]: recipe.guidance["guidance_weight"]}
    found = {**{name: trained.get(name) for name in recipe.training}, **methods}
    if training.seed != recipe.seeds[0]:
        wanted, found = {**wanted, "seed": recipe.seeds[0]}, {**found, "seed": training.seed}
    return [
        f"{recipe.name}: recipes.yaml says {name}={wanted.get(name)}, and the model was trained with "
        f"{found.get(name)}; run `python tools/cards.py --train {recipe.name}`"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Exit with 1 if a page is out of date.")
    parser.add_argument("--train", nargs="*", metavar="NAME", help="Train these models anew, or all.")
    args = parser.parse_args()
    if args.train is not None:
        known = recipes()
        unknown = [name for name in args.train if name not in known]
        if unknown:
            parser.error(f"--train {unknown[0]}: there are {', '.join(known)}.")
        for name in args.train or known:
            train(known[name])
    late = outdated()
    for path, text in late.items():
        print(f"{path.relative_to(ROOT)} {'is out of date: run `make cards`' if args.check else 'written'}")
        if not args.check:
            path.write_text(text, encoding="utf-8", newline="\n")
    other = [sentence for name, recipe in recipes().items() for sentence in drift(recipe)]
    for sentence in other:
        print(sentence)
    return int(bool(other) or (args.check and bool(late)))


if __name__ == "__main__":
    sys.exit(main())
