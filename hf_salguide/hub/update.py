"""New results and facts in the card of a saved model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .card import write_card
from .compared import check_pictures, compared
from .facts import CardFacts, hub_id
from .record import CardRecord, DataFacts, SplitFacts, SplitResult
from .run_facts import model_facts


def update_card(
    folder: str | Path, model: Any, results: Iterable[SplitResult], facts: CardFacts | None = None
) -> CardRecord:
    """
    Puts results and facts into the card of a saved model, and writes it; what else it says stays.

    Args:
        folder (`str` or `Path`): where the model is saved.
        model ([`~transformers.PreTrainedModel`]): the model, for a folder that has no record yet.
        results (iterable of [`SplitResult`]): what was measured; results of the same set are replaced.
        facts ([`CardFacts`], *optional*): what the user tells; what is not told stays as it is. `dataset` is the data
            set that was evaluated: where the model was trained on another, the results say so.

    Returns:
        [`CardRecord`]: what was written.

    Raises:
        ValueError: if `card.json` is no record, or a baseline is none of this model's.
    """
    record = CardRecord.read(folder) or CardRecord(model=model_facts(model))
    facts = facts or CardFacts()
    other = _told(record, facts)
    names = {}
    for result in results:
        result.dataset = other
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


def _told(record: CardRecord, facts: CardFacts) -> str | None:
    """Puts facts into a record; gives the data set that was evaluated, where it is not that of the training."""
    for name in ("license", "intended_use", "out_of_scope", "limits"):
        setattr(record, name, getattr(facts, name) or getattr(record, name))
    record.language = facts.language or record.language
    record.tags = list(dict.fromkeys([*record.tags, *facts.tags]))
    record.model.name = facts.model_name or record.model.name
    record.model.base_model = hub_id(facts.base_model) or record.model.base_model
    evaluated = facts.dataset
    known = record.data or DataFacts()
    trained_on = known.hub_id or known.name
    if evaluated is not None and trained_on is not None and evaluated not in (known.hub_id, known.name):
        return evaluated
    if record.data is None and facts.dataset is not None:
        record.data = known
    if record.data is not None:
        record.data.name = record.data.name or evaluated
        record.data.hub_id = record.data.hub_id or facts.dataset_id
        record.data.license = facts.dataset_license or record.data.license
        record.data.url = facts.dataset_url or record.data.url
        record.data.description = facts.dataset_description or record.data.description
        record.data.saliency_source = facts.saliency_source or record.data.saliency_source
    return None
