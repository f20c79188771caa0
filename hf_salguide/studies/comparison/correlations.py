"""Whether the runs that look at the annotation more are the better ones: alignment against the metric, over runs."""

import math
from collections.abc import Iterator

import numpy as np

from .findings import Correlation
from .intervals import correlation_intervals
from .pairing import conditions_of, ordered_runs, run_figure
from .records import DONE, RunRecord, Study

ALIGNMENTS = ("energy_inside", "difference_energy_inside")
_STREAM = 2  # of chance
_NAN = float("nan")


def correlations(
    study: Study, metric: str, resamples: int, seed: int = 0, level: float = 0.95
) -> Iterator[Correlation]:
    """
    Correlates the alignment of the maps with the metric over the runs of each backbone, on each split.

    Args:
        study ([`Study`]): the runs; those that failed do not count.
        metric (`str`): what is compared.
        resamples (`int`): of the bootstrap.
        seed (`int`, *optional*, defaults to 0): of the bootstrap.
        level (`float`, *optional*, defaults to 0.95): of the intervals.

    Yields:
        [`Correlation`]: of the map of the predicted class and, where it was computed, of the difference map.
    """
    runs = list({run.folder: run for run in ordered_runs(study) if run.status == DONE}.values())
    for backbone in dict.fromkeys(name for name, _ in conditions_of(study)):
        own = [run for run in runs if run.backbone == backbone]
        for role in ("in", "out"):
            split = study.settings["splits"].get(role)
            judged = [run for run in own if split in run.metrics]
            for alignment in ALIGNMENTS:
                if judged and any(alignment in run.metrics[split] for run in judged):
                    where = _measured_on(study, judged, role, alignment)
                    generator = np.random.default_rng([seed, _STREAM])
                    yield _correlation(study, judged, role, where, alignment, metric, resamples, generator, level)


def _measured_on(study: Study, runs: list[RunRecord], role: str, alignment: str) -> str:
    """The split itself; without an annotated picture out of distribution, the one in distribution."""
    own = study.settings["splits"][role]
    return role if any(math.isfinite(_alignment(run, own, alignment)) for run in runs) else "in"


def _alignment(run: RunRecord, split: str, alignment: str) -> float:
    return float(run.metrics.get(split, {}).get(alignment, _NAN))


def _correlation(
    study: Study,
    runs: list[RunRecord],
    role: str,
    where: str,
    alignment: str,
    metric: str,
    resamples: int,
    generator: np.random.Generator,
    level: float,
) -> Correlation:
    splits = study.settings["splits"]
    x = np.array([_alignment(run, splits[where], alignment) for run in runs])
    y = np.array([run_figure(run, splits[role], metric) for run in runs])
    defined = np.isfinite(x) & np.isfinite(y)
    used = [run for run, is_defined in zip(runs, defined, strict=True) if is_defined]
    kinds = [(run.arm, run.annotated_fraction) for run in used]
    over = within = (_NAN, _NAN, _NAN)
    if len(used) > 2:  # two points always lie on a line
        arms = np.array([sorted(set(kinds)).index(kind) for kind in kinds])
        seeds = np.unique([run.seed for run in used], return_inverse=True)[1]
        over, within = correlation_intervals(x[defined], y[defined], arms, seeds, resamples, generator, level)
    return Correlation(
        split=role,
        alignment_split=where,
        alignment=alignment,
        backbone=runs[0].backbone,
        runs=len(used),
        left_out=len(runs) - len(used),
        arms=len(set(kinds)),
        pearson=over[0],
        low=over[1],
        high=over[2],
        within_arms=within[0],
        within_low=within[1],
        within_high=within[2],
    )
