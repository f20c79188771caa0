"""What is refused when the trainer is made, before any compute is spent."""

from functools import partial

import pytest
import torch
from support import Rows, build, make_batch, make_trainer
from torchvision.transforms import v2

from hf_salguide import SaliencyCollator, SaliencyTrainingArguments
from hf_salguide.steps import make_plan


@pytest.mark.parametrize("method", ["cyborg", "divisive_difference", "energy", "actdiff", "sage"])
@pytest.mark.parametrize("name", ["resnet", "vit_class_token"])
def test_a_frozen_backbone(method, name, tmp_path):
    model = build(name)
    head = model.timm_model.get_classifier()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    with pytest.raises(ValueError, match=f"guidance={method}: every parameter before .* is frozen.*unfreeze"):
        make_trainer(model, tmp_path, guidance=method)
    next(model.parameters()).requires_grad_(True)
    assert make_trainer(model, tmp_path, guidance=method).guidance[0].name == method


def test_a_frozen_backbone_may_be_penalised_at_its_pictures(tmp_path):
    """The gradient with respect to the pictures depends on the head's weights, wherever the backbone is."""
    model = build("vit_average")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in model.timm_model.get_classifier().parameters():
        parameter.requires_grad_(True)
    options = {"gradient_engine": "double_backward"}
    trainer = make_trainer(model, tmp_path, guidance="gradmask", guidance_options=options)
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
    with pytest.raises(ValueError, match="torch_compile=True: guidance takes a gradient"):
        make_trainer(build("resnet"), tmp_path, guidance="rrr", guidance_options={"at": "features"}, **compiled)
    trainer = make_trainer(build("vit_average"), tmp_path, guidance="rrr", **compiled)
    assert trainer.gradient_engines["rrr"].engine == "finite_difference"


@pytest.mark.parametrize("argument", ["torch_compile", "gradient_checkpointing"])
def test_views_that_could_not_keep_their_batch_statistics(argument, tmp_path):
    arguments = {argument: True, "torch_compile_backend": "eager"} if "compile" in argument else {argument: True}
    with pytest.raises(ValueError, match=f'{argument}=True: views cannot keep batch_norm="separate"'):
        make_trainer(build("resnet"), tmp_path, guidance="actdiff", **arguments)
    make_trainer(build("resnet"), tmp_path, guidance="actdiff", guidance_options={"batch_norm": "concat"}, **arguments)
    make_trainer(build("vit_average"), tmp_path, guidance="actdiff", **arguments)


def test_views_of_one_forward_have_one_kind_of_batch_statistics(tmp_path):
    options = {"sage": {"batch_norm": "concat"}}
    with pytest.raises(ValueError, match=r"batch_norm=\['concat', 'separate'\]: methods that share a forward"):
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
