"""
Attention rollout: the product against a loop over tokens, and models against attention that is read off otherwise.

The attention of timm's models is computed from what hooks see of their query, key and value layers; transformers'
models return theirs themselves.
"""

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from backbones.zoo import CASES, NAMES, TINY_VIT, lively
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from hf_salguide.backbones import as_classifier, resolve_feature_layer, saliency_maps
from hf_salguide.backbones.rollout import AttentionRecorder, attention_tokens
from hf_salguide.maps import attention_rollout

TINY = {"embed_dim": 24, "depth": 3, "num_heads": 2}


def by_hand(attentions, start):
    """Shares of the first layer's tokens in token `start` of the last, one picture: a walk down, token by token."""
    shares = {start: 1.0}
    for attention in reversed(attentions):  # (heads, L, L)
        heads, length, _ = attention.shape
        below = dict.fromkeys(range(length), 0.0)
        for row, share in shares.items():
            weights = [sum(float(attention[h, row, column]) for h in range(heads)) / heads for column in range(length)]
            weights[row] += 1.0
            total = sum(weights)
            for column in range(length):
                below[column] += share * weights[column] / total
        shares = below
    return [shares[column] for column in range(len(shares))]


def drawn(layers, batch=2, heads=3, length=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, length, length)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(layers)]


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_it_is_the_product_over_the_layers(layers):
    attentions = drawn(layers)
    result = attention_rollout(attentions)
    expected = [[by_hand([a[row] for a in attentions], token) for token in range(5)] for row in range(2)]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(result.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    readers = torch.tensor([[0.0, 1, 0, 0, 0], [0, 0, 0.5, 0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(attention_rollout(attentions, readers), readers @ result)


def test_attention_made_by_hand():
    identity = torch.eye(3).expand(1, 2, 3, 3)
    assert torch.equal(attention_rollout([identity, identity]), torch.eye(3).unsqueeze(0))
    to_first = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]]).expand(1, 1, 3, 3)
    to_second = torch.tensor([[0, 1.0, 0], [0, 1, 0], [0, 1, 0]]).expand(1, 1, 3, 3)
    # The last layer looks at token 1, half; what is there has come from token 0, half.
    expected = torch.tensor([[[0.75, 0.25, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]]])
    assert torch.equal(attention_rollout([to_first, to_second]), expected)
    # Rows that are not normalised count as if they were, the residual connection included.
    doubled = attention_rollout([2 * torch.full((1, 1, 2, 2), 0.5)])
    torch.testing.assert_close(doubled, torch.tensor([[[2 / 3, 1 / 3], [1 / 3, 2 / 3]]]))


def test_its_gradient_is_right():
    attentions = [attention.requires_grad_() for attention in drawn(3, batch=1, heads=2, length=3)]
    readers = torch.tensor([[0.5, 0.5, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *given: attention_rollout(given, readers), attentions)


@pytest.mark.parametrize(
    ("attentions", "readers", "message"),
    [
        ([], None, "attentions is empty"),
        ([torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 4)], None, r"attentions\[1\] has shape \(1, 2, 4, 4\)"),
        ([torch.ones(1, 3, 3)], None, r"attentions\[0\] has shape"),
        ([torch.ones(1, 2, 3, 4)], None, r"attentions\[0\] has shape"),
        ([torch.ones(1, 2, 3, 3)], torch.ones(1, 4), r"readers has shape \(1, 4\)"),
    ],
)
def test_shapes_are_checked(attentions, readers, message):
    with pytest.raises(ValueError, match=message):
        attention_rollout(attentions, readers)


def timm_vit(name, size=(64, 96), **arguments):
    return as_classifier(name, label_names=NAMES, image_size=size, **{**TINY, **arguments})


def hf(config, **arguments):
    size = {"image_size": 64, "patch_size": 16, **TINY_VIT}
    return as_classifier(config(**{**size, **arguments}), label_names=NAMES)


def with_teacher(**arguments):
    config = transformers.DeiTConfig(image_size=64, num_labels=3, **{**TINY_VIT, **arguments})
    return transformers.DeiTForImageClassificationWithTeacher(config)


# What is built; the picture's size; the tokens before the grid; the tokens that the head reads; the grid.
TIMM = {
    "class token": (lambda: timm_vit("test_vit"), (64, 96), 1, [0], (4, 6)),
    "average": (lambda: timm_vit("test_vit", global_pool="avg"), (64, 96), 1, range(1, 25), (4, 6)),
    "average, no class token": (
        lambda: timm_vit("test_vit", (96, 64), global_pool="avg", class_token=False),
        (96, 64),
        0,
        range(24),
        (6, 4),
    ),
    "normalised queries and keys": (lambda: timm_vit("test_vit", qk_norm=True), (64, 96), 1, [0], (4, 6)),
    "registers": (lambda: timm_vit("vit_small_patch14_reg4_dinov2", (56, 84)), (56, 84), 5, [0], (4, 6)),
    "distilled": (lambda: timm_vit("deit_tiny_distilled_patch16_224"), (64, 96), 2, [0, 1], (4, 6)),
}
TRANSFORMERS = {
    "ViT": (lambda **a: hf(transformers.ViTConfig, **a), (64, 64), 1, [0], (4, 4)),
    "DeiT, distilled": (with_teacher, (64, 64), 2, [0, 1], (4, 4)),
    "IJepa": (lambda **a: hf(transformers.IJepaConfig, **a), (64, 64), 0, range(16), (4, 4)),
    "BEiT": (
        lambda **a: hf(transformers.BeitConfig, use_relative_position_bias=True, **a),
        (64, 64),
        1,
        range(1, 17),
        (4, 4),
    ),
    "DINOv2": (lambda **a: hf(transformers.Dinov2Config, **a), (64, 64), 1, range(17), (4, 4)),
    "DINOv2, registers": (
        lambda **a: hf(transformers.Dinov2WithRegistersConfig, **a),
        (64, 64),
        5,
        [0, *range(5, 21)],
        (4, 4),
    ),
}


def built(build, size, seed=0, **arguments):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lively(build(**arguments), seed)
    # Sharper than at the start, or else every layer attends to all tokens alike.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and any(part in name for part in ("qkv", "query", "key", "q_proj", "k_proj")):
                parameter.mul_(8)
    return model, torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(7))


def expected_maps(attentions, prefix, read, grid):
    """From attention `(B, heads, L, L)` of every layer, by the loop over tokens."""
    maps = []
    for row in range(len(attentions[0])):
        own = [attention[row].double() for attention in attentions]
        shares = torch.tensor([by_hand(own, token) for token in read]).mean(dim=0)
        maps.append(shares[prefix:].reshape(grid))
    return torch.stack(maps).float()


def timm_attentions(model, images):
    """From the output of every layer's `qkv`, in float64."""
    found, handles = [], []

    def watch(attention):
        def hook(module, args, output):
            batch, tokens, _ = output.shape
            heads = output.reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
            query, key = attention.q_norm(heads[0]).double(), attention.k_norm(heads[1]).double()
            found.append((query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1))

        return attention.qkv.register_forward_hook(hook)

    for module in model.modules():
        if hasattr(module, "qkv"):
            handles.append(watch(module))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", TIMM)
def test_timm(name, fused):
    build, size, prefix, read, grid = TIMM[name]
    model, images = built(build, size)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            assert module.fused_attn
            module.fused_attn = fused
    attentions = timm_attentions(model, images)
    assert len(attentions) == 3
    expected = expected_maps(attentions, prefix, read, grid)
    assert expected.std(dim=(1, 2)).min() > 1e-3  # more than a constant to agree on
    maps = saliency_maps(model, images, method="attention_rollout")
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name, implementation):
    build, size, prefix, read, grid = TRANSFORMERS[name]
    model, images = built(build, size, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    plain = build(attn_implementation="eager")
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        attentions = plain.eval()(images, output_attentions=True).attentions
    assert len(attentions) == 3
    expected = expected_maps(attentions, prefix, read, grid)
    assert expected.std(dim=(1, 2)).min() > 1e-3
    torch.testing.assert_close(
        saliency_maps(model, images, method="attention_rollout"), expected, rtol=1e-4, atol=1e-6
    )


def test_other_models_have_it():
    """Rotary positions, relative positions, a convolutional stem, and a pooling by attention that is not read."""
    clip = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vision = {**clip, "image_size": 64, "patch_size": 16}
    siglip = transformers.SiglipConfig(vision_config=vision, text_config={**clip, "vocab_size": 64})
    for source, size, grid, arguments in (
        ("vit_tiny_patch16_dinov3_qkvb", (64, 96), (4, 6), TINY),
        ("test_vit_relpos", (64, 96), (4, 6), {}),
        ("beit_base_patch16_224", (64, 96), (4, 6), TINY),
        (siglip, (64, 64), (4, 4), {}),
    ):
        torch.manual_seed(0)
        model = as_classifier(source, label_names=NAMES, image_size=size, **arguments).eval()
        maps = saliency_maps(model, torch.randn(2, 3, *size), method="attention_rollout")
        assert maps.shape == (2, *grid)
        assert (maps >= 0).all()
        assert (maps.sum(dim=(1, 2)) <= 1 + 1e-5).all()


@pytest.mark.parametrize("name", ["vit_class_token", "vit_average", "hf_vit", "vit_registers"])
def test_a_change_shows_where_it_is(name):
    """Rows, columns and prefix tokens in their places: where the picture changes, the map does most."""
    case = CASES[name]
    model, images = case.build(), case.images()
    edge, cells = case.size[0] // case.grid[0], case.grid[0] * case.grid[1]
    noise = 3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    right = 0
    with torch.no_grad():
        plain = saliency_maps(model, images, method="attention_rollout")
        for cell in range(cells):
            top, left = edge * (cell // case.grid[1]), edge * (cell % case.grid[1])
            changed = images.clone()
            place = (..., slice(top, top + edge), slice(left, left + edge))
            changed[place] += noise[place]
            difference = saliency_maps(model, changed, method="attention_rollout") - plain
            right += int(difference.abs().mean(0).argmax()) == cell
    assert right >= 0.9 * cells


def gradients_of(model, images):
    model.zero_grad()
    maps = saliency_maps(model, images, method="attention_rollout")
    weights = torch.randn(maps.shape, generator=torch.Generator().manual_seed(3))
    (weights * maps).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_it_is_trained_through_fused_attention_or_not():
    model, images = built(TIMM["class token"][0], (64, 96))
    fused = gradients_of(model, images)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    plain = gradients_of(model, images)
    assert fused.keys() == plain.keys()
    assert not any("head" in name for name in fused)
    for early in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "cls_token"):
        assert any(name.endswith(early) and grad.abs().sum() > 0 for name, grad in fused.items()), early
    for name, grad in fused.items():
        assert torch.isfinite(grad).all()
        assert (grad - plain[name]).norm() <= 1e-3 * plain[name].norm() + 1e-7, name


def test_sdpa_and_eager_have_the_same_gradients():
    build, size, *_ = TRANSFORMERS["BEiT"]
    results = []
    for implementation in ("sdpa", "eager"):
        model, images = built(build, size, attn_implementation=implementation)
        results.append(gradients_of(model, images))
    assert any("relative_position_bias" in name and grad.any() for name, grad in results[0].items())
    for name, grad in results[0].items():
        assert (grad - results[1][name]).norm() <= 1e-3 * results[1][name].norm() + 1e-7, name


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_that_before_dropout(fused):
    """With one layer, dropout of its attention changes nothing that is seen."""
    model, images = built(lambda: timm_vit("test_vit", depth=1, attn_drop_rate=0.5), (64, 96))
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    plain = saliency_maps(model, images, method="attention_rollout")
    model.train()
    torch.testing.assert_close(saliency_maps(model, images, method="attention_rollout"), plain)
    assert model.training


def test_under_no_grad_and_in_half_precision():
    model, images = built(TIMM["registers"][0], (56, 84))
    maps = saliency_maps(model, images, method="attention_rollout")
    assert maps.requires_grad
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            plain = saliency_maps(model, images, method="attention_rollout")
        assert not plain.requires_grad
        torch.testing.assert_close(plain, maps.detach())
    with torch.autocast("cpu", torch.bfloat16):
        rough = saliency_maps(model, images, method="attention_rollout")
    half = copy.deepcopy(model).bfloat16()
    for other in (rough, saliency_maps(half, images.bfloat16(), method="attention_rollout")):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, maps, rtol=0.1, atol=0.1 * float(maps.detach().max()))


def recorded(*args, **kwargs):
    with AttentionRecorder(2) as recorder:
        output = F.scaled_dot_product_attention(*args, **kwargs)
    assert not recorder.problems
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*args, **kwargs))
    return recorder.attentions[0]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("mask", ["none", "boolean", "additive", "causal", "positional"])
def test_arguments_of_the_fused_attention(mask, grouped):
    """With the identity for values, it gives its probabilities itself."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 6, 8, generator=generator)
    key = torch.randn(2, 2 if grouped else 4, 6, 8, generator=generator)
    values = torch.eye(6).expand(2, key.shape[1], 6, 6)
    keywords = {"scale": 0.7, "enable_gqa": grouped}
    allowed = (torch.rand(2, 1, 6, 6, generator=generator) > 0.4) | torch.eye(6, dtype=torch.bool)
    positional = ()
    if mask == "boolean":
        keywords["attn_mask"] = allowed
    elif mask == "additive":
        keywords["attn_mask"] = torch.randn(4, 6, 6, generator=generator)
    elif mask == "causal":
        keywords["is_causal"] = True
    elif mask == "positional":
        positional = (allowed, 0.0, False)
    expected = F.scaled_dot_product_attention(query, key, values, *positional, **keywords)
    torch.testing.assert_close(
        recorded(query, key, values, *positional, **keywords), expected.mean(1, keepdim=True), rtol=1e-5, atol=1e-6
    )


class Tokens(nn.Module):
    """A class-token transformer of two layers, made of what is given as a layer's attention and mixing."""

    def __init__(self, attend=None, mix=None, side_by_side=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 16, stride=16)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)
        self.attend, self.mix, self.side_by_side = attend or F.scaled_dot_product_attention, mix, side_by_side

    def forward(self, pixel_values):
        x = self.stem(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        added = []
        for norm, layer in zip(self.norms, self.layers, strict=True):
            parts = layer(norm(x)).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            added.append(self.attend(*parts).transpose(1, 2).flatten(2))
            if not self.side_by_side:
                x = x + added.pop()
            if self.mix:
                x = x + self.mix(self, x)
        return self.head((x + sum(added))[:, 0])


def softmax(query, key):
    return (query @ key.transpose(-2, -1)).softmax(-1)


def weighted(query, key, value):
    return torch.einsum("bhij,bhjd->bhid", softmax(query, key), value)


def without_gradients(query, key, value):
    if torch.is_grad_enabled():
        raise RuntimeError("no backward pass on this device")
    return softmax(query, key) @ value


REFUSED = {
    "convolutions": (lambda: CASES["test_resnet"].build(), "its forward shows no attention"),
    "windows": (lambda: CASES["hf_swin"].build(), "attends in shape .*as with windows"),
    "reduced keys": (
        lambda: hf(
            transformers.PvtV2Config,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 2],
            num_attention_heads=[1, 1, 2, 2],
        ),
        "reduced keys",
    ),
    "channels, then a class token": (
        lambda: timm.create_model("xcit_nano_12_p8_224", num_classes=3, embed_dim=32, depth=2, img_size=64),
        "pooling by attention",
    ),
    "talking heads": (
        lambda: timm.create_model("cait_xxs24_224", num_classes=3, img_size=64, **{**TINY, "depth": 2}),
        "softmax of a layer is changed",
    ),
    "gates": (
        lambda: timm.create_model("convit_tiny", num_classes=3, img_size=64, embed_dim=16, depth=2, num_heads=2),
        "softmax of a layer is changed",
    ),
    "pooling by attention": (lambda: timm_vit("test_vit", global_pool="map", class_token=False), "pooling"),
    "fewer tokens": (
        lambda: timm.create_model("pit_ti_224", num_classes=3, img_size=64),
        "attend over .* tokens in turn",
    ),
    "layers side by side": (lambda: Tokens(side_by_side=True), "runs side by side"),
    "a convolution between": (
        lambda: Tokens(mix=lambda m, x: m.conv(x.transpose(1, 2)).transpose(1, 2)),
        "tokens mix outside",
    ),
    "attention that is not seen": (
        lambda: Tokens(mix=lambda m, x: (x @ x.transpose(1, 2)).exp() @ x),
        "tokens mix outside",
    ),
    "a product that is not seen": (lambda: Tokens(attend=weighted), "softmax of a layer is changed"),
    "attention inside a module": (
        lambda: Tokens(mix=lambda m, x: nn.MultiheadAttention(16, 2, batch_first=True)(x, x, x)[0]),
        "MultiheadAttention does not show",
    ),
    "attention over queries": (
        lambda: Tokens(attend=lambda q, k, v: q.softmax(2) @ (k.transpose(-2, -1) @ v)),
        "over axis 2",
    ),
    "a kernel without gradients": (
        lambda: Tokens(without_gradients),
        r"gradients are taken \(no backward pass on this device\)",
    ),
    "compiled": (lambda: torch.compile(Tokens()), "it is compiled"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_without_it_are_told_so(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        saliency_maps(build().eval(), torch.randn(2, 3, 64, 64), method="attention_rollout")
    assert 'take method="auto" or "input_gradient"' in str(error.value)
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize(
    "attend", [None, lambda q, k, v: softmax(q, k) @ v, lambda q, k, v: F.dropout(softmax(q, k), 0.1, False).matmul(v)]
)
def test_the_tokens_of_a_module_of_ones_own(attend):
    found = attention_tokens(Tokens(attend), (64, 96))
    assert (found.layers, found.length, found.patches, found.read) == (2, 25, tuple(range(1, 25)), (0,))


def test_patches_that_are_left_out_in_training():
    model, images = built(lambda: timm_vit("test_vit", patch_drop_rate=0.5), (64, 96))
    assert saliency_maps(model, images, method="attention_rollout").shape == (3, 4, 6)
    with pytest.raises(ValueError, match="3 layers attend over 13 tokens, where 3 attended over 25"):
        saliency_maps(model.train(), images, method="attention_rollout")


@pytest.mark.parametrize("name", ["vit_class_token", "hf_vit"])
def test_gradient_checkpointing(name):
    case = CASES[name]
    model, images = case.build(), case.images()
    expected = saliency_maps(model, images, method="attention_rollout").detach()
    model = case.build().train()  # one that has not been looked at
    getattr(model, "timm_model", model).train()
    if name == "hf_vit":
        model.gradient_checkpointing_enable()
    else:
        model.timm_model.set_grad_checkpointing(True)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        saliency_maps(model, images, method="attention_rollout")
    with torch.no_grad():
        torch.testing.assert_close(saliency_maps(model, images, method="attention_rollout"), expected)
    assert any(getattr(module, "grad_checkpointing", False) for module in model.modules()) or name == "hf_vit"


def test_a_size_that_is_refused():
    with pytest.raises(ValueError, match=r"image_size=\(64, 80\) is refused by"):
        saliency_maps(hf(transformers.ViTConfig).eval(), torch.randn(1, 3, 64, 80), method="attention_rollout")


def test_a_grid_that_is_not_the_patches():
    model, images = built(TIMM["class token"][0], (64, 96))
    layer = resolve_feature_layer(model, (96, 96))
    with pytest.raises(ValueError, match="attends over 24 patches, but its feature layer is 6 × 6"):
        saliency_maps(model, images, method="attention_rollout", feature_layer=layer)


def test_the_model_is_left_as_it_was():
    model, _ = built(TIMM["class token"][0], (64, 96))
    with torch.no_grad():
        model.timm_model.head.weight.zero_()  # else made random to find what the head reads
    model.train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert attention_tokens(model, (64, 96)).read == (0,)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_it_is_found_once():
    model, images = built(TIMM["class token"][0], (64, 96))
    saliency_maps(model, images, method="attention_rollout")
    forwards = []
    handle = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    saliency_maps(model, images, method="attention_rollout")
    handle.remove()
    assert len(forwards) == 1


def test_an_exception_leaves_nothing_behind():
    model, images = built(TIMM["class token"][0], (64, 96))
    saliency_maps(model, images, method="attention_rollout")

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = model.timm_model.blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        saliency_maps(model, images, method="attention_rollout")
    assert not _get_current_function_mode_stack()
    handle.remove()
    assert saliency_maps(model, images, method="attention_rollout").requires_grad


def test_frozen_models_have_maps_without_gradients():
    model, images = built(TIMM["class token"][0], (64, 96))
    expected = saliency_maps(model, images, method="attention_rollout").detach()
    frozen, _ = built(TIMM["class token"][0], (64, 96))
    maps = saliency_maps(frozen.requires_grad_(False), images, method="attention_rollout")
    assert not maps.requires_grad
    torch.testing.assert_close(maps, expected)
