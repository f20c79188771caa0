"""Half precision and channels-last memory: the same training, to a tolerance that is stated."""

import pytest
import torch
from small import METHODS, SIZE, by_double_backward, convnext, cosine, losses, movement, resnet
from support import SIZES, Rows, build, make_batch, make_trainer

from hf_salguide import get_guidance
from hf_salguide.maps import class_activation_map


def transformers_vit():
    return build("transformers_vit")


def tolerances(make, method):
    """
    Of bfloat16 against float32: the least cosine of the movements of the parameters over four steps, and the largest
    relative difference of a loss. Batch statistics of four small pictures amplify what is rounded, with guidance or
    without; a gradient with respect to the pictures passes the whole network once more.
    """
    return (0.95 if make is resnet else 0.998), (0.04 if get_guidance(method).gradient_at == "input" else 0.004)


@pytest.mark.parametrize(
    ("make", "method"),
    [
        *[(make, method) for make in (convnext, resnet) for method in METHODS],
        *[(transformers_vit, method) for method in ("cyborg", "divisive_complement", "gradmask")],
    ],
)
def test_bfloat16_trains_as_float32_does(method, make, tmp_path):
    arguments = {"guidance": method, "guidance_options": by_double_backward(method)}
    expected, plain = movement(make, tmp_path, 4, **arguments)
    found, trainer = movement(make, tmp_path, 4, bf16=True, **arguments)
    assert trainer.accelerator.mixed_precision == "bf16"
    assert any((found[name] != change).any() for name, change in expected.items())
    direction, relative = tolerances(make, method)
    assert cosine(found, expected) > direction
    assert losses(trainer) == pytest.approx(losses(plain), rel=relative)


def gradients(make, method, folder, dtype=None, scale=1.0, channels_last=False):
    """
    The loss of a batch, and its gradient with respect to each parameter; `scale` multiplies the loss, and is halved
    for as long as gradients overflow, as gradient scalers do.
    """
    model, batch = make().train(), make_batch(SIZE)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        batch["pixel_values"] = batch["pixel_values"].to(memory_format=torch.channels_last)
    trainer = make_trainer(model, folder, guidance=method, guidance_options=by_double_backward(method))
    forward = model.forward

    def autocast(*args, **kwargs):  # as accelerate does, around the forward alone
        with torch.autocast("cpu", dtype or torch.float16, enabled=dtype is not None):
            return forward(*args, **kwargs)

    model.forward = autocast
    loss = trainer.compute_loss(model, batch)
    (loss * scale).backward()
    overflown = any(
        not parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None
    )
    if overflown and scale > 1:
        return gradients(make, method, folder, dtype, scale / 2, channels_last)
    found = {
        name: parameter.grad / scale for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return loss.detach(), found


@pytest.mark.slow
@pytest.mark.parametrize("make", [convnext, resnet, transformers_vit])
@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_in_float16_is_that_in_float32(method, make, tmp_path):
    """What is differentiated inside the loss is not scaled."""
    loss, expected = gradients(make, method, tmp_path)
    half_loss, found = gradients(make, method, tmp_path, torch.float16, scale=2.0**10)
    assert half_loss.dtype == torch.float32
    assert half_loss != loss
    torch.testing.assert_close(half_loss, loss, rtol=2e-3, atol=0)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert cosine(found, expected) > (0.995 if make is resnet else 0.9998)


@pytest.mark.parametrize("make", [convnext, resnet, transformers_vit])
@pytest.mark.parametrize("method", METHODS)
def test_channels_last_memory_changes_nothing(method, make, tmp_path):
    loss, expected = gradients(make, method, tmp_path)
    other_loss, found = gradients(make, method, tmp_path, channels_last=True)
    torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-4 * largest, msg=name)


def test_a_map_is_made_of_a_channels_last_feature_without_a_copy():
    features = torch.randn(3, 8, 5, 7).to(memory_format=torch.channels_last)
    weights = torch.randn(3, 8)
    flattened = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            flattened.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        maps = class_activation_map(features, weights)
    assert "bmm" in flattened
    assert not {"clone", "copy_", "contiguous", "_to_copy"} & set(flattened)
    torch.testing.assert_close(maps, class_activation_map(features.contiguous(), weights))


@pytest.mark.parametrize("make", [convnext, transformers_vit])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_bfloat16_weights_is_guided_in_float32(method, make, tmp_path):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model, batch = make().to(dtype).train(), make_batch(SIZE)
        batch["pixel_values"] = batch["pixel_values"].to(dtype)
        trainer = make_trainer(model, tmp_path, guidance=method)
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
        if not get_guidance(method).transforms_inputs:
            assert loss.dtype == torch.float32
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("name", ["resnet", "vit_class_token", "transformers_vit"])
def test_an_evaluation_in_bfloat16(name, tmp_path):
    batch = make_batch(SIZES.get(name, (64, 96)))
    found = []
    for full in (False, True):
        trainer = make_trainer(build(name), tmp_path, guidance=["cyborg", "actdiff"], bf16_full_eval=full)
        found.append(trainer.evaluate([Rows(batch)[row] for row in range(5)]))
    for name in ("eval_loss", "eval_cyborg_loss", "eval_actdiff_loss", "eval_relevance_mass"):
        assert found[1][name] == pytest.approx(found[0][name], rel=0.05)
