"""Trains a compiled model by finite differences, in as many processes as it is started with; rank 0 writes weights."""

import sys
import tempfile

import torch
from support import Rows, build, make_batch

# The second process of two has no annotated picture in the first step, and then the first one.
ANNOTATED = [True, True, True, False] + [False] * 8 + [True, True, True, False] + [True, False] * 4


def run(processes, **arguments):
    """Weights before and after three steps of eight pictures."""
    from support import make_trainer

    model = build("swin")  # smooth, with buffers, which DistributedDataParallel broadcasts in its forward
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        model,
        tempfile.mkdtemp(),
        train_dataset=Rows(make_batch((64, 64), 24, annotated=ANNOTATED)),
        guidance="rrr",
        guidance_options={"gradient_engine": "finite_difference"},
        per_device_train_batch_size=8 // processes,
        train_sampling_strategy="sequential",
        max_steps=3,
        optim="sgd",
        learning_rate=0.05,
        max_grad_norm=0.0,
        **arguments,
    )
    trainer.train()
    moved = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return moved, trainer.args.world_size


if __name__ == "__main__":
    found, world_size = run(2, torch_compile=True, torch_compile_backend="aot_eager")
    if torch.distributed.get_rank() == 0:
        torch.save({"world_size": world_size, "movement": found}, sys.argv[1])
