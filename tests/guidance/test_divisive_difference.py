"""Difference Salience training against a float64 loop, and what the difference of two maps is."""

import pytest
import torch
from map_oracle import Case, check, each, min_max, positive_part, squared, synthetic

from hf_salguide.guidance.divisive_difference import DivisiveDifference
from hf_salguide.guidance.map_guidance import rival_weights


def difference(case, row, rival):
    true, false = case.cam(row, int(case.labels[row])), case.false_cam(row, rival)
    return each(lambda i, j: true[i][j] - false[i][j])


@pytest.mark.parametrize("rival", ["softmax", "max", "mean"])
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_and_gradients_equal_a_float64_loop(classes, rival):
    def term(case, row):
        return squared(min_max(difference(case, row, rival)), min_max(case.target(row)))

    check(DivisiveDifference(rival=rival), Case(classes), term)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_positive_part_equals_a_float64_loop(classes):
    def term(case, row):
        return squared(positive_part(difference(case, row, "softmax")), min_max(case.target(row)))

    check(DivisiveDifference(positive=True), Case(classes), term)


def test_the_positive_part_knows_the_sign_that_min_max_is_blind_to():
    saliency = torch.zeros(1, 6, 8)
    saliency[:, :2] = 1.0
    evidence = torch.zeros(1, 3, 4)
    evidence[:, 0] = 1.0  # where people looked
    against = torch.stack([evidence - 2, torch.zeros(1, 3, 4)], dim=1)  # the other class has it everywhere
    assert DivisiveDifference().terms(synthetic(against, saliency=saliency)) == 0
    assert DivisiveDifference(positive=True).terms(synthetic(against + 0.5, saliency=saliency)) == 0  # counts not
    half = torch.stack([evidence - 0.5, torch.zeros(1, 3, 4)], dim=1)
    assert DivisiveDifference(positive=True).terms(synthetic(half, saliency=saliency)) == 0
    swapped = DivisiveDifference(positive=True).terms(synthetic(-half, saliency=saliency))
    assert swapped == 1  # all of it where nobody looked


def test_the_difference_takes_one_map():
    calls, batch = [], synthetic(torch.randn(3, 4, 3, 4, generator=torch.Generator().manual_seed(0)))

    def map_of(weights):
        calls.append(weights)
        return batch.map_of(weights)

    counted = type(batch)(batch.logits, batch.labels, batch.saliency, batch.annotated, map_of)
    DivisiveDifference().terms(counted)
    assert len(calls) == 1
    torch.testing.assert_close(calls[0].sum(dim=1), torch.zeros(3))


@pytest.mark.parametrize("rival", ["softmax", "max", "mean"])
def test_the_mean_of_the_difference_is_that_of_the_logits(rival):
    """Not the distance to the logsumexp of the others: that is larger by the entropy of their shares."""
    case = Case(4)
    batch = case.batch()
    guidance = DivisiveDifference(rival=rival)
    rows = torch.arange(len(case.labels))
    shares = rival_weights(batch.logits, case.labels, rival)
    raw = batch.map_of(guidance.class_weights(batch, "difference"))
    given = raw.mean(dim=(1, 2)) + case.bias[case.labels] - shares @ case.bias
    expected = batch.logits[rows, case.labels] - (shares * batch.logits).sum(dim=1)
    torch.testing.assert_close(given, expected)
    if rival == "softmax":
        others = batch.logits.detach().clone()
        others[rows, case.labels] = -torch.inf
        entropy = torch.special.entr(shares).sum(dim=1)
        torch.testing.assert_close(given - (batch.logits[rows, case.labels] - others.logsumexp(dim=1)), entropy)


def test_classes_with_the_same_weights_have_no_difference():
    maps = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1, 1)
    maps[1] = 0.0  # a head of zeros
    maps.requires_grad_()
    terms = DivisiveDifference().terms(synthetic(maps))
    terms.sum().backward()
    assert not terms.any()
    assert not maps.grad.any()


def test_what_both_maps_share_changes_nothing():
    maps = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    common = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    guidance = DivisiveDifference()
    terms = guidance.terms(synthetic(maps))
    torch.testing.assert_close(guidance.terms(synthetic(maps + 3 * common)), terms)
    terms.sum().backward()
    torch.testing.assert_close(maps.grad.sum(dim=1), torch.zeros(2, 3, 4, dtype=torch.float64))


def test_defaults():
    assert (DivisiveDifference.default_task_weight, DivisiveDifference.default_weight) == (0.5, 0.5)
    assert DivisiveDifference.reconstructed
    assert "2507.17000" in DivisiveDifference.paper
    assert "the authors' may differ" in DivisiveDifference.__doc__
    guidance = DivisiveDifference()
    assert repr(guidance) == "DivisiveDifference(distance='mse', rival='softmax', resize='area', positive=False)"
