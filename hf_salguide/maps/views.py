"""Other pictures made of a picture and its saliency, and how far apart what a model makes of them is.

Everything is one tensor operation for the whole batch. Random numbers are handed in as `uniform`, a function that
takes a number `n` and gives `(B, n)` numbers in [0, 1), such as [`keyed_uniform`] gives: no generator is touched.
Each picture is made of its own row of numbers alone.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .normalize import min_max

FILLS = ("shuffle", "zero", "mean", "noise", "blur")
FEATURE_DISTANCES = ("euclidean", "cosine")
OUTSIDE_BELOW = 0.5  # of saliency: a pixel that is half salient stays in its place
_SHORTEST = 1e-6  # a shorter feature vector has no direction, and dividing by its length would explode
_TRUNCATE = 4.0  # standard deviations to each side that a Gaussian kernel reaches, as in scipy.ndimage


def permute_pixels(pictures: Tensor, uniform: Callable[[int], Tensor], movable: Tensor | None = None) -> Tensor:
    """
    Permutes the pixels of each picture among themselves, all channels of a pixel together.

    The `k`-th of a picture's movable pixels, in reading order, becomes the one with the `k`-th smallest number.

    Args:
        pictures (`Tensor` of shape `(B, C, H, W)`): the pictures.
        uniform (`Callable`): asked for `H * W` numbers a row.
        movable (`Tensor` of shape `(B, H, W)`, *optional*): boolean; pixels where it is `False` keep their places and
            their values, bit by bit. All move by default.

    Returns:
        `Tensor` of shape `(B, C, H, W)`.
    """
    batch, channels, height, width = pictures.shape
    numbers = uniform(height * width)
    if numbers.dtype == torch.float32:
        numbers = numbers.view(torch.int32)  # the bits of positive numbers are in the same order, and sort faster
    if movable is None:
        source = numbers.argsort(dim=1, stable=True)
    else:
        moves = movable.flatten(1)
        # Movable pixels come first, in the order of their numbers; each takes the next of them.
        order = numbers.masked_fill(~moves, torch.iinfo(torch.int32).max).argsort(dim=1, stable=True)
        rank = moves.cumsum(dim=1, dtype=torch.int32).sub_(1).clamp_(min=0).long()
        places = torch.arange(height * width, device=pictures.device)
        source = torch.where(moves, order.gather(1, rank), places)
    index = source.unsqueeze(1).expand(batch, channels, height * width)
    return pictures.flatten(2).gather(2, index).reshape(pictures.shape)


def gaussian_blur(pictures: Tensor, sigma: float) -> Tensor:
    """
    Blurs pictures; beyond the border, the border's pixels are repeated.

    Args:
        pictures (`Tensor` of shape `(B, C, H, W)`): the pictures.
        sigma (`float`): standard deviation in pixels, above 0; the kernel reaches 4 of them to each side.

    Returns:
        `Tensor` of shape `(B, C, H, W)`.
    """
    batch, channels, height, width = pictures.shape
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=pictures.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(pictures.dtype)
    planes = pictures.reshape(batch * channels, 1, height, width)
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), kernel.reshape(1, 1, -1, 1))
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel.reshape(1, 1, 1, -1))
    return planes.reshape(pictures.shape)


def gaussian_noise(pictures: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
    """
    Gaussian noise with the mean and the standard deviation of each channel of each picture.

    Source of the draw: Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.

    Args:
        pictures (`Tensor` of shape `(B, C, H, W)`): the pictures.
        uniform (`Callable`): asked for `C * H * W` numbers a row, or one more.

    Returns:
        `Tensor` of shape `(B, C, H, W)`: a constant channel stays as it is.
    """
    count = math.prod(pictures.shape[1:])
    half = (count + 1) // 2
    numbers = uniform(2 * half)
    radius = (-2 * torch.log1p(-numbers[:, :half])).sqrt()  # 1 - u is in (0, 1]: never the logarithm of 0
    angle = 2 * math.pi * numbers[:, half:]
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
    spread, mean = torch.std_mean(pictures, dim=(2, 3), correction=0, keepdim=True)
    return mean + spread * normal.reshape(pictures.shape).to(pictures.dtype)


def fill_pictures(
    pictures: Tensor, uniform: Callable[[int], Tensor], fill: str = "shuffle", sigma: float = 16.0
) -> Tensor:
    """
    Degrades whole pictures.

    Args:
        pictures (`Tensor` of shape `(B, C, H, W)`): the prepared pictures.
        uniform (`Callable`): random numbers, for the fills that draw.
        fill (`str`, *optional*, defaults to `"shuffle"`): what is left of a picture. `"shuffle"`: its pixels, permuted
            ([`permute_pixels`]); `"zero"`: 0, which after the usual normalisation is the mean colour of the data, not
            black; `"mean"`: its own mean colour; `"noise"`: see [`gaussian_noise`]; `"blur"`: see [`gaussian_blur`].
        sigma (`float`, *optional*, defaults to 16.0): standard deviation of `"blur"`, in pixels.

    Returns:
        `Tensor` of shape `(B, C, H, W)`.

    Raises:
        ValueError: for an unknown `fill`.
    """
    if fill == "shuffle":
        return permute_pixels(pictures, uniform)
    if fill == "zero":
        return torch.zeros_like(pictures)
    if fill == "mean":
        return pictures.mean(dim=(2, 3), keepdim=True).expand_as(pictures)
    if fill == "noise":
        return gaussian_noise(pictures, uniform)
    if fill == "blur":
        return gaussian_blur(pictures, sigma)
    raise ValueError(f"fill={fill!r} is not known; choose one of {', '.join(map(repr, FILLS))}.")


def composite(saliency: Tensor, salient: Tensor, other: Tensor) -> Tensor:
    """
    Lays one picture over another, with saliency as the alpha matte: `S * salient + (1 - S) * other`.

    Args:
        saliency (`Tensor` of shape `(B, H, W)`): in [0, 1]; soft maps blend.
        salient, other (`Tensor` of shape `(B, C, H, W)`): the pictures.

    Returns:
        `Tensor` of shape `(B, C, H, W)`: bit by bit `salient` where `S = 1` or where both are equal, and `other` where
        `S = 0`.
    """
    return torch.lerp(other, salient, saliency.unsqueeze(1).to(salient.dtype))


def degrade_outside(
    pictures: Tensor,
    saliency: Tensor,
    uniform: Callable[[int], Tensor],
    fill: str = "shuffle",
    sigma: float = 16.0,
) -> Tensor:
    """
    Keeps what is salient and degrades the rest: `S * x + (1 - S) * P(x)`.

    With `fill="shuffle"`, `P` permutes the pixels outside, `S < 1/2`, among themselves and leaves the others alone, so
    that the outside keeps its pixels and loses their places; with the other fills, `P` is [`fill_pictures`].

    Args:
        pictures (`Tensor` of shape `(B, C, H, W)`): the prepared pictures.
        saliency (`Tensor` of shape `(B, H, W)`): in [0, 1], 1 = salient.
        uniform (`Callable`): random numbers, for the fills that draw.
        fill (`str`, *optional*, defaults to `"shuffle"`): see [`fill_pictures`].
        sigma (`float`, *optional*, defaults to 16.0): standard deviation of `"blur"`, in pixels.

    Returns:
        `Tensor` of shape `(B, C, H, W)`.

    Source: Viviano et al., "Saliency is a Possible Red Herring When Diagnosing Poor Generalization", ICLR 2021.
    """
    if fill == "shuffle":
        other = permute_pixels(pictures, uniform, saliency < OUTSIDE_BELOW)
    else:
        other = fill_pictures(pictures, uniform, fill, sigma)
    return composite(saliency, pictures, other)


def has_place(saliency: Tensor) -> Tensor:
    """
    Whether each map says anything about the place: `False` for empty, full and other constant ones.

    Args:
        saliency (`Tensor` of shape `(B, H, W)`): in [0, 1].

    Returns:
        boolean `Tensor` of shape `(B,)`.
    """
    return min_max(saliency)[1]


def unit_vectors(features: Tensor) -> Tensor:
    """
    Each row, flattened, divided by its Euclidean length; a row shorter than 1e-6 becomes zeros, with zero gradient.

    Args:
        features (`Tensor` of shape `(B, ...)`): features of any shape.

    Returns:
        `Tensor` of shape `(B, D)`.
    """
    flat = features.flatten(1)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    directed = length > _SHORTEST
    return torch.where(directed, flat / torch.where(directed, length, 1.0), 0.0)


def feature_distance(first: Tensor, second: Tensor, distance: str = "euclidean", normalise: bool = False) -> Tensor:
    """
    How far apart two features of a row are.

    Args:
        first, second (`Tensor` of shape `(B, ...)`): features, flattened row by row.
        distance (`str`, *optional*, defaults to `"euclidean"`): `"euclidean"`, or `"cosine"`: one minus the cosine of
            the angle, in [0, 2].
        normalise (`bool`, *optional*, defaults to `False`): divide each row by its length first. The cosine always
            does.

    Returns:
        `Tensor` of shape `(B,)`. Where both are equal, up to rounding (`1e-5` of the longer one's length; in float64
        `1e-12`), the Euclidean distance is 0, with a gradient of 0: of the direction nothing is left there.

    Raises:
        ValueError: for an unknown `distance`.
    """
    if distance not in FEATURE_DISTANCES:
        raise ValueError(
            f"distance={distance!r} is not known; choose one of {', '.join(map(repr, FEATURE_DISTANCES))}."
        )
    if distance == "cosine":
        return 1 - (unit_vectors(first) * unit_vectors(second)).sum(dim=1)
    if normalise:
        first, second = unit_vectors(first), unit_vectors(second)
    difference = (first - second).flatten(1)
    length = torch.maximum(first.detach().flatten(1).norm(dim=1), second.detach().flatten(1).norm(dim=1))
    differs = difference.detach().norm(dim=1) > length * (1e-12 if length.dtype == torch.float64 else 1e-5)
    return torch.linalg.vector_norm(torch.where(differs.unsqueeze(1), difference, 0.0), dim=1)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """
    Jensen-Shannon divergence between the class probabilities of two rows of logits.

    `JSD(P, Q) = KL(P, M) / 2 + KL(Q, M) / 2` with `M = (P + Q) / 2`, from log-probabilities throughout, so that it has
    its gradient for confident rows as well.

    Args:
        first, second (`Tensor` of shape `(B, K)`): logits.

    Returns:
        `Tensor` of shape `(B,)`, in nats, in [0, ln 2].

    Source: Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory, 1991.
    """
    log_first, log_second = first.log_softmax(dim=1), second.log_softmax(dim=1)
    log_middle = torch.logaddexp(log_first, log_second) - math.log(2)
    terms = log_first.exp() * (log_first - log_middle) + log_second.exp() * (log_second - log_middle)
    return 0.5 * terms.sum(dim=1)
