"""What an evaluation reports by default, and that it can select the best model."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_run import evaluate
from sklearn.metrics import roc_auc_score
from support import NAMES, Rows, build, make_batch, make_trainer
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback

from hf_salguide import SaliencyTrainingArguments, as_classifier, resolve_feature_layer, saliency_maps
from hf_salguide.backbones import class_maps
from hf_salguide.evaluation import ALIGNMENT, CLASSIFICATION, ClassificationOfPredictions, spread_weights
from hf_salguide.evaluation.defaults import DIVERGED
from hf_salguide.metrics import (
    alignment_metrics,
    classification_metrics,
    open_set_metrics,
    presentation_attack_metrics,
)

RECORD = "hf_salguide.evaluation.record"
SCRIPT = Path(__file__).with_name("evaluation_run.py")
ANNOTATED = (True, True, False, True, False, True, True)


def rows(count=7, seed=0, annotated=ANNOTATED, size=(64, 96)):
    return Rows(make_batch(size, count, seed=seed, annotated=(list(annotated) * count)[:count]))


def expected_alignment(model, dataset, target=None):
    """Picture by picture, in a forward of its own each."""
    per_picture = {name: [] for name in ALIGNMENT}
    model.eval()
    for row in dataset:
        if row["saliency"] is None:
            continue
        with torch.no_grad():
            maps = saliency_maps(model, row["pixel_values"][None], target=target)
        values = alignment_metrics(maps, row["saliency"][None].float() / 255)
        for name in ALIGNMENT:
            per_picture[name].append(values[name].item())
    return {name: np.nanmean(values) for name, values in per_picture.items()}


def probabilities(model, dataset):
    with torch.no_grad():
        logits = model.eval()(pixel_values=torch.stack([row["pixel_values"] for row in dataset])).logits
    return [row["labels"] for row in dataset], logits.softmax(dim=1).numpy()


class Forwards:
    """The sizes of the batches that a model is called with."""

    def __init__(self, model):
        self.sizes = []
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        self.sizes.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]))


# ---- Values ----


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("resnet", "none"),
        ("vit_class_token", "none"),
        ("resnet", "cyborg"),
        ("vit_class_token", "cyborg"),
        ("resnet", "gradmask"),
        ("vit_class_token", "actdiff"),
        ("resnet", ["actdiff", "energy"]),
    ],
)
def test_alignment_and_classification_are_those_of_each_picture_alone(tmp_path, name, guidance):
    model, dataset = build(name), rows()
    trainer = make_trainer(model, tmp_path, guidance=guidance, eval_dataset=dataset, per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    labels, expected = probabilities(model, dataset)
    for key, value in classification_metrics(labels, expected).items():
        assert metrics[f"eval_{key}"] == pytest.approx(value, abs=1e-6), key
    for key, value in expected_alignment(model, dataset).items():
        assert metrics[f"eval_{key}"] == pytest.approx(value, abs=2e-4), key
    assert metrics["eval_annotated"] == 5
    assert metrics["eval_auroc"] == pytest.approx(roc_auc_score(labels, expected, multi_class="ovr"), abs=1e-6)


def test_the_names_are_those_of_the_metrics():
    values = alignment_metrics(torch.rand(1, 4, 4), torch.eye(8)[None])
    assert tuple(values) == ALIGNMENT
    two = classification_metrics([0, 1, 1], [[0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    assert set(CLASSIFICATION) == set(two)


@pytest.mark.parametrize("guidance", ["actdiff", "actdiff_adversarial", "sage"])
def test_methods_with_views_measure_pictures_of_another_size(tmp_path, guidance):
    model, dataset = build("resnet"), rows(size=(96, 128))
    trainer = make_trainer(model, tmp_path, guidance=guidance, eval_dataset=dataset, per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    for key, value in expected_alignment(model, dataset).items():
        assert metrics[f"eval_{key}"] == pytest.approx(value, abs=2e-4), key


def test_the_controls_are_measured_against_the_human_annotation(tmp_path):
    model, dataset = build("resnet"), rows()
    human = make_trainer(model, tmp_path, eval_dataset=dataset).evaluate()
    for control in ({"invert_saliency": True}, {"random_saliency": True}):
        metrics = make_trainer(model, tmp_path, eval_dataset=dataset, **control).evaluate()
        assert metrics["eval_cyborg_loss"] != human["eval_cyborg_loss"]
        assert {name: metrics[f"eval_{name}"] for name in ALIGNMENT} == {
            name: human[f"eval_{name}"] for name in ALIGNMENT
        }


def test_an_annotation_that_is_empty_is_counted_and_not_in_the_means(tmp_path):
    batch = make_batch(count=5, annotated=[True] * 5)
    batch["saliency"][1] = 0
    model = build("resnet")
    metrics = make_trainer(model, tmp_path, guidance="none", eval_dataset=Rows(batch)).evaluate()
    assert metrics["eval_annotated"] == 5
    assert metrics["eval_iou_pictures"] == 4
    kept = [row for index, row in enumerate(Rows(batch)) if index != 1]
    assert metrics["eval_iou"] == pytest.approx(expected_alignment(model, kept)["iou"], abs=1e-4)


def test_several_evaluation_sets_have_their_own(tmp_path):
    sets = {"test": rows(), "ood": rows(6, seed=1), "bare": rows(6, seed=2, annotated=[False])}
    model = build("resnet")
    metrics = make_trainer(model, tmp_path, guidance="none", eval_dataset=sets).evaluate()
    for name in ("test", "ood"):
        expected = expected_alignment(model, sets[name])["energy_inside"]
        assert metrics[f"eval_{name}_energy_inside"] == pytest.approx(expected, abs=1e-4)
    assert metrics["eval_test_energy_inside"] != metrics["eval_ood_energy_inside"]
    assert "eval_bare_auroc" in metrics
    assert not {f"eval_bare_{name}" for name in (*ALIGNMENT, "annotated")} & metrics.keys()


# ---- What it costs, and what it leaves alone ----


@pytest.mark.parametrize("name", ["resnet", "vit_class_token"])
@pytest.mark.parametrize("guidance", ["none", "cyborg", "rrr"])
def test_one_forward_a_batch(tmp_path, name, guidance):
    model = build(name)
    trainer = make_trainer(
        model, tmp_path, guidance=guidance, eval_dataset=rows(), per_device_eval_batch_size=3, eval_alignment=True
    )
    trainer.evaluate()  # resolves the layer
    seen = Forwards(model)
    assert "eval_iou" in trainer.evaluate()
    assert seen.sizes == [3, 3, 1]


def test_batches_without_annotation_capture_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_salguide.evaluation.record.FeatureCapture", lambda *args, **kwargs: pytest.fail("captured")
    )
    trainer = make_trainer(build("resnet"), tmp_path, guidance="none", eval_dataset=rows(annotated=[False]))
    assert "eval_accuracy" in trainer.evaluate()


def test_it_can_be_switched_off(tmp_path):
    model = build("vit_class_token")
    on = make_trainer(model, tmp_path, guidance="none", eval_dataset=rows()).evaluate()
    off = make_trainer(model, tmp_path, guidance="none", eval_dataset=rows(), eval_alignment=False).evaluate()
    assert set(on) - set(off) >= {f"eval_{name}" for name in ALIGNMENT} | {"eval_annotated"}
    assert on["eval_loss"] == pytest.approx(off["eval_loss"], rel=1e-5)
    assert "eval_auroc" in off


def test_evaluation_leaves_modes_hooks_buffers_and_gradients_alone(tmp_path):
    model = build("resnet", drop_rate=0.1).train()
    model.get_submodule("timm_model.layer1").eval()
    trainer = make_trainer(model, tmp_path, guidance="none", eval_dataset=rows())
    trainer.evaluate()  # `Trainer` puts the model in evaluation mode and leaves it there

    def state():
        modes = [module.training for module in model.modules()]
        hooks = [len(module._forward_hooks) for module in model.modules()]
        return modes, hooks, torch.is_grad_enabled()

    before, buffers = state(), {name: value.clone() for name, value in model.named_buffers()}
    assert "eval_iou" in trainer.evaluate(rows(seed=3, size=(96, 64)))  # another size: the layer is resolved anew
    assert state() == before
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet", "vit_class_token"])
def test_random_states_are_moved_by_the_data_loader_alone(tmp_path, name):
    states = []
    for alignment in (True, False):
        trainer = make_trainer(
            build(name, drop_rate=0.1), tmp_path, guidance="none", eval_dataset=rows(), eval_alignment=alignment
        )
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        trainer.evaluate()
        states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
    assert states[0] == states[1]


@pytest.mark.parametrize("guidance", ["none", "cyborg"])
def test_training_is_the_same_with_and_without(tmp_path, guidance):
    weights = []
    for alignment in (True, False):
        torch.manual_seed(0)
        model = build("vit_class_token", drop_rate=0.1)
        trainer = make_trainer(
            model,
            tmp_path,
            guidance=guidance,
            train_dataset=rows(8),
            eval_dataset=rows(seed=1),
            max_steps=4,
            per_device_train_batch_size=4,
            eval_strategy="steps",
            eval_steps=1,
            eval_alignment=alignment,
        )
        trainer.train()
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# ---- Other arguments of the trainer ----


def test_the_users_metrics_replace_the_classification(tmp_path):
    def compute_metrics(prediction):
        return {"score": 0.5, "iou": 7.0}

    trainer = make_trainer(build("resnet"), tmp_path, eval_dataset=rows(), compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    assert metrics["eval_score"] == 0.5
    assert metrics["eval_iou"] == 7.0
    assert "eval_auroc" not in metrics
    assert "eval_energy_inside" in metrics
    metrics.pop("eval_model_preparation_time", None)  # which Trainer adds up as well
    assert trainer._objective(metrics) == 7.5


def test_the_default_objective_of_a_search_is_the_loss(tmp_path, monkeypatch):
    trainer = make_trainer(build("resnet"), tmp_path, eval_dataset=rows())
    taken = {}
    monkeypatch.setattr(
        Trainer, "hyperparameter_search", lambda self, space, objective, **kwargs: taken.update(o=objective)
    )
    trainer.hyperparameter_search(n_trials=1)
    metrics = trainer.evaluate()
    metrics.pop("eval_model_preparation_time", None)
    assert taken["o"](metrics) == metrics["eval_loss"]


def test_the_loss_only(tmp_path):
    trainer = make_trainer(build("resnet"), tmp_path, eval_dataset=rows(), prediction_loss_only=True)
    metrics = trainer.evaluate()
    assert "eval_accuracy" not in metrics
    assert "eval_iou" in metrics
    assert metrics["eval_loss"] > 0


@pytest.mark.parametrize("guidance", ["none", "cyborg", "mask_everything"])
def test_pictures_without_labels(tmp_path, guidance):
    bare = [{key: value for key, value in row.items() if key != "labels"} for row in rows()]
    trainer = make_trainer(build("resnet"), tmp_path, guidance=guidance, per_device_eval_batch_size=3)
    metrics = trainer.evaluate(bare)
    assert "eval_accuracy" not in metrics
    assert "eval_loss" not in metrics
    labelled = trainer.evaluate(rows())
    assert metrics["eval_iou"] == pytest.approx(labelled["eval_iou"], abs=1e-5)


def test_metrics_batch_by_batch(tmp_path):
    model = build("resnet")
    options = {"guidance": "none", "eval_dataset": rows(), "per_device_eval_batch_size": 3}
    whole = make_trainer(model, tmp_path, **options).evaluate()
    trainer = make_trainer(model, tmp_path, **options)
    trainer.args.batch_eval_metrics = True
    batches = trainer.evaluate()
    apart = make_trainer(model, tmp_path, eval_do_concat_batches=False, **options).evaluate()
    for name in CLASSIFICATION[:5]:
        assert batches[f"eval_{name}"] == apart[f"eval_{name}"] == whole[f"eval_{name}"]


def test_the_users_hold_on_the_metrics_stays_valid(tmp_path):
    trainer = make_trainer(build("resnet"), tmp_path, guidance="none", eval_dataset=rows())
    held = trainer.compute_metrics
    held(EvalPrediction(predictions=np.eye(3), label_ids=np.arange(3)), compute_result=False)  # broken off
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(trainer.evaluate()["eval_accuracy"])
    assert trainer.compute_metrics is held
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.nan)
    trainer.evaluate()
    assert held.reason == DIVERGED
    held.reset()
    assert held.reason is None


def test_heads_without_exclusive_classes(tmp_path):
    model = as_classifier("test_resnet", label_names=NAMES, image_size=(64, 96))
    model.config.problem_type = "multi_label_classification"
    dataset = [{**row, "labels": torch.tensor([1.0, 0.0, 1.0])} for row in rows()]
    metrics = make_trainer(model, tmp_path, guidance="none", eval_dataset=dataset).evaluate()
    assert "eval_accuracy" not in metrics
    assert "eval_iou" in metrics
    regression = ClassificationOfPredictions()
    assert regression(EvalPrediction(predictions=np.zeros((3, 1)), label_ids=np.zeros(3))) == {}


def test_two_classes_have_an_equal_error_rate(tmp_path):
    model = as_classifier("test_resnet", label_names=NAMES[:2], image_size=(64, 96))
    dataset = [{**row, "labels": row["labels"] % 2} for row in rows()]
    metrics = make_trainer(model, tmp_path, guidance="none", eval_dataset=dataset).evaluate()
    assert 0 <= metrics["eval_equal_error_rate"] <= 1


def test_logits_that_are_not_finite(tmp_path, caplog):
    model = build("resnet")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    metrics = make_trainer(model, tmp_path, guidance="none", eval_dataset=rows()).evaluate()
    assert "eval_accuracy" not in metrics
    assert "The logits of 7 of 7 evaluation pictures are not finite" in caplog.text


# ---- Maps that cannot be made ----


@pytest.mark.parametrize("guidance", ["none", "cyborg"])
@pytest.mark.parametrize("resolved", [False, True])
def test_a_model_that_has_diverged_is_not_searched_for_a_layer(tmp_path, monkeypatch, caplog, guidance, resolved):
    model = build("vit_class_token")
    trainer = make_trainer(model, tmp_path, guidance=guidance, eval_dataset=rows())
    if resolved:
        trainer.evaluate()
    with torch.no_grad():
        model.get_submodule("timm_model.head").weight.fill_(torch.nan)
    monkeypatch.setattr(f"{RECORD}.resolve_feature_layer", lambda *args: pytest.fail("searched"))
    assert "eval_iou" not in trainer.evaluate()
    assert trainer._record.reason == DIVERGED
    assert f"leaves out the alignment of maps with the annotation: {DIVERGED}. eval" in caplog.text


def test_logits_that_are_not_finite_though_the_weights_are(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no single layer separates the picture from the logits.")

    monkeypatch.setattr(f"{RECORD}.resolve_feature_layer", fail)
    dataset = rows()
    dataset.batch["pixel_values"][0, 0, 0, 0] = torch.nan
    trainer = make_trainer(build("resnet"), tmp_path, guidance="none", eval_dataset=dataset)
    trainer.evaluate()
    assert trainer._record.reason == DIVERGED


def test_a_refusal_holds_for_one_evaluation(tmp_path, monkeypatch, caplog):
    model, dataset = build("resnet"), rows()
    trainer = make_trainer(model, tmp_path, guidance="none", eval_dataset=dataset)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(f"{RECORD}.class_maps", lambda *args: (_ for _ in ()).throw(RuntimeError("no memory")))
            assert "eval_iou" not in trainer.evaluate()
    assert caplog.text.count("no memory") == 1
    assert trainer.evaluate()["eval_iou"] == pytest.approx(expected_alignment(model, dataset)["iou"], abs=1e-4)


def test_the_model_is_let_go_after_an_evaluation(tmp_path):
    trainer = make_trainer(build("resnet"), tmp_path, guidance="none", eval_dataset=rows())
    trainer.evaluate()
    assert not any(held is trainer.model for held in vars(trainer._record).values())


@pytest.mark.parametrize(
    ("fsdp", "stage", "expected"),
    [(False, None, None), (True, None, "FSDP"), (False, 2, None), (False, 3, "DeepSpeed ZeRO-3")],
)
def test_weights_that_are_spread_over_processes(fsdp, stage, expected):
    """What the arguments do not say: `accelerate launch` sets it."""
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    trainer = SimpleNamespace(
        is_fsdp_enabled=fsdp,
        is_fsdp_xla_enabled=False,
        is_deepspeed_enabled=stage is not None,
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
    )
    assert spread_weights(trainer) == expected


def test_weights_that_are_spread_over_processes_give_no_maps(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_salguide.evaluation.trainer.spread_weights", lambda trainer: "DeepSpeed ZeRO-3")
    trainer = make_trainer(build("resnet"), tmp_path, guidance="none", eval_dataset=rows())
    assert "eval_iou" not in trainer.evaluate()
    assert "under DeepSpeed ZeRO-3 the weights are not in one place" in caplog.text


@pytest.mark.parametrize("where", ["resolve_feature_layer", "class_maps", "alignment_metrics"])
def test_what_goes_wrong_with_the_maps_leaves_them_out_with_one_warning(tmp_path, monkeypatch, caplog, where):
    def fail(*args, **kwargs):
        raise ValueError("no single layer separates the picture from the logits.")

    monkeypatch.setattr(f"hf_salguide.evaluation.record.{where}", fail)
    model = build("vit_class_token")
    trainer = make_trainer(model, tmp_path, guidance="none", eval_dataset=rows(), per_device_eval_batch_size=2)
    seen = Forwards(model)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert seen.sizes[-8:] == [2, 2, 2, 1] * 2  # after those that resolve the layer
    assert "eval_iou" not in {**first, **second}
    assert "eval_annotated" not in first
    assert "eval_accuracy" in second
    assert caplog.text.count("no single layer separates") == 1


def test_a_capture_that_breaks_the_forward_is_left_out(tmp_path, monkeypatch, caplog):
    model, dataset = build("resnet"), rows()
    layer = resolve_feature_layer(model, (64, 96))
    trainer = make_trainer(model, tmp_path, guidance="none", eval_dataset=dataset)
    expected = make_trainer(model, tmp_path, guidance="none", eval_dataset=dataset, eval_alignment=False).evaluate()

    def broken(self, *args):
        raise RuntimeError("the hook failed")

    monkeypatch.setattr("hf_salguide.backbones.capture.FeatureCapture._capture", broken)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == expected["eval_loss"]
    assert "the hook failed" in caplog.text
    assert not model.get_submodule(layer.name)._forward_hooks


def test_an_error_of_the_model_is_not_swallowed(tmp_path, monkeypatch, caplog):
    model = build("resnet")
    trainer = make_trainer(model, tmp_path, guidance="none", eval_dataset=rows())
    trainer.evaluate()
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: (_ for _ in ()).throw(ValueError("broken model")))
    with pytest.raises(ValueError, match="broken model"):
        trainer.evaluate()
    assert "leaves out the alignment" not in caplog.text


def test_a_guided_loss_whose_maps_fail_in_the_record(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "hf_salguide.evaluation.record._predicted_maps", lambda *args: (_ for _ in ()).throw(RuntimeError("no map"))
    )
    metrics = make_trainer(build("resnet"), tmp_path, eval_dataset=rows()).evaluate()
    assert "eval_cyborg_loss" in metrics
    assert "eval_iou" not in metrics
    assert caplog.text.count("no map") == 1


# ---- Selection ----


class Diverge(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)


class Exchange(TrainerCallback):
    """Gives a trainer another evaluation set once it trains."""

    def __init__(self, trainer, dataset):
        self.trainer, self.dataset = trainer, dataset

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.eval_dataset = self.dataset


def selecting(tmp_path, metric, dataset=None, **arguments):
    return make_trainer(
        arguments.pop("model", None) or build("resnet"),
        tmp_path,
        train_dataset=rows(8),
        eval_dataset=rows(seed=1) if dataset is None else dataset,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=3,
        learning_rate=1e-2,
        metric_for_best_model=metric,
        **{"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, **arguments},
    )


@pytest.mark.parametrize(("metric", "best"), [("auroc", max), ("iou", max), ("kl", min), ("calibration_error", min)])
def test_each_metric_can_select_the_best_model(tmp_path, metric, best):
    trainer = selecting(tmp_path, metric, guidance="none")
    trainer.train()
    values = [entry[f"eval_{metric}"] for entry in trainer.state.log_history if f"eval_{metric}" in entry]
    assert len(values) == 3
    assert trainer.state.best_metric == best(values)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("loss", False),
        ("eval_loss", False),
        ("cyborg_loss", False),
        ("kl", False),
        ("eval_ood_kl", False),
        ("calibration_error", False),
        ("eval_equal_error_rate", False),
        ("acer", False),
        ("auroc", True),
        ("iou", True),
        ("sparkl", True),
        *[
            (name, not name.startswith(("apcer", "bpcer", "acer")))
            for name in presentation_attack_metrics([0, 1], [[0.9, 0.1], [0.2, 0.8]], 0, rates=(1, 5, 10))
        ],
        *[(name, name != "open_set_fpr95") for name in open_set_metrics([0, 1], scores=[0.1, 0.9])],
        *[
            (name, not name.endswith("_error") and not name.endswith("error_rate"))
            for name in classification_metrics([0, 1], [[0.9, 0.1], [0.2, 0.8]], groups=["a", "b"])
        ],
        *[(name, name != "kl") for name in alignment_metrics(torch.rand(1, 4, 4), torch.eye(8)[None])],
    ],
)
def test_the_direction_follows_the_metric(tmp_path, metric, greater):
    options = {"report_to": "none", "metric_for_best_model": metric}
    assert SaliencyTrainingArguments(str(tmp_path), **options).greater_is_better is greater
    assert SaliencyTrainingArguments(str(tmp_path), greater_is_better=True, **options).greater_is_better is True


@pytest.mark.parametrize(
    ("metric", "arguments", "message"),
    [
        ("aurok", {}, "Did you mean auroc"),
        ("equal_error_rate", {}, 'equal_error_rate" is not among'),
        ("iou", {"eval_alignment": False}, "eval_alignment=False leaves the alignment out"),
        ("auroc", {"prediction_loss_only": True}, "not among the metrics"),
        ("actdiff_loss", {}, "cyborg_loss"),
    ],
)
def test_a_metric_that_is_not_reported_is_refused_before_training(tmp_path, monkeypatch, metric, arguments, message):
    trainer = selecting(tmp_path, metric, **arguments)
    monkeypatch.setattr(trainer.model, "forward", lambda *args, **kwargs: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_with_several_sets_the_metric_names_one(tmp_path):
    sets = {"test": rows(), "ood": rows(seed=1)}
    with pytest.raises(ValueError, match="Did you mean test_auroc or ood_auroc"):
        selecting(tmp_path, "auroc", sets).train()
    trainer = selecting(tmp_path, "eval_ood_auroc", sets)
    trainer.train()
    assert trainer.state.best_metric == max(
        entry["eval_ood_auroc"] for entry in trainer.state.log_history if "eval_ood_auroc" in entry
    )


def test_names_of_the_users_own_metrics_are_not_refused(tmp_path):
    trainer = selecting(tmp_path, "score", compute_metrics=lambda prediction: {"score": 1.0})
    trainer.train()
    assert trainer.state.best_metric == 1.0


@pytest.mark.parametrize(
    ("metric", "dataset", "message"),
    [
        ("auroc", [{**row, "labels": 0} for row in rows()], "does not hold pictures of every class"),
        ("iou", rows(annotated=[False]), "defined for no annotated picture"),
    ],
)
def test_a_metric_without_a_value_stops_at_the_first_evaluation(tmp_path, metric, dataset, message):
    trainer = selecting(tmp_path, metric, dataset)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 1


def test_logits_that_are_not_finite_are_the_reason(tmp_path):
    for metric in ("auroc", "iou"):
        trainer = selecting(tmp_path, metric)
        trainer.add_callback(Diverge())
        with pytest.raises(ValueError, match=f"{DIVERGED}. Train with a smaller learning_rate[^.]*[.]$"):
            trainer.train()


def test_the_reason_ends_in_one_stop(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no single layer separates the picture from the logits.")

    monkeypatch.setattr(f"{RECORD}.resolve_feature_layer", fail)
    with pytest.raises(ValueError, match=r"from the logits\. Select"):
        selecting(tmp_path, "iou", guidance="none").train()


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        ("auroc", {"compute_metrics": lambda prediction: {"auroc": math.nan}}),
        ("iou", {"compute_metrics": lambda prediction: {"iou": math.nan}}),
        ("iou", {"compute_metrics": lambda prediction: {"iou": math.nan}, "eval_alignment": False}),
    ],
)
def test_metrics_of_the_users_are_not_judged(tmp_path, caplog, metric, arguments):
    trainer = selecting(tmp_path, metric, **arguments)
    trainer.train()
    assert trainer.state.global_step == 3
    assert f"eval_{metric} not defined" not in caplog.text


def test_an_evaluation_before_training_or_of_another_set_is_not_judged(tmp_path):
    one_class = [{**row, "labels": 0} for row in rows()]

    class Evaluates(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # before any evaluation that selects
            trainer.evaluate(one_class, metric_key_prefix="eval")
            trainer.predict(one_class, metric_key_prefix="eval")
            control.should_evaluate = True  # which an evaluation within resets

    trainer = selecting(tmp_path, "auroc", eval_on_start=True)
    trainer.add_callback(Evaluates())
    trainer.add_callback(Exchange(trainer, trainer.eval_dataset))
    trainer.eval_dataset = one_class
    trainer.train()
    assert trainer.state.global_step == 3
    assert 0 <= trainer.state.best_metric <= 1


def test_a_metric_that_a_callback_adds_is_not_refused(tmp_path, caplog):
    class Adds(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_score"] = float(state.global_step)

    trainer = selecting(tmp_path, "score", callbacks=[Adds(), EarlyStoppingCallback(9)])
    trainer.train()
    assert trainer.state.best_metric == 3.0
    assert "Training starts, for on_evaluate of Adds may add it." in caplog.text
    with pytest.raises(ValueError, match="not among the metrics"):
        selecting(tmp_path, "score", callbacks=[EarlyStoppingCallback(9)]).train()


def test_undefined_metrics_are_said_once(tmp_path, caplog):
    trainer = make_trainer(build("resnet"), tmp_path, eval_dataset=[{**row, "labels": 0} for row in rows()])
    metrics = trainer.evaluate(metric_key_prefix="undefined")
    assert np.isnan(metrics["undefined_auroc"])
    assert "undefined_auroc" in caplog.text
    assert "does not hold pictures of every class" in caplog.text


# ---- Two processes ----


def test_maps_that_fail_in_another_process_are_left_out_in_all(tmp_path, caplog):
    trainer = make_trainer(build("resnet"), tmp_path, guidance="none", eval_dataset=rows())

    def gather(table):
        other = table.clone()
        other[:, 1] = 1
        return torch.cat([table, other])

    trainer._record._gather = gather
    assert "eval_iou" not in trainer.evaluate()
    assert "another process could not make the maps" in caplog.text


def test_every_process_gathers_whatever_one_has_refused(tmp_path, monkeypatch):
    """The maps fail in rows that are added to fill the last batch, of which no table tells."""
    trainer = make_trainer(
        build("resnet"), tmp_path, guidance="none", eval_dataset=rows(), per_device_eval_batch_size=6
    )
    gathered, maps = [], class_maps

    def gather(table):
        gathered.append(len(table))
        return table if len(table) == 6 else table[:0]

    def fail_in_the_last(capture, layer, model, logits, weights):
        if len(logits) == 1:
            raise RuntimeError("no memory")
        return maps(capture, layer, model, logits, weights)

    trainer._record._gather = gather
    monkeypatch.setattr(f"{RECORD}.class_maps", fail_in_the_last)
    for _ in range(2):
        assert "eval_iou" in trainer.evaluate()
    assert gathered == [6, 1] * 2


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path):
    """Annotation on the first rank only, and a last batch that is filled up."""
    output = tmp_path / "two.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(SCRIPT), str(output)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert output.exists(), finished.stderr[-4000:]
    two = torch.load(output, weights_only=False)
    one = evaluate(tmp_path)
    assert two.pop("world_size") == 2
    assert one.keys() == two.keys()
    for guidance, metrics in one.items():
        assert metrics["eval_annotated"] == 6
        assert metrics["eval_iou_pictures"] == 5
        for name in (*ALIGNMENT, *CLASSIFICATION[:5], "annotated", "iou_pictures"):
            assert two[guidance][f"eval_{name}"] == pytest.approx(metrics[f"eval_{name}"], abs=1e-5), (guidance, name)
