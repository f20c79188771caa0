"""One evaluation, plain and guided, for the test that compares one process with two; started by torchrun for two."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import Rows, build, make_batch, make_trainer

# Batches of two in two processes: pictures 0, 1, 4, 5, 8, 9, 12 are the first one's, which has all the annotation.
ANNOTATED = [row in (0, 1, 4, 8, 9, 12) for row in range(13)]


def evaluate(output_dir, **arguments):
    """The metrics of a plain and a guided trainer on 13 pictures, one of the annotations empty."""
    batch = make_batch((64, 96), 13, seed=1, annotated=ANNOTATED)
    batch["saliency"][4] = 0
    return {
        guidance: make_trainer(
            build("vit_class_token"),
            output_dir,
            guidance=guidance,
            eval_dataset=Rows(batch),
            per_device_eval_batch_size=2,
            **arguments,
        ).evaluate()
        for guidance in ("none", "cyborg")
    }


if __name__ == "__main__":
    output = Path(sys.argv[1])
    results = evaluate(output.parent, ddp_backend="gloo")
    results["world_size"] = torch.distributed.get_world_size()
    if torch.distributed.get_rank() == 0:
        partial = output.with_suffix(".partial")
        torch.save(results, partial)
        partial.rename(output)
    # A process that ends early takes the other with it, and may abort on its way out.
    torch.distributed.barrier()
