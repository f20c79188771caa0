"""
Faithfulness of a map to the model: does the score fall when the pixels that the map ranks highest are taken away?

No annotation is needed, but `steps + 1` forwards a picture are: these are not among the measures of every evaluation.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..maps import gaussian_blur, min_max

Baseline = Literal["blur", "mean", "zero"]


def deletion(
    function: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    maps: Tensor,
    labels: Tensor | None = None,
    steps: int = 32,
    baseline: Baseline = "mean",
    sigma: float = 5.0,
) -> Tensor:
    """
    Deletion: area under the class's probability while pixels are removed, the highest of the map first. Low is good.

    Source: Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
    arXiv 1806.07421.

    Example:

    ```python
    >>> deletion(lambda pixel_values: model(pixel_values=pixel_values).logits, pixel_values, maps, labels)
    ```

    Args:
        function (`Callable`): from pictures `(B, C, H, W)` to logits `(B, K)`; the model in evaluation mode.
        pixel_values (`Tensor` of shape `(B, C, H, W)`): the prepared pictures.
        maps (`Tensor` of shape `(B, h, w)`): raw maps, upsampled bilinearly; their order alone counts, and pixels that
            tie go in reading order.
        labels (`Tensor` of shape `(B,)`, *optional*): whose probability is followed. Defaults to the classes predicted
            for the whole pictures, for one more forward.
        steps (`int`, *optional*, defaults to 32): equal steps from all pixels to none; the source takes a row of
            pixels at a time (224 for pictures of 224 px).
        baseline (`str`, *optional*, defaults to `"mean"`): what a removed pixel becomes. `"mean"`: the picture's mean
            colour; `"zero"`: 0, after the usual normalisation the mean colour of the data, as in the source; `"blur"`:
            the pixel of the blurred picture, which leaves no sharp edge but does not remove what is coarse.
        sigma (`float`, *optional*, defaults to 5.0): standard deviation of `"blur"`, in pixels.

    Returns:
        `Tensor` of shape `(B,)` in [0, 1], by the trapezoidal rule over the removed fraction; NaN where the map is
        constant or not finite, which ranks no pixel.

    Raises:
        ValueError: for an unknown `baseline`, `steps` under 1, shapes that do not fit, or a `function` that does not
            give logits of two classes or more.
    """
    removed = _baseline(pixel_values, baseline, sigma)
    return _area(
        probability_curve(function, pixel_values, removed, maps, _followed(function, pixel_values, labels), steps)
    )


def insertion(
    function: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    maps: Tensor,
    labels: Tensor | None = None,
    steps: int = 32,
    baseline: Baseline = "blur",
    sigma: float = 5.0,
) -> Tensor:
    """
    Insertion: area under the class's probability while pixels are put back, the highest of the map first. High is
    good.

    Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018, arXiv 1806.07421.

    Args:
        function (`Callable`): from pictures `(B, C, H, W)` to logits `(B, K)`; the model in evaluation mode.
        pixel_values (`Tensor` of shape `(B, C, H, W)`): the prepared pictures.
        maps (`Tensor` of shape `(B, h, w)`): raw maps, see [`deletion`].
        labels (`Tensor` of shape `(B,)`, *optional*): whose probability is followed, see [`deletion`].
        steps (`int`, *optional*, defaults to 32): equal steps from no pixel to all.
        baseline (`str`, *optional*, defaults to `"blur"`): what the pixels are put back into, see [`deletion`]; the
            source blurs, as the edges of the first pixels on an even ground look like objects.
        sigma (`float`, *optional*, defaults to 5.0): standard deviation of `"blur"`, in pixels; the source's.

    Returns:
        `Tensor` of shape `(B,)` in [0, 1], by the trapezoidal rule over the inserted fraction; NaN where the map is
        constant or not finite.

    Raises:
        ValueError: see [`deletion`].
    """
    start = _baseline(pixel_values, baseline, sigma)
    return _area(
        probability_curve(function, start, pixel_values, maps, _followed(function, pixel_values, labels), steps)
    )


@torch.no_grad()
def probability_curve(
    function: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, maps: Tensor, labels: Tensor, steps: int = 32
) -> Tensor:
    """
    Probability of a class while a picture turns into another, pixel by pixel, the highest of the map first.

    Args:
        function (`Callable`): from pictures `(B, C, H, W)` to logits `(B, K)`.
        start, end (`Tensor` of shape `(B, C, H, W)`): the pictures before the first and after the last step.
        maps (`Tensor` of shape `(B, h, w)`): raw maps, upsampled bilinearly to the pictures' size.
        labels (`Tensor` of shape `(B,)`): whose probability is followed.
        steps (`int`, *optional*, defaults to 32): steps of `H * W / steps` pixels, rounded.

    Returns:
        `Tensor` of shape `(B, steps + 1)`, probabilities after `0, 1 / steps, ..., 1` of the pixels; NaN in the rows
        whose map is constant or not finite.

    Raises:
        ValueError: for `steps` under 1, shapes that do not fit, or a `function` that does not give logits of two
            classes or more.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} is too few; one step at least takes all pixels at once.")
    if maps.ndim != 3 or len(maps) != len(start):
        raise ValueError(f"maps has the shape {tuple(maps.shape)}; {len(start)} pictures need ({len(start)}, h, w).")
    normalized, shaped = min_max(maps.float())
    upsampled = F.interpolate(normalized.unsqueeze(1), start.shape[-2:], mode="bilinear", align_corners=False)
    ranks = upsampled.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    ranks = ranks.reshape(len(start), 1, *start.shape[-2:])
    pixels = ranks[0].numel() if len(ranks) else 0
    curve = [
        _probability(function, torch.where(ranks < round(step * pixels / steps), end, start), labels)
        for step in range(steps + 1)
    ]
    return torch.where(shaped.unsqueeze(1), torch.stack(curve, dim=1), torch.nan)


def _area(curve: Tensor) -> Tensor:
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def _baseline(pixel_values: Tensor, baseline: str, sigma: float) -> Tensor:
    if baseline == "blur":
        return gaussian_blur(pixel_values, sigma)
    if baseline == "mean":
        return pixel_values.mean(dim=(2, 3), keepdim=True).expand_as(pixel_values)
    if baseline == "zero":
        return torch.zeros_like(pixel_values)
    raise ValueError(f'baseline="{baseline}" is not known; choose "blur", "mean" or "zero".')


@torch.no_grad()
def _followed(function: Callable[[Tensor], Tensor], pixel_values: Tensor, labels: Tensor | None) -> Tensor:
    return _logits(function, pixel_values).argmax(dim=1) if labels is None else labels


def _logits(function: Callable[[Tensor], Tensor], pixel_values: Tensor) -> Tensor:
    logits = function(pixel_values)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2 or len(logits) != len(pixel_values):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"function gave {given}; it has to give logits ({len(pixel_values)}, K) with K >= 2, as "
            "`lambda pixel_values: model(pixel_values=pixel_values).logits` does."
        )
    return logits


def _probability(function: Callable[[Tensor], Tensor], pixel_values: Tensor, labels: Tensor) -> Tensor:
    probabilities = _logits(function, pixel_values).float().softmax(dim=1)
    return probabilities.gather(1, labels.to(probabilities.device).unsqueeze(1)).squeeze(1)
