"""Which model stands for which family, and how it is built."""

import pytest
import timm
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_salguide.studies import zoo
from hf_salguide.studies.zoo import Family, build, families

NEW = {"model": "test_resnet", "size": (160, 160)}


def names(found, library=None):
    return [family.name for family in found if library in (None, family.library)]


def test_every_module_of_timm_is_a_family():
    assert names(families(), "timm") == timm.list_modules()


def test_every_image_classifier_of_transformers_is_a_family():
    mapping = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    classes = {name for entry in mapping for name in ([entry] if isinstance(entry, str) else entry)}
    known = set(names(families(), "transformers"))
    assert known == (classes - {"TimmWrapperForImageClassification"}) & set(zoo.TRANSFORMERS)
    assert len(known) >= 40
    for family in families():
        if family.library == "transformers":
            assert getattr(transformers, family.name).config_class.__name__ == family.model


def test_the_models_are_of_their_family():
    for family in families():
        if family.library == "timm":
            assert family.model in timm.list_models(module=family.name), family.name


def test_pictures_are_not_square_where_the_model_allows():
    square = {family.name for family in families() if family.size[0] == family.size[1]}
    # A grid of attention biases, positions or windows that is square; pictures that are refused otherwise.
    assert square <= {
        "convit",
        "crossvit",
        "efficientformer",
        "mvitv2",
        "nest",
        "CLIPForImageClassification",
        "LevitForImageClassification",
        "LevitForImageClassificationWithTeacher",
        "MetaClip2ForImageClassification",
        "PerceiverForImageClassificationConvProcessing",
        "PerceiverForImageClassificationFourier",
        "PerceiverForImageClassificationLearned",
        "PvtForImageClassification",
        "SiglipForImageClassification",
    }


def test_what_the_table_does_not_know_is_taken_by_its_first_architecture(monkeypatch):
    known = dict(zoo.TIMM)
    del known["resnet"]
    monkeypatch.setattr(zoo, "TIMM", known)
    (family,) = [family for family in families() if family.name == "resnet"]
    assert family.model == timm.list_models(module="resnet")[0]
    _, height, width = timm.get_pretrained_cfg(family.model).input_size
    assert (family.size, family.arguments) == ((height, width), {})


def test_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(zoo, "TIMM", {**zoo.TIMM, "of_the_future": NEW})
    assert "of_the_future" not in names(families())
    monkeypatch.setattr(zoo, "TRANSFORMERS", {**zoo.TRANSFORMERS, "OfTheFutureForImageClassification": NEW})
    assert "OfTheFutureForImageClassification" not in names(families())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("SWIN*", ["swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr"]),
        ("vgg", ["vgg"]),
        ("test_vit*", ["vision_transformer", "vision_transformer_relpos"]),  # their models
    ],
)
def test_a_pattern_is_of_families_or_models_whatever_the_case(pattern, expected):
    assert names(families(pattern), "timm") == expected


def test_a_pattern_of_both_libraries():
    assert names(families("vit*image*"), "transformers") == [
        "ViTForImageClassification",
        "ViTMSNForImageClassification",
    ]
    assert names(families("swin*"), "transformers") == ["SwinForImageClassification", "Swinv2ForImageClassification"]


def test_a_pattern_of_architectures_takes_them_as_they_are():
    assert families("resnet10t") == [Family("timm", "resnet", "resnet10t", {}, (176, 176))]
    found = families("test_convnext*")
    assert [family.model for family in found] == ["test_convnext"]  # a family's model: its own arguments and size
    assert found[0].size == zoo.WIDE
    assert [family.name for family in families("resnet18*")] == ["resnet"] * len(timm.list_models("resnet18*"))


def test_a_pattern_that_fits_nothing_names_the_nearest():
    with pytest.raises(ValueError, match='pattern="resnt50" fits no family.*did you mean "resnet50"?'):
        families("resnt50")


@pytest.mark.parametrize("name", ["resnet", "vision_transformer", "ViTForImageClassification", "Dinov2For*cation"])
def test_a_model_is_small_random_and_the_same_for_a_seed(name):
    family = families(name)[0]
    state = torch.random.get_rng_state()
    model, same, other = build(family), build(family), build(family, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert model.config.num_labels == zoo.NUM_LABELS
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6
    for mine, theirs in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert any(
        not torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True)
    )
    with torch.no_grad():
        assert model(torch.randn(2, 3, *family.size)).logits.shape == (2, zoo.NUM_LABELS)


def test_arguments_reach_the_model():
    model = build(Family("timm", "vision_transformer", "test_vit", {"depth": 2}, (64, 96)))
    assert len(model.timm_model.blocks) == 2
    config = build(families("ViTForImageClassification")[0]).config
    assert (config.hidden_size, config.image_size) == (24, (64, 96))
