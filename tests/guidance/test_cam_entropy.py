"""The entropy of the class activation map against a float64 loop."""

import math

import pytest
import torch
from map_oracle import ROWS, Case, cells, check, min_max, synthetic

from hf_salguide.guidance.cam_entropy import CamEntropy


def term_of(cam_class):
    def term(case, row):
        logits = torch.stack(case.logits(row))
        label = int(case.labels[row]) if cam_class == "true" else int(logits.argmax())
        values = cells(min_max(case.cam(row, label)))
        shares = [value / sum(values) for value in values]
        return -sum(share * torch.log(share) for share in shares if share > 0)

    return term


@pytest.mark.parametrize("cam_class", ["true", "predicted"])
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_and_gradients_equal_a_float64_loop_in_every_row(classes, cam_class):
    case = Case(classes)
    assert any(torch.stack(case.logits(row)).argmax() != case.labels[row] for row in range(ROWS))
    check(CamEntropy(cam_class=cam_class), case, term_of(cam_class), rows=list(range(ROWS)))


def test_saliency_is_not_read():
    case = Case(4)
    nobody = case.batch(saliency=torch.full((ROWS, 6, 8), torch.nan), annotated=torch.zeros(ROWS, dtype=torch.bool))
    assert torch.equal(CamEntropy().terms(nobody), CamEntropy().terms(case.batch()))


def test_a_map_of_28_of_49_cells_has_the_entropy_of_28():
    maps = torch.zeros(2, 2, 7, 7)
    maps[0, 0].view(-1)[:28] = 5.0
    maps[1, 0, 2, 3] = 5.0
    terms = CamEntropy().terms(synthetic(maps))
    torch.testing.assert_close(terms, torch.tensor([math.log(28), 0.0]))
    assert terms[0].item() == pytest.approx(3.332, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_map_counts_0_without_a_gradient(value):
    maps = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    maps[0] = value
    maps.requires_grad_()
    terms = CamEntropy().terms(synthetic(maps))
    terms.sum().backward()
    assert terms[0] == 0
    assert not maps.grad[0].any()
    assert terms[1] > 0


def test_descending_it_focuses_the_map():
    maps = torch.rand(1, 2, 7, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = CamEntropy().terms(synthetic(maps))
    for _ in range(100):
        (gradient,) = torch.autograd.grad(CamEntropy().terms(synthetic(maps)).sum(), maps)
        maps = (maps - 0.03 * gradient).detach().requires_grad_()
    after = CamEntropy().terms(synthetic(maps))
    assert after < before - 0.1


def test_defaults():
    assert (CamEntropy.default_task_weight, CamEntropy.default_weight) == (1.0, 0.1)
    assert not CamEntropy.needs_annotation
    assert not CamEntropy.accepts_empty_masks
    assert CamEntropy.reconstructed
    assert "2303.00818" in CamEntropy.paper
    assert repr(CamEntropy()) == "CamEntropy(cam_class='true')"
    with pytest.raises(ValueError, match="cam_class='false' is not known"):
        CamEntropy(cam_class="false")
