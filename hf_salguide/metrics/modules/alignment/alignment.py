"""Alignment of maps with human saliency, as a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from hf_salguide.metrics.alignment import alignment_metrics, alignment_summary

_DESCRIPTION = "How far a model's maps agree with human saliency: means over the pictures for which each is defined."

_INPUTS = """
Args:
    predictions: raw, signed maps, (B, h, w).
    references: human saliency in [0, 1], (B, H, W); zeros where a picture has no annotation.
Returns:
    what hf_salguide.metrics.alignment_summary gives: the means of energy_inside, iou, map_precision, map_recall,
    pointing_game, relevance_mass, relevance_rank, spearman, kl and similarity, and of how many pictures they are.
"""

_CITATION = """
@inproceedings{viviano2021saliency,
  title={Saliency is a Possible Red Herring When Diagnosing Poor Generalization},
  author={Viviano, Joseph D. and Simpson, Becks and Dutil, Francis and Bengio, Yoshua and Cohen, Joseph Paul},
  booktitle={International Conference on Learning Representations},
  year={2021}
}
"""


class Alignment(evaluate.Metric):
    """
    Measures each batch as it comes and keeps the measures alone: pictures and maps of any size, a hundred bytes each.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),  # the measures of one picture
            "references": datasets.Value("bool"),  # whether it is annotated
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Adds the maps and the saliency of a batch."""
        saliency = _tensor(references)
        measures = alignment_metrics(_tensor(predictions), saliency)
        rows = torch.stack(list(measures.values()), dim=1).double().cpu().numpy()
        annotated = (saliency > 0).flatten(1).any(dim=1).cpu().numpy()
        evaluate.Metric.add_batch(self, predictions=rows, references=annotated)

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Adds the map and the saliency of a picture."""
        self.add_batch(predictions=_tensor(prediction).unsqueeze(0), references=_tensor(reference).unsqueeze(0))

    def _compute(self, predictions: list[list[float]], references: list[bool]) -> dict[str, float]:
        names = alignment_metrics(torch.zeros(0, 1, 1), torch.zeros(0, 1, 1))
        columns = torch.tensor(predictions, dtype=torch.float64).unbind(dim=1)
        return alignment_summary(dict(zip(names, columns, strict=True)), annotated=references)


def _tensor(values: Any) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values))
