"""What a user tells of a model for its card, checked."""

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .record import CardRecord

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
_TEXTS = (
    "license",
    "dataset",
    "dataset_id",
    "dataset_license",
    "dataset_url",
    "dataset_description",
    "saliency_source",
    "intended_use",
    "out_of_scope",
    "limits",
    "base_model",
    "model_name",
    "panel_caption",
)
_LISTS = ("language", "tags", "out_of_distribution")


@dataclass
class CardFacts:
    """
    What only the user knows; see [`ModelCardCallback`], whose arguments these are.

    Raises:
        ValueError: for a fact of a wrong type, a language that is no code, a baseline that cannot be read.
    """

    license: str | None = None
    dataset: str | None = None
    dataset_id: str | None = None
    dataset_license: str | None = None
    dataset_url: str | None = None
    dataset_description: str | None = None
    saliency_source: str | None = None
    intended_use: str | None = None
    out_of_scope: str | None = None
    limits: str | None = None
    language: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    base_model: str | None = None
    model_name: str | None = None
    out_of_distribution: list[str] | None = None
    split_names: dict[str, str] = field(default_factory=dict)
    baseline: CardRecord | None = None
    inverted: CardRecord | None = None
    publish_pictures: bool = False
    panel: Any = None
    panel_caption: str | None = None

    def __post_init__(self) -> None:
        for name in _TEXTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name}={value!r} of a card has to be a text.")
            setattr(self, name, (value or "").strip() or None)
        for name in _LISTS:
            value = getattr(self, name)
            if value is None:
                continue
            entries = [value] if isinstance(value, str) else value
            if not isinstance(entries, Sequence) or not all(isinstance(entry, str) for entry in entries):
                raise ValueError(f"{name}={value!r} of a card has to be a text, or a list of texts.")
            setattr(self, name, [line for entry in entries if (line := one_line(entry))])
        for code in self.language:
            if not _LANGUAGE.fullmatch(code):
                raise ValueError(f'language="{code}" of a card is not a language\'s code; give one such as "en".')
        for name in ("dataset_id", "base_model"):
            value = getattr(self, name)
            if value is not None and (value.startswith((".", "/", "~")) or value.count("/") > 1):
                raise ValueError(f'{name}="{value}" of a card is not an id on the Hub; give owner/name.')
        # Now: another working directory would show other paths.
        self.dataset_id = self.dataset_id or hub_id(self.dataset)
        self.dataset = without_place(self.dataset)
        if self.dataset_url is not None and not self.dataset_url.startswith(("https://", "http://")):
            raise ValueError(f'dataset_url="{self.dataset_url}" of a card has to start with https://.')
        if not isinstance(self.split_names, Mapping):
            raise ValueError(f"split_names={self.split_names!r} of a card has to map a prefix to a split's name.")
        if not isinstance(self.publish_pictures, bool):
            raise ValueError(f"publish_pictures={self.publish_pictures!r} of a card has to be true or false.")
        if self.panel is not None and not self.publish_pictures:
            raise ValueError(
                "panel of a card shows pictures of the data; say that they may be published, publish_pictures=True, "
                "or leave it out."
            )
        if isinstance(self.panel, str | Path) and not Path(self.panel).is_file():
            raise ValueError(f'panel="{self.panel}" of a card is not a file; give a PNG, or leave it out.')
        self.baseline = _other("baseline", self.baseline)
        self.inverted = _other("inverted", self.inverted)


def check_facts(facts: Mapping[str, Any]) -> CardFacts:
    """
    Facts from a mapping, as a configuration file or the command line has them.

    Raises:
        ValueError: for a fact that there is not, with the nearest one and all others; and what [`CardFacts`] raises.
    """
    known = [entry.name for entry in fields(CardFacts)]
    for name in facts:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f'"{name}" is not a fact of a card; did you mean "{nearest}"? There are {", ".join(known)}.'
            )
    return CardFacts(**facts)


def _other(name: str, given: Any) -> CardRecord | None:
    """The record of another model's folder."""
    if given is None or isinstance(given, CardRecord):
        return given
    if not isinstance(given, str | Path):
        raise ValueError(f"{name}={given!r} of a card has to be the folder of a saved model, or its CardRecord.")
    record = CardRecord.read(given)
    if record is None:
        raise ValueError(
            f'{name}="{given}" of a card holds no card.json; give the folder of a model that hf_salguide has saved.'
        )
    return record


def is_path(text: str) -> bool:
    """Whether a data set or model is named by a place on this machine."""
    if text.startswith(("/", "./", "../", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", text):
        return True
    return Path(text).exists() or (text.count("/") > 1 and " " not in text)


def hub_id(text: str | None) -> str | None:
    """A name as an id on the Hub, `owner/name`; `None` for anything else."""
    if not text:
        return None
    name = text.removeprefix("hf-hub:").removeprefix("hf_hub:").partition("@")[0]
    return name if HUB_ID.fullmatch(name) and not is_path(name) else None


def without_place(text: str | None) -> str | None:
    """A name as it may be published: of a path its last part alone."""
    if text is None:
        return None
    if not is_path(text):
        return one_line(text)
    path = Path(text.replace("\\", "/"))
    # A home folder is called as its user is.
    at_home = path.expanduser().resolve() == Path.home()
    return None if at_home or path.name in ("", "..", "~") else path.name


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(str(text).split())


def stock_facts(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The facts among the keywords of `Trainer.create_model_card`; a card says no more of the task than it knows."""
    renamed = {"finetuned_from": "base_model", "dataset_tags": "dataset_id"}
    found: dict[str, Any] = {}
    for name, value in keywords.items():
        fact = renamed.get(name, name)
        if value is None or value == [] or fact not in inspect.signature(CardFacts).parameters:
            continue
        if fact in ("dataset", "dataset_id") and isinstance(value, list | tuple):
            value = ", ".join(map(str, value)) if fact == "dataset" else str(value[0])
        if fact == "base_model" and hub_id(str(value)) is None:
            continue
        found[fact] = value
    return found
