"""Where a saved model lies: a local folder, or a snapshot of a Hub repository that holds nothing but named files."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

HUB_PREFIXES, LOCAL_PREFIX = ("hf-hub:", "hf_hub:"), "local-dir:"
_ACCESS = "token=..., the environment variable HF_TOKEN, or `hf auth login`"


@dataclass(frozen=True)
class Saved:
    """
    A saved model's files.

    Attributes:
        folder (`Path`): where they lie on this machine.
        name (`str`): what the user called it, for messages: the folder, or the Hub id.
        is_local (`bool`): whether it is the user's folder.
        names (`Callable`): gives the names of all files there, those that were not downloaded among them.
    """

    folder: Path
    name: str
    is_local: bool
    names: Callable[[], list[str]]


def locate(path_or_id: str | os.PathLike, revision: str | None, token: str | None, patterns: Sequence[str]) -> Saved:
    """
    Finds a local folder, or downloads the named files of a Hub repository into the cache.

    Args:
        path_or_id (`str` or path): the folder, or `"owner/name"`, `"owner/name@revision"`, `"hf-hub:owner/name"`.
        revision (`str`, *optional*): a branch, a tag or a commit.
        token (`str`, *optional*): of the Hub.
        patterns (sequence of `str`): the files that are taken; no other is downloaded.

    Raises:
        ValueError: for something that is neither a folder nor a Hub id, two revisions, or one of a folder.
        OSError: where the repository or its revision cannot be had; the message says why and what to do.
    """
    name = os.fspath(path_or_id).removeprefix(LOCAL_PREFIX)
    if name and Path(name).is_dir():
        if revision is not None:
            raise ValueError(
                f'revision="{revision}" goes with a Hub id, but path_or_id="{name}" is a local folder; leave it out.'
            )
        return Saved(Path(name), name, True, lambda: sorted(os.listdir(name)))
    repo_id, revision = parse_id(name, revision)
    _check_token(token)
    folder = _download(repo_id, revision, token, patterns)
    return Saved(folder, repo_id, False, lambda: _listed(repo_id, revision, token, folder))


def parse_id(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """
    The repository and the revision that a Hub id names.

    Raises:
        ValueError: if it is no Hub id, or names another revision than `revision` does.
    """
    prefix = next((prefix for prefix in HUB_PREFIXES if name.startswith(prefix)), "")
    repo_id, _, named = name.removeprefix(prefix).partition("@")
    if Path(name).is_file():
        raise ValueError(f'path_or_id="{name}" is a file; give the folder that it lies in.')
    if not prefix and (repo_id.count("/") != 1 or name.startswith((".", "~", "/")) or "\\" in name):
        raise ValueError(
            f'path_or_id="{name}" is no folder on this machine and no Hub id, which is owner/name; check the path, or '
            "load a name of timm with as_classifier(name, pretrained=True)."
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f'path_or_id="{name}" is no folder on this machine, and the Hub allows no such name; give owner/name, '
            "letters, digits, -, _ and . alone."
        ) from error
    if named and revision is not None and named != revision:
        raise ValueError(f'path_or_id="{name}" and revision="{revision}" name two revisions; give one of them.')
    return repo_id, named or revision


def _check_token(token: str | None) -> None:
    """An HTTP library that meets a broken token may quote it in its error; so it never does."""
    if token is not None and not (isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]+", token)):
        raise ValueError("token is empty or holds spaces, line ends or other characters that no token has; strip it.")


def _download(repo_id: str, revision: str | None, token: str | None, patterns: Sequence[str]) -> Path:
    what = f'path_or_id="{repo_id}"' + (f', revision="{revision}"' if revision else "")
    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(patterns)))
    # Without the cause: its text is the Hub's, and what it quotes is not ours to vouch for.
    except GatedRepoError:
        reason = f"its owner gives access on request; ask for it on its page, and give a token that has it ({_ACCESS})"
    except RepositoryNotFoundError:
        reason = (
            "it is no folder on this machine, and the Hub shows no such repository: it does not exist, or it is "
            f"private and wants a token that may read it. Check the name, or give a token ({_ACCESS})"
        )
    except RevisionNotFoundError:
        reason = "the repository has no such branch, tag or commit; leave revision out for its main branch"
    except HfHubHTTPError as error:
        reason = _answer(error.response.status_code)
    except LocalEntryNotFoundError as error:
        answer = getattr(error.__cause__, "response", None)
        reason = _unreachable(repo_id) if answer is None else _answer(answer.status_code)
    except (OSError, RuntimeError) as error:
        reason = f"the download failed ({type(error).__name__}); try again, what has arrived is kept"
    except Exception as error:  # of the HTTP library, whose name differs between releases of huggingface_hub
        if not type(error).__module__.startswith("http"):
            raise
        reason = f"the connection failed ({type(error).__name__}); try again, what has arrived is kept"
    raise OSError(f"{what} cannot be loaded: {reason}.") from None


def _answer(status: int) -> str:
    if status in (401, 403):
        return f"the Hub refuses the token (status {status}); give one that may read the repository ({_ACCESS})"
    if status == 429:
        return "the Hub gets too many requests from here (status 429); wait some minutes and try again"
    return f"the Hub answers with status {status}; try again later, what has arrived is kept"


def _unreachable(repo_id: str) -> str:
    if constants.is_offline_mode():
        return (
            "it is no folder on this machine, HF_HUB_OFFLINE is set, and the cache does not hold it whole; unset it, "
            f"or run `hf download {repo_id}` where there is a connection"
        )
    return (
        "it is no folder on this machine, the Hub cannot be reached, and the cache does not hold it whole; check the "
        "connection and HF_ENDPOINT, or give a folder"
    )


def _listed(repo_id: str, revision: str | None, token: str | None, folder: Path) -> list[str]:
    """The repository's files; those that lie in the cache where the Hub does not tell."""
    try:
        return sorted(HfApi(token=token).list_repo_files(repo_id, revision=revision))
    except Exception:  # it serves a message about something else
        return sorted(os.listdir(folder))
