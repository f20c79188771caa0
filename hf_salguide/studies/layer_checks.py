"""Whether a feature layer is what the resolver says it is: measured with hooks of its own, on noise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from ..backbones import FeatureLayer, logits_of, saliency_maps

NEGLIGIBLE = 1e-4  # weights that are no larger hide what is behind them
CUT = 1e-3  # the share of the pictures' difference that may pass beside a layer
BRIGHT = (0.5, 3.0)  # standard deviations of the noise; deep random networks show one of the two, and not the other
# Where the bright object is put, as fractions of the grid's height and width: off the diagonal, so that an object is
# not found where swapped axes or a transposed grid would show it.
PLACES = ((0.1, 0.9), (0.9, 0.1), (0.1, 0.6), (0.6, 0.1), (0.9, 0.4))


def noise(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Noise pictures, `(count, 3, H, W)`."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@contextmanager
def _hooked(model: nn.Module, parts: Sequence[FeatureLayer], hook: Callable[..., Any]) -> Iterator[None]:
    """Inside, `hook(index, part, output)` sees what each layer gives, and what it returns takes its place."""
    with ExitStack() as stack:
        for index, part in enumerate(parts):

            def call(module: nn.Module, args: Any, output: Any, index: int = index, part: FeatureLayer = part) -> Any:
                return hook(index, part, output)

            stack.callback(model.get_submodule(part.name).register_forward_hook(call).remove)
        yield


def recorded(model: nn.Module, layer: FeatureLayer, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits `(B, K)` of pictures `(B, C, H, W)`, and what each layer gave, in its layout."""
    raws = [torch.empty(0)] * len(layer.parts)

    def keep(index: int, part: FeatureLayer, output: Any) -> None:
        raws[index] = part.select(output).clone()  # a later operation may write into it

    with torch.no_grad(), _hooked(model, layer.parts, keep):
        return logits_of(model(pictures)), raws


def exchanged(model: nn.Module, layer: FeatureLayer, pictures: Tensor, raws: Sequence[Tensor]) -> Tensor:
    """The logits `(B, K)` of pictures while the layers' outputs are replaced by `raws`."""
    with _hooked(model, layer.parts, lambda index, part, output: part.replace(output, raws[index].clone())):
        return logits_of(model(pictures))


@contextmanager
def _prefix_of(model: nn.Module, layer: FeatureLayer, pictures: Tensor) -> Iterator[None]:
    """
    Inside, prefix tokens are those of `pictures` where they enter the modules around the layers.

    A class token takes its own way past the norm that the patches are read through: the residual's.
    """
    shapes = [raw.shape for raw in recorded(model, layer, pictures)[1]]
    kept: dict[tuple[int, int], Tensor] = {}
    with ExitStack() as stack:
        for index, part in enumerate(layer.parts):

            def exchange(
                module: nn.Module, args: Any, index: int = index, prefix: int = part.num_prefix_tokens
            ) -> Any:
                entered = []
                for position, given in enumerate(args):
                    if isinstance(given, Tensor) and given.shape == shapes[index]:
                        tokens = kept.setdefault((index, position), given)
                        given = torch.cat([tokens[:, :prefix], given[:, prefix:]], dim=1)
                    entered.append(given)
                return tuple(entered)

            if part.num_prefix_tokens:
                around = model.get_submodule(part.name.rpartition(".")[0])
                stack.callback(around.register_forward_pre_hook(exchange).remove)
        with torch.no_grad():
            model(pictures)  # keeps what enters
        yield


def cut_of(model: nn.Module, layer: FeatureLayer, pictures: Tensor) -> float:
    """
    How much the logits change when other pictures go in while the layer's output stays, as a share of the change
    without: 0 for a layer through which everything passes that the logits take from the picture.

    Args:
        model (`nn.Module`): a classifier in evaluation mode.
        layer ([`FeatureLayer`]): with `others`, all their outputs stay.
        pictures (`Tensor` of shape `(B, C, H, W)`): two or more, all different.

    Raises:
        ValueError: if the logits do not change with the picture, so that nothing can be said.
    """
    others = pictures.roll(1, dims=0)
    logits, raws = recorded(model, layer, pictures)
    spread = (logits - logits.roll(1, dims=0)).abs().max()
    if not spread > 0:
        raise ValueError(f"the logits of {type(model).__name__} do not change with the picture.")
    with torch.no_grad():
        past = (exchanged(model, layer, others, raws) - logits).abs().max()
        if past > CUT * spread and any(part.num_prefix_tokens for part in layer.parts):
            with _prefix_of(model, layer, pictures):
                past = (exchanged(model, layer, others, raws) - logits).abs().max()
    return float(past / spread)


def reached_by(model: nn.Module, layer: FeatureLayer, pictures: Tensor) -> float:
    """The share of a layer's positions at which the logits have a gradient; of several layers, the smallest."""
    logits, raws = recorded(model, layer, pictures)
    leaves = [raw.requires_grad_() for raw in raws]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    with torch.enable_grad():
        total = (weights * exchanged(model, layer, pictures, leaves)).sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None]
    shares = []
    for part, gradient in zip(layer.parts, gradients, strict=False):
        if gradient is None:
            return 0.0
        shares.append(float((part.to_maps(gradient).abs().amax(dim=1) > 0).float().mean()))
    return min(shares)


def completeness(model: nn.Module, layer: FeatureLayer, pictures: Tensor) -> float:
    """The largest relative error of `mean(map of class k) + bias_k = logit_k`, over pictures and classes."""
    logits, raws = recorded(model, layer, pictures)
    with torch.no_grad():
        bias = exchanged(model, layer, pictures, [torch.zeros_like(raw) for raw in raws])
        maps = [saliency_maps(model, pictures, target=k, feature_layer=layer) for k in range(logits.shape[1])]
    means = torch.stack([values.mean(dim=(1, 2)) for values in maps], dim=1)
    error = (means + bias - logits).abs().max()
    return float(error / logits.abs().max())


def places_found(model: nn.Module, layer: FeatureLayer, pictures: Tensor, bright: float = BRIGHT[0]) -> int:
    """
    At how many of five places a brighter square of one cell, put on pictures, changes the features most within one
    cell of itself: the change's norm over the channels, averaged over the pictures. Of several layers, the fewest.
    """
    height, width = pictures.shape[-2:]
    plain = [part.to_maps(raw) for part, raw in zip(layer.parts, recorded(model, layer, pictures)[1], strict=True)]
    hits = [0] * len(plain)
    for index, part in enumerate(layer.parts):
        rows, columns = part.grid
        for down, right in PLACES:
            row, column = int(down * rows), int(right * columns)
            changed = pictures.clone()
            changed[
                :,
                :,
                row * height // rows : (row + 1) * height // rows,
                column * width // columns : (column + 1) * width // columns,
            ] += bright
            raw = recorded(model, layer, changed)[1][index]
            change = (part.to_maps(raw) - plain[index]).norm(dim=1).mean(dim=0)
            at = divmod(int(change.argmax()), columns)
            hits[index] += bool(change.any()) and max(abs(at[0] - row), abs(at[1] - column)) <= 1
    return min(hits)


def awaken(model: nn.Module, pictures: Tensor) -> None:
    """
    Gives a model with random weights a signal that can be measured.

    Weights that are initialised with zeros or next to (heads, the last norms of residual branches, layer scales) are
    drawn, and batch norms take the statistics of `pictures`, with weights that make up for their epsilon, in which
    small signals would get lost.
    """
    generator = torch.Generator().manual_seed(3)
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad(), ExitStack() as stack:
        for name, weight in model.named_parameters():
            if not name.endswith("bias") and float(weight.abs().max()) <= NEGLIGIBLE:
                drawn = torch.randn(weight.shape, generator=generator)
                weight.copy_(1 + 0.1 * drawn if weight.ndim == 1 else 0.02 * drawn)
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
            stack.callback(norm.register_forward_pre_hook(_scale).remove)
        model(pictures)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def _scale(norm: nn.Module, args: Any) -> None:
    """Sets a batch norm's weight so that its output has a variance of 1, whatever that of its input."""
    variance = args[0].transpose(0, 1).flatten(1).var(dim=1, correction=0)
    if isinstance(norm.weight, Tensor):
        norm.weight.copy_(((variance + norm.eps) / variance).sqrt().nan_to_num(1.0, 1.0, 1.0))
