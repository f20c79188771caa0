"""The guidance that a model was trained with, in its `config.json`."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..guidance import Guidance, get_guidance, list_guidance

logger = logging.getLogger(__name__)

KEY = "saliency_guide"
ADAPTER_FILE = "saliency_guide.json"  # beside adapters, which are saved without the model's configuration
# Of the training arguments: what the methods were told, and how strongly.
SETTINGS = (
    "guidance_schedule",
    "empty_mask",
    "random_saliency",
    "invert_saliency",
    "rescale_annotated",
    "seed",
)
VERSION = 1  # of the block
_KEYS = {"name", "weight", "task_weight", "feature_layer", "options", "version", *SETTINGS}


def guidance_block(
    methods: Sequence[Guidance],
    weights: Sequence[float],
    task_weight: float,
    feature_layers: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any] | None:
    """
    What a saved configuration says about guidance.

    Args:
        methods (`Sequence[Guidance]`): the methods that have a weight; without any the block is `None`.
        weights (`Sequence[float]`): one a method.
        task_weight (`float`): the weight of the task's loss.
        feature_layers (`Sequence[str]`): the layers that maps are made of; none where no method asks for one.
        settings (`dict`): the training arguments, of which [`SETTINGS`] are taken.
    """
    if not methods:
        return None
    names = [method.name for method in methods]
    return {
        "name": names if len(names) > 1 else names[0],
        "weight": list(weights) if len(names) > 1 else weights[0],
        "task_weight": task_weight,
        "feature_layer": list(feature_layers) if len(feature_layers) > 1 else next(iter(feature_layers), None),
        "options": {method.name: method.options for method in methods},
        **{name: settings[name] for name in SETTINGS},
        "version": VERSION,
    }


def check_json(methods: Sequence[Guidance]) -> None:
    """
    Refuses options that cannot be saved.

    Raises:
        ValueError: naming the method and the option.
    """
    for method in methods:
        for name, value in method.options.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f'guidance_options of guidance="{method.name}": {name}={value!r} cannot be saved with the model '
                    f"({error}); give numbers, strings, or lists and dicts of them."
                ) from error


def write_guidance(folder: str | Path, guidance: dict[str, Any] | None) -> None:
    """
    Writes a block about guidance into a saved model's configuration, or removes the one of the weights that training
    started from.

    Args:
        folder (`str` or `Path`): where the model is saved. Where it has no `config.json`, as with adapters alone, the
            block gets a file of its own, `saliency_guide.json`.
        guidance (`dict`, *optional*): what to write; `None` for plain training.
    """
    path, alone = Path(folder) / "config.json", Path(folder) / ADAPTER_FILE
    alone.unlink(missing_ok=True)
    if not path.exists():
        if guidance is not None:
            alone.write_text(json.dumps({KEY: guidance}, indent=2, sort_keys=True) + "\n")
        return
    config = json.loads(path.read_text())
    stale = config.pop(KEY, None)
    if guidance is not None:
        config[KEY] = guidance
    if guidance is not None or stale is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_guidance(block: Any, source: str) -> dict[str, Any]:
    """
    Reads the block of a saved configuration. It warns, once, where the block is not what this release writes.

    Args:
        block: what the configuration holds under [`KEY`]; `None` where it holds nothing.
        source (`str`): where it comes from, for the warning.

    Returns:
        `dict`: the block, its unknown keys kept, with `None` for `weight`, `feature_layer` and `version` where it says
        nothing of them; `{}` where there is none, or one that is not understood.
    """
    if block is None:
        return {}
    fault = _fault(block)
    if fault:
        logger.warning(
            '"%s": its configuration says how the model was guided in a form that is not understood (%s in %s); '
            "it is loaded as if trained plainly, and maps are made at the layer that is found.",
            source,
            fault,
            KEY,
        )
        return {}
    version = block.get("version")
    missing = [f"the options of {name} are other ones here, and are left out" for name in _unread_options(block)]
    if version is not None and (not isinstance(version, int) or isinstance(version, bool) or version > VERSION):
        unknown = sorted(set(block) - _KEYS)
        if unknown:
            missing.insert(0, f"not used: {', '.join(unknown)}")
        missing += [f"{name} is not known here" for name in _names(block) if name not in list_guidance()]
        logger.warning(
            '"%s" was saved by a later release: its block %s has version=%r, and this release knows %d. The model is '
            "whole; of its guidance, something may be missing (%s). Update hf_salguide to read all of it.",
            source,
            KEY,
            version,
            VERSION,
            "; ".join(missing) or "nothing that this release knows of",
        )
    elif missing:
        logger.warning('"%s": in its block %s, %s.', source, KEY, "; ".join(missing))
    return {"weight": None, "feature_layer": None, "version": None, **block}


def usable_guidance(guidance: Mapping[str, Any]) -> dict[str, Any]:
    """A block without the options that this release cannot give to its methods, for what applies it to pictures."""
    unread = set(_unread_options(guidance))
    options = {name: value for name, value in (guidance.get("options") or {}).items() if name not in unread}
    return {**guidance, "options": options}


def _names(block: Mapping[str, Any]) -> list[str]:
    name = block["name"]
    return [name] if isinstance(name, str) else list(name)


def _fault(block: Any) -> str | None:
    """What makes a block unreadable, if anything does."""
    if not isinstance(block, dict):
        return f"a {type(block).__name__} in place of a mapping"
    name, layer, options = block.get("name"), block.get("feature_layer"), block.get("options") or {}
    if not _is_text(name) or not name:
        return f"name={name!r}"
    if layer is not None and not (_is_text(layer) and layer):
        return f"feature_layer={layer!r}"
    if not isinstance(options, dict) or not all(isinstance(value, dict) for value in options.values()):
        return f"options={options!r}"
    return None


def _is_text(value: Any) -> bool:
    """Whether a value is a string or a list of some."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _unread_options(block: Mapping[str, Any]) -> list[str]:
    """The methods that this release knows, but not with the options of the block."""
    unread, options = [], block.get("options") or {}
    for name in _names(block):
        try:
            if name in list_guidance():
                get_guidance(name, **options.get(name, {}))
        except (TypeError, ValueError):
            unread.append(name)
    return unread
