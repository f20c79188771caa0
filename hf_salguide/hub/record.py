"""What is known of a published model: the record from which its card is rendered, `card.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .codec import read_as, without_unknown

logger = logging.get_logger(__name__)

FILE = "card.json"
PANEL = "card_panel.png"  # the one picture that a card shows; a name that nothing else writes
VERSION = 1


@dataclass
class Measured:
    """
    A figure with its 95 % interval.

    Attributes:
        value (`float`): the figure.
        low, high (`float`): the ends of the interval.
        pictures (`int`): how many pictures it was measured on.
    """

    value: float
    low: float
    high: float
    pictures: int


@dataclass
class SplitResult:
    """
    What was measured on one set of pictures.

    Attributes:
        name (`str`): the set's name, such as `"test"`.
        pictures (`int`): how many it has.
        out_of_distribution (`bool`): whether they come from elsewhere than the training pictures.
        metrics (`dict` of [`Measured`]): `accuracy`, `balanced_accuracy`, `auroc`, `calibration_error`.
        alignment (`dict` of [`Measured`]): the means of [`~metrics.alignment_metrics`].
        annotated (`int`): how many of the pictures are annotated.
        groups (`int`, *optional*): how many subjects they are of, where intervals are by subject.
        labels (`str`, *optional*): a digest of the true classes in their order, by which two models' results are known
            to be of the same pictures.
        right (`str`, *optional*): which pictures it named the class of, a bit each in their order, as hexadecimal
            digits: two models' accuracies are compared by picture.
        dataset (`str`, *optional*): the data set, where it is another than that of the training pictures.
    """

    name: str
    pictures: int
    out_of_distribution: bool = False
    metrics: dict[str, Measured] = field(default_factory=dict)
    alignment: dict[str, Measured] = field(default_factory=dict)
    annotated: int = 0
    groups: int | None = None
    labels: str | None = None
    right: str | None = None
    dataset: str | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """By what it is found among the results of another model."""
        return self.name, self.dataset


@dataclass
class MethodFacts:
    """
    A guidance method as it was used.

    Attributes:
        name (`str`): its name in the registry.
        weight (`float`): of its term.
        formula (`str`, *optional*): the term in one line.
        paper (`str`, *optional*): where it is from.
        citations (`list[str]`): BibTeX entries.
        reconstructed (`bool`): whether the formula is not public.
        transforms_inputs, transforms_evaluation (`bool`): whether it changes the pictures and adds no term; whether it
            does so in evaluation too.
        options (`dict`): its options that are not the default.
    """

    name: str
    weight: float | None = None
    formula: str | None = None
    paper: str | None = None
    citations: list[str] = field(default_factory=list)
    reconstructed: bool = False
    transforms_inputs: bool = False
    transforms_evaluation: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainingFacts:
    """
    How the weights were trained.

    Attributes:
        methods (`list` of [`MethodFacts`]): the guidance methods; none for plain training.
        task_weight (`float`, *optional*): the weight of the task's loss.
        schedule (`str`, *optional*): how the guidance weight moved, where it did.
        feature_layers (`list[str]`): the layers that maps were made of.
        empty_mask (`str`, *optional*): what empty masks meant, where it is not the default.
        control (`str`, *optional*): `"random"` or `"inverted"` for a control, whose saliency was not the human one.
        annotated_scale (`bool`): whether the term was divided by the annotated share.
        hyperparameters (`dict`): training arguments that change the result and are not the default.
        seed (`int`, *optional*): of the run.
        weights_step (`int`, *optional*): the step after which the weights are as they are, where later ones were not
            kept.
        continued (`list[str]`): the methods that had guided the weights that training started from.
        steps (`int`, *optional*): optimizer steps.
        runs (`int`): how many trainings, one after the other, made them.
        seconds (`float`, *optional*): how long it took.
        processes (`int`, *optional*): how many there were.
        hardware (`str`, *optional*): what it ran on.
        versions (`dict[str, str]`): of the libraries.
    """

    methods: list[MethodFacts] = field(default_factory=list)
    task_weight: float | None = None
    schedule: str | None = None
    feature_layers: list[str] = field(default_factory=list)
    empty_mask: str | None = None
    control: str | None = None
    annotated_scale: bool = False
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    steps: int | None = None
    weights_step: int | None = None
    continued: list[str] = field(default_factory=list)
    runs: int = 1
    seconds: float | None = None
    processes: int | None = None
    hardware: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class SplitFacts:
    """How many pictures a split has, and how many of them are annotated, where that can be told."""

    name: str
    pictures: int
    annotated: int | None = None


@dataclass
class DataFacts:
    """
    The training data.

    Attributes:
        name (`str`, *optional*): what it is called; never a path.
        hub_id (`str`, *optional*): its id on the Hub.
        license, url (`str`, *optional*): its license, and where it is described.
        description (`str`, *optional*): what the pictures show, and how the splits differ.
        saliency_source (`str`, *optional*): where the saliency is from.
        splits (`list` of [`SplitFacts`]): its size.
    """

    name: str | None = None
    hub_id: str | None = None
    license: str | None = None
    url: str | None = None
    description: str | None = None
    saliency_source: str | None = None
    splits: list[SplitFacts] = field(default_factory=list)


@dataclass
class ModelFacts:
    """
    The model.

    Attributes:
        name (`str`, *optional*): what it is called.
        architecture (`str`, *optional*): a timm name, or a transformers class.
        library (`str`, *optional*): `"timm"`, `"transformers"` or `"peft"`.
        label_names (`list[str]`): the classes, in the order of the logits.
        image_size (`list[int]`, *optional*): `[H, W]` in pixels.
        channels (`int`, *optional*): of the pictures.
        parameters (`int`, *optional*): how many it has.
        base_model (`str`, *optional*): the Hub id of the weights that training started from.
    """

    name: str | None = None
    architecture: str | None = None
    library: str | None = None
    label_names: list[str] = field(default_factory=list)
    image_size: list[int] | None = None
    channels: int | None = None
    parameters: int | None = None
    base_model: str | None = None


@dataclass
class Comparison:
    """
    Another model of the same architecture, trained on the same data.

    Attributes:
        methods (`list[str]`), control (`str`, *optional*), seed (`int`, *optional*): see [`TrainingFacts`].
        arguments (`dict`): its training arguments where they differ, `"default"` for those that it was not told.
        results (`list` of [`SplitResult`]): what was measured of it.
    """

    methods: list[str] = field(default_factory=list)
    control: str | None = None
    seed: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    results: list[SplitResult] = field(default_factory=list)


@dataclass
class CardRecord:
    """
    All that a card says, as data. What is not known is `None` or empty, and the card does not mention it.

    Attributes:
        model ([`ModelFacts`]), training ([`TrainingFacts`], *optional*), data ([`DataFacts`], *optional*): the facts.
        results (`list` of [`SplitResult`]): what was measured.
        selected_on, selected_by (`str`, *optional*): the set and the metric that chose these weights among others.
        baseline, inverted ([`Comparison`], *optional*): the unguided model, and the one of the inverted saliency.
        license (`str`, *optional*), language, tags (`list[str]`): metadata that the user told.
        intended_use, out_of_scope, limits (`str`, *optional*): text that the user told.
        panel (`str`, *optional*): the file of a panel of maps, in the same folder.
        panel_caption (`str`, *optional*): what the panel shows.
        version (`int`): of the record's format.
    """

    model: ModelFacts = field(default_factory=ModelFacts)
    training: TrainingFacts | None = None
    data: DataFacts | None = None
    results: list[SplitResult] = field(default_factory=list)
    selected_on: str | None = None
    selected_by: str | None = None
    baseline: Comparison | None = None
    inverted: Comparison | None = None
    license: str | None = None
    language: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    intended_use: str | None = None
    out_of_scope: str | None = None
    limits: str | None = None
    panel: str | None = None
    panel_caption: str | None = None
    version: int = VERSION

    @classmethod
    def read(cls, folder: str | Path) -> "CardRecord | None":
        """
        Reads a folder's `card.json`; `None` where there is none.

        Raises:
            ValueError: if the file is not a record; the message names it.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls.of(content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a record of a card ({error}); remove it, or save the model anew."
            ) from error

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "CardRecord":
        """
        A record from what [`~CardRecord.as_dict`] gave. What a later version has added is left out, with a warning.

        Raises:
            ValueError, TypeError: if it is none.
        """
        unknown: list[str] = []
        record: CardRecord = read_as(cls, content, "", unknown)
        if unknown or record.version > VERSION:
            logger.warning(
                f"{FILE} is of version {record.version}, and this hf_salguide knows version {VERSION}; left out: "
                f"{', '.join(unknown) or 'nothing'}. Upgrade hf_salguide to have all of it."
            )
        record.version = VERSION
        return record

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON takes it; what is not known is left out."""
        content: dict[str, Any] = without_unknown(asdict(self))
        return content

    def write(self, folder: str | Path) -> Path:
        """Writes `card.json`, the same bytes for the same record; gives its path."""
        path = Path(folder) / FILE
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
        return path
