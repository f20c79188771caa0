"""Which model stands for which family of backbones, and how it is built small: every module of timm, every image
classifier of transformers."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import timm
import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from ..backbones import as_classifier
from ..rng import preserve_rng

NUM_LABELS = 3
WIDE = (128, 192)  # 4 × 6 cells at a stride of 32, and not square


@dataclass(frozen=True)
class Family:
    """
    A family of backbones, and the model that stands for it.

    Attributes:
        library (`str`): `"timm"` or `"transformers"`.
        name (`str`): the module of timm (`"resnet"`), or the class of transformers (`"ViTForImageClassification"`).
        model (`str`): the architecture of timm, or the configuration's class.
        arguments (`dict`): its keyword arguments.
        size (`tuple[int, int]`): the pictures' `(H, W)`.
        feature_layer (`tuple[str, ...]`): the layers to name where the head reads several, so that none is found.
    """

    library: str
    name: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = WIDE
    feature_layer: tuple[str, ...] = ()


def _built(
    model: str, size: tuple[int, int] = WIDE, feature_layer: tuple[str, ...] = (), **arguments: Any
) -> dict[str, Any]:
    return {"model": model, "arguments": arguments, "size": size, "feature_layer": feature_layer}


_VIT: dict[str, Any] = {"embed_dim": 64, "depth": 3, "num_heads": 2}
_STAGES: dict[str, Any] = {"depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
_SQUARE = (128, 128)
_STRIDE_64 = (256, 384)
_VALID = (171, 235)  # convolutions without padding: 4 × 6 cells

# The smallest architecture of each module, or a relative that gets smaller, reduced where a forward of three
# pictures would take long. Square pictures are for those that take no others.
TIMM: dict[str, dict[str, Any]] = {
    "beit": _built("beit_base_patch16_224", **_VIT),
    "byoanet": _built("lambda_resnet26t", width_factor=0.25),
    "byobnet": _built("test_byobnet"),
    "cait": _built("cait_xxs24_224", depth=4, init_values=0.1),  # layer scales of 1e-5 leave nothing to be seen
    "coat": _built(
        "coat_tiny",
        feature_layer=tuple(f"timm_model.serial_blocks{stage}.0" for stage in (2, 3, 4)),
        embed_dims=(32, 32, 32, 32),
        serial_depths=(1, 1, 1, 1),
        parallel_depth=1,
    ),
    "convit": _built("convit_tiny", _SQUARE, depth=4, local_up_to_layer=2),
    "convmixer": _built("convmixer_768_32", (56, 84)),
    "convnext": _built("test_convnext"),
    "cpubone": _built("cpubone_nano"),
    "crossvit": _built(
        "crossvit_tiny_240",
        (240, 240),
        tuple(f"timm_model.blocks.1.fusion.{branch}.norm1" for branch in (0, 1)),
        depth=((1, 1, 0), (1, 1, 0)),
    ),
    "csatv2": _built("csatv2", _STRIDE_64),
    "cspnet": _built("cs3darknet_focus_s"),
    "cspnext": _built("cspnext_tiny"),
    "davit": _built("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(32, 64, 128, 256), num_heads=(1, 2, 4, 8)),
    "deepseek_vit": _built("deepseek_vit_412m", (168, 252), **_VIT),
    "deit": _built("deit_tiny_patch16_224", depth=4),
    "densenet": _built("densenet121", block_config=(2, 2, 4, 2)),
    "dla": _built("dla46x_c"),
    "dpn": _built("dpn48b"),
    "edgenext": _built("edgenext_xx_small"),
    "efficientformer": _built("efficientformer_l1", (224, 224)),
    "efficientformer_v2": _built("efficientformerv2_s0"),
    "efficientnet": _built("test_efficientnet"),
    "efficientvim": _built(
        "efficientvim_m1",
        _STRIDE_64,
        ("timm_model.norm.3", *(f"timm_model.stages.{stage}.blocks.1.norm" for stage in (2, 1, 0))),
    ),
    "efficientvit_mit": _built("efficientvit_b0"),
    "efficientvit_msra": _built("efficientvit_m0", _STRIDE_64),
    "eva": _built("vit_tiny_patch16_dinov3_qkvb", depth=4),
    "fasternet": _built("fasternet_t0"),
    "fastvit": _built("fastvit_t8"),
    "focalnet": _built("focalnet_tiny_srf", mlp_ratio=1.0),
    "gcvit": _built("gcvit_xxtiny"),
    "gemma4_vit": _built(
        "gemma4_vit_167m", **_VIT, head_dim=32, num_kv_heads=2, intermediate_size=128, position_embedding_size=64
    ),
    "ghostnet": _built("ghostnet_050"),
    "hardcorenas": _built("hardcorenas_b"),
    "hgnet": _built("hgnetv2_b0"),
    "hiera": _built("hiera_tiny_224", embed_dim=32, stages=(1, 1, 2, 1)),
    "hieradet_sam2": _built("sam2_hiera_tiny", embed_dim=32, stages=(1, 1, 2, 1), global_att_blocks=(3,)),
    "hrnet": _built("hrnet_w18_small"),
    "iformer": _built("iformer_t"),
    "inception_next": _built("inception_next_atto"),
    "inception_resnet_v2": _built("inception_resnet_v2", _VALID),
    "inception_v3": _built("inception_v3", _VALID),
    "inception_v4": _built("inception_v4", _VALID),
    "lcnetv2": _built("lcnetv2_small"),
    "levit": _built("levit_128s", _STRIDE_64),
    "lowformer": _built("lowformer_b0"),
    "mambaout": _built("test_mambaout"),
    "maxxvit": _built("test_coatnet"),
    "metaformer": _built("poolformerv2_s12"),
    "mlp_mixer": _built("gmlp_ti16_224"),
    "mobilenetv3": _built("mobilenetv3_small_050"),
    "mobilenetv5": _built("mobilenetv5_base", channel_multiplier=0.25, num_features=256),
    "mobilevit": _built("mobilevit_xxs"),
    "mvitv2": _built("mvitv2_tiny", _SQUARE),
    "naflexvit": _built("naflexvit_base_patch16_parfac_gap", **_VIT),
    "nasnet": _built("nasnetalarge", stem_size=24, num_features=960),
    "nest": _built("nest_tiny", _SQUARE, mlp_ratio=1.0),
    "nextvit": _built("nextvit_small", depths=(1, 2, 5, 1)),
    "nfnet": _built("test_nfnet"),
    "pit": _built("pit_ti_224"),
    "pnasnet": _built("pnasnet5large"),
    "pvt_v2": _built("pvt_v2_b0"),
    "qwen3_vit": _built("qwen3_vit_88m", **_VIT),
    "rdnet": _built("rdnet_tiny", num_blocks_list=(1, 1, 1, 1, 1, 1, 1)),
    "regnet": _built("regnetx_002"),
    "repghost": _built("repghostnet_050"),
    "repvit": _built("repvit_m1"),
    "res2net": _built("res2next50", layers=(1, 1, 1, 1)),
    "resnest": _built("resnest14d"),
    "resnet": _built("test_resnet"),
    "resnetv2": _built("resnetv2_18"),
    "rexnet": _built("rexnet_100"),
    "selecsls": _built("selecsls42", (256, 320)),
    "senet": _built("legacy_seresnet18"),
    "sequencer": _built("sequencer2d_s", layers=(1, 1, 2, 1)),
    "shvit": _built("shvit_s1", _STRIDE_64),
    "sknet": _built("skresnet18"),
    "starnet": _built("starnet_s050"),
    "swiftformer": _built("swiftformer_xs"),
    "swin_transformer": _built("swin_tiny_patch4_window7_224", embed_dim=32, **_STAGES),
    "swin_transformer_v2": _built("swinv2_tiny_window8_256", (128, 256), embed_dim=32, **_STAGES),
    "swin_transformer_v2_cr": _built("swinv2_cr_tiny_224", embed_dim=32, **_STAGES),
    "tiny_vit": _built("tiny_vit_5m_224"),
    "tnt": _built("tnt_s_legacy_patch16_224", embed_dim=96, inner_dim=16, depth=3, num_heads_outer=2),
    "tresnet": _built("tresnet_m", layers=(1, 1, 2, 1), width_factor=0.25),
    "twins": _built("twins_svt_small", embed_dims=(32, 64, 128, 256), num_heads=(1, 2, 4, 8), depths=(2, 2, 2, 2)),
    "vgg": _built("vgg11", mlp_ratio=0.03125),
    "visformer": _built("visformer_tiny"),
    "vision_transformer": _built("test_vit"),
    "vision_transformer_hybrid": _built("vit_tiny_r_s16_p8_224", depth=4),
    "vision_transformer_relpos": _built("test_vit_relpos"),
    "vision_transformer_sam": _built("samvit_base_patch16_224", **_VIT, global_attn_indexes=(2,)),
    "vitamin": _built("vitamin_small_224", depth=3),
    "volo": _built("volo_d1_224", mlp_ratio=1.0),
    "vovnet": _built("ese_vovnet19b_slim_dw"),
    "xception": _built("legacy_xception"),
    "xception_aligned": _built("xception41p"),
    "xcit": _built("xcit_nano_12_p8_224", depth=4),
}

_TOKENS: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
_PATCHES: dict[str, Any] = {**_TOKENS, "patch_size": 16}
_CONVOLUTIONS: dict[str, Any] = {"hidden_sizes": (8, 12, 16, 24), "depths": (1, 1, 1, 2)}
_PYRAMID: dict[str, Any] = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 1, 1, 2),
    "num_attention_heads": (1, 1, 2, 2),
}
_WINDOWS: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (1, 1, 2),
    "num_heads": (1, 2, 2),
    "window_size": 2,
    "patch_size": 4,
}
_LEVIT: dict[str, Any] = {
    "hidden_sizes": (16, 24, 32),
    "num_attention_heads": (2, 2, 2),
    "depths": (1, 1, 2),
    "key_dim": (4, 4, 4),
}
_TEXT: dict[str, Any] = {**_TOKENS, "vocab_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TWO_TOWERS: dict[str, Any] = {"vision_config": {**_PATCHES, "image_size": 128}, "text_config": _TEXT}
_PERCEIVER: dict[str, Any] = {
    "num_latents": 32,
    "d_latents": 16,
    "d_model": 16,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 1,
    "num_cross_attention_heads": 1,
}

# Tiny configurations. Square pictures are for those that take no others.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "BeitForImageClassification": _built("BeitConfig", (64, 96), **_PATCHES),
    "BitForImageClassification": _built(
        "BitConfig", embedding_size=8, hidden_sizes=(8, 16, 16, 24), depths=(1, 1, 1, 2), num_groups=4
    ),
    "CLIPForImageClassification": _built("CLIPConfig", _SQUARE, **_TWO_TOWERS),
    "ConvNextForImageClassification": _built("ConvNextConfig", **_CONVOLUTIONS),
    "ConvNextV2ForImageClassification": _built("ConvNextV2Config", **_CONVOLUTIONS),
    "CvtForImageClassification": _built("CvtConfig", embed_dim=(8, 16, 24), num_heads=(1, 2, 2), depth=(1, 2, 3)),
    "Data2VecVisionForImageClassification": _built("Data2VecVisionConfig", (64, 96), **_PATCHES),
    "DeiTForImageClassification": _built("DeiTConfig", (64, 96), **_PATCHES),
    "DeiTForImageClassificationWithTeacher": _built("DeiTConfig", (64, 96), **_PATCHES),
    "DinatForImageClassification": _built("DinatConfig", embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)),
    "Dinov2ForImageClassification": _built("Dinov2Config", (64, 96), **_PATCHES, image_size=64),
    "Dinov2WithRegistersForImageClassification": _built(
        "Dinov2WithRegistersConfig", (64, 96), **_PATCHES, image_size=64
    ),
    "DonutSwinForImageClassification": _built("DonutSwinConfig", (64, 96), **_WINDOWS),
    "EfficientNetForImageClassification": _built(
        "EfficientNetConfig", width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=320
    ),
    "FocalNetForImageClassification": _built(
        "FocalNetConfig",
        (64, 96),
        embed_dim=8,
        depths=(1, 1, 2),
        hidden_sizes=(8, 16, 32),
        focal_levels=(2, 2, 2),
        focal_windows=(3, 3, 3),
    ),
    "HGNetV2ForImageClassification": _built(
        "HGNetV2Config",
        stem_channels=(3, 8, 8),
        stage_in_channels=(8, 16, 24, 32),
        stage_mid_channels=(8, 8, 8, 8),
        stage_out_channels=(16, 24, 32, 48),
        stage_num_blocks=(1, 1, 1, 1),
        hidden_sizes=(16, 24, 32, 48),
    ),
    "HieraForImageClassification": _built("HieraConfig", embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 2)),
    "IJepaForImageClassification": _built("IJepaConfig", (64, 96), **_PATCHES),
    "ImageGPTForImageClassification": _built("ImageGPTConfig", n_embd=16, n_layer=2, n_head=2),
    "LevitForImageClassification": _built("LevitConfig", (256, 256), **_LEVIT),
    "LevitForImageClassificationWithTeacher": _built("LevitConfig", (256, 256), **_LEVIT),
    "MetaClip2ForImageClassification": _built("MetaClip2Config", _SQUARE, **_TWO_TOWERS),
    "MobileNetV1ForImageClassification": _built(
        "MobileNetV1Config", depth_multiplier=0.25, classifier_dropout_prob=0.2
    ),
    "MobileNetV2ForImageClassification": _built("MobileNetV2Config", depth_multiplier=0.25),
    "MobileViTForImageClassification": _built(
        "MobileViTConfig",
        hidden_sizes=(12, 16, 24),
        neck_hidden_sizes=(4, 4, 8, 12, 16, 20, 32),
        num_attention_heads=2,
    ),
    "MobileViTV2ForImageClassification": _built("MobileViTV2Config", width_multiplier=0.25),
    "PPLCNetForImageClassification": _built("PPLCNetConfig", scale=0.25, class_expand=64),
    "PerceiverForImageClassificationConvProcessing": _built("PerceiverConfig", (64, 64), **_PERCEIVER),
    "PerceiverForImageClassificationFourier": _built("PerceiverConfig", (64, 64), **_PERCEIVER),
    "PerceiverForImageClassificationLearned": _built("PerceiverConfig", (64, 64), **_PERCEIVER),
    "PoolFormerForImageClassification": _built("PoolFormerConfig", **_CONVOLUTIONS),
    "PvtForImageClassification": _built("PvtConfig", _SQUARE, **_PYRAMID),
    "PvtV2ForImageClassification": _built("PvtV2Config", **_PYRAMID),
    "RegNetForImageClassification": _built("RegNetConfig", embedding_size=8, groups_width=4, **_CONVOLUTIONS),
    "ResNetForImageClassification": _built("ResNetConfig", embedding_size=8, layer_type="basic", **_CONVOLUTIONS),
    "SegformerForImageClassification": _built("SegformerConfig", **_PYRAMID),
    "ShieldGemma2ForImageClassification": _built(
        "ShieldGemma2Config",
        vision_config={**_PATCHES, "image_size": 128},
        text_config={**_TEXT, "head_dim": 8},
        mm_tokens_per_image=16,
    ),
    "Siglip2ForImageClassification": _built(
        "Siglip2Config", vision_config={**_PATCHES, "num_patches": 16}, text_config=_TEXT
    ),
    "SiglipForImageClassification": _built("SiglipConfig", _SQUARE, **_TWO_TOWERS),
    "SwiftFormerForImageClassification": _built("SwiftFormerConfig", embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 2)),
    "SwinForImageClassification": _built("SwinConfig", (64, 96), **_WINDOWS),
    "Swinv2ForImageClassification": _built("Swinv2Config", (64, 96), **_WINDOWS),
    "TextNetForImageClassification": _built("TextNetConfig", hidden_sizes=(8, 8, 16, 16, 24), stem_out_channels=8),
    "ViTForImageClassification": _built("ViTConfig", (64, 96), **_PATCHES),
    "ViTMSNForImageClassification": _built("ViTMSNConfig", (64, 96), **_PATCHES),
}


def _timm_families() -> list[Family]:
    """One for each module of the timm that is installed; what the table does not know, by its first architecture."""
    return [Family("timm", name, **(TIMM.get(name) or _first_of(name))) for name in timm.list_modules()]


def _first_of(module: str) -> dict[str, Any]:
    return _as_it_is(timm.list_models(module=module)[0])


def _as_it_is(architecture: str) -> dict[str, Any]:
    _, height, width = timm.get_pretrained_cfg(architecture).input_size
    return {"model": architecture, "size": (height, width)}


def _transformers_families() -> list[Family]:
    """One for each class that the installed transformers has for pictures; timm's wrapper is timm's."""
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    classes = {name for names in known for name in ([names] if isinstance(names, str) else names)}
    return [Family("transformers", name, **TRANSFORMERS[name]) for name in sorted(classes & set(TRANSFORMERS))]


def families(pattern: str | None = None) -> list[Family]:
    """
    The families, and the model that stands for each.

    Args:
        pattern (`str`, *optional*): with the wildcards of a shell, upper and lower case being the same, of families
            (`"swin*"`) or of their models; where it fits none, of architectures of timm (`"resnet50*"`), each of which
            is then taken as it is, at its own size.

    Returns:
        `list` of [`Family`]: timm's, then those of transformers, by name.

    Raises:
        ValueError: for a pattern that fits nothing, with the nearest name.
    """
    known = _timm_families() + _transformers_families()
    if pattern is None:
        return known
    wanted = pattern.lower()
    found = [one for one in known if any(fnmatchcase(name.lower(), wanted) for name in (one.name, one.model))]
    if found:
        return found
    architectures = [name for name in timm.list_models() if fnmatchcase(name.lower(), wanted)]
    if not architectures:
        names = [one.name for one in known] + [one.model for one in known] + timm.list_models()
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]
        raise ValueError(
            f'pattern="{pattern}" fits no family, no model of one and no architecture of timm; did you mean "{near}"? '
            "Wildcards are those of a shell: resnet*."
        )
    return [Family("timm", _module_of(name), **_as_it_is(name)) for name in architectures]


def _module_of(architecture: str) -> str:
    return timm.model_entrypoint(architecture).__module__.rpartition(".")[2]


def build(family: Family, seed: int = 0) -> PreTrainedModel:
    """
    Builds the model that stands for a family: random weights, three labels, in evaluation mode.

    Args:
        family ([`Family`]): which.
        seed (`int`, *optional*, defaults to 0): of the weights; the global generators are left as they were.

    Returns:
        `PreTrainedModel`

    Raises:
        What [`as_classifier`] raises, and the library: `ImportError` for a package that is not installed.
    """
    with preserve_rng():
        torch.manual_seed(seed)
        if family.library == "timm":
            model = as_classifier(family.model, num_labels=NUM_LABELS, image_size=family.size, **family.arguments)
        else:
            # A configuration stands for one class of transformers, and two of them have another beside it.
            config = getattr(transformers, family.model)(num_labels=NUM_LABELS, **family.arguments)
            if hasattr(config, "image_size") and "image_size" not in family.arguments:
                height, width = family.size
                config.image_size = height if height == width else (height, width)
            model = as_classifier(getattr(transformers, family.name)(config), num_labels=NUM_LABELS)
    return model.eval()
