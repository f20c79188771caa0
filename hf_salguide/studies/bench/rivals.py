"""How torchcam, captum and pytorch-grad-cam are asked for the maps that this package makes."""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...backbones import FeatureLayer, logits_of

Extractor = tuple[str, Callable[[], Tensor]]
DISTRIBUTIONS = {"torchcam": "torchcam", "captum": "captum", "pytorch-grad-cam": "grad-cam"}  # in a package index
MODULES = {"torchcam": "torchcam", "captum": "captum", "pytorch-grad-cam": "pytorch_grad_cam"}


class _Logits(nn.Module):
    """A classifier whose output is the logits, as other packages want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return logits_of(self.model(pictures))


class _Mapped(nn.Module):
    """A layer whose output passes through `maps` as `(B, C, h, w)`, for packages that know no other layout."""

    def __init__(self, module: nn.Module, layer: FeatureLayer) -> None:
        super().__init__()
        self.module = module
        self.layer = layer
        self.maps = nn.Identity()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        raw = self.module(*args, **kwargs)
        maps = self.maps(_as_maps(raw, self.layer))
        if self.layer.layout == "NHWC":
            return maps.permute(0, 2, 3, 1)
        return torch.cat([raw[:, : self.layer.num_prefix_tokens], maps.flatten(2).transpose(1, 2)], dim=1)


def _as_maps(raw: Tensor, layer: FeatureLayer) -> Tensor:
    """A layer's output as `(B, C, h, w)`."""
    if layer.layout == "NHWC":
        return raw.permute(0, 3, 1, 2)
    if layer.layout == "NLC":
        return raw[:, layer.num_prefix_tokens :].transpose(1, 2).unflatten(2, layer.grid)
    return raw


def torchcam_maps(model: nn.Module, layer: FeatureLayer, pictures: Tensor, target: int) -> Extractor:
    """torchcam's CAM where the head is exact, else its Grad-CAM; raw maps, not negative for Grad-CAM."""
    from torchcam.methods import CAM, GradCAM

    wrapped = _Logits(model)
    target_layer = model.get_submodule(layer.name)
    transform = None if layer.layout == "NCHW" else lambda raw: _as_maps(raw, layer)
    if layer.readout == "exact" and layer.head is not None:
        head = model.get_submodule(layer.head)
        extractor, method = CAM(wrapped, target_layer, head, reshape_transform=transform), "CAM"
    else:
        extractor, method = GradCAM(wrapped, target_layer, reshape_transform=transform), "Grad-CAM"

    def run() -> Tensor:
        with torch.set_grad_enabled(method != "CAM"):
            scores = wrapped(pictures)
        return extractor(target, scores, normalized=False)[0]

    return method, run


def captum_maps(model: nn.Module, layer: FeatureLayer, pictures: Tensor, target: int) -> Extractor:
    """captum's Grad-CAM, raw; tokens and channels-last maps are brought to its layout."""
    from captum.attr import LayerGradCam

    chosen = model.get_submodule(layer.name)
    if layer.layout != "NCHW":
        mapped = _Mapped(chosen, layer)
        model.set_submodule(layer.name, mapped)
        chosen = mapped.maps
    extractor = LayerGradCam(_Logits(model), chosen)
    return "Grad-CAM", lambda: extractor.attribute(pictures, target).squeeze(1)


def pytorch_grad_cam_maps(model: nn.Module, layer: FeatureLayer, pictures: Tensor, target: int) -> Extractor:
    """pytorch-grad-cam's Grad-CAM, which comes between 0 and 1, at the pictures' size, on the CPU."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    transform = None if layer.layout == "NCHW" else lambda raw: _as_maps(raw, layer)
    extractor = GradCAM(_Logits(model), [model.get_submodule(layer.name)], reshape_transform=transform)
    targets = [ClassifierOutputTarget(target)] * len(pictures)
    return "Grad-CAM", lambda: torch.from_numpy(extractor(pictures, targets))


RIVALS: dict[str, Callable[[nn.Module, FeatureLayer, Tensor, int], Extractor]] = {
    "torchcam": torchcam_maps,
    "captum": captum_maps,
    "pytorch-grad-cam": pytorch_grad_cam_maps,
}


def check_rivals(names: Sequence[str]) -> list[str]:
    """
    Which of the packages are installed.

    Raises:
        ValueError: for a package that is not known.
    """
    for name in names:
        if name not in RIVALS:
            raise ValueError(f'against="{name}" is not known; choose from {", ".join(RIVALS)}.')
    return [name for name in names if importlib.util.find_spec(MODULES[name]) is not None]


def rival_versions(names: Sequence[str]) -> dict[str, str]:
    """The installed versions of the packages."""
    return {name: importlib.metadata.version(DISTRIBUTIONS[name]) for name in names}
