"""
The search for the last map, from the logits backwards.

The first output is taken that

1. is laid out as a grid of more than one cell ([`layouts`]), which is one of the picture: tokens have to become more
   with the picture, or to come from a grid seen before;
2. separates the picture from the logits: with the output recorded for some pictures put in its place, other pictures
   give the logits of the first ones (the cut test);
3. is read: the logits have a gradient at more than half of its positions (the activity test). The patch tokens of the
   last block of a class-token transformer are not; the block before them is;
4. stands the same tests on pictures of another width, where the model takes them.

Where what it finds is read through a norm alone, as that block's output is, the norm's output takes its place: a
picture's map times its gradient would else be zero. Where a block gives several tensors that are such a cut together,
it is the first output behind it through which all passes that is read of the grid.

The search ends with an error that says why where the last maps are read side by side, or where something that is no
grid holds all that is read of them.
"""

import json
from collections.abc import Sequence

from .forward import describe
from .layer import FeatureLayer
from .layouts import MAX_PREFIX_TOKENS, MIN_TOKEN_CHANNELS
from .observe import ACTIVE_SHARE, Observation
from .probe import Record
from .reading import read_layer, read_layer_as, read_tokens
from .readout import behind, classify, holds_the_grid, read_beside, vanishes, with_attention

MOST_TAILS = 48  # forwards, before the search is given up: a class-token transformer takes about ten
LAST_PART = 0.25  # of what the modules give: where the search may still pass coarser maps

Located = tuple[Record, FeatureLayer]


class Walk:
    """The search for the last map, from the logits backwards."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.records = seen.representatives()
        self.rejected: list[Located] = []  # maps that are not all that the logits depend on
        self.unread: list[Record] = []
        self.bottleneck: Record | None = None

    def find(self) -> FeatureLayer:
        for position in reversed(range(len(self.records))):
            record = self.records[position]
            layer = read_layer(self.seen, record)
            if self.seen.tails >= MOST_TAILS:
                break
            if layer is None:
                if self.bottleneck is None and self.is_bottleneck(record):
                    self.bottleneck = record
                continue
            if self.passes_coarser_maps(position, layer):
                break
            if self.rejected or self.unread:
                self.seen.look_at_all()
                if self.is_unread(record, layer):
                    continue
            found = self.accepted(record, layer)
            if found is not None:
                # A few queries that pool the last map, or a class's own, are a head.
                if self.bottleneck is not None and len(self.records) - 1 - position > len(self.records) / 2:
                    self.refuse_bottleneck(self.bottleneck)
                self.refuse_other_layouts(found)
                return with_attention(self.seen, found)
        if self.bottleneck is not None:
            self.refuse_bottleneck(self.bottleneck)
        raise ValueError(self.no_single_layer())

    def accepted(self, record: Record, layer: FeatureLayer) -> FeatureLayer | None:
        """The record's layer with its read-out, or that of the output behind it; `None` if it is not the one."""
        seen = self.seen
        if not seen.cuts(record):
            self.rejected.append((record, layer))
            beside = [other for other in seen.run.several.get(record.name, []) if other.index != record.index]
            return self.behind(record, layer, beside) if beside else None
        if self.is_unread(record, layer) or not self.holds_reshaped((record, layer)):
            return None
        layer = classify(seen, record, layer)
        if not vanishes(seen, record, layer):
            return layer
        return self.behind(record, layer) or layer

    def behind(self, record: Record, layer: FeatureLayer, beside: Sequence[Record] = ()) -> FeatureLayer | None:
        """The layer through which all passes that the logits take from the grid of a cut, or of part of one."""
        if beside and not self.seen.cut_together(
            [(other.name, other.index, self.seen.recorded(other)) for other in (record, *beside)]
        ):
            return None
        found = behind(self.seen, record, layer, beside)
        return found[1] if found is not None and self.holds_reshaped(found, (record, layer), beside) else None

    def holds_reshaped(self, found: Located, cut: Located | None = None, beside: Sequence[Record] = ()) -> bool:
        """
        Whether a layer stands the same tests on pictures of another width, where the model takes them: the cut test,
        or, where it was found behind a cut, that all passes through it that is read of the cut's grid.
        """
        reshaped = self.seen.reshaped
        if reshaped is None:
            return True

        def there(located: Located) -> Located | None:
            record = reshaped.record(located[0].name, located[0].index)
            layer = None if record is None else read_layer_as(reshaped, record, located[1])
            return None if record is None or layer is None else (record, layer)

        again = there(found)
        if again is None or reshaped.active_share(*again) <= ACTIVE_SHARE:
            return False
        if cut is None:
            return reshaped.cuts(again[0])
        cut_again = there(cut)
        partners = [one for other in beside for one in reshaped.run.several[other.name] if one.index == other.index]
        return cut_again is not None and holds_the_grid(reshaped, again[0], *cut_again, partners)

    def is_bottleneck(self, record: Record) -> bool:
        """Tokens that are no grid of the picture, but all that the logits depend on."""
        shape = record.tensor.shape
        if record.tensor.ndim != 3 or shape[1] <= MAX_PREFIX_TOKENS or shape[2] < MIN_TOKEN_CHANNELS:
            return False
        if read_tokens(self.seen, record, channels_first=True) is not None:
            return False
        gradient = self.seen.gradient_at(record)
        return self.seen.cuts(record) and float((gradient.abs().sum(dim=2) > 0).float().mean()) > ACTIVE_SHARE

    def refuse_bottleneck(self, record: Record) -> None:
        raise ValueError(
            f"{describe(self.seen.model)} has a bottleneck behind its last map: all that the logits depend on passes "
            f'the {record.tensor.shape[1]} tokens of "{record.name}", whose number does not go with the picture, so '
            "they are no grid, as the latents of a Perceiver are not. Take another backbone, or name a layer "
            'before it, feature_layer="...", knowing that its map says little of what is read there.'
        )

    def passes_coarser_maps(self, position: int, layer: FeatureLayer) -> bool:
        """
        Whether the walk leaves behind coarser maps that the logits read beside others, and a good part of the model.

        What is before them may hold all that the logits depend on (the stem does), but is not the last map.
        """
        left = len(self.records) - 1 - position
        if left <= LAST_PART * len(self.records):
            return False
        return any(
            rejected.grid[0] < layer.grid[0]
            and rejected.grid[1] < layer.grid[1]
            and self.seen.active_share(record, rejected) > ACTIVE_SHARE
            for record, rejected in self.rejected
        )

    def refuse_other_layouts(self, layer: FeatureLayer) -> None:
        """Refuses where a good part of the model goes on with the layer's cells in a layout that is not looked at."""
        cells, batch = layer.grid[0] * layer.grid[1], len(self.seen.images)
        shapes = self.seen.run.shapes

        def holds(tokens: int) -> bool:
            return 0 <= tokens - cells <= MAX_PREFIX_TOKENS

        def is_other(shape: tuple[int, ...]) -> bool:
            if len(shape) != 3:
                return False
            tokens_first = shape[1] == batch and holds(shape[0])
            channels_first = shape[0] == batch and holds(shape[2]) and not holds(shape[1])
            return tokens_first or channels_first

        names = list(shapes)
        others = [name for name in names[names.index(layer.name) + 1 :] if any(map(is_other, shapes[name]))]
        if len(others) > LAST_PART * len(names):
            raise ValueError(
                f'{describe(self.seen.model)}: behind "{layer.name}" the tokens are laid out otherwise '
                f'("{others[-1]}" gives {shapes[others[-1]][0]}), which is not supported; make them (B, tokens, C), '
                f'with batch_first=True say, or name the layer before, feature_layer="{layer.name}".'
            )

    def is_unread(self, record: Record, layer: FeatureLayer) -> bool:
        if self.seen.active_share(record, layer) > ACTIVE_SHARE:
            return False
        self.unread.append(record)
        return True

    def no_single_layer(self) -> str:
        seen = self.seen
        by_grid: dict[tuple[int, int], Record] = {}
        for record, layer in self.rejected:
            by_grid.setdefault(layer.grid, record)
        why = [f"{_shown(record)} does not hold all that the logits depend on" for record in by_grid.values()][:3]
        why += [f"{_shown(record)} is not read by the logits" for record in self.unread[:1]]
        together = self.several()
        if together:
            remedy = f"Several maps are read side by side; name them: feature_layer={json.dumps(together)}."
        elif len(by_grid) > 1:
            remedy = (
                "Maps of several grids seem to be read side by side; name one of them, or a list of one from every "
                'branch, feature_layer=["...", "..."]: modules that run once and give (B, C, h, w), (B, h, w, C) or '
                "(B, tokens, C)."
            )
        elif why:
            remedy = (
                "Branches may meet behind their last maps; name one map, or a list of them, "
                'feature_layer=["...", "..."].'
            )
        else:
            why = [f"no module that runs once gives a map of more than one cell at {seen.size}"]
            repeated = [name for name, calls in seen.run.calls.items() if calls > 1][:3]
            remedy = (
                f"{', '.join(repeated)} run more than once in a forward; guide the model that they belong to."
                if repeated
                else "Take a larger image_size."
            )
        return (
            f"no single layer of {describe(seen.model)} separates the picture from the logits: {'; '.join(why)}. "
            f"{remedy}"
        )

    def several(self) -> list[str]:
        """The last maps that are read of different grids, if they hold together what none of them holds alone."""
        last: dict[tuple[int, int], Record] = {}
        for record in reversed(self.records):
            layer = read_layer(self.seen, record)
            if layer is None or layer.grid in last:
                continue
            if self.seen.active_share(record, layer) > ACTIVE_SHARE:
                last[layer.grid] = record
                together = [(other.name, other.index, self.seen.recorded(other)) for other in last.values()]
                if len(last) > 1 and self.seen.cut_together(together):
                    gradients = read_beside(self.seen, list(last.values()))
                    return [
                        other.name for other, gradient in zip(last.values(), gradients, strict=True) if gradient.any()
                    ]
            if self.seen.tails >= 2 * MOST_TAILS:
                break
        return []


def _shown(record: Record) -> str:
    return f'"{record.name}" {tuple(record.tensor.shape)}'
