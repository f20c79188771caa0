"""What guidance keeps between steps: the adaptive balance, the discriminator, and their place in checkpoints."""

import pytest
import torch
from support import Rows, build, make_batch, make_trainer

from hf_salguide import get_guidance
from hf_salguide.steps import GuidanceState


def same(tensors):
    """One process: its means are its values."""


def test_the_balance_is_that_of_the_step_before():
    state = GuidanceState([get_guidance("cyborg")], adaptive=True)
    assert state.factors == (1.0, 1.0)
    for task, guidance in ((3.0, 1.0), (1.0, 1.0)):  # two micro-batches: means 2 and 1
        state.observe(torch.tensor(task, requires_grad=True), torch.tensor(guidance))
    assert state.factors == (1.0, 1.0)
    state.step(same)
    assert state.factors == pytest.approx((2 * 2 / 3, 2 * 1 / 3), rel=1e-6)
    state.step(same)  # nothing was observed since
    assert state.factors == pytest.approx((2 * 2 / 3, 2 * 1 / 3), rel=1e-6)


def test_the_balance_is_a_mean_over_processes():
    state = GuidanceState([], adaptive=True)
    state.observe(torch.tensor(3.0), torch.tensor(1.0))

    def average(tensors):
        for tensor in tensors:
            tensor.copy_((tensor + torch.tensor([1.0, 3.0])) / 2)  # of a second process

    state.step(average)
    assert state.alpha == pytest.approx(0.5)


def test_without_adaption_nothing_is_observed_and_nothing_kept(tmp_path):
    state = GuidanceState([get_guidance("cyborg")], adaptive=False)
    state.observe(torch.tensor(3.0), torch.tensor(1.0))
    state.step(same)
    assert state.factors == (1.0, 1.0)
    assert state.empty


def test_the_adaptive_loss_is_the_weighted_sum(tmp_path):
    """Two steps of training against the balance worked out by hand from the first one's losses."""
    trainer = make_trainer(build("vit_average"), tmp_path, guidance="cyborg", guidance_schedule="adaptive")
    batch = make_batch()
    model = trainer.model.train()
    plain = make_trainer(build("vit_average"), tmp_path, guidance="cyborg", guidance_weight=0, task_weight=1)
    task = plain.compute_loss(plain.model.train(), batch).item()
    first = trainer.compute_loss(model, batch).item()
    guidance = first / 0.5 - task
    trainer._state.step(trainer._average)
    alpha = task / (task + guidance)
    second = trainer.compute_loss(model, batch).item()
    assert second == pytest.approx(alpha * task + (1 - alpha) * guidance, rel=1e-5)
    assert abs(alpha - 0.5) > 0.05
    with torch.no_grad():
        assert trainer.compute_loss(model.eval(), batch).item() == pytest.approx(first, rel=1e-5)  # the full weights


def training(folder, guidance="actdiff_adversarial", **arguments):
    rows = Rows(make_batch((64, 96), 12, annotated=[True, True, False] * 4))
    return make_trainer(
        build("vit_average"),
        folder,
        guidance=guidance,
        train_dataset=rows,
        per_device_train_batch_size=4,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        **arguments,
    )


def test_the_discriminator_is_trained_and_saved(tmp_path):
    trainer = training(tmp_path)
    method = trainer.guidance[0]
    before = {key: value.clone() for key, value in method.state_dict()["discriminator"].items()}
    trainer.train()
    after = method.state_dict()["discriminator"]
    assert any((after[key] - before[key]).abs().max() > 1e-4 for key in before)
    saved = torch.load(tmp_path / "checkpoint-4" / "guidance.pt", weights_only=True)
    kept = saved["methods"]["actdiff_adversarial"]["discriminator"]
    assert all(torch.equal(kept[key], after[key]) for key in after)
    assert not any("discriminator" in key for key in trainer.model.state_dict())
    assert not (tmp_path / "checkpoint-4" / "guidance.partial").exists()


def test_resuming_without_the_state_is_refused(tmp_path):
    training(tmp_path / "plain", guidance="cyborg").train()
    checkpoint = str(tmp_path / "plain" / "checkpoint-2")
    with pytest.raises(ValueError, match=r"resume_from_checkpoint=.*holds no guidance.pt"):
        training(tmp_path / "other").train(resume_from_checkpoint=checkpoint)
    training(tmp_path / "adaptive", guidance="cyborg", guidance_schedule="adaptive").train()
    with pytest.raises(ValueError, match=r"keeps the state of \[\], and this run is guided by \['actdiff_advers"):
        training(tmp_path / "third").train(resume_from_checkpoint=str(tmp_path / "adaptive" / "checkpoint-2"))


def test_a_method_without_state_adds_no_file(tmp_path):
    training(tmp_path, guidance="sage").train()
    assert (tmp_path / "checkpoint-4" / "optimizer.pt").exists()
    assert not (tmp_path / "checkpoint-4" / "guidance.pt").exists()
