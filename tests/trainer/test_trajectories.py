"""Configurations that have to give one trajectory, and those that have to be bit-identical."""

from pathlib import Path

import pytest
import torch
from parity_run import (
    ANNOTATED,
    LACKING,
    ON_ONE_PROCESS,
    PICTURES,
    READ_OUTS,
    RUNS,
    STATISTICS,
    STEPS,
    UNEVEN,
    UNEVEN_RUN,
    evaluate,
    network,
    state_of,
    train,
)
from small import in_two_processes, largest_difference
from support import Rows, build, make_batch, make_trainer
from transformers import Trainer, TrainingArguments

SCRIPT = Path(__file__).with_name("parity_run.py")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, worker_id):
    return in_two_processes(SCRIPT, tmp_path_factory, worker_id)


def tolerances(trainer):
    """
    Of weights, and relative ones of losses: a finite difference is one of two gradients that are nearly the same, and
    magnifies their rounding.
    """
    differenced = any(choice.engine == "finite_difference" for choice in trainer.gradient_engines.values())
    return (2e-5, 5e-3) if differenced else (1e-6, 1e-4)


@pytest.mark.parametrize("run", list(RUNS))
def test_accumulation_and_processes_give_one_trajectory(tmp_path, run, two_processes):
    """{1, 2} processes, {1, 4} micro-batches: always the same eight pictures an optimizer step."""
    trainer, whole = train(tmp_path, PICTURES, 1, **RUNS[run])
    _, accumulated = train(tmp_path, PICTURES // 4, 4, **RUNS[run])
    assert two_processes["world_size"] == 2
    assert largest_difference(whole, build("vit_class_token").state_dict()) > 1e-3
    tolerance, relative = tolerances(trainer)
    assert largest_difference(whole, accumulated) < tolerance
    metrics, of_two = evaluate(trainer), two_processes[run, "metrics"]
    # The task's loss is a mean of batch means, as in Trainer, and shifts with the padded last batch; the terms do not.
    means = ("eval_loss", "eval_task_loss")
    names = [name for name in metrics if name.endswith("_loss") and name not in means]
    for accumulation in (1, 4):
        two = two_processes[run, accumulation]
        assert largest_difference(whole, two["weights"]) < tolerance
        (one_log,), (two_log,) = (
            [entry for entry in log if "task_loss" in entry] for log in (trainer.state.log_history, two["log"])
        )
        for name in ("loss", "task_loss", *(name.removeprefix("eval_") for name in names)):
            assert one_log[name] == pytest.approx(two_log[name], rel=relative, abs=1e-7), name
    for name in names:
        assert metrics[name] == pytest.approx(of_two[name], rel=relative, abs=1e-7), name


@pytest.mark.parametrize("kind", list(READ_OUTS))
def test_two_processes_with_other_maps(tmp_path, kind, two_processes):
    trainer, one = train(tmp_path, PICTURES, 1, name=READ_OUTS[kind], guidance="cyborg")
    assert trainer.feature_layer.readout == kind
    assert largest_difference(one, network(READ_OUTS[kind]).state_dict()) > 1e-3
    assert largest_difference(one, two_processes[kind]["weights"]) < 1e-6


@pytest.mark.parametrize("run", list(RUNS))
def test_the_wrapped_model_is_called_once_a_micro_batch(run, two_processes):
    """Extra views come in the same call; the second forward of finite differences goes to the model inside."""
    assert [two_processes[run, accumulation]["calls"] for accumulation in (1, 4)] == [STEPS, 4 * STEPS]


@pytest.mark.parametrize("run", list(LACKING))
def test_a_process_without_annotated_pictures(tmp_path, run, two_processes):
    trainer, one = train(tmp_path, PICTURES, 1, ON_ONE_PROCESS, **LACKING[run])
    first, second = two_processes["lacking", run]
    assert largest_difference(one, first["weights"]) < tolerances(trainer)[0]
    assert largest_difference(first["weights"], second["weights"]) == 0
    state = state_of(trainer)
    assert first["state"].keys() == state.keys()
    assert ("actdiff_adversarial" in state) == (run == "adversarial")
    for name, values in state.items():
        assert largest_difference(first["state"][name], second["state"][name]) == 0
        # Adam divides a gradient by its size, and so magnifies the rounding of small ones.
        assert largest_difference(values, first["state"][name]) < 1e-4


def test_an_uneven_last_batch_is_filled_up_from_the_start(tmp_path, two_processes):
    """As accelerate does (`even_batches`): 11 pictures in two processes of four are those of one with 16."""
    rows = [*range(UNEVEN), *range(2 * PICTURES - UNEVEN)]
    batch = make_batch((64, 96), UNEVEN, annotated=ANNOTATED)
    filled = Rows({name: values[rows] for name, values in batch.items()})
    _, one = train(tmp_path, PICTURES, 1, ANNOTATED[:UNEVEN], rows=filled, **UNEVEN_RUN)
    first, second = two_processes["uneven"]
    assert largest_difference(one, first) < 1e-6
    assert largest_difference(first, second) == 0
    assert largest_difference(first, build("vit_class_token").state_dict()) > 1e-3


@pytest.mark.parametrize("run", [run for run in STATISTICS if run != "plain"])
def test_batch_statistics_of_two_processes_are_those_of_plain_training(run, two_processes):
    """Each process has those of its own pictures, and takes the first one's at the next forward, as DDP does."""
    plain, guided = two_processes["statistics", "plain"], two_processes["statistics", run]
    assert largest_difference(plain[0], build("resnet").state_dict()) > 1e-3
    assert largest_difference(*plain) > 0
    for expected, found in zip(plain, guided, strict=True):
        assert largest_difference(expected, found) == 0


def ten_steps(trainer_class, arguments_class, tmp_path, name="resnet", **arguments):
    torch.manual_seed(0)
    model = build(name, drop_rate=0.1) if name != "transformers_vit" else build(name)
    rows = Rows(make_batch((64, 64), 40, annotated=[True, False] * 20))
    options = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "max_steps": 10}
    args = arguments_class(str(tmp_path), per_device_train_batch_size=4, **options, **arguments)
    if trainer_class is Trainer:
        rows = [{"pixel_values": row["pixel_values"], "labels": row["labels"]} for row in rows]
    trainer = trainer_class(model=model, args=args, train_dataset=rows)
    trainer.train()
    return model.state_dict()


@pytest.mark.parametrize("name", ["resnet", "vit_class_token", "transformers_vit"])
@pytest.mark.parametrize("plain", [{"guidance": "none"}, {"guidance_weight": 0, "task_weight": 1}])
def test_no_guidance_is_bit_identical_to_trainer(tmp_path, name, plain):
    from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments

    kwargs = {"label_smoothing_factor": 0.1} if name == "vit_class_token" else {}
    expected = ten_steps(Trainer, TrainingArguments, tmp_path, name, **kwargs)
    ours = ten_steps(SaliencyTrainer, SaliencyTrainingArguments, tmp_path, name, **plain, **kwargs)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "arguments",
    [
        *[RUNS[run] for run in RUNS],
        {"guidance": "cyborg", "random_saliency": True, "guidance_schedule": "linear_increase"},
    ],
    ids=str,
)
def test_a_resumed_run_equals_the_unbroken_one(tmp_path, arguments):
    def trainer(folder, **more):
        rows = Rows(make_batch((64, 96), 24, annotated=[True, True, False] * 8))
        return make_trainer(
            build("vit_class_token", drop_rate=0.1),
            folder,
            train_dataset=rows,
            max_steps=8,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            save_strategy="steps",
            save_steps=3,
            logging_steps=3,
            **arguments,
            **more,
        )

    unbroken = trainer(tmp_path / "unbroken")
    unbroken.train()
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "unbroken" / "checkpoint-3"))
    for (key, value), (_, other) in zip(
        unbroken.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(value, other), key
    first, second = (
        [
            {name: value for name, value in entry.items() if name.endswith("loss")}
            for entry in run.state.log_history
            if "task_loss" in entry
        ]
        for run in (unbroken, resumed)
    )
    assert first == second
    assert first


def test_accumulation_is_right_for_models_that_ignore_the_number_of_items(tmp_path):
    """`Trainer` itself multiplies the loss of such a model by the accumulation steps."""
    weights = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        from transformers import ResNetConfig

        from hf_salguide import as_classifier

        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        model = as_classifier(config, num_labels=3, image_size=64).eval()
        model.train = lambda mode=True, model=model: model  # batch statistics fixed, so that micro-batches agree
        trainer = make_trainer(
            model,
            tmp_path,
            guidance="cyborg",
            train_dataset=Rows(make_batch((64, 64), 16, annotated=[True, False] * 8)),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
    assert largest_difference(*weights) < 1e-6


@pytest.mark.parametrize("guidance", ["none", "cyborg"])
def test_accumulation_is_right_for_models_that_divide_by_the_number_of_items(tmp_path, guidance):
    """`ViTForImageClassification` does, where it is given the number."""
    weights = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        model = build("transformers_vit")
        trainer = make_trainer(
            model,
            tmp_path,
            guidance=guidance,
            train_dataset=Rows(make_batch((64, 64), 16, annotated=[True, False] * 8)),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        weights.append(model.state_dict())
    assert largest_difference(weights[0], build("transformers_vit").state_dict()) > 1e-4
    assert largest_difference(*weights) < 1e-6
