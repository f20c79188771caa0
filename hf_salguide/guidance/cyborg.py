"""CYBORG: the class activation map is pulled to the human saliency map."""

from typing import ClassVar

from .base import check_choice
from .map_guidance import MapGuidance
from .registry import register_guidance


@register_guidance
class Cyborg(MapGuidance):
    """
    CYBORG (Boyd, Tinsley, Bowyer, Czajka, "CYBORG: Blending Human Saliency Into the Loss Improves Deep Learning",
    WACV 2023, arXiv 2112.00686).

    For sample `i` with saliency `S_i`, `mean_{h, w} (N(CAM_i) - N(S_i))^2`: `N` is the min-max of each map by itself,
    `S_i` is resized to the grid of the model's map, and the paper's `alpha` and `1 - alpha` are `task_weight` and
    `guidance_weight`, 0.5 each by default.

    Where it departs from the authors' code: the map is that of the true class (the code takes the predicted one) and
    of the tensor that the head pools (the code hooks an earlier one, whose map is not the model's evidence); a
    constant map or mask counts 0 (the code divides by zero); the range has a floor ([`~maps.min_max`]). Any number of
    classes. Where the head is not an average and a linear layer, the map is Grad-CAM or HiResCAM.

    Args:
        cam_class (`str`, *optional*, defaults to `"true"`): whose map is guided, `"true"` or `"predicted"`.
        resize (`str`, *optional*, defaults to `"area"`): how saliency gets to the grid, `"area"` or `"bilinear"`.
        distance (`str`, *optional*, defaults to `"mse"`): another than the paper's, see [`MapGuidance`].
    """

    name: ClassVar[str] = "cyborg"
    paper: ClassVar[str] = "Boyd et al., CYBORG: Blending Human Saliency Into the Loss, WACV 2023, arXiv 2112.00686"
    formula: ClassVar[str] = "mean((minmax(CAM_y) - minmax(S))^2)"

    def __init__(self, cam_class: str = "true", resize: str = "area", distance: str = "mse") -> None:
        self.cam_class = check_choice("cam_class", cam_class, ("true", "predicted"))
        super().__init__(map=cam_class, target="saliency", distance=distance, resize=resize)
