"""What is known of the layer whose output is the model's last spatial map."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Layout = Literal["NCHW", "NHWC", "NLC"]
Readout = Literal["exact", "uniform", "generic"]


@dataclass(frozen=True)
class FeatureLayer:
    """
    A layer, how its output is laid out, and how the logits read it.

    Args:
        name (`str`): the module's name, as in `model.get_submodule(name)`.
        layout (`str`): `"NCHW"`, `"NHWC"` or `"NLC"` (tokens, row by row).
        grid (`tuple[int, int]`): `(h, w)` at the picture's size that it was resolved for.
        channels (`int`): C.
        num_prefix_tokens (`int`): tokens before the grid's (class, distillation, register tokens); 0 but for `"NLC"`.
        readout (`str`): `"exact"`: the logit is affine in the map's mean, `maps.mean((1, 2)) + bias = logit`, where
            `bias` is the logit of an all-zero map. `"uniform"`: the logit's gradient is the same at every position,
            but depends on the picture, or there is more than the grid that is read. `"generic"`: anything else.
        head (`str`, *optional*): for an exact read-out, the linear layer or 1 × 1 convolution whose weight `(K, C)`
            makes the class activation map; `None` where no single module does.
        output_index (`int` or `str`, *optional*): which entry of the module's output it is, where that is a tuple or
            a mapping.
        hand_on_copy (`bool`, *optional*, defaults to `False`): the next operation writes into the output in place, so
            a hook has to hand on a copy to keep the map that it captured.
        prefix_attention (`bool`, *optional*, defaults to `False`): what comes after the layer attends once, and reads
            the prefix tokens of the result alone, as a class-token transformer's last block does.
        others (`tuple[FeatureLayer, ...]`, *optional*): further layers that the head reads beside this one, whose grid
            is the finest. The map is then the sum of the layers' maps, and the read-out `"generic"`.

    Raises:
        ValueError: for others beside another read-out than `"generic"`, or with others of their own.
    """

    name: str
    layout: Layout
    grid: tuple[int, int]
    channels: int
    num_prefix_tokens: int = 0
    readout: Readout = "generic"
    head: str | None = None
    output_index: int | str | None = None
    hand_on_copy: bool = False
    prefix_attention: bool = False
    others: "tuple[FeatureLayer, ...]" = ()

    def __post_init__(self) -> None:
        if self.others and (self.readout != "generic" or self.head is not None):
            raise ValueError(
                f'readout="{self.readout}", head={self.head!r}: of several layers, {", ".join(self.names)}, none is '
                'read alone; set readout="generic", head=None.'
            )
        if any(other.others for other in self.others):
            raise ValueError(f"others of {self.name!r} have others of their own; give all the layers in one tuple.")

    @property
    def parts(self) -> "tuple[FeatureLayer, ...]":
        """All the layers whose outputs make the map: this one, and the others."""
        return (self, *self.others)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all the modules whose outputs make the map."""
        return tuple(part.name for part in self.parts)

    @property
    def needs_gradient(self) -> bool:
        """Whether the default map takes a gradient: there is no exact read-out through one head."""
        return self.readout != "exact" or self.head is None

    def select(self, output: Any) -> Tensor:
        """The map's tensor, as it is, from what the module returned."""
        return output if self.output_index is None else output[self.output_index]

    def replace(self, output: Any, raw: Tensor) -> Any:
        """What the module returned, with the map's tensor exchanged for `raw`."""
        return replace_output(output, self.output_index, raw)

    def to_maps(self, raw: Tensor) -> Tensor:
        """
        The map's tensor as `(B, C, h, w)`: a view, prefix tokens left out.

        Raises:
            ValueError: if `raw` is not of this layer's layout.
        """
        if raw.ndim != (3 if self.layout == "NLC" else 4):
            raise ValueError(f'"{self.name}" gave shape {tuple(raw.shape)}, which is not {self.layout}.')
        if self.layout == "NCHW":
            return raw
        if self.layout == "NHWC":
            return raw.permute(0, 3, 1, 2)
        height, width = self.grid
        if raw.shape[1] != self.num_prefix_tokens + height * width:
            raise ValueError(
                f'"{self.name}" gave {raw.shape[1]} tokens, but it was resolved for {self.num_prefix_tokens} prefix '
                f"tokens and a grid of {height} × {width}; resolve it for the pictures' size: "
                "resolve_feature_layer(model, image_size=...)."
            )
        tokens = raw[:, self.num_prefix_tokens :]
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def replace_output(output: Any, index: int | str | None, tensor: Tensor) -> Any:
    """A module's output, with one tensor exchanged; the output itself is left as it is."""
    if index is None:
        return tensor
    if isinstance(output, tuple):
        entries = [tensor if position == index else entry for position, entry in enumerate(output)]
        return type(output)(*entries) if hasattr(output, "_fields") else tuple(entries)
    changed = copy.copy(output)
    changed[index] = tensor
    return changed
