"""The guidance that a model was trained with, in its `config.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..guidance import Guidance

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
        "version": 1,
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
