"""Cards from the command line: what `train` is told, and the results that `evaluate` adds."""

import json
import shutil

import pytest
import yaml

from hf_salguide.cli import main
from hf_salguide.hub.record import CardRecord

from .helpers import train_on


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    """An unguided model, with a card."""
    output = tmp_path_factory.mktemp("plain")
    assert train_on(output, folder, guidance="none") == 0
    return output / "run"


@pytest.fixture
def guided(model, tmp_path):
    """A guided model that a test may change."""
    return shutil.copytree(model, tmp_path / "guided")


def test_training_writes_a_card_with_what_it_is_told(tmp_path, folder, plain, capsys):
    told = {"license": "mit", "dataset_license": "CC0", "saliency_source": "the strokes", "baseline": str(plain)}
    assert train_on(tmp_path, folder, "--card", json.dumps(told), guidance="cyborg") == 0
    record = CardRecord.read(tmp_path / "run")
    assert record.license == "mit"
    assert record.data.name == folder.name
    assert [split.name for split in record.data.splits] == ["train", "validation"]
    assert [split.annotated < split.pictures for split in record.data.splits] == [True, False]
    assert record.baseline.methods == []
    text = (tmp_path / "run" / "README.md").read_text()
    assert "Source of the saliency: the strokes" in text
    assert str(tmp_path) not in text
    assert str(folder.parent) not in text


def test_the_facts_may_stand_in_the_file(tmp_path, folder):
    assert train_on(tmp_path, folder, guidance="none", card={"license": "mit", "tags": ["digits"]}) == 0
    assert CardRecord.read(tmp_path / "run").tags == ["digits"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ('{"licence": "mit"}', '"licence" is not a fact of a card; did you mean "license"?'),
        ('{"license": 3}', "license=3"),
        ("mit", "is not valid JSON"),
    ],
    ids=["unknown", "type", "json"],
)
def test_wrong_facts_are_refused_before_any_compute(tmp_path, folder, capsys, told, message):
    assert train_on(tmp_path, folder, "--card", told, guidance="none") != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_evaluation_adds_its_results(guided, plain, folder, capsys):
    for path, facts in ((plain, "true"), (guided, json.dumps({"baseline": str(plain), "license": "mit"}))):
        arguments = ["--data", str(folder), "--splits", "test", "ood", "--card", facts]
        assert main(["evaluate", "--model", str(path), *arguments]) == 0
    assert "has the results of test, ood" in capsys.readouterr().out
    record = CardRecord.read(guided)
    assert [(one.name, one.out_of_distribution) for one in record.results][-2:] == [("test", False), ("ood", True)]
    assert all(one.metrics["accuracy"].low <= one.metrics["accuracy"].high for one in record.results)
    assert {"iou", "pointing_game"} <= set(record.results[-1].alignment)
    assert record.license == "mit"
    assert record.training.methods[0].name == "cyborg"
    text = (guided / "README.md").read_text()
    assert "| set | pictures | figure | this model | unguided baseline |" in text
    assert "On `ood`, the accuracy is" in text
    first = (guided / "card.json").read_bytes()
    assert main(["evaluate", "--model", str(guided), "--data", str(folder), "--splits", "ood", "--card", "true"]) == 0
    assert (guided / "card.json").read_bytes() == first


def test_results_on_other_data_are_said_to_be(guided, folder):
    facts = json.dumps({"dataset": "owner/other"})
    assert main(["evaluate", "--model", str(guided), "--data", str(folder), "--splits", "ood", "--card", facts]) == 0
    result = CardRecord.read(guided).results[-1]
    assert (result.name, result.dataset) == ("ood", "owner/other")
    assert "| `ood`, owner/other, out of distribution |" in (guided / "README.md").read_text()
    index = yaml.safe_load((guided / "README.md").read_text().split("---\n")[1])["model-index"][0]["results"]
    assert index[-1]["dataset"]["name"] == "owner/other"


def test_a_folder_without_a_card_gets_one(guided, folder):
    (guided / "card.json").unlink(missing_ok=True)
    (guided / "README.md").unlink(missing_ok=True)
    assert main(["evaluate", "--model", str(guided), "--data", str(folder), "--splits", "test", "--card", "true"]) == 0
    record = CardRecord.read(guided)
    assert record.training is None
    assert [result.name for result in record.results] == ["test"]
    assert record.model.architecture == "test_resnet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "owner/name", "--card", "true"], "is no folder, and only a folder's card can be written"),
        (["--card", "true", "--map_class", "true"], "those of the predicted class"),
        (["--card", '{"colour": 1}'], "is not a fact of a card"),
    ],
    ids=["hub", "map", "fact"],
)
def test_a_card_that_cannot_be_written_is_refused(guided, folder, capsys, arguments, message):
    assert main(["evaluate", "--model", str(guided), "--data", str(folder), *arguments]) != 0
    assert message in capsys.readouterr().err
