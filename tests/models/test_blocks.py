"""Blocks: squeeze-excite, stochastic depth, initial weights, padding, and convolutions as matrix products."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import nn

from efficientnetv2.models import blocks as convolutions
from efficientnetv2.models.blocks import (
    ConvNorm,
    DropPath,
    ProductConv2d,
    SameConv2d,
    SqueezeExcite,
    optimize_convolutions,
    same_padding,
)
from efficientnetv2.models.factory import create

SMALL_MAPS = [
    (sides, *kind)
    for sides in ((1, 1), (2, 2), (3, 3), (8, 8), (2, 32), (9, 9), (5, 6), (16, 16), (17, 16))
    # At stride 2 with fewer channels than a block (8 or 16), oneDNN overwrites foreign memory: its issue 6035.
    for kind in ((1, 1, 6), (1, 2, 24), (3, 1, 256), (3, 2, 256), (3, 1, 8))
    # In bf16 at stride 2 with one position, PyTorch's gradient is sometimes NaN.
    if (sides, kind) != ((1, 1), (3, 2, 256))
]


def test_squeeze_excite_is_a_gate_of_channel_means():
    """The gate depends only on the means and is between 0 and 1. Weights of 0 give 0.5."""
    gate = SqueezeExcite(6, 2)
    x = torch.rand(2, 6, 5, 7) + 0.5
    shuffled = x.flatten(2)[:, :, torch.randperm(35)].view_as(x)
    torch.testing.assert_close((gate(x) / x)[..., 0, 0], (gate(shuffled) / shuffled)[..., 0, 0])
    for parameter in gate.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(gate(x), x / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (1, 1), (7, 3)])
def test_gate_in_training_equals_the_plain_computation(dtype, height, width):
    """Means are sums divided by a constant, for speed. Results are equal to the bit, except for a 16-bit mean of 21."""
    torch.manual_seed(0)
    gate = SqueezeExcite(48, 4).to(memory_format=torch.channels_last)
    found = []
    for means in (lambda x: None, lambda x: x.mean((2, 3), keepdim=True)):
        inputs = torch.linspace(-3, 5, 3 * 48 * height * width).view(3, height, width, 48).permute(0, 3, 1, 2)
        x = inputs.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            mean = means(x)
            out = gate(x) if mean is None else x * gate.expand(F.silu(gate.reduce(mean))).sigmoid()
        out.float().square().sum().backward()
        weights = [weight.grad for weight in gate.parameters()]
        gate.zero_grad()
        found.append([out.detach(), x.grad, *weights])
    rounding = 2**-7 if dtype == torch.bfloat16 and height == 7 else 0
    for one, other in zip(*found, strict=True):
        assert (one.float() - other.float()).norm() <= rounding * other.float().norm()


def test_gradient_of_the_channel_means_is_not_materialized():
    """The gradient of a mean would be stored and added in another memory format."""
    gate = SqueezeExcite(8, 2)
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autograd.profiler.profile() as profile:
        gate(x).sum().backward()
    operations = {event.name for event in profile.function_events}
    assert "SumBackward1" in operations
    assert "MeanBackward1" not in operations


def test_means_in_16_bits_do_not_overflow():
    x = torch.full((1, 8, 128, 128), 10.0, dtype=torch.float16).requires_grad_()
    assert SqueezeExcite(8, 2).half()(x).isfinite().all()


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(1)
    drop = DropPath(depth_fraction=1.0)
    drop.rate = 0.3
    pictures = 10_000
    out = drop.train()(torch.ones(pictures, 2, 3, 3))
    per_picture = out.flatten(1)
    assert (per_picture == per_picture[:, :1]).all()
    dropped = (per_picture[:, 0] == 0).double().mean().item()
    assert dropped == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / pictures) ** 0.5)
    torch.testing.assert_close(per_picture.max(), torch.tensor(1 / 0.7))
    assert drop.eval()(out) is out


def test_dropped_block_is_its_shortcut():
    torch.manual_seed(0)
    network = create("efficientnetv2_b0").train()
    block = next(b for b in network.blocks if b.drop_path is not None)
    block.drop_path.rate = 0.5
    x = torch.randn(64, block.spatial.conv.in_channels, 8, 8)
    untouched = (block(x) == x).flatten(1).all(1)
    assert 10 < untouched.sum() < 54


def test_initial_weights_have_the_released_distribution():
    """Normal with variance 2 / fan-out (k*k for depthwise), uniform within 1/sqrt(1000), biases 0."""
    torch.manual_seed(0)
    network = create("efficientnetv2_s")
    block = network.blocks[20]  # depthwise 3x3 with 128 * 6 channels

    def std(weight):
        return weight.detach().std().item()

    assert std(network.stem.conv.weight) == pytest.approx((2 / (9 * 24)) ** 0.5, rel=0.1)
    assert std(network.head.conv.weight) == pytest.approx((2 / 1280) ** 0.5, rel=0.01)
    assert std(block.spatial.conv.weight) == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert std(block.se.reduce.weight) == pytest.approx((2 / block.se.reduce.out_channels) ** 0.5, rel=0.05)
    bound = 1000**-0.5
    assert network.classifier.weight.abs().max() <= bound
    assert std(network.classifier.weight) == pytest.approx(bound / 3**0.5, rel=0.01)
    for biased in (network.classifier, block.se.reduce, block.se.expand):
        assert not biased.bias.any()
    assert all((m.weight == 1).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def tensorflow_padding(px, kernel, stride):
    """TensorFlow's "SAME" by its documentation: from the remainder of the size."""
    total = max(kernel - stride, 0) if px % stride == 0 else max(kernel - px % stride, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_equals_tensorflow_at_every_size(kernel, stride):
    for px in range(1, 41):
        assert same_padding(px, kernel=kernel, stride=stride) == tensorflow_padding(px, kernel, stride)


@pytest.mark.parametrize("kernel", [3, 5])
def test_same_convolution_uses_that_padding_for_any_sides(kernel):
    torch.manual_seed(0)
    convolution = SameConv2d(4, 4, kernel, stride=2, groups=4, bias=False)
    for height in range(1, 41):
        width = 41 - height + (height % 3)
        picture = torch.randn(1, 4, height, width)
        top, bottom = tensorflow_padding(height, kernel, 2)
        left, right = tensorflow_padding(width, kernel, 2)
        padded = torch.zeros(1, 4, height + top + bottom, width + left + right)
        padded[:, :, top : top + height, left : left + width] = picture
        expected = F.conv2d(padded, convolution.weight, stride=2, groups=4)
        assert expected.shape[2:] == (-(-height // 2), -(-width // 2))
        torch.testing.assert_close(convolution(picture), expected)


def test_only_unequal_padding_copies_the_input(monkeypatch):
    """At stride 2, an odd side needs equal padding, which the convolution itself supports."""
    copies = []
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda *args, **more: (copies.append(args[1]), pad(*args, **more))[1])
    convolution = SameConv2d(3, 8, 3, stride=2)
    convolution(torch.zeros(1, 3, 33, 75))
    assert copies == []
    convolution(torch.zeros(1, 3, 32, 32))
    assert copies == [(0, 1, 0, 1)]


@pytest.mark.parametrize("px", [1, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_small_depthwise_input_is_padded_first_with_equal_results(px, training, monkeypatch):
    """For speed, only in training. Outputs and gradients equal those of the plain convolution."""
    padded = []
    pad = convolutions.F.pad
    monkeypatch.setattr(convolutions.F, "pad", lambda x, by: padded.append(x.shape) or pad(x, by))
    ours = ConvNorm(6, 6, kernel=3, groups=6, padding="same", epsilon=1e-3).conv.train(training)
    plain = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    plain.load_state_dict(ours.state_dict())
    found = []
    for conv in (ours, plain):
        x = torch.linspace(-1, 1, 2 * 6 * px * px).view(2, 6, px, px).requires_grad_()
        out = conv(x)
        (out**2).sum().backward()
        found.append((out, x.grad, conv.weight.grad))
    torch.testing.assert_close(*found)
    assert len(padded) == (training and px < 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("sides", "kernel", "stride", "channels"), SMALL_MAPS)
def test_convolution_of_a_small_map_is_a_matrix_product_with_equal_results(
    sides, kernel, stride, channels, autocast, training, monkeypatch
):
    torch.manual_seed(0)
    convolution = ProductConv2d(channels, 8, kernel, stride=stride, padding=kernel // 2).train(training)
    own = torch.randn(3, channels, *sides).to(memory_format=torch.channels_last).requires_grad_()
    plain = own.detach().clone().requires_grad_()
    multiplied = []
    product = F.linear
    monkeypatch.setattr(convolutions.F, "linear", lambda *args: multiplied.append(1) or product(*args))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = convolution(own)
        expected = F.conv2d(plain, convolution.weight, convolution.bias, stride, kernel // 2)
    positions = expected.shape[2] * expected.shape[3]
    most = {(1, True): 64, (1, False): 1, (3, True): 9}.get((kernel, autocast), 0)
    assert bool(multiplied) == (training and positions <= most and channels != 8)
    assert got.shape == expected.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    close = {"rtol": 1e-2, "atol": 1e-2} if autocast else {}
    torch.testing.assert_close(got, expected, **close)
    wanted = torch.randn_like(expected)
    mine = torch.autograd.grad(got, [own, convolution.weight, convolution.bias], wanted)
    theirs = torch.autograd.grad(expected, [plain, convolution.weight, convolution.bias], wanted)
    close = {"rtol": 2e-2, "atol": 8e-2} if autocast else {}
    torch.testing.assert_close(mine, theirs, **close)


def test_every_pointwise_convolution_can_be_a_matrix_product():
    pointwise = [
        one for one in create("efficientnetv2_b0").modules() if isinstance(one, nn.Conv2d) and one.kernel_size == (1, 1)
    ]
    assert len(pointwise) > 50
    assert {type(one) for one in pointwise} == {ProductConv2d}


def test_models_of_other_libraries_use_matrix_products_with_equal_results():
    """In double precision only maps of one position use them: the last maps of ResNet-50 at 32 px."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(num_classes=3).double().train()
    ours = create(copy.deepcopy(theirs)).train()
    kinds = Counter(type(one) for one in ours.modules() if isinstance(one, nn.Conv2d))
    assert kinds == {ProductConv2d: 52, nn.Conv2d: 1}, "all but the stem, of 7x7"
    assert list(ours.module.state_dict()) == list(theirs.state_dict())
    pictures = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    found = []
    for network in (theirs, ours.module):
        logits = network(pictures)
        logits.square().sum().backward()
        found.append([logits, *(weight.grad for weight in network.parameters())])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "words",
    [
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"kernel_size": 1, "stride": (1, 2)},
        {"kernel_size": 5, "padding": 2},
    ],
    ids=str,
)
def test_unsupported_convolutions_are_not_replaced(words):
    convolution = nn.Conv2d(256, 256, **words)
    optimize_convolutions(nn.Sequential(convolution))
    assert type(convolution) is nn.Conv2d


def test_derived_convolution_classes_are_not_replaced():
    class Standardized(nn.Conv2d):
        pass

    convolution = Standardized(3, 3, 1)
    optimize_convolutions(convolution)
    assert type(convolution) is Standardized


@pytest.mark.parametrize("px", [1, 9])
def test_gradient_of_a_pointwise_convolution_has_the_layout_of_its_weight(px):
    """Otherwise DistributedDataParallel copies it at every step, with a warning."""
    convolution = ProductConv2d(6, 8, 1).to(memory_format=torch.channels_last)
    convolution(torch.randn(2, 6, px, px).to(memory_format=torch.channels_last)).sum().backward()
    assert convolution.weight.grad.stride() == convolution.weight.stride()


@pytest.mark.parametrize("px", [2, 4])
def test_gradient_of_a_square_convolution_has_the_layout_of_its_weight(px):
    convolution = ProductConv2d(256, 8, 3, padding=1).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        convolution(torch.randn(2, 256, px, px).to(memory_format=torch.channels_last)).sum().backward()
    assert convolution.weight.grad.stride() == convolution.weight.stride()
