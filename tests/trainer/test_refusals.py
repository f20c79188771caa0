"""What `SaliencyTrainer` and its arguments refuse, and that the message names argument, value and remedy."""

import pytest
import timm
import torch
from support import NAMES, Rows, build, make_batch, make_trainer
from transformers import TrainingArguments

from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments
from hf_salguide.data import decoy_digits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": "cyborgs"}, 'guidance="cyborgs" is not known; did you mean "cyborg"'),
        ({"guidance": ["cyborg", "cyborg"]}, "has to name each method once"),
        ({"guidance": ["cyborg", "none"]}, "none stands alone"),
        ({"guidance_options": {"cam": "true"}}, '"cam" is not an option of guidance="cyborg"; did you mean'),
        ({"guidance_options": {"cam_class": "all"}}, "cam_class='all' is not known; choose one of"),
        ({"guidance_options": "cam_class"}, "guidance_options='cam_class' has to be a dict"),
        ({"guidance_weight": -1}, "guidance_weight=-1 has to be a number of at least 0"),
        ({"guidance_weight": "heavy"}, "guidance_weight='heavy' has to be a number"),
        ({"guidance_weight": [1.0, 2.0]}, r"guidance_weight=\[1.0, 2.0\] has 2 number\(s\) for 1 method"),
        ({"guidance_weight": True}, "guidance_weight=True has to be a number"),
        ({"guidance": ["cyborg", "energy"], "guidance_weight": [True, 1.0]}, "guidance_weight=.True, 1.0. has to be"),
        ({"task_weight": float("nan")}, "task_weight=nan has to be a number"),
        ({"task_weight": "0.5"}, "task_weight='0.5' has to be a number"),
        ({"task_weight": True}, "task_weight=True has to be a number"),
        ({"random_saliency": "false"}, "random_saliency='false' has to be true or false"),
        ({"invert_saliency": "no"}, "invert_saliency='no' has to be true or false"),
        ({"rescale_annotated": 1}, "rescale_annotated=1 has to be true or false"),
        ({"guidance_schedule": "slow"}, 'guidance_schedule="slow" is not known; choose one of'),
        ({"image_size": "big"}, "image_size='big' has to be a number of pixels"),
        ({"image_size": [1, 2, 3]}, r"image_size=\[1, 2, 3\] has to be a number of pixels"),
        ({"empty_mask": "drop"}, 'empty_mask="drop" is not known; choose "skip" or "penalise_all"'),
        ({"empty_mask": "penalise_all"}, 'empty_mask="penalise_all" has no meaning for guidance="cyborg"'),
    ],
)
def test_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        SaliencyTrainingArguments(str(tmp_path), **arguments)


def test_plain_training_arguments(tmp_path):
    with pytest.raises(ValueError, match="args is a TrainingArguments; SaliencyTrainer takes SaliencyTrainingArg"):
        SaliencyTrainer(build("resnet"), TrainingArguments(str(tmp_path)))


def test_static_graph(tmp_path):
    with pytest.raises(ValueError, match="ddp_static_graph=True gives wrong gradients"):
        make_trainer(build("resnet"), tmp_path, ddp_static_graph=True)


def test_removing_the_saliency_column(tmp_path):
    with pytest.raises(ValueError, match="remove_unused_columns=True would remove the saliency"):
        make_trainer(build("resnet"), tmp_path, remove_unused_columns=True)
    make_trainer(build("resnet"), tmp_path, remove_unused_columns=True, guidance="none")


def test_data_parallel(tmp_path, monkeypatch):
    monkeypatch.setattr(SaliencyTrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="2 GPUs in one process mean nn.DataParallel.*accelerate launch"):
        make_trainer(build("resnet"), tmp_path)


def test_a_raw_timm_module(tmp_path):
    with pytest.raises(ValueError, match="model is a ResNet, which takes no labels.*as_classifier"):
        make_trainer(timm.create_model("test_resnet", num_classes=3), tmp_path)


def test_no_model(tmp_path):
    with pytest.raises(ValueError, match="model=None: give a model"):
        make_trainer(None, tmp_path)


def test_a_multi_label_head(tmp_path):
    model = build("resnet")
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="needs one true class a picture.*problem_type='multi_label_classification'"):
        make_trainer(model, tmp_path)
    make_trainer(model, tmp_path, guidance="none")


def test_a_feature_layer_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match='feature_layer="layer9" is not a module.*the nearest are "timm_model.layer'):
        make_trainer(build("resnet"), tmp_path, feature_layer="layer9")


def test_a_feature_layer_that_is_not_spatial(tmp_path):
    with pytest.raises(ValueError, match='feature_layer="timm_model.fc"'):
        make_trainer(build("resnet"), tmp_path, feature_layer="timm_model.fc")


def test_an_image_size_that_the_backbone_refuses(tmp_path):
    with pytest.raises(ValueError, match="image_size"):
        make_trainer(build("vit_class_token"), tmp_path, image_size=70)


def test_an_output_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(ValueError, match=r'output_dir=".*" cannot be written'):
        make_trainer(build("resnet"), blocked / "out")


def test_a_label_outside_the_class_list(tmp_path):
    batch = make_batch()
    batch["labels"][2] = 7
    trainer = make_trainer(build("resnet"), tmp_path, train_dataset=Rows(batch), max_steps=1)
    with pytest.raises(ValueError, match="label.*7"):
        trainer.train()


def test_rows_of_the_evaluation_set_before_the_first_step(tmp_path):
    batch = make_batch()
    batch["pixel_values"][1, 0, 0, 0] = float("nan")
    trainer = make_trainer(
        build("resnet"), tmp_path, train_dataset=Rows(make_batch()), eval_dataset=Rows(batch), max_steps=1
    )
    with pytest.raises(ValueError, match="row 1: pixel_values has NaN"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_nan_in_prepared_saliency(tmp_path):
    batch = make_batch()
    batch["saliency"] = batch["saliency"].float() / 255
    batch["saliency"][1, 0, 0] = float("nan")
    trainer = make_trainer(build("resnet"), tmp_path, train_dataset=Rows(batch), max_steps=1)
    with pytest.raises(ValueError, match="(?i)nan"):
        trainer.train()


def digits(**kwargs):
    return decoy_digits(size=48, num_train=20, num_validation=10, num_test=10, num_ood=10, **kwargs)["train"]


def test_a_class_order_that_differs_from_the_data_sets(tmp_path):
    from hf_salguide import as_classifier

    dataset = digits()
    names = dataset.features["label"].names
    model = as_classifier("test_resnet", label_names=[*names[1:], names[0]])
    for argument in ({"train_dataset": dataset}, {"eval_dataset": dataset}, {"eval_dataset": {"test": dataset}}):
        with pytest.raises(ValueError, match="order"):
            make_trainer(model, tmp_path, **argument)
    trainer = make_trainer(model, tmp_path, image_size=64)
    for method in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match="order"):
            method(dataset)


def test_no_annotated_training_picture(tmp_path):
    from hf_salguide import as_classifier

    dataset = digits(saliency_fraction=0.0)
    model = as_classifier("test_resnet", label_names=dataset.features["label"].names)
    with pytest.raises(ValueError, match="(?i)no .*saliency|annotated"):
        make_trainer(model, tmp_path, train_dataset=dataset)
    make_trainer(model, tmp_path, train_dataset=dataset, guidance="none")


def test_no_annotation_in_a_data_set_that_only_reading_shows(tmp_path):
    batch = make_batch(annotated=[False] * 5)
    trainer = make_trainer(build("resnet"), tmp_path, train_dataset=Rows(batch), max_steps=1)
    with pytest.raises(ValueError, match="no row has a saliency map"):
        trainer.train()
    make_trainer(build("resnet"), tmp_path, train_dataset=Rows(batch), max_steps=1, guidance="none").train()


def test_labels_that_are_no_class_ids(tmp_path):
    batch, model = make_batch(), build("resnet").eval()
    trainer = make_trainer(model, tmp_path)
    soft = torch.rand(5, 3)
    with pytest.raises(ValueError, match="labels: guidance and row weights need one class id a picture"):
        trainer.compute_loss(model, {**batch, "labels": soft})
    with pytest.raises(ValueError, match="the batch has none"):
        trainer.compute_loss(model, {key: batch[key] for key in batch if key != "labels"})
    plain = make_trainer(model, tmp_path, guidance="none")
    with pytest.raises(ValueError, match="row weights need one class id"):
        plain.compute_loss(model, {**batch, "labels": soft, "sample_weight": torch.ones(5)})


def test_a_method_whose_terms_are_not_one_a_picture(tmp_path, monkeypatch):
    model = build("resnet").eval()
    trainer = make_trainer(model, tmp_path)
    monkeypatch.setattr(type(trainer.guidance[0]), "terms", lambda self, batch: torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"Cyborg.terms gave the shape \(5, 1\); it needs one number a picture"):
        trainer.compute_loss(model, make_batch())


def test_a_compiled_model_whose_map_is_a_gradient(tmp_path):
    with pytest.raises(ValueError, match="torch_compile=True: guidance takes a gradient.*blocks.*leave torch_comp"):
        make_trainer(build("vit_class_token"), tmp_path, torch_compile=True, torch_compile_backend="eager")


def test_one_class_only(tmp_path):
    from hf_salguide import as_classifier

    dataset = digits()
    model = as_classifier("test_resnet", label_names=dataset.features["label"].names)
    with pytest.raises(ValueError, match="a classifier needs two classes"):
        make_trainer(model, tmp_path, train_dataset=dataset.filter(lambda row: row["label"] == 1))


def test_pictures_that_are_all_constant(tmp_path):
    batch = make_batch()
    batch["pixel_values"] = torch.ones_like(batch["pixel_values"])
    trainer = make_trainer(build("resnet"), tmp_path, train_dataset=Rows(batch), max_steps=1)
    with pytest.raises(ValueError, match="constant"):
        trainer.train()


def test_refusals_spend_no_forward(tmp_path, monkeypatch):
    """Whatever the arguments alone show is refused before the model is called."""
    model = build("resnet")
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match="ddp_static_graph"):
        make_trainer(model, tmp_path, ddp_static_graph=True)
    assert list(model.config.id2label.values()) == NAMES
