"""Short training runs, for the tests that compare trajectories; started in one process, or in two by torchrun."""

import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import NAMES, Rows, build, make_batch, make_trainer
from torch.nn.parallel import DistributedDataParallel

from hf_salguide import as_classifier, list_guidance

STEPS = 3
PICTURES = 8  # of an optimizer step, in whatever micro-batches and processes
# Uneven over two processes: two rows a step and one, three and none, one and three; of four micro-batches likewise.
ANNOTATED = [
    *(True, False, True, False, False, True, False, False),
    *(True, True, False, True, False, False, False, False),
    *(False, False, True, False, True, True, False, True),
]
ON_ONE_PROCESS = [True, False, True, True, False, False, False, False] * STEPS  # where batches are halves of a step

TWICE = {"gradient_engine": "double_backward"}
SHIFTED = {"gradient_engine": "finite_difference"}
# Each method as it is trained here; the balance of two terms adapts to the losses of the step before.
RUNS = {
    **{name: {"guidance": name} for name in list_guidance()},
    "random saliency": {"guidance": "cyborg", "random_saliency": True},
    "adaptive": {"guidance": ["cyborg", "actdiff"], "guidance_schedule": "adaptive"},
    "double backward": {"guidance": "gradmask", "guidance_options": TWICE},
    "features": {"guidance": "rrr", "guidance_options": {"at": "features", "reduction": "reference"}},
}
READ_OUTS = {"exact": "nfnet", "uniform": "convnext"}  # networks whose maps are made in other ways
# The second process has no annotated picture in any step.
LACKING = {
    "map": {"guidance": "cyborg"},
    "views": {"guidance": "sage"},
    "adversarial": {"guidance": "actdiff_adversarial"},
    "finite difference": {"guidance": "rrr", "guidance_options": SHIFTED},
    "double backward": {"guidance": "gradmask", "guidance_options": TWICE},
}
UNEVEN = 11  # pictures: the second step of two processes has three of its own
UNEVEN_RUN = {"guidance": ["cyborg", "sage"], "max_steps": -1, "num_train_epochs": 1}
# Weights stay as they are, so that the statistics of normalisation are those of the pictures alone.
STATISTICS = {
    "plain": {"guidance": "none"},
    "map": {"guidance": "cyborg"},
    "views": {"guidance": ["actdiff", "sage"]},
    "adversarial": {"guidance": "actdiff_adversarial"},
    "double backward": {"guidance": "rrr"},
}


def network(name):
    """A tiny model; one whose map is exact and that has no batch normalisation is not among those of other tests."""
    if name != "nfnet":
        return build(name)
    torch.manual_seed(0)
    return as_classifier("test_nfnet", label_names=NAMES, image_size=(64, 96))


def train(output_dir, batch_size, accumulation, annotated=ANNOTATED, name="vit_class_token", rows=None, **arguments):
    """
    A few optimizer steps; gives the trainer and the final weights.

    Rows come in their order: `torch.distributed` deals out the batches of a step in turn.
    """
    model = network(name)
    options = {"max_steps": STEPS, "logging_steps": STEPS, "optim": "sgd", "learning_rate": 0.05}
    trainer = make_trainer(
        model,
        output_dir,
        train_dataset=Rows(make_batch((64, 96), len(annotated), annotated=annotated)) if rows is None else rows,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=3,
        train_sampling_strategy="sequential",
        **{**options, **arguments},
    )
    trainer.train()
    return trainer, {key: value.detach().clone() for key, value in model.state_dict().items()}


def evaluate(trainer):
    """The metrics on 7 pictures, no multiple of anything: the last batch is filled up, and what is added left out."""
    return trainer.evaluate(Rows(make_batch((64, 96), 7, seed=1, annotated=[True, False, True] * 3)))


def state_of(trainer):
    """What the methods keep of their own, as one dict of tensors."""
    state = {name: method.state_dict() for name, method in trainer._state.stateful.items()}
    return {name: value["discriminator"] for name, value in state.items()}


@contextmanager
def counted_calls():
    """A list that grows by one at each call of a model that is wrapped for several processes."""
    calls, forward = [], DistributedDataParallel.forward

    def count(self, *args, **kwargs):
        calls.append(self)
        return forward(self, *args, **kwargs)

    with patch.object(DistributedDataParallel, "forward", count):
        yield calls


def of_every_process(value):
    """What each process has, in their order."""
    every = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, value)
    return every


def two_processes(folder):
    """Every run of two processes, by its name."""
    results = {}
    for name, arguments in RUNS.items():
        for accumulation in (1, 4):
            with counted_calls() as calls:
                trainer, weights = train(folder, PICTURES // 2 // accumulation, accumulation, **arguments)
            results[name, accumulation] = {"weights": weights, "log": trainer.state.log_history, "calls": len(calls)}
        results[name, "metrics"] = evaluate(trainer)
    for kind, name in READ_OUTS.items():
        _, weights = train(folder, PICTURES // 2, 1, name=name, guidance="cyborg")
        results[kind] = {"weights": weights}
    for name, arguments in LACKING.items():
        trainer, weights = train(folder, PICTURES // 2, 1, ON_ONE_PROCESS, **arguments)
        results["lacking", name] = of_every_process({"weights": weights, "state": state_of(trainer)})
    trainer, weights = train(folder, PICTURES // 2, 1, ANNOTATED[:UNEVEN], **UNEVEN_RUN)
    results["uneven"] = of_every_process(weights)
    for name, arguments in STATISTICS.items():
        _, weights = train(folder, PICTURES // 2, 1, name="resnet", learning_rate=0.0, **arguments)
        results["statistics", name] = of_every_process(weights)
    results["world_size"] = torch.distributed.get_world_size()
    return results


if __name__ == "__main__":
    output = Path(sys.argv[1])
    train = partial(train, ddp_backend="gloo")
    results = two_processes(output.parent)
    if torch.distributed.get_rank() == 0:
        unfinished = output.with_suffix(".partial")
        torch.save(results, unfinished)
        unfinished.rename(output)
    # A process that ends early takes the other with it, and may abort on its way out.
    torch.distributed.barrier()
