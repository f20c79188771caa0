"""A card that fills itself from a run: what it takes of a trainer, and what it leaves out."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import NAMES, Rows, build, make_batch, make_trainer
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from hf_salguide import as_classifier
from hf_salguide.hub import callback as module
from hf_salguide.hub.callback import ModelCardCallback
from hf_salguide.hub.record import CardRecord
from hf_salguide.hub.saving import saved_files

SIZE = (64, 96)
COUNT = 12


def rows(seed=0, annotated=None):
    flags = [row % 3 > 0 for row in range(COUNT)] if annotated is None else annotated
    batch = make_batch(SIZE, COUNT, seed=seed, annotated=flags)
    prepared = Rows(batch)
    return [prepared[row] for row in range(COUNT)]


def trainer_of(tmp_path, card=None, model=None, **arguments):
    """A short run; its card is that of the callback."""
    card = ModelCardCallback() if card is None else card
    trainer = make_trainer(
        build("resnet") if model is None else model,
        tmp_path,
        **{
            "train_dataset": rows(),
            "eval_dataset": {"test": rows(1), "ood": rows(2)},
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            **arguments,
            "callbacks": [card, *arguments.get("callbacks", [])],
        },
    )
    card.attach(trainer)
    return trainer, card


def saved(folder, **arguments):
    """A trained, evaluated and saved model: its folder."""
    card = ModelCardCallback(**arguments.pop("facts", {}))
    trainer, card = trainer_of(folder, card, **arguments)
    trainer.train()
    trainer.evaluate()
    card.write(folder)
    return folder


@pytest.fixture
def warned(monkeypatch):
    found = []
    monkeypatch.setattr(module.logger, "warning", found.append)
    monkeypatch.setattr(module.logger, "warning_once", found.append)
    return found


def test_the_record_of_a_run(tmp_path):
    trainer, card = trainer_of(tmp_path, learning_rate=0.01, seed=3, guidance_options={"resize": "bilinear"})
    trainer.train()
    trainer.evaluate()
    record = card.record()
    assert record.model.architecture == "test_resnet"
    assert (record.model.library, record.model.label_names) == ("timm", NAMES)
    assert (record.model.image_size, record.model.channels) == (list(SIZE), 3)
    assert record.model.parameters == sum(parameter.numel() for parameter in trainer.model.parameters())
    assert record.model.base_model is None
    (method,) = record.training.methods
    assert (method.name, method.weight, method.options) == ("cyborg", 0.5, {"resize": "bilinear"})
    assert record.training.feature_layers == list(trainer.feature_layer.names)
    assert record.training.hyperparameters == {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.01,
    }
    assert (record.training.seed, record.training.steps, record.training.runs) == (3, 2, 1)
    assert record.training.seconds > 0
    assert set(record.training.versions) >= {"hf_salguide", "torch", "transformers", "timm", "python"}
    assert record.training.hardware.startswith("CPU")
    assert [(split.name, split.pictures, split.annotated) for split in record.data.splits] == [
        (name, COUNT, 8) for name in ("train", "test", "ood")
    ]
    assert [(result.name, result.out_of_distribution) for result in record.results] == [("test", False), ("ood", True)]
    for result, prefix in zip(record.results, ("eval_test", "eval_ood"), strict=True):
        reported = trainer.evaluated[prefix].metrics
        assert result.metrics["accuracy"].value == pytest.approx(reported["accuracy"], abs=1e-5)
        assert result.alignment["energy_inside"].value == pytest.approx(reported["energy_inside"], abs=1e-5)
        assert result.alignment["energy_inside"].pictures <= result.annotated == 8
    assert card.record() == record


def test_writing_twice_gives_the_same_bytes_and_no_path(tmp_path):
    folder = tmp_path / "secret_place"
    trainer, card = trainer_of(folder, ModelCardCallback(dataset=str(tmp_path / "my_data"), baseline=None))
    trainer.train()
    trainer.evaluate()
    card.write(folder)
    first = [(folder / name).read_bytes() for name in ("card.json", "README.md")]
    card.write(folder)
    assert [(folder / name).read_bytes() for name in ("card.json", "README.md")] == first
    for content in first:
        assert b"my_data" in content
        assert b"secret_place" not in content
        assert str(tmp_path).encode() not in content


def test_beside_its_baseline_and_its_control(tmp_path):
    plain = saved(tmp_path / "plain", guidance="none")
    inverted = saved(tmp_path / "inverted", invert_saliency=True)
    facts = {"baseline": plain, "inverted": inverted, "license": "mit"}
    folder = saved(tmp_path / "guided", facts=facts)
    text = (folder / "README.md").read_text()
    assert "| this model | unguided baseline | inverted control |" in text
    assert CardRecord.read(folder).baseline.results == CardRecord.read(plain).results
    assert "license: mit" in text
    assert "cannot be told from this card" not in text


def test_a_guided_baseline_is_refused_before_any_step(tmp_path):
    other = saved(tmp_path / "other")
    trainer, _ = trainer_of(tmp_path / "run", ModelCardCallback(baseline=other))
    with pytest.raises(ValueError, match="was guided itself, by cyborg"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_other_pictures_leave_the_baseline_out_and_the_model_whole(tmp_path, warned):
    plain = saved(tmp_path / "plain", guidance="none", eval_dataset={"test": rows(1)[:6], "ood": rows(2)})
    folder = saved(tmp_path / "run", facts={"baseline": plain})
    assert 'other pictures of "test"' in warned[-1]
    assert CardRecord.read(folder).baseline is None


def test_plain_training_is_a_card_that_can_be_a_baseline(tmp_path):
    text = (saved(tmp_path, guidance="none") / "README.md").read_text()
    assert "trained plainly, without saliency guidance" in text
    assert "saliency-guided-training" not in text
    assert "## How it was guided" not in text


def test_several_methods(tmp_path):
    folder = saved(tmp_path, guidance=["cyborg", "masked_input"], guidance_weight=[0.3, 1.0])
    assert [method.weight for method in CardRecord.read(folder).training.methods] == [0.3, None]


# ---- When what is evaluated ----


def test_no_evaluation_and_no_data_set_to_evaluate(tmp_path):
    trainer, card = trainer_of(tmp_path, eval_dataset=None)
    trainer.train()
    assert card.record().results == []
    assert "No figure of how well it classifies" in _text(card, tmp_path)


def test_an_evaluation_before_training_is_none_of_the_trained_weights(tmp_path):
    trainer, card = trainer_of(tmp_path)
    trainer.evaluate()
    assert len(card.record().results) == 2
    assert card.record().training is None
    trainer.train()
    assert card.record().results == []


def test_training_twice_counts_both_and_forgets_the_first_evaluation(tmp_path):
    trainer, card = trainer_of(tmp_path)
    trainer.train()
    trainer.evaluate()
    first = card.record()
    trainer.train()
    second = card.record()
    assert (second.training.steps, second.training.runs) == (4, 2)
    assert second.training.seconds > first.training.seconds
    assert second.results == []
    assert "4 optimizer steps in 2 trainings" in _text(card, tmp_path)


def test_a_resumed_run_does_not_know_how_long_it_took(tmp_path):
    trainer, _ = trainer_of(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    resumed, card = trainer_of(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    record = card.record()
    assert (record.training.steps, record.training.seconds) == (4, None)
    assert "It took" not in _text(card, tmp_path)


def test_figures_of_later_weights_are_not_those_of_the_best(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer, card = trainer_of(
        tmp_path,
        eval_dataset=rows(1),
        max_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        learning_rate=1e-9,  # the first is the best
        **arguments,
    )
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert card.record().results == []
    trainer.evaluate()
    record = card.record()
    assert [result.name for result in record.results] == ["evaluation"]
    assert (record.selected_on, record.selected_by) == ("evaluation", "accuracy")
    assert record.training.hyperparameters["load_best_model_at_end"]


def test_a_checkpoint_has_the_figures_of_its_step(tmp_path):
    class Keep(ModelCardCallback):
        def on_save(self, args, state, control, **kwargs):
            self.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    arguments = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    trainer, _ = trainer_of(tmp_path, Keep(), eval_dataset=rows(1), **arguments)
    trainer.train()
    first, second = (CardRecord.read(tmp_path / f"checkpoint-{step}") for step in (1, 2))
    assert (first.training.steps, first.results, first.training.seconds) == (1, [], None)
    assert (second.training.steps, len(second.results)) == (2, 1)


def test_sets_have_the_names_that_are_told(tmp_path):
    facts = {"split_names": {"eval": "validation"}, "out_of_distribution": ["mirrored"]}
    trainer, card = trainer_of(tmp_path, ModelCardCallback(**facts), eval_dataset=rows(1))
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(rows(2), metric_key_prefix="mirrored")
    trainer.predict(rows(4))
    found = {result.name: result.out_of_distribution for result in card.record().results}
    assert found == {"validation": False, "mirrored": True, "test": False}


def test_intervals_are_by_subject_where_the_data_say_who_is_who(tmp_path):
    from datasets import Dataset

    table = Dataset.from_list(
        [
            {**row, "pixel_values": row["pixel_values"].tolist(), "saliency": None, "group": number // 4}
            for number, row in enumerate(rows(1))
        ]
    ).with_format("torch", columns=["pixel_values"], output_all_columns=True)
    trainer, card = trainer_of(tmp_path, eval_dataset=table, guidance="none")
    trainer.train()
    trainer.evaluate()
    assert card.record().results[0].groups == 3
    assert "bootstrap over subjects" in _text(card, tmp_path)


def test_a_search_for_hyperparameters_is_survived(tmp_path):
    trainer, card = trainer_of(tmp_path, model=None, eval_dataset=rows(1))
    for rate in (0.1, 0.2):  # what a trial does
        trainer.args.learning_rate = rate
        trainer.model = trainer.model_wrapped = build("resnet")
        trainer.train()
        trainer.evaluate()
    record = card.record()
    assert record.training.hyperparameters["learning_rate"] == 0.2
    assert (record.training.runs, record.training.steps) == (1, 2)


# ---- What is used ----


def test_what_a_user_gave_beside_the_arguments(tmp_path):
    model = build("resnet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    trainer, card = trainer_of(
        tmp_path,
        model=model,
        optimizers=(optimizer, None),
        learning_rate=0.7,
        callbacks=[EarlyStoppingCallback(4)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        eval_dataset=rows(1),
    )
    trainer.train()
    found = card.record().training.hyperparameters
    assert found["optimizer"] == "SGD(lr=0.25, momentum=0.5)"
    assert "learning_rate" not in found
    assert found["early_stopping_patience"] == 4


def test_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    model = build("vit_class_token")
    model.config.name_or_path = "timm/test_vit.r160_in1k"
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"], modules_to_save=["head"], r=2))
    trainer, card = trainer_of(tmp_path, model=adapted)
    trainer.train()
    text = _text(card, tmp_path)
    assert "library_name: peft" in text
    assert "base_model_relation: adapter" in text
    assert 'as_classifier("timm/test_vit.r160_in1k", label_names=[' in text
    assert "pipeline(" not in text


def test_a_base_model_is_an_id_and_no_folder(tmp_path):
    model = build("transformers_vit")
    model.config.name_or_path = "google/vit-base-patch16-224"
    arguments = {"train_dataset": _square(), "eval_dataset": None}
    trainer, card = trainer_of(tmp_path / "run", model=model, **arguments)
    trainer.train()
    assert card.record().model.base_model == "google/vit-base-patch16-224"
    assert "fine-tuned from [google/vit-base-patch16-224]" in _text(card, tmp_path)
    model.save_pretrained(tmp_path / "a")
    again = as_classifier(str(tmp_path / "a"), pretrained=True)
    assert trainer_of(tmp_path / "b", model=again, **arguments)[1].record().model.base_model is None


def test_a_trainer_of_transformers(tmp_path):
    card = ModelCardCallback(model_name="mine")
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", save_strategy="no", use_cpu=True)
    data = [{"pixel_values": row["pixel_values"], "labels": row["labels"]} for row in rows()]
    trainer = Trainer(build("resnet"), args, train_dataset=data, callbacks=[card])
    trainer.train()  # nobody has attached it
    with pytest.raises(ValueError, match="attach"):
        card.record()
    card.write(tmp_path)
    assert not (tmp_path / "card.json").exists()
    card.attach(trainer)
    trainer.train()
    assert "# mine" in _text(card, tmp_path)
    assert card.record().training.methods == []


# ---- Facts ----


def test_stock_keywords_are_told(tmp_path):
    trainer, card = trainer_of(tmp_path, ModelCardCallback(tags=["a"]))
    trainer.train()
    card.told(
        language="en",
        license="mit",
        tags=["b"],
        model_name="A model",
        finetuned_from="owner/base",
        tasks="image-classification",
        dataset_tags=["owner/data"],
        dataset="Some data",
        dataset_args=None,
    )
    text = _text(card, tmp_path)
    for part in ("license: mit", "- en", "- a\n", "- b\n", "# A model", "base_model: owner/base", "- owner/data"):
        assert part in text
    assert "The data set is Some data ([owner/data](https://huggingface.co/datasets/owner/data))." in text


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"license": 3}, "license=3"),
        ({"language": "English"}, 'language="English"'),
        ({"tags": [1]}, "tags=[1]"),
        ({"publish_pictures": "yes"}, "publish_pictures='yes'"),
        ({"panel": "a.png"}, "publish_pictures=True"),
        ({"panel": "no.png", "publish_pictures": True}, 'panel="no.png"'),
        ({"base_model": "./here"}, 'base_model="./here"'),
        ({"baseline": 3}, "baseline=3"),
        ({"baseline": "nowhere"}, "holds no card.json"),
    ],
    ids=["license", "language", "tags", "publish", "unasked", "panel", "base", "baseline", "folder"],
)
def test_wrong_facts_are_refused(facts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelCardCallback(**facts)


def test_a_missing_license_of_named_data_is_pointed_out_once(tmp_path, warned):
    trainer, card = trainer_of(tmp_path, ModelCardCallback(dataset="owner/chest"))
    trainer.train()
    card.write(tmp_path)
    card.write(tmp_path)
    assert len(warned) == 1
    assert 'ModelCardCallback(dataset_license="...")' in warned[0]
    quiet, card = trainer_of(tmp_path, ModelCardCallback(dataset="owner/chest", dataset_license="CC0"))
    quiet.train()
    card.write(tmp_path)
    assert len(warned) == 1


def test_pictures_are_published_only_if_that_is_said(tmp_path, warned):
    def draw(trainer, path):
        Image.new("RGB", (4, 4)).save(path)

    trainer, card = trainer_of(tmp_path / "a", ModelCardCallback())
    card.draw = draw
    trainer.train()
    card.write(tmp_path / "a")
    assert not (tmp_path / "a" / "card_panel.png").exists()
    trainer, card = trainer_of(tmp_path / "b", ModelCardCallback(publish_pictures=True, panel=draw))
    trainer.train()
    card.write(tmp_path / "b")
    assert (tmp_path / "b" / "card_panel.png").exists()
    assert "](card_panel.png)" in (tmp_path / "b" / "README.md").read_text()
    trainer, card = trainer_of(tmp_path / "c", ModelCardCallback(publish_pictures=True, panel=lambda *_: 1 / 0))
    trainer.train()
    card.write(tmp_path / "c")
    assert "panel" not in (tmp_path / "c" / "README.md").read_text()
    assert "could not be made" in warned[-1]


# ---- The code in a card ----


def saved_with_a_picture(folder, name, channels=3):
    """A saved model and a picture beside it."""
    kwargs = {"in_chans": 1} if channels == 1 else {}
    data = [{**row, "pixel_values": row["pixel_values"][:channels]} for row in _square()]
    model = (
        build(name, **kwargs) if name == "transformers_vit" else as_classifier(name, NAMES, image_size=64, **kwargs)
    )
    trainer, _ = trainer_of(folder, model=model, train_dataset=data, eval_dataset=None)
    trainer.train()
    trainer.save_model()
    pixels = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.jpg")
    return (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "channels", "count"),
    [("test_resnet", 3, 3), ("test_resnet", 1, 3), ("transformers_vit", 3, 2)],
    ids=["timm", "grey", "transformers"],
)
def test_the_code_of_a_card_runs_as_it_stands(tmp_path, monkeypatch, capsys, name, channels, count):
    text = saved_with_a_picture(tmp_path, name, channels)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == count
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    found = {}
    for block in blocks:
        exec(block, found)  # as a reader would
    assert found["maps"].shape == found["difference"].shape
    assert found["maps"].ndim == 3
    shown = capsys.readouterr().out
    assert all(label in shown for label in NAMES)  # the answer of transformers alone
    if count == 3:
        with torch.no_grad():
            logits = found["model"](found["pixel_values"])
            assert torch.equal(logits, found["guided"].model(found["pixel_values"]).logits)


def test_the_command_of_a_card_runs_as_it_stands(tmp_path, monkeypatch):
    from hf_salguide.cli import main

    text = saved_with_a_picture(tmp_path, "test_resnet")
    (command,) = re.findall(r"```bash\nhf-salguide (.*)\n```", text)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0
    assert (tmp_path / "panel.png").exists()
    assert "panel.png" not in saved_files(tmp_path)  # a picture of somebody's, which no push publishes


def _square():
    prepared = Rows(make_batch((64, 64), COUNT, annotated=[True] * COUNT))
    return [prepared[row] for row in range(COUNT)]


def _text(card, folder):
    (Path(folder) / "README.md").unlink(missing_ok=True)
    card.write(folder)
    return (Path(folder) / "README.md").read_text()
