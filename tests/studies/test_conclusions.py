"""The paragraph of conclusions: what it says follows from the figures, in every combination."""

import dataclasses
import math
import re

import pytest
from synthetic_studies import SPLITS, failed_run, fake_run, simple_study, study_of

from hf_salguide.studies.comparison.analysis import analyse
from hf_salguide.studies.comparison.conclusions import conclude
from hf_salguide.studies.comparison.records import Arm

PLAIN, CYBORG = Arm("none"), Arm("cyborg")
ONLY_IN = {**SPLITS, "out": None}
HELPS = {"cyborg": (0.0, 0.9), "rrr": (0.0, 0.0), "cyborg/inverted": (0.0, 0.0)}


def concluded(study, resamples=60):
    """The paragraph and the analysis behind it."""
    analysis = analyse(study, resamples=resamples)
    return conclude(analysis, study), analysis


def row_of(analysis, arm, split="out"):
    (row,) = [row for row in analysis.comparisons if row.arm == arm and row.split == split]
    return row


def shown(value):
    """A signed figure as the report prints it."""
    return f"{value:+.3f}".replace("-", "−")


def without_arm(study, arm):
    return study_of([run for run in study.runs if run.arm != arm])


def failing(study, fails):
    return study_of([failed_run(run.arm, run.seed) if fails(run) else run for run in study.runs])


def figures_changed(study, split, **changes):
    runs = [
        dataclasses.replace(run, metrics={**run.metrics, split: {**run.metrics[split], **changes}})
        for run in study.runs
    ]
    return study_of(runs)


def two_backbones_two_shares():
    runs = [
        fake_run(arm, seed, {"test": gain}, backbone=backbone, fraction=share, alignment=0.5 + 0.1 * seed)
        for backbone in ("vit_tiny", "resnet18")
        for arm, gain, share in ((PLAIN, 0.0, 1.0), (CYBORG, 0.9, 1.0), (CYBORG, 0.0, 0.25))
        for seed in range(5)
    ]
    return study_of(runs, ONLY_IN)


STUDIES = {
    "helps": lambda: simple_study(HELPS),
    "one seed": lambda: simple_study(HELPS, seeds=1),
    "two seeds": lambda: simple_study(HELPS, seeds=2),
    "one method": lambda: simple_study({"cyborg": (0.0, 0.0)}),
    "no out split": lambda: simple_study(HELPS, splits=ONLY_IN),
    "harms": lambda: simple_study({"cyborg": (-0.9, -0.9), "rrr": (-0.8, 0.9)}),
    "controls help": lambda: simple_study({"cyborg": (0.8, 0.8), "cyborg/inverted": (0.8, 0.8)}),
    "no plain": lambda: without_arm(simple_study(HELPS), PLAIN),
    "plain alone": lambda: simple_study({}),
    "nothing": lambda: study_of([], missing=3),
    "one fails": lambda: failing(simple_study(HELPS), lambda run: (run.arm, run.seed) == (CYBORG, 1)),
    "cyborg fails": lambda: failing(simple_study(HELPS), lambda run: run.arm == CYBORG),
    "plain fails": lambda: failing(simple_study(HELPS), lambda run: run.arm == PLAIN),
    "all fail": lambda: failing(simple_study(HELPS), lambda run: True),
    "one class": lambda: simple_study(HELPS, seeds=3, labels=[1] * 30),
    "no annotation": lambda: figures_changed(simple_study(HELPS), "ood", energy_inside=math.nan),
    "constant alignment": lambda: figures_changed(simple_study(HELPS), "ood", energy_inside=0.5),
    "constant scores": lambda: figures_changed(simple_study(HELPS), "ood", auroc=0.5),
    "backbones": two_backbones_two_shares,
}


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.filterwarnings("error")
def test_the_paragraph_is_english_in_every_combination(name):
    text, _ = concluded(STUDIES[name]())
    assert text.startswith("In the comparison “decoys”, ")
    assert text.endswith("selected on the validation split alone.")
    assert not re.search(r"\bnan\b|None|not defined|\binf\b|  |\n| [,.;:)]|\(\)|\[\]|\.\.|,,|\b1 (runs|seeds)\b", text)
    assert "caus" not in text
    for sentence in re.split(r"(?<=[.])\s", text.replace("vs.", "vs")):
        assert sentence[0].isupper() or sentence[0].isdigit(), sentence
    if name != "plain alone" and name != "nothing":
        assert "No evidence that guidance helped" in text or "did better than plain training" in text


def test_a_method_that_helps_out_of_distribution_alone():
    text, analysis = concluded(simple_study(HELPS))
    row, control = row_of(analysis, CYBORG), next(one for one in analysis.controls if one.split == "out")
    assert row.p_holm < 0.05 < row_of(analysis, CYBORG, "in").p_holm
    interval = f"[{shown(row.difference_low)}, {shown(row.difference_high)}]"
    p_value = f"p = {row.p_holm:.3f}" if row.p_holm >= 0.001 else "p < 0.001"
    expected = f"Out of distribution, cyborg ({shown(row.difference)} {interval}, {p_value}) did better than plain"
    assert expected in text
    assert "Here rrr cannot be told apart from plain training." in text
    assert "No evidence that guidance helped in distribution: " in text
    assert "No evidence that guidance helped out of distribution" not in text
    assert f"Here cyborg minus cyborg (inverted) is {shown(control.difference)}" in text
    assert "the gain is more than that of the control, and can be attributed to where people marked." in text
    assert "cannot be attributed" not in text


def test_no_evidence_is_said_with_what_could_have_been_found():
    text, analysis = concluded(simple_study({"cyborg": (0.0, 0.0), "rrr": (0.0, 0.01)}))
    rows = [row_of(analysis, arm) for arm in (CYBORG, Arm("rrr"))]
    assert min(row.p_holm for row in rows) > 0.05
    largest = max(rows, key=lambda row: row.difference)
    least, most = sorted(row.smallest_difference for row in rows)
    least_holm, most_holm = sorted(row.smallest_difference_holm for row in rows)
    no_evidence = "No evidence that guidance helped out of distribution: the largest difference to plain training was "
    assert no_evidence + shown(largest.difference) in text
    assert (
        "the smallest difference that this study could have found with a probability of 0.8 is "
        f"between {least:.3f} and {most:.3f}, by method (between {least_holm:.3f} and {most_holm:.3f} with Holm's "
        "correction)."
    ) in text
    assert "better than plain" not in text


def test_an_uncorrected_p_value_is_not_enough():
    text, analysis = concluded(simple_study({"cyborg": (0.0, 0.0), "rrr": (0.0, 0.0)}))
    rows = tuple(
        dataclasses.replace(row, difference=0.05, p_value=0.03, p_holm=0.06) if row.arm == CYBORG else row
        for row in analysis.comparisons
    )
    study = simple_study({"cyborg": (0.0, 0.0), "rrr": (0.0, 0.0)})
    text = conclude(dataclasses.replace(analysis, comparisons=rows), study)
    assert text.count("No evidence that guidance helped") == 2
    assert "(cyborg, p = 0.060)" in text


def test_a_control_that_helps_as_much():
    text, analysis = concluded(simple_study({"cyborg": (0.8, 0.8), "cyborg/inverted": (1.2, 1.2)}))
    assert row_of(analysis, CYBORG).p_holm < 0.05
    assert text.count("the gain cannot be attributed to where people marked.") == 2
    assert text.count("cyborg (inverted) (+") == 2  # the control is told to do better, too
    assert ", a control, did better than plain training." in text
    assert "more than that of the control" not in text


def test_a_control_that_helps_less():
    text, _ = concluded(simple_study({"cyborg": (2.0, 2.0), "cyborg/inverted": (0.8, 0.8)}))
    verdict = (
        "the gain is more than that of the control, though the control gained as well; only what is above that can be "
        "attributed to where people marked."
    )
    assert text.count(verdict) == 2
    assert "cannot be attributed" not in text


def test_a_gain_without_a_control():
    text, _ = concluded(simple_study({"cyborg": (0.0, 0.9)}))
    assert (
        "No control was run for cyborg, so whether the gain out of distribution is due to where people marked is open."
    ) in text


def test_a_control_that_cannot_be_compared():
    study = failing(simple_study(HELPS), lambda run: run.arm.is_control and run.seed > 0)
    text, _ = concluded(study)
    assert "Here cyborg minus cyborg (inverted) could not be tested, so whether its gain is due to where" in text
    assert "cannot be attributed" not in text


RRR, INVERTED, RANDOM = Arm("rrr"), Arm("cyborg", "inverted"), Arm("cyborg", "random")
NAN = math.nan
ALIKE = {"seeds": 5, "difference": 0.1, "difference_low": 0.1, "difference_high": 0.1, "p_value": NAN, "p_holm": NAN}
ALIKE |= {"smallest_difference": NAN, "smallest_difference_holm": NAN}
SINGLE = {**ALIKE, "seeds": 1, "difference": 0.4, "difference_low": NAN, "difference_high": NAN}
UNPAIRED = {**SINGLE, "seeds": 0, "difference": NAN}


@pytest.fixture(scope="module")
def nothing():
    study = simple_study({"cyborg": (0.0, 0.0), "rrr": (0.0, 0.0), "sage": (0.0, 0.0)}, splits=ONLY_IN)
    return study, analyse(study, resamples=20)


def changed(nothing, **changes):
    """The paragraph where the figures of some arms are others."""
    study, analysis = nothing
    rows = [dataclasses.replace(row, **changes.get(row.arm.name, {})) for row in analysis.comparisons]
    return conclude(dataclasses.replace(analysis, comparisons=tuple(rows)), study)


def test_one_pair_of_runs_does_not_stand_for_several(nothing):
    text = changed(nothing, cyborg=SINGLE)
    _, analysis = nothing
    largest = max(row.difference for row in analysis.comparisons if row.arm in (RRR, Arm("sage")))
    no_evidence = "No evidence that guidance helped in distribution: the largest difference to plain training was "
    assert no_evidence + shown(largest) in text
    assert (
        "The difference to plain training could not be tested in distribution for cyborg (+0.400, one pair of runs)."
        in text
    )
    assert "the same for every seed" not in text
    text = changed(nothing, cyborg=SINGLE, rrr=UNPAIRED, sage=UNPAIRED)
    assert (
        "helped in distribution: with one pair of runs, no difference can be told from chance; the difference to"
        in text
    )
    assert "in distribution for rrr (no pair of runs) and sage (no pair of runs)." in text


def test_differences_that_are_all_the_same_could_not_be_tested(nothing):
    text = changed(nothing, cyborg=ALIKE, rrr=SINGLE, sage=UNPAIRED)
    assert "No evidence" not in text.partition("Alignment")[0]
    assert (
        "Whether guidance helped in distribution could not be tested: the difference to plain training was +0.100 "
        "[+0.100, +0.100] (cyborg), the same for every seed. The difference to plain training could not be tested in "
        "distribution for rrr (+0.400, one pair of runs) and sage (no pair of runs)."
    ) in text
    text = changed(nothing, cyborg=ALIKE)
    assert "No evidence that guidance helped in distribution: the largest" in text
    assert "could not be tested in distribution for cyborg (+0.100, the same for every seed)." in text
    zero = {**ALIKE, "difference": 0.0, "p_value": 1.0, "p_holm": 1.0}
    text = changed(nothing, cyborg=zero, rrr=zero, sage=zero)
    assert (
        "No evidence that guidance helped in distribution: the largest difference to plain training was 0.000" in text
    )
    assert "p = 1.000), the same for every seed. " in text


def found(least, with_holm, p=0.5):
    return {"p_holm": p, "smallest_difference": least, "smallest_difference_holm": with_holm, "family": 3}


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (
            [(0.2, 0.3), (0.1, 0.4), (0.15, 0.2)],
            "is between 0.100 and 0.200, by method (between 0.200 and 0.400 with Holm's correction).",
        ),
        ([(0.2, 0.3)] * 3, "is 0.200, by method (0.300 with Holm's correction)."),
        (
            [(0.2, 0.3), (0.9, 1.4), (1.2, 2.0)],
            "is between 0.200 and 0.900, by method (0.300 with Holm's correction; for 2 of 3 methods, no possible "
            "difference could have been found); for 1 of 3 methods, no possible difference could have been found.",
        ),
        ([(0.7, 1.1)] * 3, "is 0.700, by method (none that is possible with Holm's correction)."),
        ([(1.1, 1.9)] * 3, ", and no possible difference could have been found with a probability of 0.8."),
    ],
)
def test_what_could_have_been_found_is_a_range_over_the_methods_and_possible(nothing, figures, told):
    text = changed(
        nothing, **{name: found(*one) for name, one in zip(("cyborg", "rrr", "sage"), figures, strict=True)}
    )
    assert told in text
    assert not any(f"{value:.3f}" in text for one in figures for value in one if value > 1)


def test_what_could_have_been_found_by_one_method_names_it(nothing):
    zero = {**ALIKE, "difference": 0.0, "p_holm": 1.0}
    text = changed(nothing, cyborg=found(0.2, 0.3), rrr=zero, sage=zero)
    assert "with a probability of 0.8 is 0.200 for cyborg (0.300 with Holm's correction)." in text


@pytest.fixture(scope="module")
def two_controls():
    study = simple_study(
        {"cyborg": (0.0, 0.0), "cyborg/inverted": (0.0, 0.0), "cyborg/random": (0.0, 0.0)}, splits=ONLY_IN
    )
    return study, analyse(study, resamples=20)


OPEN = "but whether it is due to where people marked is open."


@pytest.mark.parametrize(
    ("p", "controls", "verdict"),
    [
        (0.01, [(0.1, 0.01), (0.1, 0.02)], ": the gain is more than that of every control, and can be attributed to"),
        (
            0.01,
            [(0.1, 0.3), (0.1, 0.02)],
            ": the gain is more than that of cyborg (random) but not than that of cyborg (inverted), so it cannot be "
            "attributed to where people marked.",
        ),
        (0.01, [(0.1, 0.3), (-0.1, 0.02)], ": the gain cannot be attributed to where people marked."),
        (
            0.01,
            [(0.1, 0.3), (NAN, NAN)],
            " could not be tested: the gain cannot be attributed to where people marked.",
        ),
        (
            0.01,
            [(0.1, 0.01), (NAN, NAN)],
            f" could not be tested: the gain is more than that of cyborg (inverted), {OPEN}",
        ),
        (0.01, [(NAN, NAN), (NAN, NAN)], "could not be tested, so whether its gain is due to where people marked is"),
        (0.3, [(0.1, 0.3), (0.1, 0.2)], ": method and controls cannot be told apart."),
        (0.3, [(0.1, 0.01), (0.1, 0.2)], ": above cyborg (inverted), and cannot be told apart from cyborg (random)."),
        (0.3, [(0.1, 0.01), (-0.1, 0.02)], ": above cyborg (inverted) and below cyborg (random)."),
    ],
)
def test_one_verdict_a_method_whatever_its_controls_say(two_controls, p, controls, verdict):
    study, analysis = two_controls
    rows = [
        dataclasses.replace(row, difference=0.1, p_holm=p) if row.arm == CYBORG else row
        for row in analysis.comparisons
    ]
    rows = [dataclasses.replace(row, p_holm=0.9) if row.arm.is_control else row for row in rows]
    figures = dict(zip((INVERTED, RANDOM), controls, strict=True))
    own = [
        dataclasses.replace(one, difference=figures[one.control][0], p_holm=figures[one.control][1])
        for one in analysis.controls
    ]
    text = conclude(dataclasses.replace(analysis, comparisons=tuple(rows), controls=tuple(own)), study)
    (sentence,) = re.findall(
        r"Here cyborg minus cyborg \(inverted\).*?, and cyborg minus cyborg \(random\).*?[a-z)]\. ", text
    )
    assert verdict in sentence
    assert text.count("where people marked") == (p < 0.05)


def test_the_controls_that_gained_are_named(two_controls):
    study, analysis = two_controls
    low = {CYBORG: 0.3, RANDOM: 0.1}
    rows = [
        dataclasses.replace(row, difference=low.get(row.arm, 0.0), p_holm=0.01 if row.arm in low else 0.9)
        for row in analysis.comparisons
    ]
    own = [dataclasses.replace(one, difference=0.2, p_holm=0.01) for one in analysis.controls]
    text = conclude(dataclasses.replace(analysis, comparisons=tuple(rows), controls=tuple(own)), study)
    assert "the gain is more than that of every control, though cyborg (random) gained as well; only what is" in text


def test_no_folder_of_the_machine_is_told():
    study = two_backbones_two_shares()
    paths = {"vit_tiny": "/home/anna b/models/net", "resnet18": "/srv/other"}
    study = study_of(
        [dataclasses.replace(run, backbone=paths[run.backbone]) for run in study.runs]
        + [
            failed_run(
                CYBORG, 9, error="OSError: no room in /home/anna b/models/net/x", backbone="/home/anna b/models/net"
            )
        ],
        ONLY_IN,
    )
    text, analysis = concluded(study)
    assert "In distribution with net, cyborg (+" in text
    for told in (text, " ".join(analysis.notes)):
        assert not re.search("/home|anna|/srv|models", told)
    assert "no room in x" in " ".join(analysis.notes)


def test_methods_that_harm():
    text, analysis = concluded(simple_study({"cyborg": (-0.9, -0.9), "rrr": (-0.8, 0.9)}))
    assert row_of(analysis, CYBORG).p_holm < 0.05
    assert "In distribution, 2 methods did worse than plain training: cyborg (−" in text
    assert "No evidence that guidance helped in distribution" in text
    assert re.search(r"Out of distribution, rrr \(\+[^)]*\) did better than plain training\.", text)
    assert re.search(r"Out of distribution, cyborg \(−[^)]*\) did worse than plain training\.", text)


def test_an_interval_that_includes_zero_though_the_test_does_not():
    study = simple_study(HELPS)
    analysis = analyse(study, resamples=60)
    rows = tuple(
        dataclasses.replace(row, difference_low=-0.01) if row.arm == CYBORG else row for row in analysis.comparisons
    )
    text = conclude(dataclasses.replace(analysis, comparisons=rows), study)
    assert "The interval of cyborg, which allows for other test pictures as well as other seeds, includes 0." in text
    assert "which allow" not in conclude(analysis, study)


def test_few_seeds_failures_budget_and_what_is_missing():
    study = failing(
        simple_study(HELPS, seeds=3), lambda run: run.arm == CYBORG or (run.arm.is_plain and run.seed == 0)
    )
    study = study_of(study.runs, missing=1, rows={"train": {"annotated": 0}})
    text, _ = concluded(study)
    assert "4 of 12 runs failed (plain 1, cyborg 3) and are left out with their pairs." in text
    assert "Of cyborg every run failed, and nothing can be said." in text
    assert "1 planned run is still missing." in text
    assert "No training picture is annotated, so guidance had nothing to learn from." in text
    assert "3 seeds are few: only large differences could be found." in text
    assert "Every method, plain training included, had a budget of one configuration." in text
    assert "are few" not in concluded(simple_study(HELPS))[0]
    assert "failed" not in concluded(simple_study(HELPS))[0]


def test_one_seed_is_no_evidence():
    text, analysis = concluded(simple_study(HELPS, seeds=1))
    assert text.count("with one pair of runs, no difference can be told from chance; the largest difference") == 2
    assert f"to plain training was {shown(row_of(analysis, CYBORG).difference)} (cyborg)" in text
    assert "One seed shows nothing of how much runs differ by chance." in text
    assert "p = " not in text


def test_alignment_and_generalisation():
    text, analysis = concluded(simple_study({**HELPS, "sage": (0.5, 1.2)}, spread=0.3))
    (found,) = [one for one in analysis.correlations if (one.split, one.alignment) == ("out", "energy_inside")]
    assert found.low > 0
    expected = f"AUROC out of distribution correlate by r = {shown(found.pearson)} [{shown(found.low)}, "
    assert expected in text
    assert "over 25 runs: better aligned runs had the higher AUROC." in text
    low_high = {"low": -0.5, "high": 0.5, "within_low": -0.8, "within_high": -0.1}
    changed = dataclasses.replace(found, **low_high)
    text = conclude(dataclasses.replace(analysis, correlations=(changed,)), simple_study(HELPS))
    assert "no evidence that better aligned runs had the higher AUROC." in text
    assert "the better aligned ones had the lower AUROC." in text


def test_alignment_that_is_not_defined():
    text, _ = concluded(STUDIES["no annotation"]())
    assert "in distribution and AUROC out of distribution correlate by" in text
    text, _ = concluded(STUDIES["constant alignment"]())
    assert "cannot be related to AUROC out of distribution: one of them is the same in every run." in text


def test_backbones_and_shares_of_the_annotation():
    text, _ = concluded(two_backbones_two_shares())
    for backbone in ("vit_tiny", "resnet18"):
        assert f"In distribution with {backbone}, cyborg (+" in text
        assert f"annotation) with {backbone} and AUROC in distribution correlate" in text
    assert (
        "Differences are told for all of the annotation; those for 25 % of it are in the table and the curves." in text
    )


def test_names_of_other_metrics():
    study = study_of(simple_study(HELPS).runs, metric="balanced_accuracy")
    runs = [
        dataclasses.replace(
            run,
            metrics={
                split: {**figures, "balanced_accuracy": figures["accuracy"]} if figures else figures
                for split, figures in run.metrics.items()
            },
        )
        for run in study.runs
    ]
    text, _ = concluded(study_of(runs, metric="balanced_accuracy"))
    assert "compared with plain training by balanced accuracy" in text
    assert "AUROC" not in text


def test_a_gain_that_knowing_less_would_give_as_well():
    """Better out of distribution, worse in it, and still below guessing: said, and only then."""
    text, analysis = concluded(simple_study({"cyborg": (-0.9, 0.9)}))
    assert row_of(analysis, CYBORG, "in").p_holm < 0.05
    assert "In distribution cyborg did worse: a gain of this kind may come from having learnt less" in text
    assert "that of guessing" not in text
    rows = [
        dataclasses.replace(row, mean=0.435) if (row.arm, row.split) == (CYBORG, "out") else row
        for row in analysis.comparisons
    ]
    below = dataclasses.replace(analysis, comparisons=tuple(rows))
    study = simple_study({"cyborg": (-0.9, 0.9)})
    assert "The AUROC of cyborg (0.435) is still below 0.5, that of guessing." in conclude(below, study)
    assert "having learnt less" not in concluded(simple_study({"cyborg": (0.0, 0.9)}))[0]
