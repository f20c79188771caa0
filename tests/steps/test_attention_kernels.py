"""Fused attention stays on wherever no second derivative passes through it."""

import pytest
import torch
import torch.nn.functional as F
from small import SIZE
from support import build, make_batch, make_trainer
from torch.overrides import TorchFunctionMode

BLOCKS = {"vit_class_token": 6, "vit_average": 6, "transformers_vit": 3}


class Kernels(TorchFunctionMode):
    """Whether the fused kernels were allowed at each call of the attention."""

    def __init__(self):
        super().__init__()
        self.fused = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.fused.append(torch.backends.cuda.flash_sdp_enabled())
        return func(*args, **(kwargs or {}))


def kernels_of(name, guidance, folder, **arguments):
    model = build(name).train()
    trainer = make_trainer(model, folder, guidance=guidance, **arguments)
    size = SIZE if name == "transformers_vit" else (64, 96)
    with Kernels() as kernels:
        loss = trainer.compute_loss(model, make_batch(size))
    loss.backward()
    return kernels.fused


@pytest.mark.parametrize(
    ("name", "guidance", "forwards"),
    [
        ("vit_average", ["cyborg", "divisive_difference"], 1),
        ("vit_average", ["gradmask"], 2),
        ("vit_class_token", ["actdiff", "sage", "masked_input"], 1),
        ("vit_class_token", ["rrr"], 2),
        ("transformers_vit", ["actdiff_adversarial"], 1),
        ("transformers_vit", ["gradmask"], 2),
    ],
    ids=str,
)
def test_fused_throughout(name, guidance, forwards, tmp_path):
    """Maps of averaged tokens, views, and input gradients by a finite difference, which takes a second forward."""
    assert kernels_of(name, guidance, tmp_path) == [True] * (forwards * BLOCKS[name])


@pytest.mark.parametrize("name", ["vit_class_token", "transformers_vit"])
def test_a_map_behind_the_class_token_needs_the_rows_of_that_token_alone(name, tmp_path):
    """In the last block, one call for the row of the class token, and one with the fused kernel for the others."""
    assert kernels_of(name, "cyborg", tmp_path) == [True] * (BLOCKS[name] - 1) + [False, True]


def test_the_double_backward_needs_plain_attention_throughout(tmp_path):
    options = {"gradient_engine": "double_backward"}
    assert kernels_of("vit_average", "rrr", tmp_path, guidance_options=options) == [False] * BLOCKS["vit_average"]


def test_feature_gradients_of_averaged_tokens(tmp_path):
    fused = kernels_of("vit_average", "rrr", tmp_path, guidance_options={"at": "features"})
    assert fused == [True] * BLOCKS["vit_average"]
