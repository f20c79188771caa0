"""Gradient checkpointing: the same training, for every method that it goes with; the rest is refused with a remedy."""

import pytest
import torch
from small import METHODS, assert_same_movement, by_double_backward, movement
from support import build, make_trainer

from hf_salguide import get_guidance
from hf_salguide.backbones import is_checkpointed

CHECKPOINTED = {"gradient_checkpointing": True}


def timm_convnext():
    return build("convnext")


def timm_resnet():
    return build("resnet")


def transformers_vit():
    return build("transformers_vit")


def watched(make, runs):
    """The model, with a note of every run of a block that is checkpointed."""

    def made():
        model = make()
        block = next(module for module in model.modules() if type(module).__name__.endswith(("Layer", "Block")))
        inside = next(module for module in block.modules() if isinstance(module, torch.nn.Linear))
        inside.register_forward_pre_hook(lambda *_: runs.append(1))
        return model

    return made


@pytest.mark.parametrize("make", [timm_convnext, transformers_vit])
@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_trains_as_training_without_it(method, make, tmp_path):
    at_class_token = make is transformers_vit and get_guidance(method).needs_maps
    if at_class_token:
        with pytest.raises(ValueError, match='gradient checkpointing of fused attention.*attn_implementation="eager"'):
            make_trainer(make(), tmp_path, guidance=method, **CHECKPOINTED)
        return
    runs, runs_again = [], []
    options = {"guidance": method, "guidance_options": _engine(method)}
    expected, plain = movement(watched(make, runs), tmp_path, 2, **options)
    found, trainer = movement(watched(make, runs_again), tmp_path, 2, **options, **CHECKPOINTED)
    assert len(runs_again) > len(runs)  # or nothing was checkpointed
    assert trainer._how_run["checkpointed"]
    assert_same_movement(found, expected, 5e-3 if plain._plan.finite_difference else 1e-4)


def _engine(method):
    """Gradient checkpointing runs fused attention again, which has no second derivative."""
    return {"gradient_engine": "finite_difference"} if by_double_backward(method) else {}


@pytest.mark.parametrize("method", ["cyborg", "divisive_difference", "gradmask"])
def test_batch_normalisation_is_checkpointed_as_in_plain_training(method, tmp_path):
    """Its running statistics move twice, with guidance or without; the parameters do not read them."""
    options = {"guidance": method, "guidance_options": by_double_backward(method)}
    expected, _ = movement(timm_resnet, tmp_path, 2, **options)
    found, _ = movement(timm_resnet, tmp_path, 2, **options, **CHECKPOINTED)
    assert_same_movement(found, expected, 1e-4)


def test_class_token_maps_go_with_checkpointing_of_plain_attention(tmp_path):
    def make():
        model = build("transformers_vit")
        model.set_attn_implementation("eager")
        return model

    expected, _ = movement(make, tmp_path, 2, guidance=["cyborg", "divisive_difference"])
    found, _ = movement(make, tmp_path, 2, guidance=["cyborg", "divisive_difference"], **CHECKPOINTED)
    assert_same_movement(found, expected, 1e-4)


def test_the_double_backward_of_checkpointed_fused_attention_is_refused_before_training(tmp_path):
    options = {"gradient_engine": "double_backward"}
    model = build("transformers_vit")
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r'gradient_engine="double_backward" is not possible.*checkpointing off'):
        make_trainer(model, tmp_path, guidance="rrr", guidance_options=options)


def test_the_trial_leaves_checkpointing_switched_off_until_training(tmp_path):
    trainer = make_trainer(timm_convnext(), tmp_path, guidance=["cyborg", "rrr"], **CHECKPOINTED)
    assert not is_checkpointed(trainer.model)
    assert trainer.feature_layer is not None


def test_the_reentrant_kind_is_refused(tmp_path):
    arguments = {**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match='use_reentrant=True.*use_reentrant": False'):
        make_trainer(timm_convnext(), tmp_path, guidance="cyborg", **arguments)
