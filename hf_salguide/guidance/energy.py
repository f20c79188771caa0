"""Energy: the positive evidence for the class is to lie inside the human saliency map."""

from typing import ClassVar

from .base import check_choice
from .map_guidance import MapGuidance
from .registry import register_guidance


@register_guidance
class Energy(MapGuidance):
    """
    The energy loss (Rao, Böhle, Parchami-Araghi, Schiele, "Studying How to Efficiently and Effectively Guide Models
    with Explanations", ICCV 2023, arXiv 2303.11932): `1 - sum(relu(CAM_y) * S) / sum(relu(CAM_y))`.

    `S` is resized to the map's grid and min-maxed; an empty or a full mask stays as it is. The map is not normalised:
    the share has no scale, and where evidence lies inside is left to the model.

    The paper's masks are bounding boxes and its models have several labels a picture; here the map is that of the one
    true class, and soft masks stay soft. A map that is nowhere positive counts 0, with a gradient of 0; close to that
    the share has a floor ([`~maps.energy_outside`]). A full mask counts 0. An empty one, with
    `empty_mask="penalise_all"`, counts 1 whatever the map: a share of 1 cannot be lowered by moving evidence, so its
    gradient is 0 too.

    Args:
        cam_class (`str`, *optional*, defaults to `"true"`): whose map is guided, `"true"` or `"predicted"`.
        resize (`str`, *optional*, defaults to `"area"`): how saliency gets to the grid, `"area"` or `"bilinear"`.
    """

    name: ClassVar[str] = "energy"
    paper: ClassVar[str] = (
        "Rao et al., Studying How to Efficiently and Effectively Guide Models, ICCV 2023, arXiv 2303.11932"
    )
    formula: ClassVar[str] = "1 - sum(relu(CAM_y) * minmax(S)) / sum(relu(CAM_y))"
    default_weight: ClassVar[float] = 1.0
    default_task_weight: ClassVar[float] = 1.0
    accepts_empty_masks: ClassVar[bool] = True

    def __init__(self, cam_class: str = "true", resize: str = "area") -> None:
        self.cam_class = check_choice("cam_class", cam_class, ("true", "predicted"))
        super().__init__(map=cam_class, target="saliency", distance="energy_outside", resize=resize)
