import pytest
import torch
from backbones.zoo import CASES, NAMES, TINY_CONV, TINY_VIT
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    ConvNextImageProcessor,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessor,
    pipeline,
)

from hf_salguide.backbones import DataConfig, as_classifier, data_config, image_processor

IMAGENET = (0.485, 0.456, 0.406)


def picture(size=(90, 130), mode="RGB"):
    channels = 3 if mode == "RGB" else 1
    values = torch.randint(0, 256, (*size, channels), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(values.squeeze(-1).numpy(), mode)


def test_a_timm_model_is_read_from_its_configuration():
    config = data_config(as_classifier("resnet18", NAMES))
    assert config == DataConfig((224, 224), IMAGENET, (0.229, 0.224, 0.225), "bicubic", 0.95, "crop", 3)
    assert data_config(as_classifier("resnet18", NAMES, image_size=64)).size == (64, 64)
    assert data_config(as_classifier("resnet18", NAMES), image_size=96).size == (96, 96)
    assert data_config(as_classifier("test_resnet", NAMES)).interpolation == "bilinear"


def test_one_channel_has_one_mean():
    config = data_config(as_classifier("resnet18", NAMES, in_chans=1))
    assert config.channels == 1
    assert config.mean == (pytest.approx(sum(IMAGENET) / 3),)
    with pytest.raises(ValueError, match="takes 4 channels"):
        data_config(as_classifier("resnet18", NAMES, in_chans=4))


def test_a_picture_that_is_not_square_is_squashed():
    config = data_config(as_classifier("resnet18", NAMES, image_size=(64, 96)))
    assert (config.size, config.resize_mode, config.crop_pct) == ((64, 96), "squash", 1.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ViTConfig(image_size=64, **TINY_VIT), ((64, 64), (0.5,) * 3, "bilinear", 1.0, "squash")),
        (ResNetConfig(**TINY_CONV), ((224, 224), (0.5,) * 3, "bicubic", 0.875, "crop")),
    ],
)
def test_a_transformers_model_has_its_processors_defaults(config, expected):
    found = data_config(as_classifier(config, NAMES))
    assert (found.size, found.mean, found.interpolation, found.crop_pct, found.resize_mode) == expected


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (ViTImageProcessor(size={"height": 48, "width": 32}, resample=0), ((48, 32), "nearest", 1.0, "squash")),
        (BitImageProcessor(size={"shortest_edge": 80}, crop_size=64), ((64, 64), "bicubic", 0.8, "crop")),
        (ConvNextImageProcessor(size={"shortest_edge": 96}), ((96, 96), "bicubic", 0.875, "crop")),
        (ConvNextImageProcessor(size={"shortest_edge": 384}), ((384, 384), "bicubic", 1.0, "squash")),
    ],
)
def test_a_processor_is_followed(processor, expected):
    model = as_classifier(ResNetConfig(**TINY_CONV), NAMES)
    found = data_config(model, processor=processor)
    assert (found.size, found.interpolation, found.crop_pct, found.resize_mode) == expected
    assert found.mean == tuple(processor.image_mean)
    assert data_config(model, image_size=40, processor=processor).size == (40, 40)


@pytest.mark.parametrize("resize_mode", ["crop", "squash"])
@pytest.mark.parametrize("name", ["test_resnet", "hf_resnet"])
def test_a_processor_is_saved_and_prepares_as_configured(name, resize_mode, tmp_path):
    model = CASES[name].build()
    config = DataConfig((64, 64), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bilinear", 0.8, resize_mode)
    if resize_mode == "squash":
        config = DataConfig((64, 96), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bilinear", 1.0, resize_mode)
    processor = image_processor(model, config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    found = again(picture(), return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, *config.size)
    assert torch.equal(found, processor(picture(), return_tensors="pt")["pixel_values"])
    assert data_config(model, processor=again) == config
    mean = torch.tensor(config.mean)
    restored = found[0].mean((1, 2)) * torch.tensor(config.std) + mean
    torch.testing.assert_close(restored, torch.full((3,), 0.5), rtol=0, atol=0.03)


def test_a_pipeline_feeds_the_size_that_was_trained(tmp_path):
    model = as_classifier("test_vit", NAMES, image_size=64).eval()
    image_processor(model, data_config(model))
    model.save_pretrained(tmp_path)
    scores = pipeline("image-classification", str(tmp_path))(picture())
    assert sorted(score["label"] for score in scores) == NAMES
