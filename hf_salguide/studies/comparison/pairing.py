"""The runs of a comparison on one test split: paired by seed, on the same resamples of the pictures."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .findings import ArmResult, Control
from .intervals import draw_seeds, resampled_metric, two_level_interval
from .records import BASELINE, DONE, FAILED, Arm, RunRecord, Study
from .statistics import holm, identical, paired_t_test, signed_rank_test, smallest_difference

LEVEL = 0.05  # of the tests
_PICTURES, _SEEDS = range(2)  # streams of chance
_NAN = float("nan")

Condition = tuple[str, float]  # backbone, share of the annotation


def ordered_runs(study: Study) -> list[RunRecord]:
    """The runs in an order that does not depend on the one they come in."""
    arms = arms_of(study)

    def place(run: RunRecord) -> tuple[str, float, int, int, str]:
        return run.backbone, run.annotated_fraction, arms.index(run.arm), run.seed, str(run.folder)

    return sorted(study.runs, key=place)


def arms_of(study: Study) -> list[Arm]:
    """Plain training, the methods as the settings list them, the controls."""
    listed = list(study.settings.get("methods", []))

    def place(arm: Arm) -> tuple[bool, bool, int, str, str]:
        index = listed.index(arm.method) if arm.method in listed else len(listed)
        return not arm.is_plain, arm.is_control, index, arm.method, arm.saliency

    return sorted({run.arm for run in study.runs}, key=place)


def conditions_of(study: Study) -> list[Condition]:
    """The backbones and shares of the annotation that methods were run with."""
    listed = list(study.settings.get("backbones", []))
    found = {(run.backbone, run.annotated_fraction) for run in study.runs if not run.arm.is_plain}
    found = found or {(run.backbone, run.annotated_fraction) for run in study.runs}
    return sorted(found, key=lambda one: (listed.index(one[0]) if one[0] in listed else len(listed), *one))


@dataclass(frozen=True)
class Judged:
    """A run on a split: the metric, and the same on the resamples of the pictures, which all runs share."""

    value: float
    resampled: np.ndarray


@dataclass(frozen=True)
class Contrast:
    """Differences of two sets of runs, paired by seed."""

    seeds: int
    difference: float = _NAN
    low: float = _NAN
    high: float = _NAN
    p_value: float = _NAN
    p_signed_rank: float = _NAN
    deviation: float = _NAN


@dataclass(frozen=True)
class SplitTable:
    """The runs of a study on one split."""

    study: Study
    role: str
    cells: dict[tuple[Condition, Arm], dict[int, Judged]]
    notes: list[str]
    resamples: int
    seed: int
    level: float

    @classmethod
    def of(cls, study: Study, role: str, metric: str, resamples: int, seed: int, level: float) -> "SplitTable":
        split, notes = study.settings["splits"][role], []
        runs = [run for run in ordered_runs(study) if run.status == DONE and split in run.metrics]
        values = {run.folder: run_figure(run, split, metric) for run in runs}
        defined = {run.folder: run for run in runs if not math.isnan(values[run.folder])}
        if len(defined) < len(values):
            notes.append(
                f'{metric} is not defined on "{split}" for {len(values) - len(defined)} of {len(values)} runs: the '
                "split does not hold every class, or the scores are not numbers. They are left out."
            )
        resampled = _resample(list(defined.values()), split, metric, resamples, seed)
        cells: dict[tuple[Condition, Arm], dict[int, Judged]] = {}
        for run in runs:
            cell = cells.setdefault(((run.backbone, run.annotated_fraction), run.arm), {})
            if run.seed in cell:
                raise ValueError(
                    f"{run.arm.name} with {run.backbone}, annotated_fraction={run.annotated_fraction:g} and "
                    f"seed={run.seed} was run twice; remove one of the two runs."
                )
            if run.folder in defined:
                cell[run.seed] = Judged(values[run.folder], resampled[run.folder])
        return cls(study, role, cells, notes, resamples, seed, level)

    def runs_of(self, condition: Condition, arm: Arm) -> dict[int, Judged]:
        """By seed. Plain training, which looks at no annotation, stands for every share of it."""
        found = self.cells.get((condition, arm))
        if found is None and arm.is_plain:
            same = [key for key in self.cells if key[0][0] == condition[0] and key[1] == arm]
            found = self.cells[max(same, key=lambda key: key[0][1])] if same else None
        return found or {}

    def interval(self, values: np.ndarray, resampled: np.ndarray, least: float) -> tuple[float, float]:
        """Within the metric's range. As many seeds are drawn alike for every arm."""
        generator = np.random.default_rng([self.seed, _SEEDS, len(values)])
        draws = draw_seeds(len(values), self.resamples, generator)
        low, high = two_level_interval(values, resampled, draws, self.level)
        return float(np.clip(low, least, 1.0)), float(np.clip(high, least, 1.0))

    def contrast(self, runs: dict[int, Judged], others: dict[int, Judged]) -> Contrast:
        """The first minus the others, over the seeds that both have."""
        seeds = sorted(runs.keys() & others.keys())
        if not seeds:
            return Contrast(0)
        values = np.array([runs[one].value - others[one].value for one in seeds])
        if len(seeds) < 2:
            return Contrast(len(seeds), float(values.mean()))
        resampled = np.stack([runs[one].resampled - others[one].resampled for one in seeds])
        return Contrast(
            len(seeds),
            float(values.mean()),
            *self.interval(values, resampled, -1.0),
            paired_t_test(values),
            signed_rank_test(values),
            0.0 if identical(values) else float(values.std(ddof=1)),
        )

    def compare(self, condition: Condition) -> Iterator[ArmResult]:
        """Plain training, then the guided methods and the controls beside it, each with its own correction."""
        arms = [arm for arm in arms_of(self.study) if arm.is_plain or self._tried(condition, arm)]
        plain = self.runs_of(condition, BASELINE)
        contrasts = [Contrast(len(plain)) if arm.is_plain else self._paired(condition, arm, plain) for arm in arms]
        corrected, sizes = np.full(len(arms), _NAN), np.zeros(len(arms), dtype=int)
        for is_control in (False, True):
            family = [index for index, arm in enumerate(arms) if not arm.is_plain and arm.is_control == is_control]
            p_values = [contrasts[index].p_value for index in family]
            corrected[family] = holm(p_values)
            sizes[family] = np.count_nonzero(~np.isnan(p_values))
        for arm, contrast, p_holm, family_size in zip(arms, contrasts, corrected, sizes.tolist(), strict=True):
            yield self._row(condition, arm, contrast, float(p_holm), family_size)

    def _tried(self, condition: Condition, arm: Arm) -> bool:
        return any((run.backbone, run.annotated_fraction) == condition and run.arm == arm for run in self.study.runs)

    def _paired(self, condition: Condition, arm: Arm, others: dict[int, Judged]) -> Contrast:
        return self.contrast(self.runs_of(condition, arm), others)

    def _row(self, condition: Condition, arm: Arm, contrast: Contrast, p_holm: float, family: int) -> ArmResult:
        runs = self.runs_of(condition, arm)
        values = np.array([runs[one].value for one in sorted(runs)])
        low = high = _NAN
        if len(values):
            low, high = self.interval(values, np.stack([runs[one].resampled for one in sorted(runs)]), 0.0)
        return ArmResult(
            arm=arm,
            split=self.role,
            backbone=condition[0],
            annotated_fraction=condition[1],
            seeds=contrast.seeds,
            failed=self._failed(condition, arm),
            mean=float(values.mean()) if len(values) else _NAN,
            low=low,
            high=high,
            difference=contrast.difference,
            difference_low=contrast.low,
            difference_high=contrast.high,
            p_value=contrast.p_value,
            p_holm=p_holm,
            family=family,
            p_signed_rank=contrast.p_signed_rank,
            smallest_difference=smallest_difference(contrast.deviation, contrast.seeds),
            smallest_difference_holm=smallest_difference(contrast.deviation, contrast.seeds, LEVEL / max(family, 1)),
            values=tuple(float(value) for value in values),
        )

    def _failed(self, condition: Condition, arm: Arm) -> int:
        runs = [run for run in self.study.runs if (run.backbone, run.annotated_fraction) == condition]
        return sum(run.arm == arm and run.status == FAILED for run in runs)

    def against_controls(self, condition: Condition) -> list[Control]:
        """Each method with the human saliency minus the same method with another, corrected over all of them."""
        pairs = [
            (Arm(control.method), control)
            for control in arms_of(self.study)
            if control.is_control and self._tried(condition, control) and self._tried(condition, Arm(control.method))
        ]
        contrasts = [self._paired(condition, arm, self.runs_of(condition, control)) for arm, control in pairs]
        p_values = [contrast.p_value for contrast in contrasts]
        return [
            Control(
                arm=arm,
                control=control,
                split=self.role,
                backbone=condition[0],
                annotated_fraction=condition[1],
                seeds=contrast.seeds,
                difference=contrast.difference,
                low=contrast.low,
                high=contrast.high,
                p_value=contrast.p_value,
                p_holm=float(p_holm),
                family=int(np.count_nonzero(~np.isnan(p_values))),
                smallest_difference=smallest_difference(contrast.deviation, contrast.seeds),
            )
            for (arm, control), contrast, p_holm in zip(pairs, contrasts, holm(p_values), strict=True)
        ]


def run_figure(run: RunRecord, split: str, name: str) -> float:
    """
    A figure of a run.

    Raises:
        ValueError: if the run does not have it.
    """
    figures = run.metrics[split]
    if name not in figures:
        raise ValueError(f'metric="{name}" was not computed on "{split}"; choose from {", ".join(sorted(figures))}.')
    return float(figures[name])


def _resample(runs: list[RunRecord], split: str, metric: str, resamples: int, seed: int) -> dict[Path, np.ndarray]:
    """The metric of each run on the same resamples of the split's pictures."""
    if not runs:
        return {}
    first = runs[0].predictions(split)
    probabilities = []
    for run in runs:
        predictions = run.predictions(split)
        if predictions.file_names != first.file_names or not np.array_equal(predictions.labels, first.labels):
            raise ValueError(
                f'"{run.folder.name}" was judged on other pictures of "{split}" than "{runs[0].folder.name}"; '
                "remove one of the two folders and run the comparison again."
            )
        probabilities.append(predictions.probabilities)
    generator = np.random.default_rng([seed, _PICTURES])
    rows = resampled_metric(metric, first.labels, probabilities, first.groups, resamples, generator)
    return dict(zip((run.folder for run in runs), rows, strict=True))
