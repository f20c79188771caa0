import copy

import pytest
import timm
import torch
from backbones.zoo import CASES, EXACT, NAMES
from torch import nn
from torch.nn.parallel import DataParallel

from hf_salguide.backbones import FeatureCapture, as_classifier, resolve_feature_layer
from hf_salguide.backbones.layouts import map_layouts, token_grids
from hf_salguide.backbones.probe import run_tail


def facts(layer):
    return layer.name, layer.layout, layer.grid, layer.readout, layer.head, layer.num_prefix_tokens


@pytest.mark.parametrize("name", CASES)
def test_the_layer_is_found(name):
    case = CASES[name]
    layer = resolve_feature_layer(case.build())
    assert facts(layer) == (case.layer, case.layout, case.grid, case.readout, case.head, case.prefix)


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_map_and_the_logit_of_no_map_are_the_logit(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    layer = resolve_feature_layer(model)
    with FeatureCapture(model, layer) as capture, torch.no_grad():
        logits = model(images).logits
    weight = model.get_submodule(layer.head).weight.flatten(1)
    maps = torch.einsum("kc,bchw->bkhw", weight, capture.maps)
    bias = run_tail(model, images, (layer.name, layer.output_index, torch.zeros_like(capture.raw)))
    assert bias.abs().max() > 1e-3  # or the test would say nothing of it
    torch.testing.assert_close(maps.mean((2, 3)) + bias, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.layout == "NLC"])
def test_rows_and_columns_of_tokens_are_the_pictures(name):
    """A change in the top right corner moves the map most there; of a 4-D map the shape tells the order."""
    case = CASES[name]
    model, images = case.build(), case.images(1)
    height, width = case.grid
    changed = images.clone()
    step_h, step_w = case.size[0] // height, case.size[1] // width
    changed[:, :, :step_h, -step_w:] += 5.0
    layer = resolve_feature_layer(model)
    found = []
    for batch in (images, changed):
        with FeatureCapture(model, layer) as capture, torch.no_grad():
            model(batch)
        found.append(capture.maps)
    cell = (found[1] - found[0]).abs().sum((0, 1)).argmax()
    assert divmod(int(cell), width) == (0, width - 1)


@pytest.mark.parametrize("name", ["test_resnet", "swin", "vit_class_token", "hf_efficientnet"])
def test_nothing_is_left_on_the_model(name):
    model = CASES[name].build().train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    attributes = [set(vars(module)) for module in model.modules()]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    resolve_feature_layer(model)
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [set(vars(module)) for module in model.modules()] == attributes


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_all_is_restored_when_the_model_raises(call):
    model = CASES["test_resnet"].build().train()
    nn.init.zeros_(model.timm_model.fc.weight)
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == call:
            raise KeyError(call)

    model.timm_model.global_pool.register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        resolve_feature_layer(model)
    assert not model.timm_model.fc.weight.any()
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(mode):
    case = CASES["vit_class_token"]
    model = case.build()
    with mode():
        enabled = torch.is_grad_enabled()
        assert resolve_feature_layer(model).name == case.layer
        assert torch.is_grad_enabled() is enabled


def test_the_result_is_kept_until_the_modules_change(monkeypatch):
    model = CASES["test_resnet"].build()
    first = resolve_feature_layer(model)
    calls = []
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: calls.append(1))
    assert resolve_feature_layer(model) is first
    assert not calls
    monkeypatch.undo()
    model.timm_model.global_pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    assert resolve_feature_layer(model).readout == "generic"


def test_a_copy_is_resolved_by_itself():
    model = CASES["test_resnet"].build()
    layer = resolve_feature_layer(model)
    duplicate = copy.deepcopy(model)
    duplicate.timm_model.layer4 = nn.Identity()
    assert resolve_feature_layer(model) is layer


def test_image_size_changes_the_grid():
    model = CASES["test_resnet"].build()
    assert resolve_feature_layer(model, image_size=(96, 128)).grid == (3, 4)
    assert resolve_feature_layer(model, image_size=70).grid == (3, 3)  # no stride divides 70


def test_a_wrapped_model_is_resolved_by_the_names_inside():
    model = CASES["test_resnet"].build()
    assert resolve_feature_layer(DataParallel(model)).name == "timm_model.layer4.0"


def test_a_plain_timm_module_is_resolved():
    assert resolve_feature_layer(timm.create_model("test_resnet", num_classes=3), 64).name == "layer4.0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    case = CASES["test_resnet"]
    model = case.build().to(dtype)
    assert facts(resolve_feature_layer(model)) == facts(resolve_feature_layer(case.build()))
    assert next(model.parameters()).dtype == dtype


def test_a_head_of_zeros_is_made_random_meanwhile():
    model = CASES["test_resnet"].build()
    nn.init.zeros_(model.timm_model.fc.weight)
    layer = resolve_feature_layer(model)
    assert (layer.readout, layer.head) == ("exact", "timm_model.fc")
    assert not model.timm_model.fc.weight.any()


def test_a_signal_that_vanishes_is_brought_back():
    """A fresh EfficientNet of transformers gives exactly zero in evaluation mode."""
    from transformers import EfficientNetConfig

    model = as_classifier(EfficientNetConfig(width_coefficient=0.25, hidden_dim=320), num_labels=3, image_size=64)
    with torch.no_grad():
        assert not model.eval()(torch.randn(2, 3, 64, 64)).logits.any()
    before = copy.deepcopy(model.state_dict())
    assert resolve_feature_layer(model).readout == "exact"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# -- a layer that the user names


def test_a_named_layer_is_described():
    model = CASES["resnet18"].build()
    layer = resolve_feature_layer(model, feature_layer="timm_model.layer3.1")
    assert facts(layer) == ("timm_model.layer3.1", "NCHW", (4, 6), "generic", None, 0)
    assert layer.channels == 256
    assert resolve_feature_layer(model, feature_layer="timm_model.layer4").readout == "exact"


def test_a_named_layer_inside_a_block_that_starts_as_zero_is_read():
    """The reference code of CYBORG reads the last convolution; timm starts the norm after it with zeros."""
    model = as_classifier("resnet18", num_labels=2, image_size=64)
    assert not model.timm_model.layer4[1].bn2.weight.any()
    assert resolve_feature_layer(model, feature_layer="timm_model.layer4.1.conv2").readout == "generic"


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        (
            "test_resnet",
            "layer9",
            r'"layer9" is not a module of .*; the nearest are "timm_model.layer',
        ),
        ("test_resnet", "timm_model.fc", r"gives \(2, 3\) for pictures .* no spatial map; the resolver would pick"),
        ("test_resnet", "timm_model.global_pool", r"no spatial map"),
        (
            "vit_class_token",
            "timm_model.blocks.5",
            r"not read by the logits.*the resolver would pick .*blocks.5.norm1",
        ),
        ("vit_class_token", "timm_model.fc_norm.nothing", r"is not a module"),
    ],
)
def test_a_layer_that_cannot_be_named(name, layer, message):
    with pytest.raises(ValueError, match=message):
        resolve_feature_layer(CASES[name].build(), feature_layer=layer)


def test_a_size_that_the_backbone_refuses():
    with pytest.raises(ValueError, match=r"image_size=\(70, 64\) is refused by .*take \(64, 96\)"):
        resolve_feature_layer(CASES["vit_class_token"].build(), image_size=(70, 64))


# -- networks made for one question each


class Net(nn.Module):
    """A picture's 8 x 8 means through one convolution; the rest is the subclass's."""

    def __init__(self, channels=6):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 8, stride=8)
        self.fc = nn.Linear(channels, 3)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)))


class TwoBranches(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 6, 16, stride=16)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)) * self.other(x).mean((2, 3)))


class Shared(Net):
    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(6, 6, 1)
        self.unused = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        return self.fc(self.again(self.again(self.stem(x)).tanh()).mean((2, 3)))


class WritesInPlace(Net):
    def forward(self, x):
        return self.fc(self.stem(x).relu_().mean((2, 3)))


class Tuples(Net):
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6, 1, 1))

        def forward(self, x):
            return {"pooled": x.mean((2, 3)), "map": self.scale * x}

    def __init__(self):
        super().__init__()
        self.stage = self.Stage()

    def forward(self, x):
        return self.fc(self.stage(self.stem(x))["map"].mean((2, 3)))


class Cube(Net):
    """Channels last, with as many channels as rows and columns."""

    def __init__(self):
        super().__init__(channels=8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


class Deaf(Net):
    def forward(self, x):
        return self.fc(0 * self.stem(x).mean((2, 3)))


class Rectified(Net):
    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)).relu())


class Draws(Net):
    def forward(self, x):
        torch.rand(1)
        return super().forward(x)


def test_several_branches_are_an_error_that_names_the_way_out():
    model = TwoBranches()
    with pytest.raises(ValueError, match=r'no single layer of TwoBranches .*feature_layer=\["other", "stem"\]'):
        resolve_feature_layer(model, 64)
    layer = resolve_feature_layer(model, 64, feature_layer=["other", "stem"])
    assert (layer.name, layer.grid, layer.readout, layer.names) == ("stem", (8, 8), "generic", ("stem", "other"))
    assert layer.others[0].grid == (4, 4)


def test_a_layer_that_is_bypassed_is_a_warning(caplog):
    layer = resolve_feature_layer(TwoBranches(), 64, feature_layer="stem")
    assert (layer.readout, layer.others) == ("generic", ())
    assert 'feature_layer="stem" is bypassed' in caplog.text


def test_a_module_that_runs_twice_is_passed_over():
    assert resolve_feature_layer(Shared(), 64).name == "stem"
    with pytest.raises(ValueError, match='feature_layer="again" runs 2 times'):
        resolve_feature_layer(Shared(), 64, feature_layer="again")
    with pytest.raises(ValueError, match='feature_layer="unused" runs 0 times'):
        resolve_feature_layer(Shared(), 64, feature_layer="unused")


def test_an_output_that_is_written_over_is_kept_as_it_left():
    model = WritesInPlace()
    layer = resolve_feature_layer(model, 64)
    assert layer.hand_on_copy
    images = torch.randn(2, 3, 64, 64)
    expected = nn.functional.conv2d(images, model.stem.weight, model.stem.bias, stride=8)
    with FeatureCapture(model, layer, tail_gradient=True) as capture:
        logits = model(images)
    torch.testing.assert_close(capture.maps, expected)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), capture.raw)
    torch.testing.assert_close(gradient, (expected > 0) * model.fc.weight[0].reshape(1, 6, 1, 1) / 64)


def test_a_map_inside_a_mapping_is_found():
    model = Tuples()
    layer = resolve_feature_layer(model, 64)
    assert (layer.name, layer.output_index, layer.readout) == ("stage", "map", "exact")
    with FeatureCapture(model, layer, tail_gradient=True) as capture, torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert capture.maps.shape == (2, 6, 8, 8)


def test_a_cube_is_told_by_a_wider_picture():
    layer = resolve_feature_layer(Cube(), 64)
    assert (layer.name, layer.layout, layer.readout) == ("norm", "NHWC", "exact")


def test_a_read_out_that_is_complete_but_not_affine_is_not_exact():
    """Behind a ReLU of the mean, map times gradient is the logit, but the weights of no one layer make the map."""
    layer = resolve_feature_layer(Rectified(), 64)
    assert (layer.name, layer.readout, layer.head) == ("stem", "uniform", None)


def test_a_model_that_draws_in_evaluation_leaves_the_global_generator():
    model = Draws()
    state = torch.get_rng_state()
    resolve_feature_layer(model, 64)
    assert torch.equal(torch.get_rng_state(), state)


def test_logits_that_do_not_depend_on_the_picture():
    with pytest.raises(ValueError, match="do not depend on the picture"):
        resolve_feature_layer(Deaf(), 64)


def test_a_picture_that_is_one_cell():
    with pytest.raises(ValueError, match="no module that runs once gives a map of more than one cell"):
        resolve_feature_layer(Net(), 8)


# -- layouts


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((2, 512, 2, 3), (64, 96), [("NCHW", (2, 3))]),
        ((2, 2, 3, 512), (64, 96), [("NHWC", (2, 3))]),
        ((2, 512, 3, 3), (70, 70), [("NCHW", (3, 3))]),
        ((2, 512, 1, 1), (64, 64), []),
        ((2, 1, 1, 512), (64, 64), []),
        ((2, 8, 8, 8), (64, 64), [("NCHW", (8, 8)), ("NHWC", (8, 8))]),
        ((2, 64, 5, 8), (192, 288), [("NCHW", (5, 8))]),  # borders cut off
    ],
)
def test_layouts_of_maps(shape, size, expected):
    assert map_layouts(torch.Size(shape), size) == expected


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((2, 24, 32), (64, 96), (0, (4, 6))),
        ((2, 25, 32), (64, 96), (1, (4, 6))),
        ((2, 21, 32), (56, 56), (5, (4, 4))),  # not 5 x 4
        ((2, 9, 32), (28, 28), (5, (2, 2))),  # not 3 x 3
        ((2, 197, 32), (224, 224), (1, (14, 14))),
        ((2, 201, 32), (224, 224), (5, (14, 14))),
    ],
)
def test_layouts_of_tokens(shape, size, expected):
    assert token_grids(torch.Size(shape), size)[0] == expected


def test_pooled_vectors_are_no_tokens():
    assert token_grids(torch.Size((2, 16, 1)), (64, 64)) == []


def test_labels_play_no_part():
    assert resolve_feature_layer(as_classifier("test_resnet", NAMES[:2], image_size=64)).head == "timm_model.fc"


def test_a_twin_of_the_head_that_is_never_called_is_not_the_head():
    """As adapters keep one beside the trained head, equal to it until the first step."""
    model = as_classifier("test_resnet", num_labels=3, image_size=64)
    backbone = model.timm_model
    backbone._modules = {"twin": copy.deepcopy(backbone.fc), **backbone._modules}
    assert resolve_feature_layer(model).head == "timm_model.fc"
