"""The card of a model: its `README.md`, rendered from its record."""

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging

from . import limits, words
from .escape import code, listed, markdown
from .facts import one_line
from .record import CardRecord

if TYPE_CHECKING:
    from jinja2 import Template

logger = logging.get_logger(__name__)

README = "README.md"
# Where the code of a card loads from: the folder that it lies in, and a repository.
IN_CODE = {
    "In the folder of this card:\n\n": "",
    'model="."': 'model="{}"',
    'from_pretrained(".")': 'from_pretrained("{}")',
    '"local-dir:."': '"hf-hub:{}"',
    'load_guided(".")': 'load_guided("{}")',
    "explain --model . ": "explain --model {} ",
}
_MARKER = re.compile(r"^<!-- card of hf_salguide, ([0-9a-f]{16}):.*-->\n?", re.MULTILINE)


def render_card(record: CardRecord, repo_id: str | None = None, tags: Iterable[str] = ()) -> str:
    """
    The card of a model: the same text for the same record.

    Args:
        record ([`CardRecord`]): what is known; what is not is left out.
        repo_id (`str`, *optional*): the repository that the code of the card loads from. Defaults to the folder that
            the card lies in.
        tags (iterable of `str`, *optional*): tags beside those of the record.

    Returns:
        `str`: metadata in YAML and a text in Markdown.
    """
    from .card_metadata import card_data, title

    training, data = record.training, record.data
    body = _template().render(
        record=record,
        model=record.model,
        training=training,
        data=data,
        methods=[] if training is None else training.methods,
        citations=[] if training is None else _citations(record),
        title=markdown(title(record, repo_id)),
        location=repo_id or ".",
        mode="L" if record.model.channels == 1 else "RGB",
        layers=[] if training is None else training.feature_layers,
        code=code,
        in_table=lambda value: code(value, in_table=True),
        escaped=markdown,
        one_line=one_line,
        listed=listed,
        address=lambda url: re.sub(r"[\s<>]", "", url),
        size=f", image_size={tuple(record.model.image_size)}" if record.model.image_size else "",
        words=words,
        limits=limits,
    )
    body = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", body, flags=re.MULTILINE)).strip() + "\n"
    return _marked(f"---\n{card_data(record, repo_id, tags).to_yaml()}\n---\n\n", body)


def write_card(folder: str | Path, record: CardRecord) -> None:
    """
    Writes `card.json` and `README.md` to a folder.

    A `README.md` that was edited, or that is somebody else's, is kept, with a warning; `card.json` is current in any
    case.

    Args:
        folder (`str` or `Path`): where the model is saved.
        record ([`CardRecord`]): what the card says.
    """
    path = Path(folder) / README
    record.write(folder)
    if path.exists():
        former = path.read_text(encoding="utf-8", errors="replace")
        if not is_card(former):
            logger.warning_once(
                f"{path} is no card of hf_salguide and is kept; it is not pushed either, the card of card.json is."
            )
            return
        if is_edited(former):
            logger.warning_once(
                f"{path} was edited by hand and is kept, though card.json may have changed; remove it to have it "
                "rendered anew."
            )
            return
    path.write_text(render_card(record), encoding="utf-8", newline="\n")


def published_card(folder: str | Path, repo_id: str, tags: Iterable[str] = ()) -> str | None:
    """
    What is to be pushed as `README.md`: the folder's, if it was edited by hand; else its record, rendered for the
    repository.

    Args:
        folder (`str` or `Path`): where the model is saved.
        repo_id (`str`): the repository.
        tags (iterable of `str`, *optional*): tags beside those of the record; an edited card is left as it is.

    Returns:
        `str`, or `None` where the folder has no `card.json`.

    Raises:
        ValueError: if `card.json` is no record.
    """
    record = CardRecord.read(folder)
    if record is None:
        return None
    if not has_edited_card(folder):
        return render_card(record, repo_id, tags)
    if tags:
        logger.warning(f"{Path(folder) / README} was edited by hand and is pushed as it is, without the further tags.")
    text = (Path(folder) / README).read_text(encoding="utf-8", errors="replace")
    for here, there in IN_CODE.items():
        text = text.replace(here, there.format(repo_id))
    return text


def has_edited_card(folder: str | Path) -> bool:
    """Whether a folder's card was edited by hand, and is to be pushed as it is."""
    path = Path(folder) / README
    if not path.is_file() or CardRecord.read(folder) is None:
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return is_card(text) and is_edited(text)


def is_card(text: str) -> bool:
    """Whether a README is a card of ours, edited or not."""
    return _MARKER.search(text) is not None


def is_edited(text: str) -> bool:
    """Whether a card of ours is another text than the one that was rendered."""
    found = _MARKER.search(text.replace("\r\n", "\n"))
    return found is None or found[1] != _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(_MARKER.sub("", text.replace("\r\n", "\n"), count=1).encode()).hexdigest()[:16]


def _marked(head: str, body: str) -> str:
    """A card with the mark by which an edited one is known."""
    marker = (
        f"<!-- card of hf_salguide, {_digest(head + body)}: rendered from card.json; edit it, and it is kept -->\n"
    )
    return head + marker + body


def _citations(record: CardRecord) -> list[str]:
    methods = [] if record.training is None else record.training.methods
    return list(dict.fromkeys(entry for method in methods for entry in method.citations))


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )
    return environment.from_string(files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8"))
