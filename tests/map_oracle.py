"""
Map methods in float64, one sample and one cell at a time, from their formulae and none of the library's code; and the
batches and the comparison that their tests share.
"""

import math

import torch

from hf_salguide.guidance import GuidanceBatch

GRID = (3, 4)
ROWS = 7
UNANNOTATED, EMPTY, FULL = 2, 4, 5  # the rows of a case that a method with a target leaves out


class Case:
    """
    Features, a linear head and saliency of a few pictures, all float64: soft saliency, a hard mask, an empty and a
    full one, and a row that is not annotated (and holds numbers that nobody may read).
    """

    def __init__(self, classes, seed=0, opposite=False):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.features = draw(ROWS, 5, *GRID).requires_grad_()
        head = draw(classes, 5)
        if opposite:
            head[1] = -head[0]
        self.head = head.requires_grad_()
        self.bias = draw(classes).requires_grad_()
        self.labels = torch.randint(0, classes, (ROWS,), generator=generator)
        self.saliency = torch.rand(ROWS, 6, 8, generator=generator, dtype=torch.float64)
        self.saliency[3] = (self.saliency[3] > 0.5).double()
        self.saliency[EMPTY] = 0.0
        self.saliency[FULL] = 1.0
        self.annotated = torch.ones(ROWS, dtype=torch.bool)
        self.annotated[UNANNOTATED] = False

    @property
    def leaves(self):
        return {"features": self.features, "head": self.head, "bias": self.bias}

    def batch(self, **changes):
        """What the library sees of the case."""
        logits = self.features.mean(dim=(2, 3)) @ self.head.T + self.bias

        def map_of(weights):
            return torch.einsum("bk,kc,bchw->bhw", weights, self.head, self.features)

        given = {"labels": self.labels, "saliency": self.saliency, "annotated": self.annotated, **changes}
        return GuidanceBatch(logits, map_of=map_of, **given)

    def cam(self, row, label):
        """The class activation map, rows of cells, no bias."""
        return [
            [sum(self.head[label, c] * self.features[row, c, i, j] for c in range(5)) for j in range(GRID[1])]
            for i in range(GRID[0])
        ]

    def logits(self, row):
        return [sum(map(sum, self.cam(row, k))) / (GRID[0] * GRID[1]) + self.bias[k] for k in range(len(self.bias))]

    def false_cam(self, row, rival="softmax"):
        """The map of the false class: the others' maps, weighted by numbers that carry no gradient."""
        label = int(self.labels[row])
        logits = [value.item() for value in self.logits(row)]
        others = [k for k in range(len(logits)) if k != label]
        if rival == "softmax":
            total = sum(math.exp(logits[k]) for k in others)
            shares = {k: math.exp(logits[k]) / total for k in others}
        elif rival == "max":
            shares = {max(others, key=lambda k: logits[k]): 1.0}
        else:
            shares = {k: 1 / len(others) for k in others}
        cams = {k: self.cam(row, k) for k in shares}
        return each(lambda i, j: sum(share * cams[k][i][j] for k, share in shares.items()))

    def target(self, row):
        """Saliency on the grid, each cell the mean of what it covers, before min-max."""
        high, wide = self.saliency.shape[1] // GRID[0], self.saliency.shape[2] // GRID[1]
        return each(lambda i, j: self.saliency[row, i * high : (i + 1) * high, j * wide : (j + 1) * wide].mean())


def each(function):
    return [[function(i, j) for j in range(GRID[1])] for i in range(GRID[0])]


def cells(values):
    return [cell for row in values for cell in row]


def min_max(values):
    low, high = min(cells(values)), max(cells(values))
    assert high - low > 1e-3 * max(abs(low), abs(high)), "the floor is tested elsewhere"
    return each(lambda i, j: (values[i][j] - low) / (high - low))


def positive_part(values):
    high = max(cells(values))
    assert high > 0
    return each(lambda i, j: max(values[i][j], 0 * values[i][j]) / high)


def mean_of(function, values, target):
    """The mean over the cells of `function(cell, cell of the target)`."""
    pairs = list(zip(cells(values), cells(target), strict=True))
    return sum(function(a, b) for a, b in pairs) / len(pairs)


def squared(values, target):
    return mean_of(lambda a, b: (a - b) ** 2, values, target)


def absolute(values, target):
    return mean_of(lambda a, b: abs(a - b), values, target)


def counting_rows():
    """The rows with a target that says something about the place."""
    return [row for row in range(ROWS) if row not in (UNANNOTATED, EMPTY, FULL)]


def check(guidance, case, term, rows=None):
    """
    The library's terms and gradients against `term(case, row)` in the rows that count, and 0 in the others.

    The terms are summed with a weight of its own for each row, so that no two rows can be mixed up.
    """
    rows = counting_rows() if rows is None else rows
    weights = torch.arange(1.0, ROWS + 1, dtype=torch.float64)
    expected = [term(case, row) if row in rows else torch.zeros((), dtype=torch.float64) for row in range(ROWS)]
    wanted = torch.autograd.grad(
        sum(weights[row] * expected[row] for row in rows), case.leaves.values(), allow_unused=True
    )
    terms = guidance.terms(case.batch())
    assert terms.shape == (ROWS,)
    assert terms.dtype == torch.float64
    given = torch.autograd.grad((weights * terms).sum(), case.leaves.values(), allow_unused=True)
    torch.testing.assert_close(terms, torch.stack(expected), rtol=1e-6, atol=1e-12)
    assert all(terms[row] == 0 for row in range(ROWS) if row not in rows)
    for name, one, other in zip(case.leaves, given, wanted, strict=True):
        if other is None or not other.any():
            assert one is None or not one.any(), name
            continue
        assert ((one - other).norm() / other.norm()) < 1e-6, name
        if name == "features":
            silent = [row for row in range(ROWS) if row not in rows]
            assert not one[silent].any()
            assert one[rows].flatten(1).any(dim=1).all()


def synthetic(maps, labels=None, saliency=None, annotated=None):
    """A batch whose class maps `(B, K, h, w)` are given; random soft saliency unless told otherwise."""
    count = len(maps)
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    if saliency is None:
        saliency = torch.rand(count, 6, 8, generator=torch.Generator().manual_seed(1)).to(maps.dtype)
    annotated = torch.ones(count, dtype=torch.bool) if annotated is None else annotated
    logits = maps.mean(dim=(2, 3))
    return GuidanceBatch(
        logits, labels, saliency, annotated, lambda weights: (weights[:, :, None, None] * maps).sum(1)
    )
