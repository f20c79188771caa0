"""Deletion and insertion on models whose curves are known."""

import numpy as np
import pytest
import torch

from hf_salguide.metrics import deletion, insertion, probability_curve

pytestmark = pytest.mark.filterwarnings("error")


def share_of_light(pictures):
    """Logits whose first class has the mean of the picture as its probability."""
    share = pictures.double().mean(dim=(1, 2, 3)).clamp(1e-12, 1 - 1e-12)
    return torch.stack([share.log(), (1 - share).log()], dim=1)


def one_bright_half():
    """A picture of 8 x 8, its left half 1, its right half 0, and the maps that find it and that miss it."""
    pictures = torch.zeros(1, 3, 8, 8)
    pictures[..., :4] = 1.0
    ramp = torch.arange(8.0, 0.0, -1.0).repeat(1, 8, 1)
    return pictures, ramp, -ramp


FIRST = torch.tensor([0])


def test_deletion_of_the_evidence_first_and_last():
    pictures, finds, misses = one_bright_half()
    options = {"labels": FIRST, "steps": 8, "baseline": "zero"}
    # 4 steps from 1/2 to 0 and 4 at 0; or 4 at 1/2, then 4 down to 0.
    assert deletion(share_of_light, pictures, finds, **options).item() == pytest.approx(1 / 8)
    assert deletion(share_of_light, pictures, misses, **options).item() == pytest.approx(3 / 8)


def test_insertion_of_the_evidence_first_and_last():
    pictures, finds, misses = one_bright_half()
    options = {"labels": FIRST, "steps": 8, "baseline": "zero"}
    assert insertion(share_of_light, pictures, finds, **options).item() == pytest.approx(3 / 8)
    assert insertion(share_of_light, pictures, misses, **options).item() == pytest.approx(1 / 8)


def test_curves_of_a_batch_equal_a_loop_over_pixels():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * 6 * 10, 4, generator=generator) / 5
    pictures, maps = torch.randn(3, 3, 6, 10, generator=generator), torch.randn(3, 6, 10, generator=generator)
    end, labels = torch.randn(3, 3, 6, 10, generator=generator), torch.tensor([2, 0, 3])
    curve = probability_curve(lambda batch: batch.flatten(1) @ weight, pictures, end, maps, labels, steps=7)
    assert curve.shape == (3, 8)
    for row in range(3):
        order = np.argsort(-maps[row].flatten().numpy())
        for step in range(8):
            picture = pictures[row].clone().flatten(1)
            for pixel in order[: round(step * 60 / 7)]:
                picture[:, pixel] = end[row].flatten(1)[:, pixel]
            expected = (picture.flatten() @ weight).softmax(0)[labels[row]]
            assert curve[row, step].item() == pytest.approx(expected.item(), abs=1e-6)
    area = np.trapezoid(curve.numpy(), dx=1 / 7, axis=1)
    mean = pictures.mean((2, 3), keepdim=True).expand_as(pictures)
    function = lambda batch: batch.flatten(1) @ weight  # noqa: E731
    removed = probability_curve(function, pictures, mean, maps, labels, steps=7)
    assert area.shape == (3,)
    expected = np.trapezoid(removed.numpy(), dx=1 / 7, axis=1)
    assert deletion(function, pictures, maps, labels, steps=7).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("baseline", ["blur", "mean", "zero"])
def test_the_baselines(baseline):
    pictures = 0.2 + one_bright_half()[0] / 2
    seen = []

    def function(batch):
        seen.append(batch)
        return share_of_light(batch)

    deletion(function, pictures, torch.rand(1, 4, 4), FIRST, steps=2, baseline=baseline, sigma=1.0)
    assert torch.equal(seen[0], pictures)
    end = seen[-1]
    assert end.mean().item() == pytest.approx(0.0 if baseline == "zero" else pictures.mean().item(), abs=1e-6)
    assert (end.std() > 0.05) == (baseline == "blur")
    assert end.std() < pictures.std()


def test_the_class_followed_is_the_predicted_one_unless_told():
    pictures, finds, _ = one_bright_half()
    bright = pictures.clamp(min=0.4)  # 0.7 on the whole: class 0
    dark = pictures.clamp(max=0.6)  # 0.3: class 1
    both, maps = torch.cat([bright, dark]), finds.repeat(2, 1, 1)
    assert torch.equal(
        insertion(share_of_light, both, maps), insertion(share_of_light, both, maps, torch.tensor([0, 1]))
    )


def test_maps_are_upsampled_and_only_their_order_counts():
    pictures = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    maps = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    full = torch.nn.functional.interpolate(maps[:, None], (8, 12), mode="bilinear")[:, 0]
    plain = deletion(share_of_light, pictures, full)
    assert torch.allclose(plain, deletion(share_of_light, pictures, maps), atol=1e-3)
    assert torch.equal(plain, deletion(share_of_light, pictures, 4 * full))


def test_pixels_that_tie_go_in_reading_order():
    maps = torch.zeros(1, 64, 64)
    maps[0, 50, 3] = 1.0
    black = torch.zeros(1, 3, 64, 64)
    seen = []

    def function(batch):
        seen.append(batch[0, 0])
        return share_of_light(batch)

    probability_curve(function, black, black + 1, maps, FIRST, steps=4096 // 256)
    expected = torch.arange(4096).reshape(64, 64) < 255
    expected[50, 3] = True
    assert torch.equal(seen[1], expected.float())


def test_maps_without_an_order_are_not_defined():
    pictures = one_bright_half()[0].expand(3, 3, 8, 8)
    maps = torch.stack([torch.ones(4, 4), torch.rand(4, 4), torch.full((4, 4), torch.nan)])
    for measure in (deletion, insertion):
        assert measure(share_of_light, pictures, maps).isnan().tolist() == [True, False, True]


def test_no_gradient_is_kept():
    pictures, finds, _ = one_bright_half()
    assert not deletion(share_of_light, pictures.requires_grad_(), finds, FIRST).requires_grad


def test_wrong_arguments_are_named():
    pictures, finds, _ = one_bright_half()
    with pytest.raises(ValueError, match='baseline="noise" is not known; choose "blur", "mean" or "zero"'):
        deletion(share_of_light, pictures, finds, FIRST, baseline="noise")
    with pytest.raises(ValueError, match="steps=0 is too few"):
        insertion(share_of_light, pictures, finds, FIRST, steps=0)
    with pytest.raises(ValueError, match=r"maps has the shape \(2, 8, 8\); 1 pictures need"):
        insertion(share_of_light, pictures, finds.repeat(2, 1, 1), FIRST)
    with pytest.raises(ValueError, match=r"function gave dict; it has to give logits \(1, K\)"):
        deletion(lambda batch: {"logits": batch}, pictures, finds, FIRST)
    with pytest.raises(ValueError, match=r"function gave \(1, 1\)"):
        deletion(lambda batch: batch.mean((1, 2, 3)).unsqueeze(1), pictures, finds, FIRST)
