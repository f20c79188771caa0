"""The energy loss against a float64 loop."""

import pytest
import torch
from map_oracle import EMPTY, FULL, ROWS, UNANNOTATED, Case, cells, check, counting_rows, min_max, synthetic

from hf_salguide.guidance.energy import Energy


def share_outside(cam, target):
    positive = [max(value, 0 * value) for value in cells(cam)]
    inside = sum(value * where for value, where in zip(positive, cells(target), strict=True))
    return 1 - inside / sum(positive)


def term_of(cam_class):
    def term(case, row):
        logits = torch.stack(case.logits(row))
        label = int(case.labels[row]) if cam_class == "true" else int(logits.argmax())
        return share_outside(case.cam(row, label), min_max(case.target(row)))

    return term


@pytest.mark.parametrize("cam_class", ["true", "predicted"])
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_and_gradients_equal_a_float64_loop(classes, cam_class):
    case = Case(classes, seed=1)
    case.annotated[EMPTY] = False  # as with empty masks that are skipped
    assert any(torch.stack(case.logits(row)).argmax() != case.labels[row] for row in counting_rows())
    check(Energy(cam_class=cam_class), case, term_of(cam_class))


def test_a_full_mask_counts_0_and_an_empty_one_that_is_annotated_1_and_neither_pulls():
    case = Case(4)
    terms = Energy().terms(case.batch())
    assert terms[FULL] == 0
    torch.testing.assert_close(terms[EMPTY], torch.ones((), dtype=torch.float64))
    assert terms[UNANNOTATED] == 0
    (gradient,) = torch.autograd.grad(terms[[EMPTY, FULL, UNANNOTATED]].sum(), case.features)
    assert gradient.abs().max() < 1e-12


def test_a_mask_without_a_place_stays_as_it_is():
    maps = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    terms = Energy().terms(synthetic(maps, saliency=torch.full((1, 6, 8), 0.25)))
    torch.testing.assert_close(terms, torch.tensor([0.75]))


def test_a_map_that_is_nowhere_positive_counts_0_without_a_gradient():
    maps = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    maps[0, 0] = -maps[0, 0].abs()
    maps.requires_grad_()
    terms = Energy().terms(synthetic(maps))
    terms.sum().backward()
    assert terms[0] == 0
    assert not maps.grad[0].any()
    assert terms[1] > 0


def test_it_is_one_minus_relevance_mass_accuracy():
    maps = torch.rand(4, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat(1, 2, 1, 1)
    mask = torch.zeros(4, 6, 8, dtype=torch.float64)
    mask[:, 2:, :4] = 1.0
    terms = Energy().terms(synthetic(maps, saliency=mask))
    for row in range(4):
        accuracy = maps[row, 0, 1:, :2].sum() / maps[row, 0].sum()
        torch.testing.assert_close(terms[row], 1 - accuracy)


def test_the_scale_of_the_map_changes_nothing_and_its_sign_does():
    maps = torch.randn(ROWS, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    terms = Energy().terms(synthetic(maps))
    torch.testing.assert_close(Energy().terms(synthetic(7 * maps)), terms)
    assert not torch.allclose(Energy().terms(synthetic(-maps)), terms)


def test_resize_is_taken():
    maps = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    area, bilinear = (Energy(resize=resize).terms(synthetic(maps)) for resize in ("area", "bilinear"))
    assert not torch.allclose(area, bilinear)


def test_defaults():
    assert (Energy.default_task_weight, Energy.default_weight) == (1.0, 1.0)
    assert Energy.accepts_empty_masks
    assert Energy.needs_annotation
    assert not Energy.reconstructed
    assert "ICCV 2023" in Energy.paper
    assert repr(Energy()) == "Energy(cam_class='true', resize='area')"
    with pytest.raises(ValueError, match="cam_class='false' is not known"):
        Energy(cam_class="false")
