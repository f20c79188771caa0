"""The search for hyper-parameters: the same number of trials for every method, plain training included."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...guidance import guidance_class
from .records import BASELINE, DONE, SEARCH, Arm, read_run

if TYPE_CHECKING:
    from .plan import Comparison
    from .run import RunSpec

WEIGHT = "guidance_weight"


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
            if not isinstance(ends, list | tuple) or len(ends) != 2 or not 0 < ends[0] < ends[1]:
                raise ValueError(
                    f"search: {name}={ends!r} has to be a lower and an upper end above 0, [0.0001, 0.01]."
                )
        if set(self.ranges) == {WEIGHT}:
            raise ValueError(
                f"search has {WEIGHT} alone, which plain training does not have, so that its budget would be none; "
                "search learning_rate as well."
            )

    def describe(self) -> str:
        """One sentence for the report."""
        if self.trials == 1:
            return (
                "Every method, plain training included, had a budget of one configuration: the study's training "
                "settings and the method's published weights; nothing was tuned."
            )
        ranges = ", ".join(f"{name} in [{low:g}, {high:g}]" for name, (low, high) in self.ranges.items())
        return (
            f"Every method, plain training included, had a budget of {self.trials} configurations (the study's "
            f"settings, and {self.trials - 1} drawn log-uniformly: {ranges}; {WEIGHT} as a multiple of the published "
            f"one), of which the best on validation was taken, by runs with a seed that is not in the comparison."
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

    def choose(
        self, specs: Sequence[RunSpec], trials: Sequence[RunSpec]
    ) -> tuple[list[RunSpec], dict[str, dict[str, Any]]]:
        """
        Gives every run the configuration that was best for its method and backbone.

        Args:
            specs (sequence of [`RunSpec`]): the comparison's runs.
            trials (sequence of [`RunSpec`]): the search's, which are over.

        Returns:
            `tuple` of the runs with what was chosen, and what was chosen by backbone and method, for the report. The
            first of equals is taken; a method whose trials all failed keeps the study's settings.
        """
        best: dict[tuple[str, str], tuple[float, RunSpec]] = {}
        for trial in trials:
            found = read_run(trial.folder)
            if found is None or found[0].status != DONE:
                continue
            value, key = found[0].metrics[trial.eval_split][trial.metric], (trial.backbone, trial.arm.method)
            if key not in best or value > best[key][0]:
                best[key] = (value, trial)
        chosen: dict[str, dict[str, Any]] = {}
        for (backbone, method), (value, trial) in best.items():
            kept = {name: trial.training[name] for name in self.ranges if name in trial.training}
            chosen.setdefault(backbone, {})[method] = {**kept, f"validation_{trial.metric}": value}
        told = [
            dataclasses.replace(spec, training=best[key][1].training)
            if (key := (spec.backbone, spec.arm.method)) in best
            else spec
            for spec in specs
        ]
        return told, chosen
