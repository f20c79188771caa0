"""A published model back from a folder or the Hub, ready to be explained: the weights, the processor, the guidance."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmWrapperImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from ..backbones import as_classifier, data_config, image_processor, keep_processor
from ..backbones.forward import refuse_without_pictures
from .fetch import Saved, locate
from .metadata import KEY, read_guidance, usable_guidance
from .saving import INDEX_FILE, WEIGHTS_FILE

logger = logging.getLogger(__name__)

CONFIG_FILE, PROCESSOR_FILE, ADAPTER_FILE = "config.json", "preprocessor_config.json", "adapter_config.json"
# All that is ever taken from the Hub.
PATTERNS = (CONFIG_FILE, PROCESSOR_FILE, ADAPTER_FILE, WEIGHTS_FILE, INDEX_FILE, "model-*.safetensors")
PICKLES = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar")
BESIDE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # pickles without weights
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class GuidedModel:
    """
    A model, how its pictures are prepared, and how it was guided.

    Attributes:
        model ([`~transformers.PreTrainedModel`]): an image classifier in evaluation mode, on the CPU.
        processor ([`~transformers.BaseImageProcessor`]): makes its `pixel_values` of pictures.
        guidance (`dict`): `name`, `weight`, `feature_layer`, `version` and what else was saved, see
            [`SaliencyTrainer.guidance_block`]; `None` where nothing is said of one of the four. `{}` for a model that
            was trained plainly.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor
    guidance: dict[str, Any]


def load_guided(path_or_id: str | os.PathLike, revision: str | None = None, token: str | None = None) -> GuidedModel:
    """
    Loads an image classifier exactly as it was saved: by [`SaliencyTrainer`], by transformers or by timm.

    Weights are read from safetensors alone: a pickle is neither downloaded nor opened. Code that comes with a model is
    never run.

    Args:
        path_or_id (`str` or path): a local folder, or a Hub id, `"owner/name"` or `"owner/name@revision"`. A folder
            goes before an id of the same name.
        revision (`str`, *optional*): a branch, a tag or a commit of the repository; default: its main branch.
        token (`str`, *optional*): for a private repository; default: `HF_TOKEN`, or what `hf auth login` stored.

    Returns:
        [`GuidedModel`]

    Raises:
        ValueError: for something that is neither a folder nor a Hub id, a revision of a folder, a folder without
            `config.json`, adapters without their model, weights that are a pickle, missing, damaged or not those of
            the configuration, a model that needs code of its own, and one that is no image classifier.
        OSError: for a repository or a revision that is not there or not open to the token, and for a Hub that cannot
            be reached.

    Example:

    ```python
    guided = load_guided("owner/name")
    pixels = guided.processor(picture, return_tensors="pt")["pixel_values"]
    maps = saliency_maps(guided.model, pixels, feature_layer=guided.guidance.get("feature_layer"))
    ```
    """
    saved = locate(path_or_id, revision, token, PATTERNS)
    content = _configuration(saved)
    _check_weights(saved)
    try:
        model = _timm_model(saved, content) if _is_timm(content) else _transformers_model(saved, content)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(_damaged(saved, error)) from error
    except (TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ValueError(
            f'path_or_id="{saved.name}": no model can be built from its {CONFIG_FILE} ({_line(error)}); update timm '
            "and transformers, or save the model anew."
        ) from error
    if not saved.is_local and getattr(model.config, "_name_or_path", None):
        model.config._name_or_path = saved.name
    guidance = read_guidance(content.get(KEY), saved.name)
    if guidance:
        setattr(model.config, KEY, usable_guidance(content[KEY]))
    elif hasattr(model.config, KEY):
        delattr(model.config, KEY)
    processor = _processor(saved, content, model)
    keep_processor(model, processor)
    return GuidedModel(model.eval(), processor, guidance)


def _is_timm(content: dict[str, Any]) -> bool:
    return "pretrained_cfg" in content or "architecture" in content


def _configuration(saved: Saved) -> dict[str, Any]:
    """
    The content of `config.json`.

    Raises:
        ValueError: if there is none that can be used without anybody's code.
    """
    path, start = saved.folder / CONFIG_FILE, f'path_or_id="{saved.name}"'
    if (saved.folder / ADAPTER_FILE).is_file():
        raise ValueError(
            f"{start} holds adapters ({ADAPTER_FILE}), not a model; merge them where they were trained, "
            "model.merge_and_unload(), and save the result with save_pretrained in another folder."
        )
    if not path.is_file():
        inside = sorted(file.parent for file in saved.folder.glob(f"checkpoint-*/{CONFIG_FILE}"))
        hint = f' Its checkpoint "{inside[-1]}" has one; pass that.' if inside else ""
        raise ValueError(f"{start} has no {CONFIG_FILE}; give what save_model or save_pretrained wrote.{hint}")
    content = _read(saved, path)
    own = content.get("auto_map")
    if own and not _is_timm(content) and content.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"{start} needs code of its own (auto_map in {CONFIG_FILE}), which is never run here; read it, and load "
            "the model with transformers, trust_remote_code=True, if you trust it."
        )
    if own:
        logger.warning(
            '"%s" brings code of its own (auto_map), which is not run: the built-in class is loaded.', saved.name
        )
    for key in ("attn_implementation", "_attn_implementation"):
        if "/" in str(content.get(key) or ""):
            raise ValueError(
                f'{start} asks for a kernel from the Hub ({key}="{content[key]}" in {CONFIG_FILE}), which is code and '
                "never run here; remove the entry."
            )
    return content


def _read(saved: Saved, path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: for a file that does not hold one JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        content, reason = None, f" ({error})"
    else:
        reason = ""
    if not isinstance(content, dict):
        raise ValueError(f'path_or_id="{saved.name}": {path.name} holds no JSON object{reason}; save the model anew.')
    return content


def _check_weights(saved: Saved) -> None:
    """
    Raises:
        ValueError: if there are no weights in safetensors, and nothing but those.
    """
    start = f'path_or_id="{saved.name}"'
    if (saved.folder / WEIGHTS_FILE).is_file():
        return
    if (saved.folder / INDEX_FILE).is_file():
        shards = _read(saved, saved.folder / INDEX_FILE).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        wrong = [name for name in names if not name.endswith(".safetensors") or Path(name).name != name]
        if wrong or not names:
            raise ValueError(
                f"{start}: {INDEX_FILE} names {', '.join(wrong) or 'no file'}, but weights are read from files in "
                "safetensors beside it alone; save the model anew with save_pretrained."
            )
        missing = [name for name in names if not (saved.folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{start}: {', '.join(missing)}, named in {INDEX_FILE}, is missing; copy the model whole."
            )
        return
    pickles = [name for name in saved.names() if name.endswith(PICKLES) and not name.startswith(BESIDE)]
    pickles = [name for name in pickles if "/" not in name]
    if pickles:
        raise ValueError(
            f"{start} has its weights in {', '.join(pickles[:3])}, a pickle: opening one can run anything, so "
            f"it is never opened here. Convert it to {WEIGHTS_FILE} where its source is trusted: load the model with "
            "the library that saved it, and save_pretrained writes safetensors."
        )
    raise ValueError(f"{start} has no {WEIGHTS_FILE}; give a folder or repository that holds the weights too.")


def _timm_model(saved: Saved, content: dict[str, Any]) -> PreTrainedModel:
    model = as_classifier(saved.folder, pretrained=True)
    saved_as = getattr(torch, str(content.get("dtype") or content.get("torch_dtype") or ""), None)
    return model.to(saved_as) if isinstance(saved_as, torch.dtype) and saved_as.is_floating_point else model


def _transformers_model(saved: Saved, content: dict[str, Any]) -> PreTrainedModel:
    """
    Raises:
        ValueError: if it is no image classifier, or its weights are not those of its configuration.
    """
    start = f'path_or_id="{saved.name}"'
    kind = content.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{start} is of model_type={kind!r}, which this release of transformers does not know; update it, or give "
            "a model of transformers or timm."
        )
    config = AutoConfig.from_pretrained(saved.folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        saved_as = ", ".join(content.get("architectures") or []) or kind
        raise ValueError(f"{start} is no image classifier but {saved_as}; give a model with a head for classes.")
    model, report = AutoModelForImageClassification.from_pretrained(
        saved.folder,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_without_pictures(model)
    lacking = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if lacking:
        raise ValueError(
            f"{start} holds no classifier that is trained: its weights lack {', '.join(lacking[:3])} of "
            f"{type(model).__name__}; give a model that was saved with its head, or train one with as_classifier."
        )
    return model


def _damaged(saved: Saved, error: Exception) -> str:
    start = f'path_or_id="{saved.name}"'
    weights = saved.folder / WEIGHTS_FILE
    if weights.is_file():
        with weights.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                return f"{start}: {WEIGHTS_FILE} is a pointer of git-lfs, not the weights; run `git lfs pull` there."
    what = f"the weights are damaged, or not those of {CONFIG_FILE} ({_line(error)})"
    return f"{start}: {what}; copy or download them again."


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".:")


def _processor(saved: Saved, content: dict[str, Any], model: PreTrainedModel) -> BaseImageProcessor:
    """
    The processor that was saved; where none was, one that does what the model's data configuration says.

    Raises:
        ValueError: if the one that was saved cannot be read.
    """
    if not (saved.folder / PROCESSOR_FILE).is_file() and "pretrained_cfg" not in content:
        return image_processor(model, data_config(model))
    try:
        if _is_timm(content) and not (saved.folder / PROCESSOR_FILE).is_file():
            return TimmWrapperImageProcessor.from_pretrained(saved.folder)
        return AutoImageProcessor.from_pretrained(saved.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'path_or_id="{saved.name}": its image processor cannot be read ({error}); remove {PROCESSOR_FILE}, and '
            "pictures are prepared as the model's configuration says."
        ) from error
