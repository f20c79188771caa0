"""What the methods of a run need of the model, found once for a model and a picture size."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainingArguments

from ..backbones import (
    FeatureLayer,
    FeatureTap,
    PooledLayer,
    Tail,
    is_checkpointed,
    is_reentrant,
    resolve_feature_layer,
    resolve_pooled_layer,
    resolve_tail,
    trainable_before,
    unwrap_model,
)
from ..backbones.forward import REFUSALS, describe, evaluation, input_shape, probe_images
from ..guidance import Guidance
from ..names import POOLED
from .engines import Choice, choose_engine, refuse_checkpointed_maps

IGNORED = -100  # the label of a view's row: the task's loss leaves it out
LOSS_TOLERANCE = 1e-2  # relative; a loss that counts such a row is off by a third in the trial, or meaningless


@dataclass(frozen=True)
class Plan:
    """
    What a forward has to gather for the methods.

    Attributes:
        methods (`tuple[Guidance, ...]`): the methods, in the order of their weights.
        feature_layer ([`FeatureLayer`], *optional*): where maps are made, if any method asks for one.
        tail_gradient (`bool`): whether gradients with respect to that layer's output are taken in the model's graph.
        tail ([`Tail`], *optional*): what comes after that layer, where such gradients are taken, but the model's own
            graph does not give them.
        pooled ([`PooledLayer`], *optional*): where the pooled vector is read, if any method asks for it.
        layers (`tuple[str, ...]`): further modules whose outputs are read.
        engines (`dict` from a method's name to [`Choice`]): how its input gradient is differentiated.
        batch_norm (`str`): how batch normalisation treats views, see [`Guidance`].
        few_sizes (`bool`): whether views have to come in a few sizes, for each is compiled by itself.
    """

    methods: tuple[Guidance, ...]
    feature_layer: FeatureLayer | None = None
    tail_gradient: bool = False
    tail: Tail | None = None
    pooled: PooledLayer | None = None
    layers: tuple[str, ...] = ()
    engines: Mapping[str, Choice] = field(default_factory=dict)
    batch_norm: str = "pictures"
    few_sizes: bool = False

    @property
    def makes_views(self) -> bool:
        """Whether the model sees more pictures than those of the batch."""
        return any(method.makes_views for method in self.methods)

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


def run_options(accelerator: Accelerator, args: TrainingArguments, model: nn.Module) -> dict[str, Any]:
    """How a model is run, by the arguments, the environment and the model itself, as [`make_plan`] takes it."""
    # By the arguments or accelerate's settings, or by model.compile().
    compiled = args.torch_compile or accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    compiled = compiled or getattr(model, "_compiled_call_impl", None) is not None
    reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    return {
        "compiled": compiled,
        # `accelerate launch` says so unless it is told otherwise.
        "static": compiled and accelerator.state.dynamo_plugin.dynamic is False,
        "mixed_precision": accelerator.mixed_precision != "no",
        "checkpointed": args.gradient_checkpointing or is_checkpointed(model),
        "reentrant": bool(reentrant) or is_reentrant(model),
        "processes": args.world_size,
    }


@contextmanager
def as_checkpointed(model: nn.Module, args: TrainingArguments) -> Iterator[None]:
    """The model with gradient checkpointing as `Trainer` switches it on when training starts, and off again."""
    switch: Any = model
    if not args.gradient_checkpointing or is_checkpointed(model):
        yield
        return
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before 5.23
    given = dict(args.gradient_checkpointing_kwargs or {})
    others = {name: given.pop(name) for name in ("every_n_layers", "offload") if name in given}
    getattr(switch, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": given or None}, **others)
    try:
        yield
    finally:
        getattr(switch, f"{kind}_checkpointing_disable")()


def make_plan(
    model: nn.Module,
    methods: Sequence[Guidance],
    size: tuple[int, int],
    feature_layer: str | Sequence[str] | None = None,
    engines: Mapping[str, Choice] | None = None,
    compiled: bool = False,
    static: bool = False,
    mixed_precision: bool = False,
    checkpointed: bool = False,
    reentrant: bool = False,
    processes: int = 1,
) -> Plan:
    """
    Resolves the layers and chooses the gradient engines.

    Args:
        model (`nn.Module`): the classifier, neither wrapped nor compiled. It is left as it was.
        methods (`Sequence[Guidance]`): the methods that have a weight.
        size (`tuple[int, int]`): the pictures' `(H, W)`.
        feature_layer (`str` or `list[str]`, *optional*): the layer or layers that maps are made of; default: resolved.
        engines (`dict`, *optional*): the choices of an earlier plan, which are kept: an engine does not change in the
            middle of a run.
        compiled, static, mixed_precision, checkpointed, reentrant (`bool`, *optional*, default to `False`): how the
            model will be run: by `torch.compile`, with `dynamic=False`, under autocast, with gradient checkpointing
            (which is switched on already), with its reentrant kind.
        processes (`int`, *optional*, defaults to 1): how many processes train it together.

    Returns:
        [`Plan`]

    Raises:
        ValueError: for a layer that does not resolve, several layers where a method penalises the gradient at one, an
            engine that the model cannot do, or what a compiled model or several processes do not give; the message
            names the argument, the value and the remedy.
    """
    if reentrant and not all(method.transforms_inputs for method in methods):
        raise ValueError(
            "use_reentrant=True: this kind of gradient checkpointing runs the forward without a graph, and guidance "
            'would have no gradient; set gradient_checkpointing_kwargs={"use_reentrant": False}, or switch gradient '
            "checkpointing off."
        )
    at = {method.name: method.gradient_at for method in methods}
    needs_maps = any(method.needs_maps for method in methods)
    at_features = [name for name, place in at.items() if place == "features"]
    layer = resolve_feature_layer(model, size, feature_layer) if needs_maps or at_features else None
    if layer is not None and layer.others and at_features:
        raise ValueError(
            f'guidance={", ".join(at_features)} with at="features" penalises the gradient at one layer, and '
            f'feature_layer={list(layer.names)} are {len(layer.names)}; name one of them, or set at="input" in '
            "guidance_options."
        )
    tail_gradient = layer is not None and (bool(at_features) or layer.needs_gradient)
    tail = None
    if layer is not None and tail_gradient and compiled:
        tail = _tail_of(model, layer, size)
    elif layer is not None and tail_gradient and checkpointed:
        refuse_checkpointed_maps(model, layer, size)
    named = {name for method in methods for name in method.layers}
    pooled = resolve_pooled_layer(model, size) if POOLED in named else None
    layers = FeatureTap(model, sorted(named - {POOLED}), pooled).names  # refuses a name that the model does not have
    modes = {method.batch_norm for method in methods if method.makes_views}
    if len(modes) > 1:
        raise ValueError(f"batch_norm={sorted(modes)}: methods that share a forward need the same choice.")
    batch_norm = next(iter(modes), "pictures")
    split = False
    if modes and batch_norm != "concat":
        split = _refuse_split_batch_norm(model, batch_norm, compiled, checkpointed, processes)
    chosen = dict(engines or {})
    for method in methods:
        if method.gradient_at == "input" and method.name not in chosen:
            chosen[method.name] = choose_engine(
                model, size, method.gradient_engine, compiled=compiled, mixed_precision=mixed_precision
            )
    return Plan(
        methods=tuple(methods),
        feature_layer=layer,
        tail_gradient=tail_gradient and tail is None,
        tail=tail,
        pooled=pooled,
        layers=layers,
        engines=chosen,
        batch_norm=batch_norm,
        few_sizes=static or (compiled and split),
    )


def _tail_of(model: nn.Module, layer: FeatureLayer, size: tuple[int, int]) -> Tail:
    """What comes after a layer of a model that gives no gradient to it."""
    try:
        return resolve_tail(model, layer, size)
    except ValueError as error:
        raise ValueError(
            f'torch_compile=True: guidance takes a gradient with respect to "{", ".join(layer.names)}", which a '
            f"compiled model does not give ({str(error).rstrip('.')}); leave torch_compile out, or take a method "
            "without such a gradient, or a backbone that averages its last map."
        ) from error


def _refuse_split_batch_norm(
    model: nn.Module, batch_norm: str, compiled: bool, checkpointed: bool, processes: int
) -> bool:
    """
    Refuses what normalises views outside the context in which their statistics are not those of one batch, or would
    be compiled for each number of views; whether there is any batch normalisation.
    """
    norms = [module for module in unwrap_model(model).modules() if isinstance(module, _BatchNorm)]
    if processes > 1 and any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        raise ValueError(
            f"SyncBatchNorm in {processes} processes takes pictures and views as one batch, and "
            f'batch_norm="{batch_norm}" does not; set batch_norm="concat" in guidance_options, or leave '
            "SyncBatchNorm out."
        )
    if norms and checkpointed:
        raise ValueError(
            f'gradient_checkpointing=True: views cannot keep batch_norm="{batch_norm}" statistics under it; leave it '
            'out, or set batch_norm="concat" in guidance_options.'
        )
    if norms and compiled and batch_norm == "separate":
        raise ValueError(
            'torch_compile=True: batch_norm="separate" would be compiled for each number of annotated pictures; leave '
            'torch_compile out, or set batch_norm="pictures" in guidance_options.'
        )
    return bool(norms)


def refuse_frozen(model: nn.Module, plan: Plan, size: tuple[int, int]) -> None:
    """
    Refuses to train a frozen backbone, in which a term would move the head alone, or nothing.

    Args:
        model (`nn.Module`): the classifier. It is left as it was.
        plan ([`Plan`]): of that model.
        size (`tuple[int, int]`): the pictures' `(H, W)`.

    Raises:
        ValueError: naming the methods and the remedy.
    """
    for where in (plan.feature_layer, plan.pooled):
        if where is not None and not trainable_before(model, where, size):
            users = [
                method.name
                for method in plan.methods
                if (POOLED in method.layers if where is plan.pooled else method.needs_maps or method.gradient_at)
            ]
            names = where.names if isinstance(where, FeatureLayer) else (where.name,)
            raise ValueError(
                f'guidance={", ".join(users)}: every parameter before "{", ".join(names)}" is frozen, so the term '
                'would move only the head, or nothing; unfreeze a part of the backbone, or train with guidance="none".'
            )


def refuse_counted_views(model: nn.Module, plan: Plan, size: tuple[int, int]) -> None:
    """
    Refuses a model whose own loss counts rows without a label, as those of views are: two noise pictures with a third
    one behind them have to have the loss of the two.

    Args:
        model (`nn.Module`): the classifier, which is given labels. It is left as it was.
        plan ([`Plan`]): of that model; where no method makes views nothing is checked.
        size (`tuple[int, int]`): the pictures' `(H, W)`.

    Raises:
        ValueError: naming the methods and the remedy.
    """
    if not plan.makes_views:
        return
    names = ", ".join(method.name for method in plan.methods if method.makes_views)
    remedy = (
        f"guidance={names} shows the model more pictures, labelled {IGNORED}, which its loss has to leave out as "
        "torch.nn.functional.cross_entropy does; give the loss to the trainer as compute_loss_func, or take a method "
        "without views."
    )
    images = probe_images(model, input_shape(model, size), count=3, seed=0)
    labels = torch.tensor([0, 1, IGNORED], device=images.device)
    config = getattr(model, "config", None)
    problem_type = getattr(config, "problem_type", None)  # transformers' loss fills it in

    def loss_of(count: int) -> Tensor:
        loss: Tensor = model(pixel_values=images[:count], labels=labels[:count])["loss"]
        return loss

    try:
        with evaluation(model), torch.no_grad():
            same = bool(torch.isclose(loss_of(3), loss_of(2), rtol=LOSS_TOLERANCE, atol=1e-6).all())
    except (*REFUSALS, KeyError, TypeError) as error:
        raise ValueError(f"the loss of {describe(model)} fails ({error}); {remedy}") from error
    finally:
        if config is not None:
            config.problem_type = problem_type
    if not same:
        raise ValueError(f"the loss of {describe(model)} changes with pictures that have no label; {remedy}")
