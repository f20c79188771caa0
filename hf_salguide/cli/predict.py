"""`hf-salguide predict`."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data import load_pictures
from .common import class_names, load_model, table, writable
from .parsing import parse

if TYPE_CHECKING:
    from ..studies.predictions import Predictions


@dataclass
class PredictArguments:
    """Which pictures, by which model."""

    data: str = field(metadata={"help": "Folder of pictures, with metadata.csv or .jsonl or without."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the pictures (default: found)."})
    label_column: str | None = field(default=None, metadata={"help": "Column with the labels (default: found)."})
    model: str = field(default="", metadata={"help": "Folder or Hub id of a trained model."})
    output_dir: str = field(default="predictions", metadata={"help": "Where scores.csv and maps.npz are written."})
    batch_size: int = field(default=32, metadata={"help": "Pictures a forward."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read pictures."})


def run(argv: Sequence[str]) -> int:
    """Scores (CSV) and maps (npz) of a folder of pictures, labelled or not."""
    (args,) = parse([PredictArguments], argv, "predict", run.__doc__ or "", "data")
    from ..studies.predictions import predict

    output = writable("output_dir", args.output_dir, folder=True)
    model = load_model(args.model)
    names = class_names(model)
    dataset = load_pictures(args.data, names, args.image_column, args.label_column)
    predictions = predict(model, dataset, "predicted", args.batch_size, args.num_workers)
    write(predictions, names, output)
    counts = np.bincount(predictions.probabilities.argmax(axis=1), minlength=len(names))
    print(table(["predicted", "pictures"], list(zip(names, counts.tolist(), strict=True))))
    print(f"Scores in {output / 'scores.csv'}")
    print(f"Maps of the predicted class, {predictions.maps.shape}, in {output / 'maps.npz'}")
    return 0


def write(predictions: "Predictions", names: list[str], output: Path) -> None:
    """Writes `scores.csv` and `maps.npz`: both under other names first, so that neither is ever half written."""
    output.mkdir(parents=True, exist_ok=True)
    labels = predictions.labels
    scores_part, maps_part = output / "scores.csv.part", output / "maps.part.npz"
    with scores_part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "predicted", *(["label"] if labels is not None else []), *names])
        for row, (name, scores) in enumerate(zip(predictions.file_names, predictions.probabilities, strict=True)):
            label = [names[labels[row]]] if labels is not None else []
            writer.writerow([name, names[scores.argmax()], *label, *(f"{score:.6f}" for score in scores)])
    np.savez_compressed(maps_part, file_names=np.array(predictions.file_names), maps=predictions.maps)
    scores_part.replace(output / "scores.csv")
    maps_part.replace(output / "maps.npz")
