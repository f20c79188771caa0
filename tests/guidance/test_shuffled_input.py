"""Shuffled input: what training sees, pixel by pixel."""

import torch
from views_support import TinyNetwork, example, loop_degraded, run, uniform_of

from hf_salguide.guidance.actdiff import ActDiff
from hf_salguide.guidance.base import Pictures
from hf_salguide.guidance.shuffled_input import ShuffledInput


def test_annotated_pictures_lose_the_places_of_what_is_outside():
    pictures, _ = example()
    state = torch.random.get_rng_state()
    seen = ShuffledInput().transform(pictures)
    assert torch.equal(torch.random.get_rng_state(), state)
    numbers = pictures.uniform(20)
    for row in range(6):
        picture = pictures.pixel_values[row]
        if pictures.annotated[row]:
            expected = loop_degraded(picture, pictures.saliency[row], numbers[row])
            torch.testing.assert_close(seen[row], expected)
        else:
            assert torch.equal(seen[row], picture)
    inside = pictures.saliency[0] >= 0.5
    assert torch.equal(seen[0][:, inside], pictures.pixel_values[0][:, inside])
    assert torch.equal(seen[5, :, 0, 0], pictures.pixel_values[5, :, 0, 0])  # S = 1/2 is not outside
    assert not torch.equal(seen[2], pictures.pixel_values[2])  # an empty mask that counts: everything moves
    torch.testing.assert_close(seen, ShuffledInput().transform(pictures), rtol=0, atol=0)


def test_it_is_the_view_of_actdiff_and_is_drawn_anew():
    pictures, _ = example()
    seen = ShuffledInput().transform(pictures)
    rows = pictures.annotated
    assert torch.equal(seen[rows], ActDiff().views(pictures)[0][rows])
    later = Pictures(pictures.pixel_values, pictures.saliency, pictures.annotated, uniform_of(6, seed=1))
    assert not torch.equal(ShuffledInput().transform(later), seen)


def test_there_is_no_term_and_no_view_and_training_alone_changes():
    pictures, labels = example()
    method = ShuffledInput()
    assert method.views(pictures) == []
    assert method.terms(run(method, TinyNetwork(3), pictures, labels)).tolist() == [0] * 6
    assert (method.transforms_inputs, method.transforms_evaluation) == (True, False)
    assert (method.cost, method.draws, method.needs_maps, method.accepts_empty_masks) == ("none", True, False, True)
    assert "1910.00199" in method.paper
