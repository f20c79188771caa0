"""The survey of backbones: what it says of a family, and that docs/backbones.json is what it gives."""

import dataclasses
import json
import logging
import warnings
from pathlib import Path

import pytest
import timm
import torch
import transformers

from hf_salguide.studies import survey as survey_module
from hf_salguide.studies.survey import (
    FOUND,
    KINDS,
    PLACES,
    Row,
    resolution,
    survey,
    survey_all,
    survey_summary,
    survey_table,
    train_step,
    versions,
)
from hf_salguide.studies.zoo import Family, build, families

RECORDED = json.loads((Path(__file__).parents[2] / "docs" / "backbones.json").read_text())
ROWS = {(row["library"], row["family"]): Row(**row) for row in RECORDED["rows"]}
LIBRARIES = {"timm": timm.__version__, "transformers": transformers.__version__}
# What a layer is, and what it took to find it, down to everything but the seconds.
COMPARED = ("model", "size", "layer", "layout", "grid", "channels", "prefix", "readout", "named", "forwards")
QUICK = 0.2  # seconds

RESNET = Family("timm", "resnet", "test_resnet", {}, (128, 192))
SMALL = Family("timm", "resnet", "test_resnet", {}, (64, 96))
VIT = Family("timm", "vision_transformer", "test_vit", {}, (64, 96))
CROSSVIT = dataclasses.replace(families("crossvit")[0], size=(120, 120), feature_layer=())


def recorded_row(family):
    """The row on the page, where it was made with what is installed."""
    if RECORDED["versions"][family.library] != LIBRARIES[family.library]:
        pytest.skip(f"docs/backbones.json is of {family.library} {RECORDED['versions'][family.library]}")
    return ROWS[family.library, family.name]


def of_both_libraries(wanted=lambda row: True):
    chosen = [one for one in families() if wanted(ROWS.get((one.library, one.name)))]
    return pytest.mark.parametrize("family", chosen, ids=[f"{one.library}-{one.name}" for one in chosen])


def assert_same(found, expected):
    for name in COMPARED:
        assert getattr(found, name) == getattr(expected, name), name
    assert bool(found.reason) == bool(expected.reason)


# ---- The page ----


@of_both_libraries(lambda row: row is not None and row.seconds is not None and row.seconds < QUICK)
def test_the_page_says_what_the_resolver_finds(family):
    expected = recorded_row(family)
    with warnings.catch_warnings(action="ignore"):
        model = build(family)
        _, found = resolution(model, family)
    row = Row(family.library, family.name, family.model, {}, expected.size, **found)
    assert_same(row, expected)


@pytest.mark.slow
@of_both_libraries()
def test_every_family_resolves_and_trains_as_the_page_says(family):
    row = survey(family, train=True)
    expected = ROWS.get((family.library, family.name))
    if expected is None:
        assert row.layer or row.reason
        return
    assert row.faults == []
    if expected.found == len(PLACES):  # on another machine rounding may tip the others
        assert not row.displaced
    for kind, fault in row.trained.items():
        assert not fault or expected.trained[kind], fault
    expected = recorded_row(family)
    assert_same(row, expected)
    assert row.square == expected.square
    assert json.loads(json.dumps(row.arguments)) == expected.arguments
    assert {kind: bool(fault) for kind, fault in row.trained.items()} == {
        kind: bool(fault) for kind, fault in expected.trained.items()
    }


def test_what_the_page_has_to_show():
    rows = list(ROWS.values())
    ours = {library: [row for row in rows if row.library == library] for library in LIBRARIES}
    assert sum(row.resolved for row in ours["timm"]) >= 95
    assert sum(row.resolved for row in ours["transformers"]) >= 35
    assert [row.family for row in rows if row.faults] == []
    assert len({row.model for row in rows if row.displaced}) <= 6  # LeViT is one model of two classes
    for row in rows:
        assert row.layer or row.reason, row.family
        assert (row.cut is None) == (row.reached is None) == (row.found is None) == (not row.layer)
        assert (row.complete is None) == (row.readout != "exact")
        assert set(row.trained) == (set(KINDS) if row.layer else set())
        assert not row.named or row.reason


# ---- One family ----


@pytest.fixture(scope="module")
def row():
    return survey(RESNET, train=True)


def test_a_row_says_what_was_found(row):
    assert (row.family, row.model, row.size) == ("resnet", "test_resnet", "128 × 192")
    assert (row.layer, row.layout, row.grid) == ("timm_model.layer4.0", "NCHW", "4 × 6")
    assert (row.channels, row.prefix, row.readout) == ("96", "0", "exact")
    assert row.square == row.layer
    assert row.resolved
    assert not row.named
    assert row.reason == ""
    assert 0 < row.forwards < 30
    assert 0 < row.forward_seconds < row.seconds < 60
    assert row.cut <= 1e-5
    assert row.reached == 1
    assert row.complete <= 1e-5
    assert row.found == 5
    assert row.trained == dict.fromkeys(KINDS, "")


def test_without_training_nothing_is_trained():
    row = survey(VIT)
    assert row.trained == {}
    assert row.readout == "generic"
    assert row.complete is None
    assert row.square == row.layer
    assert row.found == 5


def test_on_a_small_grid_no_object_is_looked_for():
    row = survey(SMALL)
    assert row.grid == "2 × 3"
    assert row.found is None
    assert row.resolved
    assert not row.displaced


def test_a_survey_leaves_the_random_state_and_the_logging_as_they_were():
    state, disabled = torch.random.get_rng_state(), logging.root.manager.disable
    survey(RESNET, train=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert logging.root.manager.disable == disabled


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (Family("timm", "resnet", "no_such_model"), "no_such_model"),
        (Family("timm", "resnet", "test_resnet", {"no_such": 1}), "no_such"),
        (families("ShieldGemma2*")[0], "does not read a picture"),
        (CROSSVIT, "no single layer"),
    ],
    ids=["model", "argument", "no picture", "branches"],
)
def test_what_fails_is_a_reason(family, expected):
    row = survey(family, train=True)
    assert expected in row.reason
    assert (row.layer, row.resolved, row.trained) == ("", False, {})
    assert f"* {row.family}: {row.reason}" in survey_summary([row])
    assert "\n" not in row.reason


def test_layers_are_named_where_none_is_found():
    names = ("timm_model.blocks.1.fusion.0.norm1", "timm_model.blocks.1.fusion.1.norm1")
    row = survey(dataclasses.replace(CROSSVIT, feature_layer=names))
    assert set(row.layer.split(" + ")) == set(names)
    assert row.named
    assert not row.resolved
    assert row.faults == []
    assert "no single layer" in row.reason
    assert "It works with feature_layer=['timm_model.blocks.1.fusion" in survey_summary([row])
    assert "(named)" in survey_table([row])


def test_named_layers_that_do_not_exist_are_a_reason():
    row = survey(dataclasses.replace(CROSSVIT, feature_layer=("nowhere", "elsewhere")))
    assert "no single layer" in row.reason
    assert "With feature_layer=['nowhere', 'elsewhere']: " in row.reason
    assert (row.layer, row.named) == ("", False)


def test_a_layer_that_cannot_be_checked_is_not_resolved(monkeypatch):
    def fails(*args):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(survey_module, "cut_of", fails)
    row = survey(RESNET)
    assert row.reason == "the layer cannot be checked: RuntimeError: no way"
    assert not row.resolved


# ---- Training ----


def test_a_step_trains_the_model():
    model = build(RESNET)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert train_step(model, "input gradient", RESNET.size) == ""
    assert not model.training
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert "timm_model.conv1.0.weight" in changed
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_that_are_not_finite_are_told():
    model = build(RESNET)
    model.timm_model.layer2[0].conv1.weight.register_hook(lambda gradient: gradient / 0)
    fault = train_step(model, "views", RESNET.size)
    assert "gradients are not finite, such as that of timm_model.layer2.0.conv1.weight" in fault


def test_early_parameters_without_a_gradient_are_told():
    model = build(RESNET)
    model.timm_model.layer2.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
    assert train_step(model, "views", RESNET.size).startswith("no gradient at the first ")


def test_a_step_that_fails_is_a_reason(monkeypatch):
    monkeypatch.setitem(KINDS, "other", "no_such_method")
    row = survey(RESNET, train=True)
    assert row.trained["map"] == ""
    assert 'guidance="no_such_method" is not known' in row.trained["other"]
    assert "no training by other (no_such_method): " in survey_summary([row])


def test_what_one_kind_spoils_is_not_the_next_ones_fault(monkeypatch):
    def spoils(model, kind, size, names):
        spoiled = not all(bool(parameter.isfinite().all()) for parameter in model.parameters())
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        return "spoiled" if spoiled else ""

    monkeypatch.setattr(survey_module, "train_step", spoils)
    assert survey(RESNET, train=True).trained == dict.fromkeys(KINDS, "")


# ---- Several families, and what is shown ----


def test_rows_come_in_the_families_order():
    rows = survey_all([VIT, RESNET])
    assert [row.family for row in rows] == ["vision_transformer", "resnet"]
    with pytest.raises(ValueError, match="processes=0"):
        survey_all([RESNET], processes=0)


@pytest.mark.slow
def test_processes_give_the_same_rows():
    alone, together = survey_all([VIT, RESNET]), survey_all([VIT, RESNET], processes=2)
    for mine, theirs in zip(alone, together, strict=True):
        assert_same(theirs, mine)
        assert theirs.found == mine.found


def made_up(**fields):
    given = {"layer": "a.b", "layout": "NCHW", "grid": "4 × 6", "channels": "8", "prefix": "0", "readout": "exact"}
    given |= {"forwards": 5, "seconds": 0.123, "cut": 0.0, "reached": 1.0, "complete": 0.0, "found": 5}
    given |= {"arguments": {}}
    return Row("timm", "resnet", "test_resnet", size="128 × 192", **(given | fields))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"cut": 0.25}, "the logits change by 25.0% past the layer"),
        ({"cut": float("nan")}, "past the layer"),
        ({"reached": 0.5}, "the logits' gradient reaches 50% of the positions"),
        ({"complete": 2e-4}, "the map's mean and the bias miss the logit by 2.0e-04"),
        ({"square": "a.c"}, "on square pictures the layer is a.c"),
    ],
)
def test_a_layer_that_does_not_hold_is_not_resolved(fields, fault):
    assert made_up().resolved
    row = made_up(**fields)
    assert not row.resolved
    assert fault in row.faults[0]
    assert survey_summary([made_up(), row]).splitlines()[0] == "* resolved 1 of 2 timm modules"
    assert f"* resnet: {row.faults[0]}" in survey_summary([row])


def test_a_table_and_a_summary():
    trained = dict.fromkeys(KINDS, "")
    rows = [
        made_up(trained=trained, arguments={"depth": 2}),
        made_up(trained={**trained, "map": "why"}, found=FOUND - 1),
    ]
    table = survey_table(rows).splitlines()
    assert table[0].endswith("| forwards | seconds | object found | map | input gradient | features | views |")
    assert "| resnet | test_resnet (reduced) | 128 × 192 | a.b | NCHW | 4 × 6 | 8 | 0 | exact | 5 | 0.12 |" in table[2]
    assert table[2].endswith("| 5 of 5 | yes | yes | yes | yes |")
    assert table[3].endswith("| 3 of 5 | no | yes | yes | yes |")
    assert len({line.count("|") for line in table}) == 1
    assert "map |" not in survey_table([made_up()])
    summary = survey_summary(rows)
    assert "* resolved 2 of 2 timm modules" in summary
    assert "* trained 1 of 2: map (cyborg)" in summary
    assert "* trained 2 of 2: views (sage)" in summary
    assert "* resnet: a bright object is found at 3 of 5 places" in summary
    assert "* resnet: no training by map (cyborg): why" in summary
    assert "transformers" not in summary
    assert "Exceptions" not in survey_summary([made_up()])


def test_the_versions_are_those_that_are_installed():
    assert versions()["timm"] == timm.__version__
    assert set(RECORDED["versions"]) == set(versions())
