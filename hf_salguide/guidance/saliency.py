"""From a collated batch to the saliency that guidance methods see."""

import torch
from torch import Tensor


def batch_saliency(
    pixel_values: Tensor,
    saliency: Tensor | None,
    has_saliency: Tensor | None,
    empty_mask: str = "skip",
    reduced: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Brings a batch's saliency to float32 in [0, 1], and says which rows count.

    *Not annotated* and *annotated with an empty mask* are different things: `has_saliency` tells the first,
    `empty_mask` what the second means.

    Args:
        pixel_values (`Tensor` of shape `(B, C, H, W)`): the pictures.
        saliency (`Tensor` of shape `(B, H, W)`, *optional*): uint8 in 0 to 255, bool, or float in [0, 1].
        has_saliency (`Tensor` of shape `(B,)`, *optional*): boolean, which rows are annotated.
        empty_mask (`str`, *optional*, defaults to `"skip"`): `"skip"`: rows with an empty mask do not count;
            `"penalise_all"`: they do, and everything is outside.
        reduced (`tuple[int, int]`, *optional*): `(h, w)`, another size than the picture's that saliency may have: the
            one that the collator has been told to reduce it to.

    Returns:
        `tuple` of the saliency, `(B, H, W)` or `(B, h, w)` float32, and a boolean `(B,)`, `True` in rows that count.
        Without saliency in the batch no row counts.

    Raises:
        ValueError: if one of `saliency` and `has_saliency` is missing, or the saliency is of another type or size.
    """
    shape = (len(pixel_values), pixel_values.shape[-2], pixel_values.shape[-1])
    if saliency is None and has_saliency is None:
        nobody = torch.zeros(shape[0], dtype=torch.bool, device=pixel_values.device)
        return torch.zeros(shape, device=pixel_values.device), nobody
    if saliency is None or has_saliency is None:
        raise ValueError(
            'data_collator: a batch needs both "saliency" and "has_saliency", or neither; SaliencyCollator gives both.'
        )
    if saliency.shape not in (shape, shape if reduced is None else (shape[0], *reduced)):
        raise ValueError(
            f"saliency has shape {tuple(saliency.shape)} for pixel_values of shape {tuple(pixel_values.shape)}; it "
            f"needs {shape}: bring both to the same size in the transform."
        )
    if saliency.dtype not in (torch.uint8, torch.bool) and not saliency.is_floating_point():
        raise ValueError(f"saliency is {saliency.dtype}; it needs uint8 in 0 to 255, bool, or float in [0, 1].")
    saliency = saliency.float() / 255 if saliency.dtype == torch.uint8 else saliency.float()
    counts = has_saliency.bool()
    if empty_mask == "skip":
        counts = counts & (saliency.amax(dim=(1, 2)) > 0)
    return saliency, counts
