"""Presentation attack detection against the definitions of ISO/IEC 30107-3."""

import math

import numpy as np
import pytest

from hf_salguide.metrics import apcer_at_bpcer, attack_errors, attack_scores, presentation_attack_metrics

pytestmark = pytest.mark.filterwarnings("error")

TYPES = np.array(["print", "lens", "glass"])


def sample(count=120, seed=0):
    """Attack labels, scores with ties and each attack's type; bona fide pictures have none."""
    generator = np.random.default_rng(seed)
    attacks = generator.integers(0, 2, count)
    kinds = TYPES[generator.integers(0, 3, count)]
    easier = {"print": 2.0, "lens": 0.5, "glass": 1.0}
    scores = generator.normal(size=count) + attacks * np.array([easier[kind] for kind in kinds])
    return attacks, scores.round(1), [kind if attack else None for kind, attack in zip(kinds, attacks, strict=True)]


def two(scores):
    return np.stack([1 - np.asarray(scores), np.asarray(scores)], axis=1)


def test_the_rates_by_hand():
    attacks = [1, 1, 1, 1, 0, 0]
    scores = [0.9, 0.4, 0.2, 0.8, 0.1, 0.7]
    found = attack_errors(attacks, scores, 0.5, ["print", "print", "lens", "print", None, None])
    assert found.apcer_by_type == {"print": pytest.approx(1 / 3), "lens": 1.0}
    assert (found.apcer, found.apcer_all, found.bpcer, found.acer) == (1.0, 0.5, 0.5, 0.75)
    pooled = attack_errors(attacks, scores, 0.5)
    assert (pooled.apcer, pooled.acer, pooled.apcer_by_type) == (0.5, 0.5, {})


def test_a_tie_with_the_threshold_is_an_attack():
    found = attack_errors([1, 0], [0.5, 0.5], 0.5)
    assert (found.apcer, found.bpcer) == (0.0, 1.0)
    metrics = presentation_attack_metrics([0, 1], two([0.5, 0.5]), bona_fide=0)
    assert (metrics["apcer"], metrics["bpcer"]) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("wanted", [0.01, 0.05, 0.1, 0.3])
def test_apcer_at_bpcer_is_the_least_that_the_rate_allows(seed, wanted):
    attacks, scores, types = sample(seed=seed)
    found = apcer_at_bpcer(attacks, scores, wanted, types)
    spoof, live, kinds = scores[attacks == 1], scores[attacks == 0], np.array(types)[attacks == 1]
    allowed = [threshold for threshold in [*scores, np.inf] if (live >= threshold).mean() <= wanted]
    assert found.bpcer <= wanted
    assert found.apcer_all == pytest.approx(min((spoof < threshold).mean() for threshold in allowed))
    expected = min(max((spoof[kinds == kind] < threshold).mean() for kind in TYPES) for threshold in allowed)
    assert found.apcer == pytest.approx(expected)
    assert found.apcer > found.apcer_all


def test_the_threshold_is_that_of_validation():
    attacks, scores, types = sample()
    found = apcer_at_bpcer(attacks, scores + 1.0, 0.1, types, validation=(attacks, scores))
    assert found == attack_errors(attacks, scores + 1.0, apcer_at_bpcer(attacks, scores, 0.1).threshold, types)
    assert found.bpcer > 0.1  # the shift of the test pictures shows
    assert apcer_at_bpcer(attacks, scores + 1.0, 0.1).bpcer <= 0.1


def test_the_class_of_bona_fide_pictures_is_asked_for():
    attacks, scores, types = sample()
    probabilities = two(1 / (1 + np.exp(-scores - 0.05)))  # nothing ties with the threshold
    there = presentation_attack_metrics(attacks, probabilities, bona_fide=0, attack_types=types)
    renamed = presentation_attack_metrics(1 - attacks, probabilities[:, ::-1], bona_fide=1, attack_types=types)
    assert renamed == pytest.approx(there)
    flipped = presentation_attack_metrics(attacks, probabilities, bona_fide=1)
    assert flipped["bpcer"] == pytest.approx(there["apcer_all"])
    with pytest.raises(TypeError, match="bona_fide"):
        presentation_attack_metrics(attacks, probabilities)


def test_several_attack_classes_count_as_one():
    probabilities = np.array([[0.4, 0.3, 0.3], [0.6, 0.1, 0.3], [0.2, 0.7, 0.1]])
    np.testing.assert_allclose(attack_scores(probabilities, 0), [0.6, 0.4, 0.8])
    np.testing.assert_allclose(attack_scores(probabilities, 1), [0.7, 0.9, 0.3])
    metrics = presentation_attack_metrics([2, 1, 0], probabilities, bona_fide=0)
    assert (metrics["apcer"], metrics["bpcer"]) == (0.5, 1.0)


def test_the_set_of_figures():
    attacks, scores, types = sample()
    probabilities = two(1 / (1 + np.exp(-scores)))
    other = sample(seed=9)[0], sample(seed=9)[1] - 0.5
    validation = (other[0], two(1 / (1 + np.exp(-other[1]))))
    metrics = presentation_attack_metrics(attacks, probabilities, 0, types, validation)
    assert list(metrics) == [
        *("apcer", "apcer_all", "bpcer", "acer"),
        *("apcer_at_bpcer_1", "bpcer_at_bpcer_1", "apcer_at_bpcer_5", "bpcer_at_bpcer_5"),
        *("apcer_at_bpcer_10", "bpcer_at_bpcer_10"),
    ]
    assert metrics["acer"] == pytest.approx((metrics["apcer"] + metrics["bpcer"]) / 2)
    assert metrics["apcer_at_bpcer_1"] >= metrics["apcer_at_bpcer_5"] >= metrics["apcer_at_bpcer_10"]
    expected = apcer_at_bpcer(attacks, scores, 0.05, types, (other[0], other[1]))
    assert (metrics["apcer_at_bpcer_5"], metrics["bpcer_at_bpcer_5"]) == (expected.apcer, expected.bpcer)
    own = presentation_attack_metrics(attacks, probabilities, 0, types)
    assert own["bpcer_at_bpcer_5"] <= 0.05
    assert own["apcer_at_bpcer_5"] > metrics["apcer_at_bpcer_5"]


def test_attacks_without_a_type_are_not_left_out():
    found = attack_errors([1, 1, 0], [0.9, 0.1, 0.2], 0.5, ["print", None, None])
    assert found.apcer_by_type == {"print": 0.0, None: 1.0}
    assert found.apcer == 1.0


def test_types_of_bona_fide_pictures_are_not_looked_at():
    found = attack_errors([1, 0], [0.9, 0.8], 0.5, ["print", "live"])
    assert found.apcer_by_type == {"print": 0.0}


def test_what_is_not_defined():
    only_live = attack_errors([0, 0], [0.1, 0.9], 0.5, [None, None])
    assert only_live.bpcer == 0.5
    assert all(map(math.isnan, (only_live.apcer, only_live.apcer_all, only_live.acer)))
    only_attacks = attack_errors([1, 1], [0.1, 0.9], 0.5)
    assert only_attacks.apcer == 0.5
    assert math.isnan(only_attacks.bpcer)
    assert math.isnan(only_attacks.acer)
    unset = apcer_at_bpcer([0, 1], [0.1, 0.9], 0.01, ["", "print"], validation=([1], [0.4]))
    assert all(map(math.isnan, (unset.threshold, unset.apcer, unset.bpcer, unset.apcer_by_type["print"])))
    empty = presentation_attack_metrics([], np.zeros((0, 2)), 0, [])
    assert all(map(math.isnan, empty.values()))


def test_constant_scores_pass_nobody_or_everybody():
    metrics = presentation_attack_metrics([0, 1, 1], two([0.3] * 3), bona_fide=0)
    assert (metrics["apcer"], metrics["bpcer"], metrics["apcer_at_bpcer_10"]) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("bona_fide", [2, -1, "live", True, None])
def test_a_bona_fide_class_that_is_none(bona_fide):
    with pytest.raises(ValueError, match=r"bona_fide=.* is no class id; give one of 0 to 1"):
        presentation_attack_metrics([0, 1], two([0.3, 0.4]), bona_fide)


def test_input_that_cannot_be_used():
    with pytest.raises(ValueError, match=r"bpcer=5; give a share"):
        apcer_at_bpcer([0, 1], [0.1, 0.2], 5)
    with pytest.raises(ValueError, match=r"attack_types has 1 rows and labels has 2"):
        attack_errors([0, 1], [0.1, 0.2], 0.5, ["print"])
    with pytest.raises(ValueError, match=r"scores is not finite"):
        attack_errors([0, 1], [0.1, math.inf], 0.5)
