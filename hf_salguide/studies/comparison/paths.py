"""Texts that leave the machine: without the folders of whoever ran the comparison."""

import re
from collections.abc import Iterable
from pathlib import PurePath

from .records import Study

_PART = r"[^\s/\\'\":;,()<>\[\]]"
_PATH = re.compile(rf"(?<![\w.<])(?:file:/*)?(?:[A-Za-z]:[\\/]|~?/)(?:{_PART}+[/\\])*({_PART}*)")
_SCHEME = re.compile(r"\b(?:https?|file)://", re.IGNORECASE)


def without_paths(text: str, known: Iterable[str] = ()) -> str:
    """
    A text in which every absolute path is its last part, and every address lost its `https://`.

    Args:
        text (`str`): an error message, say.
        known (iterable of `str`, *optional*): paths that are recognised though there is a blank in them, see
            [`paths_of`].
    """
    folders = {str(folder) for path in map(PurePath, known) if path.is_absolute() for folder in [path, *path.parents]}
    for folder in sorted(folders, key=len, reverse=True):
        if len(PurePath(folder).parts) > 1:
            text = text.replace(folder + "/", "").replace(folder, PurePath(folder).name)
    text = _SCHEME.sub(lambda found: "/" if found.group().lower() == "file://" else "", text)
    return _PATH.sub(lambda found: found.group(1) or found.group().strip("/\\")[-1:], text)


def paths_of(study: Study) -> list[str]:
    """What may be a path in a text about a study: the folders of its runs, and backbones that are local folders."""
    return list(dict.fromkeys(path for run in study.runs for path in (str(run.folder), run.backbone)))
