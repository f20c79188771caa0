"""Saliency-guided training of image classifiers: a drop-in Hugging Face `Trainer` for any backbone."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("hf_salguide")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from .arguments import SaliencyTrainingArguments
    from .backbones import as_classifier, difference_salience, resolve_feature_layer, saliency_maps
    from .callbacks import SaliencyPanelCallback
    from .data import SaliencyCollator, load_saliency_dataset
    from .guidance import Guidance, get_guidance, list_guidance, register_guidance
    from .hub import ModelCardCallback, load_guided
    from .trainer import SaliencyTrainer

_EXPORTS = {
    "Guidance": "guidance",
    "ModelCardCallback": "hub",
    "SaliencyCollator": "data",
    "SaliencyPanelCallback": "callbacks",
    "SaliencyTrainer": "trainer",
    "SaliencyTrainingArguments": "arguments",
    "as_classifier": "backbones",
    "difference_salience": "backbones",
    "get_guidance": "guidance",
    "list_guidance": "guidance",
    "load_guided": "hub",
    "load_saliency_dataset": "data",
    "register_guidance": "guidance",
    "resolve_feature_layer": "backbones",
    "saliency_maps": "backbones",
}

__all__ = [
    "Guidance",
    "ModelCardCallback",
    "SaliencyCollator",
    "SaliencyPanelCallback",
    "SaliencyTrainer",
    "SaliencyTrainingArguments",
    "as_classifier",
    "difference_salience",
    "get_guidance",
    "list_guidance",
    "load_guided",
    "load_saliency_dataset",
    "register_guidance",
    "resolve_feature_layer",
    "saliency_maps",
]


def __getattr__(name: str) -> Any:
    # transformers takes seconds to import, so nothing is imported before it is asked for.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
