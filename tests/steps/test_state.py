"""What guidance keeps between steps: the adaptive balance, the discriminator, and their place in checkpoints."""

import pytest
import torch
from support import Rows, build, make_batch, make_trainer
from transformers import TrainerCallback

from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments, get_guidance
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


@pytest.mark.parametrize(
    ("task", "guidance", "alpha"),
    [
        (3.0, 1.0, 0.75),
        (3.0, 0.0, 0.25),
        (0.0, 0.0, 0.25),
        (0.0, 2.0, 0.0),
        (1.0, float("nan"), 0.25),
        (float("inf"), 1.0, 0.25),
        (1.0, float("inf"), 0.25),
    ],
)
def test_the_balance_stays_where_the_losses_tell_nothing(task, guidance, alpha):
    state = GuidanceState([get_guidance("cyborg")], adaptive=True)
    state.alpha = 0.25
    state.observe(torch.tensor(task), torch.tensor(guidance))
    state.step(same)
    assert state.alpha == pytest.approx(alpha)


@pytest.mark.parametrize("schedule", ["adaptive", "linear_increase", "warmup:0.1"])
def test_a_schedule_without_a_term_is_refused(schedule, tmp_path):
    names = ["masked_input", "shuffled_input"]
    message = f'guidance_schedule="{schedule}" moves the weight of a term, and guidance=masked_input'
    with pytest.raises(ValueError, match=message):
        SaliencyTrainingArguments(str(tmp_path), guidance="masked_input", guidance_schedule=schedule)
    with pytest.raises(ValueError, match=message):
        SaliencyTrainingArguments(str(tmp_path), guidance=names, guidance_schedule=schedule)
    with pytest.raises(ValueError, match=message):  # what has a term has no weight
        SaliencyTrainingArguments(
            str(tmp_path), guidance=["masked_input", "cyborg"], guidance_weight=[1, 0], guidance_schedule=schedule
        )
    SaliencyTrainingArguments(str(tmp_path), guidance=["masked_input", "cyborg"], guidance_schedule=schedule)
    SaliencyTrainingArguments(str(tmp_path), guidance="none", guidance_schedule=schedule)


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


def test_the_share_of_the_task_is_logged(tmp_path):
    trainer = training(tmp_path, guidance="cyborg", guidance_schedule="adaptive", logging_steps=1)
    trainer.train()
    shares = [entry["task_share"] for entry in trainer.state.log_history if "loss" in entry]
    assert shares[0] == 0.5
    assert len({round(share, 4) for share in shares}) > 1
    for entry in (entry for entry in trainer.state.log_history if "loss" in entry):
        share, task, guidance = entry["task_share"], entry["task_loss"], entry["cyborg_loss"]
        assert entry["loss"] == pytest.approx(share * task + (1 - share) * guidance, rel=1e-4)


def test_what_a_step_left_unfinished_is_forgotten(tmp_path):
    """By the next training, and nothing else: the discriminator and the balance go on."""
    trainer = training(tmp_path, guidance_schedule="adaptive")
    trainer.train()
    method, model = trainer.guidance[0], trainer.model.train()
    discriminator, alpha = method.state_dict()["discriminator"], trainer._state.alpha
    kept = {key: value.clone() for key, value in discriminator.items()}
    trainer.compute_loss(model, make_batch())  # an accumulation that is interrupted
    assert method._seen
    assert trainer._state._losses
    assert trainer._batch_key != (-1, -1)
    seen = []
    trainer.add_callback(OnBegin(lambda: seen.append([*method._seen, *trainer._state._losses])))
    trainer.add_callback(OnBegin(lambda: seen.append(trainer._batch_key)))
    trainer.add_callback(OnBegin(lambda: seen.append({k: v.clone() for k, v in discriminator.items()})))
    trainer.add_callback(OnBegin(lambda: seen.append(trainer._state.alpha)))
    trainer.train()
    assert seen[0] == []
    assert seen[1] == (-1, -1)
    assert all(torch.equal(seen[2][key], kept[key]) for key in kept)
    assert seen[3] == alpha


class OnBegin(TrainerCallback):
    """Calls a function when training begins."""

    def __init__(self, function):
        self.function = function

    def on_train_begin(self, *args, **kwargs):
        self.function()


def with_model_init(folder, **arguments):
    options = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 3}
    args = SaliencyTrainingArguments(str(folder), **{**options, **arguments})
    rows = Rows(make_batch((64, 96), 12, annotated=[True, True, False] * 4))
    return SaliencyTrainer(model_init=lambda: build("vit_average"), args=args, train_dataset=rows)


def test_a_new_model_starts_with_a_new_state(tmp_path):
    """Two trainings with `model_init` are one and the same."""
    trainer = with_model_init(tmp_path, guidance=["actdiff_adversarial", "gradmask"], guidance_schedule="adaptive")
    found = []
    for _ in range(2):
        trainer.train()
        weights = torch.cat([value.flatten() for value in trainer.model.state_dict().values()])
        method = trainer.guidance[0]
        kept = torch.cat([value.flatten() for value in method.state_dict()["discriminator"].values()])
        found.append((weights, kept, trainer._state.alpha, trainer.gradient_engines["gradmask"]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2] != 0.5
    assert found[0][3] is not found[1][3]  # chosen anew
    assert sum(type(each).__name__ == "EndOfStep" for each in trainer.callback_handler.callbacks) == 1


def test_a_new_model_takes_up_a_checkpoint(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "guidance": "actdiff_adversarial", "max_steps": 4}
    trainer = with_model_init(tmp_path, guidance_schedule="adaptive", **saving)
    trainer.train()
    whole, alpha = trainer.guidance[0].state_dict()["discriminator"], trainer._state.alpha
    whole = {key: value.clone() for key, value in whole.items()}
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = trainer.guidance[0].state_dict()["discriminator"]
    assert all(torch.allclose(resumed[key], whole[key], atol=1e-6) for key in whole)
    assert trainer._state.alpha == pytest.approx(alpha, rel=1e-5)


def test_weights_of_the_arguments_are_read_when_training_starts(tmp_path):
    """As a hyperparameter search sets them."""
    trainer = with_model_init(tmp_path, guidance=["cyborg", "actdiff_adversarial"], logging_steps=3)
    for weights, task_weight in (([0.0, 2.0], 1.0), ([3.0, 0.0], 0.25), ([0.0, 0.0], 1.0), ([1.0, 0.5], 0.5)):
        trainer.args.guidance_weight, trainer.args.task_weight = weights, task_weight
        trainer.train()
        entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
        names = [name for name, weight in zip(("cyborg", "actdiff_adversarial"), weights, strict=True) if weight]
        assert [method.name for method in trainer.guidance] == names
        assert list(trainer._state.stateful) == [name for name in names if name != "cyborg"]
        if not names:
            assert "task_loss" not in entry
            continue
        total = task_weight * entry["task_loss"]
        for name, weight in zip(("cyborg", "actdiff_adversarial"), weights, strict=True):
            assert (f"{name}_loss" in entry) == bool(weight)
            total += weight * entry.get(f"{name}_loss", 0.0)
        assert entry["loss"] == pytest.approx(total, rel=1e-4)
    trainer.args.guidance_weight = -1.0
    with pytest.raises(ValueError, match="guidance_weight=-1.0 has"):
        trainer.train()


def test_methods_stay_where_only_their_weight_changes(tmp_path):
    trainer = training(tmp_path)
    trainer.train()
    method, discriminator = trainer.guidance[0], trainer.guidance[0].state_dict()["discriminator"]
    before = {key: value.clone() for key, value in discriminator.items()}
    trainer.args.guidance_weight = 7.0
    found = []
    trainer.add_callback(OnBegin(lambda: found.append({key: value.clone() for key, value in discriminator.items()})))
    trainer.train()
    assert trainer.guidance == [method]
    assert trainer.guidance_weights == [7.0]
    assert all(torch.equal(found[0][key], before[key]) for key in before)
