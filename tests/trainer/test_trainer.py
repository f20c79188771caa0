"""The contracts of `Trainer` that a subclass has to honour."""

import inspect
import json
import pickle

import pytest
import torch
from support import NAMES, Rows, build, make_batch, make_trainer, save_as_trained
from transformers import AutoModelForImageClassification, EarlyStoppingCallback, Trainer

from hf_salguide import SaliencyCollator, SaliencyTrainer, SaliencyTrainingArguments, as_classifier
from hf_salguide.data import decoy_digits
from hf_salguide.guidance import Cyborg, register_guidance, registry
from hf_salguide.means import RunningMeans


def rows(count=12, **kwargs):
    return Rows(make_batch((64, 96), count, annotated=[True, True, False] * count, **kwargs))


def test_the_constructor_keeps_every_argument_of_trainer():
    ours = list(inspect.signature(SaliencyTrainer.__init__).parameters.values())
    theirs = list(inspect.signature(Trainer.__init__).parameters.values())
    assert [parameter.name for parameter in ours[: len(theirs)]] == [parameter.name for parameter in theirs]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in ours[len(theirs) :])


def test_the_total_is_the_weighted_sum_and_each_component_is_logged(tmp_path):
    trainer = make_trainer(
        build("resnet"),
        tmp_path,
        train_dataset=rows(),
        eval_dataset=rows(seed=1),
        task_weight=0.7,
        guidance_weight=3.0,
        max_steps=4,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=5,
    )
    trainer.train()
    training = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluation = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(training) == len(evaluation) == 2
    for entry in training:
        assert entry["loss"] == pytest.approx(0.7 * entry["task_loss"] + 3.0 * entry["cyborg_loss"], rel=1e-4)
        assert entry["cyborg_loss"] > 0
    for entry in evaluation:
        total = 0.7 * entry["eval_task_loss"] + 3.0 * entry["eval_cyborg_loss"]
        assert entry["eval_loss"] == pytest.approx(total, rel=1e-4)


def test_evaluation_components_do_not_depend_on_the_batch_size(tmp_path):
    metrics = []
    for size in (3, 5, 12):
        trainer = make_trainer(
            build("vit_class_token"), tmp_path, eval_dataset=rows(), per_device_eval_batch_size=size
        )
        metrics.append(trainer.evaluate())
    for key in ("eval_task_loss", "eval_cyborg_loss", "eval_loss"):
        assert metrics[0][key] == pytest.approx(metrics[1][key], rel=1e-4)
        assert metrics[0][key] == pytest.approx(metrics[2][key], rel=1e-4)


def test_the_guidance_lowers_its_own_loss(tmp_path):
    dataset = rows(8)
    trainer = make_trainer(
        build("resnet"), tmp_path, train_dataset=dataset, guidance_weight=5.0, max_steps=40, learning_rate=3e-3
    )
    before = trainer.evaluate(dataset)["eval_cyborg_loss"]
    trainer.train()
    assert trainer.evaluate(dataset)["eval_cyborg_loss"] < 0.6 * before


def test_label_smoothing_applies_to_the_task_term(tmp_path):
    batch = make_batch()
    model = build("resnet").eval()
    trainer = make_trainer(model, tmp_path, guidance_weight=0.5, label_smoothing_factor=0.2)
    logits = model(pixel_values=batch["pixel_values"]).logits
    trainer.guidance_weights = [1e-12]
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.2)
    assert trainer.compute_loss(model, batch).item() == pytest.approx(0.5 * expected.item(), rel=1e-5)


def test_label_smoothing_applies_to_weighted_rows(tmp_path):
    batch, model = make_batch(), build("resnet").eval()
    weight = torch.tensor([2.0, 0.0, 1.0, 0.5, 1.0])
    trainer = make_trainer(model, tmp_path, guidance="none", label_smoothing_factor=0.2)
    logits = model(pixel_values=batch["pixel_values"]).logits
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.2, reduction="none")
    loss = trainer.compute_loss(model, {**batch, "sample_weight": weight})
    assert loss.item() == pytest.approx((losses * weight).mean().item(), rel=1e-5)
    ones = trainer.compute_loss(model, {**batch, "sample_weight": torch.ones(5)})
    assert ones.item() == pytest.approx(trainer.compute_loss(model, batch).item(), rel=1e-5)


def test_compute_loss_func_goes_on_working_with_accumulation(tmp_path):
    def mean_over_the_step(outputs, labels, num_items_in_batch=None):
        losses = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
        return losses / num_items_in_batch

    weights = []
    for size, accumulation, function in ((8, 1, None), (8, 1, mean_over_the_step), (2, 4, mean_over_the_step)):
        model = build("vit_average")
        trainer = make_trainer(
            model,
            tmp_path,
            train_dataset=rows(12),  # every second step is of four rows only
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            compute_loss_func=function,
            max_steps=4,
            optim="sgd",
            learning_rate=0.05,
        )
        trainer.train()
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-6
    assert (weights[0] - weights[2]).abs().max() < 1e-6


def test_sample_weights_weigh_task_and_guidance(tmp_path):
    batch = make_batch()
    model = build("vit_average").eval()
    trainer = make_trainer(model, tmp_path)
    weight = torch.tensor([2.0, 0.0, 1.0, 0.5, 1.0])
    parts = [
        trainer.compute_loss(model, {key: value[row : row + 1] for key, value in batch.items()}) for row in range(5)
    ]
    expected = (torch.stack(parts) * weight).mean()
    weighted = trainer.compute_loss(model, {**batch, "sample_weight": weight})
    torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-6)
    with_function = make_trainer(model, tmp_path, compute_loss_func=lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match="compute_loss_func cannot weight rows"):
        with_function.compute_loss(model, {**batch, "sample_weight": weight})


def test_the_schedule_moves_the_weight_of_the_guidance_alone(tmp_path):
    batch, model = make_batch(), build("vit_average").train()
    trainer = make_trainer(model, tmp_path, guidance_schedule="linear_increase")
    trainer.state.max_steps = 10
    losses = []
    for step in (0, 5, 10):
        trainer.state.global_step = step
        losses.append(trainer.compute_loss(model, batch).item())
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1], rel=1e-3)
    assert losses[1] > losses[0]
    plain = make_trainer(model, tmp_path, guidance="none", task_weight=0.5).compute_loss(model, batch).item()
    assert losses[0] == pytest.approx(plain, rel=1e-6)
    trainer.state.global_step = 0
    assert trainer.compute_loss(model.eval(), batch).item() == pytest.approx(losses[2], rel=1e-4)


def test_rescale_annotated_divides_by_the_annotated_share(tmp_path):
    batch, model = make_batch(), build("vit_average").eval()
    dataset = rows(12)  # two thirds annotated
    plain = make_trainer(model, tmp_path, task_weight=0, train_dataset=dataset)
    rescaled = make_trainer(model, tmp_path, task_weight=0, train_dataset=dataset, rescale_annotated=True)
    ratio = rescaled.compute_loss(model, batch) / plain.compute_loss(model, batch)
    assert ratio.item() == pytest.approx(1.5, rel=1e-5)


def test_compute_metrics_early_stopping_and_the_best_model(tmp_path):
    calls = []

    def compute_metrics(prediction):
        calls.append(prediction.predictions.shape)
        return {"score": -len(calls)}

    trainer = make_trainer(
        build("resnet"),
        tmp_path,
        train_dataset=rows(),
        eval_dataset=rows(5, seed=1),
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(2)],
        num_train_epochs=10,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="cyborg_loss",
        greater_is_better=True,
        learning_rate=1e-2,
        guidance_weight=10.0,
    )
    trainer.train()
    losses = [entry["eval_cyborg_loss"] for entry in trainer.state.log_history if "eval_cyborg_loss" in entry]
    assert set(calls) == {(5, 3)}
    assert trainer.state.best_metric == pytest.approx(max(losses))
    assert trainer.state.epoch < 10


def test_several_evaluation_sets(tmp_path):
    trainer = make_trainer(build("resnet"), tmp_path, eval_dataset={"test": rows(), "ood": rows(seed=1)})
    metrics = trainer.evaluate()
    assert metrics["eval_test_cyborg_loss"] != metrics["eval_ood_cyborg_loss"]


def test_predict_with_and_without_labels(tmp_path):
    dataset = rows(7)
    trainer = make_trainer(build("vit_class_token"), tmp_path, per_device_eval_batch_size=3)
    labelled = trainer.predict(dataset)
    bare = trainer.predict([{"pixel_values": row["pixel_values"], "saliency": row["saliency"]} for row in dataset])
    assert labelled.predictions.shape == bare.predictions.shape == (7, 3)
    # Without labels no map is made, and the last block's attention runs fused: equal up to rounding.
    assert abs(labelled.predictions - bare.predictions).max() < 1e-5
    assert bare.label_ids is None
    assert "test_cyborg_loss" in labelled.metrics


def test_the_hub_token_is_never_pickled(tmp_path):
    args = SaliencyTrainingArguments(str(tmp_path), hub_token="hf_secret")
    assert args.hub_token == "hf_secret"
    assert b"hf_secret" not in pickle.dumps(args)
    trainer = make_trainer(build("resnet"), tmp_path, hub_token="hf_secret")
    trainer.save_model()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes(), path


def test_arguments_survive_a_round_trip(tmp_path):
    args = SaliencyTrainingArguments(str(tmp_path), guidance_options={"cam_class": "predicted"}, image_size=[64, 96])
    restored = pickle.loads(pickle.dumps(args))
    assert restored.guidance_options == args.guidance_options
    assert json.loads(args.to_json_string())["image_size"] == [64, 96]


def test_a_saved_model_is_loaded_by_transformers_alone(tmp_path):
    model = build("resnet")
    trainer = make_trainer(model, tmp_path, train_dataset=rows(), max_steps=2)
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = make_batch()["pixel_values"]
    assert torch.equal(loaded.eval()(pixels).logits, model.eval()(pixels).logits)
    assert loaded.config.id2label == dict(enumerate(NAMES))


def test_pictures_are_brought_to_the_size_that_the_model_is_saved_with(tmp_path):
    from transformers import AutoImageProcessor

    dataset = decoy_digits(size=48, num_train=24, num_validation=10, num_test=10, num_ood=10)
    from hf_salguide import as_classifier

    model = as_classifier("test_resnet", label_names=dataset["train"].features["label"].names)
    trainer = make_trainer(
        model, tmp_path, train_dataset=dataset["train"], eval_dataset=dataset["validation"], image_size=64, max_steps=2
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (8, 3, 64, 64)
    assert batch["saliency"].shape == (8, 8, 8)  # as much as CYBORG reads
    assert batch["has_saliency"].all()
    trainer.train()
    assert trainer.evaluate(dataset["ood"])["eval_cyborg_loss"] > 0
    assert trainer.predict(dataset["test"]).predictions.shape == (10, 10)
    trainer.save_model()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(dataset["test"][0]["image"].convert("RGB"), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    ours = next(iter(trainer.get_test_dataloader(dataset["test"])))["pixel_values"][0]
    assert (pixels[0] - ours).abs().mean() < 0.02


def test_height_comes_before_width(tmp_path):
    dataset = decoy_digits(size=48, num_train=16, num_validation=10, num_test=10, num_ood=10)["train"]
    model = as_classifier("test_resnet", label_names=dataset.features["label"].names)
    trainer = make_trainer(model, tmp_path, train_dataset=dataset, image_size=[64, 96])
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape[2:] == (64, 96)
    assert batch["saliency"].shape[1:] == (8, 12)  # four parts a side of each cell
    assert trainer.data_collator([trainer.train_dataset[0]])["saliency"].shape[1:] == (64, 96)
    assert trainer.feature_layer.grid == (2, 3)


def test_evaluation_pictures_are_not_augmented(tmp_path):
    dataset = decoy_digits(size=48, num_train=16, num_validation=10, num_test=10, num_ood=10)["test"]
    model = as_classifier("test_resnet", label_names=dataset.features["label"].names)
    trainer = make_trainer(model, tmp_path, image_size=64)
    first = next(iter(trainer.get_eval_dataloader(dataset)))
    for dataloader in (trainer.get_eval_dataloader(dataset), trainer.get_test_dataloader(dataset)):
        again = next(iter(dataloader))
        assert all(torch.equal(again[key], first[key]) for key in first)


def test_own_transforms_get_picture_and_saliency_together(tmp_path):
    seen = []

    def transform(image, saliency):
        seen.append((image.size, saliency is not None))
        return torch.zeros(3, 32, 40), None if saliency is None else torch.zeros(32, 40)

    dataset = decoy_digits(size=48, num_train=16, num_validation=10, num_test=10, num_ood=10)
    from hf_salguide import as_classifier

    model = as_classifier("test_resnet", label_names=dataset["train"].features["label"].names)
    trainer = SaliencyTrainer(
        model,
        SaliencyTrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
        train_dataset=dataset["train"],
        train_transform=transform,
    )
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].shape == (8, 3, 32, 40)
    assert seen[0] == ((48, 48), True)


def test_batch_statistics_move_once_a_step_of_a_whole_run(tmp_path):
    model = build("resnet")
    trainer = make_trainer(
        model,
        tmp_path,
        train_dataset=rows(),
        eval_dataset=rows(),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    counters = [buffer for key, buffer in model.named_buffers() if key.endswith("num_batches_tracked")]
    assert counters
    assert all(counter == 4 for counter in counters)


def test_several_methods_are_summed_each_with_its_own_weight_and_options(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_guidance
    class Other(Cyborg):
        """CYBORG by another name."""

        name = "other"

    batch, model = make_batch(), build("resnet").eval()
    options = {"cyborg": {"cam_class": "predicted"}, "other": {"resize": "bilinear"}}
    weights = {"cyborg": 2.0, "other": 3.0}
    both = make_trainer(
        model,
        tmp_path,
        guidance=list(weights),
        guidance_weight=list(weights.values()),
        guidance_options=options,
        task_weight=0.0,
    )
    alone = [
        make_trainer(
            model, tmp_path, guidance=name, guidance_weight=weight, guidance_options=options[name], task_weight=0.0
        )
        for name, weight in weights.items()
    ]
    parts = [trainer.compute_loss(model, batch).item() for trainer in alone]
    assert both.compute_loss(model, batch).item() == pytest.approx(sum(parts), rel=1e-5)
    assert min(parts) > 0
    assert [repr(method) for method in both.guidance] == [repr(trainer.guidance[0]) for trainer in alone]


def test_the_trainer_leaves_nothing_on_the_model(tmp_path):
    model = build("resnet")
    before = {key: set(vars(module)) for key, module in model.named_modules()}
    parameters = list(model.state_dict())
    trainer = make_trainer(model, tmp_path, train_dataset=rows(), max_steps=2)
    trainer.train()
    extra = {key: set(vars(module)) - before[key] for key, module in model.named_modules()}
    plain = build("resnet")
    plain_before = {key: set(vars(module)) for key, module in plain.named_modules()}
    from transformers import TrainingArguments

    stock = Trainer(
        plain,
        TrainingArguments(str(tmp_path), report_to="none", max_steps=2, use_cpu=True, disable_tqdm=True),
        train_dataset=[{"pixel_values": row["pixel_values"], "labels": row["labels"]} for row in rows()],
    )
    stock.train()
    expected = {key: set(vars(module)) - plain_before[key] for key, module in plain.named_modules()}
    assert extra == expected
    assert list(model.state_dict()) == parameters
    assert not any(module._forward_hooks for module in model.modules())


def test_a_batch_without_saliency_is_not_annotated(tmp_path):
    batch = make_batch()
    model = build("vit_average").eval()
    trainer = make_trainer(model, tmp_path)
    bare = {key: batch[key] for key in ("pixel_values", "labels")}
    plain = make_trainer(model, tmp_path, guidance="none", task_weight=0.5)
    assert trainer.compute_loss(model, bare).item() == pytest.approx(plain.compute_loss(model, bare).item())
    with pytest.raises(ValueError, match='needs both "saliency" and "has_saliency"'):
        trainer.compute_loss(model, {**bare, "saliency": batch["saliency"]})
    with pytest.raises(ValueError, match="saliency has shape"):
        trainer.compute_loss(model, {**batch, "saliency": batch["saliency"][:, :32]})


def test_empty_masks_are_skipped_as_if_not_annotated(tmp_path):
    batch = make_batch()
    model = build("vit_average").eval()
    for control in ({}, {"invert_saliency": True}, {"random_saliency": True}):
        empty = {**batch, "has_saliency": torch.ones(5, dtype=torch.bool)}
        losses = [make_trainer(model, tmp_path, **control).compute_loss(model, each) for each in (empty, batch)]
        assert losses[0] == losses[1]


def test_running_means_are_over_all_elements():
    means = RunningMeans()
    means.add({"a": torch.ones(3, requires_grad=True)})
    means.add({"a": torch.zeros(1), "b": torch.tensor(2.0)})
    assert not means._sums["a"].requires_grad
    assert means.pop(None) == {"a": 0.75, "b": 2.0}
    assert means.pop(None) == {}


def test_a_step_reads_nothing_from_the_device(tmp_path, monkeypatch):
    model, batch = build("resnet").train(), make_batch()
    trainer = make_trainer(model, tmp_path)
    trainer.compute_loss(model, batch)
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
            patch.setattr(torch.Tensor, name, lambda *args, **kwargs: pytest.fail("a tensor was read"))
        trainer.compute_loss(model, batch)


def test_the_layer_is_resolved_for_the_pictures_that_come(tmp_path):
    model = as_classifier("test_resnet", label_names=NAMES)  # of 160 pixels
    dataset = Rows(make_batch((96, 64), 8, annotated=[True] * 8))
    trainer = make_trainer(model, tmp_path, train_dataset=dataset, max_steps=1)
    trainer.train()
    assert trainer.feature_layer.grid == (3, 2)
    dynamic = as_classifier("test_vit", label_names=NAMES, image_size=96, dynamic_img_size=True)
    trainer = make_trainer(dynamic, tmp_path, train_dataset=dataset, max_steps=1)
    trainer.train()
    assert trainer.feature_layer.grid == (6, 4)


def test_a_model_that_is_made_anew_keeps_size_and_preparation(tmp_path):
    args = SaliencyTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, max_steps=1, image_size=64, disable_tqdm=True
    )
    dataset = Rows(make_batch((64, 64), 8, annotated=[True] * 8))
    trainer = SaliencyTrainer(
        model_init=lambda: as_classifier("test_resnet", label_names=NAMES), args=args, train_dataset=dataset
    )
    trainer.train()
    assert list(trainer.model.config.pretrained_cfg["input_size"]) == [3, 64, 64]
    import timm

    with pytest.raises(ValueError, match="model is a ResNet"):
        SaliencyTrainer(model_init=lambda: timm.create_model("test_resnet"), args=args)


def test_the_size_of_the_arguments_is_saved_in_the_processor(tmp_path):
    from transformers import AutoImageProcessor, ViTImageProcessor

    model = build("transformers_vit")
    trainer = make_trainer(
        model, tmp_path, image_size=64, processing_class=ViTImageProcessor(size={"height": 96, "width": 96})
    )
    trainer.save_model()
    assert dict(AutoImageProcessor.from_pretrained(tmp_path).size) == {"height": 64, "width": 64}


def test_none_with_a_weight_is_plain_training(tmp_path):
    model = build("resnet").train()
    trainer = make_trainer(model, tmp_path, guidance="none", guidance_weight=0.5)
    assert not trainer.is_guided
    model.config.problem_type = "multi_label_classification"
    make_trainer(model, tmp_path, guidance="none", guidance_weight=0.5)


def test_the_logged_components_add_up_with_a_compute_loss_func(tmp_path):
    def mean_over_the_step(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    for size, accumulation in ((8, 1), (2, 4)):
        trainer = make_trainer(
            build("vit_average"),
            tmp_path,
            train_dataset=rows(16),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            compute_loss_func=mean_over_the_step,
            max_steps=2,
            logging_steps=2,
        )
        trainer.train()
        entry = trainer.state.log_history[0]
        assert entry["loss"] == pytest.approx(0.5 * entry["task_loss"] + 0.5 * entry["cyborg_loss"], rel=1e-4)


def test_what_was_not_logged_is_not_carried_into_the_next_training(tmp_path):
    trainer = make_trainer(build("resnet"), tmp_path, train_dataset=rows(), max_steps=3, logging_steps=2)
    trainer.train()
    assert trainer._train_means.pop(None)
    trainer.train()
    trainer.train()
    assert set(trainer._train_means._counts.values()) == {1}


def test_saliency_may_be_boolean_and_nothing_else(tmp_path):
    batch, model = make_batch(), build("vit_average").eval()
    trainer = make_trainer(model, tmp_path, invert_saliency=True)
    mask = batch["saliency"] > 0
    boolean = trainer.compute_loss(model, {**batch, "saliency": mask})
    floating = trainer.compute_loss(model, {**batch, "saliency": mask.float()})
    assert boolean == floating
    with pytest.raises(ValueError, match=r"saliency is torch.int64; it needs uint8"):
        trainer.compute_loss(model, {**batch, "saliency": mask.long()})


def test_guidance_metadata_is_saved_with_the_model(tmp_path):
    trainer = make_trainer(build("resnet"), tmp_path, guidance_weight=2.0)
    trainer.save_model()
    assert not hasattr(AutoModelForImageClassification.from_pretrained(tmp_path).config, "saliency_guide")
    save_as_trained(trainer)
    saved = AutoModelForImageClassification.from_pretrained(tmp_path).config.saliency_guide
    assert saved["name"] == "cyborg"
    assert saved["weight"] == 2.0
    assert saved["feature_layer"] == "timm_model.layer4.0"
    assert not hasattr(trainer.model.config, "saliency_guide")
    again = as_classifier(tmp_path, pretrained=True)
    assert again.config.saliency_guide == saved
    untouched = make_trainer(again, tmp_path, guidance="none")
    untouched.save_model()
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.saliency_guide == saved
    save_as_trained(untouched)
    assert not hasattr(AutoModelForImageClassification.from_pretrained(tmp_path).config, "saliency_guide")


def test_the_collator_is_the_trainers_default(tmp_path):
    assert isinstance(make_trainer(build("resnet"), tmp_path).data_collator, SaliencyCollator)


def test_random_saliency_is_drawn_anew_at_each_step_and_once_for_evaluation(tmp_path):
    batch, model = make_batch(), build("vit_average").eval()
    losses = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        trainer = make_trainer(model, tmp_path, random_saliency=True, seed=seed)
        trainer.state.global_step = step
        losses.append(trainer.compute_loss(model.train(), batch).item())
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3
    evaluated = []
    for size, step in ((4, 0), (4, 5), (12, 0)):
        trainer = make_trainer(
            model, tmp_path, random_saliency=True, eval_dataset=rows(), per_device_eval_batch_size=size
        )
        trainer.state.global_step = step
        evaluated += [trainer.evaluate()["eval_cyborg_loss"] for _ in range(2)]
    assert evaluated == pytest.approx([evaluated[0]] * 6, rel=1e-5)


def test_both_controls_invert_the_random_map(tmp_path):
    batch, model = make_batch(), build("vit_average").eval()
    losses = []
    for inverted in (False, True):
        trainer = make_trainer(model, tmp_path, random_saliency=True, invert_saliency=inverted)
        losses.append(trainer.compute_loss(model, batch).item())
    assert losses[0] != losses[1]


def test_model_init(tmp_path):
    args = SaliencyTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, max_steps=2, save_strategy="no", disable_tqdm=True
    )
    trainer = SaliencyTrainer(model_init=lambda: build("resnet"), args=args, train_dataset=rows())
    trainer.train()
    assert trainer.state.global_step == 2


def test_compute_loss_stays_in_float32_under_bf16(tmp_path):
    batch, model = make_batch(), build("vit_class_token").train()
    trainer = make_trainer(model, tmp_path)
    expected = trainer.compute_loss(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = trainer.compute_loss(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_rescale_annotated_leaves_terms_alone_that_need_no_annotation(tmp_path):
    batch, model, dataset = make_batch(), build("vit_average").eval(), rows(12)
    terms = []
    for names in (["cyborg"], ["cam_entropy"], ["cyborg", "cam_entropy"]):
        for rescaled in (False, True):
            trainer = make_trainer(
                model,
                tmp_path,
                guidance=names,
                guidance_weight=[1.0] * len(names),
                task_weight=0,
                train_dataset=dataset,
                rescale_annotated=rescaled,
            )
            terms.append(trainer.compute_loss(model, batch).item())
    assert terms[1] == pytest.approx(1.5 * terms[0], rel=1e-5)  # two thirds are annotated
    assert terms[3] == terms[2] > 0
    assert terms[5] == pytest.approx(terms[1] + terms[2], rel=1e-5)


def test_the_annotated_share_is_that_of_methods_that_get_a_weight_later(tmp_path):
    """And nothing is read, nor refused, without such a method."""
    nobody = Rows(make_batch(annotated=[False] * 5))
    make_trainer(build("resnet"), tmp_path, train_dataset=nobody, rescale_annotated=True, guidance_weight=0)
    arguments = {"rescale_annotated": True, "max_steps": 1, "train_dataset": rows(12)}
    trainer = make_trainer(build("vit_average"), tmp_path, guidance_weight=0, **arguments)
    trainer.args.guidance_weight = 1.0
    trainer.train()
    assert trainer._annotated_scale == pytest.approx(1.5)


def test_the_saved_block_says_what_the_methods_were_told(tmp_path):
    arguments = {
        "task_weight": 0.25,
        "guidance_schedule": "warmup:0.1",
        "empty_mask": "penalise_all",
        "random_saliency": True,
        "invert_saliency": True,
        "rescale_annotated": True,
        "seed": 7,
    }
    trainer = make_trainer(build("resnet"), tmp_path, guidance="energy", **arguments)
    save_as_trained(trainer)
    saved = AutoModelForImageClassification.from_pretrained(tmp_path).config.saliency_guide
    assert {name: saved[name] for name in arguments} == arguments
    assert saved == json.loads(json.dumps(trainer.guidance_block()))
    assert make_trainer(build("resnet"), tmp_path, guidance="none").guidance_block() is None


def test_adapters_are_saved_with_a_block_in_a_file_of_its_own(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["qkv"], modules_to_save=["timm_model.head"])
    model = peft.get_peft_model(build("vit_average"), config)
    trainer = make_trainer(model, tmp_path, guidance="cyborg", guidance_weight=2.0)
    save_as_trained(trainer)
    assert not (tmp_path / "config.json").exists()
    saved = json.loads((tmp_path / "saliency_guide.json").read_text())["saliency_guide"]
    assert saved == json.loads(json.dumps(trainer.guidance_block()))
    assert saved["weight"] == 2.0
    save_as_trained(make_trainer(model, tmp_path, guidance="none"))
    assert not (tmp_path / "saliency_guide.json").exists()


def test_options_of_one_method_may_carry_its_name(tmp_path):
    nested = SaliencyTrainingArguments(str(tmp_path), guidance_options={"cyborg": {"cam_class": "predicted"}})
    flat = SaliencyTrainingArguments(str(tmp_path), guidance_options={"cam_class": "predicted"})
    assert repr(nested.build_guidance()) == repr(flat.build_guidance())
    with pytest.raises(ValueError, match='"actdiff" is not an option of guidance="cyborg"'):
        SaliencyTrainingArguments(str(tmp_path), guidance_options={"actdiff": {"fill": "zero"}})
