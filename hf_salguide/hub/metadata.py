"""The guidance that a model was trained with, in its `config.json`."""

import json
from pathlib import Path
from typing import Any

KEY = "saliency_guide"


def write_guidance(folder: str | Path, guidance: dict[str, Any] | None) -> None:
    """
    Writes a block about guidance into a saved model's configuration, or removes the one of the weights that training
    started from.

    Args:
        folder (`str` or `Path`): where the model is saved; nothing happens where it has no `config.json`.
        guidance (`dict`, *optional*): what to write; `None` for plain training.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        return
    config = json.loads(path.read_text())
    stale = config.pop(KEY, None)
    if guidance is not None:
        config[KEY] = guidance
    if guidance is not None or stale is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
