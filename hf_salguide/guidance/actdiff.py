"""ActDiff: the features stay the same when what people did not mark is destroyed."""

from collections.abc import Sequence
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ..maps import FILLS, degrade_outside, feature_distance
from ..names import POOLED
from .base import BatchNorm, Guidance, GuidanceBatch, Pictures, check_choice, check_flag, check_positive
from .registry import register_guidance


@register_guidance
class ActDiff(Guidance):
    """
    ActDiff (Viviano, Simpson, Dutil, Bengio, Cohen, "Saliency is a Possible Red Herring When Diagnosing Poor
    Generalization", ICLR 2021, arXiv 1910.00199; its first version is "Underwhelming Generalization Improvements From
    Controlling Feature Attribution").

    For sample `i`, `|| a(x~_i) - a(x_i) ||_2`: `a` is the vector that the classifier's last layer reads, and
    `x~ = S * x + (1 - S) * P(x)`, where `P` permutes the pixels outside, `S < 1/2`, among themselves and is the
    identity inside. The permutation is drawn anew in every step. The gradient flows through both branches.

    Where it departs from the authors' code: the weight is applied (the code of the ICLR paper adds the term as it is,
    so all its numbers have the weight 1, the default here); soft maps stay soft (the code takes whatever is not
    exactly 1 as outside); pixels move with all their channels; the pictures' batch statistics are not mixed with those
    of the destroyed ones; a row's distance over a feature map is that of the flattened map (the code of the first
    version takes the mean of the norms of the map's lines).

    Args:
        layers (`str` or `list[str]`, *optional*, defaults to `"pooled"`): the features that are compared, `"pooled"`
            or names of modules; the term is the mean over them.
        fill (`str`, *optional*, defaults to `"shuffle"`): what is put outside, `"shuffle"`, `"zero"`, `"mean"`,
            `"noise"` or `"blur"`, see [`~maps.fill_pictures`].
        sigma (`float`, *optional*, defaults to 16.0): standard deviation of `"blur"`, in pixels.
        stop_gradient (`str`, *optional*): the branch that gets no gradient, `"picture"` or `"view"`; none by default.
        normalise (`bool`, *optional*, defaults to `False`): divide each feature by its length first.
        batch_norm (`str`, *optional*, defaults to `"pictures"`): see [`Guidance`].
    """

    name: ClassVar[str] = "actdiff"
    paper: ClassVar[str] = (
        "Viviano et al., Saliency is a Possible Red Herring When Diagnosing Poor Generalization, ICLR 2021, "
        "arXiv 1910.00199"
    )
    formula: ClassVar[str] = "||a(x~) - a(x)||_2, x~ = S*x + (1-S)*shuffle(x)"
    cost: ClassVar[str] = "views"
    draws: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = False

    def __init__(
        self,
        layers: str | Sequence[str] = POOLED,
        fill: str = "shuffle",
        sigma: float = 16.0,
        stop_gradient: str | None = None,
        normalise: bool = False,
        batch_norm: BatchNorm = "pictures",
    ) -> None:
        names = [layers] if isinstance(layers, str) else layers
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f'layers={layers!r}: give "pooled", or a list of names of modules.')
        self.layers = tuple(names)
        self.fill = check_choice("fill", fill, FILLS)
        self.sigma = check_positive("sigma", sigma)
        if stop_gradient is not None:
            check_choice("stop_gradient", stop_gradient, ("picture", "view"))
        self.stop_gradient = stop_gradient
        self.normalise = check_flag("normalise", normalise)
        self.batch_norm = check_choice("batch_norm", batch_norm, get_args(BatchNorm))

    def views(self, pictures: Pictures) -> list[Tensor]:
        pixels = pictures.pixel_values.detach()
        return [degrade_outside(pixels, pictures.saliency, pictures.uniform, self.fill, self.sigma)]

    def terms(self, batch: GuidanceBatch) -> Tensor:
        if not batch.views:  # no row counts
            return batch.logits.new_zeros(len(batch.logits))
        distances = []
        for layer in self.layers:
            picture, view = batch.of_annotated(batch.features[layer]), batch.views[0].features[layer]
            picture = picture.detach() if self.stop_gradient == "picture" else picture
            view = view.detach() if self.stop_gradient == "view" else view
            distances.append(feature_distance(view, picture, normalise=self.normalise))
        return batch.to_batch(torch.stack(distances).mean(dim=0))
