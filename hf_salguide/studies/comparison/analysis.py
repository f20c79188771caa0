"""From the runs of a comparison to what they show, and to what they cannot show and why."""

import math
from collections.abc import Iterable, Iterator

from .correlations import correlations
from .findings import Analysis, ArmResult, Control, Correlation
from .pairing import SplitTable, conditions_of, ordered_runs
from .paths import paths_of, without_paths
from .records import FAILED, Study

__all__ = ["Analysis", "ArmResult", "Control", "Correlation", "analyse"]

ROLES = {"in": "in distribution", "out": "out of distribution"}


def analyse(study: Study, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Analysis:
    """
    Compares every way of training with plain training, and methods with their controls.

    The order of the runs does not matter, and the same seed gives the same figures.

    Args:
        study ([`Study`]): the runs, see [`load_study`].
        resamples (`int`, *optional*, defaults to 1000): of the bootstrap.
        seed (`int`, *optional*, defaults to 0): of the bootstrap.
        level (`float`, *optional*, defaults to 0.95): of the intervals.

    Returns:
        [`Analysis`]

    Raises:
        ValueError: for a metric that the runs do not have or that is not one of AUROC, average precision, accuracy and
            balanced accuracy, for runs that were judged on different pictures, and for two runs of one arm, seed,
            backbone and share of the annotation.
    """
    if not 0 < level < 1 or resamples < 2:
        raise ValueError(f"level={level} has to be between 0 and 1, and resamples={resamples} at least 2.")
    metric = study.settings.get("metric", "auroc")
    comparisons: list[ArmResult] = []
    controls: list[Control] = []
    notes = list(_failure_notes(study))
    for role in ROLES:
        if study.settings["splits"].get(role):
            table = SplitTable.of(study, role, metric, resamples, seed, level)
            notes += table.notes
            for condition in conditions_of(study):
                comparisons += table.compare(condition)
                controls += table.against_controls(condition)
    correlated = tuple(correlations(study, metric, resamples, seed, level))
    notes += _grouped(reason for row in comparisons for reason in _row_reasons(row, study))
    notes += _grouped(reason for one in correlated for reason in _correlation_reasons(one))
    known = paths_of(study)
    failures = {run.folder: run for run in ordered_runs(study) if run.status == FAILED}
    return Analysis(
        metric=metric,
        level=level,
        comparisons=tuple(comparisons),
        controls=tuple(controls),
        correlations=correlated,
        failures=tuple(failures.values()),
        notes=tuple(dict.fromkeys(without_paths(note, known) for note in notes)),
    )


def condition_words(backbone: str, annotated_fraction: float, study: Study) -> str:
    """What tells a backbone and a share of the annotation from the study's others; empty if there are none."""
    conditions = conditions_of(study)
    parts = [f"with {backbone}"] if len({name for name, _ in conditions}) > 1 else []
    if len({share for _, share in conditions}) > 1:
        parts.append(f"with {100 * annotated_fraction:g} % of the annotation")
    return " and ".join(parts)


def _failure_notes(study: Study) -> Iterator[str]:
    runs = {run.folder: run for run in ordered_runs(study)}.values()
    for backbone, arm in dict.fromkeys((run.backbone, run.arm) for run in runs):
        own = [run for run in runs if (run.backbone, run.arm) == (backbone, arm)]
        failed = [run for run in own if run.status == FAILED]
        if not failed:
            continue
        first = (failed[0].error.splitlines() or ["no reason was recorded"])[0]
        if len(failed) == len(own):
            how_many = "the one run failed" if len(own) == 1 else f"all {len(own)} runs failed"
            yield f"{arm.name} with {backbone}: {how_many}, so there is nothing to compare. {first}"
        else:
            left = "is left out, with its pair" if len(failed) == 1 else "are left out, with their pairs"
            yield f"{arm.name} with {backbone}: {len(failed)} of {len(own)} runs failed and {left}. {first}"
    if study.missing:
        yield f"{study.missing} of the planned runs {'is' if study.missing == 1 else 'are'} still missing."
    if not any(run.arm.is_plain for run in runs):
        yield "There is no run of plain training, so there is no difference to it."


def _grouped(reasons: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One note for each reason, with all the places that it holds for."""
    places: dict[str, list[str]] = {}
    for reason, place in reasons:
        places.setdefault(reason, []).append(place)
    for reason, where in places.items():
        yield f"{reason}: {'; '.join(where)}."


def _row_reasons(row: ArmResult, study: Study) -> Iterator[tuple[str, str]]:
    words = [row.arm.name, condition_words(row.backbone, row.annotated_fraction, study), ROLES[row.split]]
    place = ", ".join(word for word in words if word)
    if len(row.values) == 1:
        yield "One run, so the interval of the mean is over the test pictures alone", place
    if row.arm.is_plain or not row.values:
        return
    if row.seeds == 0:
        yield "No seed has both this run and a plain one, so there is no paired difference", place
    elif row.seeds == 1:
        yield "One pair of runs, so there is no interval of the difference and no p-value", place
    elif math.isnan(row.p_value):
        yield "Every seed differs from plain training by the same, so Student's t-test is not defined", place
    elif math.isnan(row.smallest_difference):
        yield "No seed differs from plain training, so what could be found is not defined", place


def _correlation_reasons(one: Correlation) -> Iterator[tuple[str, str]]:
    what = "difference map" if one.alignment.startswith("difference") else "class map"
    place = f"{what}, {one.backbone}, {ROLES[one.split]}"
    if one.left_out:
        runs = "1 run is" if one.left_out == 1 else f"{one.left_out} runs are"
        yield f"Correlation: {runs} left out, whose alignment or metric is not defined", place
    if one.alignment_split != one.split and one.runs:
        yield "Correlation: the alignment is that in distribution, as no other picture is annotated", place
    if not one.runs:
        yield "Correlation not defined, because no run has an alignment (is a test picture annotated?)", place
    elif one.runs < 3:
        yield "Correlation not defined, because there are fewer than three runs", place
    elif math.isnan(one.pearson):
        yield "Correlation not defined, because the alignment or the metric is the same in every run", place
    elif math.isnan(one.low):
        yield "Correlation without an interval, because there are fewer than three ways of training", place
    if not math.isnan(one.pearson) and math.isnan(one.within_arms):
        yield "Correlation within arms not defined, because no arm has runs that differ", place
    elif not math.isnan(one.low) and math.isnan(one.within_low):
        yield "Correlation within arms without an interval, because there are fewer than three seeds", place
