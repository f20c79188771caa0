"""What is measured: a backbone, a method, a batch, and the machine that it runs on."""

import difflib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from ...backbones import as_classifier
from ...backbones.timm_models import check_architecture
from ...guidance import PLAIN, get_guidance, list_guidance

LIBRARIES = ("torch", "transformers", "timm", "accelerate")
AT_FEATURES = {"at": "features"}


@dataclass(frozen=True)
class BenchSetting:
    """
    One backbone under the benchmark.

    Attributes:
        model (`str`): timm model name.
        model_args (`dict`): keyword arguments of the timm model.
        image_size (`int`): side of the pictures in pixels.
        batch_size (`int`): pictures a step.
        device (`str`): `"cpu"` or `"cuda"`.
        bf16 (`bool`): whether the model runs under autocast to bfloat16.
        compile_backend (`str`, *optional*): of `torch.compile`; `None`: the model is not compiled.
    """

    model: str
    model_args: dict[str, Any]
    image_size: int
    batch_size: int
    device: str = "cpu"
    bf16: bool = False
    compile_backend: str | None = None

    @property
    def name(self) -> str:
        extras = ", ".join(f"{key}={value}" for key, value in self.model_args.items())
        return f"{self.model}({extras})" if extras else self.model

    @property
    def precision(self) -> str:
        return "bfloat16" if self.bf16 else "float32"

    def build(self) -> PreTrainedModel:
        """The classifier of two classes, with the same random weights at every call."""
        set_seed(0)
        try:
            return as_classifier(self.model, num_labels=2, **{"image_size": self.image_size, **self.model_args})
        except TypeError as error:
            raise ValueError(f"models: {error}") from error

    def batch(self, annotated: float = 1.0) -> dict[str, Tensor]:
        """Noise pictures with noise for saliency, of which the share `annotated` counts."""
        generator = torch.Generator().manual_seed(0)
        count, side = self.batch_size, self.image_size
        batch = {
            "pixel_values": torch.randn(count, 3, side, side, generator=generator),
            "labels": torch.randint(0, 2, (count,), generator=generator),
            "saliency": torch.randint(0, 256, (count, side, side), generator=generator, dtype=torch.uint8),
            "has_saliency": torch.arange(count) < round(annotated * count),
        }
        return {name: value.to(self.device) for name, value in batch.items()}


@dataclass(frozen=True)
class BenchMethod:
    """
    One method under the benchmark.

    Attributes:
        name (`str`): of a guidance method.
        options (`dict`): its own choices.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        extras = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({extras})" if extras else self.name


PLAIN_METHOD = BenchMethod(PLAIN)


def every_method() -> list[BenchMethod]:
    """Every method as it comes, and those that take an input gradient at the features as well."""
    methods = [BenchMethod(name) for name in list_guidance()]
    at_features = [
        BenchMethod(method.name, AT_FEATURES)
        for method in methods
        if getattr(get_guidance(method.name), "gradient_at", None) == "input"
    ]
    return methods + at_features


def check_settings(
    settings: Sequence[BenchSetting], methods: Sequence[BenchMethod], annotated: Sequence[float]
) -> None:
    """
    Checks what is to be measured, before any compute.

    Raises:
        ValueError: for an unknown architecture, method or option of one, sizes below 1, a share outside 0 to 1, and a
            device that is not there; naming the option, the value and the remedy.
    """
    for setting in settings:
        check_architecture(setting.model)
        for name, value in (("image_size", setting.image_size), ("batch_size", setting.batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value} has to be at least 1.")
        check_device(setting.device)
        backends = torch.compiler.list_backends(exclude_tags=())
        if setting.compile_backend is not None and setting.compile_backend not in backends:
            near = difflib.get_close_matches(setting.compile_backend, backends, n=1, cutoff=0.0)
            raise ValueError(f'compile_backend="{setting.compile_backend}" is not known; did you mean "{near[0]}"?')
    for method in methods:
        get_guidance(method.name, **method.options)
    for share in annotated:
        if not 0 <= share <= 1:
            raise ValueError(f"annotated={share} has to be a share of the pictures, from 0 to 1.")


def check_device(device: str) -> None:
    """
    Raises:
        ValueError: for another device than `"cpu"` and `"cuda"`, and for a CUDA device where there is none.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f'device="{device}" is not known; choose "cpu" or "cuda".')
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('device="cuda" is asked for, and torch sees no CUDA device; take device="cpu".')


def machine(device: str) -> dict[str, Any]:
    """The versions and the hardware that figures depend on."""
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    return {
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": hardware,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
