"""Guidance where the weights of the model are spread over the processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..backbones import is_sharded
from ..guidance import Guidance
from .engines import Choice, choose_engine
from .plan import Plan

REMEDY = "train with DistributedDataParallel (`accelerate launch --multi_gpu`)"


def sharding_of(accelerator: Accelerator) -> str | None:
    """What an accelerator spreads a model's weights with: `"FSDP1"`, `"FSDP2"`, `"ZeRO-3"`, or `None` for nothing."""
    if getattr(accelerator.state, "fsdp_plugin", None) is not None:
        return "FSDP2" if accelerator.state.fsdp_plugin.fsdp_version == 2 else "FSDP1"
    zero = getattr(accelerator.state, "deepspeed_plugin", None)
    return "ZeRO-3" if zero is not None and zero.zero_stage == 3 else None


def refuse_sharded(accelerator: Accelerator, model: nn.Module, methods: Sequence[Guidance], compiled: bool) -> None:
    """
    Refuses what guidance cannot do where weights are spread over the processes.

    Args:
        accelerator ([`~accelerate.Accelerator`]): of the run.
        model (`nn.Module`): the classifier, before the accelerator has prepared it.
        methods (`Sequence[Guidance]`): the methods of the run.
        compiled (`bool`): whether the model will be compiled.

    Raises:
        ValueError: for FSDP1; for FSDP2 with a compiled model, finite differences, or a model that is not whole on
            each process; for ZeRO-3 with a method that reads maps or gradients; for a model that is sharded already.
            The message names the remedy.
    """
    names = ", ".join(method.name for method in methods)
    if is_sharded(model):
        raise ValueError(
            f"model: its parameters are spread over the processes already, and guidance={names} has to run it whole, "
            "on each process and for each size of pictures, before that. Give the trainer a plain model, which "
            "`accelerate launch` with fsdp_version: 2 spreads, pictures of one size, and for other guidance a new "
            "trainer."
        )
    kind = sharding_of(accelerator)
    if kind == "FSDP1":
        raise ValueError(
            f"fsdp_version=1: guidance={names} cannot be had: FullyShardedDataParallel has no weights outside "
            "the forward, does not work with double backward, and for the rest is untested; set fsdp_version: 2, or "
            f"{REMEDY}."
        )
    if kind == "FSDP2":
        _refuse_fsdp2(accelerator, methods, compiled, names)
    if kind == "ZeRO-3":
        readers = [method.name for method in methods if method.needs_maps or method.gradient_at]
        if readers:
            raise ValueError(
                f"zero_stage=3: guidance={', '.join(readers)} reads the head's weight or a gradient between layers, "
                "outside the forward of the modules, where ZeRO-3 has freed the weights; set zero_stage: 2, or "
                f"fsdp_version: 2, or {REMEDY}."
            )


def _refuse_fsdp2(accelerator: Accelerator, methods: Sequence[Guidance], compiled: bool, names: str) -> None:
    plugin = accelerator.state.fsdp_plugin
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            f"fsdp_cpu_ram_efficient_loading=True: only one process would hold the weights, and guidance={names} has "
            "to run the model whole on each before they are spread; set fsdp_cpu_ram_efficient_loading: false."
        )
    for argument, given, remedy in (
        ("fsdp_activation_checkpointing", plugin.activation_checkpointing, "set gradient_checkpointing=True instead"),
        ("torch_compile", compiled, f"leave it out, or {REMEDY}"),
    ):
        if given:
            raise ValueError(f"{argument}=True: guidance={names} under FSDP2 is untested with it; {remedy}.")
    shifted = [
        method.name
        for method in methods
        if method.gradient_at == "input" and method.gradient_engine == "finite_difference"
    ]
    if shifted:
        raise ValueError(
            f'gradient_engine="finite_difference": guidance={", ".join(shifted)} would run a second forward on the '
            "annotated pictures, and under FSDP2 a process that has none would leave the others waiting for ever; set "
            f'gradient_engine="double_backward", or {REMEDY}.'
        )


def sharded_engines(
    accelerator: Accelerator,
    model: nn.Module,
    methods: Sequence[Guidance],
    size: tuple[int, int],
    mixed_precision: bool,
) -> Mapping[str, Choice]:
    """
    The engines that are no free choice: `"double_backward"` for every input gradient under FSDP2.

    Args:
        accelerator ([`~accelerate.Accelerator`]): of the run.
        model (`nn.Module`): the classifier, before its weights are spread.
        methods (`Sequence[Guidance]`): the methods of the run.
        size (`tuple[int, int]`): the pictures' `(H, W)`.
        mixed_precision (`bool`): whether the model will run under autocast.

    Returns:
        `dict` from a method's name to [`Choice`]; empty where weights are not sharded by FSDP2.

    Raises:
        ValueError: see [`choose_engine`].
    """
    taken = [method.name for method in methods if method.gradient_at == "input"]
    if not taken or sharding_of(accelerator) != "FSDP2":
        return {}
    choice = choose_engine(model, size, "double_backward", mixed_precision=mixed_precision)
    reason = "under FSDP2 all processes have to run the same forwards, and finite differences take one more"
    return dict.fromkeys(taken, replace(choice, reason=reason))


@contextmanager
def kept_whole(model: nn.Module, plan: Plan, synchronised: bool) -> Iterator[None]:
    """
    A context around the forward of a micro-batch and all that is taken of it before the loss's backward pass.

    `fully_shard` frees the weights of a block when the forward, or a gradient, has passed it: a second derivative
    finds nothing, and each further gradient gathers the weights anew, which a process without annotated pictures, for
    which no gradient is taken, would not take part in. So where gradients are taken, the weights stay until the loss's
    backward pass has gone by. It costs the memory of the whole model's weights within a step; gradients and the state
    of the optimizer stay spread. Where only the head's weight is read, that stays alone.

    Args:
        model (`nn.Module`): the model inside its wrappers; what is not sharded by `fully_shard` is left alone.
        plan ([`Plan`]): what is taken of the model; where no gradient and no weight is, nothing is kept.
        synchronised (`bool`): whether the backward pass of this micro-batch averages gradients over the processes.
    """
    root: Any = model
    taken = plan.tail_gradient or plan.input_gradient
    if not hasattr(model, "set_reshard_after_backward") or not (taken or plan.feature_layer):  # no FSDPModule
        yield
        return
    if not taken:
        for block in _around_head(model, plan):
            block.set_reshard_after_forward(False, recurse=False)
        yield
        return
    root.set_reshard_after_forward(False)
    root.set_reshard_after_backward(False)
    root.set_requires_gradient_sync(False)  # else gradients of earlier micro-batches are averaged in the midst of it
    try:
        yield
    finally:
        root.set_reshard_after_backward(True)
        root.set_requires_gradient_sync(synchronised)


def _around_head(model: nn.Module, plan: Plan) -> list[Any]:
    """The modules, sharded by themselves, that hold the head."""
    head = None if plan.feature_layer is None else plan.feature_layer.head
    if head is None:
        return []
    names = head.split(".")
    around = [model.get_submodule(".".join(names[:length])) for length in range(len(names) + 1)]
    return [module for module in around if hasattr(module, "set_reshard_after_forward")]
