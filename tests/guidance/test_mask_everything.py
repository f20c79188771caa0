"""Mask everything: masked input, in evaluation too."""

import pytest
import torch
from views_support import TinyNetwork, example, loop_blended, run

from hf_salguide.guidance.mask_everything import MaskEverything


def test_annotated_pictures_keep_what_is_salient():
    pictures, labels = example()
    method = MaskEverything()
    seen = method.transform(pictures)
    for row in range(6):
        picture = pictures.pixel_values[row]
        masked = loop_blended(pictures.saliency[row], picture, torch.zeros_like(picture))
        torch.testing.assert_close(seen[row], masked if pictures.annotated[row] else picture)
    assert not method.terms(run(method, TinyNetwork(3), pictures, labels)).any()


def test_it_changes_evaluation_too():
    method = MaskEverything(fill="mean")
    assert (method.name, method.fill) == ("mask_everything", "mean")
    assert (method.transforms_inputs, method.transforms_evaluation) == (True, True)
    assert (method.cost, method.draws, method.needs_maps, method.accepts_empty_masks) == ("none", False, False, True)
    assert "1910.00199" in method.paper
    with pytest.raises(ValueError, match="fill='shuffle' is not known"):
        MaskEverything(fill="shuffle")
