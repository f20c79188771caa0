"""What a comparison leaves on disk: one folder a run, the study's settings, and the table of its runs."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...guidance import PLAIN

SALIENCIES = ("human", "inverted", "random")
DONE, FAILED = "done", "failed"
RUNS, SEARCH = "runs", "search"
_RUN_FILE, STUDY_FILE = "run.json", "study.json"
_ALIGNMENT = "alignment_"


@dataclass(frozen=True, order=True)
class Arm:
    """
    One way of training.

    Attributes:
        method (`str`): the guidance method; `"none"` is plain training.
        saliency (`str`): what the method is told: the `"human"` saliency, the `"inverted"` one, or a `"random"` one.
            Plain training, which looks at none, has `"human"`.
    """

    method: str
    saliency: str = "human"

    @property
    def name(self) -> str:
        """As it is written in tables: `plain`, `cyborg`, `cyborg (inverted)`."""
        if self.method == PLAIN:
            return "plain"
        return self.method if self.saliency == "human" else f"{self.method} ({self.saliency})"

    @property
    def is_plain(self) -> bool:
        """Whether nothing guides the training."""
        return self.method == PLAIN

    @property
    def is_control(self) -> bool:
        """Whether the method is told something else than the human saliency."""
        return self.saliency != "human"


BASELINE = Arm(PLAIN)


@dataclass(frozen=True)
class SplitPredictions:
    """
    What one run's classifier makes of the `N` pictures of a split.

    Attributes:
        probabilities (`array` of shape `(N, K)`): softmax of the logits.
        labels (`array` of shape `(N,)`): true classes.
        groups (`array` of shape `(N,)`, *optional*): the subject, patient or tile that each picture is of, as text.
        annotated (`array` of shape `(N,)`): boolean, which pictures have saliency.
        alignment (`dict` of `array` of shape `(N,)`): agreement of the map with the saliency, picture by picture, NaN
            where it is not defined; `difference_...` is of the difference map.
        maps (`array` of shape `(N, h, w)`): map of the predicted class, signed, float16.
        file_names (`list`): the pictures' names where they are known, else their row numbers.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None
    annotated: np.ndarray
    alignment: dict[str, np.ndarray]
    maps: np.ndarray
    file_names: list[str]

    def save(self, path: Path) -> None:
        """Writes a compressed npz."""
        arrays: dict[str, Any] = {
            "probabilities": self.probabilities,
            "labels": self.labels,
            "annotated": self.annotated,
            "maps": self.maps,
            "file_names": np.array(self.file_names, dtype=np.str_),
            **{_ALIGNMENT + name: values for name, values in self.alignment.items()},
        }
        if self.groups is not None:
            arrays["groups"] = np.asarray(self.groups, dtype=np.str_)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "SplitPredictions":
        """Reads what [`save`] wrote; nothing is unpickled."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(
            probabilities=arrays["probabilities"],
            labels=arrays["labels"],
            groups=arrays.get("groups"),
            annotated=arrays["annotated"],
            alignment={
                name.removeprefix(_ALIGNMENT): values for name, values in arrays.items() if name.startswith(_ALIGNMENT)
            },
            maps=arrays["maps"],
            file_names=[str(name) for name in arrays["file_names"]],
        )


@dataclass(frozen=True)
class RunRecord:
    """
    One run and what came of it.

    Attributes:
        arm ([`Arm`]): the way of training.
        seed (`int`): of the initial weights, the order of the pictures, their augmentation and the method's draws.
        annotated_fraction (`float`): the share of the annotated training pictures whose saliency was used, 1 = all.
        backbone (`str`): the model's name.
        status (`"done"` or `"failed"`)
        error (`str`): why it failed, else empty.
        seconds (`float`): of training and judging, wall clock.
        hyperparameters (`dict`): what was set for this run.
        metrics (`dict`): figures by split: classification and alignment.
        folder (`Path`): where its predictions are.
        data_config (`dict`): how pictures were brought to the model, see [`~backbones.DataConfig`].
    """

    arm: Arm
    seed: int
    annotated_fraction: float
    backbone: str
    status: str
    error: str
    seconds: float
    hyperparameters: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    folder: Path
    data_config: Mapping[str, Any] = field(default_factory=dict)

    def predictions(self, split: str) -> SplitPredictions:
        """
        What the run predicted for a split's pictures.

        Raises:
            FileNotFoundError: if the run failed, or has not judged that split.
        """
        return SplitPredictions.load(predictions_file(self.folder, split))


@dataclass(frozen=True)
class Study:
    """
    A comparison's settings and its runs, failed ones included.

    Attributes:
        settings (`dict`): `name`, `metric`, `data`, `class_names`, `backbones`, `image_size`, `splits` (`in`, `out`),
            `rows`, `budget` and what else the report prints.
        runs (`list` of [`RunRecord`]): one for each planned run that was tried, in the order of the plan.
        missing (`int`): runs that are planned and were not tried yet.
    """

    settings: Mapping[str, Any]
    runs: list[RunRecord]
    missing: int = field(default=0)


def predictions_file(folder: Path, split: str) -> Path:
    """Where a run keeps its predictions of a split."""
    return folder / f"predictions-{split}.npz"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON beside its place and then moves it there, so that it is never half written; NaN becomes null."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(jsonable(content), indent=2) + "\n")
    os.replace(part, path)


def jsonable(value: Any) -> Any:
    """A value as JSON has it: NaN, which JSON does not have, is null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_run(record: RunRecord, configuration: Mapping[str, Any]) -> None:
    """Writes a run's result, the last thing that a run does: where it is, the run is over."""
    content = {name: value for name, value in vars(record).items() if name not in ("arm", "folder")}
    content |= {"method": record.arm.method, "saliency": record.arm.saliency, "configuration": configuration}
    write_json(record.folder / _RUN_FILE, content)


def read_run(folder: Path) -> tuple[RunRecord, dict[str, Any]] | None:
    """A run's result and its configuration; `None` where it is not over."""
    path = folder / _RUN_FILE
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    configuration = content.pop("configuration")
    arm = Arm(content.pop("method"), content.pop("saliency"))
    metrics = {
        split: {name: float("nan") if value is None else value for name, value in figures.items()}
        for split, figures in content.pop("metrics").items()
    }
    return RunRecord(arm=arm, metrics=metrics, folder=folder, **content), configuration


def write_study(output_dir: Path, settings: Mapping[str, Any], plan: Iterable[Mapping[str, Any]]) -> None:
    """Writes a comparison's settings and the runs that it consists of."""
    write_json(output_dir / STUDY_FILE, {"settings": settings, "plan": list(plan)})


def load_study(output_dir: str | Path) -> Study:
    """
    Reads a comparison's folder.

    Plain training, and every method that needs no annotation, is run once and stands beside every fraction of it.

    Args:
        output_dir (`str` or `Path`): the folder.

    Returns:
        [`Study`]

    Raises:
        FileNotFoundError: if the folder holds no comparison.
    """
    output_dir = Path(output_dir)
    path = output_dir / STUDY_FILE
    if not path.is_file():
        raise FileNotFoundError(f'"{output_dir}" holds no comparison ({STUDY_FILE} is not there).')
    content = json.loads(path.read_text())
    settings, runs, missing = content["settings"], [], 0
    for entry in content["plan"]:
        found = read_run(output_dir / RUNS / entry["folder"])
        if found is None:
            missing += 1
            continue
        runs += [dataclasses.replace(found[0], annotated_fraction=fraction) for fraction in entry["fractions"]]
    return Study(settings, runs, missing)
