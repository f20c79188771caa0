"""Error rates of presentation attack detection, ISO/IEC 30107-3."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import check_probabilities, check_probability_rows, check_scores, encode_groups
from .thresholds import threshold_at_specificity


class AttackErrors(NamedTuple):
    """
    Error rates at a threshold.

    Attributes:
        threshold (`float`): a picture counts as an attack where its attack score is at least this.
        apcer (`float`): attack presentation classification error rate: the highest over the attack types, or over all
            attacks together where no types are given.
        bpcer (`float`): bona fide presentation classification error rate.
        acer (`float`): mean of `apcer` and `bpcer`.
        apcer_all (`float`): share of all attacks, whatever their type, that pass for bona fide.
        apcer_by_type (`dict`): of each attack type, in the order in which they come; empty without types.
    """

    threshold: float
    apcer: float
    bpcer: float
    acer: float
    apcer_all: float
    apcer_by_type: dict[Hashable, float]


def attack_scores(probabilities: ArrayLike, bona_fide: int) -> NDArray[np.float64]:
    """
    One attack score a picture: 1 - probability of the bona fide class, so that several attack classes count as one.

    Args:
        probabilities (`array` of shape `(N, K)`): class probabilities.
        bona_fide (`int`): id of the class of genuine pictures. There is no default: with the wrong one every rate
            becomes its opposite.

    Returns:
        `array` of shape `(N,)` in [0, 1], higher for attacks.

    Raises:
        ValueError: for probabilities that are not finite or outside [0, 1], and an id that is no class.
    """
    given = check_probability_rows(probabilities)
    if isinstance(bona_fide, bool) or bona_fide not in range(given.shape[1]):
        raise ValueError(
            f"bona_fide={bona_fide!r} is no class id; give one of 0 to {given.shape[1] - 1}, the class of genuine "
            "pictures (names.index(name) of the class names)."
        )
    return 1 - given[:, int(bona_fide)]


def attack_errors(
    attacks: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    attack_types: Iterable[Hashable] | None = None,
) -> AttackErrors:
    """
    APCER, BPCER and ACER at a threshold: a picture is classified as an attack where `score >= threshold`.

    APCER is the share of attacks that are classified as bona fide, BPCER the share of bona fide pictures that are
    classified as attacks. ISO/IEC 30107-3 asks for APCER of each attack type (presentation attack instrument species)
    and takes the worst of them; pooled, a frequent easy type hides a rare one that always passes.

    Args:
        attacks (`array` of shape `(N,)`): whether each picture is an attack (1) or bona fide (0).
        scores (`array` of shape `(N,)`): any finite score, higher for attacks.
        threshold (`float`): the threshold, taken elsewhere.
        attack_types (`Iterable` of length `N`, *optional*): each picture's attack type, of any hashable type; those
            of bona fide pictures are not looked at. Attacks whose type is `None` or NaN are a type, `None`, of their
            own.

    Returns:
        `AttackErrors`, rates in [0, 1]. The rates of attacks are NaN without attacks, `bpcer` is NaN without bona fide
        pictures, `acer` where either is, and all are for a threshold that is NaN.

    Raises:
        ValueError: for scores that are not finite, labels other than 0 and 1, types of another length or not hashable.
    """
    attacks, scores = check_scores(attacks, scores)
    attack = attacks == 1
    missed = np.where(math.isnan(threshold), np.nan, scores < threshold)
    by_type: dict[Hashable, float] = {}
    if attack_types is not None:
        codes, names = encode_groups(attack_types, len(attacks), "attack_types")
        found = dict.fromkeys(codes[attack].tolist())
        by_type = {None if code < 0 else names[code]: _mean(missed[attack & (codes == code)]) for code in found}
    apcer_all, bpcer = _mean(missed[attack]), _mean(1 - missed[~attack])
    apcer = max(by_type.values()) if by_type else apcer_all
    return AttackErrors(float(threshold), apcer, bpcer, (apcer + bpcer) / 2, apcer_all, by_type)


def apcer_at_bpcer(
    attacks: ArrayLike,
    scores: ArrayLike,
    bpcer: float,
    attack_types: Iterable[Hashable] | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
) -> AttackErrors:
    """
    The error rates at the threshold with at most the wanted BPCER on validation.

    The threshold is the lowest that rejects at most that share of the bona fide validation pictures (see
    [`threshold_at_specificity`], specificity = 1 - BPCER). On the test pictures it gives another BPCER, which is
    returned. With fewer than 100 bona fide pictures BPCER = 1 % is BPCER = 0.

    Args:
        attacks (`array` of shape `(N,)`): whether each test picture is an attack (1) or bona fide (0).
        scores (`array` of shape `(N,)`): any finite score, higher for attacks.
        bpcer (`float`): the wanted rate, in [0, 1]: 0.01 for 1 %.
        attack_types (`Iterable` of length `N`, *optional*): as [`attack_errors`].
        validation (`tuple` of attacks and scores, *optional*): where the threshold is taken. Without it, it is taken
            on the test pictures themselves, which is optimistic: say so where the figure is shown.

    Returns:
        `AttackErrors` on the test pictures; NaN without bona fide pictures to take the threshold from.

    Raises:
        ValueError: as [`attack_errors`], and for a rate outside [0, 1].
    """
    if not 0 <= bpcer <= 1:
        raise ValueError(f"bpcer={bpcer}; give a share in [0, 1], such as 0.01 for 1 %.")
    threshold = threshold_at_specificity(*(validation or (attacks, scores)), 1 - bpcer)
    return attack_errors(attacks, scores, threshold, attack_types)


def presentation_attack_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    bona_fide: int,
    attack_types: Iterable[Hashable] | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    threshold: float = 0.5,
    rates: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """
    The figures of ISO/IEC 30107-3 from class probabilities.

    Args:
        labels (`array` of shape `(N,)`): true class ids; every class but the bona fide one is an attack.
        probabilities (`array` of shape `(N, K)`): class probabilities.
        bona_fide (`int`): id of the class of genuine pictures.
        attack_types (`Iterable` of length `N`, *optional*): as [`attack_errors`].
        validation (`tuple` of labels and probabilities, *optional*): where the thresholds of the wanted BPCER are
            taken; without it on the test pictures themselves, which is optimistic.
        threshold (`float`, *optional*, defaults to 0.5): the fixed threshold of the attack score, which is 1 -
            probability of bona fide.
        rates (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): wanted BPCER in per cent.

    Returns:
        `dict` with `apcer` (the worst type's, where types are given), `apcer_all`, `bpcer` and `acer` at the fixed
        threshold, and for each rate `apcer_at_bpcer_1` and the BPCER that the test pictures have there,
        `bpcer_at_bpcer_1`. All in [0, 1]; NaN where not defined: see [`attack_errors`].

    Raises:
        ValueError: as [`attack_scores`] and [`apcer_at_bpcer`].
    """
    attacks, scores = _attacks(labels, probabilities, bona_fide)
    reference = None if validation is None else _attacks(*validation, bona_fide)
    types = None if attack_types is None else list(attack_types)
    fixed = attack_errors(attacks, scores, threshold, types)
    metrics = {"apcer": fixed.apcer, "apcer_all": fixed.apcer_all, "bpcer": fixed.bpcer, "acer": fixed.acer}
    for rate in rates:
        found = apcer_at_bpcer(attacks, scores, rate / 100, types, reference)
        metrics |= {f"apcer_at_bpcer_{rate}": found.apcer, f"bpcer_at_bpcer_{rate}": found.bpcer}
    return metrics


def _attacks(
    labels: ArrayLike, probabilities: ArrayLike, bona_fide: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    labels, probabilities = check_probabilities(labels, probabilities)
    return labels != bona_fide, attack_scores(probabilities, bona_fide)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan
