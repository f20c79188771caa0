"""A smooth network in float64 whose input gradient is written out by hand, for the tests of gradient methods."""

import torch

from hf_salguide.guidance import GuidanceBatch
from hf_salguide.steps.gradients import double_backward

SIZE = (4, 6)
CHANNELS = 2


class SmoothNetwork(torch.nn.Module):
    """`z = W2 tanh(W1 x + b1) + b2` on flattened pictures."""

    def __init__(self, classes, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(classes)

        def draw(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.W1, self.b1 = draw(5, CHANNELS * SIZE[0] * SIZE[1]), draw(5)
        self.W2, self.b2 = draw(classes, 5), draw(classes)
        with torch.no_grad():
            self.W1 *= 0.1
            self.W2 *= scale

    def forward(self, pictures):
        return torch.tanh(pictures.flatten(1) @ self.W1.T + self.b1) @ self.W2.T + self.b2


def gradient_by_hand(network, picture, weights_of):
    """
    The gradient `[channel][row][column]` of a scalar of the logits, whose derivatives by the logits are
    `weights_of(logits)`: `sum_m (sum_k w_k W2[k, m]) (1 - h_m^2) W1[m, d]`, term by term.
    """
    values = picture.flatten()
    hidden = []
    for m in range(len(network.b1)):
        total = network.b1[m]
        for d in range(len(values)):
            total = total + network.W1[m, d] * values[d]
        hidden.append(torch.tanh(total))
    logits = []
    for k in range(len(network.b2)):
        total = network.b2[k]
        for m in range(len(hidden)):
            total = total + network.W2[k, m] * hidden[m]
        logits.append(total)
    weights = weights_of(logits)
    through = []
    for m in range(len(hidden)):
        total = sum(weights[k] * network.W2[k, m] for k in range(len(logits)))
        through.append(total * (1 - hidden[m] ** 2))
    rows, columns = SIZE
    return [
        [
            [
                sum(through[m] * network.W1[m, (c * rows + i) * columns + j] for m in range(len(hidden)))
                for j in range(columns)
            ]
            for i in range(rows)
        ]
        for c in range(CHANNELS)
    ]


def rows_of_every_kind(classes):
    """Pictures, labels, saliency and who is annotated: soft, not annotated, empty, soft, full."""
    generator = torch.Generator().manual_seed(10 + classes)
    pictures = torch.randn(5, CHANNELS, *SIZE, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, 0, 0, classes - 1, 1])
    saliency = torch.rand(5, *SIZE, generator=generator, dtype=torch.float64)
    saliency[1] = saliency[2] = 0
    saliency[4] = 1
    annotated = torch.tensor([True, False, True, True, True])
    return pictures, labels, saliency, annotated


def batch_of(network, pictures, labels, saliency, annotated, global_batch_size=1):
    """What a method sees of pictures, with the double backward as its engine."""
    pictures = pictures.clone().requires_grad_()
    logits = network(pictures)

    def gradient_penalty(scalar, penalty):
        return double_backward(logits, pictures, lambda raw: raw, scalar, penalty, create_graph=True)

    return GuidanceBatch(
        logits,
        labels,
        saliency,
        annotated,
        lambda weights: torch.zeros(len(labels), 1, 1),
        gradient_penalty=gradient_penalty,
        global_batch_size=global_batch_size,
    )


def batch_at_features(features, head, labels, saliency, annotated):
    """The same with respect to a map that the head averages, `head` being its weights `(K, C)`."""
    logits = features.mean(dim=(2, 3)) @ head.T

    def gradient_penalty(scalar, penalty):
        return double_backward(logits, features, lambda raw: raw, scalar, penalty, create_graph=True)

    return GuidanceBatch(
        logits,
        labels,
        saliency,
        annotated,
        lambda weights: torch.zeros(len(labels), 1, 1),
        gradient_penalty=gradient_penalty,
    )


def compare(network, terms, expected):
    """Terms and parameter gradients to 1e-6, relative; each row by a weight of its own, so that none hides."""
    torch.testing.assert_close(terms.detach(), torch.stack(expected).detach(), rtol=1e-6, atol=1e-12)
    importance = torch.arange(1, len(terms) + 1, dtype=torch.float64)
    parameters = list(network.parameters())
    found = torch.autograd.grad((importance * terms).sum(), parameters, allow_unused=True)
    total = sum(weight * value for weight, value in zip(importance, expected, strict=True))
    wanted = torch.autograd.grad(total, parameters, allow_unused=True)
    size = max(other.norm() for other in wanted if other is not None)
    compared = 0
    for one, other in zip(found, wanted, strict=True):
        if other is None or other.norm() < 1e-9 * size:  # zero up to rounding, as the bias's with two classes
            assert one is None or one.norm() < 1e-9 * size
            continue
        assert (one - other).norm() <= 1e-6 * other.norm()
        compared += 1
    assert compared >= 3
