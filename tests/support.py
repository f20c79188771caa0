"""Tiny random models and batches that several test modules share."""

import torch

from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments, as_classifier

NAMES = ["ant", "bee", "cat"]


def resnet(**kwargs):
    return as_classifier("test_resnet", label_names=NAMES, image_size=(64, 96), **kwargs)


def convnext(**kwargs):
    return as_classifier("test_convnext", label_names=NAMES, image_size=(64, 96), **kwargs)


def vit_class_token(**kwargs):
    return as_classifier("test_vit", label_names=NAMES, image_size=(64, 96), **kwargs)


def vit_average(**kwargs):
    return as_classifier("test_vit", label_names=NAMES, image_size=(64, 96), global_pool="avg", **kwargs)


def swin(**kwargs):
    from transformers import SwinConfig

    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4, drop_path_rate=0.0
    )
    return as_classifier(config, label_names=NAMES, **kwargs)


def transformers_vit(**kwargs):
    from transformers import ViTConfig

    config = ViTConfig(
        image_size=64, patch_size=16, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48
    )
    return as_classifier(config, label_names=NAMES, **kwargs)


MODELS = {
    "resnet": resnet,  # exact, batch normalisation
    "convnext": convnext,  # uniform
    "vit_class_token": vit_class_token,  # generic, fused attention
    "vit_average": vit_average,
    "swin": swin,
    "transformers_vit": transformers_vit,
}
SIZES = {"swin": (64, 64), "transformers_vit": (64, 64)}


def build(name, seed=0, **kwargs):
    """A tiny model, the same for a seed, with batch statistics and biases that are not trivial."""
    torch.manual_seed(seed)
    model = MODELS[name](**kwargs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def make_batch(size=(64, 96), count=5, seed=0, annotated=(True, True, False, True, False)):
    """A batch with soft saliency in some of its rows."""
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.zeros(count, *size, dtype=torch.uint8)
    for row in range(count):
        top, left = (
            torch.randint(0, size[0] // 2, (1,), generator=generator),
            torch.randint(0, size[1] // 2, (1,), generator=generator),
        )
        patch = torch.randint(60, 256, (size[0] // 3, size[1] // 3), generator=generator, dtype=torch.uint8)
        saliency[row, top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    present = torch.tensor(annotated[:count])
    saliency[~present] = 0
    return {
        "pixel_values": torch.randn(count, 3, *size, generator=generator),
        "labels": torch.arange(count) % len(NAMES),
        "saliency": saliency,
        "has_saliency": present,
    }


def make_trainer(model, tmp_path, **arguments):
    """A trainer that logs nothing and saves nothing unless told to."""
    keywords = {name: arguments.pop(name) for name in list(arguments) if name.endswith(("dataset", "metrics", "func"))}
    others = ("data_collator", "callbacks", "optimizers", "processing_class")
    keywords |= {name: arguments.pop(name) for name in others if name in arguments}
    options = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, **arguments}
    return SaliencyTrainer(model, SaliencyTrainingArguments(str(tmp_path), **options), **keywords)


def save_as_trained(trainer):
    """Saves a model as if it had been trained: what was not trained says nothing of guidance."""
    trainer.state.global_step = 1
    trainer.save_model()


class Rows(torch.utils.data.Dataset):
    """Prepared rows of a batch."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["labels"])

    def __getitem__(self, row):
        return {
            "pixel_values": self.batch["pixel_values"][row],
            "labels": int(self.batch["labels"][row]),
            "saliency": self.batch["saliency"][row] if self.batch["has_saliency"][row] else None,
        }
