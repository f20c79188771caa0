"""Joint transforms: geometry on the picture and its saliency together, colour on the picture alone.

Built on torchvision's v2 functions. `tv_tensors.Mask` would be resized by the nearest neighbour, which breaks soft
maps; saliency is therefore resized as a picture, bilinear and antialiased, whatever the picture's interpolation.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as F

from .images import (
    is_binary,
    is_missing,
    load_picture,
    load_saliency,
    map_agreement,
    mean_saliency,
    saliency_names,
    to_unit_range,
)

_ASPECT_TOLERANCE = 0.02
_INTERPOLATIONS = {mode.value: mode for mode in InterpolationMode}
# A tensor has no box and no Hamming filter; between the two of them and a triangle there is little to see.
_INTERPOLATIONS.update(box=InterpolationMode.BILINEAR, hamming=InterpolationMode.BILINEAR)


def fit_saliency(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """
    Resizes one map to its picture's size, bilinear and antialiased.

    Args:
        saliency (`Tensor` of shape `(h, w)`): uint8, or float32 in [0, 1].
        size (`tuple[int, int]`): the picture's `(H, W)`.

    Returns:
        `Tensor` of shape `(H, W)`, of the same type.

    Raises:
        ValueError: for a map of another shape than the picture: it is never cropped.
    """
    height, width = saliency.shape
    if (height, width) == size:
        return saliency
    expected = size[1] * height / size[0]
    # A coarse map cannot match the aspect ratio better than to a cell, half on either side.
    if abs(width - expected) > max(_ASPECT_TOLERANCE * expected, 0.5 + 0.5 * expected / height):
        remedy = "make the map in the frame of the whole picture (maps are resized to it, never cropped)."
        if (width, height) == size:
            remedy = (
                "it is the picture's size turned by 90 degrees: the picture's EXIF orientation is applied, so save "
                "the map in the oriented frame."
            )
        raise ValueError(
            f"the saliency map is {height} × {width} and its picture {size[0]} × {size[1]} (height × width), another "
            f"shape; {remedy}"
        )
    return F.resize(saliency.unsqueeze(0), list(size), InterpolationMode.BILINEAR, antialias=True).squeeze(0)


def read_annotators(value: Any, size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """
    Reads a row's saliency, each annotator's map by itself.

    Args:
        value: whatever [`read_saliency`] takes.
        size (`tuple[int, int]`): the picture's `(H, W)`.

    Returns:
        `tuple` of the maps as they are stored and the maps at the picture's size, `(H, W)` each, uint8 in 0 to 255 or
        float32 in [0, 1].

    Raises:
        ValueError: as [`read_saliency`] and [`fit_saliency`]; names the map's file where it is known.
    """
    loaded, fitted = load_saliency(value), []
    for saliency, name in zip(loaded, saliency_names(value), strict=True):
        try:
            fitted.append(fit_saliency(saliency, size))
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if name else str(error)) from error
    return loaded, fitted


class SaliencyTransform:
    """
    Turns a picture and its saliency map into what a model and the guidance take. Picklable.

    For evaluation it does what the model's own image processor does: resize and centre crop (`resize_mode="crop"`) or
    resize to the size (`"squash"`; with a `crop_pct` under 1 a centre crop follows, as in timm). For training: a
    random resized crop, a horizontal flip, light brightness, contrast and saturation. Both normalise. Draws come from
    torch's global generator, and are the same whether or not a row is annotated.

    Args:
        config: has `size` `(H, W)`, `mean`, `std`, `interpolation`, `crop_pct`, `resize_mode` and `channels` (1 or 3),
            as `hf_salguide.backbones.DataConfig`.
        train (`bool`): whether to augment.
        flip (`float`, *optional*, defaults to 0.5): the probability of a horizontal flip; 0 where left and right have
            a meaning.
        crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.6, 1.0)`): the share of the picture's area that
            the random crop keeps; `None` for the evaluation geometry in training.
        color_jitter (`float`, *optional*, defaults to 0.2): how far brightness, contrast and saturation vary; 0 for
            none.
        bit_depth (`int`, *optional*): the depth of pictures that are deeper than 8 bits, see [`read_image`].

    Raises:
        ValueError: for a field of `config` or an option that is out of its range.
    """

    def __init__(
        self,
        config: Any,
        train: bool,
        flip: float = 0.5,
        crop_scale: tuple[float, float] | None = (0.6, 1.0),
        color_jitter: float = 0.2,
        bit_depth: int | None = None,
    ):
        if config.channels not in (1, 3):
            raise ValueError(f"config.channels={config.channels} is not supported; a picture has 1 or 3 channels.")
        for field in ("mean", "std"):
            if len(getattr(config, field)) != config.channels:
                raise ValueError(
                    f"config.{field}={getattr(config, field)} does not have one value for each of config.channels="
                    f"{config.channels} channels."
                )
        if config.resize_mode not in ("crop", "squash"):
            raise ValueError(f'config.resize_mode="{config.resize_mode}" is not known; choose "crop" or "squash".')
        if config.interpolation not in _INTERPOLATIONS:
            names = ", ".join(sorted(_INTERPOLATIONS))
            raise ValueError(f'config.interpolation="{config.interpolation}" is not known; choose one of {names}.')
        if not 0 < config.crop_pct <= 1:
            raise ValueError(f"config.crop_pct={config.crop_pct} must lie over 0 and up to 1.")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip={flip} is a probability; it must lie in [0, 1].")
        if color_jitter < 0:
            raise ValueError(f"color_jitter={color_jitter} must not be negative; 0 switches it off.")
        if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale={crop_scale} must be (low, high) with 0 < low <= high <= 1.")
        if bit_depth is not None and not 8 <= bit_depth <= 16:
            raise ValueError(f"bit_depth={bit_depth} must lie in 8 to 16, or be None.")
        self.size = (int(config.size[0]), int(config.size[1]))
        self.channels = int(config.channels)
        self.mean = [float(value) for value in config.mean]
        self.std = [float(value) for value in config.std]
        self.crop_pct = float(config.crop_pct)
        self.resize_mode = config.resize_mode
        self.interpolation = _INTERPOLATIONS[config.interpolation]
        self.train = train
        self.flip = flip
        self.bit_depth = bit_depth
        self.crop = T.RandomResizedCrop(self.size, scale=crop_scale) if crop_scale is not None else None
        jitter = color_jitter if color_jitter > 0 else None
        self.jitter = T.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter) if jitter else None

    def __call__(self, image: Any, saliency: Any = None) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            image: whatever [`read_image`] takes.
            saliency (*optional*): whatever [`read_saliency`] takes; `None` where the picture is not annotated. A map
                of another size than its picture is resized to it.

        Returns:
            `tuple` of the pixel values, `(C, H, W)` float32, normalised, and the saliency, `(H, W)` uint8 in 0 to 255,
            or `None`.

        Raises:
            ValueError: as [`read_image`] and [`read_saliency`], and where the map's aspect ratio differs from the
                picture's by more than 2 % and more than a pixel of the map.
        """
        pixels, human, _ = self.with_agreement(image, saliency)
        return pixels, human

    def with_agreement(self, image: Any, saliency: Any = None) -> tuple[Tensor, Tensor | None, float | None]:
        """
        What a call gives and, for evaluation, how far several annotators of the picture agree, see [`agreement`]; maps
        of different sizes are compared at the picture's.
        """
        picture = load_picture(image, self.channels, self.bit_depth)
        size = (picture.shape[1], picture.shape[2])
        human, agreed = None, None
        if not is_missing(saliency):
            loaded, fitted = read_annotators(saliency, size)
            human = mean_saliency(fitted).unsqueeze(0)
            if not self.train and len(loaded) > 1:
                agreed = map_agreement(_of_one_size(loaded, fitted))
        if self.train and self.crop is not None:
            box = self.crop.make_params([picture])
            picture = self._crop(picture, box, self.interpolation)
            human = None if human is None else self._crop(human, box, InterpolationMode.BILINEAR)
        else:
            picture = self._evaluation(picture, self.interpolation)
            human = None if human is None else self._evaluation(human, InterpolationMode.BILINEAR)
        if self.train and torch.rand(()) < self.flip:
            picture = F.horizontal_flip(picture)
            human = None if human is None else F.horizontal_flip(human)
        pixels = to_unit_range(picture)
        if self.train and self.jitter is not None:
            pixels = self.jitter(pixels)
        if pixels.shape[0] < self.channels:
            pixels = pixels.expand(self.channels, -1, -1)
        mean, std = torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)
        return (pixels - mean).div_(std), None if human is None else _to_uint8(human.squeeze(0)), agreed

    def _crop(self, picture: Tensor, box: dict[str, int], interpolation: InterpolationMode) -> Tensor:
        return F.resized_crop(picture, **box, size=list(self.size), interpolation=interpolation, antialias=True)

    def _evaluation(self, picture: Tensor, interpolation: InterpolationMode) -> Tensor:
        """The geometry of timm's evaluation transform, which is that of transformers' processors as well."""
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        if self.resize_mode == "squash":
            scaled = [height, width]
        elif height == width:
            scaled = [height]
        else:
            ratio = min(picture.shape[1] / height, picture.shape[2] / width)
            scaled = [round(picture.shape[1] / ratio), round(picture.shape[2] / ratio)]
        return F.center_crop(F.resize(picture, scaled, interpolation, antialias=True), list(self.size))


def _of_one_size(loaded: list[Tensor], fitted: list[Tensor]) -> list[Tensor]:
    """Annotators' maps that can be compared: as they are stored, else at the picture's size; masks stay masks."""
    if len({saliency.shape for saliency in loaded}) == 1:
        return loaded
    if all(is_binary(saliency) for saliency in loaded):
        return [(to_unit_range(saliency) >= 0.5).to(torch.uint8) * 255 for saliency in fitted]
    return fitted


def _to_uint8(saliency: Tensor) -> Tensor:
    if saliency.dtype == torch.uint8:
        return saliency.contiguous()
    return saliency.clamp(0.0, 1.0).mul(255).round().to(torch.uint8)


def make_transforms(
    config: Any,
    train: bool,
    flip: float = 0.5,
    crop_scale: tuple[float, float] | None = (0.6, 1.0),
    color_jitter: float = 0.2,
    bit_depth: int | None = None,
) -> SaliencyTransform:
    """
    The joint transform of a model's data configuration, for training or for evaluation.

    Args:
        config: the model's data configuration; see [`SaliencyTransform`], as for the other arguments.
        train (`bool`): whether to augment.
        flip (`float`, *optional*, defaults to 0.5): the probability of a horizontal flip.
        crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.6, 1.0)`): the share of the area that is kept.
        color_jitter (`float`, *optional*, defaults to 0.2): how far brightness, contrast and saturation vary.
        bit_depth (`int`, *optional*): the depth of pictures that are deeper than 8 bits.

    Returns:
        [`SaliencyTransform`], called with `(image, saliency or None)`.

    Raises:
        ValueError: for a field of `config` or an option that is out of its range.
    """
    return SaliencyTransform(
        config, train, flip=flip, crop_scale=crop_scale, color_jitter=color_jitter, bit_depth=bit_depth
    )
