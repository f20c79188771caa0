"""Map methods as choices of pieces: each piece, their identities, their presets, their errors."""

import itertools
import re

import pytest
import torch
from map_oracle import ROWS, Case, absolute, check, counting_rows, each, min_max, positive_part, squared, synthetic
from support import build, make_batch, make_trainer

from hf_salguide.guidance import get_guidance, guidance_options
from hf_salguide.guidance.cam_entropy import CamEntropy
from hf_salguide.guidance.cyborg import Cyborg
from hf_salguide.guidance.divisive_complement import DivisiveComplement
from hf_salguide.guidance.divisive_difference import DivisiveDifference
from hf_salguide.guidance.divisive_divergence import DivisiveDivergence
from hf_salguide.guidance.energy import Energy
from hf_salguide.guidance.map_guidance import (
    DISTANCES,
    MAPS,
    RIVALS,
    TARGETS,
    MapGuidance,
    rival_weights,
)
from hf_salguide.guidance.map_guidance import positive_part as scaled_positive_part

PRESETS = [CamEntropy, Cyborg, DivisiveComplement, DivisiveDifference, DivisiveDivergence, Energy]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cyborg_term(case, row, predicted=False):
    logits = torch.stack(case.logits(row))
    label = int(logits.argmax()) if predicted else int(case.labels[row])
    return squared(min_max(case.cam(row, label)), min_max(case.target(row)))


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_one_map_and_one_target_equal_a_float64_loop(classes, predicted):
    case = Case(classes)
    assert any(torch.stack(case.logits(row)).argmax() != case.labels[row] for row in counting_rows())
    guidance = MapGuidance(map="predicted" if predicted else "true")
    check(guidance, case, lambda case, row: cyborg_term(case, row, predicted))


@pytest.mark.parametrize("distance", ["mse", "l1"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("classes", [2, 4])
def test_the_map_of_the_false_class_equals_a_float64_loop(classes, target, distance):
    def term(case, row):
        wanted = min_max(case.target(row))
        if target == "complement":
            wanted = each(lambda i, j, inside=wanted: 1 - inside[i][j])
        return {"mse": squared, "l1": absolute}[distance](min_max(case.false_cam(row)), wanted)

    check(MapGuidance(map="false", target=target, distance=distance), Case(classes), term)


def test_the_positive_part_of_each_map_equals_a_float64_loop():
    def term(case, row):
        true, false = positive_part(case.cam(row, int(case.labels[row]))), positive_part(case.false_cam(row))
        return squared(each(lambda i, j: abs(true[i][j] - false[i][j])), min_max(case.target(row)))

    check(MapGuidance(map="absolute_difference", positive=True), Case(3, seed=2), term)


def test_the_term_of_pairs_is_the_mean_of_theirs():
    batch = Case(4).batch()
    pairs = [("true", "saliency"), ("difference", "saliency"), ("false", "complement")]
    for distance in DISTANCES:
        maps, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        given = MapGuidance(map=maps, target=targets, distance=distance).terms(batch)
        parts = [MapGuidance(map=map, target=target, distance=distance).terms(batch) for map, target in pairs]
        torch.testing.assert_close(given, torch.stack(parts).mean(dim=0))


@pytest.mark.parametrize(
    ("preset", "pieces"),
    [
        (Cyborg(), {}),
        (Cyborg(cam_class="predicted", resize="bilinear"), {"map": "predicted", "resize": "bilinear"}),
        (Cyborg(distance="ssim"), {"distance": "ssim"}),
        (DivisiveDifference(), {"map": "difference"}),
        (
            DivisiveDifference("l1", "max", "bilinear", True),
            {"map": "difference", "distance": "l1", "rival": "max", "resize": "bilinear", "positive": True},
        ),
        (DivisiveComplement(), {"map": ["true", "false"], "target": ["saliency", "complement"]}),
        (
            DivisiveComplement("correlation", "mean", "bilinear"),
            {
                "map": ("true", "false"),
                "target": ("saliency", "complement"),
                "distance": "correlation",
                "rival": "mean",
                "resize": "bilinear",
            },
        ),
        (DivisiveDivergence(), {"map": "absolute_difference"}),
        (
            DivisiveDivergence("kl", "mean", "bilinear", signed=True),
            {"map": "one_sided_difference", "distance": "kl", "rival": "mean", "resize": "bilinear"},
        ),
        (Energy(), {"distance": "energy_outside"}),
        (
            Energy("predicted", "bilinear"),
            {"map": "predicted", "distance": "energy_outside", "resize": "bilinear"},
        ),
    ],
    ids=str,
)
def test_a_preset_is_a_name_for_a_choice(preset, pieces):
    batch = Case(4).batch()
    terms = preset.terms(batch)
    torch.testing.assert_close(terms, MapGuidance(**pieces).terms(batch), rtol=0, atol=0)
    assert (terms[counting_rows()] > 0).all()


def test_choices_differ():
    batch = Case(4).batch()
    terms = {
        str((map, target, distance, rival)): MapGuidance(map, target, distance, rival).terms(batch).sum().item()
        for map, target, distance, rival in itertools.product(MAPS, TARGETS, DISTANCES, RIVALS)
        if rival == "softmax" or map not in ("true", "predicted")
    }
    assert len({round(value, 9) for value in terms.values()}) == len(terms)


@pytest.mark.parametrize("distance", list(DISTANCES))
@pytest.mark.parametrize("map", MAPS)
def test_permuted_classes_change_nothing(map, distance):
    maps, labels, permutation = rand(4, 4, 3, 4), torch.tensor([0, 1, 2, 3]), torch.tensor([2, 0, 3, 1])
    permuted = torch.empty_like(maps)
    permuted[:, permutation] = maps
    for rival in RIVALS:
        guidance = MapGuidance(map=map, distance=distance, rival=rival)
        expected = guidance.terms(synthetic(maps, labels))
        torch.testing.assert_close(guidance.terms(synthetic(permuted, permutation[labels])), expected)


def test_difference_complement_and_cyborg_are_one_where_the_weights_of_two_classes_are_opposite():
    case = Case(2, opposite=True)
    expected = Cyborg().terms(case.batch())
    assert expected[counting_rows()].min() > 0.01
    torch.testing.assert_close(DivisiveDifference().terms(case.batch()), expected)
    torch.testing.assert_close(DivisiveComplement().terms(case.batch()), expected)
    other = Case(2)
    assert not torch.allclose(DivisiveDifference().terms(other.batch()), Cyborg().terms(other.batch()))


@pytest.mark.parametrize("map", ["false", "difference", "absolute_difference"])
def test_all_rivals_are_one_with_two_classes(map):
    batch = Case(2).batch()
    first, second, third = (MapGuidance(map=map, rival=rival).terms(batch) for rival in RIVALS)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, third)


def test_rivals():
    logits = torch.tensor([[5.0, 1.0, 2.0, -1.0], [1.0, 9.0, 8.0, 7.0]], requires_grad=True)
    labels = torch.tensor([0, 2])
    mean = rival_weights(logits, labels, "mean")
    torch.testing.assert_close(mean, torch.tensor([[0, 1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 0, 1 / 3]]))
    strongest = rival_weights(logits, labels, "max")
    assert torch.equal(strongest, torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0]]))
    softmax = rival_weights(logits, labels, "softmax")
    for row, label in enumerate(labels):
        others = [k for k in range(4) if k != label]
        (gradient,) = torch.autograd.grad(logits[row, others].logsumexp(dim=0), logits)
        torch.testing.assert_close(softmax[row], gradient[row])
    assert not any(weights.requires_grad for weights in (mean, strongest, softmax))


@pytest.mark.parametrize("distance", list(DISTANCES))
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("degenerate", ["constant", "zero", "negative", "empty", "full", "unannotated"])
def test_degenerate_rows_are_finite_and_leave_the_others_alone(degenerate, map, positive, distance):
    maps = rand(3, 2, 3, 4).float()
    batch = synthetic(maps)
    saliency, annotated = batch.saliency.clone(), batch.annotated.clone()
    guidance = MapGuidance(map=map, distance=distance, positive=positive)
    expected = guidance.terms(batch)
    if degenerate == "unannotated":
        annotated[0] = False
    elif degenerate in ("empty", "full"):
        saliency[0] = float(degenerate == "full")
    else:
        maps[0] = {"constant": 3.0, "zero": 0.0, "negative": -maps[0].abs()}[degenerate]
    maps.requires_grad_()
    terms = guidance.terms(synthetic(maps, saliency=saliency, annotated=annotated))
    terms.sum().backward()
    assert torch.isfinite(terms).all()
    assert torch.isfinite(maps.grad).all()
    torch.testing.assert_close(terms[1:], expected[1:])
    raw = distance == "energy_outside"
    counts = {  # whether the row may count all the same
        "constant": raw and map in ("true", "predicted", "false"),
        "zero": False,
        "negative": not positive or "difference" in map,
        "empty": raw,
        "full": False,
        "unannotated": False,
    }[degenerate]
    if not counts:
        assert terms[0] == 0
        assert not maps.grad[0].any()


def test_a_row_counts_with_all_of_its_pairs_or_not_at_all():
    maps = rand(2, 3, 3, 4)
    maps[0, 0] = 3.0  # the true class's
    maps.requires_grad_()
    guidance = MapGuidance(map=["false", "true"], target=["complement", "saliency"])
    terms = guidance.terms(synthetic(maps))
    terms.sum().backward()
    assert MapGuidance(map="false", target="complement").terms(synthetic(maps))[0] > 0
    assert terms[0] == 0
    assert not maps.grad[0].any()
    assert terms[1] > 0


def test_the_floor_under_the_positive_part_bounds_its_gradient():
    maps = torch.full((1, 2, 2), -1.0)
    for positive in (1e-3, 1e-5):
        maps[0, 0, 0] = positive
        given, valid = scaled_positive_part(maps.requires_grad_())
        (gradient,) = torch.autograd.grad(given.sum(), maps)
        maps = maps.detach()
        assert valid.all()
        assert given[0, 0, 0].item() == pytest.approx(positive / 1e-3)
        assert gradient.abs().max() < 1001


def test_the_positive_part_is_scaled_by_its_maximum():
    maps = rand(3, 3, 4)
    maps[1] = -maps[1].abs()
    maps[2] = 2.0
    given, valid = scaled_positive_part(maps)
    assert valid.tolist() == [True, False, False]
    torch.testing.assert_close(given[0], maps[0].clamp(min=0) / maps[0].max())
    assert not given[1:].any()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_presets_are_known_by_their_name_and_show_their_options(preset):
    guidance = get_guidance(preset.name)
    assert type(guidance) is preset
    shown = ", ".join(f"{option}={default!r}" for option, default in guidance_options(preset).items())
    assert repr(guidance) == f"{preset.__name__}({shown})"
    assert preset.formula != MapGuidance.formula
    assert preset.paper != MapGuidance.paper


def test_what_it_shows_of_itself_builds_it_again():
    guidance = MapGuidance(map=["true", "difference"], target=["saliency", "saliency"], distance="kl", positive=True)
    assert repr(eval(repr(guidance))) == repr(guidance)
    assert "map=['true', 'difference']" in repr(guidance)
    assert repr(get_guidance("map_guidance")).startswith("MapGuidance(map='true', target='saliency', distance='mse'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": "flase"}, "map='flase' is not known; choose one of 'true', 'predicted', 'false'"),
        ({"map": ["true", "both"], "target": ["saliency", "saliency"]}, "map='both' is not known"),
        ({"map": 5}, "map='5' is not known"),
        ({"target": "outside"}, "target='outside' is not known; choose one of 'saliency', 'complement'"),
        ({"distance": "l2"}, "distance='l2' is not known; choose one of 'mse', 'l1', 'ssim'"),
        ({"rival": "second"}, "rival='second' is not known; choose one of 'softmax', 'max', 'mean'"),
        ({"resize": "nearest"}, "resize='nearest' is not known; choose one of 'area', 'bilinear'"),
        ({"positive": "yes"}, "positive='yes' has to be true or false"),
        ({"positive": 1}, "positive=1 has to be true or false"),
        ({"map": ["true", "false"]}, "map=['true', 'false'] and target='saliency' make no pairs; give lists of the"),
        ({"map": [], "target": []}, "map=[] and target=[] make no pairs"),
    ],
    ids=str,
)
def test_choices_that_are_not_known_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MapGuidance(**options)


@pytest.mark.parametrize("backbone", ["resnet", "vit_class_token"])
@pytest.mark.parametrize("map", MAPS)
def test_every_map_trains_a_model(map, backbone, tmp_path):
    model = build(backbone).train()
    options = {"map": [map, "true"], "target": ["saliency", "saliency"]}
    trainer = make_trainer(
        model, tmp_path, guidance="map_guidance", guidance_options=options, task_weight=0.0, guidance_weight=1.0
    )
    loss = trainer.compute_loss(model, make_batch())
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert loss > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    first = next(parameter for parameter in model.parameters() if parameter.ndim > 1)
    assert first.grad.abs().max() > 1e-9


def test_the_loop_reads_every_row():
    """The comparison itself: it fails where a formula, a row or a gradient is another."""
    case = Case(4)
    for wrong in (
        lambda case, row: 1.01 * cyborg_term(case, row),
        lambda case, row: cyborg_term(case, row) + 0.01,
        lambda case, row: cyborg_term(case, row) * (1 if row != ROWS - 1 else 2),
        lambda case, row: cyborg_term(case, row).detach() + 0 * cyborg_term(case, row),
    ):
        with pytest.raises(AssertionError):
            check(MapGuidance(), case, wrong)
