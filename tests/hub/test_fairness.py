"""Which models may stand beside another in its card, and whose results a card shows."""

from dataclasses import replace

import numpy as np
import pytest
from support import Rows, build, make_batch, make_trainer

from hf_salguide import ModelCardCallback, load_guided
from hf_salguide.hub.card import render_card
from hf_salguide.hub.compared import compared
from hf_salguide.hub.facts import CardFacts
from hf_salguide.hub.record import CardRecord, DataFacts, MethodFacts, ModelFacts, SplitFacts, TrainingFacts
from hf_salguide.hub.results import split_result
from hf_salguide.hub.update import update_card

SIZE = (64, 96)


def training(tmp_path, model=None, **arguments):
    """Two steps, an evaluation, and the folder that is saved."""
    batch = Rows(make_batch(SIZE, 6, annotated=[True, False, True] * 2))
    trainer = make_trainer(
        build("resnet") if model is None else model,
        tmp_path,
        train_dataset=batch,
        eval_dataset=batch,
        max_steps=2,
        per_device_train_batch_size=3,
        **arguments,
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return tmp_path


def guided(**changes):
    method = MethodFacts("cyborg", weight=0.5)
    return CardRecord(
        model=ModelFacts(architecture="resnet18", label_names=["a", "b"], image_size=[8, 8]),
        training=TrainingFacts(**{"methods": [method], "seed": 0, **changes}),
    )


def test_weights_that_were_guided_before_are_no_baseline(tmp_path):
    start = load_guided(training(tmp_path / "guided", guidance="cyborg")).model
    folder = training(tmp_path / "plain", start, guidance="none")
    record = CardRecord.read(folder)
    assert record.training.continued == ["cyborg"]
    assert "trained on from weights that had been guided by `cyborg`" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="baseline of a card was trained on from weights that cyborg had guided"):
        compared(CardRecord.read(tmp_path / "guided"), record, "baseline")


@pytest.mark.parametrize(
    ("role", "other", "reason"),
    [
        ("baseline", replace(guided(), training=None), "does not say how the model was trained"),
        ("inverted", guided(control="inverted", methods=[MethodFacts("cyborg", weight=50.0)]), "with weight 50.0"),
        (
            "inverted",
            guided(control="inverted", methods=[MethodFacts("cyborg", weight=0.5, options={"resize": "nearest"})]),
            "'resize': 'nearest'",
        ),
        (
            "baseline",
            replace(guided(methods=[]), model=replace(guided().model, base_model="timm/resnet18.a1_in1k")),
            "has another start than this model: timm/resnet18.a1_in1k",
        ),
    ],
    ids=["unknown", "weight", "options", "start"],
)
def test_what_is_no_fair_comparison_is_refused(role, other, reason):
    with pytest.raises(ValueError, match=reason):
        compared(guided(), other, role)


def test_a_fair_one_with_other_arguments_is_shown_with_these():
    own, other = guided(steps=100, seconds=1.0), guided(methods=[], steps=10, seconds=1.0)
    own.training.hyperparameters = {"learning_rate": 0.1}
    found = compared(own, other, "baseline")
    assert found.arguments == {"learning_rate": "default", "steps": 10}


def result(name, labels):
    labels = np.asarray(labels)
    return split_result(name, labels, np.eye(2)[labels])


def carded(tmp_path, name="data"):
    record = guided()
    record.data = DataFacts(name=name, splits=[SplitFacts("validation", 4)])
    record.results = [result("test", [0, 1, 0, 1])]
    record.write(tmp_path)
    return tmp_path


def test_other_pictures_of_the_same_name_are_refused(tmp_path):
    """Two folders may well be called `data`."""
    carded(tmp_path)
    before = (tmp_path / "card.json").read_bytes()
    with pytest.raises(ValueError, match=r'"test" holds other pictures \(3\) than the card.*"dataset": "NAME"'):
        update_card(tmp_path, None, [result("test", [1, 1, 0])], data="/elsewhere/data")
    assert (tmp_path / "card.json").read_bytes() == before
    update_card(tmp_path, None, [result("test", [1, 1, 0])], CardFacts(dataset="Montgomery"), "/elsewhere/data")
    assert [one.key for one in CardRecord.read(tmp_path).results] == [("test", None), ("test", "Montgomery")]
    text = (tmp_path / "README.md").read_text()
    assert "of `test` of Montgomery" in text
    assert "No set above is marked" not in text


def test_the_data_of_the_training_are_known_by_their_splits(tmp_path):
    """The card calls them by a title, the command line by a folder."""
    carded(tmp_path, "Shenzhen chest X-rays")
    update_card(tmp_path, None, [result("validation", [0, 1, 1, 0]), result("ood", [0, 1])], data="/pictures/cxr")
    assert [one.key for one in CardRecord.read(tmp_path).results] == [
        ("test", None),
        ("validation", None),
        ("ood", None),
    ]


def test_a_card_is_of_one_trainer(tmp_path):
    card = ModelCardCallback()
    training(tmp_path / "one", guidance="cyborg", callbacks=[card])
    assert card.record().training.methods
    batch = Rows(make_batch(SIZE, 6, annotated=[True] * 6))
    make_trainer(build("resnet"), tmp_path / "two", guidance="none", callbacks=[card], train_dataset=batch)
    assert card.record().training is None
    assert card.record().results == []


def test_without_a_card_a_model_is_saved_without(tmp_path, caplog):
    batch = Rows(make_batch(SIZE, 6, annotated=[True] * 6))
    trainer = make_trainer(build("resnet"), tmp_path, train_dataset=batch, max_steps=1)
    trainer.remove_callback(ModelCardCallback)
    assert trainer.model_card is None
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "README.md").exists()
    assert "card" not in caplog.text


def test_a_panel_that_draws_at_random_leaves_the_run_alone(tmp_path):
    import torch

    def draw(trainer, path):
        torch.rand(5)
        np.random.rand(5)
        path.write_bytes(b"\x89PNG")

    weights = []
    for name, card in (("with", ModelCardCallback(publish_pictures=True, panel=draw)), ("without", None)):
        options = {"save_strategy": "steps", "save_steps": 1, "callbacks": [] if card is None else [card]}
        folder = training(tmp_path / name, guidance="cyborg", **options)
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_figures_of_training_pictures_are_called_so():
    record = guided()
    record.results = [result("train", [0, 1, 0, 1])]
    assert "The figures of `train` are of the training pictures" in render_card(record)
