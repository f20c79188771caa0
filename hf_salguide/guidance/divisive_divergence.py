"""Divisive Decisions, the divergence: the normalised maps of the two classes differ where people looked."""

from typing import ClassVar

from .base import check_flag
from .map_guidance import MapGuidance
from .registry import register_guidance


@register_guidance
class DivisiveDivergence(MapGuidance):
    """
    Training with the divergence of the maps of the true and the false class (Jacob Piland, Christopher Sweet, Adam
    Czajka, "Divisive Decisions", arXiv 2507.17000): `mean((|N(Ct) - N(Cf)| - S)^2)`.

    Formula reconstructed from the abstract and Figure 1; the authors' may differ. Each map is normalised by itself
    before they are subtracted, unlike in [`DivisiveDifference`].

    Which of the two maps is the higher one is left open, and with it which class the evidence is for: where
    `Cf = -Ct`, both ends of `N(Ct)`, its lowest cells and its highest, count as divergence. Training is less stable
    than with the other two; `signed=True` asks for the true class's map to be the higher one.

    The paper is binary; with more classes the false one is put together by `rival`, our choice. A row counts 0 where
    either map is constant or both are the same, where its mask is empty or full, or where there is none.

    Args:
        distance (`str`, *optional*, defaults to `"mse"`): see [`MapGuidance`].
        rival (`str`, *optional*, defaults to `"softmax"`): what makes up the false class, `"softmax"`, `"max"` or
            `"mean"`, see [`MapGuidance`].
        resize (`str`, *optional*, defaults to `"area"`): how saliency gets to the grid, `"area"` or `"bilinear"`.
        signed (`bool`, *optional*, defaults to `False`): `relu(N(Ct) - N(Cf))` in place of the absolute value.
    """

    name: ClassVar[str] = "divisive_divergence"
    paper: ClassVar[str] = "Piland, Sweet, Czajka, Divisive Decisions, arXiv 2507.17000"
    formula: ClassVar[str] = "mean((|minmax(CAM_y) - minmax(CAM_other)| - minmax(S))^2)"
    reconstructed: ClassVar[bool] = True

    def __init__(
        self, distance: str = "mse", rival: str = "softmax", resize: str = "area", signed: bool = False
    ) -> None:
        self.signed = check_flag("signed", signed)
        map = "one_sided_difference" if signed else "absolute_difference"
        super().__init__(map, "saliency", distance, rival, resize)
