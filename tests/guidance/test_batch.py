"""What the trainer hands to a method of a batch, and that the batch itself is left alone."""

import random

import numpy as np
import pytest
import torch
from support import build, make_batch, make_trainer

from hf_salguide import Guidance, register_guidance
from hf_salguide.guidance import registry


@pytest.fixture
def seen(monkeypatch):
    """What a method called "spy" was given, batch by batch."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    batches = []

    @register_guidance
    class Spy(Guidance):
        """Keeps what it is given."""

        name, paper, formula = "spy", "none", "0"
        needs_maps, accepts_empty_masks = False, True

        def terms(self, batch):
            batches.append(batch)
            return batch.logits.sum(dim=1) * batch.annotated

    return batches


@pytest.mark.parametrize("control", [{}, {"invert_saliency": True}, {"random_saliency": True}], ids=str)
@pytest.mark.parametrize(
    ("empty_mask", "annotated"),
    [("skip", [True, False, False, True, False]), ("penalise_all", [True, True, False, True, False])],
)
def test_rows_count_by_has_saliency_and_controls_touch_them_alone(seen, tmp_path, empty_mask, annotated, control):
    batch = make_batch()
    batch["saliency"][1] = 0  # annotated, and empty
    batch["saliency"][2] = 255  # not annotated, and not empty
    model = build("resnet").eval()
    trainer = make_trainer(model, tmp_path, guidance="spy", empty_mask=empty_mask, **control)
    trainer.compute_loss(model, batch)
    given = seen.pop()
    human, counts = batch["saliency"] / 255, torch.tensor(annotated)
    assert given.annotated.tolist() == annotated
    assert torch.equal(given.saliency[~counts], human[~counts])
    if "random_saliency" in control:
        assert all(
            not torch.equal(one, other) for one, other in zip(given.saliency[counts], human[counts], strict=True)
        )
    else:
        assert torch.equal(given.saliency[counts], 1 - human[counts] if control else human[counts])
    trainer.compute_loss(model, {key: batch[key] for key in ("pixel_values", "labels")})
    assert seen.pop().annotated.tolist() == [False] * 5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "arguments", [{}, {"random_saliency": True}, {"invert_saliency": True}, {"guidance": "none"}], ids=str
)
def test_inputs_stay_the_same_objects_and_no_generator_moves(training, arguments, tmp_path):
    """With empty masks, without saliency and with weights too."""
    model, batch = build("resnet").train(training), make_batch()
    trainer = make_trainer(model, tmp_path, label_smoothing_factor=0.1, **arguments)
    everywhere = {**batch, "has_saliency": torch.ones(5, dtype=torch.bool)}  # two of the masks are empty
    bare = {key: batch[key] for key in ("pixel_values", "labels")}
    for inputs in (batch, everywhere, bare, {**batch, "sample_weight": torch.rand(5)}):
        values, before = dict(inputs), {key: value.clone() for key, value in inputs.items()}
        states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
        trainer.compute_loss(model, inputs, return_outputs=True)
        assert torch.equal(torch.random.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), states[2], strict=True))
        assert list(inputs) == list(before)
        assert all(inputs[key] is values[key] and torch.equal(inputs[key], before[key]) for key in before)
