"""Training and evaluation on streams, in one process, or in two that torchrun starts; what each process was given."""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch.utils.data import IterableDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import NAMES, Rows, build, make_batch, make_trainer

from hf_salguide.backbones import data_config
from hf_salguide.data import make_transforms

SIZE = (64, 96)
COUNT = 48
STEPS = 8  # of eight pictures: more than one epoch


def encoded(values):
    stream = io.BytesIO()
    PILImage.fromarray(values).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def table(count=COUNT):
    """Pictures whose first pixel is their number, a third of them not annotated."""
    generator = np.random.default_rng(0)
    rows = {"image": [], "label": [], "saliency": []}
    for index in range(count):
        picture = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        picture[0, 0] = index
        mask = np.zeros(SIZE, np.uint8)
        mask[index % 40 : index % 40 + 20, 10:50] = 255
        rows["image"].append(encoded(picture))
        rows["saliency"].append(None if index % 3 == 2 else encoded(mask))
        rows["label"].append(index % len(NAMES))
    return Dataset.from_dict(rows).cast_column("image", Image()).cast_column("saliency", Image())


class Stream(IterableDataset):
    """A stream of the user's own, of prepared rows."""

    def __init__(self, batch):
        self.rows = Rows(batch)

    def __iter__(self):
        return (self.rows[row] for row in range(len(self.rows)))


def prepared(count, seed):
    annotated = ([True] * 4 + [False] * 4 + [True, False, False]) * 10
    batch = make_batch(SIZE, count, seed=seed, annotated=annotated)
    batch["pixel_values"][:, :, 0, 0] = torch.arange(count)[:, None].float()
    return batch


# Each kind of stream: the training set, whether its pictures are prepared, and the workers that read it.
RUNS = {
    "prepared": (lambda: Stream(prepared(COUNT, 0)), 0),
    "pictures": (lambda: table().to_iterable_dataset(num_shards=2), 0),
    "workers": (lambda: table().to_iterable_dataset(num_shards=2), 2),
    "shuffled": (lambda: table().to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=16), 2),
}


def train(output_dir, name, batch_size, checkpoint=None, **arguments):
    """Gives the trainer, the final weights, and the numbers of the pictures of each step of this process."""
    make, workers = RUNS[name]
    dataset = make()
    model = build("vit_class_token")
    trainer = make_trainer(
        model,
        output_dir,
        train_dataset=dataset,
        eval_dataset=Stream(prepared(13, 1)),  # no multiple of anything
        guidance=["cyborg", "actdiff"],
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=3,
        max_steps=STEPS,
        optim="sgd",
        learning_rate=0.02,
        logging_steps=4,
        dataloader_num_workers=workers,
        **arguments,
    )
    config = data_config(model, image_size=SIZE)
    plain = make_transforms(config, train=True, flip=0.0, crop_scale=None, color_jitter=0.0)
    for part in (trainer.train_dataset, trainer.eval_dataset):
        if hasattr(part, "transform"):
            part.transform = plain
    scale = (1.0, 0.0) if name == "prepared" else (255 * config.std[0], 255 * config.mean[0])
    seen, inner = [], trainer.compute_loss

    def record(model, inputs, *rest, **named):
        if model.training:
            numbers = inputs["pixel_values"][:, 0, 0, 0] * scale[0] + scale[1]
            seen.append(numbers.round().int().tolist())
        return inner(model, inputs, *rest, **named)

    trainer.compute_loss = record
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.metrics = trainer.evaluate()
    return trainer, {key: value.detach().clone() for key, value in model.state_dict().items()}, seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    results = {}
    for name in RUNS:
        trainer, weights, seen = train(options.output.parent, name, 4, ddp_backend="gloo")
        everyone = [None] * trainer.args.world_size
        torch.distributed.all_gather_object(everyone, seen)
        results[name] = {"weights": weights, "seen": everyone, "metrics": trainer.metrics}
    if trainer.is_world_process_zero():
        partial = options.output.with_suffix(".partial")
        torch.save(results, partial)
        partial.rename(options.output)
    trainer.accelerator.wait_for_everyone()
