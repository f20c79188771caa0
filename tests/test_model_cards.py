"""model_cards/: the pages are those of their records, and the models load and give the recorded figures."""

import json
import re
import runpy
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_salguide import load_guided, saliency_maps
from hf_salguide.data import decoy_digits
from hf_salguide.hub.record import CardRecord
from hf_salguide.hub.results import digest, split_result
from hf_salguide.studies.predictions import predict

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
sys.path.insert(0, str(ROOT / "tools"))
import cards  # noqa: E402

RECIPES = cards.recipes()
MODELS = sorted(path.parent.name for path in CARDS.glob("*/config.json"))
FOLDER_BYTES, ALL_BYTES = 2_000_000, 8_000_000
PUBLISHED = {"config.json", "model.safetensors", "training_args.json", "card.json", "README.md", "card_panel.png"}
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])")

every_model = pytest.mark.parametrize("name", MODELS)


@cache
def record(name):
    return CardRecord.read(CARDS / name)


@cache
def digits(name):
    return decoy_digits(**RECIPES[name].data)


def pixels_of(name, count):
    """The first pictures out of distribution as the saved processor prepares them, `(B, C, H, W)`."""
    processor = load_guided(CARDS / name).processor
    pictures = [row["image"].convert("RGB") for row in digits(name)["ood"].select(range(count))]
    return processor(pictures, return_tensors="pt")["pixel_values"]


def numbers_of(value):
    """Every number of a record, wherever it stands."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for entry in value for number in numbers_of(entry)]
    if isinstance(value, str):
        return [float(text.replace(",", "").replace("−", "-")) for text in NUMBER.findall(value)]
    return [] if value is None or isinstance(value, bool) else [float(value)]


def tables_of(text):
    """The rows of a page's tables as lists of cells, the headings left out."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in block.splitlines()[2:]:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def is_among(text, known):
    """Whether a printed number is one of those that are known, at the decimals that it is printed with."""
    value = float(text.replace(",", "").replace("−", "-"))
    decimals = len(text.partition(".")[2])
    return any(abs(value - scale * number) <= 0.5001 * 10**-decimals for number in known for scale in (1, 100))


def test_there_is_a_model_for_every_recipe():
    assert sorted(RECIPES) == MODELS
    assert len(MODELS) >= 3
    assert len({record(name).training.methods[0].name for name in MODELS}) >= 3
    assert {record(name).model.library for name in MODELS} == {"timm", "transformers"}


def test_every_page_is_what_its_record_gives():
    assert [str(path.relative_to(ROOT)) for path in cards.outdated()] == []


def test_a_page_that_is_out_of_date_is_named_and_rendered_again(tmp_path, monkeypatch, capsys):
    name = MODELS[0]
    stale = CARDS / name / "README.md"
    monkeypatch.setattr(cards, "pages", lambda: {stale: "new", CARDS / "README.md": (CARDS / "README.md").read_text()})
    monkeypatch.setattr(sys, "argv", ["cards.py", "--check"])
    before = stale.read_text()
    assert cards.main() == 1
    assert f"model_cards/{name}/README.md is out of date" in capsys.readouterr().out
    assert stale.read_text() == before
    copy = tmp_path / "README.md"
    monkeypatch.setattr(cards, "ROOT", tmp_path)
    monkeypatch.setattr(cards, "pages", lambda: {copy: "new"})
    monkeypatch.setattr(sys, "argv", ["cards.py"])
    assert cards.main() == 0
    assert copy.read_text() == "new"


@every_model
def test_a_model_is_that_of_its_recipe(name):
    assert cards.drift(RECIPES[name]) == []


def test_a_recipe_that_was_changed_is_seen():
    recipe = RECIPES[MODELS[0]]
    changed = replace(recipe, training={**recipe.training, "learning_rate": 0.5})
    assert "recipes.yaml says learning_rate=0.5, and the model was trained with 0.002" in cards.drift(changed)[0]
    assert "says seed=7" in cards.drift(replace(recipe, seeds=(7,)))[0]
    weighted = {**recipe.guidance, "guidance_weight": 9.0}
    assert "cyborg=9.0" in cards.drift(replace(recipe, guidance=weighted))[0]


def test_names_of_no_recipe_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cards.py", "--train", "nothing"])
    with pytest.raises(SystemExit):
        cards.main()
    assert f"--train nothing: there are {', '.join(RECIPES)}." in capsys.readouterr().err


@every_model
def test_no_figure_of_a_card_is_without_a_record(name):
    content = json.loads((CARDS / name / "card.json").read_text(encoding="utf-8"))
    known = numbers_of(content)
    compared = [cell for cells in tables_of((CARDS / name / "README.md").read_text()) for cell in cells]
    printed = [text for cell in compared for text in NUMBER.findall(cell)]
    assert len(printed) > 20
    assert [text for text in printed if not is_among(text, known)] == []


@every_model
def test_the_runs_of_the_seeds_are_those_of_the_card(name):
    recipe = RECIPES[name]
    runs = json.loads(cards.runs_of(recipe).read_text(encoding="utf-8"))
    assert [(entry["seed"], entry["training"]) for entry in runs] == [
        (seed, arm) for seed in recipe.seeds for arm in cards.ARMS
    ]
    found = record(name)
    assert found.training.seed == found.baseline.seed == found.inverted.seed == recipe.seeds[0]
    assert found.inverted.control == "inverted"
    assert found.baseline.methods == []
    shown = {cards.PLAIN: found.baseline.results, cards.GUIDED: found.results, cards.INVERTED: found.inverted.results}
    for entry in runs[:3]:
        assert [result.name for result in shown[entry["training"]]] == list(cards.SPLITS)
        for result in shown[entry["training"]]:
            own = entry[result.name]
            assert result.pictures == own["pictures"]
            assert result.metrics["accuracy"].value == pytest.approx(own["correct"] / own["pictures"], abs=1e-6)
            assert result.alignment["energy_inside"].value == pytest.approx(own["energy_inside"], abs=1e-4)
            assert result.out_of_distribution == (result.name == "ood")
    assert cards.over_seeds(recipe, runs) in found.limits


def test_the_index_holds_the_figures_of_the_records():
    text = (CARDS / "README.md").read_text(encoding="utf-8")
    rows = {re.match(r"\[([\w-]+)\]", cells[0])[1]: cells for cells in tables_of(text)}
    assert sorted(rows) == MODELS
    for name, cells in rows.items():
        found = record(name)
        out = {result.name: result.metrics["accuracy"].value for result in found.results}
        plain = {result.name: result.metrics["accuracy"].value for result in found.baseline.results}
        assert f"{plain['ood']:.3f}, **{out['ood']:.3f}**" in cells[4]
        assert f"`{found.training.methods[0].name}`" in cells[1]
        assert (CARDS / name / "README.md").is_file()


def test_the_code_of_the_index_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (CARDS / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert 'load_guided("model_cards/' in code
    found = {}
    exec(code.replace("model_cards/", f"{CARDS}/"), found)
    assert found["maps"].shape[0] == 1
    assert found["maps"].isfinite().all()


@every_model
def test_a_folder_holds_what_is_published_and_no_more(name):
    files = {path.name: path.stat().st_size for path in (CARDS / name).iterdir()}
    own = set() if record(name).model.library == "timm" else {"preprocessor_config.json"}
    assert set(files) == PUBLISHED | own
    assert sum(files.values()) <= FOLDER_BYTES
    for file in set(files) - {"model.safetensors", "card_panel.png"}:
        text = (CARDS / name / file).read_text(encoding="utf-8")
        assert "More information needed" not in text
        assert not re.search(r"(^|[\s\"'(=])(/[a-z]+/|~/|[A-Z]:\\)\S", text), file
        assert str(ROOT) not in text


def test_all_of_it_is_small():
    files = [path for path in CARDS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= ALL_BYTES
    assert {path.suffix for path in files} <= {".json", ".md", ".safetensors", ".png", ".yaml"}
    assert {path.name for path in CARDS.iterdir()} == {*MODELS, "seeds", "README.md", "recipes.yaml"}


@every_model
def test_the_hub_can_read_the_metadata(name):
    card = ModelCard.load(CARDS / name / "README.md")
    data, found = card.data, record(name)
    assert isinstance(data, ModelCardData)
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "image-classification"
    assert data.library_name == found.model.library
    assert found.training.methods[0].name in data.tags
    reported = {
        (result.dataset_split, result.metric_type): result.metric_value
        for result in data.eval_results
        if not (result.dataset_args or {}).get("control")
    }
    for result in found.results:
        assert reported[result.name, "accuracy"] == pytest.approx(result.metrics["accuracy"].value, abs=5.1e-5)


@every_model
def test_transformers_timm_and_load_guided_give_the_same_logits(name):
    folder, pixels = CARDS / name, pixels_of(name, 4)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert all(torch.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118
    guided = load_guided(folder)
    stock = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = guided.model(pixel_values=pixels).logits
        assert torch.equal(stock(pixel_values=pixels).logits, logits)
        if record(name).model.library == "timm":
            assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pixels), logits)
    method = record(name).training.methods[0]
    assert (guided.guidance["name"], guided.guidance["weight"]) == (method.name, method.weight)
    assert stock.config.id2label == {digit: str(digit) for digit in range(10)}
    prepared = AutoImageProcessor.from_pretrained(folder)(digits(name)["ood"][0]["image"].convert("RGB"))
    np.testing.assert_array_equal(torch.as_tensor(np.asarray(prepared["pixel_values"][0])), pixels[0])
    maps = saliency_maps(guided.model, pixels, feature_layer=guided.guidance["feature_layer"])
    assert len(maps) == len(pixels)
    assert maps.isfinite().all()


@every_model
def test_a_pipeline_says_what_the_model_says(name):
    picture = digits(name)["ood"][0]["image"].convert("RGB")
    classify = pipeline("image-classification", model=str(CARDS / name), device="cpu")
    with torch.no_grad():
        logits = load_guided(CARDS / name).model(pixel_values=pixels_of(name, 1)).logits
    (first, *_) = classify(picture)
    assert first["label"] == str(int(logits.argmax()))
    assert first["score"] == pytest.approx(float(logits.softmax(dim=1).max()), abs=1e-5)


@every_model
@pytest.mark.parametrize("split", ["test", pytest.param("validation", marks=pytest.mark.slow), "ood"])
def test_the_weights_give_the_recorded_score(name, split):
    result = next(result for result in record(name).results if result.name == split)
    pictures = digits(name)[split]
    assert (len(pictures), digest(pictures["label"])) == (result.pictures, result.labels)
    found = predict(load_guided(CARDS / name).model, pictures, progress=False)
    right = int((found.probabilities.argmax(axis=1) == found.labels).sum())
    # On another processor, rounding may turn one picture.
    assert abs(right - round(result.metrics["accuracy"].value * result.pictures)) <= 1
    assert found.metrics()["energy_inside"] == pytest.approx(result.alignment["energy_inside"].value, abs=2e-3)
    again = split_result(split, found.labels, found.probabilities, found.alignment, found.annotated)
    for kind in ("metrics", "alignment"):
        measured, recorded = getattr(again, kind), getattr(result, kind)
        assert measured.keys() == recorded.keys()
        for figure, one in recorded.items():
            ends = (measured[figure].low, measured[figure].value, measured[figure].high)
            assert ends == pytest.approx((one.low, one.value, one.high), abs=0.01), figure


@pytest.mark.slow
def test_a_model_is_trained_evaluated_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "CARDS", tmp_path)
    monkeypatch.setattr(cards, "SEEDS", tmp_path / "seeds")
    recipe = RECIPES["decoy-digits-vit-divisive-difference"]
    small = {"num_train": 40, "num_validation": 20, "num_test": 20, "num_ood": 20}
    recipe = replace(
        recipe,
        data={**recipe.data, **small},
        training={**recipe.training, "num_train_epochs": 1, "warmup_steps": 0},
        seeds=(5, 3),
    )
    cards.train(recipe)
    runs = json.loads((tmp_path / "seeds" / f"{recipe.name}.json").read_text())
    assert [(entry["seed"], entry["training"]) for entry in runs] == [
        (seed, arm) for seed in (5, 3) for arm in ("plain", "guided", "inverted")
    ]
    files = {path.name for path in cards.folder_of(recipe).iterdir()}
    assert files == PUBLISHED | {"preprocessor_config.json"}
    found = cards.told(recipe)
    assert found.training.seed == 5
    assert found.baseline.methods == []
    assert found.inverted.control == "inverted"
    assert (found.data.splits[0].name, found.data.splits[0].pictures) == ("train", 40)
    assert cards.beside(found, "ood").count(",") == 2
    assert "trained with seeds 5 and 3" in found.limits
    right = round(found.results[2].metrics["accuracy"].value * 20)
    assert right == next(entry for entry in runs if entry["training"] == "guided")["ood"]["correct"]


def test_what_the_seeds_say_is_said():
    def runs(*plain):
        return [
            {"training": arm, "seed": seed, split: {"pictures": 100, "correct": right}}
            for split in ("test", "ood")
            for arm, counts in (("plain", plain), ("guided", (90, 91, 90)), ("inverted", (70, 70, 71)))
            for seed, right in enumerate(counts)
        ]

    def of(split, entries):
        return [entry for entry in entries if split in entry]

    better, worse, neither = (of("ood", runs(*plain)) for plain in ((60, 61, 62), (98, 99, 98), (80, 100, 90)))
    mean, low, high = cards.differences(better, "plain", "ood")
    assert mean == pytest.approx((0.30 + 0.30 + 0.28) / 3)
    assert low < mean < high
    assert "helped" in cards.verdict(cards.differences(better, "plain", "ood"))
    assert "did harm" in cards.verdict(cards.differences(worse, "plain", "ood"))
    assert "no help" in cards.verdict(cards.differences(neither, "plain", "ood"))
    assert cards.mean_accuracy(better, "inverted", "ood") == pytest.approx((0.7 + 0.7 + 0.71) / 3)
    assert "may be chance" in cards.over_seeds(replace(RECIPES[MODELS[0]], seeds=(4,)), better)


def test_the_example_of_publishing_saves_a_card_beside_its_baseline(tmp_path, monkeypatch, capsys):
    arguments = ["publish.py", "--output", str(tmp_path), "--epochs", "0.1", "--pictures", "64"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ROOT / "examples" / "publish.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "Loaded again: TimmWrapperForImageClassification, guided by cyborg." in printed
    found = CardRecord.read(tmp_path / "cyborg")
    assert [result.name for result in found.results] == ["test", "ood"]
    assert [result.name for result in found.baseline.results] == ["test", "ood"]
    assert found.baseline.methods == []
    assert "unguided baseline" in printed
    assert str(tmp_path) not in (tmp_path / "cyborg" / "README.md").read_text(encoding="utf-8")
    assert "Published" not in printed
