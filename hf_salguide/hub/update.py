"""New results and facts in the card of a saved model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .card import write_card
from .compared import check_pictures, compared
from .facts import CardFacts, hub_id, without_place
from .record import CardRecord, DataFacts, SplitFacts, SplitResult
from .run_facts import model_facts


def update_card(
    folder: str | Path,
    model: Any,
    results: Iterable[SplitResult],
    facts: CardFacts | None = None,
    data: str | None = None,
) -> CardRecord:
    """
    Puts results and facts into the card of a saved model, and writes it; what else it says stays.

    Args:
        folder (`str` or `Path`): where the model is saved.
        model ([`~transformers.PreTrainedModel`]): the model, for a folder that has no record yet.
        results (iterable of [`SplitResult`]): what was measured; results of the same set are replaced.
        facts ([`CardFacts`], *optional*): what the user tells; what is not told stays as it is. `dataset` is the data
            set that was evaluated: where the model was trained on another, the results say so.
        data (`str`, *optional*): where the pictures were read, of which the name is taken where `facts` tells none and
            the splits' sizes do not show that they are those of the training.

    Returns:
        [`CardRecord`]: what was written.

    Raises:
        ValueError: if `card.json` is no record, a baseline is none of this model's, or a set of a name that the card
            has holds other pictures.
    """
    record = CardRecord.read(folder) or CardRecord(model=model_facts(model))
    facts = facts or CardFacts()
    results = list(results)
    other = _told(record, facts, _evaluated(record, facts, results, data))
    names = {}
    for result in results:
        result.dataset = other
        former = next((one for one in record.results if one.key == result.key), None)
        if former is not None and None not in (former.labels, result.labels) and former.labels != result.labels:
            raise ValueError(
                f'card: "{result.name}" holds other pictures ({result.pictures}) than the card\'s set of that name '
                f'({former.pictures}); tell whose they are, --card \'{{"dataset": "NAME"}}\'.'
            )
        names[result.key] = result
        if other is None and record.data is not None and result.name not in [one.name for one in record.data.splits]:
            record.data.splits.append(SplitFacts(result.name, result.pictures, result.annotated))
    kept = [names.pop(result.key, result) for result in record.results]
    record.results = [*kept, *names.values()]
    check_pictures(record, record.baseline, "baseline")
    check_pictures(record, record.inverted, "inverted")
    if facts.baseline is not None:
        record.baseline = compared(record, facts.baseline, "baseline")
    if facts.inverted is not None:
        record.inverted = compared(record, facts.inverted, "inverted")
    write_card(folder, record)
    return record


def _evaluated(record: CardRecord, facts: CardFacts, results: Iterable[SplitResult], data: str | None) -> str | None:
    """The data set that was evaluated, as it is told; else that of the training, where a split is of its size."""
    known = record.data or DataFacts()
    if facts.dataset is not None or data is None:
        return facts.dataset
    sizes = {split.name: split.pictures for split in known.splits}
    if any(sizes.get(result.name) == result.pictures for result in results):
        return known.hub_id or known.name or without_place(data)
    return without_place(data)


def _told(record: CardRecord, facts: CardFacts, evaluated: str | None) -> str | None:
    """Puts facts into a record; gives the data set that was evaluated, where it is not that of the training."""
    for name in ("license", "intended_use", "out_of_scope", "limits"):
        setattr(record, name, getattr(facts, name) or getattr(record, name))
    record.language = facts.language or record.language
    record.tags = list(dict.fromkeys([*record.tags, *facts.tags]))
    record.model.name = facts.model_name or record.model.name
    record.model.base_model = hub_id(facts.base_model) or record.model.base_model
    known = record.data or DataFacts()
    trained_on = known.hub_id or known.name
    if evaluated is not None and trained_on is not None and evaluated not in (known.hub_id, known.name):
        return evaluated
    if record.data is None and evaluated is not None:
        record.data = known
    if record.data is not None:
        record.data.name = record.data.name or evaluated
        record.data.hub_id = record.data.hub_id or facts.dataset_id
        record.data.license = facts.dataset_license or record.data.license
        record.data.url = facts.dataset_url or record.data.url
        record.data.description = facts.dataset_description or record.data.description
        record.data.saliency_source = facts.saliency_source or record.data.saliency_source
    return None
