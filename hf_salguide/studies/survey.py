"""What the resolver says of each family of backbones, whether it holds, and whether each kind of guidance trains."""

import copy
import gc
import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import timm
import torch
import transformers
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..backbones import FeatureLayer, resolve_feature_layer
from ..backbones.forward import REFUSALS
from ..rng import preserve_rng
from .layer_checks import BRIGHT, CUT, PLACES, awaken, completeness, cut_of, noise, places_found, reached_by
from .training_check import KINDS, MANY, PICTURES, train_step
from .zoo import Family, build

PLACED = 8  # pictures on which a bright object is put, whose changes are averaged
LARGE = 192  # pixels: of larger pictures none twice as large are tried, nor in networks of many parameters
COMPLETE = 1e-4
REACHED = 0.5
FOUND = 4  # of the places
SMALLEST_GRID = 4  # cells; on fewer, hardly any place can be missed by more than one


@dataclass(frozen=True)
class Row:
    """
    What was found for a family.

    Attributes:
        library, family, model (`str`), arguments (`dict`), size (`str`): see [`~studies.zoo.Family`].
        layer, layout, grid, channels, prefix, readout (`str`): of the [`FeatureLayer`], joined by `+` where the head
            reads several; empty where there is none.
        named (`bool`): whether the layer was named, because the resolver finds none.
        forwards (`int`, *optional*), seconds (`float`, *optional*): what the resolver took.
        forward_seconds (`float`, *optional*): of one forward of three pictures.
        square (`str`): the layer that the resolver finds on square pictures; empty where the model takes none.
        cut (`float`, *optional*): how much the logits change with the picture while the layer's output is that of
            another one, as a share of the change without: 0 for a layer through which everything passes.
        reached (`float`, *optional*): share of the positions at which the logits have a gradient.
        complete (`float`, *optional*): for an exact read-out, the largest relative error of
            `mean(map) + bias = logit`.
        found (`int`, *optional*): at how many of five places a bright object is where the features change most: a weak
            one or a strong one and, where those are fewer than four, on pictures of twice the size. Not measured on
            grids of fewer than 4 × 4 cells.
        trained (`dict`): for each kind of method empty, or why a step of training failed.
        reason (`str`): why no layer was found.
    """

    library: str
    family: str
    model: str
    arguments: Mapping[str, Any]
    size: str
    layer: str = ""
    layout: str = ""
    grid: str = ""
    channels: str = ""
    prefix: str = ""
    readout: str = ""
    named: bool = False
    forwards: int | None = None
    seconds: float | None = None
    forward_seconds: float | None = None
    square: str = ""
    cut: float | None = None
    reached: float | None = None
    complete: float | None = None
    found: int | None = None
    trained: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def faults(self) -> list[str]:
        """What of the layer does not hold."""
        faults = []
        if self.square and self.square != self.layer:
            faults.append(f"on square pictures the layer is {self.square}")
        if self.cut is not None and not self.cut <= CUT:
            faults.append(f"the logits change by {self.cut:.1%} past the layer")
        if self.reached is not None and not self.reached > REACHED:
            faults.append(f"the logits' gradient reaches {self.reached:.0%} of the positions")
        if self.complete is not None and not self.complete <= COMPLETE:
            faults.append(f"the map's mean and the bias miss the logit by {self.complete:.1e}")
        return faults

    @property
    def resolved(self) -> bool:
        """Whether the resolver found a layer that holds."""
        return bool(self.layer) and not self.named and not self.reason and not self.faults

    @property
    def displaced(self) -> bool:
        """Whether the features do not show where an object is."""
        return self.found is not None and self.found < FOUND


def survey(family: Family, train: bool = False) -> Row:
    """
    Builds the model of a family, resolves its feature layer, checks what was found, and trains a step of each kind.

    Args:
        family ([`~studies.zoo.Family`]): which.
        train (`bool`, *optional*, defaults to `False`): whether to train.

    Returns:
        [`Row`]: what fails is a reason in it; nothing is raised.
    """
    row = Row(family.library, family.name, family.model, dict(family.arguments), _times(family.size))
    try:
        with _quiet():
            return _surveyed(row, family, train)
    finally:
        gc.collect()  # trainers and their optimizers are in cycles


def _surveyed(row: Row, family: Family, train: bool) -> Row:
    # Whatever a model of another library raises is to be a line of the table.
    try:
        model = build(family)
    except Exception as error:
        return replace(row, reason=_told(error))
    layer, found = resolution(model, family)
    row = replace(row, **found)
    if layer is None:
        return row
    names = layer.names if row.named else ()
    try:
        row = replace(row, **_measured(model, layer, family, names))
    except Exception as error:
        return replace(row, reason=f"the layer cannot be checked: {_told(error)}")
    if not train:
        return row
    size = _training_size(model, family.size, names)
    return replace(row, trained={kind: _trained(model, kind, size, names) for kind in KINDS})


def survey_all(families: Sequence[Family], train: bool = False, processes: int = 1) -> list[Row]:
    """
    [`survey`] of several families, in their order, with a progress bar.

    Args:
        families (sequence of [`~studies.zoo.Family`]): which.
        train (`bool`, *optional*, defaults to `False`): whether to train.
        processes (`int`, *optional*, defaults to 1): in how many processes, each of one thread; with 1, in this one.

    Returns:
        `list` of [`Row`]

    Raises:
        ValueError: for fewer than one process.
    """
    if processes < 1:
        raise ValueError(f"processes={processes} runs nothing; give at least 1.")
    bar = partial(tqdm, total=len(families), unit="family", leave=False)
    one = partial(survey, train=train)
    if processes == 1:
        return list(bar(map(one, families)))
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        return list(bar(pool.imap(one, families)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, nothing warns: of a hundred models one each, in between a progress bar."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def resolution(model: PreTrainedModel, family: Family) -> tuple[FeatureLayer | None, dict[str, Any]]:
    """
    Resolves the feature layer of a family's model.

    Returns:
        The layer, or `None`, and the fields of a [`Row`] about it and about finding it.
    """
    calls: list[None] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(None))
    started = time.perf_counter()
    layer: FeatureLayer | None = None
    found: dict[str, Any] = {}
    try:
        layer = resolve_feature_layer(model, family.size)
    except Exception as error:
        found["reason"] = _told(error)
    found |= {"seconds": time.perf_counter() - started, "forwards": len(calls)}
    handle.remove()
    if layer is None and family.feature_layer:
        try:
            layer = resolve_feature_layer(model, family.size, list(family.feature_layer))
        except Exception as error:
            found["reason"] += f" With feature_layer={list(family.feature_layer)}: {_told(error)}"
        found["named"] = layer is not None
    return layer, found if layer is None else found | _described(layer)


def _described(layer: FeatureLayer) -> dict[str, str]:
    parts = layer.parts
    return {
        "layer": " + ".join(layer.names),
        "layout": " + ".join(part.layout for part in parts),
        "grid": " + ".join(_times(part.grid) for part in parts),
        "channels": " + ".join(str(part.channels) for part in parts),
        "prefix": " + ".join(str(part.num_prefix_tokens) for part in parts),
        "readout": layer.readout,
    }


def _measured(model: PreTrainedModel, layer: FeatureLayer, family: Family, names: Sequence[str]) -> dict[str, Any]:
    pictures = noise(PICTURES, family.size, seed=5)
    with preserve_rng(), torch.no_grad():
        awaken(model, noise(2 * PICTURES, family.size, seed=6))
        started = time.perf_counter()
        model(pictures)
        forward_seconds = time.perf_counter() - started
    found: dict[str, Any] = {
        "forward_seconds": forward_seconds,
        "cut": cut_of(model, layer, pictures),
        "reached": reached_by(model, layer, pictures),
    }
    if min(min(part.grid) for part in layer.parts) >= SMALLEST_GRID:
        found["found"] = _places_found(model, layer, family, names)
    if layer.readout == "exact":
        found["complete"] = completeness(model, layer, pictures)
    square = (min(family.size),) * 2
    if square != family.size and _takes(model, square):
        at_square = resolve_feature_layer(model, square, list(names) or None)
        others = noise(PICTURES, square, seed=7)
        found |= {
            "square": " + ".join(at_square.names),
            "cut": max(found["cut"], cut_of(model, at_square, others)),
            "reached": min(found["reached"], reached_by(model, at_square, others)),
        }
    return found


def _places_found(model: PreTrainedModel, layer: FeatureLayer, family: Family, names: Sequence[str]) -> int:
    """On pictures of the family's size, and, if they and the model are small, of twice that: padding dampens less."""
    size, most = family.size, 0
    for factor in (1, 2):
        if factor > 1:
            if max(size) > LARGE or model.num_parameters() > MANY:
                break
            size = (factor * size[0], factor * size[1])
            try:
                model = build(replace(family, size=size))
                layer = resolve_feature_layer(model, size, list(names) or None)
                awaken(model, noise(2 * PICTURES, size, seed=6))
            except (*REFUSALS, TypeError):
                return most
        for bright in BRIGHT:
            most = max(most, places_found(model, layer, noise(PLACED, size, seed=5), bright))
            if most >= FOUND:
                return most
    return most


def _takes(model: PreTrainedModel, size: tuple[int, int]) -> bool:
    try:
        with torch.no_grad():
            model(noise(2, size, seed=8))
    except REFUSALS:
        return False
    return True


def _training_size(model: PreTrainedModel, size: tuple[int, int], names: Sequence[str]) -> tuple[int, int]:
    """Half the size for large networks that take it, for time's sake."""
    half = (size[0] // 2, size[1] // 2)
    if model.num_parameters() <= MANY or not _takes(model, half):
        return size
    try:
        layer = resolve_feature_layer(model, half, list(names) or None)
    except ValueError:
        return size
    return size if min(min(part.grid) for part in layer.parts) < 2 else half


def _trained(model: PreTrainedModel, kind: str, size: tuple[int, int], names: Sequence[str]) -> str:
    before = copy.deepcopy(model.state_dict())
    try:
        return train_step(model, kind, size, names)
    except Exception as error:
        return _told(error)
    finally:
        model.load_state_dict(before)  # what one kind spoils is not the next one's fault


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _times(pair: tuple[int, int]) -> str:
    return f"{pair[0]} × {pair[1]}"


# ---- What is shown ----


def survey_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with a column for each kind of training that was tried."""
    kinds = [kind for kind in KINDS if any(kind in row.trained for row in rows)]
    columns = ["family", "model", "picture", "layer", "layout", "grid", "channels", "prefix", "read-out"]
    columns += ["forwards", "seconds", "object found", *kinds]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_shown(row, kinds))} |" for row in rows]
    return "\n".join(lines)


def _shown(row: Row, kinds: Sequence[str]) -> list[str]:
    model = f"{row.model} (reduced)" if row.library == "timm" and row.arguments else row.model
    layer = f"{row.layer} (named)" if row.named else row.layer or "–"
    found = "" if row.found is None else f"{row.found} of {len(PLACES)}"
    seconds = "" if row.seconds is None else f"{row.seconds:.2f}"
    trained = ["" if kind not in row.trained else "no" if row.trained[kind] else "yes" for kind in kinds]
    forwards = "" if row.forwards is None else str(row.forwards)
    shape = [row.layout, row.grid, row.channels, row.prefix, row.readout]
    return [row.family, model, row.size, layer, *shape, forwards, seconds, found, *trained]


def survey_counts(rows: Sequence[Row]) -> str:
    """How many families were resolved and trained, as a Markdown list."""
    lines = []
    for library, unit in (("timm", "timm modules"), ("transformers", "transformers classes")):
        ours = [row for row in rows if row.library == library]
        if ours:
            lines.append(f"* resolved {sum(row.resolved for row in ours)} of {len(ours)} {unit}")
    for kind, method in KINDS.items():
        tried = [row for row in rows if kind in row.trained]
        if tried:
            lines.append(f"* trained {sum(not row.trained[kind] for row in tried)} of {len(tried)}: {kind} ({method})")
    return "\n".join(lines)


def survey_summary(rows: Sequence[Row]) -> str:
    """[`survey_counts`], and the exceptions with their reasons."""
    lines = [survey_counts(rows)]
    exceptions = [f"* {row.family}: {text}" for row in rows for text in _exceptions(row)]
    return "\n".join([*lines, "", "Exceptions:", "", *exceptions] if exceptions else lines)


def _exceptions(row: Row) -> list[str]:
    found = [row.reason] if row.reason else []
    if row.named:
        found[-1] += f" It works with feature_layer={row.layer.split(' + ')}."
    found += row.faults
    if row.displaced:
        found.append(f"a bright object is found at {row.found} of {len(PLACES)} places")
    return found + [f"no training by {kind} ({KINDS[kind]}): {fault}" for kind, fault in row.trained.items() if fault]


def versions() -> dict[str, str]:
    """The versions that a survey depends on, and the hardware."""
    modules = {"timm": timm, "transformers": transformers, "torch": torch}
    found = {name: str(module.__version__) for name, module in modules.items()}
    return found | {"cpu_cores": str(os.cpu_count())}
