"""What is refused when the trainer is made, before any compute is spent."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
from support import Rows, build, make_batch, make_trainer
from torchvision.transforms import v2

from hf_salguide import SaliencyCollator, SaliencyTrainingArguments, get_guidance
from hf_salguide.backbones import is_checkpointed, is_reentrant
from hf_salguide.guidance import ActDiff, Cyborg, register_guidance, registry
from hf_salguide.steps import make_plan, refuse_counted_views


@pytest.mark.parametrize("method", ["cyborg", "divisive_difference", "energy", "actdiff", "sage"])
@pytest.mark.parametrize("name", ["resnet", "vit_class_token"])
def test_a_frozen_backbone(method, name, tmp_path):
    model = build(name)
    head = model.timm_model.get_classifier()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    message = f"guidance={method}: every parameter before .* is frozen.*unfreeze"
    with pytest.raises(ValueError, match=message):
        make_trainer(model, tmp_path, guidance=method, train_dataset=Rows(make_batch()))
    # To evaluate it is another matter, whatever the sizes of the pictures.
    trainer = make_trainer(model, tmp_path, guidance=method)
    if name == "resnet":
        for size in ((64, 96), (96, 96)):
            assert trainer.evaluate(Rows(make_batch(size)))[f"eval_{method}_loss"] > 0
    trainer.train_dataset = Rows(make_batch())
    with pytest.raises(ValueError, match=message):
        trainer.train()
    next(model.parameters()).requires_grad_(True)
    assert make_trainer(model, tmp_path, guidance=method, train_dataset=Rows(make_batch())).is_guided


def test_a_frozen_backbone_may_be_penalised_at_its_pictures(tmp_path):
    """The gradient with respect to the pictures depends on the head's weights, wherever the backbone is."""
    model = build("vit_average")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in model.timm_model.get_classifier().parameters():
        parameter.requires_grad_(True)
    options = {"gradient_engine": "double_backward"}
    rows = Rows(make_batch())
    trainer = make_trainer(model, tmp_path, guidance="gradmask", guidance_options=options, train_dataset=rows)
    trainer.compute_loss(model.train(), make_batch()).backward()
    assert model.timm_model.get_classifier().weight.grad.abs().max() > 0


class MixingCollator:
    def __init__(self, mix):
        self.collate = SaliencyCollator()
        self.mix = mix

    def __call__(self, rows):
        return self.mix(self.collate(rows))


def closure(mix):
    collate = SaliencyCollator()

    def collator(rows):
        return mix(collate(rows))

    return collator


def call(mix, rows):
    return mix(rows)


@pytest.mark.parametrize("mixing", [v2.MixUp, v2.CutMix])
@pytest.mark.parametrize(
    "hide",
    [
        MixingCollator,
        closure,
        lambda mix: partial(call, mix),
        lambda mix: MixingCollator(v2.RandomChoice([v2.Identity(), mix])).__call__,
    ],
    ids=["attribute", "closure", "partial", "method of a choice"],
)
def test_mixing_is_found_wherever_it_is_held(mixing, hide, tmp_path):
    collator = hide(mixing(num_classes=3))
    with pytest.raises(ValueError, match=rf"data_collator holds {mixing.__name__}, which mixes pictures"):
        make_trainer(build("resnet"), tmp_path, data_collator=collator)
    make_trainer(build("resnet"), tmp_path, data_collator=collator, guidance="none")


def test_timms_mixing_is_found(tmp_path):
    from timm.data import Mixup

    with pytest.raises(ValueError, match="data_collator holds Mixup"):
        make_trainer(build("resnet"), tmp_path, data_collator=MixingCollator(Mixup(mixup_alpha=0.2)))


@pytest.mark.parametrize(
    ("guidance", "options", "message"),
    [
        ("sage", {"margin": 0}, "margin=0 has to be a number above 0"),
        ("sage", {"margin": -1.0}, "margin=-1.0 has to be a number above 0"),
        ("sage", {"temperature": 0}, "temperature=0 has to be a number above 0"),
        ("sage", {"fill": "nothing"}, "fill='nothing' is not known; choose one of"),
        ("sage", {"triplet_weight": 0, "alignment_weight": 0}, "leave no saliency guidance"),
        ("actdiff", {"fill": "black"}, "fill='black' is not known"),
        ("actdiff", {"layers": []}, 'give "pooled", or a list of names'),
        ("actdiff_adversarial", {"discriminator_learning_rate": 0}, "discriminator_learning_rate=0 has to be"),
        ("actdiff_adversarial", {"discriminator_steps": 0}, "discriminator_steps=0"),
        ("map_guidance", {"map": "both"}, "map='both' is not known; choose one of 'true'"),
        ("map_guidance", {"target": "all"}, "target='all' is not known"),
        ("map_guidance", {"distance": "cosine"}, "distance='cosine' is not known"),
        ("map_guidance", {"map": ["true", "false"]}, "lists of the same length"),
        ("divisive_difference", {"rival": "min"}, "rival='min' is not known"),
        ("gradmask", {"at": "output"}, "at='output' is not known"),
        ("gradmask", {"gradient_engine": "exact"}, "gradient_engine='exact' is not known"),
        ("gradmask", {"at": "features", "gradient_engine": "finite_difference"}, 'cannot go with at="features"'),
        ("gradmask", {"classes": []}, r"classes=\[\] has to be a list of class ids"),
        ("rrr", {"reduction": "sum"}, "reduction='sum' is not known"),
        ("masked_input", {"fill": "blue"}, "fill='blue' is not known"),
        ("sage", {"normalise": "false"}, "normalise='false' has to be true or false"),
        ("sage", {"hard": 1}, "hard=1 has to be true or false"),
        ("sage", {"stop_gradient": "view"}, "stop_gradient='view' has to be true or false"),
        ("sage", {"degrade_weight": -1}, "degrade_weight=-1 has to be a number, 0 or above"),
        ("actdiff", {"normalise": "no"}, "normalise='no' has to be true or false"),
        ("actdiff", {"layers": None}, "layers=None: give"),
        ("actdiff", {"layers": 3}, "layers=3: give"),
        ("actdiff_adversarial", {"hidden_sizes": None}, "hidden_sizes=None has to be a list of whole numbers"),
        ("actdiff_adversarial", {"hidden_sizes": 3.5}, "hidden_sizes=3.5 has to be a list of whole numbers"),
    ],
)
def test_bad_options(tmp_path, guidance, options, message):
    with pytest.raises(ValueError, match=message):
        SaliencyTrainingArguments(str(tmp_path), guidance=guidance, guidance_options=options)


def test_a_layer_that_does_not_exist(tmp_path):
    options = {"layers": ["timm_model.layer9"]}
    with pytest.raises(ValueError, match=r"timm_model\.layer9.*timm_model\.layer"):
        make_trainer(build("resnet"), tmp_path, guidance="actdiff", guidance_options=options)


def test_an_engine_that_the_model_cannot_do(tmp_path):
    options = {"gradient_engine": "finite_difference"}
    with pytest.raises(ValueError, match='gradient_engine="finite_difference" is not possible.*do not agree'):
        make_trainer(build("resnet"), tmp_path, guidance="gradmask", guidance_options=options)
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    options = {"gradient_engine": "double_backward"}
    with pytest.raises(ValueError, match='gradient_engine="double_backward" is not possible.*torch_compile'):
        make_trainer(build("vit_average"), tmp_path, guidance="rrr", guidance_options=options, **compiled)
    with pytest.raises(ValueError, match=r'gradient_engine="auto" is not possible.*leave torch_compile out'):
        make_trainer(build("resnet"), tmp_path, guidance="rrr", **compiled)
    options = {"at": "features"}
    with pytest.raises(ValueError, match="torch_compile=True: guidance takes a gradient.*leave torch_compile out"):
        make_trainer(build("vit_class_token"), tmp_path, guidance="rrr", guidance_options=options, **compiled)
    assert make_trainer(build("resnet"), tmp_path, guidance="rrr", guidance_options=options, **compiled)._plan.tail
    trainer = make_trainer(build("vit_average"), tmp_path, guidance="rrr", **compiled)
    assert trainer.gradient_engines["rrr"].engine == "finite_difference"


@pytest.mark.parametrize(
    ("argument", "kind", "message"),
    [
        ("torch_compile", "separate", 'batch_norm="separate" would be compiled for each number.*set batch_norm='),
        ("gradient_checkpointing", "pictures", 'views cannot keep batch_norm="pictures".*set batch_norm="concat"'),
        ("gradient_checkpointing", "separate", 'views cannot keep batch_norm="separate".*set batch_norm="concat"'),
    ],
)
def test_views_that_could_not_keep_their_batch_statistics(argument, kind, message, tmp_path):
    arguments = {argument: True, "torch_compile_backend": "eager"} if "compile" in argument else {argument: True}
    options = {"batch_norm": kind}
    with pytest.raises(ValueError, match=f"{argument}=True: {message}"):
        make_trainer(build("resnet"), tmp_path, guidance="actdiff", guidance_options=options, **arguments)
    make_trainer(build("resnet"), tmp_path, guidance="actdiff", guidance_options={"batch_norm": "concat"}, **arguments)
    make_trainer(build("vit_average"), tmp_path, guidance="actdiff", **arguments)


def test_views_of_one_forward_have_one_kind_of_batch_statistics(tmp_path):
    options = {"sage": {"batch_norm": "concat"}}
    with pytest.raises(ValueError, match=r"batch_norm=\['concat', 'pictures'\]: methods that share a forward"):
        make_trainer(build("resnet"), tmp_path, guidance=["actdiff", "sage"], guidance_options=options)


def test_a_plan_holds_no_more_than_its_methods_need(tmp_path):
    expected = {
        "cyborg": (True, False, 0),
        "actdiff": (False, True, 0),
        "gradmask": (False, False, 1),
        "masked_input": (False, False, 0),
    }
    for method, (layer, pooled, engines) in expected.items():
        plan = make_trainer(build("vit_average"), tmp_path, guidance=method)._plan
        assert (plan.feature_layer is not None, plan.pooled is not None, len(plan.engines)) == (layer, pooled, engines)
    args = SaliencyTrainingArguments(str(tmp_path), guidance="rrr", guidance_options={"at": "features"})
    plan = make_plan(build("resnet"), args.build_guidance(), (64, 96))
    assert plan.feature_layer is not None
    assert plan.tail_gradient
    assert not plan.input_gradient


def test_an_engine_does_not_change_in_the_middle_of_a_run(tmp_path):
    trainer = make_trainer(build("convnext"), tmp_path, guidance="gradmask", train_dataset=Rows(make_batch()))
    chosen = trainer.gradient_engines["gradmask"]
    trainer.compute_loss(trainer.model.train(), make_batch((96, 96)))
    assert trainer.gradient_engines["gradmask"] is chosen
    assert torch.is_grad_enabled()


def test_mixed_precision_from_the_environment_is_seen(tmp_path, monkeypatch):
    assert make_trainer(build("vit_average"), tmp_path)._how_run["mixed_precision"] is False
    assert make_trainer(build("vit_average"), tmp_path, bf16=True)._how_run["mixed_precision"] is True
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    options = {"gradient_engine": "finite_difference"}
    with pytest.raises(ValueError, match="not possible.*half precision are rounding noise"):
        make_trainer(build("vit_average"), tmp_path, guidance="rrr", guidance_options=options)
    trainer = make_trainer(build("vit_average"), tmp_path, guidance="rrr")
    assert trainer.gradient_engines["rrr"].engine == "double_backward"


def test_compilation_from_the_environment_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with pytest.raises(ValueError, match="torch_compile=True: guidance takes a gradient"):
        make_trainer(build("vit_class_token"), tmp_path)
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND")
    model = build("vit_class_token")
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="torch_compile=True: guidance takes a gradient"):
        make_trainer(model, tmp_path)
    assert make_trainer(build("vit_class_token"), tmp_path)._how_run["compiled"] is False


@pytest.mark.parametrize("name", ["resnet", "transformers_vit"])
def test_checkpointing_that_the_user_switched_on_is_seen(name, tmp_path):
    model = build(name)
    model.gradient_checkpointing_enable()
    assert make_trainer(model, tmp_path, guidance="none")._how_run["checkpointed"] is True
    assert make_trainer(build(name), tmp_path, guidance="none")._how_run["checkpointed"] is False
    if name == "resnet":
        with pytest.raises(ValueError, match="gradient_checkpointing=True: views cannot keep"):
            make_trainer(model, tmp_path, guidance="actdiff")
        later = make_trainer(build(name), tmp_path, guidance="actdiff", train_dataset=Rows(make_batch()), max_steps=1)
        later.model.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match="gradient_checkpointing=True: views cannot keep"):
            later.train()


def test_views_of_a_compiled_model_with_batch_normalisation_come_in_a_few_sizes():
    def few(name, **how):
        return make_plan(build(name), [get_guidance("actdiff")], (64, 96), **how).few_sizes

    assert few("resnet", compiled=True)
    assert few("convnext", compiled=True, static=True)
    assert not few("resnet")
    assert not few("convnext", compiled=True)


def test_a_model_that_is_compiled_in_place_is_tried_as_it_is(tmp_path):
    model = build("vit_average")
    model.compile(backend="aot_eager")
    trainer = make_trainer(model, tmp_path, guidance="rrr")
    assert trainer._how_run["compiled"]
    assert trainer.gradient_engines["rrr"].engine == "finite_difference"


def test_synchronised_batch_norm_goes_with_one_batch_of_pictures_and_views():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(build("resnet"))
    with pytest.raises(ValueError, match=r'SyncBatchNorm in 2 processes.*set batch_norm="concat"'):
        make_plan(model, [get_guidance("actdiff")], (64, 96), processes=2)
    assert make_plan(model, [get_guidance("actdiff")], (64, 96)).makes_views
    assert make_plan(model, [get_guidance("actdiff", batch_norm="concat")], (64, 96), processes=2).makes_views
    assert not make_plan(model, [get_guidance("cyborg")], (64, 96), processes=2).makes_views


def test_views_are_known_by_the_method_that_makes_them(tmp_path):
    """Whatever a method says of its cost."""

    class Free(ActDiff):
        cost = "none"

    with pytest.raises(ValueError, match="gradient_checkpointing=True: views cannot keep"):
        make_plan(build("resnet"), [Free()], (64, 96), checkpointed=True)


def summed(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / len(labels)


def focal(logits, labels):
    chosen = logits.log_softmax(1).gather(1, labels.unsqueeze(1))
    return -((1 - chosen.exp()) ** 2 * chosen).mean()


@pytest.mark.parametrize(("loss", "message"), [(summed, "changes with pictures that have no label"), (focal, "fails")])
def test_a_loss_that_counts_views_is_refused(loss, message, tmp_path):
    model = build("transformers_vit")
    model.loss_function = lambda labels, logits, config, **_: loss(logits, labels)
    message = f"the loss of .* {message}.*guidance=actdiff.*compute_loss_func"
    with pytest.raises(ValueError, match=message):
        make_trainer(model, tmp_path, guidance=["cyborg", "actdiff"])
    plan = make_plan(model, [get_guidance("actdiff")], (64, 64))
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=message):
        refuse_counted_views(model.train(), plan, (64, 64))
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config.problem_type is None
    make_trainer(model, tmp_path, guidance="cyborg")
    make_trainer(model, tmp_path, guidance="actdiff", label_smoothing_factor=0.1)
    make_trainer(
        model, tmp_path, guidance="actdiff", compute_loss_func=lambda outputs, labels, **_: outputs.logits.sum()
    )


def test_options_that_cannot_be_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_guidance
    class Scaled(Cyborg):
        """CYBORG with an option of any type."""

        name = "scaled"

        def __init__(self, scale=1.0):
            self.scale = scale
            super().__init__()

    with pytest.raises(ValueError, match=r'guidance="scaled": scale=.*cannot be saved with the model'):
        make_trainer(build("resnet"), tmp_path, guidance="scaled", guidance_options={"scale": np.float32(1)})
    make_trainer(build("resnet"), tmp_path, guidance="scaled", guidance_options={"scale": [1, 2]})


def test_class_ids_that_the_model_does_not_have(tmp_path):
    with pytest.raises(ValueError, match=r"classes=\[9\] has 9, and the model's classes are 0 to 2"):
        make_trainer(build("resnet"), tmp_path, guidance="gradmask", guidance_options={"classes": [9]})


@pytest.mark.parametrize("method", ["cyborg", "actdiff", "gradmask"])
def test_reentrant_checkpointing(method, tmp_path):
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    message = 'use_reentrant=True: this kind of gradient checkpointing.*"use_reentrant": False'
    with pytest.raises(ValueError, match=message):
        make_trainer(build("transformers_vit"), tmp_path, guidance=method, **kwargs)
    model = build("transformers_vit")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match=message):
        make_trainer(model, tmp_path, guidance=method)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method == "actdiff":
        make_trainer(model, tmp_path, guidance=method)
    make_trainer(build("transformers_vit"), tmp_path, guidance="masked_input", **kwargs)


def test_timms_reentrant_checkpointing():
    model = build("vit_average")
    timm.layers.set_reentrant_ckpt(True)
    try:
        assert not is_reentrant(model)
        model.gradient_checkpointing_enable()
        assert is_reentrant(model)
    finally:
        timm.layers.set_reentrant_ckpt(False)
    assert not is_reentrant(model)
    assert is_checkpointed(model)
