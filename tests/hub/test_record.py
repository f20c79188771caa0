"""The record of a card: JSON and back, versions, and the figures that it holds."""

import json

import numpy as np
import pytest

from hf_salguide.hub import record as module
from hf_salguide.hub.record import (
    FILE,
    CardRecord,
    Comparison,
    DataFacts,
    Measured,
    MethodFacts,
    ModelFacts,
    SplitFacts,
    SplitResult,
    TrainingFacts,
)
from hf_salguide.hub.results import digest, split_result, wilson
from hf_salguide.metrics import auroc, bootstrap_interval, calibration_error


def full():
    result = SplitResult("ood", 10, True, {"auroc": Measured(0.9, 0.8, 1.0, 10)}, {"iou": Measured(0.5, 0.4, 0.6, 4)})
    return CardRecord(
        model=ModelFacts("A name", "resnet18", "timm", ["ja", "n|ein\n"], [64, 96], 3, 11_000_000, "timm/resnet18"),
        training=TrainingFacts(
            [MethodFacts("cyborg", 0.5, "f", "p", ["@misc{a}"], options={"resize": "bilinear"})],
            task_weight=0.5,
            feature_layers=["layer4"],
            hyperparameters={"learning_rate": 0.1, "lr_scheduler_kwargs": {"a": [1, 2]}},
            seed=3,
            seconds=12.5,
            versions={"torch": "2"},
        ),
        data=DataFacts("digits", splits=[SplitFacts("train", 10, 0), SplitFacts("ood", 5)]),
        results=[result],
        baseline=Comparison(results=[result]),
        language=["en"],
        limits="None.",
    )


def test_it_comes_back_as_it_was(tmp_path):
    written = full().write(tmp_path)
    assert written.name == FILE
    assert CardRecord.read(tmp_path) == full()
    again = written.read_bytes()
    CardRecord.read(tmp_path).write(tmp_path)
    assert written.read_bytes() == again


def test_what_is_not_known_is_not_written(tmp_path):
    assert json.loads(CardRecord().write(tmp_path).read_text()) == {"version": 1}
    assert CardRecord.read(tmp_path) == CardRecord()
    assert CardRecord.read(tmp_path / "elsewhere") is None


def test_a_count_of_nothing_is_known(tmp_path):
    CardRecord(data=DataFacts(splits=[SplitFacts("train", 10, 0)])).write(tmp_path)
    assert CardRecord.read(tmp_path).data.splits[0].annotated == 0


def test_a_later_version_is_read_with_a_warning(tmp_path, monkeypatch):
    content = full().as_dict() | {"version": 7, "colour": "red"}
    content["results"][0]["mood"] = "good"
    (tmp_path / FILE).write_text(json.dumps(content))
    warned = []
    monkeypatch.setattr(module.logger, "warning", warned.append)
    assert CardRecord.read(tmp_path) == full()
    assert len(warned) == 1
    for part in ("version 7", "colour", "results.mood", "Upgrade"):
        assert part in warned[0]


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"results": {}}', '{"model": []}', '{"results": [{"name": 3, "pictures": 1}]}', '{"results": [{}]}'],
    ids=["list", "broken", "results", "model", "name", "empty"],
)
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match="card.json is not a record of a card"):
        CardRecord.read(tmp_path)


# ---- Figures ----


def scores(count=200, classes=2, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    exponents = np.exp(logits)
    return labels, exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_figures_are_those_of_the_metrics_with_their_intervals(classes):
    labels, probabilities = scores(classes=classes)
    result = split_result("test", labels, probabilities)
    assert result.pictures == 200
    assert not result.out_of_distribution
    assert set(result.metrics) == {"auroc", "accuracy", "balanced_accuracy", "calibration_error"}
    assert result.metrics["auroc"].value == pytest.approx(auroc(labels, probabilities), abs=1e-6)
    assert result.metrics["calibration_error"].value == pytest.approx(
        calibration_error(labels, probabilities), abs=1e-6
    )
    low, high = bootstrap_interval(auroc, labels, probabilities)
    assert result.metrics["auroc"].low == pytest.approx(low, abs=0.01)
    assert result.metrics["auroc"].high == pytest.approx(high, abs=0.01)
    for measured in result.metrics.values():
        assert 0 <= measured.low <= measured.value <= measured.high <= 1
        assert measured.pictures == 200
    assert split_result("test", labels, probabilities) == result  # the same bytes for the same run


def test_intervals_are_wider_by_subject():
    labels, probabilities = scores(40)
    labels, probabilities = np.repeat(labels, 10), np.repeat(probabilities, 10, axis=0)
    alone = split_result("test", labels, probabilities).metrics["accuracy"]
    grouped = split_result("test", labels, probabilities, groups=np.repeat(np.arange(40), 10))
    assert grouped.groups == 40
    assert grouped.metrics["accuracy"].high - grouped.metrics["accuracy"].low > 2 * (alone.high - alone.low)


def test_a_perfect_model_is_not_certain():
    labels = np.arange(10) % 2
    result = split_result("test", labels, np.eye(2)[labels])
    assert result.metrics["accuracy"].value == result.metrics["accuracy"].high == 1
    assert result.metrics["accuracy"].low == pytest.approx(0.722, abs=1e-3)  # Wilson, 10 of 10
    assert result.metrics["balanced_accuracy"].low < 0.722


def test_one_answer_for_all_is_not_certain(tmp_path):
    labels = np.arange(10) % 2
    result = split_result("test", labels, np.tile([0.9, 0.1], (10, 1)))
    assert result.metrics["accuracy"].low < 0.5 < result.metrics["accuracy"].high
    CardRecord(results=[result]).write(tmp_path)
    assert CardRecord.read(tmp_path).results == [result]


def test_a_missing_class_leaves_the_auroc_out():
    labels, probabilities = scores(classes=3)
    result = split_result("test", labels % 2, probabilities)
    assert set(result.metrics) == {"accuracy", "balanced_accuracy", "calibration_error"}


def test_alignment_counts_the_pictures_for_which_it_is_defined():
    values = np.array([0.2, np.nan, 0.4, 0.9, np.nan])
    result = split_result("ood_b", None, None, {"iou": values, "kl": np.full(5, np.nan)}, np.array([1, 0, 1, 1, 1]))
    assert result.out_of_distribution
    assert set(result.alignment) == {"iou"}
    assert result.alignment["iou"].value == pytest.approx(0.5)
    assert result.alignment["iou"].pictures == 3
    assert result.annotated == 4
    assert not result.metrics


def test_maps_that_all_miss_are_not_certain_to():
    result = split_result("test", None, None, {"pointing_game": np.zeros(10), "spearman": np.zeros(10)})
    assert result.alignment["pointing_game"].low == 0
    assert result.alignment["pointing_game"].high == pytest.approx(0.278, abs=1e-3)  # Wilson, 0 of 10
    assert result.alignment["spearman"].high == 0


def test_a_figure_of_which_no_more_is_known_has_wilsons_interval():
    result = split_result("test", None, None, pictures=1000, metrics={"accuracy": 0.9, "loss": 0.3})
    assert set(result.metrics) == {"accuracy"}
    assert (result.metrics["accuracy"].low, result.metrics["accuracy"].high) == pytest.approx(wilson(900, 1000), 1e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-3)  # Newcombe 1998


def test_lengths_that_differ_are_refused():
    labels, probabilities = scores(5)
    with pytest.raises(ValueError, match="one value a picture"):
        split_result("test", labels, probabilities[:4])


def test_the_digest_knows_the_order():
    assert digest([0, 1, 1]) == digest(np.array([0, 1, 1], dtype=np.int32)) != digest([1, 0, 1])
