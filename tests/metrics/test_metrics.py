"""Metrics against scikit-learn and loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hf_salguide.metrics import auroc, classification_metrics, energy_inside


def scores(count, classes, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return generator.integers(0, classes, count), probabilities.astype(np.float32)


def test_binary_auroc_is_the_share_of_ordered_pairs():
    labels, probabilities = scores(60, 2)
    pairs = [
        (first > second) + 0.5 * (first == second)
        for first in probabilities[labels == 1, 1]
        for second in probabilities[labels == 0, 1]
    ]
    assert auroc(labels, probabilities) == pytest.approx(np.mean(pairs))


def test_auroc_of_more_classes_is_one_versus_rest():
    labels, probabilities = scores(90, 4)
    expected = np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in range(4)])
    assert auroc(labels, probabilities) == pytest.approx(expected, abs=1e-6)


def test_auroc_is_undefined_when_a_class_is_missing():
    labels, probabilities = scores(10, 3)
    assert math.isnan(auroc(np.minimum(labels, 1), probabilities))


def test_classification_metrics():
    labels, probabilities = scores(80, 3)
    metrics = classification_metrics(labels, probabilities)
    predicted = probabilities.argmax(1)
    assert metrics["accuracy"] == pytest.approx((predicted == labels).mean())
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_balanced_accuracy_is_over_the_classes_that_occur():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.eye(3)[[0, 2, 1, 1]]
    assert classification_metrics(labels, probabilities)["balanced_accuracy"] == pytest.approx(0.75)


def test_energy_inside_is_the_share_of_positive_energy():
    maps = torch.tensor([[[1.0, -5.0], [2.0, 1.0]]])
    saliency = torch.tensor([[[1.0, 1.0], [0.5, 0.0]]])
    assert energy_inside(maps, saliency).item() == pytest.approx((1 + 0.5 * 2) / 4)


def test_energy_inside_upsamples_the_map_without_swapping_its_sides():
    maps = torch.zeros(1, 2, 4)
    maps[0, 0, 3] = 1.0
    saliency = torch.zeros(1, 8, 16)
    saliency[0, :4, 8:] = 1.0
    assert energy_inside(maps, saliency).item() > 0.8
    assert energy_inside(maps, saliency.flip(1)).item() < 0.2


def test_energy_inside_is_undefined_without_evidence_or_positive_map():
    maps = torch.stack([torch.ones(2, 2), -torch.ones(2, 2)])
    assert energy_inside(maps, torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])).isnan().all()
