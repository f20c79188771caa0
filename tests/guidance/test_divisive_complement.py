"""The true class's map to human saliency and the false one's to its complement, against a float64 loop."""

import pytest
import torch
from map_oracle import Case, absolute, check, counting_rows, each, min_max, squared, synthetic

from hf_salguide.guidance.cyborg import Cyborg
from hf_salguide.guidance.divisive_complement import DivisiveComplement


def term_of(distance, rival):
    def term(case, row):
        target = min_max(case.target(row))
        complement = each(lambda i, j: 1 - target[i][j])
        true = distance(min_max(case.cam(row, int(case.labels[row]))), target)
        return (true + distance(min_max(case.false_cam(row, rival)), complement)) / 2

    return term


@pytest.mark.parametrize("rival", ["softmax", "max", "mean"])
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_and_gradients_equal_a_float64_loop(classes, rival):
    check(DivisiveComplement(rival=rival), Case(classes), term_of(squared, rival))


def test_another_distance_is_taken_for_both_maps():
    check(DivisiveComplement(distance="l1"), Case(4), term_of(absolute, "softmax"))


@pytest.mark.parametrize("flat", [0, 1])
def test_a_row_counts_with_both_of_its_maps_or_not_at_all(flat):
    maps = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    maps[0, flat] = 3.0
    maps.requires_grad_()
    terms = DivisiveComplement().terms(synthetic(maps))
    terms.sum().backward()
    assert terms[0] == 0
    assert not maps.grad[0].any()
    assert terms[1] > 0


def test_it_is_cyborg_where_the_weights_of_the_classes_are_opposite():
    case = Case(2, opposite=True)
    torch.testing.assert_close(DivisiveComplement().terms(case.batch()), Cyborg().terms(case.batch()))
    assert DivisiveComplement().terms(case.batch())[counting_rows()].min() > 0.01


def test_defaults():
    assert (DivisiveComplement.default_task_weight, DivisiveComplement.default_weight) == (0.5, 0.5)
    assert DivisiveComplement.reconstructed
    assert "2507.17000" in DivisiveComplement.paper
    assert "the authors' may differ" in DivisiveComplement.__doc__
    assert repr(DivisiveComplement()) == "DivisiveComplement(distance='mse', rival='softmax', resize='area')"
