"""A copy of what is uploaded, which nobody writes to meanwhile, within the folder that it was taken from."""

import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

STAGE = "_push_"  # how the copies' names begin


def copy_of(folder: str | Path, names: Sequence[str]) -> Path:
    """
    Copies some files of a folder into a new one within it.

    Args:
        folder (`str` or `Path`): where they are.
        names (sequence of `str`): the files, relative to it.

    Returns:
        `Path`: the new folder, which is the caller's to remove.

    Raises:
        ValueError: if a file changes while it is copied.
    """
    folder = Path(folder)
    stamps = {name: _stamp(folder / name) for name in names}
    stage = make_stage(folder)
    try:
        for name in names:
            add_to_stage(stage, folder / name, name)
        changed = [name for name, stamp in stamps.items() if _stamp(folder / name) != stamp]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} of {folder} changed while it was read, so nothing was uploaded; push again "
                "when the training that writes there has ended."
            )
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    return stage


def make_stage(folder: str | Path) -> Path:
    """
    An empty folder within `folder` to upload from; elsewhere, where `folder` cannot be written. What a process that is
    no more left behind goes.
    """
    mine = f"{STAGE}{platform.node()}_"
    for left in Path(folder).glob(f"{glob.escape(mine)}*"):
        owner = left.name.removeprefix(mine).split("_")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    prefix = f"{mine}{os.getpid()}_"
    try:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    except OSError:
        return Path(tempfile.mkdtemp(prefix=prefix))


def add_to_stage(stage: Path, path: Path, name: str, link: bool = False) -> None:
    """
    Puts a file under a name into a folder to upload from.

    Args:
        stage (`Path`): the folder.
        path (`Path`): the file.
        name (`str`): relative to `stage`.
        link (`bool`, *optional*, defaults to `False`): a hard link where the file system has them: for files that are
            deleted at some time, but never written again.
    """
    target = stage / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(path, target)
            return
        except OSError:
            pass
    shutil.copyfile(path, target)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
