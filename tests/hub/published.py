"""Models that are trained for two steps and published, with what others should find when they load them."""

import io
import json
import pickletools
import zipfile
from pathlib import Path

import small
import torch
from PIL import Image
from support import Rows, build, make_batch, make_trainer
from transformers import AutoImageProcessor

# By name: how it is made, and the size of its pictures, which is not what its kind has by default.
MODELS = {
    "timm_resnet": (lambda: build("resnet"), (64, 96)),
    "timm_vit": (lambda: build("vit_class_token"), (64, 96)),
    "transformers_resnet": (small.resnet, (64, 64)),
    "transformers_vit": (lambda: build("transformers_vit"), (64, 64)),
}
TRAINING = {
    "guidance": "cyborg",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "save_strategy": "steps",
    "save_steps": 1,
    "push_to_hub": True,
    "hub_always_push": True,
}
SAVED = {"README.md", "card.json", "config.json", "model.safetensors", "training_args.json"}
RESUMED_FROM = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


def trainer_of(name, folder, repo, **arguments):
    """A trainer that has not trained yet."""
    make, size = MODELS[name]
    rows = Rows(make_batch(size, 8, annotated=[True, True, False, True] * 2))
    return make_trainer(make(), folder, train_dataset=rows, **{**TRAINING, "hub_model_id": repo, **arguments})


def train(name, folder, repo, strategy, **arguments):
    """Trains and publishes: what a strategy pushes by itself, and with "end" what the user pushes."""
    trainer = trainer_of(name, folder, repo, hub_strategy=strategy, **arguments)
    trainer.train()
    if strategy == "end":
        trainer.push_to_hub()
    return trainer


def write_expected(trainer, path):
    """What the trained model says of a random batch and of a picture, with the pixels that are made of the picture."""
    size = tuple(trainer.train_dataset.batch["pixel_values"].shape[-2:])
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(3, 3, *size, generator=generator)
    picture = torch.randint(0, 256, (50, 70, 3), generator=generator, dtype=torch.uint8)
    saved = [path.parent for path in sorted(Path(trainer.args.output_dir).glob("**/model.safetensors"))]
    processor = AutoImageProcessor.from_pretrained(saved[-1])
    pixels = processor(Image.fromarray(picture.numpy()), return_tensors="pt")["pixel_values"]
    model = trainer.model.eval()
    with torch.no_grad():
        logits, seen = model(pixel_values=batch).logits, model(pixel_values=pixels).logits
    torch.save({"batch": batch, "logits": logits, "picture": picture, "pixels": pixels, "seen": seen}, path)


def tree_of(folder):
    """Every file of a folder, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def check_told(text, folder, repo="user/model"):
    """What is whole, where it was to go, and what to run."""
    assert str(folder) in text
    assert "hf-salguide push" in text
    assert repo in text
    assert "whole" in text
    assert "hf_The" not in text  # as all tokens of a local Hub begin


def check_whole(hub, folder, revision="main", repo="user/model"):
    """All of a folder's model is published, and nothing else."""
    files = hub[repo].files(revision)
    held = tree_of(folder)
    assert {path for path in files if "/" not in path} == {*SAVED, ".gitattributes"}
    assert {path: files[path] for path in SAVED - {"README.md"}} == {
        path: held[path] for path in SAVED - {"README.md"}
    }


def is_pickle(data):
    """Whether a file is one: of pickle's own, or in an archive of torch's."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    try:
        return data[:1] == b"\x80" and len(list(pickletools.genops(data))) > 0
    except ValueError:
        return False


def main(path):
    """Trains and publishes what a file lists, in this process: a list of `name`, `repo`, `strategy`, `folder`."""
    for task in json.loads(Path(path).read_text()):
        folder = Path(task["folder"])
        trainer = train(task["name"], folder / "run", task["repo"], task["strategy"])
        if trainer.is_world_process_zero():
            write_expected(trainer, folder / "expected.pt")


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
