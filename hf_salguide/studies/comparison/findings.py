"""What the analysis of a comparison finds: the types that the table, the plots and the conclusions are made from."""

from collections.abc import Sequence
from dataclasses import dataclass

from .records import Arm, RunRecord

EXPLANATION = (
    "Intervals are from a two-level bootstrap: seeds are drawn, then test pictures (whole subjects where groups are "
    "known) within their class, the same for every way of training; the interval of few seeds is widened as Student's "
    "t is.",
    "P-values are of Student's t-test, two-sided, on the differences paired by seed. They speak of other seeds on "
    "these test pictures; the intervals speak of other test pictures as well.",
    "Holm's correction is over a family: the guided methods with human saliency, compared with plain training on one "
    "split, with one backbone and one share of the annotation. The controls that replace the human saliency are a "
    "family of their own when they are compared with plain training, and another when a method is compared with its "
    "controls. There is no correction over splits, backbones and shares.",
    "Rank tests are not used with fewer than 8 seeds: they can hardly reject there, whatever the effect.",
    "The smallest difference that the study could find is the true difference that the paired t-test at the level "
    "0.05, before Holm's correction, finds with probability 0.8, if the differences of that arm vary as they did "
    "here. It is called “none possible” where it is above 1, the largest difference of a metric between 0 and 1.",
    "Correlations are Pearson's, over all runs that did not fail, and within the arms, each arm's means taken off. "
    "The first mixes what methods do with what runs do; the second does not.",
)


@dataclass(frozen=True)
class ArmResult:
    """
    One way of training on one test split, beside plain training.

    A figure that is not defined is NaN, and [`Analysis.notes`] says why.

    Attributes:
        arm ([`Arm`]): the way of training.
        split (`"in"` or `"out"`): in or out of distribution.
        backbone (`str`): the model's name.
        annotated_fraction (`float`): the share of the annotation that was used.
        seeds (`int`): runs that are paired with a plain run of the same seed; of plain training itself, its runs.
        failed (`int`): runs that failed.
        mean, low, high (`float`): the metric over the seeds, with its two-level bootstrap interval; for one seed the
            interval is over the pictures alone.
        difference, difference_low, difference_high (`float`): to plain training, paired by seed, this arm minus plain,
            with its two-level bootstrap interval. NaN for plain training; the ends for fewer than two pairs.
        p_value (`float`): of Student's t-test on the paired differences, two-sided.
        p_holm (`float`): the same, corrected within the family.
        family (`int`): how many tests the family has.
        p_signed_rank (`float`): of Wilcoxon's test, as a check, for 8 pairs or more.
        smallest_difference (`float`): the true difference that the t-test finds with probability 0.8; above 1, no
            possible difference of the metric would be found.
        smallest_difference_holm (`float`): the same at the level of the first step of Holm's correction.
        values (`tuple` of `float`): the metric, one a run, by seed.
    """

    arm: Arm
    split: str
    backbone: str
    annotated_fraction: float
    seeds: int
    failed: int
    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    p_holm: float
    family: int
    p_signed_rank: float
    smallest_difference: float
    smallest_difference_holm: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Control:
    """
    A method with the human saliency minus the same method with another.

    Attributes:
        arm ([`Arm`]): with the human saliency.
        control ([`Arm`]): with the inverted, or a random one.
        split (`str`), backbone (`str`), annotated_fraction (`float`): as in [`ArmResult`].
        seeds (`int`): pairs of runs.
        difference, low, high (`float`): paired by seed, with its two-level bootstrap interval.
        p_value, p_holm (`float`), family (`int`), smallest_difference (`float`): as in [`ArmResult`].
    """

    arm: Arm
    control: Arm
    split: str
    backbone: str
    annotated_fraction: float
    seeds: int
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    family: int
    smallest_difference: float


@dataclass(frozen=True)
class Correlation:
    """
    Correlation of alignment with the metric over the runs of one backbone, all arms and shares of the annotation.

    NaN for fewer than three runs, and where one of the two is the same in every run.

    Attributes:
        split (`"in"` or `"out"`): whose metric it is.
        alignment_split (`str`): where the alignment was measured: the same, or `"in"` if no picture out of
            distribution is annotated.
        alignment (`str`): name of the alignment metric.
        backbone (`str`): the model's name.
        runs (`int`): how many runs.
        left_out (`int`): finished runs whose alignment is not defined.
        arms (`int`): how many ways of training, each share of the annotation counting as one.
        pearson, low, high (`float`): over all runs.
        within_arms, within_low, within_high (`float`): with each arm's mean taken off both: whether, of runs
            trained in the same way, the better aligned are better.
    """

    split: str
    alignment_split: str
    alignment: str
    backbone: str
    runs: int
    left_out: int
    arms: int
    pearson: float
    low: float
    high: float
    within_arms: float
    within_low: float
    within_high: float


@dataclass(frozen=True)
class Analysis:
    """
    What a comparison shows.

    Attributes:
        metric (`str`): the name of the metric that is compared.
        level (`float`): of the intervals.
        comparisons (`tuple` of [`ArmResult`]), controls (`tuple` of [`Control`]), correlations (`tuple` of
            [`Correlation`]): for each split, backbone and share; plain training first, controls last.
        failures (`tuple` of [`RunRecord`]): the runs that failed, each once.
        notes (`tuple` of `str`): what is not defined, and why.
        explanation (`tuple` of `str`): how the figures are made, for those who read them.
    """

    metric: str
    level: float
    comparisons: tuple[ArmResult, ...]
    controls: tuple[Control, ...]
    correlations: tuple[Correlation, ...]
    failures: tuple[RunRecord, ...]
    notes: tuple[str, ...]
    explanation: Sequence[str] = EXPLANATION
