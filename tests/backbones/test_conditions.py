"""The conditions under which models are met: sizes, layouts, heads, precisions, wrappers, modes."""

import itertools

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from backbones.zoo import CASES, NAMES, TINY_SWIN, TINY_VIT, lively
from support import Rows, make_batch, make_trainer
from torch import distributed, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from hf_salguide.backbones import (
    FeatureCapture,
    as_classifier,
    class_maps,
    logits_of,
    resolve_feature_layer,
    saliency_maps,
)

SIZE = (64, 96)
SMALL_DEIT = {"embed_dim": 24, "depth": 3, "num_heads": 2}
SMALL_LEVIT = {"embed_dim": (16, 24, 32), "depth": (1, 1, 1), "num_heads": (2, 2, 2), "key_dim": 4}
SMALL_STAGES = {"depths": (1, 1, 1, 2), "embed_dims": (8, 16, 16, 24)}


RUNNING = itertools.count()


def fresh(model):
    """The model with a configuration of its own: what the resolver keeps for one like it is not asked."""
    model.config.number = next(RUNNING)
    return model


def build(name, size=SIZE, seed=0, **arguments):
    """A tiny classifier in evaluation mode, the same for a seed."""
    torch.manual_seed(seed)
    return fresh(lively(as_classifier(name, label_names=NAMES, image_size=size, **arguments), seed))


def transformers_vit(**arguments):
    # Checkpointing runs the forward again outside the capture, where attention would be fused otherwise.
    return build(transformers.ViTConfig(**TINY_VIT, attn_implementation="eager"), **arguments)


def noise(size=SIZE, count=3, channels=3, seed=7):
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def output_of(model, layer, images):
    """The layer's output and the logits, by a hook of the test's own."""
    kept = []

    def keep(module, args, output):
        kept.append(output if layer.output_index is None else output[layer.output_index])

    handle = model.get_submodule(layer.name).register_forward_hook(keep)
    with sdpa_kernel(SDPBackend.MATH):
        logits = logits_of(model(images))
    handle.remove()
    (raw,) = kept
    return raw, logits


def positions(layer, raw):
    """`(B, h, w, C)`, put together without the layer's own reading."""
    if layer.layout == "NCHW":
        return torch.stack([torch.stack(list(row.unbind(-1)), 1) for row in raw.unbind(-2)], 1)
    if layer.layout == "NHWC":
        return raw
    width = layer.grid[1]
    tokens = list(raw.unbind(1))[layer.num_prefix_tokens :]
    return torch.stack([torch.stack(tokens[at : at + width], 1) for at in range(0, len(tokens), width)], 1)


def map_by_hand(model, layer, images, target):
    """Map times gradient times the number of cells; the gradient averaged first where it is said to be uniform."""
    raw, logits = output_of(model, layer, images)
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), raw)
    features, gradient = positions(layer, raw.detach()), positions(layer, gradient)
    if layer.readout != "generic":
        gradient = gradient.mean((1, 2), keepdim=True)
    return (features * gradient).sum(-1) * layer.grid[0] * layer.grid[1]


def assert_agree(found, expected, tolerance=1e-4):
    found, expected = found.detach().float(), expected.detach().float()
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def assert_by_hand(model, layer, images, target=1):
    assert_agree(saliency_maps(model, images, target, feature_layer=layer), map_by_hand(model, layer, images, target))


def assert_in_place(model, layer, size, channels=3):
    """What an object changes most is within a cell of where it is, for five places off the diagonal."""
    height, width = layer.grid
    images = noise(size, 1, channels)
    before = positions(layer, output_of(model, layer, images)[0])
    cells = [(row, column) for row in range(height) for column in range(width) if row != column]
    near = 0
    places = cells[:: max(1, len(cells) // 5)][:5]
    for row, column in places:
        changed = images.clone()
        rows = slice(row * size[0] // height, (row + 1) * size[0] // height)
        columns = slice(column * size[1] // width, (column + 1) * size[1] // width)
        changed[:, :, rows, columns] += 5.0
        change = (positions(layer, output_of(model, layer, changed)[0]) - before).norm(dim=-1)[0]
        found = divmod(int(change.argmax()), width)
        near += max(abs(found[0] - row), abs(found[1] - column)) <= 1
    assert near >= len(places) - 1


def guided_gradients(model, tmp_path, batch=None, **arguments):
    """Minus what one step of plain gradient descent does to each parameter: the gradient of the CYBORG term alone."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        model,
        tmp_path,
        train_dataset=Rows(make_batch(SIZE, 4, annotated=[True] * 4) if batch is None else batch),
        guidance="cyborg",
        task_weight=0.0,
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        weight_decay=0.0,
        max_grad_norm=0.0,
        **arguments,
    )
    trainer.train()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


# -- sizes


@pytest.mark.parametrize(
    ("name", "grid", "arguments"),
    [
        ("test_resnet", (4, 7), {}),
        ("test_convnext", (4, 7), {}),
        ("swin_tiny_patch4_window7_224", (8, 14), {**TINY_SWIN, "window_size": 2}),
        ("test_vit", (8, 14), {}),
        ("test_vit", (8, 14), {"global_pool": "avg"}),
        ("test_vit", (8, 14), {"global_pool": "map"}),
    ],
)
def test_pictures_that_are_not_square(name, grid, arguments):
    size = (128, 224)
    model = build(name, size, **arguments)
    layer = resolve_feature_layer(model)
    assert layer.grid == grid
    assert_by_hand(model, layer, noise(size))
    assert_in_place(model, layer, size)
    upright = build(name, size[::-1], **arguments)
    assert resolve_feature_layer(upright).grid == grid[::-1]


@pytest.mark.parametrize(
    ("name", "grid", "arguments"),
    [
        ("test_resnet", (3, 4), {}),
        ("test_efficientnet", (3, 4), {}),
        ("test_convnext", (2, 3), {}),  # patches that do not fit are cut off
        ("test_vit", (5, 7), {"dynamic_img_size": True, "dynamic_img_pad": True}),
        ("test_vit", (5, 7), {"dynamic_img_size": True, "dynamic_img_pad": True, "global_pool": "avg"}),
        ("swin_tiny_patch4_window7_224", (5, 7), {**TINY_SWIN, "window_size": 2, "strict_img_size": False}),
    ],
)
def test_grids_that_do_not_divide_the_picture(name, grid, arguments):
    size = (72, 100) if "swin" in name else (70, 100)
    model = build(name, **arguments)
    layer = resolve_feature_layer(model, size)
    assert layer.grid == grid
    maps = saliency_maps(model, noise(size), 1)
    assert maps.shape == (3, *grid)
    assert_agree(maps, map_by_hand(model, layer, noise(size), 1))
    if layer.readout == "exact":
        with torch.no_grad():
            logits, bias = model(noise(size)).logits[:, 1], model.get_submodule(layer.head).bias[1]
        assert_agree(maps.mean((1, 2)) + bias, logits)


def test_patches_of_transformers_are_padded():
    model = build(transformers.SwinConfig(**TINY_SWIN), (64, 64))
    layer = resolve_feature_layer(model, (70, 98))  # 18 x 25 patches, merged twice
    assert layer.grid == (5, 7)
    assert_by_hand(model, layer, noise((70, 98)))
    assert_in_place(model, layer, (70, 98))


# -- tokens beside the grid, memory formats


@pytest.mark.parametrize(
    ("prefix", "arguments"),
    [
        (0, {"class_token": False, "global_pool": "avg"}),
        (1, {}),
        (1, {"class_token": False, "reg_tokens": 1, "global_pool": "avg"}),
        (5, {"reg_tokens": 4}),
        (5, {"reg_tokens": 4, "global_pool": "avg"}),
        (5, {"reg_tokens": 4, "no_embed_class": True, "dynamic_img_size": True}),
    ],
)
def test_prefix_and_register_tokens_are_left_out(prefix, arguments):
    model = build("test_vit", **arguments)
    layer = resolve_feature_layer(model)
    assert (layer.num_prefix_tokens, layer.grid) == (prefix, (4, 6))
    assert_by_hand(model, layer, noise())
    assert_in_place(model, layer, SIZE)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token", "swin", "hf_resnet"])
def test_channels_last_in_memory_changes_nothing(name):
    case = CASES[name]
    model, images = fresh(case.build()), case.images()
    layer, expected = resolve_feature_layer(model), saliency_maps(model, images, 1)
    last = fresh(case.build()).to(memory_format=torch.channels_last)
    pictures = images.to(memory_format=torch.channels_last)
    assert pictures.stride()[1] == 1
    assert resolve_feature_layer(last) == layer
    maps = saliency_maps(last, pictures, 1)
    assert_agree(maps, expected)
    maps.square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in last.parameters())


# -- pooling and heads

POOLS = {
    "average": ("test_vit", {"global_pool": "avg"}),
    "maximum": ("test_vit", {"global_pool": "max"}),
    "class token": ("test_vit", {}),
    "latent query": ("test_vit", {"global_pool": "map"}),
    "latent query, fewer key heads": ("test_vit3", {}),
    "test_vit4": ("test_vit4", {}),
    "absolute positions": ("test_byobnet", {"head_type": "attn_abs", "head_hidden_size": 64, "img_size": SIZE}),
    "rotary positions": ("test_byobnet", {"head_type": "attn_rot", "head_hidden_size": 64, "img_size": SIZE}),
    "norm behind": ("test_convnext", {}),
    "convolution behind": ("mobilenetv3_small_050", {}),
    "perceptron behind": ("inception_next_atto", {}),
    "perceptron on all positions": ("vgg11", {"mlp_ratio": 0.01}),
}


@pytest.mark.parametrize("pool", POOLS)
def test_whatever_pools_and_reads(pool):
    name, arguments = POOLS[pool]
    model = build(name, **arguments)
    layer = resolve_feature_layer(model)
    assert min(layer.grid) >= 2
    raw, logits = output_of(model, layer, noise())
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), raw)
    read = positions(layer, gradient).abs().sum(-1) > 0
    assert read.float().mean() > 0.5
    assert_by_hand(model, layer, noise())
    spread = positions(layer, gradient).std((1, 2)).max() / gradient.abs().max()
    assert (layer.readout == "uniform") == (float(spread) < 1e-5)
    assert layer.head is None  # no one layer reads the average


def test_average_pooling_of_transformers_is_exact():
    """CLIP and SigLIP average the patches, not the class token."""
    vision = {"patch_size": 16, **TINY_VIT}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    for config, prefix in ((transformers.CLIPConfig, 1), (transformers.SiglipConfig, 0)):
        model = build(config(vision_config=vision, text_config={**text, **tokens}), (64, 64))
        layer = resolve_feature_layer(model)
        assert (layer.readout, layer.head, layer.num_prefix_tokens) == ("exact", "classifier", prefix)
        assert layer.grid == (4, 4)
        with torch.no_grad():
            logits = model(noise((64, 64))).logits[:, 1]
        maps = saliency_maps(model, noise((64, 64)), 1)
        assert_agree(maps.mean((1, 2)) + model.classifier.bias[1], logits)


# -- distilled pairs

DISTILLED = {
    "deit_tiny_distilled_patch16_224": (SIZE, SMALL_DEIT),
    "levit_128s": ((128, 128), SMALL_LEVIT),
    "efficientformer_l1": ((224, 224), SMALL_STAGES),
    "efficientformerv2_s0": (SIZE, SMALL_STAGES),
}


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_pair_is_read_as_its_average_in_evaluation_and_in_training(name):
    size, arguments = DISTILLED[name]
    model = build(name, size, **arguments)
    module, images = model.timm_model, noise(size)
    layer = resolve_feature_layer(model)
    assert min(layer.grid) >= 2
    assert_by_hand(model, layer, images)
    expected = saliency_maps(model, images, 1)
    module.set_distilled_training(True)
    assert resolve_feature_layer(model) == layer
    for inner in module.modules():  # as in evaluation, but for the pair
        inner.training = inner is module
    pair = module(images)
    assert isinstance(pair, tuple)
    assert_agree(logits_of(pair), (pair[0] + pair[1]) / 2, 1e-6)
    assert_agree(logits_of(model(images)), (pair[0] + pair[1]) / 2, 1e-6)
    assert_agree(saliency_maps(model, images, 1), expected)
    plain = resolve_feature_layer(module, size)
    assert plain.name == layer.name.removeprefix("timm_model.")
    assert_agree(saliency_maps(module, images, 1), expected)


def test_an_exact_pair_has_the_map_of_both_heads():
    size, arguments = DISTILLED["efficientformerv2_s0"]
    model = build("efficientformerv2_s0", size, **arguments)
    layer = resolve_feature_layer(model)
    assert (layer.readout, layer.head) == ("exact", None)
    module = model.timm_model
    weight = (module.head.weight + module.head_dist.weight)[1] / 2
    raw, _ = output_of(model, layer, noise(size))
    assert_agree(saliency_maps(model, noise(size), 1), torch.einsum("c,bhwc->bhw", weight, positions(layer, raw)))


# -- adapters

ADAPTED = {
    "test_resnet": (lambda: build("test_resnet"), ["layer4.0.conv2", "layer2.0.conv2"], None),
    "test_convnext": (lambda: build("test_convnext"), ["mlp.fc1"], None),
    "vit_class_token": (lambda: build("test_vit"), ["qkv"], ["timm_model.head"]),
    "vit_average": (lambda: build("test_vit", global_pool="avg", fc_norm=False), ["qkv"], ["timm_model.head"]),
    "hf_vit": (transformers_vit, ["q_proj", "v_proj"], ["classifier"]),
}


def adapted(name, copied_head=False):
    peft = pytest.importorskip("peft")
    make, targets, head = ADAPTED[name]
    config = peft.LoraConfig(target_modules=targets, r=2, modules_to_save=head if copied_head else None)
    torch.manual_seed(3)
    return make(), peft.get_peft_model(make(), config)


@pytest.mark.parametrize("copied_head", [False, True])
@pytest.mark.parametrize("name", ADAPTED)
def test_names_and_maps_inside_adapters_are_those_of_the_model(name, copied_head):
    model, wrapped = adapted(name, copied_head)
    layer, inside = resolve_feature_layer(model), resolve_feature_layer(wrapped)
    assert inside.name == f"base_model.model.{layer.name}"
    assert (inside.layout, inside.grid, inside.readout) == (layer.layout, layer.grid, layer.readout)
    assert inside.num_prefix_tokens == layer.num_prefix_tokens
    assert (inside.head is None) == (layer.head is None)
    assert wrapped.get_submodule(inside.name) is not None
    for method in ("auto", "input_gradient"):
        assert_agree(saliency_maps(wrapped, noise(), 1, method), saliency_maps(model, noise(), 1, method))
    assert resolve_feature_layer(wrapped, feature_layer=inside.name) == inside
    flags = {name: parameter.requires_grad for name, parameter in wrapped.named_parameters()}
    assert any(flags.values())
    assert not flags[next(name for name in flags if "lora" not in name)]


@pytest.mark.parametrize("name", ADAPTED)
def test_a_guided_step_moves_adapters_alone(name, tmp_path):
    _, wrapped = adapted(name)
    moved = {name for name, change in guided_gradients(wrapped, tmp_path).items() if change.any()}
    # lora_A gets a gradient through lora_B, which starts as zeros. What comes behind the map may get none.
    assert moved
    assert all("lora_B" in name for name in moved)
    first = next(name for name, _ in wrapped.named_parameters() if "lora_B" in name)
    assert first in moved


# -- gradient checkpointing


@pytest.mark.parametrize(
    "make",
    [lambda: build("test_resnet"), lambda: build("test_convnext"), transformers_vit],
    ids=["test_resnet", "test_convnext", "hf_vit"],
)
def test_checkpointing_gives_the_same_maps_and_gradients(make, tmp_path):
    found = []
    for checkpointed in (False, True):
        model = make()
        layer = resolve_feature_layer(model)
        calls = []
        model.get_submodule(layer.name).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        gradients = guided_gradients(model, tmp_path, gradient_checkpointing=checkpointed)
        again = make().train()
        if checkpointed:
            again.gradient_checkpointing_enable()
            assert resolve_feature_layer(again) == layer
        found.append((gradients, saliency_maps(again, noise(), 1), len(calls)))
    (plain, maps, ran), (checkpointed, other_maps, ran_again) = found
    assert ran_again > ran  # or nothing was checkpointed
    assert_agree(other_maps, maps)
    assert any(change.any() for change in plain.values())
    size = max(float(change.abs().max()) for change in plain.values())
    for name, change in plain.items():
        torch.testing.assert_close(checkpointed[name], change, rtol=1e-4, atol=1e-5 * size)


# -- torch.compile


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    """What takes little time to compile: one convolution, the average, one linear layer."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 8, stride=8)
        self.norm = norm
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x).mean((2, 3))))


def exact_net():
    return Net(nn.Identity())


def norm_behind():
    return Net(nn.LayerNorm(6))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("make", [exact_net, norm_behind, lambda: build("test_resnet")])
def test_the_resolver_neither_compiles_nor_sees_that_a_model_is_compiled(make, in_place):
    layer = resolve_feature_layer(make(), SIZE)
    model, counter = make(), CompileCounter()
    if in_place:
        model.compile(backend=counter)
    compiled = model if in_place else torch.compile(model, backend=counter)
    with torch.no_grad():
        expected = logits_of(compiled(noise()))
        compilations = counter.frame_count
        assert compilations > 0
        assert resolve_feature_layer(compiled, SIZE) == layer
        assert resolve_feature_layer(model, (64, 128)).grid == (layer.grid[0], 128 * layer.grid[1] // 96)
        assert torch.equal(logits_of(compiled(noise())), expected)
    assert counter.frame_count == compilations


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("make", "backend"),
    [(exact_net, "eager"), (exact_net, "aot_eager"), (lambda: build("test_resnet"), "eager")],
)
def test_exact_maps_of_a_compiled_model(make, backend):
    """The hook is compiled in where the model is called for the first time inside the capture."""
    model = make()
    layer, expected = resolve_feature_layer(model, SIZE), saliency_maps(model, noise(), 1)
    compiled = torch.compile(model, backend=backend)
    with FeatureCapture(compiled, layer) as capture:
        logits = logits_of(compiled(noise()))
    maps = class_maps(capture, layer, compiled, logits, torch.eye(3)[[1, 1, 1]])
    assert_agree(maps, expected)
    gradients = []
    for given in (maps, expected):
        (gradient,) = torch.autograd.grad(given.square().sum(), next(model.parameters()))
        gradients.append(gradient)
    assert_agree(*gradients)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_capture_of_what_was_compiled_before_is_an_error_that_says_so():
    model = exact_net()
    layer = resolve_feature_layer(model, SIZE)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(noise())
        message = '"stem" did not fire.*compiled before the hook'
        with pytest.raises(RuntimeError, match=message), FeatureCapture(compiled, layer):
            compiled(noise())


@pytest.mark.usefixtures("_fresh_compiler")
def test_training_through_the_gradient_map_of_a_compiled_model_is_an_error():
    """The map is right, but what is compiled has no gradient of its gradient."""
    model = norm_behind()
    layer, expected = resolve_feature_layer(model, SIZE), saliency_maps(model, noise(), 1)
    assert layer.needs_gradient
    compiled = torch.compile(model, backend="aot_eager")
    with FeatureCapture(compiled, layer, tail_gradient=True) as capture:
        logits = compiled(noise())
    maps = class_maps(capture, layer, compiled, logits, torch.eye(3)[[1, 1, 1]], create_graph=True)
    assert_agree(maps, expected)
    with pytest.raises(RuntimeError, match="torch.compile .*does not currently support double backward"):
        maps.square().sum().backward()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("make", [exact_net, norm_behind])
def test_maps_in_one_call_are_had_of_a_compiled_model(make, mode):
    model = make()
    expected = saliency_maps(model, noise(), 1)
    compiled = torch.compile(model, backend="aot_eager")
    with mode():
        compiled(noise())
        maps = saliency_maps(compiled, noise(), 1)
    assert maps.requires_grad is (mode is torch.enable_grad)
    assert_agree(maps, expected)
    if maps.requires_grad:
        gradients = [torch.autograd.grad(given.square().sum(), model.stem.weight)[0] for given in (maps, expected)]
        assert_agree(*gradients)


# -- frozen backbones, dropout


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token", "swin", "hf_vit"])
def test_a_model_of_which_nothing_is_trained(name):
    case = CASES[name]
    model, images = fresh(case.build()), case.images()
    layer, expected = resolve_feature_layer(model), saliency_maps(model, images, 1)
    frozen = fresh(case.build()).requires_grad_(False)
    assert resolve_feature_layer(frozen) == layer
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert_agree(saliency_maps(frozen, images, 1), expected)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    half = fresh(case.build())
    for index, parameter in enumerate(half.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    assert resolve_feature_layer(half) == layer
    assert [parameter.requires_grad for parameter in half.parameters()] == [
        index % 2 == 0 for index, _ in enumerate(half.parameters())
    ]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {"drop_rate": 0.3, "drop_path_rate": 0.3}),
        ("test_convnext", {"drop_rate": 0.3, "drop_path_rate": 0.3}),
        ("test_vit", {"drop_rate": 0.3, "drop_path_rate": 0.3, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2}),
        ("test_vit", {"pos_drop_rate": 0.3, "global_pool": "avg"}),
        ("swin_tiny_patch4_window7_224", {**TINY_SWIN, "drop_rate": 0.3, "drop_path_rate": 0.5}),
    ],
)
def test_dropout_and_drop_path_in_training_do_not_reach_the_resolver(name, arguments):
    expected = resolve_feature_layer(build(name, **arguments))
    for seed in (1, 2):
        model = build(name, **arguments).train()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        assert resolve_feature_layer(model) == expected
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training for module in model.modules())
    maps = [saliency_maps(model, noise(), 1) for _ in range(2)]
    assert all(torch.isfinite(found).all() for found in maps)
    assert not torch.equal(*maps)  # dropped out they were
    sum(found.square().sum() for found in maps).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


# -- channels, precisions


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_pictures_of_other_than_three_channels(name, channels):
    model = build(name, in_chans=channels)
    layer = resolve_feature_layer(model)
    assert (layer.name, layer.grid) == (resolve_feature_layer(build(name)).name, layer.grid)
    images = noise(channels=channels)
    assert_by_hand(model, layer, images)
    assert_in_place(model, layer, SIZE, channels)
    assert saliency_maps(model, images, 1, "input_gradient").shape == (3, *SIZE)


def test_pictures_of_one_channel_in_transformers(tmp_path):
    model = transformers_vit(num_channels=1)
    layer = resolve_feature_layer(model)
    assert_by_hand(model, layer, noise(channels=1))
    batch = make_batch(SIZE, 4, annotated=[True] * 4)
    batch["pixel_values"] = batch["pixel_values"][:, :1]
    changes = guided_gradients(model, tmp_path, batch)
    assert changes["vit.embeddings.patch_embeddings.projection.weight"].abs().sum() > 0


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token", "swin"])
def test_bfloat16_and_float64(name):
    case = CASES[name]
    model, images = fresh(case.build()), case.images()
    layer, expected = resolve_feature_layer(model), saliency_maps(model, images, 1)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.1)):
        other = fresh(case.build()).to(dtype)
        assert resolve_feature_layer(other) == layer
        maps = saliency_maps(other, images.to(dtype), 1)
        assert maps.dtype == torch.float32
        assert_agree(maps, expected, tolerance)
        maps.square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in other.parameters() if p.grad is not None)
        assert {parameter.dtype for parameter in other.parameters()} == {dtype}


# -- wrappers


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_class_token", "swin"])
def test_a_model_whose_forward_accelerate_replaced(name, accelerator):
    """It then computes in bfloat16, too coarse to tell an exact read-out, whatever context it is called in."""
    case = CASES[name]
    model, images = fresh(case.build()), case.images()
    layer, expected = resolve_feature_layer(model), saliency_maps(model, images, 1)
    prepared = accelerator.prepare_model(fresh(case.build()))
    replaced = vars(prepared)["forward"]
    assert resolve_feature_layer(prepared) == layer
    assert vars(prepared)["forward"] is replaced
    with torch.no_grad():
        maps, logits = saliency_maps(prepared, images, 1), model(images).logits
        assert not torch.equal(prepared(images).logits, logits)
    assert maps.dtype == torch.float32
    assert_agree(maps, expected, 0.1)


def test_a_model_under_data_parallelism(tmp_path):
    case = CASES["vit_class_token"]
    model, images = fresh(case.build()), case.images()
    layer, expected = resolve_feature_layer(model), saliency_maps(model, images, 1)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(fresh(case.build()))
        assert resolve_feature_layer(wrapped) == layer
        maps = saliency_maps(wrapped, images, 1)
        assert_agree(maps, expected)
        maps.square().sum().backward()
        expected.square().sum().backward()
        pairs = zip(wrapped.module.parameters(), model.parameters(), strict=True)
        for ours, theirs in ((ours.grad, theirs.grad) for ours, theirs in pairs):
            assert (ours is None or not ours.any()) if theirs is None else torch.allclose(ours, theirs, atol=1e-5)
    finally:
        distributed.destroy_process_group()
