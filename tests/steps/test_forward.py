"""The one forward of a guided step: what it computes, what it leaves alone."""

import copy

import pytest
import torch
from support import MODELS, SIZES, Rows, build, make_batch, make_trainer

from hf_salguide import get_guidance, saliency_maps
from hf_salguide.guidance import Pictures
from hf_salguide.steps import Draws, GuidedForward, make_plan, step_saliency

SEVERAL = ["cyborg", "divisive_difference", "actdiff", "sage", "rrr"]


def forward_of(model, names, batch, training=True, **options):
    """A guided forward that was run, and the methods."""
    methods = [get_guidance(name, **options.get(name, {})) for name in names]
    size = tuple(batch["pixel_values"].shape[-2:])
    plan = make_plan(model, methods, size)
    saliency = batch["saliency"].float() / 255
    draws = Draws(0, 3, torch.arange(len(saliency)))
    pictures = Pictures(batch["pixel_values"], saliency, batch["has_saliency"], draws.uniform(""))
    forward = GuidedForward(model, plan, pictures, draws, model, training)
    outputs = forward(pixel_values=batch["pixel_values"], labels=batch["labels"])
    return forward, methods, outputs


@pytest.mark.parametrize("name", MODELS)
def test_the_task_does_not_see_the_views(name):
    """Outputs, the task's loss and batch statistics are those of a plain step, bit by bit or to rounding."""
    batch = make_batch(SIZES.get(name, (64, 96)))
    model = build(name).train()
    plain = copy.deepcopy(model)
    expected = plain(pixel_values=batch["pixel_values"], labels=batch["labels"])
    forward, _, outputs = forward_of(model, SEVERAL, batch)
    assert len(forward._all_logits) == 5 + 3 * (1 + 2)  # three rows count: one view of actdiff, two of sage
    torch.testing.assert_close(outputs["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["loss"], expected["loss"], rtol=1e-5, atol=1e-6)
    for (key, buffer), (_, other) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["resnet", "vit_class_token", "vit_average"])
def test_what_a_method_sees_is_what_it_would_see_alone(name):
    batch = make_batch()
    model = build(name).eval()
    forward, methods, _ = forward_of(model, SEVERAL, batch)
    for method in methods:
        together = method.terms(forward.batch(method, batch["labels"], 5))
        single, (same,), _ = forward_of(build(name).eval(), [method.name], batch)
        alone = same.terms(single.batch(same, batch["labels"], 5))
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


def test_views_are_those_of_a_forward_of_their_own():
    batch = make_batch()
    model = build("vit_average").eval()
    forward, (method,), _ = forward_of(model, ["actdiff"], batch)
    (view,) = forward.batch(method, batch["labels"], 5).views
    pictures = forward.pictures
    rows = pictures.annotated.nonzero().squeeze(1)
    seen = Pictures(pictures.pixel_values, pictures.saliency, pictures.annotated, forward.draws.uniform("actdiff"))
    made = method.views(seen.rows(rows))[0]
    torch.testing.assert_close(view.logits, model(pixel_values=made).logits, rtol=1e-4, atol=1e-5)
    assert (made != pictures.pixel_values[rows]).any()


@pytest.mark.parametrize("name", ["resnet", "convnext", "vit_class_token"])
def test_maps_are_those_of_saliency_maps(name):
    batch = make_batch()
    model = build(name).eval()
    forward, (method, _), _ = forward_of(model, ["cyborg", "actdiff"], batch)
    maps = forward.batch(method, batch["labels"], 5).class_map(batch["labels"])
    expected = saliency_maps(model, batch["pixel_values"], batch["labels"])
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_difference_map_is_complete(classes):
    """`mean(Ct - Cf) + b_y - sum_j q_j b_j = z_y - sum_j q_j z_j`, the decision and not its logsumexp."""
    batch = make_batch()
    torch.manual_seed(0)
    from hf_salguide import as_classifier
    from hf_salguide.guidance.map_guidance import rival_weights

    model = as_classifier("test_resnet", num_labels=classes, image_size=(64, 96)).eval()
    labels = batch["labels"] % classes
    forward, (method,), _ = forward_of(model, ["divisive_difference"], {**batch, "labels": labels})
    seen = forward.batch(method, labels, 5)
    weights = torch.nn.functional.one_hot(labels, classes) - rival_weights(seen.logits, labels)
    bias = model.timm_model.get_classifier().bias
    decided = (weights * seen.logits).sum(1)
    torch.testing.assert_close(seen.map_of(weights).mean((1, 2)) + weights @ bias, decided, rtol=1e-4, atol=1e-5)


def test_the_identity_of_rrr_and_gradmask_with_two_classes():
    """`grad sum_k log p_k = (p_1 - p_0) grad (z_0 - z_1)`, row by row, without batch statistics."""
    batch = make_batch()
    torch.manual_seed(0)
    from hf_salguide import as_classifier

    model = as_classifier("test_vit", num_labels=2, image_size=(64, 96), global_pool="avg").eval()
    labels = batch["labels"] % 2
    options = {"gradmask": {"norm": "l2"}}
    forward, (rrr, gradmask), _ = forward_of(model, ["rrr", "gradmask"], {**batch, "labels": labels}, **options)
    squared = gradmask.terms(forward.batch(gradmask, labels, 5)).square()
    confidence = forward.batch(rrr, labels, 5).logits.softmax(1).diff(dim=1).squeeze(1).square()
    terms = rrr.terms(forward.batch(rrr, labels, 5))
    torch.testing.assert_close(terms, confidence * squared, rtol=1e-3, atol=1e-8)
    assert terms[batch["has_saliency"]].gt(0).all()


def test_both_engines_give_one_value_and_nearly_one_gradient():
    batch = make_batch()
    found = {}
    for engine in ("double_backward", "finite_difference"):
        model = build("vit_class_token").train()
        forward, (method,), _ = forward_of(model, ["gradmask"], batch, gradmask={"gradient_engine": engine})
        terms = method.terms(forward.batch(method, batch["labels"], 5))
        terms.sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found[engine] = terms.detach(), torch.cat(gradients)
    torch.testing.assert_close(found["double_backward"][0], found["finite_difference"][0], rtol=1e-3, atol=1e-6)
    one, other = (gradient for _, gradient in found.values())
    assert torch.cosine_similarity(one, other, dim=0) > 0.999


def test_the_second_forward_draws_what_the_first_drew(tmp_path):
    """With dropout the difference of two forwards would be that of their masks."""
    batch = make_batch()
    model = build("vit_class_token", drop_rate=0.2).train()
    trainer = make_trainer(model, tmp_path, guidance="gradmask")
    assert trainer.gradient_engines["gradmask"].engine == "finite_difference"
    torch.manual_seed(7)
    trainer.compute_loss(model, batch).backward()
    state = torch.random.get_rng_state()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    exact = build("vit_class_token", drop_rate=0.2).train()
    options = {"gradient_engine": "double_backward"}
    other = make_trainer(exact, tmp_path, guidance="gradmask", guidance_options=options)
    torch.manual_seed(7)
    other.compute_loss(exact, batch).backward()
    expected = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    assert torch.cosine_similarity(found, expected, dim=0) > 0.999
    assert torch.equal(torch.random.get_rng_state(), state)  # as many draws as one forward takes


@pytest.mark.parametrize("name", ["resnet", "vit_class_token"])
def test_the_wrapped_model_is_called_once(name, tmp_path):
    calls = []
    model = build(name).train()
    trainer = make_trainer(model, tmp_path, guidance=["cyborg", "actdiff", "sage", "gradmask"])
    model.register_forward_hook(lambda *_: calls.append(1))
    trainer.compute_loss(model, make_batch()).backward()
    engines = {choice.engine for choice in trainer.gradient_engines.values()}
    assert len(calls) == (2 if "finite_difference" in engines else 1)


def test_the_reference_reduction_is_the_sum_over_the_optimizer_step(tmp_path):
    batch = make_batch()
    options = {"reduction": "reference", "gradient_engine": "double_backward"}
    trainer = make_trainer(
        build("vit_average"), tmp_path, guidance="gradmask", guidance_options=options, guidance_weight=1.0
    )
    model = trainer.model.train()
    trainer.task_weight = 0.0
    term = trainer.compute_loss(model, batch).item()
    pictures = batch["pixel_values"].clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = model(pixel_values=pictures).logits
    rows = torch.arange(5)
    others = logits.masked_fill(torch.nn.functional.one_hot(batch["labels"], 3).bool(), -torch.inf)
    contrast = logits[rows, batch["labels"]] - others.logsumexp(1)
    (gradient,) = torch.autograd.grad(contrast.sum(), pictures)
    outside = 1 - batch["saliency"][:, None].float() / 255
    expected = (gradient * outside)[batch["has_saliency"]].abs().sum()
    assert term == pytest.approx(expected.item(), rel=1e-4)


def test_a_step_without_labels_or_saliency_stays_finite(tmp_path):
    batch = make_batch()
    nobody = {
        **batch,
        "has_saliency": torch.zeros(5, dtype=torch.bool),
        "saliency": torch.zeros_like(batch["saliency"]),
    }
    for name in ("resnet", "vit_class_token"):
        trainer = make_trainer(build(name), tmp_path, guidance=SEVERAL)
        model = trainer.model.train()
        loss = trainer.compute_loss(model, nobody)
        loss.backward()
        plain = build(name).train()
        expected = plain(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
        assert loss.item() == pytest.approx(trainer.task_weight * expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["transformers_vit", "swin"])
def test_extra_outputs_are_those_of_the_pictures(name):
    batch = make_batch(SIZES[name])
    model = build(name).eval()
    model.config.output_hidden_states = True
    plain = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
    _, _, outputs = forward_of(model, ["actdiff", "sage"], batch)
    assert list(outputs) == list(plain)
    assert len(outputs["hidden_states"]) == len(plain["hidden_states"]) > 1
    assert isinstance(outputs["hidden_states"], tuple)
    for found, expected in zip(outputs["hidden_states"], plain["hidden_states"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.hidden_states[0], outputs["hidden_states"][0])


@pytest.mark.parametrize(("control", "row"), [({"invert": True}, 0), ({}, 1)])
def test_what_is_empty_after_the_controls_does_not_count(control, row):
    """A full mask, inverted, is empty, as an empty one is without the control."""
    saliency = torch.full((3, 4, 6), 255, dtype=torch.uint8)
    saliency[1] = 0
    saliency[2, :2] = 0
    batch = {
        "pixel_values": torch.rand(3, 3, 4, 6),
        "saliency": saliency,
        "has_saliency": torch.ones(3, dtype=torch.bool),
    }
    draws = Draws(0, 0, torch.arange(3))
    _, counts = step_saliency(batch, draws, "skip", **control)
    expected = [True, False, True]
    expected[row] = False
    assert counts.tolist() == expected
    _, counts = step_saliency(batch, draws, "penalise_all", **control)
    assert counts.tolist() == [True] * 3


def test_an_inverted_full_mask_blackens_no_picture(tmp_path):
    batch = make_batch()
    batch["saliency"][0] = 255
    trainer = make_trainer(build("resnet"), tmp_path, guidance="mask_everything", invert_saliency=True)
    seen = trainer._forward(trainer.model.eval(), batch, False).pictures.pixel_values
    assert torch.equal(seen[0], batch["pixel_values"][0])
    assert not torch.equal(seen[1], batch["pixel_values"][1])


@pytest.mark.parametrize(("method", "options"), [("cyborg", {}), ("divisive_difference", {})])
def test_a_compiled_resnet_has_the_loss_and_the_gradient_of_the_plain_one(method, options, tmp_path):
    batch, found = make_batch(), []
    for compiled in (False, True):
        model = build("resnet").train()
        trainer = make_trainer(model, tmp_path, guidance=method, guidance_options=options)
        called = torch.compile(model, backend="aot_eager") if compiled else model
        loss = trainer.compute_loss(called, batch)
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)


def test_a_compiled_resnet_is_trained_with_cyborg(tmp_path):
    weights = []
    for arguments in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        model = build("resnet")
        rows = Rows(make_batch((64, 96), 8, annotated=[True, True, False] * 8))
        trainer = make_trainer(
            model, tmp_path, guidance="cyborg", train_dataset=rows, max_steps=2, optim="sgd", **arguments
        )
        trainer.train()
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_reentrant_checkpointing_is_named(tmp_path):
    model = build("transformers_vit").train()
    options = {"gradient_engine": "double_backward"}
    trainer = make_trainer(model, tmp_path, guidance="gradmask", guidance_options=options)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(RuntimeError, match=r"use_reentrant=True.*[Ss]witch gradient checkpointing off"):
        trainer.compute_loss(model, make_batch((64, 64)))
