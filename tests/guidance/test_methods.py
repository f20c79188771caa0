"""The suite that every registered method passes, on every kind of backbone."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from support import MODELS, SIZES, build, make_batch, make_trainer

from hf_salguide import get_guidance, list_guidance
from hf_salguide.guidance import GuidanceBatch, Pictures, StatefulGuidance, View, guidance_class, guidance_options
from hf_salguide.maps import keyed_uniform

METHODS = list_guidance()
TERMS = [name for name in METHODS if not guidance_class(name).transforms_inputs]
TRANSFORMS = [name for name in METHODS if guidance_class(name).transforms_inputs]
MAPS = [name for name in TERMS if guidance_class(name).needs_maps]
every_method = pytest.mark.parametrize("method", METHODS)
every_term = pytest.mark.parametrize("method", TERMS)
COLUMNS = {"pooled": 7}


def batch_for(name, **kwargs):
    return make_batch(SIZES.get(name, (64, 96)), **kwargs)


def guidance_loss(trainer, batch):
    """The weighted guidance term of a batch, alone."""
    task_weight, trainer.task_weight = trainer.task_weight, 0.0
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.task_weight = task_weight
    return loss


def made(method):
    """A method, ready for terms."""
    guidance = get_guidance(method)
    if isinstance(guidance, StatefulGuidance):
        guidance.setup({name: torch.Size([width]) for name, width in COLUMNS.items()}, torch.device("cpu"), 0)
    return guidance


def small_model(pictures, permutation=None):
    """Class maps `(B, 3, 4, 6)`, logits and pooled features of pictures `(B, 3, 16, 24)`: smooth, and row by row."""
    generator = torch.Generator().manual_seed(5)
    kernel = torch.randn(3, 3, 4, 4, generator=generator)
    if permutation is not None:
        kernel = kernel[permutation.argsort()]
    maps = torch.tanh(F.conv2d(pictures, kernel, stride=4) / 3)
    pooled = torch.tanh(F.conv2d(pictures, torch.randn(7, 3, 4, 4, generator=generator), stride=2) / 3).mean((2, 3))
    return maps, 3 * maps.mean(dim=(2, 3)) + pooled[:, :1] * 0.1, {"pooled": pooled}


def synthetic_batch(guidance, pictures, saliency, annotated=None, labels=None, keys=None, permutation=None, maps=None):
    """What a method sees of a small model's forward, views and gradients included."""
    count = len(pictures)
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    annotated = torch.ones(count, dtype=torch.bool) if annotated is None else annotated
    keys = torch.arange(count) if keys is None else keys
    seen = Pictures(pictures, saliency, annotated, lambda n: keyed_uniform(keys, n, 0, 0))
    given, logits, features = small_model(pictures, permutation)
    maps = given if maps is None else maps
    views = []
    for view in guidance.views(seen.rows(annotated.nonzero().squeeze(1))):
        _, view_logits, view_features = small_model(view, permutation)
        views.append(View(view_logits, view_features))

    def gradient_penalty(scalar, penalty):
        (gradient,) = torch.autograd.grad(scalar(logits).sum(), pictures, create_graph=True)
        return penalty(gradient)

    return GuidanceBatch(
        logits,
        labels,
        saliency,
        annotated,
        lambda weights: (weights[:, :, None, None] * maps).sum(1),
        gradient_penalty,
        features,
        views,
    )


def random_pictures(count=4, seed=0):
    pictures = torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(seed))
    saliency = torch.rand(count, 16, 24, generator=torch.Generator().manual_seed(seed + 1))
    return pictures.requires_grad_(), saliency


@every_method
def test_a_method_can_be_made_again_from_its_options(method):
    guidance = get_guidance(method)
    assert set(guidance.options) == set(guidance_options(type(guidance)))
    again = get_guidance(method, **json.loads(json.dumps(guidance.options)))
    assert repr(again) == repr(guidance)


@every_term
def test_terms_are_one_number_a_sample(method):
    pictures, saliency = random_pictures()
    guidance = made(method)
    terms = guidance.terms(synthetic_batch(guidance, pictures, saliency))
    assert terms.shape == (4,)
    assert terms.dtype == torch.float32
    assert torch.isfinite(terms).all()
    assert (terms > 0).all()


@every_term
def test_unannotated_rows_count_nothing_and_change_nothing(method):
    guidance = made(method)
    if not guidance.needs_annotation:
        pytest.skip("needs no annotation")
    pictures, saliency = random_pictures()
    annotated = torch.tensor([True, False, True, False])
    terms = guidance.terms(synthetic_batch(guidance, pictures, saliency, annotated))
    terms.sum().backward()
    assert torch.equal(terms[~annotated], torch.zeros(2))
    assert pictures.grad[~annotated].abs().max() == 0
    assert pictures.grad[annotated].abs().amax(dim=(1, 2, 3)).gt(0).all()
    rows = annotated.nonzero().squeeze(1)
    alone = pictures[annotated].detach().requires_grad_()
    expected = guidance.terms(synthetic_batch(guidance, alone, saliency[annotated], keys=rows))
    torch.testing.assert_close(terms[annotated], expected)


@every_term
@pytest.mark.parametrize("degenerate", ["constant picture", "empty mask", "full mask", "nobody annotated"])
def test_degenerate_rows_are_finite_and_do_not_explode(method, degenerate):
    guidance = made(method)
    pictures, saliency = random_pictures()
    annotated = torch.ones(4, dtype=torch.bool)
    pictures, saliency = pictures.detach().clone(), saliency.clone()
    if degenerate == "constant picture":
        pictures[0] = 0.3
    elif degenerate == "empty mask":
        saliency[0] = 0.0
    elif degenerate == "full mask":
        saliency[0] = 1.0
    else:
        annotated[:] = False
    pictures.requires_grad_()
    terms = guidance.terms(synthetic_batch(guidance, pictures, saliency, annotated))
    (terms.sum() + 0 * pictures.sum()).backward()  # a batch in which nobody is annotated may leave the graph
    assert torch.isfinite(terms).all()
    assert torch.isfinite(pictures.grad).all()
    assert pictures.grad[0].abs().max() <= 100 * pictures.grad[1].abs().max() + 1e-6
    if degenerate == "full mask" and guidance.needs_annotation and not isinstance(guidance, StatefulGuidance):
        assert terms[0] < 1e-6  # nothing is outside, or the mask says nothing of the place
        assert pictures.grad[0].abs().max() < 1e-6
    if degenerate == "nobody annotated" and guidance.needs_annotation:
        assert torch.equal(terms, torch.zeros(4))
        assert pictures.grad.abs().max() == 0


@pytest.mark.parametrize("method", MAPS)
@pytest.mark.parametrize("constant", [3.0, 0.0])
def test_a_constant_map_counts_nothing(method, constant):
    pictures, saliency = random_pictures()
    maps = torch.randn(4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    maps[0] = constant
    maps.requires_grad_()
    guidance = made(method)
    terms = guidance.terms(synthetic_batch(guidance, pictures, saliency, maps=maps))
    terms.sum().backward()
    assert torch.isfinite(terms).all()
    assert torch.isfinite(maps.grad).all()
    if method != "energy" or constant == 0:  # a constant positive map has energy outside
        assert terms[0] == 0
        assert maps.grad[0].abs().max() == 0
    assert terms[1:].gt(0).all()


@every_term
def test_soft_maps_stay_soft(method):
    guidance = made(method)
    if not guidance.needs_annotation:
        pytest.skip("reads no saliency")
    pictures, saliency = random_pictures()
    soft = guidance.terms(synthetic_batch(guidance, pictures, saliency))
    hard = guidance.terms(synthetic_batch(guidance, pictures, (saliency > 0.5).float()))
    assert (soft - hard).abs().min() > 0
    assert (soft - hard).abs().mean() > 1e-6


@every_term
def test_permuted_classes_leave_the_terms_alone(method):
    guidance = made(method)
    pictures, saliency = random_pictures()
    labels = torch.tensor([0, 1, 2, 1])
    permutation = torch.tensor([2, 0, 1])
    expected = guidance.terms(synthetic_batch(guidance, pictures, saliency, labels=labels))
    permuted = synthetic_batch(guidance, pictures, saliency, labels=permutation[labels], permutation=permutation)
    torch.testing.assert_close(guidance.terms(permuted), expected)


@every_term
def test_rows_do_not_see_each_other(method):
    guidance = made(method)
    pictures, saliency = random_pictures()
    whole = guidance.terms(synthetic_batch(guidance, pictures, saliency))
    for row in range(4):
        one = pictures[row : row + 1].detach().requires_grad_()
        keys = torch.tensor([row])
        alone = guidance.terms(synthetic_batch(guidance, one, saliency[row : row + 1], keys=keys))
        torch.testing.assert_close(alone[0], whole[row])


@pytest.mark.parametrize("method", TRANSFORMS)
def test_transforms_change_the_outside_of_annotated_rows_alone(method):
    pictures, saliency = random_pictures()
    pictures, saliency = pictures.detach(), (saliency > 0.5).float()
    annotated = torch.tensor([True, False, True, True])
    before = pictures.clone()
    seen = Pictures(pictures, saliency, annotated, lambda n: keyed_uniform(torch.arange(4), n, 0, 0))
    changed = get_guidance(method).transform(seen)
    inside = saliency[:, None].expand_as(pictures) > 0.5
    assert torch.equal(pictures, before)
    assert torch.equal(changed[1], pictures[1])
    assert torch.equal(changed[inside], pictures[inside])
    assert (changed != pictures)[annotated].any(dim=(1)).float().mean() > 0.1
    terms = get_guidance(method).terms(synthetic_batch(get_guidance(method), pictures, saliency))
    assert torch.equal(terms, torch.zeros(4))


@pytest.mark.parametrize("method", TRANSFORMS)
def test_transforms_act_in_training_and_where_they_say_so_in_evaluation(method, tmp_path):
    batch = batch_for("vit_average")
    plain = build("vit_average")(pixel_values=batch["pixel_values"]).logits
    for training in (True, False):
        trainer = make_trainer(build("vit_average"), tmp_path, guidance=method)
        trainer.model.train(training)
        _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        changed = (outputs["logits"] - plain).abs().amax(dim=1) > 1e-4
        acts = training or guidance_class(method).transforms_evaluation
        assert torch.equal(changed, batch["has_saliency"] & acts)
    unlabelled = {key: value for key, value in batch.items() if key != "labels"}
    _, logits, _ = trainer.prediction_step(trainer.model, unlabelled, prediction_loss_only=False)
    changed = (logits - plain).abs().amax(dim=1) > 1e-4
    assert torch.equal(changed, batch["has_saliency"] & guidance_class(method).transforms_evaluation)


@every_term
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


@every_term
@pytest.mark.parametrize("name", ["resnet", "vit_class_token"])
def test_loss_and_gradient_are_linear_in_the_weight(method, name, tmp_path):
    check_linear_in_the_weight(name, tmp_path, guidance=method)


@pytest.mark.parametrize("engine", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("method", [name for name in TERMS if guidance_class(name).cost == "gradient"])
def test_loss_and_gradient_are_linear_in_the_weight_for_both_engines(method, engine, tmp_path):
    options = {"gradient_engine": engine}
    check_linear_in_the_weight("vit_average", tmp_path, guidance=method, guidance_options=options)


def check_linear_in_the_weight(name, tmp_path, **arguments):
    gradients, losses = [], []
    for weight in (1.0, 2.5):
        model = build(name).train()
        trainer = make_trainer(model, tmp_path, guidance_weight=weight, **arguments)
        loss = guidance_loss(trainer, batch_for(name))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    assert losses[1] == pytest.approx(2.5 * losses[0], rel=1e-5)
    assert losses[0] > 0
    assert gradients[0].norm() > 1e-4
    # A finite difference is one of two gradients that are nearly the same: it magnifies their rounding.
    differenced = any(choice.engine == "finite_difference" for choice in trainer.gradient_engines.values())
    tolerance = 1e-3 if differenced else 1e-5
    assert (gradients[1] - 2.5 * gradients[0]).norm() < tolerance * gradients[1].norm()


@every_term
def test_the_term_is_a_mean_over_the_micro_batch(method, tmp_path):
    if not get_guidance(method).needs_annotation:
        pytest.skip("needs no annotation")
    model = build("vit_average").train()
    trainer = make_trainer(model, tmp_path, guidance=method, guidance_weight=1.0)
    batch = batch_for("vit_average")
    whole = guidance_loss(trainer, batch)
    count = len(batch["labels"])
    rows = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(count)]
    trainer._train_batch_size, trainer._batch_key = 1, (-1, -1)  # so that each row draws what it drew in the batch
    parts = [guidance_loss(trainer, row) for row in rows]
    torch.testing.assert_close(whole, torch.stack(parts).sum() / count, rtol=1e-4, atol=1e-7)
    unannotated = [part for part, present in zip(parts, batch["has_saliency"], strict=True) if not present]
    assert all(part == 0 for part in unannotated)


@every_method
def test_batch_statistics_move_once_a_step(method, tmp_path):
    model = build("resnet").train()
    trainer = make_trainer(model, tmp_path, guidance=method)
    plain = copy.deepcopy(model)
    batch = batch_for("resnet")
    pictures = trainer._forward(model, batch, True).pictures.pixel_values
    trainer._batch_key = (-1, -1)
    trainer.compute_loss(model, batch).backward()
    plain(pixel_values=pictures)
    for (key, buffer), (_, expected) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=0, atol=0, msg=key)
    counters = [buffer for key, buffer in model.named_buffers() if key.endswith("num_batches_tracked")]
    assert counters
    assert all(counter == 1 for counter in counters)


@every_method
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


@every_method
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


@every_method
@pytest.mark.parametrize("name", MODELS)
def test_evaluation_under_no_grad_gives_the_same_terms(method, name, tmp_path):
    model = build(name).eval()
    trainer = make_trainer(model, tmp_path, guidance=method)
    batch = batch_for(name)
    expected = trainer.compute_loss(model, batch)
    trainer._batch_key = (-1, -1)
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-4, atol=1e-6)
    assert set(outputs) == {"loss", "logits"}


@every_term
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
