"""Divisive Decisions, the complement: the true class's map to the human one, the false class's to its complement."""

from typing import ClassVar

from .map_guidance import MapGuidance
from .registry import register_guidance


@register_guidance
class DivisiveComplement(MapGuidance):
    """
    Training with the maps of the true and the false class (Jacob Piland, Christopher Sweet, Adam Czajka, "Divisive
    Decisions", arXiv 2507.17000): `(mean((N(Ct) - S)^2) + mean((N(Cf) - (1 - S))^2)) / 2`.

    Formula reconstructed from the abstract and Figure 1; the authors' may differ. The map of the true class, `Ct`,
    is pulled to human saliency and that of the false class, `Cf`, away from it: "the true and false CAMs should
    diverge on the important classification features identified by humans".

    The paper is binary; with more classes the false one is put together by `rival`, our choice. A row counts 0 where
    either map is constant, where its mask is empty or full, or where there is none.

    Args:
        distance (`str`, *optional*, defaults to `"mse"`): see [`MapGuidance`].
        rival (`str`, *optional*, defaults to `"softmax"`): what makes up the false class, `"softmax"`, `"max"` or
            `"mean"`, see [`MapGuidance`].
        resize (`str`, *optional*, defaults to `"area"`): how saliency gets to the grid, `"area"` or `"bilinear"`.
    """

    name: ClassVar[str] = "divisive_complement"
    paper: ClassVar[str] = "Piland, Sweet, Czajka, Divisive Decisions, arXiv 2507.17000"
    formula: ClassVar[str] = (
        "(mean((minmax(CAM_y) - minmax(S))^2) + mean((minmax(CAM_other) - (1 - minmax(S)))^2)) / 2"
    )
    reconstructed: ClassVar[bool] = True

    def __init__(self, distance: str = "mse", rival: str = "softmax", resize: str = "area") -> None:
        super().__init__(["true", "false"], ["saliency", "complement"], distance, rival, resize)
