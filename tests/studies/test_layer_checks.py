"""The checks of a feature layer, which have to fail where the layer is wrong."""

from dataclasses import replace

import pytest
import torch
from support import build
from torch import nn

from hf_salguide.backbones import FeatureLayer, resolve_feature_layer
from hf_salguide.studies.layer_checks import (
    CUT,
    PLACES,
    awaken,
    completeness,
    cut_of,
    noise,
    places_found,
    reached_by,
)

SIZE = (64, 96)


@pytest.fixture(scope="module")
def pictures():
    return noise(3, SIZE, seed=0)


@pytest.fixture(scope="module")
def resnet():
    return build("resnet").eval()


@pytest.fixture(scope="module")
def class_token():
    return build("vit_class_token").eval()


class TwoBranches(nn.Module):
    """Two convolutions side by side, whose means are added up."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 16, 16), nn.Conv2d(3, 4, 32, 32)
        self.head = nn.Linear(4, 3)

    def forward(self, pictures):
        return self.head(self.left(pictures).mean((2, 3)) + self.right(pictures).mean((2, 3)))


class Tokens(nn.Module):
    """Patches as tokens, row by row or column by column, behind one more token."""

    def __init__(self, by_columns):
        super().__init__()
        self.patches, self.tokens, self.by_columns = nn.Conv2d(3, 8, 16, 16), nn.Identity(), by_columns
        self.head = nn.Linear(8, 3)

    def forward(self, pictures):
        maps = self.patches(pictures)
        maps = maps.transpose(2, 3) if self.by_columns else maps
        tokens = maps.flatten(2).transpose(1, 2)
        return self.head(self.tokens(torch.cat([tokens[:, :1], tokens], dim=1)).mean(dim=1))


def test_everything_passes_through_the_layer_of_a_convolutional_network(resnet, pictures):
    layer = resolve_feature_layer(resnet, SIZE)
    assert cut_of(resnet, layer, pictures) <= 1e-5
    assert reached_by(resnet, layer, pictures) == 1
    assert completeness(resnet, layer, pictures) <= 1e-5
    assert places_found(resnet, layer, pictures) == len(PLACES)


def test_something_passes_beside_one_of_two_branches(pictures):
    model = TwoBranches()
    left, right = FeatureLayer("left", "NCHW", (4, 6), 4), FeatureLayer("right", "NCHW", (2, 3), 4)
    assert cut_of(model, left, pictures) > 0.01
    assert cut_of(model, right, pictures) > 0.01
    both = replace(left, others=(right,))
    assert cut_of(model, both, pictures) <= 1e-5
    assert reached_by(model, both, pictures) == 1


def test_a_class_token_takes_its_own_way_past_the_norm(class_token, pictures):
    layer = resolve_feature_layer(class_token, SIZE)
    assert layer.name.endswith("norm1")
    assert layer.num_prefix_tokens == 1
    assert cut_of(class_token, layer, pictures) <= 1e-5
    assert reached_by(class_token, layer, pictures) == 1
    # The norm of an earlier block: patches pass beside it.
    earlier = replace(layer, name=layer.name.replace("blocks.5", "blocks.2"))
    assert cut_of(class_token, earlier, pictures) > CUT


def test_the_patch_tokens_of_a_class_token_network_are_not_reached_at_the_end(class_token, pictures):
    layer = replace(resolve_feature_layer(class_token, SIZE), name="timm_model.norm")
    assert cut_of(class_token, layer, pictures) <= 1e-5
    assert reached_by(class_token, layer, pictures) == 0


def test_of_pictures_that_are_all_the_same_nothing_is_said(resnet, pictures):
    layer = resolve_feature_layer(resnet, SIZE)
    with pytest.raises(ValueError, match="do not change with the picture"):
        cut_of(resnet, layer, pictures[:1].expand(3, -1, -1, -1))


def test_a_map_that_is_not_the_whole_logit_is_not_complete(resnet, pictures):
    layer = resolve_feature_layer(resnet, SIZE)
    model = build("resnet", seed=0).eval()
    with torch.no_grad():
        model.timm_model.fc.weight[1] = 0
    assert completeness(model, layer, pictures) <= 1e-5
    # The head that the map is made with is another one than that of the logits.
    model.other = nn.Linear(layer.channels, 3)
    assert completeness(model, replace(layer, head="other"), pictures) > 1e-2


def test_an_object_is_lost_where_tokens_are_read_in_the_wrong_order(pictures):
    layer = FeatureLayer("tokens", "NLC", (4, 6), 8, num_prefix_tokens=1)
    assert places_found(Tokens(by_columns=False), layer, pictures) == len(PLACES)
    assert places_found(Tokens(by_columns=True), layer, pictures) < 4
    square = noise(3, (64, 64), seed=0)
    layer = replace(layer, grid=(4, 4))
    assert places_found(Tokens(by_columns=False), layer, square) == len(PLACES)
    assert places_found(Tokens(by_columns=True), layer, square) < 4


def test_an_object_is_lost_where_axes_are_swapped(resnet):
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = resnet.timm_model, nn.Identity()

        def forward(self, pictures):
            maps = self.out(self.inner.forward_features(pictures).transpose(2, 3))
            return self.inner.forward_head(maps)

    square = noise(3, (128, 128), seed=0)
    assert places_found(Swapped(), FeatureLayer("out", "NCHW", (4, 4), 96), square) == 0
    layer = resolve_feature_layer(resnet, (128, 128))
    assert places_found(resnet, layer, square) == len(PLACES)


def test_of_several_layers_the_worst_counts(pictures):
    model = TwoBranches()
    left, right = FeatureLayer("left", "NCHW", (4, 6), 4), FeatureLayer("right", "NCHW", (2, 3), 4)
    assert places_found(model, replace(left, others=(right,)), pictures) == len(PLACES)
    with torch.no_grad():
        model.right.weight.zero_()
    assert places_found(model, left, pictures) == len(PLACES)
    assert places_found(model, replace(left, others=(right,)), pictures) == 0
    assert cut_of(model, left, pictures) <= 1e-5
    with torch.no_grad():
        model.head.weight.zero_()
    assert reached_by(model, left, pictures) == 0


def test_awakened_weights_and_statistics(pictures):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=0.2), nn.Conv2d(4, 2, 1)
    ).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)  # below the square root of epsilon
        model[3].weight.zero_()
        model[4].weight.zero_()
    state = torch.random.get_rng_state()
    awaken(model, pictures)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model[3].weight.min() > 0.5
    assert model[4].weight.all()
    assert not any(module.training for module in model.modules())
    assert model[3].momentum == 0.2
    with torch.no_grad():
        for depth in (2, 4):
            maps = model[:depth](pictures)
            torch.testing.assert_close(maps.std(dim=(0, 2, 3)), torch.ones(4), rtol=0.05, atol=0)
