"""Maps of heads that read several layers, against a network whose derivatives are written out by hand."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbones.zoo import CASES
from support import NAMES, Rows, make_batch, make_trainer, save_as_trained
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_salguide import get_guidance
from hf_salguide.backbones import (
    FeatureCapture,
    FeatureLayer,
    capture,
    class_maps,
    resolve_feature_layer,
    saliency_maps,
    trainable_before,
)
from hf_salguide.backbones.attribution import _summed
from hf_salguide.data import decoy_digits
from hf_salguide.steps import make_plan
from hf_salguide.studies.explanation.panels import explain
from hf_salguide.studies.predictions import guided_layer, predict
from hf_salguide.studies.pseudo_saliency import pseudo_saliency

SIZE = (32, 48)
FINE, COARSE = (8, 12), (4, 6)
LAYERS = ["coarse", "fine"]


class BranchesConfig(PretrainedConfig):
    model_type = "branches_of_the_tests"


class Branches(PreTrainedModel):
    """
    A stem with a fine and a coarse branch, `z = W tanh(u)`, `u` the means of `tanh(fine)` and of `coarse^2 / 2`.

    The coarse branch starts at the stem, or, `chain`, at what the fine one gives, which the head then reads twice.
    """

    config_class = BranchesConfig
    main_input_name = "pixel_values"

    def __init__(self, config, chain=False):
        super().__init__(config)
        self.chain = chain
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.fine = nn.Conv2d(4, 5, 3, padding=1)
        self.coarse = nn.Conv2d(5 if chain else 4, 6, 2, stride=2)
        self.head = nn.Linear(11, config.num_labels, bias=False)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, pixel_values, labels=None, **kwargs):
        stem = self.stem(pixel_values).tanh()
        fine = self.fine(stem)
        coarse = self.coarse(fine if self.chain else stem)
        means = torch.cat([fine.tanh().mean((2, 3)), coarse.square().mean((2, 3)) / 2], dim=1)
        logits = self.head(means.tanh())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def branches(chain=False, kind=Branches, names=NAMES):
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    return kind(BranchesConfig(image_size=list(SIZE), **labels), chain)


def images(count=3):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def one_hot(classes):
    return nn.functional.one_hot(torch.tensor(classes), 3)


# ---- By hand ----


def upsampling(size, factor):
    """The matrix of linear interpolation between the centres of cells, `(factor * size, size)`."""
    matrix = torch.zeros(factor * size, size, dtype=torch.float64)
    for row in range(factor * size):
        place = min(max((row + 0.5) / factor - 0.5, 0.0), size - 1.0)
        low = min(int(place), size - 2)
        matrix[row, low] = 1 - (place - low)
        matrix[row, low + 1] = place - low
    return matrix


def by_hand(model, pixel_values, weights):
    """In float64: the logits, and the maps of the fine and of the coarse branch on the fine grid."""
    stem = model.stem(pixel_values).tanh()
    fine = model.fine(stem)
    coarse = model.coarse(fine if model.chain else stem)
    means = torch.cat([fine.tanh().mean((2, 3)), coarse.square().mean((2, 3)) / 2], dim=1)
    by_means = (weights.double() @ model.head.weight) * (1 - means.tanh().square())
    # Of the mean of tanh(a) the derivative by a is (1 - tanh(a)^2) / cells, of that of a^2 / 2 it is a / cells; the
    # map is in the scale of the logit, times the cells.
    of_fine = (by_means[:, :5, None, None] * fine * (1 - fine.tanh().square())).sum(1)
    of_coarse = (by_means[:, 5:, None, None] * coarse.square()).sum(1)
    high, wide = upsampling(COARSE[0], 2), upsampling(COARSE[1], 2)
    return means.tanh() @ model.head.weight.T, of_fine, high @ of_coarse @ wide.T


def captured(model, layer, pixel_values, **options):
    with FeatureCapture(model, layer, **options) as held:
        logits = model(pixel_values=pixel_values).logits
    return held, logits


# ---- The map ----


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("chain", [False, True], ids=["branches", "chain"])
def test_the_map_of_a_list_is_the_sum_of_its_layers_maps(chain, mode):
    """In a chain too: what the head reads of the fine layer through the coarse one is counted once."""
    model = branches(chain)
    layer = resolve_feature_layer(model, SIZE, LAYERS)
    assert layer.names == ("fine", "coarse")
    assert layer.grid == FINE
    weights = one_hot([0, 2, 1])
    _, fine, coarse = by_hand(copy.deepcopy(model).double(), images().double(), weights)
    assert coarse.std() > 0.1 * fine.std()  # neither would go unnoticed
    with mode():
        held, logits = captured(model, layer, images(), tail_gradient=True)
        maps = class_maps(held, layer, model, logits, weights.float())
        again = class_maps(held, layer, model, logits, weights.float(), "hirescam")
        alone = saliency_maps(model, images(), torch.tensor([0, 2, 1]), feature_layer=layer)
    assert held.raw is held.raws[0]
    assert [tuple(raw.shape[1:]) for raw in held.raws] == [(5, *FINE), (6, *COARSE)]
    torch.testing.assert_close(maps.detach().double(), (fine + coarse).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(again, maps)
    torch.testing.assert_close(alone, maps)


def test_gradcam_of_a_list_is_the_sum_too():
    model = branches()
    layer, weights = resolve_feature_layer(model, SIZE, LAYERS), one_hot([0, 2, 1]).float()
    held, logits = captured(model, layer, images(), tail_gradient=True)
    expected = []
    for name in layer.names:
        single = resolve_feature_layer(model, SIZE, name)
        alone, others = captured(model, single, images(), tail_gradient=True)
        expected.append(class_maps(alone, single, model, others, weights, "gradcam"))
    resized = nn.functional.interpolate(expected[1][:, None], FINE, mode="bilinear", align_corners=False)[:, 0]
    found = class_maps(held, layer, model, logits, weights, "gradcam")
    torch.testing.assert_close(found, expected[0] + resized, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, class_maps(held, layer, model, logits, weights), rtol=1e-2)


def test_an_explicit_cam_is_refused():
    model = branches()
    layer = resolve_feature_layer(model, SIZE, LAYERS)
    with pytest.raises(ValueError, match=r'method="cam" needs .*"fine, coarse" is generic with no single head'):
        saliency_maps(model, images(), method="cam", feature_layer=layer)


def test_layers_that_do_not_go_together():
    layer = FeatureLayer("a", "NCHW", (4, 4), 3)
    other = FeatureLayer("b", "NCHW", (2, 2), 3, readout="exact", head="fc")
    assert replace(layer, others=(other,)).names == ("a", "b")
    with pytest.raises(ValueError, match=r'readout="exact", head=\'fc\'.*b, a.*readout="generic"'):
        replace(other, others=(layer,))
    with pytest.raises(ValueError, match="'a' have others of their own"):
        replace(layer, others=(replace(layer, others=(other,)),))


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 3), (5, 4)])
def test_resizing_by_a_whole_ratio_keeps_the_mean(grid, factor):
    coarse = torch.randn(3, *grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine = torch.zeros(3, factor * grid[0], factor * grid[1], dtype=torch.float64)
    torch.testing.assert_close(_summed([fine, coarse]).mean((1, 2)), coarse.mean((1, 2)), rtol=1e-12, atol=1e-12)


def test_the_mean_of_each_layer_is_its_share_of_the_logit():
    """With a head that is linear in both layers the shares add up to the logit."""

    class Linear(Branches):
        def forward(self, pixel_values, **kwargs):
            stem = self.stem(pixel_values).tanh()
            fine, coarse = self.fine(stem), self.coarse(stem)
            return ImageClassifierOutput(logits=self.head(torch.cat([fine.mean((2, 3)), coarse.mean((2, 3))], dim=1)))

    model = branches(kind=Linear)
    layer = resolve_feature_layer(model, SIZE, LAYERS)
    maps = saliency_maps(model, images(), torch.tensor([0, 2, 1]), feature_layer=layer)
    logits = model(images()).logits[torch.arange(3), torch.tensor([0, 2, 1])]
    torch.testing.assert_close(maps.mean((1, 2)), logits, rtol=1e-4, atol=1e-6)


# ---- The capture ----


@pytest.mark.parametrize("chain", [False, True], ids=["branches", "chain"])
def test_nothing_is_detached_in_training(chain):
    """A loss on the captured maps trains the stem through both layers, and each layer in front of the other."""
    model = branches(chain).train()
    held, _ = captured(model, resolve_feature_layer(model, SIZE, LAYERS), images(), tail_gradient=True)
    (held.raws[0].square().mean() + held.raws[1].square().mean()).backward()
    stem = torch.tanh(model.stem(images()))
    fine = model.fine(stem)
    loss = fine.square().mean() + model.coarse(fine if chain else stem).square().mean()
    expected = torch.autograd.grad(loss, [model.stem.weight, model.fine.weight, model.coarse.weight])
    for module, gradient in zip((model.stem, model.fine, model.coarse), expected, strict=True):
        torch.testing.assert_close(module.weight.grad, gradient)


def test_the_first_of_two_branches_is_frozen():
    """Its map becomes a leaf, and the other one, which meets the grad mode that this needs, stays in its graph."""
    model = branches().train()
    model.stem.requires_grad_(False)
    model.fine.requires_grad_(False)
    layer = resolve_feature_layer(model, SIZE, LAYERS)
    held, logits = captured(model, layer, images(), tail_gradient=True)
    assert held.raws[0].is_leaf
    weights = one_hot([0, 2, 1]).float()
    class_maps(held, layer, model, logits, weights, create_graph=True).square().mean().backward()
    oracle = copy.deepcopy(model).double()
    _, fine, coarse = by_hand(oracle, images().double(), weights)
    expected = torch.autograd.grad((fine + coarse).square().mean(), [oracle.coarse.weight, oracle.head.weight])
    for found, gradient in zip((model.coarse.weight.grad, model.head.weight.grad), expected, strict=True):
        torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-7)


def test_without_grad_mode_no_branch_is_kept_in_a_graph():
    model = branches(chain=True)
    with torch.no_grad():
        held, logits = captured(model, resolve_feature_layer(model, SIZE, LAYERS), images(), tail_gradient=True)
    assert all(raw.is_leaf and raw.requires_grad for raw in held.raws)
    assert logits.requires_grad


def test_each_layer_must_fire_once():
    model = branches()
    layer = resolve_feature_layer(model, SIZE, LAYERS)
    with pytest.raises(RuntimeError, match='"fine" fired 2 times'), FeatureCapture(model, layer):
        _ = model(images()), model(images())
    layer = replace(layer, others=(FeatureLayer("head", "NCHW", (1, 1), 3), *layer.others))
    with pytest.raises(RuntimeError, match='"head" did not fire'), FeatureCapture(model, layer):
        model.fine(torch.randn(1, 4, 3, 3))
    held = FeatureCapture(model, layer)
    with pytest.raises(RuntimeError, match='"fine" has captured nothing'):
        _ = held.raws
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_is_read_through_another_alone_is_an_error():
    model = CASES["test_resnet"].build()
    last = resolve_feature_layer(model, feature_layer="timm_model.layer4.0")
    layer = replace(resolve_feature_layer(model, feature_layer="timm_model.layer3"), others=(last,))
    message = r"of the feature layers .*the logits read timm_model\.layer3 through the others alone.*leave it out"
    with pytest.raises(RuntimeError, match=message):
        saliency_maps(model, CASES["test_resnet"].images(), feature_layer=layer)
    held, logits = captured(model, layer, CASES["test_resnet"].images())
    with pytest.raises(RuntimeError, match='no gradient to the map of feature layer "timm_model.layer3", "timm'):
        class_maps(held, layer, model, logits.detach(), torch.ones_like(logits))


def test_an_error_in_the_gradient_leaves_the_graph_as_it_was():
    """The next gradient passes from one layer to what comes before it again."""
    model = branches(chain=True)
    held, logits = captured(model, resolve_feature_layer(model, SIZE, LAYERS), images(), tail_gradient=True)
    with pytest.raises(RuntimeError, match="[Mm]ismatch"):
        held.gradients(logits, torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(held.raws[1].sum(), held.raws[0])
    assert gradient.abs().sum() > 0


class InPlace(Branches):
    """What follows each layer writes into it."""

    def forward(self, pixel_values, **kwargs):
        stem = self.stem(pixel_values).tanh()
        fine, coarse = self.fine(stem).tanh_(), self.coarse(stem).relu_()
        return ImageClassifierOutput(logits=self.head(torch.cat([fine.mean((2, 3)), coarse.mean((2, 3))], dim=1)))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_copy_of_each_layer_is_handed_on_where_it_is_written_into(mode):
    model = branches(kind=InPlace)
    layer = resolve_feature_layer(model, SIZE, LAYERS)
    assert [part.hand_on_copy for part in layer.parts] == [True, True]
    with torch.no_grad():
        stem = model.stem(images()).tanh()
        expected = model.fine(stem), model.coarse(stem)
        plain = model(images()).logits
    with mode():
        held, logits = captured(model, layer, images(), tail_gradient=True)
    torch.testing.assert_close(logits.detach(), plain)
    assert all(torch.equal(raw, value) for raw, value in zip(held.raws, expected, strict=True))


VIT = ["timm_model.blocks.4.norm1", "timm_model.blocks.5.norm1"]  # the class token reads each of them


def test_prefix_attention_is_for_one_layer_alone(monkeypatch):
    case = CASES["vit_class_token"]
    model = case.build().train()
    single = resolve_feature_layer(model)
    assert single.name == VIT[1]
    assert single.prefix_attention
    layer = replace(resolve_feature_layer(model, feature_layer=VIT[0]), others=(single,))

    def refuse(*args):
        raise AssertionError("entered")

    monkeypatch.setattr(capture, "PrefixAttention", refuse)
    with pytest.raises(AssertionError, match="entered"):
        captured(model, single, case.images(), tail_gradient=True)
    held, logits = captured(model, layer, case.images(), tail_gradient=True)
    maps = class_maps(held, layer, model, logits, one_hot([0, 1, 2]).float(), create_graph=True)
    maps.square().mean().backward()
    for block in model.timm_model.blocks:  # the fused kernels have no second derivative
        assert torch.isfinite(block.attn.qkv.weight.grad).all()
        assert block.attn.qkv.weight.grad.abs().sum() > 0


def test_checkpointing_gives_the_same_gradients():
    case, found = CASES["vit_class_token"], []
    for checkpointing in (False, True):
        model = case.build().train()
        for block in model.timm_model.blocks:
            block.attn.fused_attn = False
        layer = resolve_feature_layer(model, feature_layer=VIT)
        if checkpointing:
            model.gradient_checkpointing_enable()
        held, logits = captured(model, layer, case.images(), tail_gradient=True)
        maps = class_maps(held, layer, model, logits, one_hot([0, 1, 2]).float(), create_graph=True)
        (maps.square().mean() + logits.sum()).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


# ---- Training ----


@pytest.mark.parametrize("chain", [False, True], ids=["branches", "chain"])
def test_a_guided_step_has_the_gradients_of_the_formula(chain, tmp_path):
    """CYBORG on the list, and the task beside it, to every parameter."""
    batch, model = make_batch(SIZE), branches(chain).train()
    trainer = make_trainer(
        model, tmp_path, guidance="cyborg", guidance_weight=3.0, task_weight=0.5, feature_layer=LAYERS
    )
    oracle = copy.deepcopy(model).double()
    found = trainer.compute_loss(model, batch)
    found.backward()

    def scaled(maps):
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return (maps - low) / (high - low)

    rows = batch["has_saliency"]
    weights = one_hot(batch["labels"].tolist())
    logits, fine, coarse = by_hand(oracle, batch["pixel_values"].double(), weights)
    human = nn.functional.avg_pool2d(batch["saliency"][rows].double() / 255, 4)
    term = (scaled((fine + coarse)[rows]) - scaled(human)).square().mean((1, 2)).sum() / len(rows)
    loss = 0.5 * nn.functional.cross_entropy(logits, batch["labels"]) + 3.0 * term
    loss.backward()
    torch.testing.assert_close(found.double(), loss, rtol=1e-5, atol=1e-6)
    for (name, parameter), other in zip(model.named_parameters(), oracle.parameters(), strict=True):
        error = (parameter.grad.double() - other.grad).norm() / other.grad.norm()
        assert error < 1e-4, name


@pytest.mark.parametrize("method", ["energy", "divisive_difference", "cam_entropy", ["cyborg", "actdiff", "gradmask"]])
def test_other_methods_train_on_a_list(method, tmp_path):
    model = branches()
    trainer = make_trainer(
        model,
        tmp_path,
        guidance=method,
        feature_layer=LAYERS,
        train_dataset=Rows(make_batch(SIZE, 8, annotated=[True, True, False] * 3)),
        eval_dataset=Rows(make_batch(SIZE)),
        max_steps=2,
        learning_rate=0.01,
    )
    before = model.stem.weight.detach().clone()
    trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not torch.equal(model.stem.weight, before)
    assert all(np.isfinite(value) for value in trainer.evaluate().values())


@pytest.mark.parametrize("name", ["rrr", "gradmask"])
def test_gradients_at_a_list_of_features_are_refused(name):
    message = (
        rf'guidance={name} with at="features" penalises the gradient at one layer, and '
        r"feature_layer=\['fine', 'coarse'\] are 2; name one of them, or set at=\"input\""
    )
    methods = [get_guidance("cyborg"), get_guidance(name, at="features")]
    with pytest.raises(ValueError, match=message):
        make_plan(branches(), methods, SIZE, LAYERS)
    plan = make_plan(branches(), [get_guidance("cyborg"), get_guidance(name)], SIZE, LAYERS)
    assert plan.feature_layer.names == ("fine", "coarse")
    assert plan.tail_gradient
    assert make_plan(branches(), methods, SIZE, "fine").feature_layer.others == ()


def test_a_compiled_model_has_no_list():
    with pytest.raises(ValueError, match='torch_compile=True: guidance takes a gradient with respect to "fine, coa'):
        make_plan(branches(), [get_guidance("cyborg")], SIZE, LAYERS, compiled=True)


def test_a_frozen_backbone_is_refused_where_nothing_before_any_layer_trains(tmp_path):
    model = branches()
    layer = resolve_feature_layer(model, SIZE, LAYERS)
    arguments = {"feature_layer": LAYERS, "train_dataset": Rows(make_batch(SIZE))}
    for module in (model.stem, model.fine):
        module.requires_grad_(False)
    assert trainable_before(model, layer, SIZE)
    assert not trainable_before(model, resolve_feature_layer(model, SIZE, "fine"), SIZE)
    make_trainer(model, tmp_path, **arguments)
    model.coarse.requires_grad_(False)
    assert not trainable_before(model, layer, SIZE)
    with pytest.raises(ValueError, match='every parameter before "fine, coarse" is frozen'):
        make_trainer(model, tmp_path, **arguments)


# ---- What is saved ----


def test_the_names_are_saved_with_the_model_and_read_back(tmp_path):
    trainer = make_trainer(branches(), tmp_path, feature_layer=LAYERS)
    save_as_trained(trainer)
    assert json.loads((tmp_path / "config.json").read_text())["saliency_guide"]["feature_layer"] == ["fine", "coarse"]
    assert guided_layer(Branches.from_pretrained(tmp_path)) == ["fine", "coarse"]
    assert guided_layer(branches()) is None


def test_a_model_that_was_guided_at_a_list_is_judged_there():
    rows = decoy_digits(size=48, num_train=10, num_validation=10, num_test=10, num_ood=10)["test"].select(range(3))
    model = branches(names=rows.features["label"].names).eval()
    layer = resolve_feature_layer(model, SIZE, LAYERS)
    model.config.saliency_guide = {"name": "cyborg", "feature_layer": ["fine", "coarse"]}
    found = predict(model, rows, "true", progress=False)
    assert found.maps.shape == (len(rows), *FINE)
    seen = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("pixel_values")), with_kwargs=True
    )
    (explanation,) = explain(model, [rows[0]])
    handle.remove()
    expected = saliency_maps(model, seen[0], rows[0]["label"], feature_layer=layer).detach()
    np.testing.assert_allclose(found.maps[0], expected[0].numpy(), atol=1e-4 * float(expected.abs().max()))
    drawn = nn.functional.interpolate(expected[None], SIZE, mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(explanation.true_map, drawn.numpy(), atol=1e-4 * float(drawn.abs().max()))
    bare = rows.select([0]).remove_columns("saliency")
    at_list = pseudo_saliency(model, bare, progress=False)[0]["saliency"]
    model.config.saliency_guide = {"name": "cyborg", "feature_layer": "fine"}
    at_one = pseudo_saliency(model, bare, progress=False)[0]["saliency"]
    assert np.abs(np.asarray(at_list, dtype=float) - np.asarray(at_one, dtype=float)).max() > 10
