"""What tests of methods with views share: a tiny smooth model in float64, run on pictures and views, and oracles."""

import torch
from torch import nn

from hf_salguide.guidance.base import GuidanceBatch, Pictures, View
from hf_salguide.names import POOLED

SIZE = (3, 4, 5)  # channels, height, width


class TinyNetwork(nn.Module):
    """Smooth everywhere: a feature map `"stem"`, the pooled vector and the logits, in float64."""

    def __init__(self, classes, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5)

        self.mix, self.embed, self.head = normal(2, 3), normal(6, 40), normal(classes, 6)

    def forward(self, pictures):
        stem = torch.tanh(torch.einsum("oc,bchw->bohw", self.mix, pictures))
        pooled = torch.tanh(stem.flatten(1) @ self.embed.T)
        return pooled @ self.head.T, {"stem": stem, POOLED: pooled}


def uniform_of(count, seed=0):
    """A stand-in for keyed numbers: the same on every call, each row its own."""
    table = torch.rand(count, 2048, generator=torch.Generator().manual_seed(seed))
    return lambda number: table[:, :number]


def example(classes=3, seed=0):
    """Six pictures with soft, partial (1 and 4 are not annotated), empty (2) and full (3) saliency; and labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(6, *SIZE, generator=generator, dtype=torch.float64)
    saliency = torch.rand(6, *SIZE[1:], generator=generator, dtype=torch.float64)
    saliency[0, :2] = (saliency[0, :2] > 0.5).double()
    saliency[5, 0, 0] = 0.5
    saliency[2], saliency[3], saliency[1], saliency[4] = 0, 1, 0, 0
    annotated = torch.tensor([True, False, True, True, False, True])
    return Pictures(pixels, saliency, annotated, uniform_of(6, seed)), torch.arange(6) % classes


def run(method, network, pictures, labels, training=True):
    """The batch that a method is handed: the network sees the pictures, and the views of the rows that count."""
    rows = pictures.annotated.nonzero().squeeze(1)
    views = method.views(pictures.rows(rows)) if len(rows) else []
    logits, features = network(pictures.pixel_values)
    return GuidanceBatch(
        logits=logits,
        labels=labels,
        saliency=pictures.saliency,
        annotated=pictures.annotated,
        map_of=None,
        features=features,
        views=[View(*network(view)) for view in views],
        training=training,
    )


def gradients_of(network, total):
    network.zero_grad()
    total.backward()
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in network.named_parameters()
    }


def assert_same_gradients(network, total, expected):
    """Both totals, and their gradients with respect to every parameter of the network, to 1e-6 relative."""
    torch.testing.assert_close(total.detach(), expected.detach(), rtol=1e-6, atol=1e-12)
    actual, wanted = gradients_of(network, total), gradients_of(network, expected)
    assert any(value.abs().max() > 1e-3 for value in wanted.values())
    for name, value in actual.items():
        assert (value - wanted[name]).norm() <= 1e-6 * wanted[name].norm() + 1e-12, name


# ---- Oracles: loops over pixels, with none of the library's code ----


def loop_permuted(picture, numbers, movable):
    """The k-th movable pixel, in reading order, becomes the one with the k-th smallest number."""
    height, width = picture.shape[1:]
    places = [(i, j) for i in range(height) for j in range(width) if movable[i][j]]
    by_number = sorted(places, key=lambda place: float(numbers[place[0] * width + place[1]]))
    permuted = picture.clone()
    for (i, j), (k, m) in zip(places, by_number, strict=True):
        permuted[:, i, j] = picture[:, k, m]
    return permuted


def loop_blended(saliency, salient, other):
    blended = torch.empty_like(salient)
    for i in range(salient.shape[1]):
        for j in range(salient.shape[2]):
            blended[:, i, j] = saliency[i, j] * salient[:, i, j] + (1 - saliency[i, j]) * other[:, i, j]
    return blended


def loop_degraded(picture, saliency, numbers):
    """`x~ = S * x + (1 - S) * P(x)`; `P` permutes the pixels with `S < 1/2`."""
    movable = [[float(value) < 0.5 for value in line] for line in saliency]
    return loop_blended(saliency, picture, loop_permuted(picture, numbers, movable))
