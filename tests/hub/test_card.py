"""The card that a record is rendered to: metadata, Markdown, code, and files that are somebody's."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import get_session

from hf_salguide import get_guidance, list_guidance
from hf_salguide.hub import card as module
from hf_salguide.hub.card import is_card, is_edited, published_card, render_card, write_card
from hf_salguide.hub.card_metadata import card_data
from hf_salguide.hub.compared import compared
from hf_salguide.hub.escape import code, markdown
from hf_salguide.hub.papers import ENTRIES, citations
from hf_salguide.hub.record import (
    CardRecord,
    Comparison,
    DataFacts,
    Measured,
    ModelFacts,
    SplitFacts,
    SplitResult,
    TrainingFacts,
)
from hf_salguide.hub.results import accuracy_difference, split_result
from hf_salguide.hub.run_facts import method_facts

ODD = [
    "a|b",
    "<b>bold</b>",
    "two\nlines",
    "tick`tock",
    "``",
    "key: value",
    ":smile:",
    "- dash",
    "yes",
    "\"q\" 'q'",
    "🦠",
]


def figures(value, name="test", pictures=100, alignment=None, **kwargs):
    spread = {"low": value - 0.05, "high": value + 0.05, "pictures": pictures}
    return SplitResult(
        name,
        pictures,
        metrics={"auroc": Measured(value, **spread), "accuracy": Measured(value - 0.1, value - 0.2, value, pictures)},
        alignment={} if alignment is None else {"energy_inside": Measured(alignment, 0.1, 0.9, 40)},
        annotated=40,
        **kwargs,
    )


def record(methods=("cyborg",), results=None, **training):
    weighted = [method_facts(get_guidance(name), get_guidance(name).default_weight) for name in methods]
    return CardRecord(
        model=ModelFacts(None, "resnet18", "timm", ["normal", "ill"], [64, 64], 3, 11_177_538),
        training=TrainingFacts(weighted, 0.5 if methods else None, seed=0, **training),
        data=DataFacts("Chest X-rays", "owner/chest", splits=[SplitFacts("train", 400, 90)]),
        results=[figures(0.9, alignment=0.7), figures(0.8, "ood", out_of_distribution=True)]
        if results is None
        else results,
    )


def beside(own, value, **training):
    """Another model's record, with figures on the same sets."""
    results = [replace(figures(value, one.name), labels=one.labels) for one in own.results]
    return replace(own, training=TrainingFacts(**{"seed": 0, **training}), results=results)


def sections(text):
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


# ---- Metadata ----


def test_the_metadata_is_what_the_hub_indexes():
    own = replace(record(), license="MIT", language=["en"], tags=["x-ray"])
    own.model.base_model = "timm/resnet18.a1_in1k"
    found = metadata(render_card(own, "me/model", tags=["more"]))
    results = found.pop("model-index")
    assert found == {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["hf_salguide", "saliency-guided-training", "cyborg", "timm", "x-ray", "more"],
        "base_model": "timm/resnet18.a1_in1k",
        "base_model_relation": "finetune",
        "datasets": ["owner/chest"],
        "language": ["en"],
        "metrics": ["accuracy", "roc_auc"],
        "license": "mit",
    }
    assert [entry["name"] for entry in results] == ["model"]
    first, second = results[0]["results"]
    assert first["dataset"] == {"name": "Chest X-rays", "type": "owner/chest", "split": "test"}
    assert second["dataset"]["split"] == "ood"
    assert [(one["type"], one["value"]) for one in first["metrics"]] == [("accuracy", 0.8), ("roc_auc", 0.9)]
    assert not any("verified" in one for one in first["metrics"])


def test_the_hubs_own_reader_takes_it_and_gives_it_back():
    text = render_card(record(), "me/model")
    card = ModelCard(text)
    assert card.data.eval_results[0].metric_value == 0.8
    assert card.data.to_dict() == card_data(record(), "me/model").to_dict()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("Our lab's: research only", {"license": "other", "license_name": "our-lab-s-research-only"}),
        (None, {}),
    ],
    ids=["known", "own", "none"],
)
def test_the_license(told, expected):
    found = metadata(render_card(replace(record(), license=told)))
    assert {name: value for name, value in found.items() if name.startswith("license")} == expected


def test_no_data_set_no_index():
    own = replace(record(), data=None)
    assert not {"model-index", "datasets", "metrics"} & metadata(render_card(own)).keys()
    assert "| `test` | 100 | AUROC |" in render_card(own)


@pytest.mark.parametrize("own", ["full", "plain", "odd", "nothing"])
def test_the_hubs_validation_accepts_it(online_hub, own):
    found = {"full": record(), "plain": record(()), "odd": odd(), "nothing": CardRecord()}[own]
    text = str(ModelCard(render_card(replace(found, license="My own"), "user/model")))
    body = {"repoType": "model", "content": text}  # as ModelCard.validate, whose old versions know one Hub alone
    answer = get_session().post(f"{online_hub.url}/api/validate-yaml", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"errors": [], "warnings": []}


# ---- Text ----


def test_nothing_known_is_a_short_card_without_empty_sections():
    text = render_card(CardRecord())
    assert sections(text) == ["What it is for", "Limits", "How to use it"]
    assert metadata(text) == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["hf_salguide"],
    }
    for word in ("unknown", "None", "nan", "More information", "[]", "{}", "{{"):
        assert word not in text


def test_no_section_is_empty():
    for own in (record(), record(()), record(("masked_input",), []), CardRecord()):
        text = render_card(own)
        assert not re.search(r"^#.*\n+(?=^#|\Z)", text.split("-->\n")[1].partition("\n")[2], re.MULTILINE)
        assert "\n\n\n" not in text


def test_the_same_record_is_the_same_text():
    assert render_card(record(), "me/model") == render_card(record(), "me/model")


def test_baseline_and_control_stand_beside():
    own = record()
    own.baseline = compared(own, beside(own, 0.6), "baseline")
    own.inverted = compared(own, beside(own, 0.85, methods=own.training.methods, control="inverted"), "inverted")
    text = render_card(own)
    assert "| set | pictures | figure | this model | unguided baseline | inverted control |" in text
    row = "| `test` | 100 | AUROC | 0.900 (0.850 to 0.950) | 0.600 (0.550 to 0.650) | 0.850 (0.800 to 0.900) |"
    assert row in text
    assert "`ood`, out of distribution" in text
    assert "On `test`, the accuracy is" in text
    assert "The unguided baseline is of the same architecture" in text
    assert "The inverted control was guided by `1 - S`" in text
    assert "cannot be told" not in text


def test_no_figure_stands_without_its_interval():
    text = render_card(record())
    for line in text.splitlines():
        if line.startswith("| `") and ("AUROC" in line or "energy" in line or "accuracy" in line):
            assert all(re.fullmatch(r"0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)", cell) for cell in line.split(" | ")[3:-1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "whether guidance helped cannot be told"),
        ({}, "one training run (seed 0)"),
        ({}, "90 of 400 training pictures (22 %) are annotated"),
        ({}, "do not make a better model"),
        ({"results": []}, "No figure of how well it classifies"),
        ({"results": [figures(0.9)]}, "No set above is marked as coming from other sources"),
        ({"selected_on": "test", "selected_by": "auroc"}, "chosen on `test` by `auroc`: its figures are optimistic"),
        ({"limits": "It was **cold**."}, "It was **cold**."),
    ],
    ids=["baseline", "seed", "sparse", "maps", "results", "ood", "selected", "told"],
)
def test_limits_follow_from_the_facts(change, sentence):
    assert sentence in render_card(replace(record(), **change)).partition("## Limits")[2]


def test_what_differs_in_a_baseline_is_said():
    own = record(hyperparameters={"learning_rate": 0.1, "weight_decay": 0.01})
    own.baseline = compared(own, beside(own, 0.6, seed=3, hyperparameters={"learning_rate": 0.2}), "baseline")
    text = render_card(own)
    assert "trained with another seed, 3." in text
    assert "other arguments than this model: `learning_rate=0.2`, `weight_decay=default`." in text


@pytest.mark.parametrize(
    ("change", "role", "message"),
    [
        ({"training": record().training}, "baseline", "was guided itself, by cyborg"),
        ({"training": TrainingFacts(control="inverted")}, "inverted", "without any guidance"),
        ({"training": record().training}, "inverted", "invert_saliency=True"),
        ({"model": ModelFacts(architecture="vit")}, "baseline", "another architecture than this model: vit"),
        ({"model": ModelFacts(label_names=["ill", "normal"])}, "baseline", "another classes"),
        ({"data": DataFacts("Other")}, "baseline", "another data set"),
        ({"data": DataFacts(splits=[SplitFacts("train", 9)])}, "baseline", "9 pictures, not 400 pictures"),
        ({"results": [figures(0.5, pictures=7)]}, "baseline", 'other pictures of "test"'),
    ],
    ids=["guided", "plain", "human", "architecture", "classes", "data", "size", "pictures"],
)
def test_an_unfair_comparison_is_refused(change, role, message):
    own = record()
    other = replace(beside(own, 0.5), **change)
    with pytest.raises(ValueError, match=re.escape(message)):
        compared(own, other, role)


def test_other_pictures_of_the_same_number_are_known_by_their_classes():
    own = record(results=[figures(0.9, labels="aa")])
    with pytest.raises(ValueError, match="other pictures"):
        compared(own, replace(beside(own, 0.5), results=[figures(0.9, labels="bb")]), "baseline")


@pytest.mark.parametrize("control", ["random", "inverted"])
def test_a_control_says_so_loudly(control):
    text = render_card(record(control=control))
    assert text.index("> [!WARNING]\n> **This is a control") < text.index("## Results")
    assert "control" in metadata(text)["tags"]
    assert "WARNING" not in render_card(record())


def test_a_reconstructed_formula_is_said_to_be_one():
    text = render_card(record(("divisive_difference",)))
    assert "**Reconstructed**: the formula is not public." in text
    assert "no number of its authors' is claimed" in text
    assert "Reconstructed" not in render_card(record())


def test_several_methods_and_their_loss():
    text = render_card(record(("cyborg", "masked_input", "gradmask")))
    assert "`cyborg`, `masked_input` and `gradmask`" in text
    assert "`0.5 · cross-entropy + 0.5 · cyborg + " in text
    assert "masked_input`, which changes the pictures and adds no term to the loss" in text
    assert metadata(text)["tags"][2:5] == ["cyborg", "masked_input", "gradmask"]


def test_a_method_that_masks_in_evaluation_warns_of_its_figures():
    assert "the annotation, which a user does not have" in render_card(record(("mask_everything",)))


def test_a_license_that_is_not_stated_is_to_be_asked_for():
    assert "No license of the data is stated: whoever uses these weights has to ask" in render_card(record())
    own = record()
    own.data.license = "CC BY 4.0"
    assert "License of the data: CC BY 4.0." in render_card(own)
    assert "No license of the data" not in render_card(own)


# ---- Citations ----


@pytest.mark.parametrize("name", list_guidance())
def test_every_method_is_cited(name):
    method = method_facts(get_guidance(name), 1.0)
    if "arXiv" not in method.paper:
        assert "docstring" in method.paper  # pieces of a user's own choice
        return
    assert method.citations
    for entry in method.citations:
        identifier = re.search(r"eprint\s+= {(.*)}", entry)[1]
        assert identifier in method.paper
        assert entry == ENTRIES[identifier]
        first = re.search(r"author\s+= {(\w+)", entry)[1]
        assert first in method.paper  # its surname
        year = re.search(r"year\s+= {(\d+)}", entry)[1]
        assert year in method.paper or identifier[:2] == year[2:]
        assert entry.count("{") == entry.count("}")
    text = render_card(record((name,)))
    assert all(entry in text for entry in method.citations)


def test_a_paper_that_is_not_known_is_cited_as_it_is_told():
    (entry,) = citations("Doe & Roe, 100% {sure}, arXiv 2601.01234")
    assert "note          = {Doe \\& Roe, 100\\% \\{sure\\}, arXiv 2601.01234}" in entry
    assert "year          = {2026}" in entry
    assert citations("my own idea") == []


# ---- Names with odd characters ----


def odd():
    own = record(hyperparameters={"optim_args": "a|b`c"})
    own.model.label_names, own.model.name = ODD, "yes: |\n<b>"
    own.data = DataFacts("a|b: <b>\n", splits=[SplitFacts(name, 3, 1) for name in ODD])
    own.results = [figures(0.9, name) for name in ODD]
    return own


def test_odd_names_break_neither_yaml_nor_markdown():
    text = render_card(odd(), "me/model")
    found = metadata(text)
    assert found["model-index"][0]["name"] == "yes: | <b>"
    assert {entry["dataset"]["name"] for entry in found["model-index"][0]["results"]} == {"a|b: <b>"}
    assert ModelCard(text).data.model_name == "yes: | <b>"
    body = text.split("-->\n")[1]
    for line in body.splitlines():
        if line.startswith("| "):
            cells = re.split(r"(?<!\\)\|", line.strip())
            assert len(cells) in (4, 5, 6), line
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", body)
    assert "<b>" not in outside
    assert "# yes: \\| &lt;b&gt;" in body


@pytest.mark.parametrize("name", ODD, ids=[f"name{number}" for number in range(len(ODD))])
def test_a_code_span_shows_what_it_is_given(name):
    span = code(name)
    fence = re.match("`+", span)[0]
    assert span.endswith(fence)
    inside = span[len(fence) : -len(fence)]
    assert fence not in re.findall("`+", inside)
    assert inside.strip() == name.replace("\n", "\\n").strip()
    assert "\n" not in markdown(name)
    assert not re.search(r"<(?!/?$)", markdown(name))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test_resnet", "test_resnet"),
        ("_a_", r"\_a\_"),
        ("1. no list", r"1\. no list"),
        ("- dash", r"\- dash"),
        (":smile: a: b", "&#58;smile: a: b"),
        ("a & b", "a &amp; b"),
    ],
    ids=["word", "emphasis", "number", "dash", "emoji", "entity"],
)
def test_markdown(text, expected):
    assert markdown(text) == expected


# ---- Files ----


@pytest.fixture
def warned(monkeypatch):
    found = []
    monkeypatch.setattr(module.logger, "warning_once", found.append)
    return found


def test_a_card_is_written_anew_when_its_record_changes(tmp_path, warned):
    write_card(tmp_path, record())
    write_card(tmp_path, record(()))
    assert "without saliency guidance" in (tmp_path / "README.md").read_text()
    assert CardRecord.read(tmp_path) == record(())
    assert not warned


def test_a_card_is_the_same_from_its_file(tmp_path):
    own = record(
        hyperparameters={"weight_decay": 0.1, "learning_rate": 0.2}, versions={"torch": "2", "accelerate": "1"}
    )
    write_card(tmp_path, own)
    assert render_card(CardRecord.read(tmp_path)) == (tmp_path / "README.md").read_text()


def test_a_text_of_the_users_ends_the_list():
    own = replace(record(), out_of_scope="Cats.\n\nOr dogs.", limits="- One.\n- Two.")
    text = render_card(own)
    assert "\n- Cats.\n\n  Or dogs.\n" in text
    assert "\n- One.\n- Two.\n" in text


def test_an_interval_that_is_too_narrow_is_pointed_out():
    own = record()
    assert "too narrow" not in render_card(own)
    own.results[0].metrics["auroc"] = Measured(0.995, 0.99, 1.0, 100)
    assert "Those of an AUROC above 0.99, or with fewer than about 30 pictures of a class" in render_card(own)


def judged(right, groups=None):
    """A result of ten pictures of two classes, of which some are named rightly."""
    labels = np.arange(10) % 2
    scores = np.eye(2)[np.where(right, labels, 1 - labels)]
    return split_result("ood", labels, scores, groups=groups)


def test_accuracies_are_compared_picture_by_picture():
    own = replace(record(), results=[judged([True] * 9 + [False])])
    own.baseline = Comparison(results=[judged([True] * 4 + [False] * 6)])
    own.inverted = Comparison(results=[judged([True] * 8 + [False] * 2)])
    # Six are gained and one is lost of ten: (7 - 1) / 12, and its standard error, by Bonett and Price.
    gained = judged([False] + [True] * 9)
    found = accuracy_difference(gained, judged([True] * 4 + [False] * 6))
    middle, half = 5 / 12, 1.959964 * np.sqrt((7 / 12 + 2 / 12 - (5 / 12) ** 2) / 12)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, middle - half, middle + half), abs=1e-5)
    text = render_card(own)
    assert "On `ood`, the accuracy is 0.500 above the unguided baseline's (95 % interval of the difference +0." in text
    assert "and 0.100 above the inverted control's (95 % interval of the difference −0." in text
    assert text.count(": no evidence of a difference)") == 1
    assert "Its accuracy is 0.900" in text


def test_what_cannot_be_compared_by_picture_is_not_judged():
    right, wrong = [True] * 9 + [False], [True] * 4 + [False] * 6
    assert accuracy_difference(judged(right, groups=range(10)), judged(wrong, groups=range(10))) is None
    assert accuracy_difference(judged(right), replace(judged(wrong), labels="others")) is None
    assert accuracy_difference(judged(right), replace(judged(wrong), right=None)) is None


def test_an_edited_card_is_kept_and_published(tmp_path, warned):
    write_card(tmp_path, record())
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("## Limits", "A line of mine.\n\n## Limits"))
    edited = path.read_text()
    assert is_edited(edited)
    write_card(tmp_path, record(()))
    assert path.read_text() == edited
    assert "edited by hand and is kept" in warned[0]
    published = published_card(tmp_path, "me/model")
    assert published == edited.replace("In the folder of this card:\n\n", "").replace(
        '"local-dir:."', '"hf-hub:me/model"'
    ).replace('"."', '"me/model"').replace("--model . ", "--model me/model ")
    assert CardRecord.read(tmp_path) == record(())


def test_other_line_ends_are_no_edit(tmp_path):
    text = render_card(record())
    assert not is_edited(text.replace("\n", "\r\n"))


def test_a_readme_of_somebody_else_is_kept_and_not_published(tmp_path, warned):
    (tmp_path / "README.md").write_text("# My notes\n")
    write_card(tmp_path, record())
    assert (tmp_path / "README.md").read_text() == "# My notes\n"
    assert "no card of hf_salguide" in warned[0]
    assert "My notes" not in published_card(tmp_path, "me/model")
    assert is_card(published_card(tmp_path, "me/model"))


def test_what_is_published_names_the_repository_and_is_not_edited(tmp_path):
    assert published_card(tmp_path, "me/model") is None
    write_card(tmp_path, record())
    text = published_card(tmp_path, "me/model", tags=["t"])
    assert 'load_guided("me/model")' in text
    assert 'timm.create_model("hf-hub:me/model"' in text
    assert "t" in metadata(text)["tags"]
    assert not is_edited(text)
    assert text == published_card(tmp_path, "me/model", tags=["t"])
    assert text.startswith("---\n")
    assert "# model\n" in text
