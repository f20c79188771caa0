"""`hf-salguide predict`."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, concatenate_datasets

from ..data import load_saliency_dataset
from .common import load_model, table
from .parsing import parse

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")


@dataclass
class PredictArguments:
    """Which pictures, by which model."""

    data: str = field(metadata={"help": "Folder of pictures, with metadata.csv or .jsonl or without."})
    model: str = field(default="", metadata={"help": "Folder or Hub id of a trained model."})
    output_dir: str = field(default="predictions", metadata={"help": "Where scores.csv and maps.npz are written."})
    batch_size: int = field(default=32, metadata={"help": "Pictures a forward."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read pictures."})


def run(argv: Sequence[str]) -> int:
    """Scores (CSV) and maps (npz) of a folder of pictures, labelled or not."""
    (args,) = parse([PredictArguments], argv, "predict", run.__doc__ or "", "data")
    from ..studies.predictions import predict

    if not args.model:
        raise ValueError("model: give the folder or Hub id of a trained model, --model FOLDER.")
    dataset = folder_of_pictures(args.data)
    model = load_model(args.model)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    predictions = predict(model, dataset, "predicted", args.batch_size, args.num_workers)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    labels = predictions.labels
    with (output / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "predicted", *(["label"] if labels is not None else []), *names])
        for row, (name, scores) in enumerate(zip(predictions.file_names, predictions.probabilities, strict=True)):
            label = [names[labels[row]]] if labels is not None else []
            writer.writerow([name, names[scores.argmax()], *label, *(f"{score:.6f}" for score in scores)])
    np.savez_compressed(output / "maps.npz", file_names=np.array(predictions.file_names), maps=predictions.maps)
    counts = np.bincount(predictions.probabilities.argmax(axis=1), minlength=len(names))
    print(table(["predicted", "pictures"], list(zip(names, counts.tolist(), strict=True))))
    print(f"Scores in {output / 'scores.csv'}")
    print(f"Maps of the predicted class, {predictions.maps.shape}, in {output / 'maps.npz'}")
    return 0


def folder_of_pictures(path: str) -> Any:
    """
    The pictures of a folder: the rows of its metadata file, all splits together, or, without one, every picture below
    it, by name.

    Raises:
        ValueError: if it is no folder, or holds no picture.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f'data="{path}" is not a folder.')
    if any((folder / f"metadata.{kind}").is_file() for kind in ("csv", "jsonl")):
        return concatenate_datasets(list(load_saliency_dataset(path).values()))
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f'data="{path}" holds no picture ({", ".join(PICTURES)}).')
    rows = {"image": [str(file) for file in files], "file_name": [str(file.relative_to(folder)) for file in files]}
    return Dataset.from_dict(rows).cast_column("image", Image())
