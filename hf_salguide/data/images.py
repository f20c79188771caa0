"""Reading pictures and saliency maps to [0, 1] by the range of what they are stored in.

Pictures and maps travel as tensors, `(C, H, W)` in uint8 as long as eight bits hold them and in float32 within [0, 1]
otherwise. A plain `convert("RGB")` clips every value of a deep picture at 255, which whitens most of a 12-bit X-ray.
"""

import io
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from .jpeg import jpeg_to_tensor

DEEP_RANGES = (255, 4095, 65535)  # full scale of 8, 12 and 16 bits: what deep pictures are divided by
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's convert("L")
_ROUNDING = 1e-3  # how far over 1 arithmetic may leave a float that is meant to be 1
_GREY_TOLERANCE = 3  # levels of 255 that JPEG lets the channels of a grey mask differ by


def is_missing(value: Any) -> bool:
    """Whether a saliency value says *not annotated*: `None`, an empty list, or a struct without path and bytes."""
    if value is None:
        return True
    if isinstance(value, dict):
        return value.get("path") is None and value.get("bytes") is None
    return isinstance(value, list | tuple) and (len(value) == 0 or all(is_missing(item) for item in value))


def image_name(value: Any) -> str | None:
    """The file that a picture or a map came from, where it is known, for messages."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return value.get("path")
    if isinstance(value, list | tuple) and value and not isinstance(value[0], int | float):
        return image_name(value[0])
    return getattr(value, "filename", None) or None


def open_image(value: Any) -> Any:
    """
    Opens what a data set holds for a picture, without changing its values.

    Args:
        value: a path (`.npy` included), the bytes of a file, the `{"bytes", "path"}` struct of an undecoded
            `datasets.Image`, or what is open already: a PIL picture, an array or a tensor.

    Returns:
        A PIL picture with its EXIF orientation applied, an array, or a tensor.

    Raises:
        ValueError: where the file is missing or cannot be decoded; the message names it.
    """
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path") is None:
            raise ValueError("the picture is missing: its struct has neither bytes nor a path.")
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    if isinstance(value, str | os.PathLike) and os.fspath(value).lower().endswith(".npy"):
        try:
            return np.load(value, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{os.fspath(value)} cannot be read as a .npy array ({error}); save it anew.") from error
    if isinstance(value, bytes | bytearray | str | os.PathLike):
        source = io.BytesIO(value) if isinstance(value, bytes | bytearray) else value
        name = "the picture" if isinstance(value, bytes | bytearray) else os.fspath(value)
        try:
            value = Image.open(source)
            value.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name} cannot be read ({error}); replace the file or drop the row.") from error
    if isinstance(value, Image.Image) and value.getexif().get(0x0112, 1) != 1:
        return ImageOps.exif_transpose(value)
    return value


def _composite(picture: Image.Image) -> Image.Image:
    """Lays a picture with transparency on black, so that what is invisible never reaches the model."""
    grey = picture.mode in ("LA", "La")
    picture = picture.convert("LA") if picture.mode == "La" else picture
    canvas = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    canvas.alpha_composite(picture.convert("RGBA"))
    return canvas.convert("L" if grey else "RGB")


def _channels_first(array: Tensor, prefer_last: bool) -> Tensor:
    """`(H, W)`, `(H, W, C)` or `(C, H, W)` to `(C, H, W)`, C in 1 to 4."""
    if array.ndim == 2:
        return array.unsqueeze(0)
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 2, 3, 4), array.shape[2] in (1, 2, 3, 4)
        if first and not (last and prefer_last):
            return array
        if last:
            return array.permute(2, 0, 1)
    raise ValueError(
        f"the picture has the shape {tuple(array.shape)}; expected (H, W), (H, W, C) or (C, H, W), 1 to 4 channels."
    )


def _to_tensor(value: Any) -> Tensor:
    """An opened picture as `(C, H, W)` in its own range: uint8, int64 (deep), float32, or bool."""
    if isinstance(value, Image.Image):
        if value.mode == "P":
            value = value.convert("RGBA" if "transparency" in value.info else "RGB")
        if value.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
            value = _composite(value)
        if value.mode in ("L", "RGB"):
            return F.pil_to_tensor(value)
        if value.mode == "1":
            return F.pil_to_tensor(value.convert("L"))
        if value.mode != "F" and not value.mode.startswith("I"):
            return F.pil_to_tensor(value.convert("RGB"))
        value = np.asarray(value)
    prefer_last = not isinstance(value, Tensor)
    if isinstance(value, Tensor):
        array = value.detach().cpu()
    else:
        values = np.asarray(value)
        if values.dtype.kind not in "biuf":
            raise ValueError(
                f"a picture of the type {type(value).__name__} is not known; give a PIL picture, an array, a tensor, "
                "a path, or a struct with path and bytes."
            )
        # torch has no wide unsigned integers and no byte order: int64 holds every depth that is accepted.
        wide = {"b": np.dtype(bool), "f": np.dtype(np.float32)}.get(values.dtype.kind, np.dtype(np.int64))
        array = torch.from_numpy(np.array(values, dtype=values.dtype if values.dtype == np.uint8 else wide))
    array = _channels_first(array, prefer_last)
    if array.dtype not in (torch.uint8, torch.bool):
        array = array.to(torch.float32 if array.is_floating_point() else torch.int64)
    return array


def _read(value: Any) -> Tensor:
    """What a data set holds for a picture as `(C, H, W)` in its own range, see [`open_image`]."""
    decoded = jpeg_to_tensor(value)
    return _to_tensor(open_image(value)) if decoded is None else decoded


def _finite(array: Tensor, what: str) -> None:
    bad = int((~torch.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{what} has {bad} values that are NaN or infinite; write 0 where there is no value.")


def _picture_range(array: Tensor, bit_depth: int | None) -> Tensor:
    """Integers of any depth and floats to uint8 or float32 in [0, 1]; see [`read_image`] for the rule."""
    if array.dtype == torch.bool:
        return array.to(torch.uint8) * 255
    if array.dtype == torch.uint8:
        return array
    floating = array.is_floating_point()
    if floating:
        _finite(array, "the picture")
    low, high = float(array.min()), float(array.max())
    if low < 0:
        raise ValueError(f"the picture has negative values (minimum {low:g}); shift and scale it to [0, 1] or 8 bits.")
    if floating and high <= 1 + _ROUNDING:
        return array.clamp(max=1.0)
    if floating and high < 2:
        raise ValueError(
            f"the picture's floats reach {high:g}, which is neither the range [0, 1] nor 0 to 255; scale it to [0, 1]."
        )
    ranges = DEEP_RANGES if bit_depth is None else (2**bit_depth - 1,)
    scale = next((limit for limit in ranges if high <= limit), None)
    if scale is None:
        remedy = "raise bit_depth" if bit_depth is not None else "scale it to 16 bits"
        raise ValueError(f"the picture's values reach {high:g}, more than {ranges[-1]}; {remedy}.")
    return array.to(torch.float32) / scale


def load_picture(image: Any, channels: int, bit_depth: int | None = None) -> Tensor:
    """
    Reads a picture as [`read_image`] does, but leaves 8-bit pictures in uint8 and grey pictures with one channel.

    Returns:
        `Tensor` of shape `(C, H, W)`, uint8, or float32 in [0, 1]; C is 1 where `channels` is or the picture is grey.
    """
    picture = _picture_range(_read(image), bit_depth)
    if picture.shape[0] in (2, 4):
        # An array's last channel is its opacity: on black, as for a file with transparency.
        picture = picture if picture.is_floating_point() else picture.to(torch.float32) / 255
        picture = picture[:-1] * picture[-1:]
    if channels == 1 and picture.shape[0] == 3:
        weights = torch.tensor(_LUMINANCE).view(3, 1, 1)
        grey = (picture * weights).sum(dim=0, keepdim=True)
        picture = grey if picture.is_floating_point() else grey.round().to(torch.uint8)
    return picture


def to_unit_range(picture: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]; floats are clamped to it (bicubic resizing overshoots)."""
    return picture.clamp(0.0, 1.0) if picture.is_floating_point() else picture.to(torch.float32).div_(255)


def read_image(image: Any, channels: int = 3, bit_depth: int | None = None) -> Tensor:
    """
    Reads a picture to [0, 1] by the range of what it is stored in; nothing is clipped.

    * 8 bits (`L`, `RGB`, uint8): divided by 255. 1 bit: 0 or 1. Palettes: their colours. CMYK, YCbCr: to RGB.
    * Deeper integers (`I;16`, `I`, uint16, ...) do not say how many of their bits the sensor used: 12-bit X-rays come
      in 16-bit files, and would be nearly black as a share of 65535. They are divided by the full scale of the least
      of 8, 12 and 16 bits that holds the picture's largest value. This is a step function of the picture, so that
      prediction needs nothing but the picture, and for pictures from one sensor it is a constant as a rule.
      [`check_rows`] warns where pictures of one data set fall on different steps; `bit_depth` then fixes the scale.
    * Floats: as they are in [0, 1]; from 2 upwards as deep integers.
    * Transparency (`LA`, `RGBA`): laid on black.
    * The EXIF orientation is applied; the saliency map is expected in the oriented frame.

    Args:
        image: a PIL picture, an array `(H, W)` or `(H, W, C)`, a tensor `(H, W)` or `(C, H, W)`, a path, the bytes of
            a file, or the `{"bytes", "path"}` struct of an undecoded `datasets.Image`.
        channels (`int`, *optional*, defaults to 3): 3 (grey pictures are repeated) or 1 (colours become luminance).
        bit_depth (`int`, *optional*): the depth of pictures that are deeper than 8 bits, 12 for example.

    Returns:
        `Tensor` of shape `(channels, H, W)`, float32 in [0, 1].

    Raises:
        ValueError: for a file that is missing or unreadable, for negative, NaN or infinite values, for values over
            16 bits or over `bit_depth`, and for floats that reach between 1 and 2.
    """
    picture = to_unit_range(load_picture(image, channels, bit_depth))
    return picture.expand(3, -1, -1).contiguous() if channels == 3 and picture.shape[0] == 1 else picture


def _is_annotators(value: Any) -> bool:
    """Whether a list holds several maps, not the rows of one."""
    if not isinstance(value, list | tuple):
        return False
    first = next((item for item in value if item is not None), None)
    return not (isinstance(first, list | tuple) and first and isinstance(first[0], int | float))


def _load_map(value: Any) -> Tensor:
    """One annotator's map, `(H, W)`: uint8 in 0 to 255, or float32 in [0, 1]."""
    array = _read(value)
    if array.is_floating_point():
        _finite(array, "the saliency map")
    if array.shape[0] == 3:
        spread = float((array.amax(dim=0) - array.amin(dim=0)).max())
        if spread > (_GREY_TOLERANCE / 255 if array.is_floating_point() else _GREY_TOLERANCE):
            raise ValueError(
                f"the saliency map has colours (its channels differ by up to {spread:g}); a map must be grey, white = "
                "salient. Save it as an 8-bit grey picture; colour-coded maps must be turned into values first."
            )
        array = array[1:2]
    elif array.shape[0] in (2, 4):
        array = array[:1]
    array = array[0]
    if array.dtype == torch.bool:
        return array.to(torch.uint8) * 255
    if array.numel() == 0:
        raise ValueError("the saliency map is empty: it has no pixel.")
    low, high = float(array.min()), float(array.max())
    if low < 0:
        raise ValueError(f"the saliency map has negative values (minimum {low:g}); scale it to [0, 1].")
    if array.is_floating_point():
        return unit_saliency(array, high)
    if high == 1:
        return array.to(torch.uint8) * 255
    if array.dtype == torch.uint8:
        return array
    if high > 65535:
        raise ValueError(f"the saliency map's integers reach {high:g}; expected at most 16 bits, scale it to [0, 1].")
    if 0 < high < 257:
        raise ValueError(
            f"the saliency map is stored in 16 bits or more but reaches only {high:g}, under 1/255 of their range; "
            "save it in 8 bits, or spread it over 16."
        )
    return array.to(torch.float32) / 65535


def unit_saliency(array: Tensor, high: float) -> Tensor:
    """
    Checks that a float map of a whole picture lies in [0, 1] and survives 8 bits.

    Raises:
        ValueError: for a maximum over 1, or one over 0 and under 1/255.
    """
    if high > 1 + _ROUNDING:
        remedy = "divide it by 255" if high <= 255 else "divide it by its maximum"
        raise ValueError(f"the saliency map's floats reach {high:g}; expected [0, 1]: {remedy}.")
    if 0 < high < 1 / 255:
        raise ValueError(
            f"the saliency map's maximum is {high:g}, under 1/255, and it would vanish in the 8 bits of a batch; it "
            "looks like a density (sum 1): divide it by its maximum."
        )
    return array.clamp(max=1.0)


def load_saliency(value: Any) -> list[Tensor]:
    """
    Reads a row's saliency, each annotator's map by itself; see [`read_saliency`] for the rules and the errors.

    Returns:
        `list[Tensor]`, each `(H, W)`, uint8 in 0 to 255 or float32 in [0, 1].
    """
    if is_missing(value):
        raise ValueError("the saliency is None: the row is not annotated, there is no map to read.")
    maps = [item for item in value if not is_missing(item)] if _is_annotators(value) else [value]
    return [_named_map(item) for item in maps]


def saliency_names(value: Any) -> list[str | None]:
    """The files of a row's maps, one for each map that [`load_saliency`] gives; `None` where they are not known."""
    maps = [item for item in value if not is_missing(item)] if _is_annotators(value) else [value]
    return [image_name(item) for item in maps]


def _named_map(value: Any) -> Tensor:
    """[`_load_map`], whose errors name the file."""
    try:
        return _load_map(value)
    except ValueError as error:
        name = image_name(value)
        if name is None or name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error


def mean_saliency(maps: Sequence[Tensor]) -> Tensor:
    """The mean over annotators of maps of one size: a single uint8 map as it is, several as float32 in [0, 1]."""
    if len(maps) == 1:
        return maps[0]
    if len({tuple(saliency.shape) for saliency in maps}) > 1:
        sizes = ", ".join(f"{saliency.shape[0]} × {saliency.shape[1]}" for saliency in maps)
        raise ValueError(f"the annotators' maps have different sizes ({sizes}); resize them to the picture's size.")
    return torch.stack([to_unit_range(saliency) for saliency in maps]).mean(dim=0)


def read_saliency(value: Any) -> Tensor:
    """
    Reads a saliency map, or the mean over several annotators' maps, to [0, 1]. Soft maps stay soft.

    Integers are divided by their range (255, or 65535 for deeper ones). A map whose largest integer is 1 is a label
    mask and is read as 0 and 1, never as 1/255. Floats are taken as they are. The EXIF orientation is applied.

    Args:
        value: whatever [`read_image`] takes, grey, or a list of it, one entry an annotator.

    Returns:
        `Tensor` of shape `(H, W)`, float32 in [0, 1].

    Raises:
        ValueError: for `None`, an unreadable file, NaN, infinite or negative values, floats over 1, colours (channels
            that differ), annotators' maps of different sizes, and for a map whose maximum is over 0 but under 1/255,
            which the 8 bits of a batch would erase.
    """
    return to_unit_range(mean_saliency(load_saliency(value)))


def agreement(maps: Sequence[Any]) -> float | None:
    """
    How far several annotators of one picture agree.

    Args:
        maps (sequence of maps): one entry an annotator, each whatever [`read_saliency`] takes, all of one size.

    Returns:
        `float` or `None`: the mean over the pairs of the intersection over union where every map is binary (two empty
        maps agree: 1), of Pearson's correlation otherwise (a pair with a constant map has none and is left out).
        `None` with fewer than two maps, or no pair that has a value.

    Raises:
        ValueError: for maps of different sizes, and as [`read_saliency`].
    """
    values = [read_saliency(item) for item in maps if not is_missing(item)]
    if len({tuple(value.shape) for value in values}) > 1:
        raise ValueError("the annotators' maps have different sizes; resize them to the picture's size.")
    return map_agreement(values)


def is_binary(saliency: Tensor) -> bool:
    """Whether a map, as loaded, holds nothing but its least and its greatest possible value."""
    return bool(((saliency == 0) | (saliency == (1 if saliency.is_floating_point() else 255))).all())


def map_agreement(maps: Sequence[Tensor]) -> float | None:
    """[`agreement`] of maps that are loaded, `(H, W)` each, of one size."""
    binary = all(is_binary(saliency) for saliency in maps)
    values = [to_unit_range(saliency).to(torch.float64).flatten() for saliency in maps]
    scores = []
    for one, other in itertools.combinations(values, 2):
        if binary:
            union = float(torch.maximum(one, other).sum())
            scores.append(float(torch.minimum(one, other).sum()) / union if union else 1.0)
        elif float(one.std()) > 0 and float(other.std()) > 0:
            scores.append(float(torch.corrcoef(torch.stack([one, other]))[0, 1]))
    return sum(scores) / len(scores) if scores else None
