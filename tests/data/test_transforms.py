import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from transformers import BitImageProcessor, TimmWrapperImageProcessor, ViTImageProcessor

from hf_salguide.data import make_transforms
from hf_salguide.data.transforms import fit_saliency


def config(**changes):
    fields = {
        "size": (32, 48),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "resize_mode": "crop",
        "channels": 3,
    }
    return SimpleNamespace(**(fields | changes))


def _noise(height=60, width=90, channels=3):
    generator = np.random.default_rng(0)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))


def _blob(height, width, row, column):
    rows, columns = np.mgrid[:height, :width]
    blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 4.0**2))
    return Image.fromarray((255 * blob).round().astype(np.uint8))


def _centre(values):
    values = values.double() * (values > values.max() / 3)  # noise outside the blob has no say
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.double) for n in values.shape), indexing="ij")
    return (values * rows).sum() / values.sum(), (values * columns).sum() / values.sum()


# ---- Geometry ----


@pytest.mark.parametrize("channels", [1, 3])
def test_a_blob_stays_at_its_place_through_fifty_draws(channels):
    torch.manual_seed(0)
    one = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "channels": channels}
    transform = make_transforms(config(size=(64, 64), **one), train=True)
    blob = _blob(80, 100, 45, 38)
    places = set()
    for _ in range(50):
        pixels, saliency = transform(blob, blob)
        assert pixels.shape == (channels, 64, 64)
        assert saliency.shape == (64, 64)
        seen, drawn = _centre(pixels.mean(dim=0)), _centre(saliency)
        assert seen[0].item() == pytest.approx(drawn[0].item(), abs=0.5)
        assert seen[1].item() == pytest.approx(drawn[1].item(), abs=0.5)
        places.add((round(drawn[0].item()), round(drawn[1].item())))
    assert len(places) > 20
    columns = sorted(column for _, column in places)
    assert columns[0] < 25 < 40 < columns[-1]  # flipped and not


def test_rows_and_columns_are_not_swapped():
    pixels, saliency = make_transforms(config(mean=(0.0,) * 3, std=(1.0,) * 3), train=False)(
        _blob(60, 90, 15, 60), _blob(60, 90, 15, 60)
    )
    assert pixels.shape == (3, 32, 48)
    row, column = _centre(saliency)
    assert (row.item(), column.item()) == (
        pytest.approx((15.5 - 30) * 36 / 60 + 15.5, abs=0.7),
        pytest.approx((60.5 - 45) * 36 / 60 + 23.5, abs=0.7),
    )
    assert _centre(pixels[0])[0].item() == pytest.approx(row.item(), abs=0.3)


def test_colour_leaves_saliency_alone():
    plain = make_transforms(config(), train=True, color_jitter=0)
    coloured = make_transforms(config(), train=True, color_jitter=0.4)
    image, blob = _noise(), _blob(60, 90, 20, 30)
    for seed in range(5):
        torch.manual_seed(seed)
        pixels, saliency = plain(image, blob)
        torch.manual_seed(seed)
        other, other_saliency = coloured(image, blob)
        assert torch.equal(saliency, other_saliency)
        assert not torch.allclose(pixels, other)


def test_draws_come_from_the_global_generator_and_do_not_depend_on_annotation():
    transform = make_transforms(config(), train=True)
    image, blob = _noise(), _blob(60, 90, 20, 30)
    results = []
    for saliency in (None, blob, blob):
        torch.manual_seed(3)
        results.append((transform(image, saliency)[0], torch.rand(())))
    assert all(torch.equal(result[0], results[0][0]) and result[1] == results[0][1] for result in results)
    assert not torch.equal(transform(image)[0], transform(image)[0])
    assert transform(image)[1] is None
    assert transform(image, {"bytes": None, "path": None})[1] is None


def test_evaluation_draws_nothing():
    state = torch.get_rng_state()
    transform = make_transforms(config(), train=False)
    first, second = transform(_noise(), None)[0], transform(_noise(), None)[0]
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("train", [False, True])
def test_soft_maps_stay_soft(train):
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 90).round().astype(np.uint8), (60, 1)))
    saliency = make_transforms(config(), train=train, flip=0)(_noise(), ramp)[1]
    assert saliency.dtype == torch.uint8
    assert len(saliency.unique()) > 25
    assert saliency.float().diff(dim=1).min() >= 0


@pytest.mark.parametrize("train", [False, True])
def test_a_binary_mask_is_antialiased(train):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (60, 45)))
    saliency = make_transforms(config(size=(16, 24)), train=train)(_noise(), stripes)[1]
    assert 90 < saliency.float().mean() < 165
    assert saliency.float().std() < 60  # the nearest neighbour would keep 0 and 255 alone


def test_several_annotators_and_float_maps():
    one, other = np.zeros((60, 90), np.float32), np.ones((30, 45), np.float32)
    saliency = make_transforms(config(), train=False)(_noise(), [one, other])[1]
    assert set(saliency.unique().tolist()) <= {127, 128}


def test_a_map_of_another_size_is_resized_and_of_another_shape_refused():
    transform = make_transforms(config(), train=False)
    full = transform(_noise(), _blob(60, 90, 20, 30))[1].float()
    half = transform(_noise(), _blob(60, 90, 20, 30).resize((45, 30)))[1].float()
    assert (full - half).abs().max() < 30
    transform(_noise(), np.ones((7, 10), np.float32))  # a grid, as near as its cells allow
    with pytest.raises(ValueError, match=r"map is 60 × 60 and its picture 60 × 90 .*never cropped"):
        transform(_noise(), np.ones((60, 60), np.float32))
    with pytest.raises(ValueError, match=r"map is 90 × 60 and its picture 60 × 90 .*EXIF.*oriented frame"):
        transform(_noise(), np.ones((90, 60), np.float32))


def test_a_map_is_resized_to_its_picture_softly():
    coarse = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert len(fit_saliency(coarse, (20, 20)).unique()) >= 10  # the nearest neighbour would keep 0 and 1
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(40, 20)
    assert fit_saliency(stripes, (10, 10)).float().std() < 10


# ---- What the model's own processor does ----


def _photo(height, width, channels):
    """Smooth, as photographs are: on white noise two roundings of the same filter differ by a few levels."""
    small = _noise(height // 5, width // 5, channels)
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _levels(transform, processor, image, std):
    expected = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    return (transform(image)[0] - expected).abs() * torch.tensor(std).view(-1, 1, 1) * 255


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
@pytest.mark.parametrize("size", [(3, 64, 64), (3, 48, 80)])
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("picture", [(100, 150, 3), (150, 90, 3), (120, 120, 1)])
def test_evaluation_equals_timms_processor(name, size, mode, picture):
    settings = get_pretrained_cfg(name).to_dict() | {"input_size": size, "crop_mode": mode}
    data = resolve_data_config(settings)
    fields = {key: data[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    resize_mode = "squash" if mode == "squash" else "crop"
    transform = make_transforms(config(size=size[1:], resize_mode=resize_mode, **fields), train=False)
    processor = TimmWrapperImageProcessor(settings, architecture=name.split(".")[0])
    # timm resizes with PIL, which rounds otherwise than torchvision does between its two passes.
    levels = _levels(transform, processor, _photo(*picture), data["std"])
    assert levels.max() < 3.01
    assert levels.mean() < 0.25


@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("picture", [(100, 150, 3), (150, 90, 3)])
def test_evaluation_equals_the_processors_of_transformers(mode, picture):
    std = (0.2, 0.25, 0.3)
    common = {"image_mean": [0.5, 0.4, 0.3], "image_std": list(std), "resample": 3}
    if mode == "squash":
        processor = ViTImageProcessor(size={"height": 64, "width": 64}, **common)
    else:
        edge, crop = {"shortest_edge": 73}, {"height": 64, "width": 64}
        processor = BitImageProcessor(size=edge, crop_size=crop, do_center_crop=True, **common)
    crop_pct = 0.875 if mode == "crop" else 1.0
    transform = make_transforms(config(size=(64, 64), resize_mode=mode, crop_pct=crop_pct), train=False)
    assert _levels(transform, processor, _noise(*picture), std).max() < 0.01


def test_deep_pictures_are_transformed_in_their_depth():
    ramp = np.tile(np.linspace(1000, 1100, 90).astype(np.uint16), (60, 1))
    ramp[0, 0] = 4095
    pixels = make_transforms(config(channels=1, mean=(0.0,), std=(1.0,)), train=False)(Image.fromarray(ramp))[0]
    assert pixels.min() > 0.24
    assert len(pixels[0, 16].unique()) > 30  # eight bits would leave seven levels


def test_a_transform_is_pickled():
    transform = pickle.loads(pickle.dumps(make_transforms(config(), train=True)))
    assert transform(_noise(), _blob(60, 90, 20, 30))[1].shape == (32, 48)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"channels": 4}, {}, "config.channels=4"),
        ({"mean": (0.5,)}, {}, r"config.mean=\(0.5,\)"),
        ({"resize_mode": "pad"}, {}, 'config.resize_mode="pad"'),
        ({"interpolation": "sinc"}, {}, 'config.interpolation="sinc"'),
        ({"crop_pct": 0}, {}, "config.crop_pct=0"),
        ({}, {"flip": 2}, "flip=2"),
        ({}, {"color_jitter": -1}, "color_jitter=-1"),
        ({}, {"crop_scale": (0.5, 2)}, r"crop_scale=\(0.5, 2\)"),
        ({}, {"bit_depth": 24}, "bit_depth=24"),
    ],
)
def test_bad_settings(changes, options, words):
    with pytest.raises(ValueError, match=words):
        make_transforms(config(**changes), train=True, **options)


def test_without_crop_flip_and_colour_training_is_evaluation():
    transform = make_transforms(config(), train=True, flip=0, crop_scale=None, color_jitter=0)
    assert torch.equal(transform(_noise())[0], make_transforms(config(), train=False)(_noise())[0])


@pytest.mark.parametrize("train", [False, True])
def test_saliency_is_resized_alike_whatever_the_pictures_interpolation(train):
    maps = []
    for interpolation in ("nearest", "bilinear", "bicubic"):
        torch.manual_seed(0)
        transform = make_transforms(config(interpolation=interpolation), train=train)
        maps.append(transform(_noise(), _noise(channels=1))[1])
    assert all(torch.equal(one, maps[1]) for one in maps)


def test_the_transform_reads_pictures_by_their_bit_depth():
    picture = np.full((60, 90), 1000, np.uint16)  # a share of 4095, unless all sixteen bits are said to be in use
    one = config(channels=1, mean=(0.0,), std=(1.0,))
    for bit_depth, largest in ((None, 4095), (16, 65535)):
        pixels, _ = make_transforms(one, train=False, bit_depth=bit_depth)(picture)
        assert pixels.mean().item() == pytest.approx(1000 / largest, rel=1e-3)
