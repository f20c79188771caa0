"""`hf-salguide push`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .parsing import parse


@dataclass
class PushArguments:
    """What is published, and where."""

    folder: str = field(metadata={"help": "Output folder of a training, or one of its checkpoints."})
    repo: str = field(default="", metadata={"help": "owner/name on the Hub; it is made if it does not exist."})
    private: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private (default: as the Hub does)."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, which is made if it does not exist (default: main)."}
    )
    commit_message: str | None = field(default=None, metadata={"help": "The commit's message."})
    tags: list[str] | None = field(default=None, metadata={"help": "Further tags of the model card."})
    include: list[str] | None = field(
        default=None, metadata={"help": "Further files of the folder, as patterns; nothing else is uploaded."}
    )


def run(argv: Sequence[str]) -> int:
    """
    Publishes a saved model with its card; the token is that of HF_TOKEN, or of `hf auth login`.
    """
    arguments = list(argv)
    if len(arguments) > 1 and not arguments[0].startswith("-") and not arguments[1].startswith("-"):
        arguments[1:2] = ["--repo", arguments[1]]  # FOLDER REPO
    (args,) = parse([PushArguments], arguments, "push", " ".join((run.__doc__ or "").split()), "folder")
    if not args.repo:
        raise ValueError(
            f"repo: give the name of the repository, hf-salguide push {args.folder} owner/name; nothing was uploaded."
        )
    from ..hub import push_folder

    done = push_folder(
        args.folder,
        args.repo,
        private=args.private,
        revision=args.revision,
        commit_message=args.commit_message,
        tags=args.tags or (),
        include=args.include or (),
    )
    print(f"{args.folder} is published: {done.commit_url}")
    return 0
