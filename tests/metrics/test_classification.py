"""Classification metrics against scikit-learn, hand-computed cases and their definitions."""

import math
import time

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, roc_curve

from hf_salguide.metrics import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    calibration,
    calibration_bins,
    calibration_error,
    classification,
    classification_metrics,
    equal_error_rate,
    group_accuracies,
    worst_group,
    worst_group_accuracy,
)

pytestmark = pytest.mark.filterwarnings("error")

ALWAYS = {"accuracy", "balanced_accuracy", "auroc", "average_precision", "calibration_error"}


def sample(count, classes, seed=0, decimals=2):
    """Labels of every class, and probabilities with ties that follow the labels a little."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, count - classes)])
    logits = generator.normal(size=(count, classes)) + 0.7 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    first = probabilities[:, 1:].round(decimals)
    return labels, np.column_stack([1 - first.sum(axis=1), first]).clip(0, 1)


def two(scores):
    scores = np.asarray(scores, dtype=float)
    return np.stack([1 - scores, scores], axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_against_scikit_learn(seed):
    labels, probabilities = sample(80, 2, seed)
    metrics = classification_metrics(labels, probabilities)
    assert set(metrics) == ALWAYS | {"equal_error_rate"}
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=1e-12)
    assert metrics["average_precision"] == pytest.approx(average_precision_score(labels, probabilities[:, 1]))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, probabilities.argmax(1)))
    assert metrics["accuracy"] == pytest.approx((probabilities.argmax(1) == labels).mean())


@pytest.mark.parametrize(("classes", "decimals"), [(3, 2), (5, 2), (5, 0), (40, 1), (40, 12)])
def test_more_classes_are_the_mean_of_one_versus_rest(classes, decimals):
    labels, probabilities = sample(120, classes, decimals=decimals)
    metrics = classification_metrics(labels, probabilities)
    assert set(metrics) == ALWAYS
    one_hot = np.eye(classes)[labels]
    assert metrics["auroc"] == pytest.approx(roc_auc_score(one_hot, probabilities, average="macro"))
    assert metrics["average_precision"] == pytest.approx(
        average_precision_score(one_hot, probabilities, average="macro")
    )


@pytest.mark.parametrize("scores", [[0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.7, 0.7], [0.3, 0.3 + 1e-16, 0.3, 0.3 - 1e-16]])
@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
def test_ties_are_exact(labels, scores):
    probabilities = two(scores)
    assert auroc(labels, probabilities) == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=1e-15)
    expected = average_precision_score(labels, probabilities[:, 1])
    assert average_precision(labels, probabilities) == pytest.approx(expected, abs=1e-15)


def test_a_thousand_classes_do_not_take_seconds():
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.arange(1000), generator.integers(0, 1000, 1000)])
    probabilities = generator.dirichlet(np.ones(1000), 2000)
    start = time.process_time()
    metrics = classification_metrics(labels, probabilities)
    assert time.process_time() - start < 1.0  # one by one with scikit-learn: 4 s
    chosen = generator.integers(0, 1000, 20)
    columns = [roc_auc_score(labels == one, probabilities[:, one]) for one in chosen]
    ours = [auroc(labels == one, two(probabilities[:, one])) for one in chosen]
    assert ours == pytest.approx(columns, abs=1e-12)
    assert metrics["auroc"] == pytest.approx(0.5, abs=0.02)


def test_probabilities_are_checked_once(monkeypatch):
    calls = []
    for module in (classification, calibration):
        checked = module.check_probabilities
        monkeypatch.setattr(module, "check_probabilities", lambda *args, c=checked: (calls.append(1), c(*args))[1])
    labels, probabilities = sample(40, 2)
    classification_metrics(labels, probabilities, ["a", "b"] * 20)
    assert len(calls) == 1


def test_average_precision_by_hand():
    # ranked: 1 0 1 0 -> precision 1 at recall 1/2, 2/3 at recall 1
    assert average_precision([1, 0, 1, 0], two([0.9, 0.8, 0.7, 0.1])) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([0, 1, 0, 1], two([0.9, 0.8, 0.7, 0.1])) == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 4)


def test_the_order_of_pictures_does_not_matter():
    labels, probabilities = sample(60, 2)
    groups = np.array(["a", "b", "c"])[np.arange(60) % 3]
    order = np.random.default_rng(1).permutation(60)
    there = classification_metrics(labels, probabilities, groups)
    assert classification_metrics(labels[order], probabilities[order], groups[order]) == pytest.approx(there)


def test_renaming_two_classes_changes_average_precision_only():
    labels, probabilities = sample(60, 2, decimals=12)  # no ties: the first class wins them
    there, back = (
        classification_metrics(a, b) for a, b in ((labels, probabilities), (1 - labels, probabilities[:, ::-1]))
    )
    different = there.pop("average_precision"), back.pop("average_precision")
    assert different[0] != pytest.approx(different[1])
    assert back == pytest.approx(there)


def test_rank_metrics_know_only_the_order_of_scores():
    labels, probabilities = sample(60, 2)
    bent = two(probabilities[:, 1] ** 3)
    for metric in (auroc, average_precision, equal_error_rate):
        assert metric(labels, bent) == pytest.approx(metric(labels, probabilities))
    assert accuracy(labels, bent) != accuracy(labels, probabilities)
    assert auroc(labels, two(1 - probabilities[:, 1])) == pytest.approx(1 - auroc(labels, probabilities))


# ---- Equal error rate ----


@pytest.mark.parametrize("seed", range(8))
def test_the_equal_error_rate_is_where_the_curve_meets_the_diagonal(seed):
    labels, probabilities = sample(50 + seed, 2, seed, decimals=1 + seed % 3)
    false, true, _ = roc_curve(labels, probabilities[:, 1])
    # A curve has vertical parts: its place along itself is a function, false positives alone are not.
    along = np.linspace(0, 1, len(false))
    excess = lambda place: np.interp(place, along, 1 - true) - np.interp(place, along, false)  # noqa: E731
    expected = np.interp(brentq(excess, 0, 1, xtol=1e-14), along, false)
    assert equal_error_rate(labels, probabilities) == pytest.approx(expected, abs=1e-9)


def test_the_equal_error_rate_by_hand():
    assert equal_error_rate([0, 0, 1, 1], two([0.1, 0.2, 0.8, 0.9])) == 0
    assert equal_error_rate([1, 1, 0, 0], two([0.1, 0.2, 0.8, 0.9])) == 1
    assert equal_error_rate([0, 0, 0, 1, 1, 1], two([0.1, 0.2, 0.8, 0.3, 0.85, 0.9])) == pytest.approx(1 / 3)
    assert equal_error_rate([0, 0, 1, 1], two([0.1, 0.5, 0.5, 0.9])) == pytest.approx(0.25)  # half of the tie


def test_the_equal_error_rate_is_for_two_classes():
    labels, probabilities = sample(20, 3)
    with pytest.raises(ValueError, match=r"probabilities has 3 classes; the equal error rate is defined for two\."):
        equal_error_rate(labels, probabilities)


# ---- Groups ----


def test_the_worst_group_by_hand():
    labels = np.array([0, 1, 1, 0, 1, 1])
    probabilities = two([0.2, 0.9, 0.4, 0.6, 0.8, 0.3])  # right, right, wrong, wrong, right, wrong
    groups = ["sea", "sea", "sea", "land", "land", None]
    assert group_accuracies(labels, probabilities, groups) == {"sea": (pytest.approx(2 / 3), 3), "land": (0.5, 2)}
    assert worst_group(labels, probabilities, groups) == ("land", 0.5, 2)
    assert classification_metrics(labels, probabilities, groups)["worst_group_accuracy"] == 0.5


@pytest.mark.parametrize(
    "names", [[("A", 0), ("B", 1)], [1, "one"], [True, 2.5], [frozenset({1}), frozenset({2})]], ids=str
)
def test_groups_are_of_any_hashable_type(names):
    labels = np.array([0, 0, 1, 1])
    probabilities = two([0.1, 0.9, 0.9, 0.8])
    assert worst_group(labels, probabilities, [names[0], names[0], names[1], names[1]]) == (names[0], 0.5, 2)


def test_groups_of_arrays_and_missing_groups():
    labels, probabilities = sample(40, 2)
    column = np.where(np.arange(40) % 4 == 0, np.nan, np.arange(40) % 3)
    right = probabilities.argmax(1) == labels
    expected = min(right[column == value].mean() for value in range(3))
    assert worst_group_accuracy(labels, probabilities, column) == pytest.approx(expected)


def test_of_equally_bad_groups_the_largest_is_named():
    assert worst_group([0, 0, 0], two([0.9, 0.8, 0.7]), ["few", "many", "many"]).name == "many"


def test_groups_that_cannot_be_used():
    with pytest.raises(ValueError, match=r"groups has 1 rows and labels has 2"):
        worst_group([0, 1], two([0.1, 0.9]), ["a"])
    with pytest.raises(ValueError, match="groups holds a value that is not hashable"):
        worst_group([0, 1], two([0.1, 0.9]), [["a"], ["b"]])


# ---- Calibration ----


@pytest.mark.parametrize(("bins", "classes"), [(15, 2), (10, 3), (1, 2), (7, 5)])
def test_the_calibration_error_is_its_definition(bins, classes):
    labels, probabilities = sample(200, classes, decimals=12)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for one in range(bins):
        inside = (confidence > one / bins) & (confidence <= (one + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(labels, probabilities, bins) == pytest.approx(expected)
    assert sum(calibration_bins(labels, probabilities, bins).pictures) == 200


def test_the_calibration_error_by_hand():
    # Two of three right at 0.6, one of one at 0.9: 3/4 * |2/3 - 0.6| + 1/4 * |1 - 0.9|.
    labels, probabilities = [1, 1, 0, 0], two([0.6, 0.6, 0.6, 0.1])
    assert calibration_error(labels, probabilities) == pytest.approx(0.75 * (2 / 3 - 0.6) + 0.25 * 0.1)
    assert calibration_error(labels, probabilities, bins=1) == pytest.approx(0.75 - (3 * 0.6 + 0.9) / 4)
    assert calibration_error([1, 1], two([1.0, 1.0])) == 0
    assert calibration_error([0, 0], two([1.0, 1.0])) == 1


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    pictures, confidence, right = calibration_bins([1, 0, 1], two([0.6, 0.8, 1.0]), bins=5)
    assert pictures.tolist() == [0, 0, 1, 1, 1]
    assert np.isnan(confidence[:2]).all()
    assert confidence[2:].tolist() == [0.6, 0.8, 1.0]
    assert right[2:].tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"bins=0; give at least 1"):
        calibration_bins([1], two([0.5]), bins=0)


# ---- Not defined, and wrong ----


def test_one_class_only():
    metrics = classification_metrics([1, 1, 1], two([0.9, 0.8, 0.1]))
    assert {name for name, value in metrics.items() if math.isnan(value)} == {
        "auroc",
        "average_precision",
        "equal_error_rate",
    }
    assert metrics["accuracy"] == metrics["balanced_accuracy"] == pytest.approx(2 / 3)


def test_no_pictures():
    metrics = classification_metrics([], np.zeros((0, 2)), [])
    assert set(metrics) == ALWAYS | {"equal_error_rate", "worst_group_accuracy"}
    assert all(math.isnan(value) for value in metrics.values())
    assert math.isnan(worst_group_accuracy([1], two([0.3]), [None]))


def test_constant_scores():
    metrics = classification_metrics([0, 1, 1, 1], two([0.5] * 4))
    assert metrics["auroc"] == metrics["equal_error_rate"] == metrics["balanced_accuracy"] == 0.5
    assert metrics["average_precision"] == 0.75


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", [accuracy, balanced_accuracy, auroc, average_precision, calibration_error])
def test_outputs_that_are_not_finite_are_an_error(metric, value):
    probabilities = two([0.2, 0.4, 0.9])
    probabilities[1, 0] = value
    with pytest.raises(ValueError, match=r"not finite in 1 of 3 rows \(1\): .* Lower the learning rate"):
        metric([0, 1, 1], probabilities)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[-3.0, 4.0], [0.1, 0.2]], r"values from -3 to 4, outside \[0, 1\]; apply softmax"),
        ([0, 1], [0.2, 0.3], r"probabilities has the shape \(2,\); give one column a class"),
        ([0, 1], [[0.2], [0.3]], r"probabilities has the shape \(2, 1\)"),
        ([0, 2], [[0.2, 0.8]] * 2, r"labels holds 2; with 2 classes its values are 0 to 1"),
        ([0, -100], [[0.2, 0.8]] * 2, r"labels holds -100;"),
        ([0, 0.5], [[0.2, 0.8]] * 2, r"labels holds 0.5;"),
        (["cat", "dog"], [[0.2, 0.8]] * 2, r"labels holds 'cat', 'dog';"),
        ([[0], [1]], [[0.2, 0.8]] * 2, r"labels has the shape \(2, 1\)"),
        ([0, 1, 1], [[0.2, 0.8]] * 2, r"labels has 3 rows and probabilities has 2"),
    ],
)
def test_input_that_cannot_be_used(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities)


def test_probabilities_in_half_precision_and_labels_of_any_number_type():
    labels, probabilities = sample(50, 3)
    there = classification_metrics(labels, probabilities.astype(np.float16))
    assert classification_metrics(labels.astype(float), probabilities.astype(np.float16)) == there
    assert classification_metrics(labels == 1, np.stack([1 - probabilities[:, 1], probabilities[:, 1]], 1))
