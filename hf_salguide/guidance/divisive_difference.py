"""Divisive Decisions, the difference: the map of the decision is pulled to the human saliency map."""

from typing import ClassVar

from .map_guidance import MapGuidance
from .registry import register_guidance


@register_guidance
class DivisiveDifference(MapGuidance):
    """
    Training with the Difference Salience (Jacob Piland, Christopher Sweet, Adam Czajka, "Divisive Decisions", arXiv
    2507.17000): `mean((N(Ct - Cf) - S)^2)`.

    Formula reconstructed from the abstract and Figure 1; the authors' may differ. The figure subtracts the
    unnormalised map of the false class, `Cf`, from that of the true one, `Ct`; the min-max `N` comes after. The
    difference is the map of the decision: what is in both maps does not reach the softmax, so [`Cyborg`] can be
    satisfied without changing what the model decides by, and this cannot.

    The paper is binary; with more classes the false one is put together by `rival`, our choice. A row counts 0 where
    the two classes have the same map (a head of zeros), where its mask is empty or full, or where there is none.
    Min-max is blind to the sign of the difference; `positive=True` is not.

    Args:
        distance (`str`, *optional*, defaults to `"mse"`): see [`MapGuidance`].
        rival (`str`, *optional*, defaults to `"softmax"`): what makes up the false class, `"softmax"`, `"max"` or
            `"mean"`, see [`MapGuidance`].
        resize (`str`, *optional*, defaults to `"area"`): how saliency gets to the grid, `"area"` or `"bilinear"`.
        positive (`bool`, *optional*, defaults to `False`): `relu(Ct - Cf) / max(Ct - Cf)` in place of min-max.
    """

    name: ClassVar[str] = "divisive_difference"
    paper: ClassVar[str] = "Piland, Sweet, Czajka, Divisive Decisions, arXiv 2507.17000"
    formula: ClassVar[str] = "mean((minmax(CAM_y - CAM_other) - minmax(S))^2)"
    reconstructed: ClassVar[bool] = True

    def __init__(
        self, distance: str = "mse", rival: str = "softmax", resize: str = "area", positive: bool = False
    ) -> None:
        super().__init__("difference", "saliency", distance, rival, resize, positive)
