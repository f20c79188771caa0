"""What the methods of a run need of the model, found once for a model and a picture size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones import (
    FeatureLayer,
    FeatureTap,
    PooledLayer,
    resolve_feature_layer,
    resolve_pooled_layer,
    trainable_before,
    unwrap_model,
)
from ..guidance import Guidance
from ..names import POOLED
from .gradients import Choice, choose_engine


@dataclass(frozen=True)
class Plan:
    """
    What a forward has to gather for the methods.

    Attributes:
        methods (`tuple[Guidance, ...]`): the methods, in the order of their weights.
        feature_layer ([`FeatureLayer`], *optional*): where maps are made, if any method asks for one.
        tail_gradient (`bool`): whether gradients with respect to that layer's output are taken.
        pooled ([`PooledLayer`], *optional*): where the pooled vector is read, if any method asks for it.
        layers (`tuple[str, ...]`): further modules whose outputs are read.
        engines (`dict` from a method's name to [`Choice`]): how its input gradient is differentiated.
        batch_norm (`str`): how batch normalisation treats views, see [`Guidance`].
    """

    methods: tuple[Guidance, ...]
    feature_layer: FeatureLayer | None = None
    tail_gradient: bool = False
    pooled: PooledLayer | None = None
    layers: tuple[str, ...] = ()
    engines: Mapping[str, Choice] = field(default_factory=dict)
    batch_norm: str = "separate"

    @property
    def input_gradient(self) -> bool:
        """Whether any method takes a gradient with respect to the pictures."""
        return bool(self.engines)

    @property
    def double_backward(self) -> bool:
        """Whether the whole forward is to be differentiated twice."""
        return any(choice.engine == "double_backward" for choice in self.engines.values())

    @property
    def finite_difference(self) -> bool:
        """Whether a second forward follows."""
        return any(choice.engine == "finite_difference" for choice in self.engines.values())


def make_plan(
    model: nn.Module,
    methods: Sequence[Guidance],
    size: tuple[int, int],
    feature_layer: str | None = None,
    engines: Mapping[str, Choice] | None = None,
    compiled: bool = False,
    mixed_precision: bool = False,
    checkpointed: bool = False,
) -> Plan:
    """
    Resolves the layers and chooses the gradient engines.

    Args:
        model (`nn.Module`): the classifier, neither wrapped nor compiled. It is left as it was.
        methods (`Sequence[Guidance]`): the methods that have a weight.
        size (`tuple[int, int]`): the pictures' `(H, W)`.
        feature_layer (`str`, *optional*): the layer that maps are made of; default: resolved.
        engines (`dict`, *optional*): the choices of an earlier plan, which are kept: an engine does not change in the
            middle of a run.
        compiled, mixed_precision, checkpointed (`bool`, *optional*, default to `False`): how the model will be run:
            by `torch.compile`, under autocast, with gradient checkpointing.

    Returns:
        [`Plan`]

    Raises:
        ValueError: for a layer that does not resolve, an engine that the model cannot do, a frozen backbone, or what
            a compiled model does not give; the message names the argument, the value and the remedy.
    """
    at = {method.name: method.gradient_at for method in methods}
    needs_maps = any(method.needs_maps for method in methods)
    at_features = [name for name, place in at.items() if place == "features"]
    layer = resolve_feature_layer(model, size, feature_layer) if needs_maps or at_features else None
    if layer is not None and compiled and (at_features or layer.needs_gradient):
        raise ValueError(
            f'torch_compile=True: guidance takes a gradient with respect to "{layer.name}", which a compiled model '
            "does not give; leave torch_compile out, or take a method and a backbone whose map is exact."
        )
    named = {name for method in methods for name in method.layers}
    pooled = resolve_pooled_layer(model, size) if POOLED in named else None
    layers = FeatureTap(model, sorted(named - {POOLED}), pooled).names  # refuses a name that the model does not have
    _refuse_frozen(model, methods, layer, pooled, size)
    modes = {method.batch_norm for method in methods if method.cost == "views"}
    if len(modes) > 1:
        raise ValueError(f"batch_norm={sorted(modes)}: methods that share a forward need the same choice.")
    batch_norm = next(iter(modes), "separate")
    if modes and batch_norm != "concat":
        _refuse_split_batch_norm(model, batch_norm, compiled, checkpointed)
    chosen = dict(engines or {})
    for method in methods:
        if method.gradient_at == "input" and method.name not in chosen:
            chosen[method.name] = choose_engine(
                model, size, method.gradient_engine, compiled=compiled, mixed_precision=mixed_precision
            )
    return Plan(
        methods=tuple(methods),
        feature_layer=layer,
        tail_gradient=layer is not None and (bool(at_features) or layer.needs_gradient),
        pooled=pooled,
        layers=layers,
        engines=chosen,
        batch_norm=batch_norm,
    )


def _refuse_split_batch_norm(model: nn.Module, batch_norm: str, compiled: bool, checkpointed: bool) -> None:
    """Refuses what runs a forward outside the context in which views have statistics of their own."""
    if not any(isinstance(module, _BatchNorm) for module in unwrap_model(model).modules()):
        return
    for argument, given in (("torch_compile", compiled), ("gradient_checkpointing", checkpointed)):
        if given:
            raise ValueError(
                f'{argument}=True: views cannot keep batch_norm="{batch_norm}" statistics under it; leave it out, or '
                'set batch_norm="concat" in guidance_options.'
            )


def _refuse_frozen(
    model: nn.Module,
    methods: Sequence[Guidance],
    layer: FeatureLayer | None,
    pooled: PooledLayer | None,
    size: tuple[int, int],
) -> None:
    """Refuses a frozen backbone, in which a term would move the head alone, or nothing."""
    for where in (layer, pooled):
        if where is not None and not trainable_before(model, where, size):
            users = [
                method.name
                for method in methods
                if (POOLED in method.layers if where is pooled else method.needs_maps or method.gradient_at)
            ]
            raise ValueError(
                f'guidance={", ".join(users)}: every parameter before "{where.name}" is frozen, so the term would '
                'move only the head, or nothing; unfreeze a part of the backbone, or train with guidance="none".'
            )
