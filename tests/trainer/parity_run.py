"""One short training run, for the tests that compare trajectories; started in one process, or in two by torchrun."""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import Rows, build, make_batch, make_trainer

ANNOTATED = ([True] * 4 + [False] * 4) * 5 + [True, False, False, False, True, True, True, True] * 5  # uneven


def train(output_dir, batch_size, accumulation, method="cyborg", **arguments):
    """Ten optimizer steps of eight pictures; gives the final weights and the logged history."""
    model = build("vit_class_token")
    trainer = make_trainer(
        model,
        output_dir,
        guidance=method,
        train_dataset=Rows(make_batch((64, 96), 80, annotated=ANNOTATED)),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=10,
        optim="sgd",
        learning_rate=0.05,
        per_device_eval_batch_size=3,
        logging_steps=5,
        **arguments,
    )
    trainer.train()
    held_out = Rows(make_batch((64, 96), 13, seed=1, annotated=[True, False, True] * 5))  # no multiple of anything
    trainer.metrics = trainer.evaluate(held_out)
    return trainer, {key: value.detach().clone() for key, value in model.state_dict().items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--random-saliency", action="store_true")
    options = parser.parse_args()
    trainer, weights = train(
        options.output.parent, options.batch_size, 1, random_saliency=options.random_saliency, ddp_backend="gloo"
    )
    if trainer.is_world_process_zero():
        result = {"weights": weights, "world_size": trainer.args.world_size, "metrics": trainer.metrics}
        result["log"] = trainer.state.log_history
        partial = options.output.with_suffix(".partial")
        torch.save(result, partial)
        partial.rename(options.output)
    # A process that ends early takes the other with it, and may abort on its way out.
    trainer.accelerator.wait_for_everyone()
