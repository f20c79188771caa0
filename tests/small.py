"""Tiny models and short runs of training, for tests that compare one way to run with another."""

import os
import subprocess
import sys

import torch
from filelock import FileLock
from support import NAMES, Rows, make_batch, make_trainer
from transformers import ConvNextConfig, ResNetConfig

from hf_salguide import as_classifier, get_guidance, list_guidance

SIZE = (64, 64)
BATCH = 4
COUNTS = [2, 0, 4, 1, 3, 4, 0, 2, 3, 1, 4, 2]  # annotated rows of each batch
METHODS = [name for name in list_guidance() if name != "none"]


def convnext():
    """Smooth, a uniform read-out: a norm comes behind the average."""
    torch.manual_seed(0)
    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=4, image_size=64)
    model = as_classifier(config, label_names=NAMES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def resnet():
    """An exact read-out, batch normalisation."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return as_classifier(config, label_names=NAMES, image_size=64)


def rows(counts=COUNTS):
    annotated = [row < count for count in counts for row in range(BATCH)]
    return Rows(make_batch(SIZE, len(annotated), annotated=annotated))


def by_double_backward(method):
    """Guidance options with which input gradients are exact, whatever the precision."""
    return {"gradient_engine": "double_backward"} if get_guidance(method).gradient_at == "input" else {}


def trainer_of(model, folder, steps, **arguments):
    options = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    return make_trainer(
        model,
        folder,
        train_dataset=rows(),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        logging_steps=1,
        **options,
        **arguments,
    )


def movement(make, folder, steps=3, **arguments):
    """What training does to the parameters, and the trainer."""
    model = make()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trainer_of(model, folder, steps, **arguments)
    trainer.train()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}, trainer


def losses(trainer):
    """The logged loss of each step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def cosine(found, expected):
    """Of two movements, over all parameters."""
    one, other = (
        torch.cat([change.double().flatten() for change in changes.values()]) for changes in (found, expected)
    )
    return float(torch.cosine_similarity(one, other, dim=0))


def assert_same_movement(found, expected, tolerance):
    """To a tolerance relative to the largest change of all."""
    largest = max(float(change.abs().max()) for change in expected.values())
    assert largest > 1e-4
    for name, change in expected.items():
        torch.testing.assert_close(found[name], change, rtol=0, atol=tolerance * largest, msg=name)


def largest_difference(first, second):
    """Of two states of a model, over all their values."""
    assert first.keys() == second.keys()
    return max((first[key] - second[key]).abs().max().item() for key in first)


def in_two_processes(script, tmp_path_factory, worker_id, timeout=500):
    """
    What a script wrote in two gloo processes: one launch for all tests, and for all workers of the test run. Judged by
    what rank 0 wrote, since they may abort when the interpreter exits.
    """
    folder = tmp_path_factory.getbasetemp()
    output = (folder if worker_id == "master" else folder.parent) / f"{script.stem}.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(script), str(output)]
    with FileLock(f"{output}.lock"):
        if not output.exists():
            finished = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
            assert output.exists(), finished.stderr[-4000:]
    return torch.load(output, weights_only=False)
