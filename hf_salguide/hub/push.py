"""Publishing a saved model: what belongs to it and nothing else, in one commit, from a copy that nobody writes to."""

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from .card import README, published_card
from .record import PANEL
from .saving import PICKLED_ARGUMENTS_FILE, may_be_pickle, other_kind, saved_files
from .staging import STAGE, copy_of

logger = logging.get_logger(__name__)

DEFAULT_MESSAGE = "Upload model"
MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
ADVICE = {
    401: "the token is missing or not valid: log in with `hf auth login`, or set HF_TOKEN",
    403: "the token has no right to write there: name a repository of your own, or take a token with write permission",
    404: "there is no such repository or revision, or the token may not see it",
    409: "somebody else wrote to the repository at the same time",
    413: "it is larger than the Hub takes",
    429: "the Hub asks for fewer requests: wait some minutes",
}
SERVER_ERROR = 500


class PushError(OSError):
    """
    An upload that failed. The message says why, that the folder is whole, and how to go on. It is raised without its
    cause: what an HTTP library keeps of a request holds the token.
    """


def api() -> HfApi:
    """The Hub's client, under this library's name."""
    return HfApi(library_name="hf_salguide")


def check_repo_id(repo_id: str, argument: str = "repo_id") -> None:
    """
    Refuses a name that the Hub would refuse, before anything is asked of it.

    Raises:
        ValueError: naming the argument, the value and the remedy.
    """
    remedy = 'give "owner/name", of letters, digits, "-", "_" and ".", 96 characters at most'
    if not isinstance(repo_id, str) or not repo_id.strip("/"):
        raise ValueError(f"{argument}={repo_id!r} names no repository; {remedy}.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f'{argument}="{repo_id}" is not a name that the Hub allows ({reason}); {remedy}.') from error


def check_revision(revision: str | None) -> None:
    """
    Raises:
        ValueError: for a commit, to which nothing can be added.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        raise ValueError(f'revision="{revision}" is a commit; give the name of a branch, or leave it out for main.')


def open_repository(
    repo_id: str, private: bool | None = None, token: str | None = None, argument: str = "repo_id"
) -> str:
    """
    Makes sure that a repository is there and may be written to.

    Args:
        repo_id (`str`): `owner/name`, or a name alone for one of the token's owner.
        private (`bool`, *optional*): whether a new repository is private; default: as the Hub does.
        token (`str`, *optional*): defaults to `HF_TOKEN`, or what `hf auth login` stored.
        argument (`str`, *optional*): what messages call `repo_id`.

    Returns:
        `str`: `owner/name`.

    Raises:
        ValueError: for a name that is not allowed, and for `private=True` where the repository exists and is public.
        PushError: if the Hub refuses, or cannot be reached.
    """
    check_repo_id(repo_id, argument)
    client = api()
    try:
        opened: str = client.create_repo(repo_id, private=private, exist_ok=True, token=token).repo_id
        client.auth_check(opened, write=True, token=token)
        public = private is True and not client.model_info(opened, token=token).private
    except Exception as error:
        raise PushError(f"{repo_id} cannot be written to: {_cause(error, token)}. Nothing was uploaded.") from None
    if public:
        raise ValueError(
            f'private=True, but {argument}="{opened}" exists and is public: nothing was uploaded. Make it private in '
            "its settings, name another, or leave private out."
        )
    return opened


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    tags: Sequence[str] = (),
    include: Sequence[str] = (),
) -> CommitInfo:
    """
    Publishes a saved model: its weights in safetensors, configuration, processor, arguments and card.

    Nothing else in the folder is uploaded, checkpoints and logs neither, unless `include` names it. All of it is one
    commit; a folder that has not changed makes none.

    Args:
        folder (`str` or `Path`): the output folder of a training, or one of its checkpoints.
        repo_id (`str`): `owner/name`, or a name alone for one of the token's owner. It is made if it does not exist.
        private (`bool`, *optional*): whether a new repository is private; default: as the Hub does.
        revision (`str`, *optional*, defaults to `"main"`): the branch, which is made if it does not exist.
        commit_message (`str`, *optional*): defaults to `"Upload model"`.
        token (`str`, *optional*): defaults to `HF_TOKEN`, or what `hf auth login` stored. It is written nowhere.
        tags (sequence of `str`, *optional*): further tags of the card.
        include (sequence of `str`, *optional*): further files of the folder, as patterns (`"*.csv"`).

    Returns:
        [`~huggingface_hub.CommitInfo`]: of the new commit, or of the last one where nothing had changed.

    Raises:
        ValueError: if the folder holds no model, a file changes while it is read, a pattern fits nothing or a pickle,
            or the name is not allowed.
        PushError: if the Hub refuses, or the upload breaks off. The folder is left as it was.
    """
    check_repo_id(repo_id)
    check_revision(revision)
    tags = [tags] if isinstance(tags, str) else tags
    names = [*saved_files(folder), *_included(Path(folder).resolve(), include)]
    with going_on(again(folder, repo_id, private, revision, commit_message, tags, include)):
        opened = open_repository(repo_id, private, token)
        stage = stage_of(folder, names, opened, tags)
        return upload(stage, opened, commit_message or DEFAULT_MESSAGE, revision, token)


def stage_of(folder: str | Path, names: Sequence[str], repo_id: str, tags: Sequence[str] = ()) -> Path:
    """A copy of some files of a folder, and of its card as it is to stand in a repository: the caller's to remove."""
    stage = copy_of(folder, names)
    try:
        add_card(stage, folder, repo_id, tags)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    return stage


def add_card(stage: Path, folder: str | Path, repo_id: str, tags: Sequence[str] = ()) -> None:
    """Puts a folder's card, as it is to stand in a repository, into a copy of the folder."""
    card = published_card(folder, repo_id, tags)
    if card is not None:
        (stage / README).write_text(card, encoding="utf-8")


def again(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    tags: Sequence[str] = (),
    include: Sequence[str] = (),
) -> str:
    """What to say after a failed upload: that nothing is lost, and the command that does all of it again."""
    command = ["hf-salguide", "push", str(folder), repo_id]
    command += [] if private is None else ["--private", str(private).lower()]
    command += [] if revision is None else ["--revision", revision]
    command += [] if commit_message is None else ["--commit_message", commit_message]
    command += ["--tags", *tags] if tags else []
    command += ["--include", *include] if include else []
    return f"{folder} is whole; to go on: {shlex.join(command)}"


@contextmanager
def going_on(sentence: str) -> Iterator[None]:
    """Puts a sentence on how to go on behind the reason of a failed upload, and says it where one is broken off."""
    try:
        yield
    except PushError as error:
        raise PushError(f"{error} {sentence}") from None
    except KeyboardInterrupt:
        logger.warning(f"The upload was broken off. {sentence}")
        raise


def _included(folder: Path, patterns: Sequence[str]) -> list[str]:
    """
    Further files that the user asked for.

    Raises:
        ValueError: for a pattern that fits nothing, or a pickle.
    """
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            paths = [path for path in folder.glob(pattern) if path.is_file() and path.resolve().is_relative_to(folder)]
        except (ValueError, NotImplementedError):  # an empty one, or an absolute path
            paths = []
        names = [path.relative_to(folder).as_posix() for path in paths]
        # As a shell's patterns, `*` takes no hidden files.
        fitting = [name for name in names if not _is_hidden(name, pattern) and not name.startswith(STAGE)]
        if not fitting:
            raise ValueError(
                f'include="{pattern}" fits no file of {folder}; give names or patterns within it, "results/*.csv".'
            )
        pickles = sorted(name for name in fitting if may_be_pickle(folder / name))
        if pickles:
            raise ValueError(
                f'include="{pattern}" fits {pickles[0]}, which may be a pickle and would run code where it is opened; '
                "name the other files."
            )
        found += fitting
    return sorted(set(found))


def _is_hidden(name: str, pattern: str) -> bool:
    asked = any(part.startswith(".") for part in pattern.split("/"))
    return not asked and any(part.startswith(".") for part in name.split("/"))


def upload(stage: Path, repo_id: str, message: str, revision: str | None = None, token: str | None = None) -> Any:
    """
    Uploads all that is in a copy as one commit, and removes the copy.

    The commit also removes what an earlier push may have published: `training_args.bin`, a panel that the card does
    not show any more, and adapters beside a model or a model beside adapters, which nobody could load.

    Args:
        stage (`Path`): the folder of the copy.
        repo_id (`str`): `owner/name`, an existing repository.
        message (`str`): the commit's message.
        revision (`str`, *optional*, defaults to `"main"`): the branch, which is made if it does not exist.
        token (`str`, *optional*): defaults to the stored one.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        PushError: if the upload fails, whatever the reason.
    """
    client = api()
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    try:
        operations: list[Any] = [CommitOperationAdd(path.relative_to(stage).as_posix(), path) for path in files]
        if revision not in (None, "", MAIN) and not str(revision).startswith("refs/"):
            client.create_branch(repo_id, branch=str(revision), exist_ok=True, token=token)
        names = [operation.path_in_repo for operation in operations]
        stale = [PICKLED_ARGUMENTS_FILE, PANEL, *other_kind(names)]
        there = set(client.list_repo_files(repo_id, revision=revision or None, token=token))
        operations += [CommitOperationDelete(name) for name in stale if name in there and name not in names]
        return client.create_commit(
            repo_id, operations, commit_message=message, revision=revision or None, token=token
        )
    except Exception as error:
        raise PushError(f"The upload to {repo_id} failed: {_cause(error, token)}.") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _cause(error: Exception, token: str | None) -> str:
    """What went wrong and what to do, on one line, without the token."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = getattr(error, "server_message", None) if isinstance(error, HfHubHTTPError) else None
    reason = " ".join(str(told or error or type(error).__name__).split()).rstrip(".")
    for secret in {token, get_token()} - {None, ""}:
        reason = reason.replace(str(secret), "<token>")
    reason = f"{reason} (status {status})" if status is not None and str(status) not in reason else reason
    if status is None:
        return f"{reason}; is the connection to the Hub broken?" if isinstance(error, OSError) else reason
    if status >= SERVER_ERROR:
        return f"{reason}; the Hub has a problem: try again later"
    return f"{reason}; {ADVICE[status]}" if status in ADVICE else reason
