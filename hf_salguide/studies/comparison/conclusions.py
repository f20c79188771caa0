"""The conclusions of a comparison, in words that follow from its figures and from nothing else."""

import math
from collections.abc import Iterator, Sequence

from .analysis import ROLES
from .findings import Analysis, Comparison, Control
from .pairing import LEVEL, Condition, arms_of, conditions_of, ordered_runs
from .records import FAILED, Study
from .words import metric_name, number, p_value, percent, with_interval

FEW_SEEDS = 5


def conclude(analysis: Analysis, study: Study) -> str:
    """
    Says in a paragraph what a comparison shows, and what it cannot show.

    A method helped, or did harm, where Student's t-test on the differences paired by seed, corrected by Holm's
    procedure, is below 0.05. With several backbones each is told; of several shares of the annotation, the largest.

    Args:
        analysis ([`Analysis`]): of the study, see [`analyse`].
        study ([`Study`]): for its settings and failures.

    Returns:
        `str`, without a line break.
    """
    sentences = [_opening(analysis, study)]
    for condition in _largest_shares(study):
        for role in ROLES:
            sentences += _on_split(analysis, study, condition, role)
    for backbone in dict.fromkeys(backbone for backbone, _ in conditions_of(study)):
        sentences += _alignment(analysis, study, backbone)
    return " ".join([*sentences, *_caveats(analysis, study)])


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


def _on_split(analysis: Analysis, study: Study, condition: Condition, role: str) -> Iterator[str]:
    def here(row: Comparison | Control) -> bool:
        return (row.split, row.backbone, row.annotated_fraction) == (role, *condition)

    several = len({backbone for backbone, _ in conditions_of(study)}) > 1
    place = ROLES[role] + (f" with {condition[0]}" if several else "")
    rows = [row for row in analysis.comparisons if here(row) and not row.arm.is_plain]
    guided = [row for row in rows if not row.arm.is_control]
    if guided:
        yield from _guided(guided, place)
    told = [row for row in rows if row.arm.is_control and _is_better(row)]
    if told:
        kind = "a control," if len(told) == 1 else "controls,"
        yield f"Here {_listed([_figures(row) for row in told])}, {kind} did better than plain training."
    helped = {row.arm for row in guided if _is_better(row)}
    controls = [control for control in analysis.controls if here(control)]
    for control in controls:
        yield _control(control, control.arm in helped, any(row.arm == control.control for row in told))
    alone = [arm.name for arm in arms_of(study) if arm in helped - {control.arm for control in controls}]
    if alone:
        yield (
            f"No control was run for {_listed(alone)}, so whether the gain {place} is due to where people marked is "
            "open."
        )


def _guided(rows: Sequence[Comparison], place: str) -> Iterator[str]:
    better, worse = [row for row in rows if _is_better(row)], [row for row in rows if _is_worse(row)]
    if not better:
        yield f"No evidence that guidance helped {place}: {_nothing_found(rows)}."
    for found, how in ((better, "better"), (worse, "worse")):
        if found:
            who = f"{len(found)} methods did {how} than plain training: " if len(found) > 1 else ""
            verb = "" if who else f" did {how} than plain training"
            yield f"{_capital(place)}, {who}{_listed([_figures(row) for row in found])}{verb}."
    wide = [row.arm.name for row in better + worse if row.difference_low <= 0 <= row.difference_high]
    if wide:
        one = len(wide) == 1
        yield (
            f"The interval{'' if one else 's'} of {_listed(wide)}, which allow{'s' if one else ''} for other test "
            f"pictures as well as other seeds, include{'s' if one else ''} 0."
        )
    rest = [row for row in rows if row not in better and row not in worse and not math.isnan(row.p_holm)]
    if better and rest:
        who = f"Here {rest[0].arm.name} does" if len(rest) == 1 else f"The other {len(rest)} methods do"
        yield f"{who} not differ from plain training beyond chance."
    untested = [row.arm.name for row in rows if math.isnan(row.p_holm)]
    if untested and len(untested) < len(rows):
        yield f"The difference of {_listed(untested)} to plain training could not be tested {place}."


def _nothing_found(rows: Sequence[Comparison]) -> str:
    """What stands behind "no evidence": the largest difference, and the smallest that could have been found."""
    compared = [row for row in rows if not math.isnan(row.difference)]
    if not compared:
        return "no seed has a finished run of a guided method and of plain training"
    largest = max(compared, key=lambda row: row.difference)
    only = "the difference" if len(compared) == 1 else "the largest difference"
    seen = f"{only} to plain training was {_figures(largest, name_last=True)}"
    if max(row.seeds for row in compared) < 2:
        return f"with one pair of runs, no difference can be told from chance; {seen}"
    if math.isnan(largest.smallest_difference):
        return f"{seen}, the same for every seed"
    corrected = f" ({number(largest.smallest_difference_holm)} with Holm's correction)" if largest.family > 1 else ""
    return (
        f"{seen}, and the smallest difference that this study could have found with a probability of 0.8 is "
        f"{number(largest.smallest_difference)}{corrected}"
    )


def _control(control: Control, helped: bool, control_helped: bool) -> str:
    """Whether a method's gain is more than its control's."""
    names = f"{control.arm.name} minus {control.control.name}"
    if control.seeds < 2 or math.isnan(control.p_holm):
        opened = ", so whether its gain is due to where people marked is open" if helped else ""
        return f"Here {names} could not be tested{opened}."
    shown = with_interval(control.difference, control.low, control.high, signed=True)
    figures = f"{names} is {shown}, {_p(control.p_holm)}"
    beyond = control.p_holm < LEVEL
    if helped and beyond and control.difference > 0:
        part = ", though the control gained as well" if control_helped else ""
        return f"Here {figures}: the gain is more than that of the control{part}."
    if helped:
        return f"Here {figures}: the gain cannot be ascribed to where people marked."
    if beyond:
        return f"Here {figures}, {'above' if control.difference > 0 else 'below'} the control."
    return f"Here {figures}: method and control do not differ beyond chance."


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
        yield f"Of {_listed(lost)} every run failed, and nothing can be said."
    if study.missing:
        yield f"{_count(study.missing, 'planned run')} {'is' if study.missing == 1 else 'are'} still missing."
    if study.settings.get("rows", {}).get(study.settings["splits"].get("train"), {}).get("annotated") == 0:
        yield "No training picture is annotated, so guidance had nothing to learn from."
    shares = sorted({share for _, share in conditions_of(study)})
    if len(shares) > 1:
        others = _listed([percent(share) for share in shares[:-1]])
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


def _is_better(row: Comparison) -> bool:
    return row.p_holm < LEVEL and row.difference > 0


def _is_worse(row: Comparison) -> bool:
    return row.p_holm < LEVEL and row.difference < 0


def _figures(row: Comparison, name_last: bool = False) -> str:
    """`cyborg (+0.138 [+0.065, +0.210], p = 0.013)`, or the figure first."""
    difference = with_interval(row.difference, row.difference_low, row.difference_high, signed=True)
    tested = "" if math.isnan(row.p_holm) else f", {_p(row.p_holm)}"
    return f"{difference} ({row.arm.name}{tested})" if name_last else f"{row.arm.name} ({difference}{tested})"


def _p(value: float) -> str:
    text = p_value(value)
    if text.startswith("<"):
        return f"p {text}"
    return f"p = {value:.4f}" if text == p_value(LEVEL) else f"p = {text}"  # on which side of the level it is


def _share(share: float) -> str:
    return "all of the annotation" if share == 1 else f"{percent(share)} of the annotation"


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}" + ("" if number_of == 1 else "s")


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
