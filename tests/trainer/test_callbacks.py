"""Panels of what a model looks at, drawn while it is trained."""

import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import NAMES, Rows, build, make_batch, make_trainer
from transformers import Trainer, TrainingArguments

from hf_salguide import (
    SaliencyTrainer,
    SaliencyTrainingArguments,
    as_classifier,
    callbacks,
    resolve_feature_layer,
)
from hf_salguide.callbacks import SaliencyPanelCallback

pytest.importorskip("matplotlib")


def rows(count=6, annotated=(False, True, True, False, True, True)):
    return Rows(make_batch((64, 96), count, annotated=list(annotated)))


def trained(tmp_path, panels, model=None, **arguments):
    trainer = make_trainer(
        build("resnet") if model is None else model,
        tmp_path,
        **{
            "guidance": "none",
            "train_dataset": rows(),
            "eval_dataset": rows(),
            "callbacks": [panels],
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            **arguments,
        },
    )
    trainer.train()
    return trainer


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "panels").glob("*"))


def test_files_where_no_tracker_is_reported_to(tmp_path):
    trained(tmp_path, SaliencyPanelCallback(rows()))
    assert files(tmp_path) == ["step_000002.png", "step_000004.png"]
    first, second = (np.asarray(Image.open(tmp_path / "panels" / name).convert("RGB")) for name in files(tmp_path))
    assert first.shape == second.shape
    assert first.std() > 10
    assert (first != second).any()  # the model has moved


@pytest.mark.parametrize(
    ("every", "steps"), [("save", [3, 4]), (1, [1, 2, 3, 4]), (3, [3]), ("evaluate", [2, 4])], ids=str
)
def test_every(tmp_path, every, steps):
    panels = SaliencyPanelCallback(rows(), rows=[1], every=every)
    trained(tmp_path, panels, save_strategy="steps", save_steps=3)
    assert files(tmp_path) == [f"step_{step:06d}.png" for step in steps]


def test_the_rows_that_are_drawn(tmp_path, monkeypatch):
    assert SaliencyPanelCallback(rows()).rows == [1, 2, 4, 5]
    assert SaliencyPanelCallback(rows(annotated=[False] * 6)).rows == [0, 1, 2, 3]
    drawn = []

    def explain(model, given, **options):
        drawn.append([float(row["pixel_values"].sum()) for row in given])
        return []

    monkeypatch.setattr("hf_salguide.callbacks.explain", explain)
    dataset = rows()
    trained(tmp_path, SaliencyPanelCallback(dataset, rows=[5, 0]))
    assert drawn == [[float(dataset[row]["pixel_values"].sum()) for row in (5, 0)]] * 2


def test_several_evaluation_sets_are_one_panel(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("hf_salguide.callbacks.save_panel", lambda figure, path: shown.append(path.name))
    trained(tmp_path, SaliencyPanelCallback(rows(), rows=[1]), eval_dataset={"test": rows(), "ood": rows()})
    assert shown == ["step_000002.png", "step_000004.png"]


def test_tensorboard(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    panels = SaliencyPanelCallback(rows(), rows=[1, 2])
    trained(tmp_path, panels, report_to="tensorboard")
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    assert len(list(folder.iterdir())) == 1  # the trainer's own file, and no second run
    accumulator = accumulators.EventAccumulator(str(folder), size_guidance={accumulators.IMAGES: 0})
    accumulator.Reload()
    assert accumulator.Tags()["images"] == ["panels"]
    assert "eval/energy_inside" in accumulator.Tags()["scalars"]
    images = accumulator.Images("panels")
    assert [image.step for image in images] == [2, 4]
    for image in images:
        path = tmp_path / "panel.png"
        path.write_bytes(image.encoded_image_string)
        picture = np.asarray(Image.open(path))
        assert picture.shape == (image.height, image.width, 3)
        assert image.width > 800
        assert picture.std() > 10
    assert not files(tmp_path)


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    trained(tmp_path, SaliencyPanelCallback(rows(), rows=[1]), report_to="wandb")
    written = [path.name for path in tmp_path.rglob("media/images/*.png")]
    assert sorted(name.split("_")[0] for name in written) == ["panels", "panels"]
    assert not files(tmp_path)


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which is read when it is imported
    pytest.importorskip("trackio")
    trained(tmp_path, SaliencyPanelCallback(rows(), rows=[1]), report_to="trackio")
    assert not files(tmp_path)
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 2


def test_a_plain_trainer_is_told_of_by_hand(tmp_path):
    pytest.importorskip("tensorboard")
    plain = [{"pixel_values": row["pixel_values"], "labels": row["labels"]} for row in rows()]
    for attached in (False, True):
        output = tmp_path / str(attached)
        panels = SaliencyPanelCallback(rows(), rows=[1])
        args = TrainingArguments(str(output), report_to="tensorboard", use_cpu=True, disable_tqdm=True, max_steps=1)
        trainer = Trainer(build("resnet"), args, train_dataset=plain, eval_dataset=plain, callbacks=[panels])
        if attached:
            panels.attach(trainer)
        trainer.train()
        trainer.evaluate()
        assert files(output) == ([] if attached else ["step_000001.png"])


def test_training_is_the_same_with_panels(tmp_path):
    weights, states = [], []
    for panels in ([], [SaliencyPanelCallback(rows(), rows=[1, 2], every=1)]):
        random.seed(0)
        torch.manual_seed(0)
        model = build("vit_class_token", drop_rate=0.1)
        make_trainer(model, tmp_path, guidance="none", train_dataset=rows(), callbacks=panels, max_steps=4).train()
        weights.append(model.state_dict())
        states.append((random.getstate(), torch.get_rng_state().tolist()))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert states[0] == states[1]
    assert len(files(tmp_path)) == 4


def test_modes_statistics_and_hooks_are_left_alone(tmp_path):
    model = build("resnet").train()
    frozen = model.get_submodule("timm_model.layer1")
    frozen.eval()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    modes = {name: module.training for name, module in model.named_modules()}
    panels = SaliencyPanelCallback(rows(), rows=[1])
    trainer = make_trainer(model, tmp_path, guidance="none")
    panels.on_evaluate(trainer.args, trainer.state, trainer.control, model=model)
    assert files(tmp_path) == ["step_000000.png"]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_processes_draw_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_salguide.callbacks.explain", lambda *args, **options: pytest.fail("drawn"))
    trainer = make_trainer(build("resnet"), tmp_path)
    trainer.state.is_world_process_zero = False
    SaliencyPanelCallback(rows()).on_evaluate(trainer.args, trainer.state, trainer.control, model=trainer.model)
    assert not files(tmp_path)


def test_pictures_are_those_of_the_trainers_evaluation(tmp_path, monkeypatch):
    dataset = [
        {"image": Image.fromarray(np.full((64, 96, 3), 60 + 40 * row, np.uint8)), "label": row, "saliency": saliency}
        for row, saliency in enumerate([np.eye(64, 96, dtype=np.float32), np.ones((64, 96), np.float32)])
    ]
    seen = []

    def eval_transform(picture, saliency):
        return torch.full((3, 64, 96), 0.25), None if saliency is None else torch.ones(64, 96)

    def explain(model, given, **options):
        handle = model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["pixel_values"].clone()), with_kwargs=True
        )
        try:
            return explained(model, given, **options)
        finally:
            handle.remove()

    explained = callbacks.explain
    monkeypatch.setattr(callbacks, "explain", explain)
    panels = SaliencyPanelCallback(dataset)
    trainer = SaliencyTrainer(
        build("resnet"),
        SaliencyTrainingArguments(str(tmp_path), guidance="none", report_to="none", use_cpu=True),
        callbacks=[panels],
        eval_transform=eval_transform,
    )
    resolve_feature_layer(trainer.model)
    panels.on_evaluate(trainer.args, trainer.state, trainer.control, model=trainer.model)
    assert files(tmp_path) == ["step_000000.png"]
    assert all((pixels == 0.25).all() for pixels in seen[-2:])


def test_methods_that_change_the_pictures_change_those_of_the_panels(tmp_path, monkeypatch):
    blocks = []
    monkeypatch.setattr(callbacks, "explain", lambda model, rows, **options: blocks.append(options["guidance"]))
    masked = make_trainer(build("resnet"), tmp_path, guidance="mask_everything")
    plain = make_trainer(build("resnet"), tmp_path, guidance="none")
    plain.model.config.saliency_guide = masked.guidance_block()  # weights that were trained otherwise
    for trainer in (masked, plain):
        trainer.add_callback(SaliencyPanelCallback(rows()))
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, {})
    assert blocks[0]["name"] == "mask_everything"
    assert blocks[1] == {}


@pytest.mark.parametrize("attached", [False, True])
def test_a_model_that_is_spread_over_processes_is_not_drawn(tmp_path, monkeypatch, caplog, attached):
    trainer = make_trainer(build("resnet"), tmp_path, guidance="none")
    panels = SaliencyPanelCallback(rows())
    if attached:
        trainer.is_fsdp_enabled = True  # as under `accelerate launch --use_fsdp`, of which the arguments know nothing
        panels.attach(trainer)
    else:
        trainer.args.fsdp = ["full_shard"]
    monkeypatch.setattr(callbacks, "explain", lambda *args, **options: pytest.fail("drawn"))
    monkeypatch.setattr(callbacks.logger, "warning_once", callbacks.logger.warning)
    panels.on_evaluate(trainer.args, trainer.state, trainer.control, model=trainer.model)
    assert "No panels are drawn under FSDP" in caplog.text


@pytest.mark.parametrize("where", ["explain", "draw_panel", "save_panel"])
def test_a_panel_that_fails_is_a_warning(tmp_path, monkeypatch, caplog, where):
    def fail(*args, **options):
        raise RuntimeError(f"no {where} today")

    monkeypatch.setattr(f"hf_salguide.callbacks.{where}", fail)
    trainer = trained(tmp_path, SaliencyPanelCallback(rows()))
    assert trainer.state.global_step == 4
    assert caplog.text.count(f"no {where} today") == 1


def test_a_model_whose_layer_cannot_be_found(tmp_path, caplog):
    model = as_classifier("test_resnet", label_names=NAMES, image_size=(64, 96))
    broken = [{"image": "nowhere.png", "label": 0}]
    trained(tmp_path, SaliencyPanelCallback(broken), model=model)
    assert "could not be drawn" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": "epoch"}, 'choose "evaluate", "save"'),
        ({"every": 0}, "every=0"),
        ({"every": True}, "every=True"),
        ({"rows": [0, 6]}, r"rows=\[6\]: the data set has 6 rows"),
        ({"rows": [-1]}, r"rows=\[-1\]"),
        ({"rows": []}, r"rows=\[\]"),
        ({"dataset": []}, "has 0 rows"),
        ({"dataset": iter([])}, "can be indexed"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SaliencyPanelCallback(**{"dataset": rows(), **arguments})


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("hf_salguide.callbacks.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf_salguide\[plots\]'"):
        SaliencyPanelCallback(rows())
