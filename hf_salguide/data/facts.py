"""What reading the rows of a data set shows, one row at a time."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from .collator import SaliencyCollator
from .images import DEEP_RANGES, is_missing, load_picture, load_saliency, open_image
from .prepare import row_name
from .report import CheckReport, Problem
from .transforms import read_annotators

_SHOWN = 5
_FAINT = 16  # of 255: label ids, not saliency, as a rule


@dataclass
class RowFacts:
    """What reading rows has shown so far."""

    problems: list[Problem] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    annotated: Counter[tuple[str, str]] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    depths: dict[int, str] = field(default_factory=dict)
    digests: dict[bytes, list[tuple[str, str]]] = field(default_factory=dict)
    read: int = 0
    constant: int = 0
    resized: int = 0

    def error(self, file: str | None, message: str) -> None:
        self.problems.append(Problem("error", file, message, ""))

    def warning(self, file: str | None, message: str, remedy: str) -> None:
        self.problems.append(Problem("warning", file, message, remedy))

    def add(self, row: Mapping[str, Any], place: str, split: str, label: str) -> None:
        """Reads one row."""
        self.rows[split, label] += 1
        name = row_name(row) or place
        if "pixel_values" in row:
            self._prepared(row, name, split, label)
            return
        size = None
        try:
            size = self._picture(row, name, split)
        except ValueError as error:
            self.error(name, str(error))
        if not is_missing(row.get("saliency")):
            self.annotated[split, label] += 1
            try:
                self._saliency(row["saliency"], size, name, label)
            except ValueError as error:
                self.error(name, f"saliency: {error}")

    def _picture(self, row: Mapping[str, Any], name: str, split: str) -> tuple[int, int]:
        opened = open_image(row["image"])
        self.modes[opened.mode if isinstance(opened, PILImage.Image) else str(getattr(opened, "dtype", ""))] += 1
        picture = load_picture(opened, 3)
        if picture.is_floating_point() and isinstance(opened, PILImage.Image) and opened.mode != "F":
            high = float(np.asarray(opened).max())
            self.depths.setdefault(next(limit for limit in DEEP_RANGES if high <= limit), name)
        self._note(picture, name, split)
        self.sizes[f"{picture.shape[2]} × {picture.shape[1]}"] += 1
        return picture.shape[1], picture.shape[2]

    def _note(self, picture: torch.Tensor, name: str, split: str) -> None:
        self.read += 1
        if bool((picture == picture[:, :1, :1]).all()):
            self.constant += 1
            self.warning(name, "the picture is constant", "replace the file or drop the row")
        digest = hashlib.blake2b(str(tuple(picture.shape)).encode(), digest_size=16)
        digest.update(picture.contiguous().numpy().tobytes())
        self.digests.setdefault(digest.digest(), []).append((split, name))

    def _saliency(self, value: Any, size: tuple[int, int] | None, name: str, label: str) -> None:
        maps = load_saliency(value) if size is None else read_annotators(value, size)[0]
        if size is not None and any(tuple(saliency.shape) != size for saliency in maps):
            self.resized += 1
        for saliency in maps:
            high = int(saliency.max()) if saliency.dtype == torch.uint8 else 255
            if 0 < high < _FAINT:
                self.warning(
                    name,
                    f"the saliency map's brightest value is {high} of 255",
                    "if the values are label ids, write 255 where the picture is salient",
                )
        if all(float(saliency.max()) == 0 for saliency in maps):
            self.empty[label] += 1

    def _prepared(self, row: Mapping[str, Any], name: str, split: str, label: str) -> None:
        try:
            batch = SaliencyCollator()([row])
        except ValueError as error:
            self.error(name, str(error))
            return
        pixels = batch["pixel_values"][0]
        if not bool(torch.isfinite(pixels).all()):
            self.error(name, "pixel_values has NaN or infinite values; mend the transform.")
            return
        self.sizes[f"{pixels.shape[2]} × {pixels.shape[1]}"] += 1
        self._note(pixels, name, split)
        if bool(batch["has_saliency"][0]):
            self.annotated[split, label] += 1
            if int(batch["saliency"].max()) == 0:
                self.empty[label] += 1

    def report(self) -> CheckReport:
        """Draws the conclusions that need all rows."""
        if self.read > 1 and self.constant == self.read:
            self.error(None, f"all {self.read} pictures that were read are constant; nothing can be learnt from them.")
        labels = {label for _, label in self.rows if label}
        if sum(self.empty.values()) and len(self.empty) == 1 and len(labels) > 1:
            only = next(iter(self.empty))
            self.warning(
                None,
                f'all {sum(self.empty.values())} empty masks have the label "{only}": the mask gives the class away',
                'keep empty_mask="skip", or leave mask_file_name empty (not annotated) for these rows',
            )
        with_maps = {label for (_, label), count in self.annotated.items() if count}
        if len(with_maps) == 1 and len(labels) > 1:
            self.warning(
                None,
                f'only rows with the label "{next(iter(with_maps))}" are annotated: annotation gives the class away',
                "avoid methods that transform the inputs, or annotate the other classes too",
            )
        if self.resized:
            self.warning(
                None,
                f"{self.resized} annotated pictures have a map of another size, which is resized to the picture's",
                "nothing needs doing if the maps cover the whole picture",
            )
        if len(self.depths) > 1:
            described = ", ".join(f"{limit} ({name})" for limit, name in sorted(self.depths.items()))
            self.warning(
                None,
                f"deep pictures fall on different scales: {described}, so their brightness cannot be compared",
                "save all pictures with one scale (divided by one constant, in 8 bits for example), or in Python give "
                "the trainer transforms from make_transforms with bit_depth=",
            )
        for copies in self.digests.values():
            if len({split for split, _ in copies}) > 1:
                listed = ", ".join(f"{name} ({split})" for split, name in copies[:_SHOWN])
                self.warning(
                    copies[0][1],
                    f"the same picture stands in several splits: {listed}",
                    "keep it in one split: testing on training pictures flatters",
                )
        repeats = sum(len(copies) - 1 for copies in self.digests.values())
        self.problems.sort(key=lambda problem: problem.severity)
        return CheckReport(self.problems, self._summary(repeats))

    def _summary(self, repeats: int) -> dict[str, Any]:
        splits = list(dict.fromkeys(split for split, _ in self.rows))
        per_split = {split: {label: n for (home, label), n in self.rows.items() if home == split} for split in splits}
        share = {
            split: {label: round(self.annotated[split, label] / count, 4) for label, count in counts.items()}
            for split, counts in per_split.items()
        }
        return {
            "rows": per_split,
            "annotated_share": share,
            "empty_masks": dict(self.empty),
            "picture_sizes": dict(self.sizes.most_common(10)),
            "picture_modes": dict(self.modes),
            "resized_maps": self.resized,
            "constant_pictures": self.constant,
            "repeated_pictures": repeats,
        }
