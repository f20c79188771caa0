"""The conclusions of a comparison, in words that follow from its figures and from nothing else."""

import math
from collections.abc import Iterator

from .analysis import ROLES
from .findings import Analysis
from .pairing import Condition, arms_of, conditions_of, ordered_runs
from .paths import paths_of, without_paths
from .records import FAILED, Study
from .verdicts import verdicts
from .words import listed, metric_name, percent, with_interval

FEW_SEEDS = 5


def conclude(analysis: Analysis, study: Study) -> str:
    """
    Says in a paragraph what a comparison shows, and what it cannot show.

    A method helped, or did harm, where Student's t-test on the differences paired by seed, corrected by Holm's
    procedure, is below 0.05. What it gained is attributed to where people marked if it is above every control of its
    own as well. With several backbones each is told; of several shares of the annotation, the largest.

    Args:
        analysis ([`Analysis`]): of the study, see [`analyse`].
        study ([`Study`]): for its settings and failures.

    Returns:
        `str`, without a line break.
    """
    sentences = [_opening(analysis, study)]
    several = len({backbone for backbone, _ in conditions_of(study)}) > 1
    for condition in _largest_shares(study):
        for role in ROLES:
            place = ROLES[role] + (f" with {condition[0]}" if several else "")
            sentences += verdicts(analysis, condition, role, place)
    for backbone in dict.fromkeys(backbone for backbone, _ in conditions_of(study)):
        sentences += _alignment(analysis, study, backbone)
    return without_paths(" ".join([*sentences, *_caveats(analysis, study)]), paths_of(study))


def _largest_shares(study: Study) -> list[Condition]:
    largest: dict[str, float] = {}
    for backbone, share in conditions_of(study):
        largest[backbone] = max(share, largest.get(backbone, share))
    return list(largest.items())


def _opening(analysis: Analysis, study: Study) -> str:
    arms = [arm for arm in arms_of(study) if not arm.is_plain and not arm.is_control]
    methods = "one guided method is" if len(arms) == 1 else f"{len(arms) or 'no'} guided methods are"
    pairs = [row.seeds for row in analysis.comparisons if not row.arm.is_plain and row.seeds]
    least, most = min(pairs, default=0), max(pairs, default=0)
    how_many = _count(most, "seed") if least == most else f"{least} to {most} seeds"
    seeds = f", in pairs of runs with the same seed ({how_many})" if most else ""
    return (
        f"In the comparison “{study.settings.get('name', 'comparison')}”, {methods} compared with plain training by "
        f"{metric_name(analysis.metric)}{seeds}; brackets hold {percent(analysis.level)} intervals, and p-values are "
        "corrected by Holm's procedure."
    )


def _alignment(analysis: Analysis, study: Study, backbone: str) -> Iterator[str]:
    """The paper's question: are runs that look at the annotation more the better ones?"""
    found = [one for one in analysis.correlations if one.backbone == backbone and one.alignment == "energy_inside"]
    metric = metric_name(analysis.metric)
    own = f" with {backbone}" if len({name for name, _ in conditions_of(study)}) > 1 else ""
    subject = f"Alignment (the share of a map's energy inside the annotation){own}"
    for one in found:
        if not one.runs:
            yield f"{subject} cannot be related to {metric} {ROLES[one.split]}: no run has both figures."
        elif one.runs < 3:
            yield f"{subject} cannot be related to {metric} {ROLES[one.split]}: there are fewer than three runs."
        elif math.isnan(one.pearson):
            yield f"{subject} cannot be related to {metric} {ROLES[one.split]}: one of them is the same in every run."
        else:
            where = "" if one.alignment_split == one.split else f" {ROLES[one.alignment_split]}"
            over = with_interval(one.pearson, one.low, one.high, signed=True)
            verdict = _direction(one.low, one.high, "better aligned runs", metric)
            yield (
                f"{subject}{where} and {metric} {ROLES[one.split]} correlate by r = {over} over "
                f"{_count(one.runs, 'run')}: {verdict}."
            )
        if not math.isnan(one.within_arms):
            within = with_interval(one.within_arms, one.within_low, one.within_high, signed=True)
            verdict = _direction(one.within_low, one.within_high, "the better aligned ones", metric)
            yield f"Among runs trained in the same way r = {within}: {verdict}."
        subject = f"Alignment{own}"


def _direction(low: float, high: float, who: str, metric: str) -> str:
    if math.isnan(low):
        return "too few ways of training or seeds for an interval"
    if low > 0:
        return f"{who} had the higher {metric}"
    return f"{who} had the lower {metric}" if high < 0 else f"no evidence that {who} had the higher {metric}"


def _caveats(analysis: Analysis, study: Study) -> Iterator[str]:
    """What limits these conclusions."""
    runs = {run.folder: run for run in ordered_runs(study)}.values()
    failed = [run.arm for run in runs if run.status == FAILED]
    if failed:
        arms = [f"{arm.name} {failed.count(arm)}" for arm in dict.fromkeys(failed)]
        left = "is left out with its pair" if len(failed) == 1 else "are left out with their pairs"
        yield f"{len(failed)} of {_count(len(runs), 'run')} failed ({', '.join(arms)}) and {left}."
    lost = [arm.name for arm in dict.fromkeys(failed) if all(run.status == FAILED for run in runs if run.arm == arm)]
    if lost:
        yield f"Of {listed(lost)} every run failed, and nothing can be said."
    if study.missing:
        yield f"{_count(study.missing, 'planned run')} {'is' if study.missing == 1 else 'are'} still missing."
    if study.settings.get("rows", {}).get(study.settings["splits"].get("train"), {}).get("annotated") == 0:
        yield "No training picture is annotated, so guidance had nothing to learn from."
    shares = sorted({share for _, share in conditions_of(study)})
    if len(shares) > 1:
        others = listed([percent(share) for share in shares[:-1]])
        yield (
            f"Differences are told for {_share(shares[-1])}; those for {others} of it are in the table and the curves."
        )
    most = max((len(row.values) for row in analysis.comparisons), default=0)
    if most == 1:
        yield "One seed shows nothing of how much runs differ by chance."
    elif 0 < most < FEW_SEEDS:
        yield f"{most} seeds are few: only large differences could be found."
    if study.settings.get("budget"):
        yield str(study.settings["budget"]).rstrip(". ") + "."
    yield "Whatever was selected was selected on the validation split alone."


def _share(share: float) -> str:
    return "all of the annotation" if share == 1 else f"{percent(share)} of the annotation"


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}" + ("" if number_of == 1 else "s")
