"""Decoy digits: a benchmark with a shortcut that needs no download."""

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

_NUM_DIGITS = 1797
_NUM_CLASSES = 10
_BACKGROUND = 0.10
_NOISE = 0.04
_DARKEST, _BRIGHTEST = 0.15, 1.0  # of the patch


def _upscale(digit: np.ndarray, size: int) -> np.ndarray:
    """An 8 × 8 digit in 0 to 16 as `(size, size)` float in [0, 1]."""
    picture = PILImage.fromarray((digit / 16).astype(np.float32))
    return np.clip(np.asarray(picture.resize((size, size), PILImage.Resampling.BICUBIC)), 0.0, 1.0)


def _corner(index: int, size: int, patch: int) -> tuple[int, int]:
    """Top and left of the patch in one of the four corners."""
    far = size - patch
    return (0, far)[index // 2], (0, far)[index % 2]


def _compose(
    digit: np.ndarray, level: int, size: int, patch: int, generator: np.random.Generator
) -> tuple[PILImage.Image, PILImage.Image]:
    """One picture and the saliency of its strokes; digit and patch never touch."""
    extent = digit.shape[0]
    top, left = _corner(int(generator.integers(4)), size, patch)
    while True:
        row, column = generator.integers(0, size - extent + 1, size=2)
        apart = abs((row + extent / 2) - (top + patch / 2)) >= (extent + patch) / 2
        if apart or abs((column + extent / 2) - (left + patch / 2)) >= (extent + patch) / 2:
            break
    canvas = np.full((size, size), _BACKGROUND)
    saliency = np.zeros((size, size))
    window = (slice(row, row + extent), slice(column, column + extent))
    canvas[window] += (1 - _BACKGROUND) * digit
    saliency[window] = digit
    brightness = _DARKEST + (_BRIGHTEST - _DARKEST) * level / (_NUM_CLASSES - 1)
    canvas[top : top + patch, left : left + patch] = brightness
    canvas += generator.normal(0.0, _NOISE, canvas.shape)
    pictures = [(np.clip(values, 0, 1) * 255).round().astype(np.uint8) for values in (canvas, saliency)]
    return PILImage.fromarray(pictures[0]), PILImage.fromarray(pictures[1])


def decoy_digits(
    seed: int = 0,
    size: int = 48,
    num_train: int = 1100,
    num_validation: int = 150,
    num_test: int = 270,
    num_ood: int = 270,
    decoy_size: int = 8,
    saliency_fraction: float = 1.0,
) -> DatasetDict:
    """
    Real handwritten digits on a larger canvas, with a grey patch in a corner that gives the class away.

    In `train`, `validation` and `test` the brightness of the patch is a function of the class (one of ten levels); in
    `ood` it is drawn at random, so that a classifier which reads the patch fails there. The digits are the 1,797 of
    scikit-learn's `load_digits`; no digit is used twice, in whatever split. The saliency is the digit's strokes, soft.
    After Decoy MNIST (Ross, Hughes and Doshi-Velez, "Right for the Right Reasons", IJCAI 2017), which has no
    placement at random and a larger picture of other digits.

    Args:
        seed (`int`, *optional*, defaults to 0): fixes splits, places, patches and noise; the same seed gives the same
            bytes.
        size (`int`, *optional*, defaults to 48): the canvas' height and width in pixels.
        num_train (`int`, *optional*, defaults to 1100): pictures to train on; 1,797 at most in all splits.
        num_validation (`int`, *optional*, defaults to 150): pictures to choose settings on.
        num_test (`int`, *optional*, defaults to 270): pictures to test on, with the shortcut.
        num_ood (`int`, *optional*, defaults to 270): pictures to test on, without it.
        decoy_size (`int`, *optional*, defaults to 8): the patch's height and width in pixels.
        saliency_fraction (`float`, *optional*, defaults to 1.0): the share of `train` that is annotated; the other
            splits are annotated throughout.

    Returns:
        `DatasetDict` of `train`, `validation`, `test` and `ood` with `image` and `saliency` (8-bit grey, undecoded),
        `label` and `patch`, the level of the patch's brightness, 0 to 9.

    Raises:
        ValueError: for more digits than there are, a share outside [0, 1], or a canvas that cannot hold both the digit
            and the patch.
    """
    counts = {"train": num_train, "validation": num_validation, "test": num_test, "ood": num_ood}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"num_{name}={count} must be 1 or more.")
    if sum(counts.values()) > _NUM_DIGITS:
        raise ValueError(
            f"num_train + num_validation + num_test + num_ood = {sum(counts.values())}, but there are {_NUM_DIGITS} "
            "digits and none is used twice; ask for fewer."
        )
    if not 0 <= saliency_fraction <= 1:
        raise ValueError(f"saliency_fraction={saliency_fraction} is a share; it must lie in [0, 1].")
    extent = round(size * 20 / 48)
    if decoy_size < 1 or extent < 8 or extent + decoy_size > size:
        raise ValueError(
            f"size={size} and decoy_size={decoy_size} leave no room for a digit of {extent} pixels beside the patch; "
            "take size of 20 or more and decoy_size up to half of it."
        )
    from sklearn.datasets import load_digits

    digits = load_digits()
    generator = np.random.default_rng(seed)
    order = generator.permutation(_NUM_DIGITS)
    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=[str(digit) for digit in range(_NUM_CLASSES)]),
            "saliency": Image(),
            "patch": Value("int64"),
        }
    )
    splits, start = {}, 0
    for name, count in counts.items():
        chosen = order[start : start + count]
        start += count
        labels = digits.target[chosen]
        levels = generator.integers(_NUM_CLASSES, size=count) if name == "ood" else labels
        pairs = [
            _compose(_upscale(digits.images[index], extent), int(level), size, decoy_size, generator)
            for index, level in zip(chosen, levels, strict=True)
        ]
        annotated = np.ones(count, dtype=bool)
        if name == "train":
            annotated[generator.permutation(count)[round(saliency_fraction * count) :]] = False
        columns = {
            "image": [picture for picture, _ in pairs],
            "label": labels.tolist(),
            "saliency": [saliency if keep else None for (_, saliency), keep in zip(pairs, annotated, strict=True)],
            "patch": [int(level) for level in levels],
        }
        splits[name] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)
