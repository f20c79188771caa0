"""Masked input: what training sees, pixel by pixel."""

import pytest
import torch
from views_support import TinyNetwork, example, loop_blended, run

from hf_salguide.guidance.base import Pictures
from hf_salguide.guidance.masked_input import MaskedInput


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_annotated_pictures_keep_what_is_salient(fill):
    pictures, _ = example()
    seen = MaskedInput(fill=fill).transform(pictures)
    for row in range(6):
        picture = pictures.pixel_values[row]
        if not pictures.annotated[row]:
            assert torch.equal(seen[row], picture)
            continue
        other = torch.zeros_like(picture) if fill == "zero" else picture.mean((1, 2), keepdim=True) + 0 * picture
        torch.testing.assert_close(seen[row], loop_blended(pictures.saliency[row], picture, other))
    assert torch.equal(seen[3], pictures.pixel_values[3])  # a full mask
    if fill == "zero":
        assert not seen[2].any()  # an empty mask that counts
        torch.testing.assert_close(seen[5], pictures.pixel_values[5] * pictures.saliency[5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pictures_and_their_type_are_left_alone(dtype):
    pictures, _ = example()
    pixels = pictures.pixel_values.to(dtype)
    before = pixels.clone()
    seen = MaskedInput().transform(Pictures(pixels, pictures.saliency.float(), pictures.annotated, pictures.uniform))
    assert seen.dtype == dtype
    assert torch.equal(pixels, before)


def test_there_is_no_term_and_no_view():
    pictures, labels = example()
    network, method = TinyNetwork(3), MaskedInput()
    assert method.views(pictures) == []
    terms = method.terms(run(method, network, pictures, labels))
    assert terms.shape == (6,)
    assert not terms.any()


def test_it_changes_training_alone():
    method = MaskedInput()
    assert (method.transforms_inputs, method.transforms_evaluation) == (True, False)
    assert (method.cost, method.draws, method.needs_maps, method.accepts_empty_masks) == ("none", False, False, True)
    assert "1910.00199" in method.paper


def test_an_unknown_fill_is_refused():
    with pytest.raises(ValueError, match="fill='blur' is not known; choose one of 'zero', 'mean'"):
        MaskedInput(fill="blur")
