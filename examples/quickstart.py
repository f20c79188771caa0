"""Guided training of a small network on decoy digits, a benchmark that is generated on the spot.

    python examples/quickstart.py

For data of your own, replace `decoy_digits(...)` by `load_saliency_dataset("path/to/folder")`.
"""

from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments, as_classifier
from hf_salguide.data import decoy_digits
from hf_salguide.studies.predictions import predict

dataset = decoy_digits(size=48)
model = as_classifier("resnet10t", label_names=dataset["train"].features["label"].names, image_size=48)
args = SaliencyTrainingArguments(
    "runs/quickstart",
    guidance="cyborg",  # "none" is plain training
    guidance_weight=1.0,
    task_weight=1.0,
    num_train_epochs=8,
    per_device_train_batch_size=32,
    learning_rate=2e-3,
    lr_scheduler_type="cosine",
    report_to="none",
)
trainer = SaliencyTrainer(model, args, train_dataset=dataset["train"], eval_dataset=dataset["validation"])
trainer.train()
trainer.save_model()

if trainer.is_world_process_zero():  # of several processes under `accelerate launch` the first one tells
    for split in ("test", "ood"):
        metrics = predict(model, dataset[split]).metrics()
        print(f"{split}: accuracy {metrics['accuracy']:.3f}, map energy on the digit {metrics['energy_inside']:.3f}")
