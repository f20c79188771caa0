import copy
import logging

import pytest
import timm
import torch
from backbones.zoo import CASES, NAMES, TINY_CONV, TINY_VIT, tiny_densenet
from timm.models._hub import save_for_hf
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    CLIPConfig,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DinatConfig,
    ImageGPTConfig,
    ImageGPTForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    MetaClip2Config,
    PerceiverConfig,
    PerceiverForImageClassificationFourier,
    PerceiverForImageClassificationLearned,
    PPLCNetConfig,
    PvtConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ShieldGemma2Config,
    Siglip2Config,
    SiglipConfig,
    ViTConfig,
)
from transformers.utils import is_natten_available

from hf_salguide.backbones import as_classifier, check_image_size, logits_of, set_image_size
from hf_salguide.backbones.forward import input_shape, refuse_without_pictures

TINY_LEVIT = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2] * 3, "depths": [1] * 3, "key_dim": [4] * 3}
TINY_PERCEIVER = {
    "num_latents": 8,
    "d_latents": 16,
    "num_blocks": 1,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 1,
    "num_cross_attention_heads": 1,
}


def resnet_config(**kwargs):
    return ResNetConfig(embedding_size=8, layer_type="basic", **TINY_CONV, **kwargs)


def vit_config(**kwargs):
    return ViTConfig(image_size=64, **TINY_VIT, **kwargs)


def images(model, count=2):
    channels, *size = model.config.pretrained_cfg["input_size"]
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("test_resnet", {"in_chans": 1, "drop_rate": 0.1}),
        ("test_convnext", {}),
        ("test_vit", {"img_size": 64, "depth": 2}),
        ("test_vit", {"img_size": (64, 96), "global_pool": "avg", "drop_path_rate": 0.1}),
    ],
)
def test_a_timm_name_gives_timms_own_initialisation(name, arguments):
    torch.manual_seed(5)
    expected = timm.create_model(name, num_classes=3, **arguments)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    model = as_classifier(name, label_names=NAMES, **arguments)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in expected.state_dict().items():
        assert torch.equal(model.timm_model.state_dict()[key], value), key


def test_what_timm_initialises_in_its_own_way_survives():
    resnet = as_classifier("resnet18", num_labels=2)
    assert not resnet.timm_model.layer4[1].bn2.weight.any()
    vit = as_classifier("test_vit", num_labels=2, image_size=64)
    assert float(vit.timm_model.blocks[0].attn.qkv.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert not vit.timm_model.blocks[0].attn.qkv.bias.any()


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    case = CASES[name]
    model, pictures = case.build(), case.images(2)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    # transformers leaves the weights where the file is mapped, off the 64-byte grid, and depthwise convolutions take
    # another kernel there, 1e-7 away; a copy stands on the grid.
    again = copy.deepcopy(again)
    with torch.no_grad():
        assert torch.equal(model(pictures).logits, again(pictures).logits)
    assert again.config.id2label == dict(enumerate(NAMES))
    assert again.config.label2id == {label: index for index, label in enumerate(NAMES)}
    assert type(again) is type(model)


@pytest.mark.parametrize("name", ["test_resnet", "vit_class_token", "hf_swin"])
def test_it_can_be_copied(name):
    case = CASES[name]
    model = case.build()
    duplicate = copy.deepcopy(model)
    assert torch.equal(model(case.images()).logits, duplicate(case.images()).logits)
    assert duplicate.config.id2label == model.config.id2label


def test_forward_gives_loss_and_logits():
    model = as_classifier("test_resnet", NAMES, image_size=64)
    output = model(pixel_values=images(model), labels=torch.tensor([0, 2]))
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 2])))
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    assert all(isinstance(key, int) for key in model.config.id2label)
    assert (model.num_labels, model.config.num_labels, model.training) == (3, 3, True)


def test_arguments_are_saved(tmp_path):
    model = as_classifier("test_vit", NAMES, img_size=64, depth=2, in_chans=1, global_pool="avg", drop_rate=0.2)
    assert model.config.model_args == {
        "img_size": 64,
        "depth": 2,
        "in_chans": 1,
        "global_pool": "avg",
        "drop_rate": 0.2,
    }
    assert model.config.pretrained_cfg["input_size"] == [1, 64, 64]
    assert len(model.config.pretrained_cfg["mean"]) == 1
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.timm_model.head_drop.p == 0.2
    assert torch.equal(model.eval()(images(model)).logits, again(images(model)).logits)


@pytest.mark.parametrize(("size", "expected"), [(64, [3, 64, 64]), ((64, 96), [3, 64, 96])])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_image_size_is_recorded(name, size, expected):
    model = as_classifier(name, NAMES, image_size=size)
    assert model.config.pretrained_cfg["input_size"] == expected
    assert ("img_size" in model.config.model_args) is (name == "test_vit")
    assert model(images(model)).logits.shape == (2, 3)


# -- timm modules


def test_a_timm_module_stays_the_object_that_it_is():
    module = timm.create_model("test_vit", num_classes=3, img_size=64, depth=3).eval()
    module.set_grad_checkpointing(True)
    before = copy.deepcopy(module.state_dict())
    attributes = set(vars(module))
    described = copy.deepcopy(module.pretrained_cfg)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model = as_classifier(module, label_names=NAMES)
    assert torch.equal(state, torch.get_rng_state())
    assert model.timm_model is module
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert set(vars(module)) == attributes
    assert module.pretrained_cfg == described
    assert module.grad_checkpointing
    assert not model.training
    assert (model.config.architecture.split(".")[0], model.config.model_args["depth"]) == ("test_vit", 3)


def one_channel_convnext():
    return timm.create_model("test_convnext", num_classes=3, in_chans=1)


@pytest.mark.parametrize("build", [tiny_densenet, one_channel_convnext])
def test_a_timm_module_is_loaded_again(build, tmp_path):
    model = as_classifier(build(), label_names=NAMES).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    pictures = torch.randn(2, model.config.pretrained_cfg["input_size"][0], 64, 64)
    assert torch.equal(model(pictures).logits, again(pictures).logits)


def test_a_timm_module_without_labels_is_numbered():
    model = as_classifier(timm.create_model("test_resnet", num_classes=2))
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_a_module_that_was_changed_by_hand_is_refused():
    module = timm.create_model("test_resnet", num_classes=3)
    module.layer4 = torch.nn.Sequential(module.layer4, torch.nn.Conv2d(96, 96, 1))
    with pytest.raises(ValueError, match=r'differs from the module .*layer4.*as_classifier\("test_resnet'):
        as_classifier(module, NAMES)
    module = timm.create_model("test_resnet", num_classes=3)
    module.global_pool.pool = torch.nn.AdaptiveMaxPool2d(1)  # no name and no shape shows it
    with pytest.raises(ValueError, match="the logits differ"):
        as_classifier(module, NAMES)


def test_other_modules_are_refused():
    with pytest.raises(ValueError, match="Linear is not a module of timm.create_model"):
        as_classifier(torch.nn.Linear(2, 2), NAMES)
    with pytest.raises(ValueError, match=r"num_classes=5, but 3 labels.*reset_classifier\(3\)"):
        as_classifier(timm.create_model("test_resnet", num_classes=5), NAMES)
    with pytest.raises(TypeError, match="cannot be applied to a module that is built"):
        as_classifier(timm.create_model("test_resnet", num_classes=3), NAMES, depth=3)


# -- transformers


def test_a_transformers_classifier_is_returned_as_it_is():
    model = ResNetForImageClassification(resnet_config(num_labels=3))
    before = copy.deepcopy(model.state_dict())
    assert as_classifier(model, NAMES, image_size=64) is model
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.image_size == 64
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_transformers_classifier_of_another_size_is_refused():
    model = ResNetForImageClassification(resnet_config(num_labels=5))
    with pytest.raises(ValueError, match=r"num_labels=5, but 3 labels.*configuration"):
        as_classifier(model, NAMES)
    assert model.config.num_labels == 5
    with pytest.raises(TypeError, match="cannot be applied"):
        as_classifier(model, depth=3)
    text = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
    with pytest.raises(TypeError, match="give an image classifier"):
        as_classifier(text)


def test_a_configuration():
    config = vit_config()
    model = as_classifier(config, NAMES, num_hidden_layers=2, image_size=(64, 96))
    assert (len(model.vit.layers), model.config.image_size, model.config.num_labels) == (2, (64, 96), 3)
    assert (config.num_hidden_layers, config.image_size, config.num_labels) == (3, 64, 2)
    assert as_classifier(vit_config(num_labels=4)).config.num_labels == 4
    with pytest.raises(TypeError, match="depht=2 is not a value of ViTConfig"):
        as_classifier(config, NAMES, depht=2)
    with pytest.raises(ValueError, match="has no weights"):
        as_classifier(config, NAMES, pretrained=True)


def test_a_configuration_of_a_wrapper_has_timms_initialisation():
    config = as_classifier("resnet18", NAMES).config
    model = as_classifier(config)
    assert not model.timm_model.layer4[1].bn2.weight.any()
    assert model.config.id2label == dict(enumerate(NAMES))


TEACHERS = {
    "deit": (lambda **more: DeiTConfig(**TINY_VIT, **more), DeiTForImageClassification),
    "levit": (lambda **more: LevitConfig(**TINY_LEVIT, **more), LevitForImageClassification),
}


@pytest.mark.parametrize("architectures", [None, "this", "with teacher"])
@pytest.mark.parametrize("name", TEACHERS)
def test_of_two_classes_the_one_that_takes_labels_is_built(name, architectures, caplog):
    """transformers reads the choice from the configuration, and fails where that names none."""
    make, kind = TEACHERS[name]
    names = {None: None, "this": [kind.__name__], "with teacher": [f"{kind.__name__}WithTeacher"]}
    config = make(architectures=names[architectures])
    model = as_classifier(config, NAMES, image_size=64).eval()
    assert type(model) is kind
    assert config.architectures == names[architectures]
    output = model(torch.randn(2, 3, 64, 64), labels=torch.tensor([0, 2]))
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 2])))
    assert ("takes no labels" in caplog.text) is (architectures == "with teacher")


def test_weights_of_the_class_with_teacher_are_taken_by_the_one_that_is_trained(tmp_path, caplog):
    teacher = DeiTForImageClassificationWithTeacher(DeiTConfig(image_size=64, num_labels=3, **TINY_VIT))
    assert as_classifier(teacher) is teacher  # it has maps, if no loss
    teacher.save_pretrained(tmp_path)
    model = as_classifier(tmp_path, NAMES, pretrained=True)
    assert type(model) is DeiTForImageClassification
    assert torch.equal(model.deit.layers[2].mlp.fc1.weight, teacher.deit.layers[2].mlp.fc1.weight)
    assert "DeiTForImageClassificationWithTeacher takes no labels" in caplog.text


def nested(kind):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return kind(vision_config={"patch_size": 16, **TINY_VIT}, text_config={**text, **tokens})


@pytest.mark.parametrize("kind", [CLIPConfig, MetaClip2Config, SiglipConfig])
def test_a_size_goes_where_the_configuration_keeps_that_of_the_pictures(kind, tmp_path):
    config = nested(kind)
    model = as_classifier(config, NAMES, image_size=96).eval()
    assert config.vision_config.image_size == 224
    assert model.config.vision_config.image_size == 96
    assert input_shape(model) == (3, 96, 96)
    pictures = torch.randn(2, 3, 96, 96)
    model.save_pretrained(tmp_path)
    again = as_classifier(tmp_path, pretrained=True)
    torch.testing.assert_close(again(pictures).logits, model(pictures).logits)
    assert input_shape(as_classifier(tmp_path, NAMES[:2], image_size=64)) == (3, 64, 64)
    with pytest.raises(ValueError, match=r"image_size=\(64, 64\) is refused by .*take \(96, 96\)"):
        set_image_size(model, 64)


@pytest.mark.parametrize(
    "config",
    [nested(CLIPConfig), LevitConfig(**TINY_LEVIT), PvtConfig(), PerceiverConfig(**TINY_PERCEIVER)],
    ids=lambda config: type(config).__name__,
)
def test_a_model_of_one_edge_refuses_two(config):
    with pytest.raises(ValueError, match=r"image_size=\(64, 96\) is refused by .*Config .*take a square size"):
        as_classifier(config, NAMES, image_size=(64, 96))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ImageGPTConfig, "ImageGPTForImageClassification .*takes input_ids, not pixel_values"),
        (ShieldGemma2Config, "ShieldGemma2ForImageClassification .*a prompt as well, input_ids"),
        (Siglip2Config, "Siglip2ForImageClassification .*cut into patches.*spatial_shapes"),
    ],
)
def test_a_model_that_reads_no_picture_is_refused_before_it_is_built(config, reason, monkeypatch):
    """One of them would have four thousand million weights."""
    monkeypatch.setattr(torch.nn.Module, "__init__", None)
    with pytest.raises(ValueError, match=f"model={reason}; take an image classifier that needs pixel_values alone"):
        as_classifier(config(), NAMES)


def test_a_model_that_reads_no_picture_is_refused_when_it_is_built():
    model = ImageGPTForImageClassification(ImageGPTConfig(n_embd=16, n_layer=1, n_head=2, vocab_size=9, num_labels=3))
    with pytest.raises(ValueError, match="takes input_ids, not pixel_values"):
        refuse_without_pictures(model)
    with pytest.raises(ValueError, match="takes input_ids, not pixel_values"):
        as_classifier(model)


@pytest.mark.parametrize("name", ["test_resnet", "hf_vit", "hf_swin"])
def test_a_model_that_reads_pictures_is_not_refused(name):
    model = CASES[name].build()
    refuse_without_pictures(model)
    refuse_without_pictures(torch.nn.parallel.DataParallel(model))
    refuse_without_pictures(next(model.children()))  # a plain module declares nothing


def test_a_perceiver_takes_pictures_beside_other_inputs():
    model = as_classifier(PerceiverConfig(**TINY_PERCEIVER), NAMES, image_size=16)
    assert type(model) is PerceiverForImageClassificationLearned
    output = model(pixel_values=torch.randn(2, 3, 16, 16), labels=torch.tensor([0, 2]))
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 2])))
    built = PerceiverForImageClassificationFourier(PerceiverConfig(num_labels=3, **TINY_PERCEIVER))
    assert as_classifier(built, NAMES).config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("size", [None, 64])
def test_a_model_without_logits_is_refused_with_what_it_returns(size):
    config = PPLCNetConfig(scale=0.1)
    with pytest.raises(TypeError, match=r"returned BaseModelOutput\w* \(last_hidden_state\) with no logits"):
        as_classifier(config, NAMES, image_size=size)


def test_what_has_no_logits():
    with pytest.raises(TypeError, match=r"returned dict \(loss, scores\) with no logits of shape .*`logits`"):
        logits_of({"loss": torch.ones(()), "scores": torch.ones(2, 3)})
    with pytest.raises(TypeError, match=r"returned Tensor with no logits of shape \(batch, classes\)"):
        logits_of(torch.ones(2, 3, 4))


@pytest.mark.skipif(is_natten_available(), reason="the package that it needs is there")
def test_a_model_that_needs_another_package_says_which():
    with pytest.raises(ImportError, match="DinatForImageClassification requires the natten library"):
        as_classifier(DinatConfig(), NAMES)


# -- folders


@pytest.fixture
def vit_folder(tmp_path):
    model = as_classifier("test_vit", NAMES, image_size=64, depth=2).eval()
    model.save_pretrained(tmp_path)
    return model, str(tmp_path)


def test_a_folder_of_ours(vit_folder, caplog):
    model, folder = vit_folder
    again = as_classifier(folder, pretrained=True).eval()
    assert torch.equal(model(images(model)).logits, again(images(model)).logits)
    assert again.config.id2label == model.config.id2label
    assert again.config.pretrained_cfg["input_size"] == [3, 64, 64]
    assert "state_dict" not in again.timm_model.pretrained_cfg
    with caplog.at_level(logging.WARNING):
        fresh = as_classifier(folder, NAMES[:2])
    assert "random weights; pass pretrained=True" in caplog.text
    assert fresh.config.num_labels == 2
    assert len(fresh.timm_model.blocks) == 2


def test_a_folder_with_another_head_and_size_keeps_the_backbone(vit_folder, tmp_path):
    model, folder = vit_folder
    again = as_classifier(folder, ["x", "y"], pretrained=True, image_size=96)
    ours, theirs = model.timm_model.state_dict(), again.timm_model.state_dict()
    assert torch.equal(ours["blocks.1.mlp.fc1.weight"], theirs["blocks.1.mlp.fc1.weight"])
    assert theirs["pos_embed"].shape[1] == 37  # resampled, as timm does
    assert (again.config.num_labels, again.config.pretrained_cfg["input_size"]) == (2, [3, 96, 96])
    again.save_pretrained(tmp_path / "again")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again.eval()(images(again)).logits, loaded(images(again)).logits)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_of_timm(tmp_path, prefix):
    module = timm.create_model("test_resnet", num_classes=3, in_chans=1).eval()
    save_for_hf(module, tmp_path, safe_serialization=True, model_config={"label_names": NAMES})
    model = as_classifier(f"{prefix}{tmp_path}", pretrained=True).eval()
    pictures = torch.randn(2, 1, 64, 64)
    assert torch.equal(model(pictures).logits, module(pictures))
    assert model.config.id2label == dict(enumerate(NAMES))


def test_a_folder_of_transformers(tmp_path):
    model = as_classifier(vit_config(), NAMES).eval()
    model.save_pretrained(tmp_path)
    pictures = torch.randn(2, 3, 64, 64)
    again = as_classifier(tmp_path, pretrained=True)
    assert torch.equal(model(pictures).logits, again(pictures).logits)
    assert again.config.id2label == dict(enumerate(NAMES))
    other = as_classifier(tmp_path, ["x", "y"], pretrained=True)
    assert (other.config.num_labels, other.classifier.out_features) == (2, 2)
    assert torch.equal(other.vit.layers[0].mlp.fc1.weight, model.vit.layers[0].mlp.fc1.weight)
    with pytest.raises(ValueError, match=r"do not fit image_size=\(96, 96\)"):
        as_classifier(tmp_path, pretrained=True, image_size=96)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"without config\.json"):
        as_classifier(tmp_path, NAMES)


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet81", NAMES), "neither a timm architecture.*resnet18"),
        (("nothing_like_it_at_all", NAMES), "neither a timm architecture"),
        (("resnet18",), r"needs label_names=.*pretrained=True"),
        (("resnet18", ["a", "b", "a"]), r"names \['a'\] more than once"),
        (("resnet18", ["a"]), "two labels or more"),
        (("resnet18", None, 1), "num_labels=1"),
        (("resnet18", NAMES, 2), "num_labels=2, but label_names has 3 names"),
    ],
)
def test_names_and_labels_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        as_classifier(*arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("test_vit", {"image_size": 70}, r"image_size=\(70, 70\) is refused by .*test_vit.*divide"),
        ("test_maxvit", {"image_size": 72}, r"image_size=\(72, 72\) is refused"),
        ("swin_tiny_patch4_window7_224", {"image_size": 2}, r"image_size=\(2, 2\) is refused"),
        ("test_resnet", {"img_size": 64}, r"takes no img_size; pass image_size"),
        ("test_vit", {"image_size": 64, "img_size": 96}, "contradict each other"),
        ("test_vit", {"image_size": 0}, "image_size=0 is not a size"),
        ("test_vit", {"image_size": (64, 64, 3)}, "is not a size"),
        ("test_vit", {"norm_layer": torch.nn.LayerNorm}, "norm_layer=.*cannot be written to config.json"),
    ],
)
def test_sizes_and_arguments_are_checked(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        as_classifier(name, NAMES, **arguments)


def test_kinds_are_checked():
    with pytest.raises(TypeError, match="does not take these keyword arguments"):
        as_classifier("test_resnet", NAMES, colour=3)
    with pytest.raises(TypeError, match="pass num_labels"):
        as_classifier("test_resnet", num_classes=3)
    with pytest.raises(TypeError, match="give a list of strings"):
        as_classifier("test_resnet", "ant")
    with pytest.raises(TypeError, match="model is a int"):
        as_classifier(3, NAMES)


def test_check_image_size_leaves_the_model_as_it_was():
    model = as_classifier("test_resnet", NAMES, image_size=64)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    check_image_size(model, (64, 96))
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_set_image_size_writes_what_the_model_takes():
    model = as_classifier("test_resnet", NAMES, image_size=64)
    set_image_size(model, (64, 96))
    assert model.config.pretrained_cfg["input_size"] == [3, 64, 96]
    vit = as_classifier("vit_tiny_patch16_224", NAMES, image_size=64, depth=1)
    with pytest.raises(ValueError, match=r"image_size=\(96, 96\) is refused .*take \(64, 64\)"):
        set_image_size(vit, 96)
    assert vit.config.pretrained_cfg["input_size"] == [3, 64, 64]


def test_where_weights_started_from_is_kept(tmp_path):
    model = as_classifier("test_resnet", label_names=["a", "b"])
    assert not model.config.name_or_path
    model.save_pretrained(tmp_path)
    assert "name_or_path" not in (tmp_path / "config.json").read_text()
    assert not as_classifier(tmp_path, label_names=["a", "b"]).config.name_or_path
