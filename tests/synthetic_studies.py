"""Comparisons that were never run: scores drawn from a model whose truth is known."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, roc_auc_score

from hf_salguide.studies.comparison.records import Arm, RunRecord, SplitPredictions, Study

SPLITS = {"train": "train", "validation": "validation", "in": "test", "out": "ood"}


@dataclass(frozen=True)
class FakeRun(RunRecord):
    """A run whose predictions are in memory."""

    made: dict = field(default_factory=dict)

    def predictions(self, split):
        return self.made[split]


def fake_run(arm, seed, gains, separation=1.0, noise=0.5, fraction=1.0, backbone="resnet18", alignment=0.5, **kwargs):
    """
    A run whose scores are normal, apart by `separation` + `gains[split]`, on pictures that all runs share.

    `noise` is of the run and the picture together, in units of the pictures' own.
    """
    name = f"{arm.method}_{arm.saliency}_{backbone}_{fraction}_seed{seed}"
    made, metrics = {}, {"validation": {}}
    for split, gain in gains.items():
        made[split] = _predictions(name, split, separation + gain, noise, **kwargs)
        metrics[split] = _metrics(made[split], alignment)
    return FakeRun(
        arm=arm,
        seed=seed,
        annotated_fraction=fraction,
        backbone=backbone,
        status="done",
        error="",
        seconds=1.0,
        hyperparameters={},
        metrics=metrics,
        folder=Path("runs") / name,
        made=made,
    )


def _predictions(name, split, separation, noise, pictures=120, classes=2, groups=0, labels=None):
    shared = np.random.default_rng([7, len(split)])
    own = np.random.default_rng([*name.encode(), *split.encode()])
    labels = np.arange(pictures) % classes if labels is None else np.asarray(labels)
    scores = shared.standard_normal((len(labels), classes)) + noise * own.standard_normal((len(labels), classes))
    scores[np.arange(len(labels)), labels] += separation
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    names = [str(index) for index in range(len(labels))]
    subjects = np.array([f"s{index // groups}" for index in range(len(labels))]) if groups else None
    return SplitPredictions(
        probabilities, labels, subjects, np.ones(len(labels), bool), {}, np.zeros((len(labels), 1, 1)), names
    )


def _metrics(predictions, alignment):
    labels, probabilities = predictions.labels, predictions.probabilities
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    every_class = len(np.unique(labels)) == probabilities.shape[1]
    return {
        "auroc": float(roc_auc_score(labels, scores, multi_class="ovr")) if every_class else float("nan"),
        "accuracy": float(accuracy_score(labels, probabilities.argmax(axis=1))),
        "energy_inside": alignment,
        "difference_energy_inside": 1 - alignment,
    }


def failed_run(arm, seed, error="ValueError: the loss is not finite", fraction=1.0, backbone="resnet18"):
    folder = Path("runs") / f"{arm.method}_{arm.saliency}_{backbone}_{fraction}_seed{seed}"
    return FakeRun(arm, seed, fraction, backbone, "failed", error, 1.0, {}, {}, folder)


def study_of(runs, splits=SPLITS, missing=0, **settings):
    fixed = {
        "name": "decoys",
        "metric": "auroc",
        "splits": splits,
        "budget": "Every method, plain training included, had a budget of one configuration.",
        "rows": {"train": {"pictures": 100, "annotated": 100}},
    }
    return Study({**fixed, **settings}, list(runs), missing)


def simple_study(gains, seeds=5, spread=0.05, splits=SPLITS, settings=None, **kwargs):
    """
    One study.

    Args:
        gains: by arm name (`"cyborg"`, `"cyborg/inverted"`), what is added to the separation in and out of
            distribution.
        spread: of a run's separation, by arm and seed.
    """
    generator = np.random.default_rng(3)
    roles = [role for role in ("in", "out") if splits.get(role)]
    runs = []
    for name, gain in {"none": (0.0, 0.0), **gains}.items():
        arm = Arm(*name.split("/"))
        for seed in range(seeds):
            wobble = spread * generator.standard_normal(2)
            by_split = {splits[role]: gain[i] + wobble[i] for i, role in enumerate(("in", "out")) if role in roles}
            alignment = 0.4 + 0.2 * (gain[1] + wobble[1])
            runs.append(fake_run(arm, seed, by_split, alignment=alignment, **kwargs))
    return study_of(runs, splits, **(settings or {}))


def shared_study(seeds=3, shares=(0.1, 1.0)):
    """One study as it is loaded: plain training and a method without annotation stand beside every share of it."""
    runs = []
    for seed in range(seeds):
        once = [
            fake_run(Arm("none"), seed, {"test": 0.0}, alignment=0.4 + 0.02 * seed),
            fake_run(Arm("cam_entropy"), seed, {"test": 0.2}, alignment=0.5 - 0.03 * seed),
        ]
        runs += [replace(run, annotated_fraction=share) for run in once for share in shares]
        runs += [
            fake_run(Arm("cyborg"), seed, {"test": 0.9 * share}, fraction=share, alignment=0.5 + 0.1 * share * seed)
            for share in shares
        ]
    return study_of(runs, {**SPLITS, "out": None}, annotated_fractions=list(shares))
