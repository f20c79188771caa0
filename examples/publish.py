"""Trains a small guided model on decoy digits, writes its card, and publishes it: about a minute on a processor.

    python examples/publish.py                         # saves runs/publish and shows the card
    python examples/publish.py --repo user/name        # and pushes it, privately; log in with `hf auth login` first
    python examples/publish.py --repo user/name --public

Anybody loads it then with `load_guided("user/name")`, or with transformers or timm alone.
"""

import argparse
import dataclasses
from pathlib import Path

from transformers import set_seed

from hf_salguide import ModelCardCallback, SaliencyTrainer, SaliencyTrainingArguments, as_classifier, load_guided
from hf_salguide.backbones import data_config, image_processor
from hf_salguide.data import decoy_digits, make_transforms

parser = argparse.ArgumentParser(description="Trains a small guided model and publishes it.")
parser.add_argument("--repo", help="Where to push it, user/name; without it, it is saved only.")
parser.add_argument("--public", action="store_true", help="Let everybody see the repository.")
parser.add_argument("--output", default="runs/publish", help="Where it is saved.")
parser.add_argument("--epochs", type=float, default=8)
parser.add_argument("--pictures", type=int, default=1100, help="To train on.")
options = parser.parse_args()

# Pictures with a shortcut: a grey patch gives the class away, but not out of distribution, in `ood`.
dataset = decoy_digits(size=48, num_train=options.pictures)
evaluated = {split: dataset[split] for split in ("test", "ood")}


def trained(guidance: str, card: ModelCardCallback) -> SaliencyTrainer:
    """One model with its card, saved; the same initial weights and order of the pictures whatever the guidance."""
    set_seed(0)
    model = as_classifier(
        "test_resnet", label_names=dataset["train"].features["label"].names, image_size=48, output_stride=8
    )
    config = dataclasses.replace(data_config(model), crop_pct=1.0)  # no crop: the patch is in a corner
    image_processor(model, config)
    args = SaliencyTrainingArguments(
        str(Path(options.output) / guidance),
        guidance=guidance,  # "none" is plain training
        task_weight=1.0,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        save_strategy="no",
        report_to="none",
        seed=0,
        hub_model_id=options.repo,
    )
    trainer = SaliencyTrainer(
        model,
        args,
        train_dataset=dataset["train"],
        eval_dataset=evaluated,
        train_transform=make_transforms(config, train=False),
        callbacks=[card],
    )
    trainer.train()
    trainer.evaluate()  # on every set; its results go into the card, with their intervals
    trainer.save_model()
    return trainer


# What no run can know, you say; what is not said is left out of the card.
facts = {
    "license": "apache-2.0",
    "dataset": "Decoy digits",
    "dataset_license": "cc-by-4.0",
    "saliency_source": "generated with the pictures: the strokes of each digit",
    "intended_use": "To try `hf_salguide`. The digits are those of scikit-learn's `load_digits`.",
}
baseline = trained("none", ModelCardCallback(**facts))
trainer = trained("cyborg", ModelCardCallback(**facts, baseline=baseline.args.output_dir))

folder = Path(trainer.args.output_dir)
print((folder / "README.md").read_text(encoding="utf-8"))
print(f"{folder} holds {', '.join(sorted(path.name for path in folder.iterdir()))}.")

guided = load_guided(folder)
print(f"Loaded again: {type(guided.model).__name__}, guided by {guided.guidance['name']}.")

if options.repo:
    commit = trainer.push_to_hub(private=not options.public)
    print(f"Published: {commit.commit_url}")
