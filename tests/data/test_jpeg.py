"""JPEG files are decoded by torchvision, and nobody can tell."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_salguide.data import images, read_image, read_saliency
from hf_salguide.data.jpeg import jpeg_to_tensor


def picture(mode="RGB", size=(67, 41)):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).convert(mode)


def stored(opened, name="JPEG", **options):
    stream = io.BytesIO()
    opened.save(stream, name, **options)
    return stream.getvalue()


def by_pil(data):
    with Image.open(io.BytesIO(data)) as opened:
        values = np.array(opened)
    return torch.from_numpy(values).reshape(*values.shape[:2], -1).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True, "quality": 35}])
@pytest.mark.parametrize("kind", ["bytes", "struct", "path", "struct of a path"])
def test_the_values_are_those_of_pil(tmp_path, mode, options, kind):
    data, path = stored(picture(mode), **options), tmp_path / "picture"
    path.write_bytes(data)
    value = {
        "bytes": data,
        "struct": {"bytes": data, "path": "elsewhere.jpg"},
        "path": path,
        "struct of a path": {"bytes": None, "path": str(path)},
    }[kind]
    decoded = jpeg_to_tensor(value)
    assert decoded is not None
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, by_pil(data))
    assert torch.equal(read_image(value, 1 if mode == "L" else 3), decoded / 255)
    if mode == "L":
        assert torch.equal(read_saliency(value), decoded[0] / 255)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(picture(), exif=exif)


@pytest.mark.parametrize(
    "value",
    [
        stored(picture(), "PNG"),
        stored(picture("CMYK")),
        turned(),
        picture(),
        np.zeros((3, 4), np.uint8),
        None,
        {"bytes": None, "path": None},
        "absent/picture.jpg",
        [[0.5, 0.5]],
        b"",
    ],
    ids=["PNG", "CMYK", "turned", "opened", "array", "None", "missing", "absent", "numbers", "nothing"],
)
def test_the_rest_is_left_to_pil(value):
    assert jpeg_to_tensor(value) is None


def test_a_turned_file_is_turned_all_the_same():
    upright = torch.rot90(by_pil(turned()), -1, (1, 2)) / 255
    torch.testing.assert_close(read_image(turned()), upright)


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(stored(picture())[:-300])
    with pytest.raises(ValueError, match=r"half\.jpg cannot be read \(image file is truncated"):
        read_image(path)
    path.write_bytes(b"\xff\xd8\xff and nonsense")
    with pytest.raises(ValueError, match=r"half\.jpg cannot be read"):
        read_image(path)


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="cannot be read .*decompression bomb"):
        read_image(stored(picture()))


def test_without_torchvisions_decoders_pil_reads(monkeypatch):
    monkeypatch.setattr(torch.ops, "image", object())
    data = stored(picture())
    assert jpeg_to_tensor(data) is None
    assert torch.equal(images.load_picture(data, 3), by_pil(data))
