"""The residual network of "Saliency is a Possible Red Herring", at any width, known to timm by a name."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

# Pictures keep their values in [0, 1]: what is masked with 0 is black, as the background is.
default_cfgs = generate_default_cfgs(
    {
        "red_herring_resnet18.untrained": {
            "num_classes": 2,
            "input_size": (1, 28, 28),
            "mean": (0.0,),
            "std": (1.0,),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


class RedHerringResNet(ResNet):
    """
    A ResNet-18 for small pictures: the first convolution is 3 × 3 with stride 1, and no pooling follows it.

    Args:
        width (`int`, *optional*, defaults to 64): channels of the first stage, an even number; the paper has 64. The
            further stages have 2, 4 and 8 times as many.
        in_chans (`int`, *optional*, defaults to 1): channels of a picture.
        kwargs (`Any`): go to timm's `ResNet`.
    """

    def __init__(self, width: int = 64, in_chans: int = 1, **kwargs: Any) -> None:
        # timm gives a deep stem 2 * stem_width channels, and any other stem 64.
        super().__init__(
            BasicBlock,
            (2, 2, 2, 2),
            in_chans=in_chans,
            stem_type="deep",
            stem_width=width // 2,
            channels=(width, 2 * width, 4 * width, 8 * width),
            zero_init_last=False,
            **kwargs,
        )
        self.conv1 = nn.Conv2d(in_chans, width, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()


@register_model
def red_herring_resnet18(pretrained: bool = False, **kwargs: Any) -> RedHerringResNet:
    """[`RedHerringResNet`] for `timm.create_model` and `as_classifier`; there are no pretrained weights."""
    return build_model_with_cfg(RedHerringResNet, "red_herring_resnet18", pretrained, **kwargs)
