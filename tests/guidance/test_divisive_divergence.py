"""The divergence of the normalised maps against a float64 loop."""

import pytest
import torch
from map_oracle import Case, check, counting_rows, each, min_max, squared, synthetic

from hf_salguide.guidance.divisive_divergence import DivisiveDivergence


def term_of(signed, rival):
    def term(case, row):
        true, false = min_max(case.cam(row, int(case.labels[row]))), min_max(case.false_cam(row, rival))
        gap = each(lambda i, j: true[i][j] - false[i][j])
        one_sided, both_sided = each(lambda i, j: max(gap[i][j], 0 * gap[i][j])), each(lambda i, j: abs(gap[i][j]))
        return squared(one_sided if signed else both_sided, min_max(case.target(row)))

    return term


@pytest.mark.parametrize("rival", ["softmax", "max", "mean"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_and_gradients_equal_a_float64_loop(classes, signed, rival):
    check(DivisiveDivergence(rival=rival, signed=signed), Case(classes), term_of(signed, rival))


def test_the_form_it_takes_where_the_weights_of_the_classes_are_opposite():
    """Both ends of the map count as divergence."""
    case = Case(2, opposite=True)
    terms = DivisiveDivergence().terms(case.batch())
    for row in counting_rows():
        normalized = min_max(case.cam(row, int(case.labels[row])))
        ends = each(lambda i, j, normalized=normalized: abs(2 * normalized[i][j] - 1))
        torch.testing.assert_close(terms[row], squared(ends, min_max(case.target(row))))


def test_swapping_the_classes_changes_the_signed_one_alone():
    maps = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    for signed in (False, True):
        guidance = DivisiveDivergence(signed=signed)
        given, swapped = guidance.terms(synthetic(maps)), guidance.terms(synthetic(maps.flip(1)))
        assert torch.allclose(given, swapped) is not signed


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_classes_with_the_same_map_do_not_count(shift):
    maps = torch.randint(-3, 4, (2, 2, 3, 4), generator=torch.Generator().manual_seed(0)).float()
    maps[0, 1] = maps[0, 0] + shift
    maps.requires_grad_()
    terms = DivisiveDivergence().terms(synthetic(maps))
    terms.sum().backward()
    assert terms[0] == 0
    assert not maps.grad[0].any()
    assert terms[1] > 0


@pytest.mark.parametrize("flat", [0, 1])
def test_a_row_with_one_constant_map_does_not_count(flat):
    maps = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    maps[0, flat] = 3.0
    maps.requires_grad_()
    terms = DivisiveDivergence().terms(synthetic(maps))
    terms.sum().backward()
    assert terms[0] == 0
    assert not maps.grad[0].any()


def test_a_signed_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(ValueError, match="signed='yes' has to be true or false"):
        DivisiveDivergence(signed="yes")


def test_defaults():
    assert (DivisiveDivergence.default_task_weight, DivisiveDivergence.default_weight) == (0.5, 0.5)
    assert DivisiveDivergence.reconstructed
    assert "2507.17000" in DivisiveDivergence.paper
    assert "the authors' may differ" in DivisiveDivergence.__doc__
    guidance = DivisiveDivergence()
    assert repr(guidance) == "DivisiveDivergence(distance='mse', rival='softmax', resize='area', signed=False)"
