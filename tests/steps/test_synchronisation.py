"""
A guided step does not make the host wait for the device: it asks for no value of a tensor.

Waiting cannot be seen on a CPU. What makes a host wait on a GPU can: reading a number, and whatever gives a tensor
whose size depends on values. Methods that show the model more pictures, or shift them, do so for annotated rows alone;
where these are is asked once a micro-batch.
"""

from collections import Counter

import pytest
import torch
from support import build, make_batch, make_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from hf_salguide import get_guidance, list_guidance

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "lift_fresh", "bincount", "repeat_interleave")


class Waits(TorchDispatchMode):
    """Counts operations after which the host would know a value that a GPU has computed, or has to be sent."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        chosen = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        masks = [one for one in chosen if isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)]
        if name in WAITS or masks:
            self.counts["mask" if masks else name] += 1
        return func(*args, **(kwargs or {}))


def step(tmp_path, name, guidance, options=None):
    trainer = make_trainer(build(name), tmp_path, guidance=guidance, guidance_options=options or {})
    trainer.model.train()
    batch = make_batch()
    with Waits() as waits:
        trainer.compute_loss(trainer.model, batch).backward()
    assert any(parameter.grad is not None for parameter in trainer.model.parameters())
    return dict(waits.counts)


@pytest.mark.parametrize("name", ["resnet", "convnext", "vit_class_token"])
@pytest.mark.parametrize("guidance", list_guidance())
def test_a_guided_step_reads_no_value(tmp_path, guidance, name):
    method = get_guidance(guidance)
    looks_for_rows = method.makes_views or method.gradient_at == "input"
    assert step(tmp_path, name, guidance) == ({"nonzero": 1} if looks_for_rows else {})


@pytest.mark.parametrize("guidance", ["gradmask", "rrr"])
def test_a_gradient_at_the_features_reads_no_value(tmp_path, guidance):
    assert step(tmp_path, "convnext", guidance, {"at": "features"}) == {}


def test_several_methods_look_for_the_rows_once(tmp_path):
    options = {"rrr": {"gradient_engine": "double_backward"}}
    assert step(tmp_path, "resnet", ["cyborg", "actdiff_adversarial", "sage", "rrr"], options) == {"nonzero": 1}


def test_a_plain_step_reads_no_value_and_a_read_one_is_seen(tmp_path):
    assert step(tmp_path, "resnet", "none") == {}
    with Waits() as waits:
        values = torch.arange(4.0)
        values[values > 1].sum().item()
    assert waits.counts["mask"] == 1
    assert waits.counts["_local_scalar_dense"] == 1
