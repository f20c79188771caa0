"""CYBORG against a float64 loop over samples and cells, written from the formula with none of the library's code."""

import copy

import pytest
import torch
from support import build, make_batch, make_trainer

from hf_salguide import get_guidance
from hf_salguide.guidance import GuidanceBatch
from hf_salguide.maps import saliency_target


def area_mean(saliency, rows, columns):
    """Each cell of the grid is the mean of what it covers; the picture's sides are multiples of the grid's."""
    height, width = saliency.shape[0] // rows, saliency.shape[1] // columns
    target = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            target[i, j] = saliency[i * height : (i + 1) * height, j * width : (j + 1) * width].mean()
    return target


def min_max(values):
    spread = max((values.max() - values.min()), 1e-3 * values.abs().max())
    return (values - values.min()) / spread


def resnet_map(timm_model, picture, label):
    """The class activation map of one picture, and its logits: features, average, one linear layer."""
    features = timm_model.forward_features(picture)
    logits = timm_model.forward_head(features)[0]
    rows, columns = features.shape[2:]
    cam = [[(timm_model.fc.weight[label] * features[0, :, i, j]).sum() for j in range(columns)] for i in range(rows)]
    return torch.stack([torch.stack(row) for row in cam]), logits


def vit_map(timm_model, picture, label):
    """HiResCAM at the last block's first norm, the last place where patch tokens reach the logit."""
    tokens = timm_model.patch_embed(picture)
    tokens = timm_model.norm_pre(timm_model.patch_drop(timm_model._pos_embed(tokens)))
    for block in timm_model.blocks[:-1]:
        tokens = block(tokens)
    last = timm_model.blocks[-1]
    normed = last.norm1(tokens)
    mixed = tokens + last.attn(normed)
    mixed = mixed + last.mlp(last.norm2(mixed))
    logits = timm_model.forward_head(timm_model.norm(mixed))[0]
    (gradient,) = torch.autograd.grad(logits[label], normed, create_graph=True)
    prefix = timm_model.num_prefix_tokens
    rows, columns = timm_model.patch_embed.grid_size
    cells = [(normed[0, prefix + k] * gradient[0, prefix + k]).sum() for k in range(rows * columns)]
    return torch.stack(cells).reshape(rows, columns) * rows * columns, logits


ORACLES = {"resnet": resnet_map, "vit_class_token": vit_map}


def oracle(name, model, batch, cam_class="true", alpha=0.5, beta=0.5):
    """`alpha * CE + beta * sum_i MSE(N(CAM_i), N(S_i)) / B`, sample by sample."""
    guidance = task = 0.0
    count = len(batch["labels"])
    for row in range(count):
        picture = batch["pixel_values"][row : row + 1].double()
        label = int(batch["labels"][row])
        probe_label = label
        if cam_class == "predicted":
            probe_label = int(model.timm_model(picture)[0].argmax())
        cam, logits = ORACLES[name](model.timm_model, picture, probe_label)
        task = task - torch.log_softmax(logits, 0)[label]
        if batch["has_saliency"][row]:
            target = min_max(area_mean(batch["saliency"][row].double() / 255, *cam.shape))
            guidance = guidance + ((min_max(cam) - target) ** 2).mean()
    return alpha * task / count + beta * guidance / count


@pytest.mark.parametrize("cam_class", ["true", "predicted"])
@pytest.mark.parametrize("name", list(ORACLES))
def test_loss_and_gradients_equal_a_float64_loop(name, cam_class, tmp_path):
    model = build(name).eval()  # batch statistics fixed: the loop sees one picture at a time
    reference = copy.deepcopy(model).double()
    for module in reference.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    batch = make_batch()
    trainer = make_trainer(model, tmp_path, guidance="cyborg", guidance_options={"cam_class": cam_class})
    if name != "resnet":
        model.train()  # no batch statistics, no dropout: training takes the second derivative
    else:
        for module in model.modules():
            module.training = False
        model.training = True
    loss = trainer.compute_loss(model, batch)
    expected = oracle(name, reference, batch, cam_class)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    compared = 0
    for (key, parameter), (_, other) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        if other.grad is None or other.grad.abs().max() < 1e-8:
            continue
        error = (parameter.grad.double() - other.grad).norm() / other.grad.norm()
        assert error < 2e-3, (key, float(error))
        compared += 1
    assert compared > 10


def test_true_and_predicted_class_differ(tmp_path):
    model = build("resnet").eval()
    batch = make_batch()
    losses = []
    for cam_class in ("true", "predicted"):
        trainer = make_trainer(model, tmp_path, guidance="cyborg", guidance_options={"cam_class": cam_class})
        losses.append(trainer.compute_loss(model, batch).item())
    assert (model(pixel_values=batch["pixel_values"]).logits.argmax(1) != batch["labels"]).any()
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_the_default_weights_are_the_published_alpha(tmp_path):
    trainer = make_trainer(build("resnet"), tmp_path, guidance="cyborg")
    assert (trainer.task_weight, trainer.guidance_weights) == (0.5, [0.5])
    other = make_trainer(build("resnet"), tmp_path, guidance="cyborg", guidance_weight=2.0)
    assert (other.task_weight, other.guidance_weights) == (0.5, [2.0])


def test_the_published_class_carries_its_paper():
    assert "2112.00686" in get_guidance("cyborg").paper


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_the_target_is_resized_as_asked_for(resize):
    generator = torch.Generator().manual_seed(0)
    maps, saliency = torch.randn(2, 3, 4, 6, generator=generator), torch.rand(2, 16, 24, generator=generator)
    labels = torch.tensor([2, 0])
    batch = GuidanceBatch(
        maps.mean(dim=(2, 3)),
        labels,
        saliency,
        torch.ones(2, dtype=torch.bool),
        lambda weights: (weights[:, :, None, None] * maps).sum(1),
    )
    target = saliency_target(saliency, (4, 6), resize)[0]
    normalized = torch.stack([min_max(one) for one in maps[torch.arange(2), labels]])
    expected = (normalized - target).square().mean(dim=(1, 2))
    torch.testing.assert_close(get_guidance("cyborg", resize=resize).terms(batch), expected)
