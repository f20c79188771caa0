"""Class activation maps, in the scale of the logit.

All three give, for a head that averages the map and applies one linear layer, the same map, and its spatial mean
plus the head's bias is the logit. They are differentiable with respect to features, gradients and weights alike.
"""

from torch import Tensor


def class_activation_map(features: Tensor, weights: Tensor) -> Tensor:
    """
    The class activation map, `CAM[b] = sum_c weights[b, c] * features[b, c]`.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. No bias, no ReLU.

    Args:
        features (`Tensor` of shape `(B, C, h, w)`): the tensor that the head pools.
        weights (`Tensor` of shape `(B, C)`): for each sample, the head's weights of the class that is explained, or
            any linear combination of the classes' weights.

    Returns:
        `Tensor` of shape `(B, h, w)`, signed.
    """
    batch, channels, height, width = features.shape
    # bmm: einsum("bchw,bc->bhw") is up to twice as slow on a CPU, forward and backward.
    return (weights.unsqueeze(1) @ features.reshape(batch, channels, height * width)).reshape(batch, height, width)


def grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """
    Grad-CAM times the number of cells: the gradient's spatial sum weights the channels.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV
    2017. No ReLU; multiplied by `h * w`, so that it equals the class activation map where the head is an average and
    a linear layer.

    Args:
        features (`Tensor` of shape `(B, C, h, w)`): the feature map.
        gradients (`Tensor` of shape `(B, C, h, w)`): the gradient of the explained logit with respect to it.

    Returns:
        `Tensor` of shape `(B, h, w)`, signed.
    """
    return class_activation_map(features, gradients.sum(dim=(2, 3)))


def hirescam(features: Tensor, gradients: Tensor) -> Tensor:
    """
    HiResCAM times the number of cells: the gradient weights each cell of each channel.

    Source: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks", 2020. No ReLU; multiplied by `h * w` as [`grad_cam`] is.

    Args:
        features (`Tensor` of shape `(B, C, h, w)`): the feature map.
        gradients (`Tensor` of shape `(B, C, h, w)`): the gradient of the explained logit with respect to it.

    Returns:
        `Tensor` of shape `(B, h, w)`, signed.
    """
    height, width = features.shape[-2:]
    return (features * gradients).sum(dim=1) * (height * width)
