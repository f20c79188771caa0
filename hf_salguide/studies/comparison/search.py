"""The search for hyper-parameters: the same number of trials for every method, plain training included."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...guidance import guidance_class
from .records import BASELINE, DONE, SEARCH, Arm, read_run, write_json

if TYPE_CHECKING:
    from .plan import Comparison
    from .run import RunSpec

WEIGHT = "guidance_weight"
SEARCH_FILE = "search.json"
_WHOLE = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps")


@dataclass(frozen=True)
class Budget:
    """
    How hyper-parameters are found: `trials` configurations a method, the best by the validation split.

    The first trial is the study's own settings with the method's published weight. The others are drawn
    log-uniformly, as in Viviano et al. (ICLR 2021), the same draws of what methods share for all of them. Trials have
    a seed of their own, so that no run of the comparison was selected on. Controls, and smaller fractions of the
    annotation, take what was found for the method with the human saliency.

    Attributes:
        trials (`int`): configurations a method; 1 is no search: the published defaults for everybody.
        ranges (mapping): the lower and upper end for an argument of [`SaliencyTrainingArguments`], such as
            `learning_rate`; `guidance_weight` is a multiple of the method's published weight, and is drawn for
            methods that have a term only. A plain run's draws go to what it has.
        seed (`int`): of the trials' runs and of the draws.

    Raises:
        ValueError: for a number of trials below 1, trials without ranges or the other way round, or bad ranges.
    """

    trials: int = 1
    ranges: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seed: int = 9000

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials={self.trials} has to be at least 1; 1 takes the published defaults.")
        if (self.trials > 1) != bool(self.ranges):
            raise ValueError(
                f"trials={self.trials} with search={dict(self.ranges)}: give both a number of trials above 1 and "
                'ranges to search, {"learning_rate": [0.0001, 0.01]}, or neither.'
            )
        for name, ends in self.ranges.items():
            numbers = isinstance(ends, list | tuple) and all(type(end) in (int, float) for end in ends)
            if not numbers or len(ends) != 2 or not 0 < ends[0] < ends[1]:
                raise ValueError(
                    f"search: {name}={ends!r} has to be a lower and an upper end above 0, [0.0001, 0.01]."
                )
            if name in _WHOLE:
                raise ValueError(
                    f"search: {name} is not searched: every method is to have the same amount of training."
                )
        if set(self.ranges) == {WEIGHT}:
            raise ValueError(
                f"search has {WEIGHT} alone, which plain training does not have, so that its budget would be none; "
                "search learning_rate as well."
            )

    def describe(self, method_arguments: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """
        One sentence for the report.

        Args:
            method_arguments (mapping, *optional*): what was set by hand for single methods.
        """
        by_hand = [f"{', '.join(given)} of {name}" for name, given in (method_arguments or {}).items() if given]
        exception = f" Set by hand, outside that budget: {'; '.join(by_hand)}." if by_hand else ""
        if self.trials == 1:
            return (
                "Every method, plain training included, had a budget of one configuration: the study's training "
                f"settings and the method's published weights; nothing was tuned.{exception}"
            )
        ranges = ", ".join(f"{name} in [{low:g}, {high:g}]" for name, (low, high) in self.ranges.items())
        return (
            f"Every method, plain training included, had a budget of {self.trials} configurations (the study's "
            f"settings, and {self.trials - 1} drawn log-uniformly: {ranges}; {WEIGHT} as a multiple of the published "
            "one), of which the best on validation was taken, by runs with a seed that is not in the "
            f"comparison.{exception}"
        )

    def trials_of(self, comparison: Comparison, digest: str) -> list[RunSpec]:
        """The runs of the search; none without one."""
        if self.trials == 1:
            return []
        if self.seed in comparison.seeds:
            raise ValueError(f"search_seed={self.seed} is one of seeds; take another, so that no run is selected on.")
        specs = []
        for backbone in comparison.backbones:
            for arm in [arm for arm in comparison.arms if not arm.is_control]:
                for trial, drawn in enumerate(self._draws(arm)):
                    spec = comparison.spec(arm, self.seed, 1.0, backbone, digest, SEARCH, f"_trial{trial}")
                    specs.append(dataclasses.replace(spec, training={**spec.training, **drawn}))
        return specs

    def _draws(self, arm: Arm) -> list[dict[str, float]]:
        """What each trial of a method sets."""
        weight = guidance_class(arm.method).default_weight
        has_term = arm != BASELINE and not guidance_class(arm.method).transforms_inputs
        drawn: list[dict[str, float]] = [{}]
        for trial in range(1, self.trials):
            generator = np.random.default_rng([self.seed, trial])
            values = {
                name: float(f"{low * (high / low) ** generator.random():.4g}")
                for name, (low, high) in sorted(self.ranges.items())
            }
            if WEIGHT in values:
                multiple = values.pop(WEIGHT)
                values |= {WEIGHT: multiple * weight} if has_term else {}
            drawn.append(values)
        return drawn

    def find(self, output: Path, trials: Sequence[RunSpec]) -> Found:
        """
        The best trial of each method and backbone by validation, the first of equals; it is also written down.

        Args:
            output (`Path`): the comparison's folder.
            trials (sequence of [`RunSpec`]): the search's runs, which are over.

        Returns:
            [`Found`]; a method whose trials all failed keeps the study's settings.
        """
        best: dict[tuple[str, str], tuple[float, RunSpec]] = {}
        failed: list[str] = []
        for trial in trials:
            record = read_run(trial.folder)
            if record is None or record[0].status != DONE:
                failed.append(trial.folder.name)
                continue
            value, key = record[0].metrics[trial.eval_split][trial.metric], (trial.backbone, trial.arm.method)
            if key not in best or value > best[key][0]:
                best[key] = (value, trial)
        training: dict[str, dict[str, Any]] = {}
        chosen: dict[str, Any] = {"failed trials": failed} if failed else {}
        for (backbone, method), (value, trial) in best.items():
            kept = {name: trial.training[name] for name in self.ranges if name in trial.training}
            training.setdefault(backbone, {})[method] = dict(trial.training)
            shown = chosen.setdefault(trial.backbone_name, {})
            shown[method] = {**kept, f"validation_{trial.metric}": value}
        write_json(output / SEARCH_FILE, {"trials": _key(trials), "training": training, "chosen": chosen})
        return Found(training, chosen)

    def found_before(self, output: Path, trials: Sequence[RunSpec]) -> Found | None:
        """What a search by the same trials found; `None` if there was none. What is found once stays."""
        path = output / SEARCH_FILE
        if not path.is_file():
            return None
        content = json.loads(path.read_text())
        return Found(content["training"], content["chosen"]) if content["trials"] == _key(trials) else None


@dataclass(frozen=True)
class Found:
    """What a search found: training arguments by backbone and method, and the same for people."""

    training: Mapping[str, Mapping[str, Any]]
    chosen: Mapping[str, Any]

    def applied_to(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """Runs with the configuration that was best for their method and backbone."""
        told = []
        for spec in specs:
            training = self.training.get(spec.backbone, {}).get(spec.arm.method)
            told.append(spec if training is None else dataclasses.replace(spec, training=training))
        return told


def _key(trials: Sequence[RunSpec]) -> list[dict[str, Any]]:
    return [trial.configuration() for trial in trials]
