"""Saliency maps against a plain forward, and against what torchcam, captum and pytorch-grad-cam take for them."""

import copy
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...backbones import FeatureLayer, logits_of, resolve_feature_layer, saliency_maps
from .rivals import RIVALS
from .setting import BenchSetting
from .timing import check_clock, check_repeats, interleaved, ratio_of

OURS = "hf_salguide"
TARGET = 0  # the class of all maps


@dataclass(frozen=True)
class ExtractionResult:
    """
    The cost of the maps of a batch.

    Attributes:
        model (`str`), device (`str`), image_size (`int`), batch_size (`int`): what was measured.
        library (`str`): `"hf_salguide"`, or the name of another package.
        method (`str`): its way to the map, such as `"CAM"`.
        readout (`str`): how the head reads the layer of the maps.
        precision (`str`): `"float32"` or `"bfloat16"`.
        clock (`str`): `"cpu"`, the process's CPU time, or `"wall"`.
        forward_ms, maps_ms (`float`): median milliseconds of a plain forward without gradients, and of the maps, the
            forward included.
        rate (`float`): pictures a second, by the median.
        forward_ratio, forward_ratio_low, forward_ratio_high (`float`): median over the repeats, and quartiles, of the
            maps over the plain forward.
        ours_ratio, ours_ratio_low, ours_ratio_high (`float`): the same of this package's maps over this library's.
        repeats (`int`): how many turns.
    """

    model: str
    device: str
    image_size: int
    batch_size: int
    library: str
    method: str
    readout: str
    precision: str
    clock: str
    forward_ms: float
    maps_ms: float
    rate: float
    forward_ratio: float
    forward_ratio_low: float
    forward_ratio_high: float
    ours_ratio: float
    ours_ratio_low: float
    ours_ratio_high: float
    repeats: int


def bench_extraction(
    setting: BenchSetting,
    against: Sequence[str] = (),
    repeats: int = 20,
    clock: str | None = None,
    report: Callable[[str], object] | None = None,
) -> list[ExtractionResult]:
    """
    Measures the maps of one class for a batch, in evaluation mode, the feature layer known beforehand: ours without
    gradients, the others by class activation maps where the package has them and the head allows it, and by Grad-CAM
    otherwise, each from a copy of the model. All take turns with a plain forward.

    Args:
        setting ([`BenchSetting`]): backbone, picture and batch size; it is not compiled.
        against (sequence of `str`, *optional*): `"torchcam"`, `"captum"`, `"pytorch-grad-cam"`, which are installed.
        repeats (`int`, *optional*, defaults to 20): turns.
        clock (`str`, *optional*): `"cpu"` or `"wall"`, see [`~timing.check_clock`].
        report (`Callable`, *optional*): told of packages that fail on the model, which are left out.

    Returns:
        `list` of [`ExtractionResult`], ours first.

    Raises:
        ValueError: for fewer than one repeat, and an unknown clock.
    """
    check_repeats(repeats)
    taken = check_clock(clock, setting.device)
    model = setting.build().to(setting.device).eval()
    layer = resolve_feature_layer(model, setting.image_size)
    pictures = setting.batch()["pixel_values"]
    runners, methods = extractors(model, layer, pictures, against, report)
    for name, run in runners.items():
        runners[name] = partial(_autocast, run, setting)
    times = interleaved(runners, repeats, taken, setting.device, description=f"{setting.name}, maps")
    results = []
    for library, method in methods.items():
        forward, ours = ratio_of(times[library], times["forward"]), ratio_of(times[OURS], times[library])
        median = statistics.median(times[library])
        results.append(
            ExtractionResult(
                model=setting.name,
                device=setting.device,
                image_size=setting.image_size,
                batch_size=setting.batch_size,
                library=library,
                method=method,
                readout=layer.readout,
                precision=setting.precision,
                clock=taken,
                forward_ms=1000 * statistics.median(times["forward"]),
                maps_ms=1000 * median,
                rate=setting.batch_size / median,
                forward_ratio=forward.median,
                forward_ratio_low=forward.low,
                forward_ratio_high=forward.high,
                ours_ratio=ours.median,
                ours_ratio_low=ours.low,
                ours_ratio_high=ours.high,
                repeats=repeats,
            )
        )
    del runners
    gc.collect()
    return results


def extractors(
    model: nn.Module,
    layer: FeatureLayer,
    pictures: Tensor,
    against: Sequence[str],
    report: Callable[[str], object] | None = None,
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """
    What takes turns: the plain forward as `"forward"`, and each library's maps of class 0, `(B, ...)`.

    Args:
        model (`nn.Module`): a classifier in evaluation mode.
        layer ([`FeatureLayer`]): of the maps.
        pictures (`Tensor` of shape `(B, C, H, W)`): prepared pictures.
        against (sequence of `str`): the other packages.
        report (`Callable`, *optional*): told of those that fail on the model, which are left out.

    Returns:
        Two `dict`: from a name to a callable, and from a library to the name of its way to the map.
    """

    def forward() -> Tensor:
        with torch.no_grad():
            return logits_of(model(pictures))

    def ours() -> Tensor:
        with torch.no_grad():
            return saliency_maps(model, pictures, target=TARGET, feature_layer=layer)

    runners: dict[str, Callable[[], Tensor]] = {"forward": forward, OURS: ours}
    methods = {OURS: {"exact": "CAM", "uniform": "Grad-CAM", "generic": "HiResCAM"}[layer.readout]}
    for name in against:
        try:
            method, run = RIVALS[name](copy.deepcopy(model), layer, pictures, TARGET)
            run()
        except (ImportError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if report is not None:
                report(f"{name}: left out, it fails here. {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        runners[name], methods[name] = run, method
    return runners, methods


def _autocast(run: Callable[[], Tensor], setting: BenchSetting) -> Tensor:
    with torch.autocast(setting.device, torch.bfloat16, enabled=setting.bf16):
        return run()
