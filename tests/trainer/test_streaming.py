"""Training and evaluation on data sets without a length, in one process and in two."""

import itertools
from pathlib import Path

import pytest
import torch
from small import in_two_processes, largest_difference
from streaming_run import COUNT, STEPS, Stream, prepared, table, train
from support import build, make_trainer

SCRIPT = Path(__file__).with_name("streaming_run.py")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, worker_id):
    return in_two_processes(SCRIPT, tmp_path_factory, worker_id)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["prepared", "pictures"])
def test_a_stream_trains_as_its_rows_in_order_do(tmp_path, run, two_processes):
    """By one process and by two: the rows reach each once, and draws are keyed by their places in the global batch."""
    trainer, weights, seen = train(tmp_path, run, 8)
    order = [[(8 * step + row) % COUNT for row in range(8)] for step in range(STEPS)]
    assert seen == order
    assert largest_difference(weights, build("vit_class_token").state_dict()) > 1e-3
    two = two_processes[run]
    assert two["seen"] == [[step[:4] for step in order], [step[4:] for step in order]]
    assert largest_difference(weights, two["weights"]) < 1e-6
    # The task's loss is a mean of batch means, as in Trainer; what is counted by picture is the same.
    timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_loss", "eval_task_loss")
    names = set(trainer.metrics) - {*timing, "epoch"}
    assert names >= {"eval_cyborg_loss", "eval_actdiff_loss", "eval_accuracy", "eval_annotated", "eval_spearman"}
    for name in names:
        assert trainer.metrics[name] == pytest.approx(two["metrics"][name], rel=1e-4, abs=1e-6, nan_ok=True), name


@pytest.mark.slow
@pytest.mark.parametrize("run", ["workers", "shuffled"])
def test_workers_read_every_row_once_an_epoch(tmp_path, run, two_processes):
    _, _, seen = train(tmp_path, run, 8)
    together = [[*one, *other] for one, other in zip(*two_processes[run]["seen"], strict=True)]
    for steps in (seen, together):
        numbers = list(itertools.chain(*steps))
        assert len(numbers) == 8 * STEPS
        assert sorted(numbers[:COUNT]) == list(range(COUNT))
        assert len(set(numbers[COUNT:])) == 8 * STEPS - COUNT
    epochs = [list(itertools.chain(*seen))[start : start + 16] for start in (0, COUNT)]
    assert (epochs[0] == epochs[1]) == (run == "workers")  # a shuffled stream is shuffled anew


def test_the_trainer_reads_a_stream_only_when_it_trains(tmp_path):
    reads = []

    class Counted(Stream):
        def __iter__(self):
            for number, row in enumerate(super().__iter__()):
                reads.append(number)
                yield row

    trainer = make_trainer(
        build("resnet"),
        tmp_path,
        train_dataset=Counted(prepared(16, 0)),
        max_steps=2,
        per_device_train_batch_size=4,
    )
    assert reads == []
    trainer.train()
    assert reads[:8] == list(range(8))
    assert len(reads) <= 12  # one batch is read ahead


def test_the_length_that_is_missing_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        make_trainer(build("resnet"), tmp_path, train_dataset=table(8).to_iterable_dataset())


def test_the_annotated_share_of_a_stream_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be consumed to count its annotated rows.*leave rescale_annotated out"):
        make_trainer(
            build("resnet"),
            tmp_path,
            train_dataset=table(8).to_iterable_dataset(),
            max_steps=2,
            rescale_annotated=True,
        )


def test_a_stream_without_annotation_trains_the_task(tmp_path):
    stream = table(12).remove_columns("saliency").to_iterable_dataset()
    trainer = make_trainer(build("resnet"), tmp_path, train_dataset=stream, max_steps=2, logging_steps=1)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "cyborg_loss" in entry]
    assert [entry["cyborg_loss"] for entry in entries] == [0.0, 0.0]
    assert entries[0]["task_loss"] > 0


def test_a_run_on_a_stream_is_resumed(tmp_path):
    _, unbroken, _ = train(tmp_path / "whole", "pictures", 8, save_strategy="steps", save_steps=3)
    _, resumed, seen = train(tmp_path / "resumed", "pictures", 8, str(tmp_path / "whole" / "checkpoint-3"))
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)
    assert seen[0] == list(range(24, 32))
