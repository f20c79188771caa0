"""A module's output read as a map of the picture: its layout, its grid, and the tokens before the grid's."""

from dataclasses import replace

import torch

from .layer import FeatureLayer
from .layouts import map_layouts, token_grids
from .observe import Observation
from .probe import Record


def read_layer(seen: Observation, record: Record) -> FeatureLayer | None:
    """The record as a layer with a layout, its read-out still open; `None` if it is not spatial."""
    shape = record.tensor.shape
    name, index, copied = record.name, record.index, record.overwritten
    if record.tensor.ndim == 3:
        tokens = read_tokens(seen, record)
        if tokens is None:
            return None
        prefix, grid = tokens
        return FeatureLayer(name, "NLC", grid, shape[2], prefix, output_index=index, hand_on_copy=copied)
    readings = map_layouts(shape, seen.size)
    if len(readings) > 1 and seen.reshaped is not None:
        other = seen.reshaped.record(name, index)
        there = map_layouts(other.tensor.shape, seen.reshaped.size) if other is not None else []
        if there:  # Which edge went with the picture's?
            readings = [reading for reading in readings if reading[0] == there[0][0]] or readings
    if not readings:
        return None
    layout, grid = readings[0]
    channels = shape[1] if layout == "NCHW" else shape[3]
    return FeatureLayer(name, layout, grid, channels, output_index=index, hand_on_copy=copied)


def read_layer_as(seen: Observation, record: Record, layer: FeatureLayer) -> FeatureLayer | None:
    """The record in the layout of a layer that was found on other pictures; `None` if it does not fit."""
    shape = record.tensor.shape
    if layer.layout == "NLC" and len(shape) == 3:
        grids = [grid for prefix, grid in token_grids(shape, seen.size) if prefix == layer.num_prefix_tokens]
    elif layer.layout != "NLC" and len(shape) == 4:
        grids = [grid for layout, grid in map_layouts(shape, seen.size) if layout == layer.layout]
    else:
        grids = []
    return replace(layer, grid=grids[0]) if grids else None


def read_tokens(seen: Observation, record: Record, channels_first: bool = False) -> tuple[int, tuple[int, int]] | None:
    """
    Prefix tokens and grid of a 3-D output `(B, tokens, C)`, or `(B, C, tokens)` with `channels_first`.

    As many tokens as a grid has cells may be no grid at all (the latents of a Perceiver): their number has to
    go with the picture's width, or, where the model takes no other, to have come from a grid seen before.
    """

    def shape(one: Record) -> torch.Size:
        return one.tensor.mT.shape if channels_first else one.tensor.shape

    readings = token_grids(shape(record), seen.size)
    # The patches' grid, or one that they were merged to, has mostly been seen before.
    readings.sort(key=lambda reading: reading[1] not in seen.grids)
    if not readings:
        return None
    if seen.reshaped is None:
        return readings[0] if readings[0][1] in seen.grids else None
    other = seen.reshaped.record(record.name, record.index)
    there = token_grids(shape(other), seen.reshaped.size) if other is not None else []
    grows = seen.reshaped.size[1] > seen.size[1]
    for prefix, (height, width) in readings:
        if any(
            found[0] == prefix and found[1][0] == height and (found[1][1] > width if grows else found[1][1] < width)
            for found in there
        ):
            return prefix, (height, width)
    return None
