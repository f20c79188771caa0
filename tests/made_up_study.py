"""A made-up comparison and its analysis, for the tests of what is drawn and written of them."""

import math
from pathlib import Path

import numpy as np

from hf_salguide.studies.comparison.findings import Analysis, ArmResult, Control, Correlation
from hf_salguide.studies.comparison.records import Arm, RunRecord, Study

ARMS = (
    Arm("none"),
    Arm("cyborg"),
    Arm("divisive_difference"),
    Arm("divisive_complement"),
    Arm("divisive_divergence"),
    Arm("gradmask"),
    Arm("actdiff"),
    Arm("sage"),
    Arm("masked_input"),
    Arm("cyborg", "inverted"),
    Arm("cyborg", "random"),
)
FOLDER = Path("/home/some body/studies/runs")
ERROR = f"FloatingPointError: the loss is not finite at step 12; see {FOLDER}/x/log.txt and /tmp/dump.bin"
NAN = math.nan
BASES = {"test": 0.85, "ood": 0.57}


def make_study(
    arms=ARMS, seeds=5, fractions=(1.0,), backbones=("resnet18",), out=True, failing=(("gradmask", 1),), name="lungs"
):
    """A study whose figures are drawn at random, the same every time; `failing`: pairs of an arm's name and a seed."""
    splits = ["test", "ood"] if out else ["test"]
    runs = []
    for backbone in backbones:
        for fraction in fractions:
            for index, arm in enumerate(arms):
                for seed in range(seeds):
                    share = 1.0 if arm.method in ("none", "cam_entropy") else fraction
                    generator = np.random.default_rng([index, seed, int(100 * share), backbones.index(backbone)])
                    metrics = {split: _figures(generator, BASES[split], index * share) for split in splits}
                    folder = FOLDER / f"{arm.method}_{arm.saliency}_{backbone}_{share:g}_seed{seed}"
                    failed = (arm.name, seed) in failing
                    own = {"guidance_weight": 0.5} if index == 1 else {}
                    runs.append(
                        RunRecord(
                            arm=arm,
                            seed=seed,
                            annotated_fraction=fraction,
                            backbone=backbone,
                            status="failed" if failed else "done",
                            error=f"{ERROR}\nTraceback" if failed else "",
                            seconds=12.5,
                            hyperparameters={"learning_rate": 0.001, **own},
                            metrics={} if failed else metrics,
                            folder=folder,
                        )
                    )
    return Study(_settings(name, arms, seeds, fractions, backbones, out), runs)


def _figures(generator, base, gain):
    energy = float(generator.uniform(0.2, 0.5) + 0.02 * gain)
    return {
        "auroc": float(min(1.0, base + 0.012 * gain + 0.03 * generator.normal())),
        "energy_inside": energy,
        "difference_energy_inside": float(0.9 * energy + 0.03 * generator.normal()),
    }


def _settings(name, arms, seeds, fractions, backbones, out):
    facts = {"pictures": 138, "annotated": 121, "classes": {"normal": 80, "tuberculosis": 58}}
    names = ["train", "validation", "test", *(["ood"] if out else [])]
    return {
        "name": name,
        "metric": "auroc",
        "class_names": ["normal", "tuberculosis"],
        "backbones": {backbone: {} for backbone in backbones},
        "pretrained": False,
        "image_size": 96,
        "splits": {"train": "train", "validation": "validation", "in": "test", "out": "ood" if out else None},
        "rows": dict.fromkeys(names, facts),
        "columns": {"split_column": "split"},
        "methods": [arm.method for arm in arms if not arm.is_control],
        "controls": {kind: [arm.method for arm in arms if arm.saliency == kind] for kind in ("inverted", "random")},
        "seeds": list(range(seeds)),
        "annotated_fractions": list(fractions),
        "training": {"num_train_epochs": 30, "learning_rate": 0.001, "warmup_ratio": None},
        "method_arguments": {"cyborg": {"guidance_weight": 0.5}},
        "budget": "Every method, plain training included, had a budget of one configuration.",
        "versions": {"hf_salguide": "0.1.0", "torch": "2.15.0"},
    }


def make_analysis(study, notes=("gradmask with seed 1 failed.",)):
    """The figures of a study; intervals and p-values are made up."""
    roles = [role for role in ("in", "out") if study.settings["splits"][role]]
    conditions = list(dict.fromkeys((run.backbone, run.annotated_fraction) for run in study.runs))
    arms = list(dict.fromkeys(run.arm for run in study.runs))
    comparisons = [
        _comparison(study, role, arm, *condition) for role in roles for condition in conditions for arm in arms
    ]
    failures = {run.folder: run for run in study.runs if run.status == "failed"}
    return Analysis(
        metric="auroc",
        level=0.95,
        comparisons=tuple(comparisons),
        controls=tuple(_control(role, arm, *conditions[0]) for role in roles for arm in arms if arm.is_control),
        correlations=tuple(
            _correlation(role, alignment, backbone)
            for backbone in dict.fromkeys(backbone for backbone, _ in conditions)
            for role in roles
            for alignment in ("energy_inside", "difference_energy_inside")
        ),
        failures=tuple(failures.values()),
        notes=tuple(notes),
    )


def _comparison(study, role, arm, backbone, fraction):
    split = study.settings["splits"][role]
    of = {
        kind: {
            run.seed: run.metrics[split]["auroc"]
            for run in study.runs
            if (run.arm, run.backbone, run.annotated_fraction, run.status) == (kind, backbone, fraction, "done")
        }
        for kind in (arm, ARMS[0])
    }
    values = np.array(list(of[arm].values()))
    differences = np.array([value - of[ARMS[0]][seed] for seed, value in of[arm].items()])
    count = len(values)
    tested = count > 1 and not arm.is_plain
    error = float(differences.std(ddof=1) / math.sqrt(count)) if tested else NAN
    mean = float(values.mean()) if count else NAN
    difference = NAN if arm.is_plain or not count else float(differences.mean())
    p_value = (0.0004 if arm.method == "sage" else 0.031) if tested else NAN
    return ArmResult(
        arm=arm,
        split=role,
        backbone=backbone,
        annotated_fraction=fraction,
        seeds=count,
        failed=sum(
            (run.arm, run.backbone, run.annotated_fraction, run.status) == (arm, backbone, fraction, "failed")
            for run in study.runs
        ),
        mean=mean,
        low=mean - 0.031,
        high=mean + 0.029,
        difference=difference,
        difference_low=difference - 2.2 * error,
        difference_high=difference + 2.1 * error,
        p_value=p_value,
        p_holm=8 * p_value,
        family=8,
        p_signed_rank=NAN,
        smallest_difference=3.1 * error,
        smallest_difference_holm=4.7 * error,
        values=tuple(values.tolist()),
    )


def _control(role, arm, backbone, fraction):
    return Control(
        arm=Arm(arm.method),
        control=arm,
        split=role,
        backbone=backbone,
        annotated_fraction=fraction,
        seeds=5,
        difference=-0.018,
        low=-0.053,
        high=0.014,
        p_value=0.312,
        p_holm=0.624,
        family=2,
        smallest_difference=0.047,
    )


def _correlation(role, alignment, backbone):
    return Correlation(
        split=role,
        alignment_split=role,
        alignment=alignment,
        backbone=backbone,
        runs=54,
        left_out=0,
        arms=11,
        pearson=0.213,
        low=-0.072,
        high=0.461,
        within_arms=-0.354,
        within_low=-0.601,
        within_high=-0.017,
    )
