"""What a trainer keeps of each evaluation, picture by picture, for the card."""

import numpy as np
import pytest
import torch
from support import NAMES, Rows, build, make_batch, make_trainer

from hf_salguide import ModelCardCallback, SaliencyPanelCallback
from hf_salguide.evaluation import evaluated as kept
from hf_salguide.metrics import accuracy, auroc

SIZE = (64, 96)
ANNOTATED = [True, False, True, True, False, True]


@pytest.fixture
def batch():
    return make_batch(SIZE, 6, annotated=ANNOTATED)


def evaluating(tmp_path, batch, **arguments):
    return make_trainer(build("resnet"), tmp_path, eval_dataset=Rows(batch), per_device_eval_batch_size=4, **arguments)


@pytest.mark.parametrize("guidance", ["none", "cyborg"])
def test_an_evaluation_is_kept_picture_by_picture(guidance, batch, tmp_path):
    trainer = evaluating(tmp_path, batch, guidance=guidance)
    metrics = trainer.evaluate()
    found = trainer.evaluated["eval"]
    with torch.no_grad():
        expected = trainer.model.eval()(batch["pixel_values"]).logits.double().softmax(dim=1).numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.labels.tolist() == batch["labels"].tolist()
    assert found.pictures == 6
    assert found.annotated.tolist() == ANNOTATED
    assert np.isnan(found.alignment["energy_inside"]).tolist() == [not each for each in ANNOTATED]
    assert np.nanmean(found.alignment["energy_inside"]) == pytest.approx(metrics["eval_energy_inside"], abs=1e-6)
    assert found.metrics["accuracy"] == metrics["eval_accuracy"] == accuracy(found.labels, found.probabilities)
    assert found.metrics["auroc"] == pytest.approx(auroc(found.labels, found.probabilities))


def test_each_set_has_its_own(batch, tmp_path):
    trainer = evaluating(tmp_path, batch)
    trainer.evaluate(Rows(make_batch(SIZE, 4, seed=1)), metric_key_prefix="ood")
    trainer.predict(Rows(batch), metric_key_prefix="test")
    assert {name: found.pictures for name, found in trainer.evaluated.items()} == {"ood": 4, "test": 6}


def test_what_is_no_classification_is_not_judged(batch, tmp_path):
    trainer = evaluating(tmp_path, batch, prediction_loss_only=True)
    trainer.evaluate()
    assert trainer.evaluated["eval"].probabilities is None
    assert trainer.evaluated["eval"].pictures == 6


def test_what_is_too_large_is_not_kept(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "KEPT", 6 * len(NAMES) - 1)
    trainer = evaluating(tmp_path, batch)
    trainer.evaluate()
    assert trainer.evaluated["eval"].labels is None
    assert trainer.evaluated["eval"].metrics["accuracy"] >= 0


def test_a_card_of_the_users_takes_the_place_of_the_default(batch, tmp_path):
    trainer = evaluating(tmp_path / "default", batch)
    assert isinstance(trainer.model_card, ModelCardCallback)
    mine = ModelCardCallback(license="mit")
    trainer.add_callback(mine)
    assert trainer.model_card is mine
    assert sum(isinstance(each, ModelCardCallback) for each in trainer.callback_handler.callbacks) == 1
    given = ModelCardCallback(license="mit")
    assert evaluating(tmp_path / "given", batch, callbacks=[given]).model_card is given


def test_pictures_are_published_where_the_user_says_so(batch, tmp_path):
    panel = SaliencyPanelCallback(Rows(batch), rows=[0, 2])
    card = ModelCardCallback(publish_pictures=True, panel=panel.draw)
    trainer = evaluating(tmp_path, batch, callbacks=[card], train_dataset=Rows(batch), max_steps=1)
    trainer.train()
    modes = [module.training for module in trainer.model.modules()]
    trainer.save_model()
    assert (tmp_path / "card_panel.png").read_bytes()[:4] == b"\x89PNG"
    assert "](card_panel.png)" in (tmp_path / "README.md").read_text()
    assert [module.training for module in trainer.model.modules()] == modes
    drawn = (tmp_path / "card_panel.png").read_bytes()
    trainer.save_model()
    assert (tmp_path / "card_panel.png").read_bytes() == drawn
