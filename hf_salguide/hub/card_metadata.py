"""The metadata of a card, which the Hub indexes."""

import re
from collections.abc import Iterable
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .facts import hub_id, one_line
from .record import CardRecord

# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = frozenset([
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5",
    "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "isc", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "mpl-2.0", "odc-by", "odbl",
    "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "other",
])  # fmt: skip
TASK = "image-classification"
INDEXED = {"accuracy": ("accuracy", "Accuracy"), "auroc": ("roc_auc", "AUROC")}  # type on the Hub, name
TAGS = ("hf_salguide", "saliency-guided-training")


def card_data(record: CardRecord, repo_id: str | None = None, tags: Iterable[str] = ()) -> ModelCardData:
    """
    The metadata of a card.

    Args:
        record ([`CardRecord`]): what is known.
        repo_id (`str`, *optional*): where it is published.
        tags (iterable of `str`, *optional*): further tags.
    """
    model, training, data = record.model, record.training, record.data
    methods = [] if training is None else [method.name for method in training.methods]
    own = [TAGS[0], *(TAGS[1:] if methods else ()), *methods]
    own += ["control"] if methods and training is not None and training.control else []
    own += ["timm"] if model.library == "timm" else []
    all_tags = [line for tag in [*own, *record.tags, *tags] if (line := one_line(tag))]
    results = eval_results(record)
    base = model.base_model
    relation = "adapter" if model.library == "peft" else "finetune"
    identifier = hub_id(data.hub_id) or data.hub_id if data is not None else None
    return ModelCardData(
        library_name=model.library or "transformers",
        pipeline_tag=TASK,
        tags=list(dict.fromkeys(all_tags)),
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=[identifier] if identifier else None,
        language=record.language or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=title(record, repo_id) if results else None,
        eval_results=results or None,
        **license_data(record.license),
    )


def license_data(told: str | None) -> dict[str, Any]:
    """A license as the Hub has it; one that it does not know is `other`, with its name."""
    if told is None:
        return {}
    name = one_line(told)
    if name.lower() in LICENSES:
        return {"license": name.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-") or "other"}


def title(record: CardRecord, repo_id: str | None = None) -> str:
    """What the card calls the model."""
    name = record.model.name or (repo_id or "").rpartition("/")[2] or record.model.architecture
    return one_line(name or "Image classifier")


def eval_results(record: CardRecord) -> list[EvalResult]:
    """The figures that the Hub knows, a data set and split; none where the data set has no name."""
    data = record.data
    found = []
    for result in record.results:
        name = result.dataset or (None if data is None else data.name or data.hub_id)
        if name is None:
            continue
        identifier = None if result.dataset or data is None else data.hub_id
        for metric, (kind, shown) in INDEXED.items():
            if metric in result.metrics:
                found.append(
                    EvalResult(
                        task_type=TASK,
                        task_name="Image Classification",
                        dataset_type=identifier or re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-") or "data",
                        dataset_name=one_line(name),
                        dataset_split=one_line(result.name),
                        metric_type=kind,
                        metric_name=shown,
                        metric_value=round(result.metrics[metric].value, 4),
                    )
                )
    return found
