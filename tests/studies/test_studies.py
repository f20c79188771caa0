"""Predictions, panels and the demo, on tiny models."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats
from sklearn.metrics import roc_auc_score
from support import save_as_trained

from hf_salguide import (
    SaliencyTrainer,
    SaliencyTrainingArguments,
    as_classifier,
    difference_salience,
    saliency_maps,
)
from hf_salguide.backbones import data_config
from hf_salguide.data import decoy_digits, make_transforms, prepare_dataset
from hf_salguide.metrics import alignment_metrics, energy_inside
from hf_salguide.studies import demo
from hf_salguide.studies.demo import ARMS, Run, demo_table, paired_difference, run_demo, train_run
from hf_salguide.studies.explanation.panels import draw_panel, explain, save_panel
from hf_salguide.studies.predictions import predict


@pytest.fixture(scope="module")
def digits():
    return decoy_digits(size=48, num_train=40, num_validation=20, num_test=20, num_ood=20)


@pytest.fixture(scope="module")
def model(digits):
    torch.manual_seed(0)
    names = digits["train"].features["label"].names
    return as_classifier("test_vit", label_names=names, image_size=48)  # class token: maps need gradients


@pytest.mark.parametrize("map_class", ["predicted", "true"])
def test_predictions_are_those_of_single_pictures(model, digits, map_class):
    predictions = predict(model, digits["test"], map_class, batch_size=7, progress=False)
    whole = predict(model, digits["test"], map_class, batch_size=20, progress=False)
    np.testing.assert_allclose(predictions.probabilities, whole.probabilities, atol=1e-5)
    np.testing.assert_allclose(predictions.maps, whole.maps, atol=1e-4 * abs(whole.maps).max())
    assert predictions.probabilities.sum(1) == pytest.approx(np.ones(20), abs=1e-5)
    assert predictions.maps.shape[0] == 20
    row = digits["test"][3]
    pixels, saliency = make_transforms(data_config(model), train=False)(row["image"], row["saliency"])
    model.eval()
    logits = model(pixels[None]).logits[0]
    target = int(logits.argmax()) if map_class == "predicted" else row["label"]
    maps = saliency_maps(model, pixels[None], target=target).detach()
    np.testing.assert_allclose(predictions.maps[3], maps[0].numpy(), atol=1e-4 * abs(whole.maps).max())
    assert predictions.energy_inside[3] == pytest.approx(energy_inside(maps, saliency[None] / 255).item(), rel=1e-3)


def test_metrics_of_predictions(model, digits):
    predictions = predict(model, digits["test"], progress=False)
    metrics = predictions.metrics()
    assert metrics["pictures"] == metrics["annotated"] == 20
    assert metrics["accuracy"] == pytest.approx(np.mean(predictions.probabilities.argmax(1) == predictions.labels))
    if not math.isnan(metrics["auroc"]):
        one_hot = np.eye(10)[predictions.labels]
        assert metrics["auroc"] == pytest.approx(roc_auc_score(one_hot, predictions.probabilities), abs=1e-5)


def test_predictions_without_labels_or_saliency(model, digits):
    bare = digits["test"].remove_columns(["label", "saliency"])
    predictions = predict(model, bare, progress=False)
    assert predictions.labels is None
    assert predictions.metrics()["annotated"] == 0
    assert math.isnan(predictions.metrics()["energy_inside"])
    with pytest.raises(ValueError, match='map_class="true" needs a data set with labels'):
        predict(model, bare, "true", progress=False)


def test_a_label_outside_the_classes_is_named_by_its_row(model, digits):
    rows = [digits["test"][0], digits["test"][1], {**digits["test"][2], "label": 12}]
    for batch_size in (1, 3):
        with pytest.raises(ValueError, match="row 2: label 12 is outside the model's 10 classes, 0 to 9"):
            predict(model, rows, "true", batch_size=batch_size, progress=False)


def test_the_alignment_of_the_difference_map_is_that_of_the_difference_map(model, digits):
    rows = digits["test"].select(range(4))
    found = predict(model, rows, "true", batch_size=3, progress=False, difference=True).alignment
    transform = make_transforms(data_config(model), train=False)
    for index in range(4):
        pixels, saliency = transform(rows[index]["image"], rows[index]["saliency"])
        maps = difference_salience(model, pixels[None], rows[index]["label"]).detach()
        expected = alignment_metrics(maps, saliency[None] / 255)
        for name, value in expected.items():
            assert found[f"difference_{name}"][index] == pytest.approx(value.item(), abs=2e-3, nan_ok=True), name
    assert not np.allclose(found["difference_spearman"], found["spearman"], atol=0.01)


def test_the_mode_of_the_model_is_left_as_it_was(model, digits):
    model.train()
    predict(model, digits["test"].select(range(3)), progress=False)
    explain(model, [digits["test"][0]])
    assert model.training


def test_explanations_hold_the_map_of_the_true_and_of_the_likeliest_wrong_class(model, digits, tmp_path):
    row = digits["ood"][1]
    (explanation,) = explain(model, [row])
    predictions = predict(model, digits["ood"], progress=False)
    scores = predictions.probabilities[1]
    rivals = np.delete(scores, row["label"])
    names = digits["train"].features["label"].names
    assert explanation.true_name == names[row["label"]]
    assert explanation.other_name == [name for name in names if name != explanation.true_name][rivals.argmax()]
    assert explanation.probability == pytest.approx(scores.max(), abs=1e-5)
    assert explanation.correct == (scores.argmax() == row["label"])
    config = data_config(model)
    pixels, _ = make_transforms(config, train=False)(row["image"], None)
    expected = (pixels * torch.tensor(config.std)[:, None, None] + torch.tensor(config.mean)[:, None, None])[0]
    np.testing.assert_allclose(explanation.picture[..., 0], expected.numpy(), atol=1e-5)
    assert explanation.saliency.shape == explanation.true_map.shape == (48, 48)
    bare = explain(model, [{"image": row["image"]}])[0]
    assert bare.correct is None
    path = save_panel(draw_panel([explanation, bare], ["one", "two"]), tmp_path / "new" / "panel.png")
    assert path.stat().st_size > 10_000


def test_maps_of_an_explanation_are_those_of_the_two_classes(model, digits):
    row = digits["ood"][1]
    (explanation,) = explain(model, [row])
    pixels, _ = make_transforms(data_config(model), train=False)(row["image"])
    names = digits["train"].features["label"].names
    for drawn, name in ((explanation.true_map, names[row["label"]]), (explanation.other_map, explanation.other_name)):
        maps = saliency_maps(model, pixels[None], target=names.index(name)).detach()
        expected = F.interpolate(maps[None], (48, 48), mode="bilinear", align_corners=False)[0, 0].numpy()
        np.testing.assert_allclose(drawn, expected, atol=1e-4 * abs(expected).max())
    assert abs(explanation.true_map - explanation.other_map).max() > 0.1 * abs(explanation.true_map).max()


def test_the_layer_that_a_model_was_guided_at_is_the_one_that_is_explained(digits):
    model = as_classifier("test_resnet", label_names=digits["train"].features["label"].names, image_size=48)
    row = digits["test"][0]
    pixels, _ = make_transforms(data_config(model), train=False)(row["image"])
    default = predict(model, digits["test"].select([0]), progress=False).maps
    model.config.saliency_guide = {"name": "cyborg", "feature_layer": "timm_model.layer3"}
    guided = predict(model, digits["test"].select([0]), progress=False).maps
    assert guided.shape != default.shape
    model.eval()
    expected = saliency_maps(model, pixels[None], feature_layer="timm_model.layer3").detach()
    np.testing.assert_allclose(guided, expected.numpy(), atol=1e-4 * abs(guided).max())
    (explanation,) = explain(model, [{"image": row["image"]}])
    drawn = F.interpolate(expected[None], (48, 48), mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(explanation.true_map, drawn, atol=1e-4 * abs(drawn).max())


@pytest.mark.parametrize("kind", ["prepared", "rows", "prepared rows", "nameless"])
def test_predictions_carry_the_names_of_their_rows(model, digits, kind):
    names = [f"digit_{index}.png" for index in range(3)]
    part = digits["test"].select(range(3)).add_column("file_name", names)
    prepared = prepare_dataset(part, make_transforms(data_config(model), train=False))
    dataset = {
        "prepared": prepared,
        "rows": list(part),
        "prepared rows": [{**prepared[index], "file_name": names[index]} for index in range(3)],
        "nameless": [prepared[index] for index in range(3)],
    }[kind]
    expected = ["0", "1", "2"] if kind == "nameless" else names
    assert predict(model, dataset, progress=False).file_names == expected


def test_a_run_of_the_demo_is_measured_on_the_splits_that_it_names(digits, tmp_path):
    model, run = train_run(ARMS[1], 0, digits, 1, "test_resnet", {}, 48, tmp_path)
    figures = {split: predict(model, digits[split], progress=False) for split in ("test", "ood")}
    for split, value in (("test", run.test_accuracy), ("ood", run.ood_accuracy)):
        right = figures[split].probabilities.argmax(axis=1) == np.array(digits[split]["label"])
        assert value == pytest.approx(right.mean())
    energies = {split: np.nanmean(prediction.energy_inside) for split, prediction in figures.items()}
    assert run.energy_inside == pytest.approx(energies["ood"])
    assert energies["ood"] != energies["test"]


def test_the_demo_reads_each_figure_from_its_own_split(digits, tmp_path, monkeypatch):
    sizes = {12: "test", 7: "ood"}
    dataset = {**digits, "test": digits["test"].select(range(12)), "ood": digits["ood"].select(range(7))}

    class Figures:
        def __init__(self, split):
            self.split = split

        def metrics(self):
            offset = {"test": 0.0, "ood": 0.5}[self.split]
            return {"accuracy": offset + 0.125, "energy_inside": offset + 0.25}

    monkeypatch.setattr(demo, "predict", lambda model, rows, **options: Figures(sizes[len(rows)]))
    _, run = train_run(ARMS[0], 0, dataset, 1, "test_resnet", {}, 48, tmp_path)
    assert (run.test_accuracy, run.ood_accuracy, run.energy_inside) == (0.125, 0.625, 0.75)


def test_paired_difference_is_the_paired_t_interval():
    values, baseline = [0.94, 0.95, 0.90], [0.77, 0.75, 0.79]
    mean, low, high = paired_difference(values, baseline)
    interval = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(values) - np.mean(baseline), interval.low, interval.high))
    assert math.isnan(paired_difference([1.0], [0.5])[1])


def test_the_demo_trains_every_arm_with_the_same_data_and_weights(tmp_path):
    lines = []
    runs = run_demo(
        tmp_path,
        seeds=(0, 1),
        epochs=1,
        model_name="test_resnet",
        model_args={},
        report=lines.append,
        num_train=40,
        num_validation=10,
        num_test=20,
        num_ood=20,
    )
    assert [(run.method, run.saliency, run.seed) for run in runs] == [
        (arm.method, arm.saliency, seed) for seed in (0, 1) for arm in ARMS
    ]
    assert (tmp_path / "panel.png").stat().st_size > 10_000
    recorded = [Run(**run) for run in json.loads((tmp_path / "results.json").read_text())]
    assert recorded == runs
    assert demo_table(runs) == (tmp_path / "results.md").read_text().strip() == lines[-2]
    assert [line.split("|")[1].strip() for line in demo_table(runs).splitlines()[2:]] == [arm.name for arm in ARMS]
    assert ARMS[0].arguments == {"guidance": "none", "invert_saliency": False}
    assert ARMS[2].arguments == {"guidance": "cyborg", "invert_saliency": True}


def test_the_arms_of_the_demo_are_different_and_plain_training_comes_first():
    names = ["cyborg", "none", "energy", "cyborg"]
    assert [arm.name for arm in demo.arms_of(names)] == ["plain", "cyborg, human", "energy, human"]
    assert [arm.method for arm in demo.arms_of(["all"])].count("cyborg") == 1


@pytest.mark.parametrize(
    "control", [{}, {"invert_saliency": True}, {"random_saliency": True, "seed": 3}, {"empty_mask": "penalise_all"}]
)
def test_predictions_see_what_the_trainers_evaluation_saw(control, digits, tmp_path):
    """Under masked pictures and any control, the saved model gives the accuracy and the logits of the trainer."""
    torch.manual_seed(0)
    names = digits["train"].features["label"].names
    model = as_classifier("test_vit", label_names=names, image_size=48)
    empty = Image.new("L", (48, 48), 0)
    rows = [{**digits["test"][row], "saliency": empty} if row < 3 else digits["test"][row] for row in range(12)]
    args = SaliencyTrainingArguments(
        str(tmp_path),
        guidance="mask_everything",
        report_to="none",
        use_cpu=True,
        per_device_eval_batch_size=5,
        **control,
    )
    trainer = SaliencyTrainer(model, args)
    seen = torch.tensor(trainer.predict(rows).predictions).softmax(1)
    save_as_trained(trainer)
    saved = as_classifier(tmp_path, pretrained=True)
    found = predict(saved, rows, batch_size=7, progress=False).probabilities
    np.testing.assert_allclose(found, seen.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        predict(model, rows, progress=False, guidance=trainer.guidance_block()).probabilities, found, atol=1e-5
    )
    assert abs(predict(model, rows, progress=False).probabilities - found).max() > 1e-3  # pictures as they are
