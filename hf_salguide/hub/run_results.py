"""What a trainer has evaluated, and the data that it was given, as a card has them."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from .facts import CardFacts
from .record import DataFacts, SplitFacts, SplitResult
from .results import is_out_of_distribution, split_result
from .run_facts import column_of, split_facts


def set_name(prefix: str, facts: CardFacts) -> str:
    """What a set is called, whose metrics have a prefix: `eval_ood` are those of `ood`."""
    if prefix in facts.split_names:
        return facts.split_names[prefix]
    return "evaluation" if prefix == "eval" else prefix.removeprefix("eval_")


def selected_on(trainer: Any, facts: CardFacts) -> str | None:
    """The set whose metric chooses the weights; `None` where none is known."""
    sets = getattr(trainer, "eval_dataset", None)
    if not isinstance(sets, Mapping):
        return None if sets is None else set_name("eval", facts)
    metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
    named = [name for name in sets if metric.startswith(f"{name}_")]
    return set_name(f"eval_{max(named, key=len)}", facts) if named else None


class RunResults:
    """
    Reads evaluations and data sets of a trainer, each once: intervals and counts take their time.

    It holds what it has read, so that the same object is known again.
    """

    def __init__(self) -> None:
        self._results: list[tuple[Any, SplitResult]] = []
        self._splits: list[tuple[Any, SplitFacts | None]] = []

    def measured(
        self, trainer: Any, facts: CardFacts, steps: Collection[int], stale: Collection[Any]
    ) -> list[SplitResult]:
        """
        The results of the evaluations that were made after one of `steps`, but for those that are `stale`.

        Args:
            trainer: whose `evaluated` holds the last evaluation of each set, by the prefix of its metrics.
            facts ([`CardFacts`]): what the sets are called, and which are out of distribution.
            steps (collection of `int`): optimizer steps.
            stale (collection): evaluations of other weights.
        """
        return [
            self._result(trainer, facts, prefix, evaluated)
            for prefix, evaluated in getattr(trainer, "evaluated", {}).items()
            if evaluated.pictures and evaluated.step in steps and not any(evaluated is other for other in stale)
        ]

    def data(self, trainer: Any, facts: CardFacts, trained: bool) -> DataFacts | None:
        """What is known of the data; the training set counts if the model was `trained` on it."""
        splits = [self._split("train", getattr(trainer, "train_dataset", None))] if trained else []
        evaluated = getattr(trainer, "eval_dataset", None)
        if isinstance(evaluated, Mapping):
            splits += [self._split(set_name(f"eval_{name}", facts), part) for name, part in evaluated.items()]
        elif evaluated is not None:
            splits.append(self._split(set_name("eval", facts), evaluated))
        data = DataFacts(
            name=facts.dataset,
            hub_id=facts.dataset_id,
            license=facts.dataset_license,
            url=facts.dataset_url,
            description=facts.dataset_description,
            saliency_source=facts.saliency_source,
            splits=[split for split in splits if split is not None],
        )
        return None if data == DataFacts() else data

    def _result(self, trainer: Any, facts: CardFacts, prefix: str, evaluated: Any) -> SplitResult:
        name, told = set_name(prefix, facts), facts.out_of_distribution
        outside = is_out_of_distribution(name) or name in (told or ())
        for known, result in self._results:
            if known is evaluated and result.name == name and result.out_of_distribution == outside:
                return result
        result = split_result(
            name,
            evaluated.labels,
            evaluated.probabilities,
            evaluated.alignment,
            evaluated.annotated,
            groups=_groups(trainer, prefix, evaluated),
            out_of_distribution=outside,
            pictures=evaluated.pictures,
            # What a user's own metric of that name is, is not known.
            metrics=evaluated.metrics if getattr(trainer, "_has_default_metrics", False) else None,
        )
        self._results = [entry for entry in self._results if entry[1].name != name] + [(evaluated, result)]
        return result

    def _split(self, name: str, dataset: Any) -> SplitFacts | None:
        for known, found in self._splits:
            if known is dataset and found is not None and found.name == name:
                return found
        found = split_facts(name, dataset)
        self._splits = [*self._splits[-9:], (dataset, found)]
        return found


def _groups(trainer: Any, prefix: str, evaluated: Any) -> list[Any] | None:
    """Each picture's subject, where the set that was evaluated is known to be the trainer's own."""
    dataset = getattr(trainer, "eval_dataset", None)
    if isinstance(dataset, Mapping):
        dataset = dataset.get(prefix.removeprefix("eval_"))
    elif prefix != "eval":
        return None
    groups = None if dataset is None else column_of(dataset, ["group"])
    labels = None if dataset is None else column_of(dataset, ["labels", "label"])
    if groups is None or labels is None or evaluated.labels is None or len(groups) != evaluated.pictures:
        return None
    if not np.array_equal(np.asarray(labels), np.asarray(evaluated.labels)):
        return None
    return [f"row {row} alone" if group is None else f"group {group}" for row, group in enumerate(groups)]
