"""`hf-salguide backbones`, as a user runs it."""

import json

import pytest

from hf_salguide.cli import COMMANDS, main
from hf_salguide.studies.survey import Row, survey_table


def test_it_is_listed(capsys):
    assert "backbones" in COMMANDS
    main([])
    assert "  backbones " in capsys.readouterr().out


def test_it_prints_a_table_and_a_summary_and_writes_json(tmp_path, capsys):
    output = tmp_path / "rows.json"
    assert main(["backbones", "test_resnet", "--train", "true", "--json", str(output)]) == 0
    printed = capsys.readouterr()
    assert "| resnet | test_resnet | 128 × 192 | timm_model.layer4.0 | NCHW | 4 × 6 | 96 | 0 | exact |" in printed.out
    assert "* resolved 1 of 1 timm modules" in printed.out
    for kind in ("map", "input gradient", "features", "views"):
        assert f"* trained 1 of 1: {kind}" in printed.out
    content = json.loads(output.read_text())
    assert {"timm", "transformers", "torch"} < set(content["versions"])
    assert survey_table([Row(**row) for row in content["rows"]]) in printed.out


def test_an_architecture_of_timm_is_taken_as_it_is(capsys):
    assert main(["backbones", "test_vit2"]) == 0
    printed = capsys.readouterr().out
    assert "| vision_transformer | test_vit2 | 160 × 160 |" in printed
    assert "trained" not in printed


def test_what_is_not_resolved_is_told_and_no_failure(capsys):
    assert main(["backbones", "imagegpt*"]) == 0
    printed = capsys.readouterr().out
    assert "* resolved 0 of 1 transformers classes" in printed
    assert "* ImageGPTForImageClassification: " in printed
    assert "does not read a picture" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnt50"], 'pattern="resnt50" fits no family'),
        (["resnet", "--processes", "0"], "processes=0"),
        (["resnet", "--json", "rows.txt"], 'json="rows.txt" has to end in .json'),
    ],
)
def test_bad_input_is_refused_before_any_compute(arguments, message, capsys, monkeypatch):
    from hf_salguide.studies import survey

    monkeypatch.setattr(survey, "survey", None)
    assert main(["backbones", *arguments]) == 2
    assert message in capsys.readouterr().err
