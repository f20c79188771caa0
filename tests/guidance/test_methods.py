"""The suite that every registered method passes, on every kind of backbone."""

import copy

import pytest
import torch
from support import MODELS, SIZES, build, make_batch, make_trainer

from hf_salguide import get_guidance, list_guidance
from hf_salguide.guidance import GuidanceBatch

pytestmark = pytest.mark.parametrize("method", list_guidance())


def batch_for(name, **kwargs):
    return make_batch(SIZES.get(name, (64, 96)), **kwargs)


def guidance_loss(trainer, batch):
    """The weighted guidance term of a batch, alone."""
    task_weight, trainer.task_weight = trainer.task_weight, 0.0
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.task_weight = task_weight
    return loss


def synthetic_batch(maps, saliency, annotated=None, labels=None):
    """A `GuidanceBatch` whose class maps are given, `(B, K, h, w)`."""
    count = len(maps)
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    annotated = torch.ones(count, dtype=torch.bool) if annotated is None else annotated
    logits = maps.mean(dim=(2, 3)).requires_grad_()
    return GuidanceBatch(
        logits, labels, saliency, annotated, lambda weights: (weights[:, :, None, None] * maps).sum(1)
    )


def random_maps(count=4, classes=3, seed=0):
    maps = torch.randn(count, classes, 4, 6, generator=torch.Generator().manual_seed(seed))
    saliency = torch.rand(count, 16, 24, generator=torch.Generator().manual_seed(seed + 1))
    return maps.requires_grad_(), saliency


def test_terms_are_one_number_a_sample(method):
    maps, saliency = random_maps()
    terms = get_guidance(method).terms(synthetic_batch(maps, saliency))
    assert terms.shape == (4,)
    assert terms.dtype == torch.float32
    assert torch.isfinite(terms).all()
    assert (terms > 0).all()


def test_unannotated_rows_count_nothing_and_change_nothing(method):
    if not get_guidance(method).needs_annotation:
        pytest.skip("needs no annotation")
    maps, saliency = random_maps()
    annotated = torch.tensor([True, False, True, False])
    terms = get_guidance(method).terms(synthetic_batch(maps, saliency, annotated))
    terms.sum().backward()
    assert torch.equal(terms[~annotated], torch.zeros(2))
    assert maps.grad[~annotated].abs().max() == 0
    assert maps.grad[annotated].abs().amax(dim=(1, 2, 3)).gt(0).all()
    alone = get_guidance(method).terms(synthetic_batch(maps[annotated], saliency[annotated]))
    torch.testing.assert_close(terms[annotated], alone)


@pytest.mark.parametrize("degenerate", ["constant map", "zero map", "empty mask", "full mask", "nobody annotated"])
def test_degenerate_rows_are_finite_and_do_not_explode(method, degenerate):
    maps, saliency = random_maps()
    annotated = torch.ones(4, dtype=torch.bool)
    maps, saliency = maps.detach().clone(), saliency.clone()
    if degenerate == "constant map":
        maps[0] = 3.0
    elif degenerate == "zero map":
        maps[0] = 0.0
    elif degenerate == "empty mask":
        saliency[0] = 0.0
    elif degenerate == "full mask":
        saliency[0] = 1.0
    else:
        annotated[:] = False
    maps.requires_grad_()
    terms = get_guidance(method).terms(synthetic_batch(maps, saliency, annotated))
    terms.sum().backward()
    assert torch.isfinite(terms).all()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad[0].abs().max() <= 10 * maps.grad[1].abs().max()
    if degenerate != "nobody annotated" and not get_guidance(method).accepts_empty_masks:
        assert terms[0] == 0  # no shape or no place: nothing to match
        assert maps.grad[0].abs().max() == 0


def test_soft_maps_stay_soft(method):
    maps, saliency = random_maps()
    if not get_guidance(method).needs_annotation:
        pytest.skip("reads no saliency")
    soft = get_guidance(method).terms(synthetic_batch(maps, saliency))
    hard = get_guidance(method).terms(synthetic_batch(maps, (saliency > 0.5).float()))
    assert (soft - hard).abs().min() > 1e-4


def test_permuted_classes_leave_the_terms_alone(method):
    maps, saliency = random_maps()
    labels = torch.tensor([0, 1, 2, 1])
    permutation = torch.tensor([2, 0, 1])
    expected = get_guidance(method).terms(synthetic_batch(maps, saliency, labels=labels))
    permuted = torch.empty_like(maps)
    permuted[:, permutation] = maps
    terms = get_guidance(method).terms(synthetic_batch(permuted, saliency, labels=permutation[labels]))
    torch.testing.assert_close(terms, expected)


def test_rows_do_not_see_each_other(method):
    maps, saliency = random_maps()
    whole = get_guidance(method).terms(synthetic_batch(maps, saliency))
    for row in range(4):
        one = get_guidance(method).terms(synthetic_batch(maps[row : row + 1], saliency[row : row + 1]))
        torch.testing.assert_close(one[0], whole[row])


@pytest.mark.parametrize("name", MODELS)
def test_the_guidance_gradient_reaches_early_backbone_parameters(method, name, tmp_path):
    model = build(name).train()
    trainer = make_trainer(model, tmp_path, guidance=method)
    loss = guidance_loss(trainer, batch_for(name))
    loss.backward()
    assert torch.isfinite(loss)
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    first = next(key for key, value in model.named_parameters() if value.ndim > 1)
    assert gradients[first].abs().max() > 1e-9


@pytest.mark.parametrize("name", ["resnet", "vit_class_token"])
def test_loss_and_gradient_are_linear_in_the_weight(method, name, tmp_path):
    gradients, losses = [], []
    for weight in (1.0, 2.5):
        model = build(name).eval()
        trainer = make_trainer(model, tmp_path, guidance=method, guidance_weight=weight)
        model.train(name != "resnet")
        loss = guidance_loss(trainer, batch_for(name))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    assert losses[1] == pytest.approx(2.5 * losses[0], rel=1e-5)
    assert losses[0] > 0
    torch.testing.assert_close(gradients[1], 2.5 * gradients[0], rtol=1e-3, atol=1e-6)


def test_the_term_is_a_mean_over_the_micro_batch(method, tmp_path):
    if not get_guidance(method).needs_annotation:
        pytest.skip("needs no annotation")
    model = build("vit_average").train()
    trainer = make_trainer(model, tmp_path, guidance=method, guidance_weight=1.0)
    batch = batch_for("vit_average")
    whole = guidance_loss(trainer, batch)
    count = len(batch["labels"])
    rows = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(count)]
    parts = [guidance_loss(trainer, row) for row in rows]
    torch.testing.assert_close(whole, torch.stack(parts).sum() / count, rtol=1e-4, atol=1e-7)
    unannotated = [part for part, present in zip(parts, batch["has_saliency"], strict=True) if not present]
    assert all(part == 0 for part in unannotated)


def test_batch_statistics_move_once_a_step(method, tmp_path):
    model = build("resnet").train()
    trainer = make_trainer(model, tmp_path, guidance=method)
    plain = copy.deepcopy(model)
    batch = batch_for("resnet")
    trainer.compute_loss(model, batch).backward()
    plain(pixel_values=batch["pixel_values"])
    for (key, buffer), (_, expected) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=0, atol=0, msg=key)
    counters = [buffer for key, buffer in model.named_buffers() if key.endswith("num_batches_tracked")]
    assert counters
    assert all(counter == 1 for counter in counters)


@pytest.mark.parametrize("name", ["resnet", "vit_class_token"])
def test_nothing_is_left_behind_when_the_forward_fails(method, name, tmp_path):
    model = build(name).train()
    trainer = make_trainer(model, tmp_path, guidance=method)
    batch = batch_for(name)
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    broken = {**batch, "labels": torch.full_like(batch["labels"], 99)}
    with pytest.raises((IndexError, RuntimeError)):
        trainer.compute_loss(model, broken)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
    assert torch.is_grad_enabled()
    assert model.training
    assert torch.isfinite(trainer.compute_loss(model, batch))


@pytest.mark.parametrize("arguments", [{"random_saliency": True}, {"invert_saliency": True}])
@pytest.mark.parametrize("floating", [False, True])
def test_inputs_and_global_generators_are_left_alone(method, floating, arguments, tmp_path):
    model = build("resnet").train()
    trainer = make_trainer(model, tmp_path, guidance=method, label_smoothing_factor=0.1, **arguments)
    batch = batch_for("resnet")
    if floating:
        batch["saliency"] = batch["saliency"].float() / 255
    before = {key: value.clone() for key, value in batch.items()}
    state = torch.random.get_rng_state()
    trainer.compute_loss(model, batch, return_outputs=True)
    plain = make_trainer(model, tmp_path, guidance="none", label_smoothing_factor=0.1)
    plain.compute_loss(model, batch)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(batch) == list(before)
    assert all(torch.equal(batch[key], before[key]) for key in batch)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_under_no_grad_gives_the_same_terms(method, name, tmp_path):
    model = build(name).eval()
    trainer = make_trainer(model, tmp_path, guidance=method)
    batch = batch_for(name)
    expected = trainer.compute_loss(model, batch)
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-4, atol=1e-6)
    assert set(outputs) == {"loss", "logits"}


def test_the_controls_replace_the_saliency_of_annotated_rows_alone(method, tmp_path):
    if not get_guidance(method).needs_annotation:
        pytest.skip("reads no saliency")
    batch = batch_for("vit_average")
    losses = {}
    for control in ({}, {"invert_saliency": True}, {"random_saliency": True}):
        model = build("vit_average").train()
        trainer = make_trainer(model, tmp_path, guidance=method, **control)
        losses[str(control)] = guidance_loss(trainer, batch).item()
        nobody = {**batch, "has_saliency": torch.zeros(5, dtype=torch.bool), "saliency": 0 * batch["saliency"]}
        assert guidance_loss(trainer, nobody) == 0
    assert len(set(losses.values())) == 3
