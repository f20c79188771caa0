"""One short training run, for the tests that compare trajectories; started in one process, or in two by torchrun."""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import Rows, build, make_batch, make_trainer

from hf_salguide import list_guidance

STEPS = 6
ANNOTATED = ([True] * 4 + [False] * 4) * 5 + [True, False, False, False, True, True, True, True] * 5  # uneven


# Each method as it is trained here; the balance of two terms adapts to the losses of the step before.
RUNS = {
    **{name: {"guidance": name} for name in list_guidance()},
    "random saliency": {"guidance": "cyborg", "random_saliency": True},
    "adaptive": {"guidance": ["cyborg", "actdiff"], "guidance_schedule": "adaptive"},
    "double backward": {"guidance": "gradmask", "guidance_options": {"gradient_engine": "double_backward"}},
    "features": {"guidance": "rrr", "guidance_options": {"at": "features", "reduction": "reference"}},
}


def train(output_dir, batch_size, accumulation, **arguments):
    """A few optimizer steps of eight pictures; gives the trainer and the final weights."""
    model = build("vit_class_token")
    trainer = make_trainer(
        model,
        output_dir,
        train_dataset=Rows(make_batch((64, 96), 80, annotated=ANNOTATED)),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        optim="sgd",
        learning_rate=0.05,
        per_device_eval_batch_size=3,
        logging_steps=3,
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
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    options = parser.parse_args()
    results = {}
    for name in options.runs:
        trainer, weights = train(options.output.parent, options.batch_size, 1, ddp_backend="gloo", **RUNS[name])
        results[name] = {"weights": weights, "world_size": trainer.args.world_size, "metrics": trainer.metrics}
        results[name]["log"] = trainer.state.log_history
    if trainer.is_world_process_zero():
        partial = options.output.with_suffix(".partial")
        torch.save(results, partial)
        partial.rename(options.output)
    # A process that ends early takes the other with it, and may abort on its way out.
    trainer.accelerator.wait_for_everyone()
