"""Where the search for the last map ends, what it costs, and for whom its result is kept."""

import copy
import os
import subprocess
import sys

import pytest
import timm
import torch
import transformers
from backbones.zoo import CASES, NAMES
from torch import nn

from hf_salguide.backbones import as_classifier, resolve_feature_layer, saliency_maps
from hf_salguide.backbones.resolve import _by_configuration

PERCEIVER = {
    "num_latents": 16,  # as many as a grid of 4 x 4 has cells
    "d_latents": 16,
    "num_blocks": 1,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 1,
    "num_cross_attention_heads": 1,
    "image_size": 64,
}


@pytest.fixture(autouse=True)
def nothing_kept():
    _by_configuration.clear()


def calls_of(model):
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    return calls


# -- what is no grid


@pytest.mark.parametrize("kind", ["Learned", "Fourier", "ConvProcessing"])
def test_latents_are_no_grid(kind):
    torch.manual_seed(0)
    model = getattr(transformers, f"PerceiverForImageClassification{kind}")(transformers.PerceiverConfig(**PERCEIVER))
    with pytest.raises(ValueError, match=r"bottleneck behind its last map: .* 16 tokens .* no grid"):
        resolve_feature_layer(model, 64)


class Latents(nn.Module):
    """Patches, read by a fixed number of latents, which one more block mixes before the head."""

    def __init__(self, latents):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 16, stride=16)
        self.latents = nn.Parameter(torch.randn(latents, 16))
        self.attention = nn.MultiheadAttention(16, 1, batch_first=True)
        self.block = nn.Linear(16, 16)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        latents = self.attention(self.latents.expand(len(x), -1, -1), tokens, tokens)[0]
        return self.fc(self.block(latents).tanh().mean(1))


@pytest.mark.parametrize("latents", [16, 19, 23])
def test_tokens_whose_number_stays_are_no_grid(latents):
    """At 64 px 16 latents are as many as patches, and 19 and 23 as many as patches behind 3 and 7 prefix tokens."""
    with pytest.raises(ValueError, match=rf"the {latents} tokens of"):
        resolve_feature_layer(Latents(latents), 64)


class ChannelsFirst(nn.Module):
    """Its tokens lie behind the channels, `(B, C, tokens)`, from the last convolution on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 16, stride=16)
        self.mix = nn.Conv1d(16, 16, 1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.mix(self.patches(x).flatten(2)).tanh().mean(2))


def test_tokens_behind_the_channels_are_no_bottleneck():
    assert resolve_feature_layer(ChannelsFirst(), 64).name == "patches"


class Squeezes(nn.Module):
    """Resizes its pictures itself, so that wider ones have no more patches."""

    def __init__(self):
        super().__init__()
        self.model = timm.create_model("test_vit", num_classes=3, img_size=64, global_pool="avg", fc_norm=False)

    def forward(self, x):
        return self.model(nn.functional.interpolate(x, (64, 64)))


def test_a_model_that_resizes_its_pictures():
    layer = resolve_feature_layer(Squeezes(), 64)
    assert (layer.name, layer.grid, layer.readout) == ("model.norm", (4, 4), "exact")


def test_a_fresh_levit_is_not_taken_for_linear():
    """Its signal is 1e-11: batch statistics are set to the noise's, else attention would not matter to its logits."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 2], "key_dim": [4, 4, 4]}
    model = transformers.LevitForImageClassification(transformers.LevitConfig(image_size=64, **sizes))
    layer = resolve_feature_layer(model, 64)
    assert (layer.name, layer.grid, layer.readout) == ("levit.encoder.stages.1.layers.1", (2, 2), "generic")


# -- cuts of several parts


class Streams(nn.Module):
    """Patches with a class token, and parts of patches in the batch, side by side through blocks (as in TNT)."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.Linear(8, 8)
            self.into = nn.Linear(32, 16)
            self.norm = nn.LayerNorm(16)
            self.attention = nn.MultiheadAttention(16, 1, batch_first=True)

        def forward(self, parts, tokens):
            parts = parts + self.parts(parts).tanh()
            patches = tokens[:, 1:] + self.into(parts.flatten(1)).unflatten(0, (len(tokens), -1))
            tokens = torch.cat([tokens[:, :1], patches], dim=1)
            normed = self.norm(tokens)
            return parts, tokens + self.attention(normed, normed, normed)[0]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 16, stride=16)
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.ModuleList([self.Block() for _ in range(3)])
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        patches = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        parts = nn.functional.unfold(self.stem(x), 2, stride=2).mT.reshape(-1, 8, 4).mT
        for block in self.blocks:
            parts, tokens = block(parts, tokens)
        return self.fc(tokens[:, 0])


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_a_block_that_hands_on_two_tensors(size):
    layer = resolve_feature_layer(Streams(), size)
    assert (layer.name, layer.num_prefix_tokens, layer.readout) == ("blocks.2.norm", 1, "generic")
    assert layer.grid == (size[0] // 16, size[1] // 16)


class Pyramid(nn.Module):
    """Three scales, pooled and concatenated; what comes before the scales holds everything."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.stages = nn.ModuleList([nn.Conv2d(8, 8, 2, stride=2) for _ in range(3)])
        self.mixes = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh()) for _ in range(3)])
        self.fc = nn.Linear(24, 3)

    def forward(self, x):
        x, pooled = self.stem(x), []
        for stage, mix in zip(self.stages, self.mixes, strict=True):
            x = mix(stage(x))
            pooled.append(x.mean((2, 3)))
        return self.fc(torch.cat(pooled, dim=1))


def test_scales_that_are_read_side_by_side_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"read side by side; name them: feature_layer=\[(.*)\]") as caught:
        resolve_feature_layer(Pyramid(), 64)
    names = [name.strip('"') for name in str(caught.value).partition("[")[2].partition("]")[0].split(", ")]
    layer = resolve_feature_layer(Pyramid(), 64, feature_layer=names)
    assert [part.grid for part in (layer, *layer.others)] == [(8, 8), (4, 4), (2, 2)]


def test_a_layer_that_is_read_through_another_alone_has_no_place_beside_it():
    model = CASES["resnet18"].build()
    with pytest.raises(ValueError, match=r'the logits read "timm_model.layer3.1" through the others alone'):
        resolve_feature_layer(model, feature_layer=["timm_model.layer3.1", "timm_model.layer4.1"])


@pytest.mark.parametrize("names", [["timm_model.layer4.1", "timm_model.layer4.1"], []])
def test_a_list_of_one_layer_twice_or_of_none(names):
    with pytest.raises(ValueError, match="give one name, or several different ones"):
        resolve_feature_layer(CASES["resnet18"].build(), feature_layer=names)


class Normed(Pyramid):
    """Every cell is read through a norm, which does not see its scale: map times gradient is zero."""

    def forward(self, x):
        x, pooled = self.stem(x), []
        for stage, mix in zip(self.stages, self.mixes, strict=True):
            x = mix(stage(x))
            pooled.append(nn.functional.normalize(x, dim=1).mean((2, 3)))
        return self.fc(torch.cat(pooled, dim=1))


def test_layers_that_are_each_read_through_a_norm_are_a_warning(caplog):
    names = ["mixes.0.1", "mixes.1.1", "mixes.2.1"]
    resolve_feature_layer(Pyramid(), 64, feature_layer=names)
    assert not caplog.text
    resolve_feature_layer(Normed(), 64, feature_layer=names)
    assert '"mixes.2.1" is read through a norm alone' in caplog.text
    assert '"mixes.0.1" is read through' in caplog.text


class Means(nn.Module):
    """One convolution, its means, one linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)))


class OnlySquare(Means):
    """Of a picture that is not square the head reads the picture itself as well."""

    def forward(self, x):
        logits = super().forward(x)
        return logits if x.shape[2] == x.shape[3] else logits + x.mean((2, 3))


def test_a_layer_has_to_stand_on_pictures_that_are_not_square():
    with pytest.raises(ValueError, match="no single layer"):
        resolve_feature_layer(OnlySquare(), 64)


class SideBySide(nn.Module):
    """Two branches of a stem, one of which is half as fine; what holds both is the stem."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, stride, stride=stride), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())
            for stride in (2, 4)
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        one, other = (branch(x).mean((2, 3)) for branch in self.branches)
        return self.fc(one * other)


def test_the_list_that_an_error_names_is_one_that_can_be_taken():
    with pytest.raises(ValueError, match="name them") as caught:
        resolve_feature_layer(SideBySide(), 64)
    names = [name.strip('"') for name in str(caught.value).partition("[")[2].partition("]")[0].split(", ")]
    layer = resolve_feature_layer(SideBySide(), 64, feature_layer=names)
    assert {part.grid for part in (layer, *layer.others)} == {(8, 8), (4, 4)}


class Encoder(nn.Module):
    """torch's own encoder in its default layout, (tokens, B, C)."""

    def __init__(self, batch_first):
        super().__init__()
        torch.manual_seed(0)
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, 16, 16, stride=16)
        block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.blocks = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).permute(*((0, 2, 1) if self.batch_first else (2, 0, 1)))
        return self.fc(self.blocks(tokens).mean(1 if self.batch_first else 0))


def test_tokens_before_the_batch_are_refused():
    with pytest.raises(ValueError, match=r'behind "patches" the tokens are laid out otherwise .*\(16, 2, 16\)'):
        resolve_feature_layer(Encoder(batch_first=False), 64)
    layer = resolve_feature_layer(Encoder(batch_first=True), 64)
    assert (layer.name, layer.readout) == ("blocks.layers.2.norm2", "exact")


class Maximum(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.last(self.stem(x)).amax((2, 3)))


def test_a_maximum_reads_what_the_picture_chooses():
    """Few positions have a gradient, but in every picture others."""
    assert resolve_feature_layer(Maximum(), 64).name == "last"


class Queries(nn.Module):
    """A query for every class looks at the map of a convolutional network."""

    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(c, 16, 4, stride=4), nn.GELU()) for c in (3, 16)))
        self.norm = nn.GroupNorm(1, 16)
        self.queries = nn.Parameter(torch.randn(classes, 16))
        self.attention = nn.MultiheadAttention(16, 1, batch_first=True)
        self.fc = nn.Linear(16, 1)

    def forward(self, x):
        tokens = self.norm(self.body(x)).flatten(2).mT
        return self.fc(self.attention(self.queries.expand(len(x), -1, -1), tokens, tokens)[0])[..., 0]


@pytest.mark.parametrize("classes", [5, 20])
def test_queries_in_a_head_are_no_bottleneck(classes):
    assert resolve_feature_layer(Queries(classes), 64).name == "norm"


class DrawsInEvaluation(Means):
    def forward(self, x):
        return self.fc(nn.functional.dropout(self.stem(x).mean((2, 3)), 0.3, training=True))


def test_a_head_that_draws_in_evaluation_draws_the_same_in_every_forward():
    model = DrawsInEvaluation()
    state = torch.get_rng_state()
    assert resolve_feature_layer(model, 64).name == "stem"
    assert torch.equal(torch.get_rng_state(), state)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = timm.create_model("test_resnet", num_classes=3)

    def forward(self, x):
        return {"logits": self.model(x) + self.model(x.flip(3))}


def test_a_model_that_is_run_twice_is_said_to_be():
    with pytest.raises(ValueError, match=r"run more than once in a forward"):
        resolve_feature_layer(Twice(), 64)
    assert resolve_feature_layer(Twice().model, 64).name == "layer4.0"


def test_a_plain_module_of_one_channel():
    assert resolve_feature_layer(timm.create_model("resnet18", in_chans=1, num_classes=3), 64).name == "layer4.1"


# -- weights that hide what is read


@pytest.mark.parametrize("init_values", [1e-6, 1.0])
def test_small_layer_scales_change_nothing(init_values):
    model = as_classifier(
        "cait_xxs24_224", label_names=NAMES, image_size=64, embed_dim=24, depth=3, num_heads=2, init_values=init_values
    )
    layer = resolve_feature_layer(model)
    assert (layer.name, layer.grid, layer.num_prefix_tokens) == ("timm_model.blocks.2", (4, 4), 0)


class NormedHead(nn.Module):
    """A batch norm between the mean and the linear layer, as in SHViT: in a fresh network the identity."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x).mean((2, 3))))


def test_a_norm_that_is_still_the_identity_is_not_looked_through():
    model = NormedHead()
    before = copy.deepcopy(model.state_dict())
    layer = resolve_feature_layer(model, 64)
    assert (layer.name, layer.readout, layer.head) == ("stem", "exact", None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.norm.running_var.fill_(4.0)
    model.eval()
    pictures = torch.randn(2, 3, 64, 64)
    maps = saliency_maps(model, pictures, target=1, feature_layer=layer)
    with torch.no_grad():
        bias = model.fc(model.norm(torch.zeros(1, 8)))[0, 1]
        torch.testing.assert_close(maps.mean((1, 2)) + bias, model(pictures)[:, 1])


class Sealed(nn.Module):
    """A frozen backbone that is run without a graph, under a head that reads the class token."""

    def __init__(self, last):
        super().__init__()
        self.vit = timm.create_model("test_vit", num_classes=0, img_size=64)
        self.vit.blocks = self.vit.blocks[: -1 if last else None]
        self.last = timm.create_model("test_vit", img_size=64).blocks[-1] if last else nn.Identity()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        with torch.no_grad():
            tokens = self.vit.forward_features(x)
        return self.fc(self.last(tokens)[:, 0])


def test_a_backbone_without_a_graph_is_seen_where_the_graph_begins():
    torch.manual_seed(0)
    assert resolve_feature_layer(Sealed(last=True), 64).name == "last.norm1"


# -- cost, determinism, and for whom the result is kept


@pytest.mark.parametrize(
    ("name", "forwards"),
    [("resnet18", 5), ("test_efficientnet", 5), ("test_convnext", 5), ("swin", 5), ("hf_swin", 5), ("hf_vit", 10)],
)
def test_a_few_forwards_do(name, forwards):
    model = CASES[name].build()
    calls = calls_of(model)
    resolve_feature_layer(model)
    assert 3 <= len(calls) <= forwards


def test_the_result_is_kept_for_the_configuration():
    case = CASES["test_resnet"]
    first = resolve_feature_layer(as_classifier("test_resnet", label_names=NAMES, image_size=case.size))
    model = as_classifier("test_resnet", label_names=["x", "y", "z"], image_size=case.size)
    assert resolve_feature_layer(model) is first  # other weights, other names of classes
    assert resolve_feature_layer(model, image_size=64) is not first
    other = as_classifier("test_resnet", label_names=NAMES, image_size=case.size, layers=(1, 1, 1, 2))
    assert resolve_feature_layer(other).name == "timm_model.layer4.1"


def test_the_result_is_not_kept_where_a_hook_may_change_the_forward():
    first = resolve_feature_layer(CASES["test_resnet"].build())
    model = CASES["test_resnet"].build()
    calls = calls_of(model)
    assert resolve_feature_layer(model) == first
    assert calls


def test_a_setting_of_a_module_that_changes_is_seen():
    model = as_classifier("test_vit", label_names=NAMES, image_size=64, global_pool="avg", fc_norm=False)
    assert resolve_feature_layer(model).readout == "exact"
    model.timm_model.global_pool = "token"
    assert resolve_feature_layer(model).name == "timm_model.blocks.5.norm1"


def test_a_stride_that_is_taken_out_is_seen():
    """As is often done for finer maps."""
    model = CASES["resnet18"].build()
    assert resolve_feature_layer(model).grid == (2, 3)
    block = model.timm_model.layer4[0]
    block.conv1.stride = block.downsample[0].stride = (1, 1)
    assert resolve_feature_layer(model).grid == (4, 6)


def test_a_method_that_is_replaced_is_seen():
    model = CASES["resnet18"].build()
    first = resolve_feature_layer(model)
    inner = model.timm_model
    inner.forward_head = lambda x, pre_logits=False: inner.fc(x.amax((2, 3)))
    assert (first.readout, resolve_feature_layer(model).readout) == ("exact", "generic")


def test_rates_and_losses_that_a_model_notes_are_no_news():
    model = CASES["test_resnet"].build()
    first = resolve_feature_layer(model)
    calls = calls_of(model)
    model.timm_model.last_loss = 0.3
    resolve_feature_layer(model)
    assert len(calls) == 0
    assert resolve_feature_layer(model) is first


@pytest.mark.slow
def test_other_processes_find_the_same():
    """Whatever the seed of hashes and of the global generator."""
    code = (
        "import sys, torch; torch.manual_seed(int(sys.argv[1])); from backbones.zoo import CASES;"
        "from hf_salguide.backbones import resolve_feature_layer;"
        "print([resolve_feature_layer(CASES[name].build()) for name in ('test_resnet', 'hf_vit', 'vit_average')])"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        finished = subprocess.run(
            [sys.executable, "-c", code, seed], capture_output=True, text=True, check=False, env=environment
        )
        assert finished.returncode == 0, finished.stderr[-2000:]
        found.add(finished.stdout.strip().splitlines()[-1])
    assert len(found) == 1
    assert "layernorm_before" in found.pop()
