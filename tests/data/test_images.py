import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from hf_salguide.data import agreement, read_image, read_saliency


def _deep(values, mode="I;16"):
    array = np.array(values, dtype=np.uint16 if mode.startswith("I;16") else np.int32)
    return Image.fromarray(array)


def _stored(picture, name="PNG"):
    stream = io.BytesIO()
    picture.save(stream, name)
    return {"bytes": stream.getvalue(), "path": f"scan.{name.lower()}"}


# ---- Pictures ----


def test_eight_bits_and_channels():
    grey = Image.fromarray(np.array([[0, 51], [102, 255]], dtype=np.uint8))
    expected = torch.tensor([[0.0, 0.2], [0.4, 1.0]])
    torch.testing.assert_close(read_image(grey, 1), expected.unsqueeze(0))
    torch.testing.assert_close(read_image(grey), expected.expand(3, 2, 2))
    colour = Image.new("RGB", (4, 3), (255, 0, 51))
    assert read_image(colour)[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert read_image(colour, 1)[0, 0, 0].item() == pytest.approx(0.299 + 0.114 * 0.2, abs=0.003)


@pytest.mark.parametrize("source", ["I;16", "I;16B", "I", "uint16", "tensor"])
@pytest.mark.parametrize(("high", "scale"), [(4095, 4095), (3000, 4095), (60000, 65535), (255, 255), (200, 255)])
def test_deep_pictures_are_neither_clipped_nor_black(source, high, scale):
    values = np.array([[0, high // 4], [high // 2, high]])
    image = {
        "I;16": lambda: _stored(_deep(values)),
        "I;16B": lambda: Image.frombytes("I;16B", (2, 2), values.astype(">u2").tobytes()),
        "I": lambda: _deep(values, "I"),
        "uint16": lambda: values.astype(np.uint16),
        "tensor": lambda: torch.from_numpy(values.astype(np.int32)),
    }[source]()
    torch.testing.assert_close(read_image(image, 1)[0], torch.from_numpy(values / scale).float())


def test_bit_depth_fixes_the_scale():
    assert read_image(_deep([[0, 4000]]), 1, bit_depth=16).max().item() == pytest.approx(4000 / 65535)
    assert read_image(_deep([[0, 200]]), 1, bit_depth=12).max().item() == pytest.approx(200 / 4095)
    with pytest.raises(ValueError, match="reach 5000, more than 4095; raise bit_depth"):
        read_image(_deep([[0, 5000]]), 1, bit_depth=12)


def test_one_bit_palette_cmyk_and_float_pictures():
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert read_image(bits, 1).flatten().tolist() == [0, 1]
    palette = Image.new("RGB", (2, 2), (255, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert palette.mode == "P"
    assert read_image(palette)[:, 0, 0].tolist() == [1, 0, 0]
    assert read_image(Image.new("RGB", (2, 2), (255, 0, 0)).convert("CMYK"))[:, 0, 0].tolist() == [1, 0, 0]
    unit = Image.fromarray(np.array([[0.25, 1.0]], dtype=np.float32))
    assert read_image(unit, 1).flatten().tolist() == [0.25, 1]
    assert read_image(Image.fromarray(np.array([[51, 255]], dtype=np.float32)), 1).flatten().tolist() == [
        pytest.approx(0.2),
        1,
    ]
    assert read_image(np.array([[0.0, 1.0000002]]), 1).max() == 1  # not taken for eight bits


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_is_black(mode):
    picture = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    picture.putpixel((1, 0), (255, 255, 255, 0))
    if mode == "P":
        picture = picture.convert("P")
        picture = Image.open(io.BytesIO(_stored(picture)["bytes"])) if "transparency" in picture.info else picture
        if "transparency" not in picture.info:
            picture.putpalette([0, 0, 0, 255, 255, 255])
            picture.putdata([1, 0])
            picture.info["transparency"] = 0
    elif mode == "PA":
        picture = Image.new("PA", (2, 1))
        picture.putpalette([255, 255, 255])
        picture.putpixel((0, 0), (0, 255))
        picture.putpixel((1, 0), (0, 0))
    else:
        picture = picture.convert(mode)
    assert picture.mode == mode
    assert read_image(picture)[:, 0].T.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_arrays_and_tensors_of_either_layout():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = torch.from_numpy(array).permute(2, 0, 1) / 255
    for value in (array, array.transpose(2, 0, 1), torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1)):
        torch.testing.assert_close(read_image(value), expected)
    torch.testing.assert_close(read_image(expected), expected)
    opaque = np.concatenate([array, np.full((5, 7, 1), 128, np.uint8)], axis=2)
    torch.testing.assert_close(read_image(opaque), expected * 128 / 255)


def test_exif_orientation_is_applied_to_pictures_and_maps():
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    stream = io.BytesIO()
    picture.save(stream, "PNG", exif=exif)
    stored = {"bytes": stream.getvalue(), "path": None}
    upright = torch.rot90(read_image(picture, 1), -1, (1, 2))
    torch.testing.assert_close(read_image(stored, 1), upright)
    torch.testing.assert_close(read_saliency(stored), upright[0])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([[-1.0, 0.5]]), ["negative", "-1", "scale"]),
        (np.array([[0.0, 1.4]]), ["1.4", "neither"]),
        (np.array([[np.nan, 0.5]]), ["NaN", "1 values"]),
        (np.array([[0, 70000]]), ["70000", "16 bits"]),
        (np.zeros((2, 2, 2, 2)), ["(2, 2, 2, 2)", "expected (H, W)"]),
        ({"bytes": None, "path": None}, ["neither bytes nor a path"]),
        ({"bytes": b"nonsense", "path": None}, ["cannot be read"]),
        ({"bytes": None, "path": "absent/scan.png"}, ["absent/scan.png", "cannot be read", "replace the file"]),
        ("absent/scan.npy", ["absent/scan.npy", "cannot be read"]),
        (object(), ["object", "PIL picture"]),
    ],
)
def test_pictures_that_cannot_be_read(value, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        read_image(value)
    assert all(word in str(error.value) for word in words[1:]), error.value


def test_a_truncated_file_is_named(tmp_path):
    data = _stored(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)))["bytes"]
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"half\.png cannot be read"):
        read_image(tmp_path / "half.png")


# ---- Saliency ----


def test_soft_maps_stay_soft_and_label_masks_become_whole():
    soft = np.array([[0, 26], [128, 255]], dtype=np.uint8)
    torch.testing.assert_close(read_saliency(Image.fromarray(soft)), torch.from_numpy(soft) / 255)
    mask = np.array([[0, 1], [1, 0]])
    for dtype in (np.uint8, np.int64, np.uint16, bool, np.float32):
        assert read_saliency(mask.astype(dtype)).tolist() == mask.tolist()
    assert read_saliency(Image.fromarray(mask.astype(np.uint8))).max() == 1
    assert read_saliency(np.zeros((2, 2), np.uint8)).max() == 0
    assert read_saliency([[0.0, 0.5], [1.0, 0.25]]).tolist() == [[0, 0.5], [1, 0.25]]


def test_grey_maps_with_three_channels():
    soft = np.random.default_rng(0).integers(0, 256, (3, 4), dtype=np.uint8)
    torch.testing.assert_close(
        read_saliency(Image.fromarray(np.stack([soft] * 3, axis=2))), torch.from_numpy(soft) / 255
    )
    with pytest.raises(ValueError, match=r"colours \(its channels differ by up to 200\); a map must be grey"):
        read_saliency(Image.new("RGB", (3, 3), (200, 0, 0)))


def test_the_mean_over_annotators():
    one, other = Image.new("L", (3, 2), 255), np.zeros((2, 3), np.float32)
    assert read_saliency([one, other]).unique().tolist() == [0.5]
    with pytest.raises(ValueError, match=r"different sizes \(2 × 3, 4 × 4\)"):
        read_saliency([one, np.zeros((4, 4))])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ["None", "not annotated"]),
        (np.array([[np.nan, 1.0]]), ["saliency map", "NaN"]),
        (np.array([[0.0, 3.0]]), ["reach 3", "divide it by 255"]),
        (np.array([[0.0, 300.0]]), ["reach 300", "divide it by its maximum"]),
        (np.array([[-1.0, 1.0]]), ["negative"]),
        (np.full((50, 50), 1 / 2500), ["0.0004", "density", "divide it by its maximum"]),
        (np.array([[0, 100]], dtype=np.uint16), ["reaches only 100", "8 bits"]),
        (np.array([[0, 70000]]), ["70000", "16 bits"]),
    ],
)
def test_maps_that_cannot_be_read(value, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        read_saliency(value)
    assert all(word in str(error.value) for word in words[1:]), error.value


# ---- Agreement ----


def test_agreement_of_binary_maps_is_intersection_over_union():
    one, other = np.array([[1, 1, 0, 0]], np.uint8), np.array([[0, 1, 1, 0]], np.uint8)
    assert agreement([one, other]) == pytest.approx(1 / 3)
    assert agreement([one, one, other]) == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert agreement([np.zeros((2, 2)), np.zeros((2, 2))]) == 1


def test_agreement_of_soft_maps_is_correlation():
    generator = np.random.default_rng(0)
    one, other = generator.random((5, 6)), generator.random((5, 6))
    assert agreement([one, other]) == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1], abs=1e-6)
    assert agreement([one, one / 2]) == pytest.approx(1)
    assert agreement([one, np.full((5, 6), 0.5)]) is None


def test_agreement_needs_two_annotators_of_one_size():
    assert agreement([np.eye(3)]) is None
    assert agreement([]) is None
    with pytest.raises(ValueError, match="different sizes"):
        agreement([np.eye(3), np.eye(4)])
