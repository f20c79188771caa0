import copy

import pytest
import timm
import torch
from backbones.zoo import CASES, NAMES
from torch import nn
from torch.nn.parallel import DataParallel

from hf_salguide.backbones import (
    FeatureCapture,
    FeatureTap,
    as_classifier,
    resolve_feature_layer,
    resolve_pooled_layer,
    trainable_before,
)
from hf_salguide.backbones.forward import logits_of
from hf_salguide.names import POOLED

HEADS = {
    **{
        name: f"timm_model.{head}"
        for name, head in {
            "resnet18": "fc",
            "resnet10t": "fc",
            "test_resnet": "fc",
            "densenet": "classifier",
            "efficientnet_b0": "classifier",
            "test_efficientnet": "classifier",
            "test_convnext": "head.fc",
            "swin": "head.fc",
            "vit_class_token": "head",
            "vit_average": "head",
            "vit_average_exact": "head",
            "vit_registers": "head",
            "mobilenetv3": "classifier",
        }.items()
    },
    "hf_resnet": "classifier.1",
    "hf_efficientnet": "classifier",
    "hf_convnext": "classifier",
    "hf_swin": "classifier",
    "hf_vit": "classifier",
    "hf_dinov2": "classifier",
    "hf_dinov2_registers": "classifier",
}


class ConvHead(nn.Module):
    """A classifier of the kind of SqueezeNet: one map a class, then activation and pooling."""

    def __init__(self, activation):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 6, 3, stride=8), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(6, 3, 1), activation, nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.classifier(self.features(x)).flatten(1)


class TwoHeads(nn.Module):
    """The logits are the mean of two heads', each on a vector of its own."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 6, 8, stride=8)
        self.heads = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])

    def forward(self, x):
        maps = self.features(x)
        return (self.heads[0](maps.mean((2, 3))) + self.heads[1](maps.amax((2, 3)))) / 2


class TwoBranches(nn.Module):
    """One of them has a head, the other adds maps of the classes to it."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 6, 8, stride=8), nn.Linear(6, 3)
        self.other = nn.Conv2d(3, 3, 16, stride=16)

    def forward(self, x):
        return self.other(x).mean((2, 3)) + self.head(self.features(x).mean((2, 3)))


class UnreadHead(nn.Module):
    """A head that runs after the one that makes the logits, and is for nothing."""

    def __init__(self, head):
        super().__init__()
        self.features, self.head, self.unread = nn.Conv2d(3, 6, 8, stride=8), head, nn.Linear(6, 3)

    def forward(self, x):
        features = self.features(x).mean((2, 3))
        logits = self.head(features)
        self.unread(features)
        return logits


class Cosine(nn.Module):
    """A head that is no linear layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        normalize = nn.functional.normalize
        return nn.functional.linear(normalize(x), normalize(self.weight))


def around(head):
    """A classifier of 32 pixels with that head on its pooled vector."""
    return nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def vector(model, images, size=None):
    """The logits and the pooled vector of one forward."""
    pooled = resolve_pooled_layer(model, size)
    with FeatureTap(model, [], pooled) as tap, torch.no_grad():
        logits = logits_of(model(images))
    assert tap.features[POOLED].shape == (len(images), pooled.size)
    return logits, tap.features[POOLED]


def images_of(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", CASES)
def test_the_head_applied_to_the_vector_gives_the_logits(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    pooled = resolve_pooled_layer(model)
    assert (pooled.name, pooled.where) == (HEADS[name], "input")
    head = model.get_submodule(pooled.name)
    logits, features = vector(model, images)
    expected = features @ head.weight.flatten(1).T + head.bias
    torch.testing.assert_close(expected, logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.head])
def test_it_is_the_mean_of_the_map_where_the_read_out_is_exact(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    with FeatureCapture(model, resolve_feature_layer(model)) as capture, torch.no_grad():
        model(images)
    expected = capture.maps.mean((2, 3))
    torch.testing.assert_close(vector(model, images)[1], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["vit_class_token", "hf_vit"])
def test_it_is_the_class_token_behind_the_last_norm(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    norm = "timm_model.norm" if name == "vit_class_token" else "vit.layernorm"
    with FeatureTap(model, [norm]) as tap, torch.no_grad():
        model(images)
    torch.testing.assert_close(vector(model, images)[1], tap.features[norm][:, 0])


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity()])
def test_a_convolution_before_the_pooling_reads_the_mean_over_the_positions(activation):
    model = ConvHead(activation).eval()
    images = images_of()
    pooled = resolve_pooled_layer(model, 32)
    assert (pooled.name, pooled.where, pooled.size) == ("classifier.1", "input", 6)
    with torch.no_grad():
        maps = model.features(images)
    logits, features = vector(model, images, 32)
    torch.testing.assert_close(features, maps.mean((2, 3)))
    if isinstance(activation, nn.Identity):
        head = model.classifier[1]
        torch.testing.assert_close(features @ head.weight.flatten(1).T + head.bias, logits)


def test_a_linear_layer_on_tokens_reads_the_mean_over_the_positions():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.fc = nn.Conv2d(3, 6, 8, stride=8), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(self.patches(x).flatten(2).transpose(1, 2)).mean(1)

    model = Tokens().eval()
    assert resolve_pooled_layer(model, 32).name == "fc"
    logits, features = vector(model, images_of(), 32)
    torch.testing.assert_close(features @ model.fc.weight.T + model.fc.bias, logits)


@pytest.mark.parametrize("head", ["linear", "convolution", "after"])
@pytest.mark.parametrize("zero", [False, True])
def test_what_comes_behind_the_head_does_not_matter_nor_do_weights_of_zero(head, zero):
    torch.manual_seed(0)
    if head == "convolution":
        model = nn.Sequential(nn.Conv2d(3, 6, 8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 3, 1), nn.Flatten()).eval()
        last, name = model[2], "2"
    else:
        # Behind it, the logits become another tensor than the one that the head gave.
        last, name = nn.Linear(6, 3), "3.0" if head == "after" else "3"
        model = around(nn.Sequential(last, nn.BatchNorm1d(3), nn.Softplus()) if head == "after" else last)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    pooled = resolve_pooled_layer(model, 32)
    assert (pooled.name, pooled.where, pooled.size) == (name, "input", 6)
    assert bool(last.weight.any()) is not zero


@pytest.mark.parametrize("zero", [False, True])
def test_averaged_heads_fall_back_to_the_mean_of_the_map(zero):
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=3, img_size=(32, 48), depth=2, embed_dim=24, num_heads=2
    ).eval()
    if zero:
        for head in (model.head, model.head_dist):
            nn.init.zeros_(head.weight)
    layer = resolve_feature_layer(model, (32, 48))
    pooled = resolve_pooled_layer(model, (32, 48))
    assert (pooled.name, pooled.where, pooled.size, pooled.layer) == ("blocks.1.norm1", "maps", 24, layer)
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(7))
    with FeatureTap(model, [pooled.name]) as tap, torch.no_grad():
        model(images)
    _, features = vector(model, images, (32, 48))
    torch.testing.assert_close(features, tap.features[pooled.name][:, 2:].mean(1))


def test_heads_in_one_module_read_its_vector():
    pooled = resolve_pooled_layer(around(Cosine()), 32)
    assert (pooled.name, pooled.where, pooled.size) == ("3", "input", 6)


@pytest.mark.parametrize("head", [nn.Linear(6, 3), Cosine()])
@pytest.mark.parametrize("zero", [False, True])
def test_a_head_that_is_not_read_is_passed_over(head, zero):
    model = UnreadHead(copy.deepcopy(head))
    if zero:
        nn.init.zeros_(model.head.weight)
    assert resolve_pooled_layer(model, 32).name == "head"


def test_without_a_head_and_without_a_map_there_is_no_vector():
    assert resolve_pooled_layer(TwoHeads(), 32).where == "maps"
    with pytest.raises(ValueError, match=r"no single module of TwoBranches .* layers=\[") as caught:
        resolve_pooled_layer(TwoBranches(), 32)
    assert '"pooled"' in str(caught.value)


def test_a_size_that_is_refused_is_named():
    model = CASES["vit_class_token"].build()
    with pytest.raises(ValueError, match=r"image_size=\(8, 8\) is refused by"):
        resolve_pooled_layer(model, 8)


@pytest.mark.parametrize("rank", ["fresh", "trained"])
@pytest.mark.parametrize("name", ["test_resnet", "vit_class_token", "hf_vit"])
def test_adapters_round_the_head(name, rank):
    peft = pytest.importorskip("peft")
    case = CASES[name]
    model, head = case.build(), HEADS[name]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=[head], r=3)).eval()
    if rank == "trained":
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(parameter)
    pooled = resolve_pooled_layer(adapted)
    assert (pooled.name, pooled.where) == (f"base_model.model.{head}", "input")
    logits, features = vector(adapted, case.images())
    with torch.no_grad():
        torch.testing.assert_close(adapted.get_submodule(pooled.name)(features), logits)
    merged = adapted.merge_and_unload()
    assert resolve_pooled_layer(merged).name == head
    torch.testing.assert_close(vector(merged, case.images())[1], features)


def test_an_adapter_round_a_convolution_before_the_pooling():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(ConvHead(nn.ReLU()), peft.LoraConfig(target_modules=["classifier.1"], r=3)).eval()
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter)
    pooled = resolve_pooled_layer(adapted, 32)
    assert (pooled.name, pooled.where, pooled.size) == ("base_model.model.classifier.1", "input", 6)


def test_a_head_that_is_trained_beside_adapters():
    peft = pytest.importorskip("peft")
    case = CASES["hf_vit"]
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(case.build(), config).eval()
    pooled = resolve_pooled_layer(adapted)
    assert pooled.name == "base_model.model.classifier.modules_to_save.default"
    head = adapted.get_submodule(pooled.name)
    logits, features = vector(adapted, case.images())
    torch.testing.assert_close(features @ head.weight.T + head.bias, logits)


@pytest.mark.parametrize("name", ["test_resnet", "vit_class_token", "conv_head", "two_heads"])
def test_nothing_is_left_on_the_model(name):
    model = {"conv_head": lambda: ConvHead(nn.ReLU()), "two_heads": TwoHeads}.get(name) or CASES[name].build
    model = model().train()
    next(model.children()).eval()
    size = 32 if name.endswith(("head", "heads")) else None
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    attributes = [set(vars(module)) for module in model.modules()]
    before = torch.get_rng_state()
    pooled = resolve_pooled_layer(model, size)
    trainable_before(model, pooled, size)
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert resolve_pooled_layer(copy.deepcopy(model), size) == pooled


@pytest.mark.parametrize("call", [1, 2, 3])
def test_all_is_restored_when_the_model_raises(call):
    model = ConvHead(nn.ReLU()).train()
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == call:
            raise KeyError(call)

    handle = model.classifier[3].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        resolve_pooled_layer(model, 32)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    pooled = resolve_pooled_layer(model, 32)
    model.classifier[3].register_forward_pre_hook(lambda *_: [][0])
    with pytest.raises(IndexError):
        trainable_before(model, pooled, 32)
    assert not any(module._forward_hooks for module in model.modules())
    assert not model.classifier[1]._forward_pre_hooks
    assert all(module.training for module in model.modules())


def test_the_result_is_kept_until_the_modules_change(monkeypatch):
    model = CASES["test_resnet"].build()
    first = resolve_pooled_layer(model)
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: 1 / 0)
    assert resolve_pooled_layer(model) is first
    monkeypatch.undo()
    model.timm_model.fc = nn.Sequential(nn.Linear(first.size, 5), nn.ReLU(), nn.Linear(5, 3))
    assert (resolve_pooled_layer(model).name, resolve_pooled_layer(model).size) == ("timm_model.fc.2", 5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(mode):
    model = CASES["vit_class_token"].build()
    with mode():
        enabled = torch.is_grad_enabled()
        pooled = resolve_pooled_layer(model)
        assert trainable_before(model, pooled)
        assert torch.is_grad_enabled() is enabled
    assert pooled.name == HEADS["vit_class_token"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = CASES["test_resnet"].build().to(dtype)
    assert resolve_pooled_layer(model).name == HEADS["test_resnet"]
    assert resolve_pooled_layer(ConvHead(nn.ReLU()).to(dtype), 32).name == "classifier.1"


def test_a_wrapped_model_is_resolved_by_the_names_inside():
    model = CASES["test_resnet"].build()
    pooled = resolve_pooled_layer(DataParallel(model))
    assert pooled.name == HEADS["test_resnet"]
    assert trainable_before(DataParallel(model), pooled)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token", "hf_vit", "hf_swin"])
def test_what_trains_before_a_layer(name):
    model = CASES[name].build().train()
    layer, pooled = resolve_feature_layer(model), resolve_pooled_layer(model)
    parameters = list(model.named_parameters())
    assert trainable_before(model, layer)
    assert trainable_before(model, pooled)
    for _, parameter in parameters:
        parameter.requires_grad_(False)
    assert not trainable_before(model, layer)
    assert not trainable_before(model, pooled)
    for key, parameter in parameters:
        parameter.requires_grad_(key.startswith(pooled.name))  # linear probing
    assert not trainable_before(model, layer)
    assert not trainable_before(model, pooled)
    for _, parameter in parameters:
        parameter.requires_grad_(parameter is parameters[0][1])
    assert trainable_before(model, layer)
    assert trainable_before(model, pooled)


def test_what_trains_between_the_map_and_the_vector():
    model = as_classifier("test_convnext", label_names=NAMES, image_size=64)
    layer, pooled = resolve_feature_layer(model), resolve_pooled_layer(model)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith("timm_model.head.norm"))
    assert not trainable_before(model, layer)
    assert trainable_before(model, pooled)


def test_what_trains_before_the_mean_of_a_map():
    model = TwoHeads()
    pooled = resolve_pooled_layer(model, 32)
    assert trainable_before(model, pooled, 32)
    model.features.requires_grad_(False)
    assert not trainable_before(model, pooled, 32)
