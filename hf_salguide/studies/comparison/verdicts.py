"""What a comparison shows on one test split, in sentences: the guided methods, and each beside its controls."""

import math
from collections.abc import Collection, Iterator, Sequence

from .findings import Analysis, ArmResult, Control
from .pairing import LEVEL, Condition
from .records import Arm
from .words import MOST, listed, number, with_interval, with_p

CHANCE = 0.5


def verdicts(analysis: Analysis, condition: Condition, role: str, place: str) -> Iterator[str]:
    """
    The sentences on one split.

    Args:
        analysis ([`Analysis`]): the figures.
        condition (`tuple`): a backbone and a share of the annotation.
        role (`"in"` or `"out"`): the split.
        place (`str`): the split in words.
    """

    def here(row: ArmResult | Control) -> bool:
        return (row.split, row.backbone, row.annotated_fraction) == (role, *condition)

    rows = [row for row in analysis.comparisons if here(row) and not row.arm.is_plain]
    guided = [row for row in rows if not row.arm.is_control]
    if guided:
        yield from _guided(guided, place)
    if role == "out":
        better = [row for row in guided if _is_better(row)]
        inside = [row for row in analysis.comparisons if row.split == "in" and _is_worse(row)]
        poorer = {(row.arm, row.backbone, row.annotated_fraction) for row in inside}
        yield from _reservations(
            better, {row.arm for row in better if (row.arm, *condition) in poorer}, analysis.metric
        )
    told = [row for row in rows if row.arm.is_control and _is_better(row)]
    if told:
        kind = "a control," if len(told) == 1 else "controls,"
        yield f"Here {listed([_figures(row) for row in told])}, {kind} did better than plain training."
    controls = [control for control in analysis.controls if here(control)]
    gained, alone = {row.arm for row in told}, []
    for row in guided:
        own = [control for control in controls if control.arm == row.arm]
        if own and _is_better(row):
            yield _whose_gain(own, [control for control in own if control.control in gained])
        elif own:
            yield _beside_controls(own)
        elif _is_better(row):
            alone.append(row.arm.name)
    if alone:
        yield (
            f"No control was run for {listed(alone)}, so whether the gain {place} is due to where people marked is "
            "open."
        )


def _reservations(better: Sequence[ArmResult], poorer: Collection[Arm], metric: str) -> Iterator[str]:
    """What to say of a gain out of distribution that a classifier which knows less would have as well."""
    both = [row.arm.name for row in better if row.arm in poorer]
    if both:
        yield (
            f"In distribution {listed(both)} did worse: a gain of this kind may come from having learnt less, of what "
            "misleads and of everything else."
        )
    below = [f"{row.arm.name} ({number(row.mean)})" for row in better if metric == "auroc" and row.mean < CHANCE]
    if below:
        yield f"The AUROC of {listed(below)} is still below {CHANCE}, that of guessing."


def _guided(rows: Sequence[ArmResult], place: str) -> Iterator[str]:
    better, worse = [row for row in rows if _is_better(row)], [row for row in rows if _is_worse(row)]
    tested = [row for row in rows if _is_tested(row)]
    several = [row for row in rows if row.seeds > 1 and not math.isnan(row.difference)]
    compared = tested or several or [row for row in rows if not math.isnan(row.difference)]
    if not better:
        yield _nothing_found(compared, place)
    for found, how in ((better, "better"), (worse, "worse")):
        if found:
            who = f"{len(found)} methods did {how} than plain training: " if len(found) > 1 else ""
            verb = "" if who else f" did {how} than plain training"
            yield f"{place[:1].upper()}{place[1:]}, {who}{listed([_figures(row) for row in found])}{verb}."
    wide = [row.arm.name for row in better + worse if row.difference_low <= 0 <= row.difference_high]
    if wide:
        one = len(wide) == 1
        yield (
            f"The interval{'' if one else 's'} of {listed(wide)}, which allow{'s' if one else ''} for other test "
            f"pictures as well as other seeds, include{'s' if one else ''} 0."
        )
    rest = [row for row in tested if row not in better and row not in worse]
    if better and rest:
        who = f"Here {rest[0].arm.name}" if len(rest) == 1 else f"The other {len(rest)} methods"
        yield f"{who} cannot be told apart from plain training."
    left = [row for row in rows if row not in compared]
    if compared and left:
        which = listed([f"{row.arm.name} ({_untested(row)})" for row in left])
        yield f"The difference to plain training could not be tested {place} for {which}."


def _nothing_found(compared: Sequence[ArmResult], place: str) -> str:
    """What stands behind "no evidence": the largest difference, and the smallest that could have been found."""
    none = f"No evidence that guidance helped {place}"
    if not compared:
        return f"{none}: no seed has a finished run of a guided method and of plain training."
    largest = max(compared, key=lambda row: row.difference)
    only = "the difference" if len(compared) == 1 else "the largest difference"
    seen = f"{only} to plain training was {_figures(largest, name_last=True)}"
    if largest.seeds < 2:
        return f"{none}: with one pair of runs, no difference can be told from chance; {seen}."
    if not _is_tested(largest):
        return f"Whether guidance helped {place} could not be tested: {seen}, the same for every seed."
    same = ", the same for every seed" if math.isnan(largest.smallest_difference) else ""
    return f"{none}: {seen}{same}{_could_be_found(compared)}."


def _untested(row: ArmResult) -> str:
    if not row.seeds:
        return "no pair of runs"
    why = "one pair of runs" if row.seeds == 1 else "the same for every seed"
    return f"{number(row.difference, signed=True)}, {why}"


def _could_be_found(tested: Sequence[ArmResult]) -> str:
    """The range, over the methods, of the smallest difference that could have been found."""
    rows = [row for row in tested if not math.isnan(row.smallest_difference)]
    if not rows:
        return ""
    span, without = _span([row.smallest_difference for row in rows])
    if not span:
        return ", and no possible difference could have been found with a probability of 0.8"
    corrected, corrected_without = _span([row.smallest_difference_holm for row in rows])
    whose = ", by method" if len(rows) > 1 else f" for {rows[0].arm.name}" if len(tested) > 1 else ""
    text = f", and the smallest difference that this study could have found with a probability of 0.8 is {span}{whose}"
    if max(row.family for row in rows) > 1:
        text += f" ({corrected or 'none that is possible'} with Holm's correction{corrected_without})"
    return text + without


def _span(values: Sequence[float]) -> tuple[str, str]:
    """From the least to the most of the differences that are possible, and how many are not."""
    possible = [number(value) for value in sorted(values) if value <= MOST]
    if not possible:
        return "", ""
    left = len(values) - len(possible)
    without = f"; for {left} of {len(values)} methods, no possible difference could have been found" if left else ""
    same = possible[0] == possible[-1]
    return (possible[0] if same else f"between {possible[0]} and {possible[-1]}"), without


def _whose_gain(controls: Sequence[Control], gained: Sequence[Control]) -> str:
    """The verdict on a method that did better than plain training: its gain has to be above that of every control."""
    told = _told(controls)
    above = [one.control.name for one in controls if _differs(one) and one.difference > 0]
    level = [one.control.name for one in controls if _was_tested(one) and one.control.name not in above]
    more = f"{told}: the gain is more than that of {listed(above)}" if above else told
    if level:
        verdict = f" but not than that of {_either(level)}, so it" if above else ": the gain"
        return f"{more}{verdict} cannot be attributed to where people marked."
    if len(above) < len(controls):
        verdict = ", but whether it" if above else ", so whether its gain"
        return f"{more}{verdict} is due to where people marked is open."
    which = "the control" if len(above) == 1 else "every control"
    if gained:
        who = which if len(gained) == len(above) else listed([one.control.name for one in gained])
        return (
            f"{told}: the gain is more than that of {which}, though {who} gained as well; only what is above that can "
            "be attributed to where people marked."
        )
    return f"{told}: the gain is more than that of {which}, and can be attributed to where people marked."


def _beside_controls(controls: Sequence[Control]) -> str:
    """A method that did not do better than plain training, beside its controls."""
    told = _told(controls)
    tested = [control for control in controls if _was_tested(control)]
    if not tested:
        return f"{told}."
    parts = []
    for where, sign in (("above", 1), ("below", -1)):
        names = [one.control.name for one in tested if _differs(one) and sign * one.difference > 0]
        if names:
            parts.append(f"{where} {'the control' if len(controls) == 1 else listed(names)}")
    alike = [one.control.name for one in tested if not _differs(one)]
    if not parts:
        which = "control" if len(tested) == 1 else "controls"
        return f"{told}: method and {which} cannot be told apart."
    rest = f", and cannot be told apart from {_either(alike)}" if alike else ""
    return f"{told}: {listed(parts)}{rest}."


def _told(controls: Sequence[Control]) -> str:
    return "Here " + ", and ".join(_against(control) for control in controls)


def _against(control: Control) -> str:
    names = f"{control.arm.name} minus {control.control.name}"
    if not _was_tested(control):
        return f"{names} could not be tested"
    shown = with_interval(control.difference, control.low, control.high, signed=True)
    return f"{names} is {shown}, {with_p(control.p_holm)}"


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)


def _was_tested(control: Control) -> bool:
    return not math.isnan(control.p_holm)


def _differs(control: Control) -> bool:
    return control.p_holm < LEVEL


def _is_tested(row: ArmResult) -> bool:
    return not math.isnan(row.p_holm)


def _is_better(row: ArmResult) -> bool:
    return row.p_holm < LEVEL and row.difference > 0


def _is_worse(row: ArmResult) -> bool:
    return row.p_holm < LEVEL and row.difference < 0


def _figures(row: ArmResult, name_last: bool = False) -> str:
    """`cyborg (+0.138 [+0.065, +0.210], p = 0.013)`, or the figure first."""
    difference = with_interval(row.difference, row.difference_low, row.difference_high, signed=True)
    tested = f", {with_p(row.p_holm)}" if _is_tested(row) else ""
    return f"{difference} ({row.arm.name}{tested})" if name_last else f"{row.arm.name} ({difference}{tested})"
