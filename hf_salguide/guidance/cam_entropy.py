"""CAM entropy: the model's map is to be focused, wherever it looks."""

from typing import ClassVar

from torch import Tensor

from ..maps import entropy
from .base import GuidanceBatch, Resolution, check_choice
from .map_guidance import MapGuidance
from .registry import register_guidance


@register_guidance
class CamEntropy(MapGuidance):
    """
    The entropy of the class activation map (Jacob Piland, Adam Czajka, Christopher Sweet, "Improving Model's Focus
    Improves Performance of Deep Learning-Based Synthetic Face Detectors", arXiv 2303.00818): `-sum(q ln q)` with
    `q = N(CAM_y) / sum(N(CAM_y))`, in nats, `N` the min-max of each map by itself.

    Formula reconstructed from the abstract; the authors', who compare several, may differ. It reads no saliency:
    every row counts but those with a constant map, and it goes well with another method where only some of the
    pictures are annotated.

    Args:
        cam_class (`str`, *optional*, defaults to `"true"`): whose map is guided, `"true"` or `"predicted"`.
    """

    name: ClassVar[str] = "cam_entropy"
    paper: ClassVar[str] = "Piland, Czajka, Sweet, Improving Model's Focus Improves Performance, arXiv 2303.00818"
    formula: ClassVar[str] = "-sum(q ln q), q = minmax(CAM_y) / sum(minmax(CAM_y))"
    reconstructed: ClassVar[bool] = True
    default_weight: ClassVar[float] = 0.1
    default_task_weight: ClassVar[float] = 1.0
    needs_annotation: ClassVar[bool] = False

    def __init__(self, cam_class: str = "true") -> None:
        self.cam_class = check_choice("cam_class", cam_class, ("true", "predicted"))
        super().__init__(map=cam_class)

    @property
    def saliency_at(self) -> Resolution:
        # It reads none; who overrides one of these may.
        readers = {"terms": CamEntropy, "read_map": MapGuidance, "class_weights": MapGuidance}
        own = all(getattr(type(self), name) is getattr(kind, name) for name, kind in readers.items())
        return "grid" if own else "picture"

    def terms(self, batch: GuidanceBatch) -> Tensor:
        maps, _ = self.read_map(batch, self.cam_class)  # zeros where it is constant: their entropy is 0
        return entropy(maps)
