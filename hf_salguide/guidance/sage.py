"""SAGE: embeddings near those of the picture that keeps what is salient, far from those of the one that loses it."""

from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..maps import FEATURE_DISTANCES, FILLS, composite, feature_distance, fill_pictures, has_place, jensen_shannon
from ..names import POOLED
from .base import BatchNorm, Guidance, GuidanceBatch, Pictures, check_choice, check_flag, check_positive, check_weight
from .registry import register_guidance


@register_guidance
class Sage(Guidance):
    """
    SAGE (Crum et al., "SAGE: Saliency-Guided Contrastive Embeddings", 2025, arXiv 2511.12744). The formula is
    reconstructed from the abstract; the authors' may differ.

    For each picture `x` with saliency `S`, two more are made of a degraded one, `T(x)`, the same in both:
    `x+ = S * x + (1 - S) * T(x)` keeps what is salient, `x- = (1 - S) * x + S * T(x)` loses it. With `e` the vector
    that the classifier's last layer reads, `z` the logits and `tau` the temperature, the term of a sample is

    `triplet_weight * max(0, d(e, e+) - d(e, e-) + margin)
    + alignment_weight * JSD(softmax(z / tau), softmax(z+ / tau))`,

    the Jensen-Shannon divergence in nats. Rows with empty, full or otherwise constant saliency count 0. Inverted
    saliency swaps `x+` and `x-`. A weak blur is a poor choice of `T`: what is degraded can still be seen.

    Args:
        fill (`str`, *optional*, defaults to `"shuffle"`): `T`: `"shuffle"` (one permutation of the whole picture),
            `"zero"`, `"mean"`, `"noise"` or `"blur"`, see [`~maps.fill_pictures`].
        sigma (`float`, *optional*, defaults to 16.0): standard deviation of `"blur"`, in pixels.
        margin (`float`, *optional*, defaults to 1.0): how much nearer `e+` is to be than `e-`, above 0.
        temperature (`float`, *optional*, defaults to 2.0): `tau`, above 0.
        triplet_weight, alignment_weight (`float`, *optional*, default to 1.0): of the two parts; not both 0.
        distance (`str`, *optional*, defaults to `"euclidean"`): `d`, `"euclidean"` or `"cosine"`.
        normalise (`bool`, *optional*, defaults to `False`): divide each embedding by its length first.
        hard (`bool`, *optional*, defaults to `False`): take saliency as 1 where it is at least 1/2, and 0 elsewhere.
        stop_gradient (`bool`, *optional*, defaults to `False`): no gradient through `e` and `z`.
        degrade_weight (`float`, *optional*, defaults to 0.0): of a third part,
            `JSD(softmax(z- / tau), uniform)`: a picture without what is salient should not be told apart.
        cross_entropy_weight (`float`, *optional*, defaults to 0.0): of a fourth part, the cross-entropy of `z+`.
        batch_norm (`str`, *optional*, defaults to `"pictures"`): see [`Guidance`].
    """

    name: ClassVar[str] = "sage"
    paper: ClassVar[str] = "Crum et al., SAGE: Saliency-Guided Contrastive Embeddings, 2025, arXiv 2511.12744"
    formula: ClassVar[str] = "max(0, d(e, e+) - d(e, e-) + margin) + JSD(softmax(z/tau), softmax(z+/tau))"
    reconstructed: ClassVar[bool] = True
    cost: ClassVar[str] = "views"
    draws: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = False
    layers: tuple[str, ...] = (POOLED,)

    def __init__(
        self,
        fill: str = "shuffle",
        sigma: float = 16.0,
        margin: float = 1.0,
        temperature: float = 2.0,
        triplet_weight: float = 1.0,
        alignment_weight: float = 1.0,
        distance: str = "euclidean",
        normalise: bool = False,
        hard: bool = False,
        stop_gradient: bool = False,
        degrade_weight: float = 0.0,
        cross_entropy_weight: float = 0.0,
        batch_norm: BatchNorm = "pictures",
    ) -> None:
        self.fill = check_choice("fill", fill, FILLS)
        self.sigma = check_positive("sigma", sigma)
        self.margin = check_positive("margin", margin)
        self.temperature = check_positive("temperature", temperature)
        self.triplet_weight = check_weight("triplet_weight", triplet_weight)
        self.alignment_weight = check_weight("alignment_weight", alignment_weight)
        if self.triplet_weight == self.alignment_weight == 0:
            raise ValueError("triplet_weight=0 and alignment_weight=0 leave no saliency guidance; give one a weight.")
        self.distance = check_choice("distance", distance, FEATURE_DISTANCES)
        self.normalise = check_flag("normalise", normalise)
        self.hard = check_flag("hard", hard)
        self.stop_gradient = check_flag("stop_gradient", stop_gradient)
        self.degrade_weight = check_weight("degrade_weight", degrade_weight)
        self.cross_entropy_weight = check_weight("cross_entropy_weight", cross_entropy_weight)
        self.batch_norm = check_choice("batch_norm", batch_norm, get_args(BatchNorm))

    def _matte(self, saliency: Tensor) -> Tensor:
        return (saliency >= 0.5).to(saliency.dtype) if self.hard else saliency

    def views(self, pictures: Pictures) -> list[Tensor]:
        pixels, matte = pictures.pixel_values.detach(), self._matte(pictures.saliency)
        degraded = fill_pictures(pixels, pictures.uniform, self.fill, self.sigma)
        return [composite(matte, pixels, degraded), composite(1 - matte, pixels, degraded)]

    def terms(self, batch: GuidanceBatch) -> Tensor:
        if not batch.views:  # no row counts
            return batch.logits.new_zeros(len(batch.logits))
        kept, lost = batch.views
        anchor, logits = batch.of_annotated(batch.features[POOLED]), batch.of_annotated(batch.logits)
        if self.stop_gradient:
            anchor, logits = anchor.detach(), logits.detach()
        near = feature_distance(anchor, kept.features[POOLED], self.distance, self.normalise)
        far = feature_distance(anchor, lost.features[POOLED], self.distance, self.normalise)
        terms = self.triplet_weight * F.relu(near - far + self.margin)
        terms = terms + self.alignment_weight * jensen_shannon(
            logits / self.temperature, kept.logits / self.temperature
        )
        if self.degrade_weight:
            uniform = torch.zeros_like(lost.logits)
            terms = terms + self.degrade_weight * jensen_shannon(lost.logits / self.temperature, uniform)
        if self.cross_entropy_weight:
            labels = batch.of_annotated(batch.labels)
            terms = terms + self.cross_entropy_weight * F.cross_entropy(kept.logits, labels, reduction="none")
        placed = has_place(batch.of_annotated(self._matte(batch.saliency)))
        return batch.to_batch(torch.where(placed, terms, 0.0))
