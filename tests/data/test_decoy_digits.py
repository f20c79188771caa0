import numpy as np
import pytest

from hf_salguide.data import decoy_digits, read_image, read_saliency


@pytest.fixture(scope="module")
def digits():
    return decoy_digits()


def _patch(image, size=8):
    """The mean of the corner that stands out from the background."""
    corners = [image[:size, :size], image[:size, -size:], image[-size:, :size], image[-size:, -size:]]
    flat = [corner for corner in corners if corner.std() < 0.08]
    return max((corner.mean().item() for corner in flat), key=lambda value: abs(value - 0.1))


def test_shape_and_annotation(digits):
    assert {name: len(rows) for name, rows in digits.items()} == {
        "train": 1100,
        "validation": 150,
        "test": 270,
        "ood": 270,
    }
    assert digits["train"].features["label"].names == [str(digit) for digit in range(10)]
    row = digits["train"][0]
    assert read_image(row["image"], 1).shape == (1, 48, 48)
    assert all(value is not None for rows in digits.values() for value in rows["saliency"])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(digits):
    again, other = decoy_digits(), decoy_digits(seed=1)
    for name in digits:
        assert digits[name]["image"][:] == again[name]["image"][:]
        assert digits[name]["saliency"][:] == again[name]["saliency"][:]
    assert digits["train"]["image"][:5] != other["train"]["image"][:5]


def test_no_digit_is_in_two_splits(digits):
    seen = {}
    for name, rows in digits.items():
        for value in rows["saliency"]:
            saliency = read_saliency(value).numpy()
            rows_, columns = np.nonzero(saliency)
            stroke = saliency[rows_.min() : rows_.max() + 1, columns.min() : columns.max() + 1].tobytes()
            assert seen.setdefault(stroke, name) == name


def test_the_patch_gives_the_class_away_but_out_of_distribution(digits):
    for name, rows in digits.items():
        labels, levels = np.array(rows["label"]), np.array(rows["patch"])
        if name == "ood":
            assert abs(np.corrcoef(labels, levels)[0, 1]) < 0.2
            assert 0.03 < (labels == levels).mean() < 0.2
        else:
            assert (labels == levels).all()
        measured = np.array([_patch(read_image(value, 1)[0]) for value in rows["image"]])
        # Brightness follows the level that the column names.
        assert np.corrcoef(measured, levels)[0, 1] > 0.99


def test_saliency_is_the_strokes_soft_and_off_the_patch(digits):
    for row in digits["train"].select(range(50)):
        image, saliency = read_image(row["image"], 1)[0], read_saliency(row["saliency"])
        assert len(saliency.unique()) > 20
        assert 0.02 < (saliency > 0.5).float().mean() < 0.2
        assert image[saliency > 0.8].mean() > 0.7
        outside = image[saliency == 0]
        assert outside.mean() < 0.25


def test_a_share_is_annotated():
    part = decoy_digits(num_train=100, saliency_fraction=0.3)
    assert sum(value is not None for value in part["train"]["saliency"]) == 30
    assert all(value is not None for value in part["test"]["saliency"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_train": 1500}, "= 2190, but there are 1797"),
        ({"num_ood": 0}, "num_ood=0"),
        ({"saliency_fraction": 1.5}, "saliency_fraction=1.5"),
        ({"size": 12}, "size=12"),
        ({"decoy_size": 40}, "decoy_size=40"),
    ],
)
def test_bad_settings(options, words):
    with pytest.raises(ValueError, match=words):
        decoy_digits(**options)
