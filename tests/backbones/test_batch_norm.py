import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from backbones.zoo import CASES
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointError, checkpoint

from hf_salguide.backbones import split_batch_norm
from hf_salguide.backbones.forward import logits_of

BATCH_NORMED = ["test_resnet", "densenet", "test_efficientnet", "mobilenetv3", "hf_resnet"]
PARTS = [4, 3, 3]


def norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def build(name):
    case = CASES[name]
    model = case.build().double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, case.images(sum(PARTS)).double()


def several_forwards(model, images, mode, parts=PARTS):
    """What the parts give in forwards of their own, the pictures first; the statistics are the pictures' alone."""
    pictures, *views = images.split(parts)
    logits = [logits_of(model(pictures))]
    kept = {norm: dict(norm._buffers) for norm in norms(model)}
    for view in views:
        for norm, buffers in kept.items():
            norm.train(mode == "separate")
            norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
        logits.append(logits_of(model(view)))
    for norm, buffers in kept.items():
        norm.train()
        norm._buffers.update(buffers)
    return torch.cat(logits)


def one_forward(model, images, mode, parts=PARTS):
    with split_batch_norm(parts, mode):
        return logits_of(model(images))


def gradients(model, logits):
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=logits.dtype)
    model.zero_grad()
    ((weights * logits).sum() + logits.square().sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("mode", ["separate", "running"])
@pytest.mark.parametrize("name", BATCH_NORMED)
def test_one_forward_is_that_of_the_parts_by_themselves(name, mode):
    model, images = build(name)
    assert norms(model)
    twin = copy.deepcopy(model)
    before = statistics(model)
    logits, expected = one_forward(model, images, mode), several_forwards(twin, images, mode)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    found, wanted = gradients(model, logits), gradients(twin, expected)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        assert (found[key] - gradient).norm() <= 1e-8 * gradient.norm() + 1e-9, key
    after, wanted_after = statistics(model), statistics(twin)
    for key, buffer in after.items():
        torch.testing.assert_close(buffer, wanted_after[key], rtol=1e-12, atol=1e-12)
        assert not torch.equal(buffer, before[key]) or buffer.numel() < 2
        if key.endswith("num_batches_tracked"):
            assert buffer == before[key] + 1


@pytest.mark.parametrize("mode", ["pictures", "separate", "running"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(10, 6, 5, 4), (10, 6)])
def test_pictures_and_statistics_are_those_of_a_plain_step_to_the_bit(shape, dtype, mode):
    torch.manual_seed(0)
    norm = (nn.BatchNorm2d(6) if len(shape) == 4 else nn.BatchNorm1d(6)).train()
    nn.init.normal_(norm.weight)
    plain = copy.deepcopy(norm)
    values = (3 * torch.randn(shape) + 1).to(dtype)
    with split_batch_norm(PARTS, mode):
        output = norm(values)
    assert torch.equal(output[:4], plain(values[:4]))
    assert output.dtype == dtype
    for buffer, expected in zip(norm.buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected)


@pytest.mark.parametrize("views", [[1], [2, 2], [4, 3]])
@pytest.mark.parametrize("name", BATCH_NORMED)
def test_a_view_that_is_its_picture_gets_its_logits_however_few_there_are(name, views):
    model, images = build(name)
    pictures = images[:4]
    batch = torch.cat([pictures, *(pictures[:count] for count in views)])
    with split_batch_norm([4, *views]):
        logits = logits_of(model(batch))
    expected = [logits[:4], *(logits[:count] for count in views)]
    torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(10, 6, 5, 4), (10, 6)])
def test_views_by_the_statistics_of_the_pictures_are_those_of_a_loop(shape, affine):
    """Values and gradients, those through the statistics included, channel by channel from the definition."""
    torch.manual_seed(0)
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(6, affine=affine, eps=1e-3).double().train()
    values = (3 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()
    weights = torch.randn(shape, dtype=torch.float64)
    parameters = list(norm.parameters())
    with split_batch_norm([4, 3, 3]):
        output = norm(values)
    found = torch.autograd.grad((weights * output.square()).sum(), [values, *parameters])
    columns = []
    for channel in range(6):
        pictures = values[:4, channel]
        mean = pictures.sum() / pictures.numel()
        variance = sum((value - mean) ** 2 for value in pictures.flatten()) / pictures.numel()
        column = (values[:, channel] - mean) / (variance + 1e-3) ** 0.5
        columns.append(column * norm.weight[channel] + norm.bias[channel] if affine else column)
    expected = torch.stack(columns, dim=1)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad((weights * expected.square()).sum(), [values, *parameters])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_separate_views_do_not_share_statistics():
    values = torch.randn(10, 6, 5, 4)
    values[4:7] += 5
    with split_batch_norm(PARTS, "separate"):
        output = F.batch_norm(values, None, None, training=True)
    for part in output.split(PARTS):
        torch.testing.assert_close(part.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.square().mean(dim=(0, 2, 3)), torch.ones(6), atol=1e-3, rtol=0)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_those_after_the_pictures(momentum):
    norm = nn.BatchNorm1d(2, momentum=momentum)
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0], [-1.0, 7.0]])
    with split_batch_norm([2, 2], "running"):
        output = norm(values)
    share = 1.0 if momentum is None else momentum
    mean = share * torch.tensor([2.0, 4.0])
    var = (1 - share) + share * torch.tensor([2.0, 8.0])  # unbiased, as the running variance is
    torch.testing.assert_close(output[2:], (values[2:] - mean) / (var + norm.eps).sqrt())
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def test_a_later_forward_does_not_change_the_gradient():
    torch.manual_seed(0)
    norm, values = nn.BatchNorm1d(3), torch.randn(6, 3, requires_grad=True)
    weights = torch.randn(6, 3)
    found = []
    for later in (False, True):
        twin = copy.deepcopy(norm)
        with split_batch_norm([3, 3], "running"):
            output = twin(values)
        if later:
            twin(torch.randn(6, 3) * 100)
        found.append(torch.autograd.grad((weights * output).sum(), values)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1)])
def test_one_value_a_channel_is_normalised_by_the_running_statistics(shape):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3)
    values = torch.randn(4, *shape[1:], requires_grad=True)
    with split_batch_norm([2, 1, 1], "separate"):
        output = norm(values)
    kept = [buffer.clone() for buffer in norm.buffers()]
    expected = copy.deepcopy(norm).eval()(values)
    torch.testing.assert_close(output[2:], expected[2:])
    (gradient,) = torch.autograd.grad(output[2:].sum(), values)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected[2:].sum(), values)[0])
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), kept, strict=True))
    with pytest.raises(ValueError, match="more than 1 value"), split_batch_norm([1, 1]):
        norm(values[:2])  # as a plain step with one picture


def test_a_norm_without_running_statistics_takes_those_of_each_part():
    values = torch.randn(8, 3, 4)
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    for mode in ("separate", "running"):
        with split_batch_norm([4, 4], mode):
            output = norm(values)
        torch.testing.assert_close(output, torch.cat([norm(values[:4]), norm(values[4:])]))


@pytest.mark.parametrize("mode", ["separate", "running"])
def test_evaluation_and_frozen_norms_are_left_alone(mode):
    model, images = build("test_resnet")
    model.eval()
    expected = model(images).logits
    assert torch.equal(one_forward(model, images, mode), expected)
    model.train()
    for norm in norms(model):
        norm.eval()
    assert torch.equal(one_forward(model, images, mode), model(images).logits)


@pytest.mark.parametrize(("parts", "mode"), [(PARTS, "concat"), ([10], "separate"), ([10, 0, 0], "running")])
def test_one_batch_is_left_alone(parts, mode):
    model, images = build("test_resnet")
    twin = copy.deepcopy(model)
    assert torch.equal(one_forward(model, images, mode, parts), twin(images).logits)
    for buffer, expected in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, expected)


def test_parts_of_no_rows_are_left_out():
    values = torch.randn(6, 3)
    with split_batch_norm([4, 0, 2]):
        output = F.batch_norm(values, None, None, training=True)
    with split_batch_norm([4, 2]):
        assert torch.equal(output, F.batch_norm(values, None, None, training=True))


def test_tokens_folded_into_the_batch_stay_with_their_pictures():
    norm, values = nn.BatchNorm1d(5), torch.randn(6, 7, 5)
    twin = copy.deepcopy(norm)
    with split_batch_norm([4, 2], "separate"):
        output = norm(values.flatten(0, 1)).unflatten(0, (6, 7))
    assert torch.equal(output[:4].flatten(0, 1), twin(values[:4].flatten(0, 1)))
    assert torch.equal(norm.running_mean, twin.running_mean)
    torch.testing.assert_close(output[4:].mean(dim=(0, 1)), torch.zeros(5), atol=1e-6, rtol=0)


def test_standardised_weights_are_left_alone():
    conv = timm.layers.StdConv2d(3, 8, 3).train()
    values = torch.randn(6, 3, 8, 8)
    expected = conv(values)
    with split_batch_norm([4, 2]):
        assert torch.equal(conv(values), expected)


def test_second_derivatives_are_those_of_the_parts_by_themselves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(64, 2))
    model = model.double().train()
    images = torch.randn(7, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for logits in (
        one_forward(model, images, "separate", [4, 3]),
        several_forwards(model, images, "separate", [4, 3]),
    ):
        (gradient,) = torch.autograd.grad(logits.square().sum(), images, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), list(model.parameters()), allow_unused=True))
    for gradient, expected in zip(*found, strict=True):
        if expected is None:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, expected)


def test_gradient_checkpointing_is_refused_by_torch_and_not_silently_wrong():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    with split_batch_norm([4, 3]):
        output = checkpoint(model, torch.randn(7, 3, 6, 6), use_reentrant=False)
    with pytest.raises(CheckpointError):
        output.sum().backward()


def test_it_ends_on_exceptions():
    values = torch.randn(6, 3)
    with pytest.raises(KeyError), split_batch_norm([4, 2]):
        raise KeyError
    expected = (values - values.mean(0)) / (values.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(F.batch_norm(values, None, None, training=True), expected)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="mode='seperate' is not known; choose one of 'pictures'"):
        split_batch_norm([4, 2], "seperate")
    for parts in ([], [0, 2], [4, -1]):
        with pytest.raises(ValueError, match="has to start with the number of pictures"):
            split_batch_norm(parts)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_gradients_are_those_of_the_formula_in_float64(dtype, tolerance, layout):
    """The pictures' statistics carry the gradients of the views too."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5, generator=generator)
    given = torch.randn(5, 4, 3, 5, generator=generator).to(dtype).to(memory_format=layout)
    upstream = torch.randn(5, 4, 3, 5, generator=generator)
    values = given.clone(memory_format=torch.preserve_format).requires_grad_()
    with split_batch_norm([3, 2]):
        output = norm(values)
    found = torch.autograd.grad((output.float() * upstream).sum(), [values, norm.weight, norm.bias])
    wide, weight, bias = given.double().requires_grad_(), norm.weight.double(), norm.bias.double()
    mean = wide[:3].mean(dim=(0, 2, 3), keepdim=True)
    deviation = (wide[:3] - mean).square().mean(dim=(0, 2, 3), keepdim=True).add(norm.eps).sqrt()
    expected = (wide - mean) / deviation * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    of = torch.autograd.grad((expected * upstream.double()).sum(), [wide, norm.weight, norm.bias])
    assert output.dtype is dtype
    for one, other in zip([output, *found], [expected, *of], strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


class Reductions(TorchDispatchMode):
    """Notes what the kernel of a norm's backward pass is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.native_batch_norm_backward.default:
            self.given.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("affine", [True, False])
def test_kernels_are_given_all_that_those_of_cuda_read(affine):
    """CUDA's read the weight and the saved statistics in evaluation as well; a CPU's do without."""
    norm = nn.BatchNorm2d(4, affine=affine)
    values = torch.randn(5, 4, 3, 3).requires_grad_()
    with split_batch_norm([3, 2]):
        output = norm(values)
    with Reductions() as reductions:
        output.square().sum().backward()
    assert len(reductions.given) == 2
    for _, _, weight, _, _, mean, inverse, *_ in reductions.given:
        assert all(isinstance(given, torch.Tensor) for given in (weight, mean, inverse))


def test_a_model_in_half_precision_has_views():
    model = build("test_resnet")[0].to(torch.bfloat16)
    pictures = CASES["test_resnet"].images(5).to(torch.bfloat16)
    with split_batch_norm([3, 2]):
        logits = logits_of(model(torch.cat([pictures[:3], pictures[:2]])))
    torch.testing.assert_close(logits[3:], logits[:2], rtol=0.05, atol=0.05)
    logits.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.slow
def test_a_compiled_forward_is_the_eager_one_without_a_graph_break():
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = build("test_resnet")[0].float()
    compiled, eager = torch.compile(model, backend="aot_eager"), copy.deepcopy(model)
    pictures = torch.randn(6, 3, *CASES["test_resnet"].size, generator=torch.Generator().manual_seed(0))
    try:
        for views in (2, 1, 2, 1):
            gradients = []
            for called in (compiled, eager):
                with split_batch_norm([4, views]):
                    logits = logits_of(called(pictures[: 4 + views]))
                gradients.append(torch.autograd.grad(logits.square().sum(), list(called.parameters())))
            largest = max(float(gradient.abs().max()) for gradient in gradients[1])
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * largest)
            for one, other in zip(model.buffers(), eager.buffers(), strict=True):
                torch.testing.assert_close(one, other)
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 2
    finally:
        torch._dynamo.reset()
