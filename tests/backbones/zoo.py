"""Tiny random backbones, and what a resolver has to find in them."""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import transformers

from hf_salguide.backbones import as_classifier

NAMES = ["ant", "bee", "cat"]
TINY_SWIN = {"embed_dim": 8, "depths": (1, 1, 2), "num_heads": (1, 2, 2), "window_size": 2}
TINY_VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
TINY_CONV = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 2]}


@dataclass(frozen=True)
class Case:
    """One backbone: pictures are of `size`, higher than wide or wider than high where the model takes them."""

    model: str | Callable
    size: tuple[int, int]
    layer: str
    layout: str
    grid: tuple[int, int]
    readout: str
    head: str | None = None
    prefix: int = 0
    arguments: dict | None = None

    def build(self, seed: int = 0):
        """The model in evaluation mode, its biases and batch statistics not trivial."""
        torch.manual_seed(seed)
        source = self.model if isinstance(self.model, str) else self.model()
        model = as_classifier(source, label_names=NAMES, image_size=self.size, **(self.arguments or {}))
        return lively(model, seed)

    def images(self, count: int = 3) -> torch.Tensor:
        return torch.randn(count, 3, *self.size, generator=torch.Generator().manual_seed(7))


def lively(model, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny_densenet():
    # timm rebuilds a module from its record; growth and depth are cut so that the test takes no time.
    return timm.create_model("densenet121", num_classes=3, growth_rate=4, block_config=(1, 1, 2, 2))


CASES = {
    "resnet18": Case("resnet18", (64, 96), "timm_model.layer4.1", "NCHW", (2, 3), "exact", "timm_model.fc"),
    "resnet10t": Case("resnet10t", (96, 64), "timm_model.layer4.0", "NCHW", (3, 2), "exact", "timm_model.fc"),
    "test_resnet": Case("test_resnet", (64, 96), "timm_model.layer4.0", "NCHW", (2, 3), "exact", "timm_model.fc"),
    "densenet": Case(
        tiny_densenet, (64, 96), "timm_model.features.norm5", "NCHW", (2, 3), "exact", "timm_model.classifier"
    ),
    "efficientnet_b0": Case(
        "efficientnet_b0", (64, 96), "timm_model.bn2", "NCHW", (2, 3), "exact", "timm_model.classifier"
    ),
    "test_efficientnet": Case(
        "test_efficientnet", (96, 64), "timm_model.bn2", "NCHW", (3, 2), "exact", "timm_model.classifier"
    ),
    "test_convnext": Case("test_convnext", (64, 96), "timm_model.stages.3.blocks.1", "NCHW", (2, 3), "uniform"),
    "swin": Case(
        "swin_tiny_patch4_window7_224",
        (32, 48),
        "timm_model.norm",
        "NHWC",
        (2, 3),
        "exact",
        "timm_model.head.fc",
        arguments={**TINY_SWIN, "window_size": 1},
    ),
    "vit_class_token": Case("test_vit", (64, 96), "timm_model.blocks.5.norm1", "NLC", (4, 6), "generic", prefix=1),
    "vit_average": Case(
        "test_vit",
        (64, 96),
        "timm_model.blocks.5",
        "NLC",
        (4, 6),
        "uniform",
        prefix=1,
        arguments={"global_pool": "avg"},
    ),
    "vit_average_exact": Case(
        "test_vit",
        (96, 64),
        "timm_model.norm",
        "NLC",
        (6, 4),
        "exact",
        "timm_model.head",
        prefix=1,
        arguments={"global_pool": "avg", "fc_norm": False},
    ),
    "vit_registers": Case(
        "vit_small_patch14_reg4_dinov2",
        (56, 84),
        "timm_model.blocks.2.norm1",
        "NLC",
        (4, 6),
        "generic",
        prefix=5,
        arguments={"embed_dim": 24, "depth": 3, "num_heads": 2},
    ),
    "mobilenetv3": Case("mobilenetv3_small_050", (64, 96), "timm_model.blocks.5.0.bn1", "NCHW", (2, 3), "uniform"),
    "hf_resnet": Case(
        lambda: transformers.ResNetConfig(embedding_size=8, layer_type="basic", **TINY_CONV),
        (64, 96),
        "resnet.encoder.stages.3.layers.1",
        "NCHW",
        (2, 3),
        "exact",
        "classifier.1",
    ),
    "hf_efficientnet": Case(
        # With the range of 0.02 that is the default, the signal of a random network shrinks to rounding.
        lambda: transformers.EfficientNetConfig(
            width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=320, initializer_range=0.3
        ),
        (64, 96),
        "efficientnet.encoder.top_activation",
        "NCHW",
        (2, 3),
        "exact",
        "classifier",
    ),
    "hf_convnext": Case(
        lambda: transformers.ConvNextConfig(**TINY_CONV),
        (64, 96),
        "convnext.encoder.stages.3.layers.1",
        "NCHW",
        (2, 3),
        "uniform",
    ),
    "hf_swin": Case(
        lambda: transformers.SwinConfig(**TINY_SWIN),
        (32, 48),
        "swin.layernorm",
        "NLC",
        (2, 3),
        "exact",
        "classifier",
    ),
    "hf_vit": Case(
        lambda: transformers.ViTConfig(**TINY_VIT),
        (64, 96),
        "vit.layers.2.layernorm_before",
        "NLC",
        (4, 6),
        "generic",
        prefix=1,
    ),
    "hf_dinov2": Case(
        lambda: transformers.Dinov2Config(patch_size=14, **TINY_VIT),
        (56, 56),
        "dinov2.layernorm",
        "NLC",
        (4, 4),
        "uniform",
        prefix=1,
    ),
    "hf_dinov2_registers": Case(
        lambda: transformers.Dinov2WithRegistersConfig(patch_size=14, **TINY_VIT),
        (56, 56),
        "dinov2_with_registers.layernorm",
        "NLC",
        (4, 4),
        "uniform",
        prefix=5,
    ),
}
EXACT = [name for name, case in CASES.items() if case.readout == "exact"]
INEXACT = [name for name, case in CASES.items() if case.readout != "exact"]
