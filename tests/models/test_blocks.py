"""The pieces: TensorFlow's padding by its formula, stochastic depth by counting, fresh weights."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from efficientnetv2.models import blocks
from efficientnetv2.models.blocks import (
    ConvNorm,
    DropPath,
    PointwiseConv2d,
    SameConv2d,
    SqueezeExcite,
    same_padding,
)
from efficientnetv2.models.create import create


def tensorflow_padding(px, kernel, stride):
    """As TensorFlow documents "SAME": by the remainder of the size."""
    total = max(kernel - stride, 0) if px % stride == 0 else max(kernel - px % stride, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows_at_every_size(kernel, stride):
    for px in range(1, 41):
        assert same_padding(px, kernel=kernel, stride=stride) == tensorflow_padding(px, kernel, stride)


@pytest.mark.parametrize("kernel", [3, 5])
def test_same_convolution_pads_by_that_formula_whatever_the_sides(kernel):
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
    """An odd side needs equal padding at stride 2, which a convolution does by itself."""
    copies = []
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda *args, **more: (copies.append(args[1]), pad(*args, **more))[1])
    convolution = SameConv2d(3, 8, 3, stride=2)
    convolution(torch.zeros(1, 3, 33, 75))
    assert copies == []
    convolution(torch.zeros(1, 3, 32, 32))
    assert copies == [(0, 1, 0, 1)]


def test_squeeze_excite_is_a_gate_from_means():
    """Only the means matter, and the gate lies between 0 and 1: weights 0 give one half everywhere."""
    gate = SqueezeExcite(6, 2)
    x = torch.rand(2, 6, 5, 7) + 0.5
    shuffled = x.flatten(2)[:, :, torch.randperm(35)].view_as(x)
    torch.testing.assert_close((gate(x) / x)[..., 0, 0], (gate(shuffled) / shuffled)[..., 0, 0])
    for parameter in gate.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(gate(x), x / 2)


def test_stochastic_depth_drops_whole_pictures_and_keeps_the_mean():
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


def test_a_dropped_block_is_its_shortcut():
    torch.manual_seed(0)
    network = create("efficientnetv2_b0").train()
    block = next(b for b in network.blocks if b.drop_path is not None)
    block.drop_path.rate = 0.5
    x = torch.randn(64, block.spatial.conv.in_channels, 8, 8)
    untouched = (block(x) == x).flatten(1).all(1)
    assert 10 < untouched.sum() < 54


def test_fresh_weights_are_as_released():
    """Normal with variance 2 / fan-out (k*k for depthwise), uniform within 1/sqrt(1000), biases 0."""
    torch.manual_seed(0)
    network = create("efficientnetv2_s")
    block = network.blocks[20]  # depthwise 3x3 on 128 * 6 channels

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


@pytest.mark.parametrize("px", [1, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_a_small_depthwise_input_is_padded_before_and_gives_the_same(px, training, monkeypatch):
    """For speed alone, and only where gradients are wanted: answers and gradients are the plain convolution's."""
    padded = []
    pad = blocks.F.pad
    monkeypatch.setattr(blocks.F, "pad", lambda x, by: padded.append(x.shape) or pad(x, by))
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
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 3), (4, 4), (2, 8), (5, 5)])
def test_a_small_pointwise_convolution_is_a_product_and_gives_the_same(
    height, width, autocast, training, monkeypatch
):
    torch.manual_seed(0)
    convolution = PointwiseConv2d(6, 8, 1).train(training)
    own = torch.randn(3, 6, height, width).to(memory_format=torch.channels_last).requires_grad_()
    plain = own.detach().clone().requires_grad_()
    multiplied = []
    product = F.linear
    monkeypatch.setattr(blocks.F, "linear", lambda *args: multiplied.append(1) or product(*args))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = convolution(own)
        expected = F.conv2d(plain, convolution.weight, convolution.bias)
    assert bool(multiplied) == (training and height * width <= (16 if autocast else 4))
    assert got.shape == expected.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    close = {"rtol": 1e-2, "atol": 1e-2} if autocast else {}
    torch.testing.assert_close(got, expected, **close)
    wanted = torch.randn_like(expected)
    mine = torch.autograd.grad(got, [own, convolution.weight, convolution.bias], wanted)
    theirs = torch.autograd.grad(expected, [plain, convolution.weight, convolution.bias], wanted)
    close = {"rtol": 2e-2, "atol": 5e-2} if autocast else {}
    torch.testing.assert_close(mine, theirs, **close)


def test_every_pointwise_convolution_of_a_network_may_be_a_product():
    pointwise = [
        one
        for one in create("efficientnetv2_b0").modules()
        if isinstance(one, nn.Conv2d) and one.kernel_size == (1, 1)
    ]
    assert len(pointwise) > 50
    assert {type(one) for one in pointwise} == {PointwiseConv2d}


@pytest.mark.parametrize("px", [2, 9])
def test_a_pointwise_gradient_lies_in_memory_as_its_weight(px):
    """Otherwise DistributedDataParallel copies it at every step, and warns."""
    convolution = PointwiseConv2d(6, 8, 1).to(memory_format=torch.channels_last)
    convolution(torch.randn(2, 6, px, px).to(memory_format=torch.channels_last)).sum().backward()
    assert convolution.weight.grad.stride() == convolution.weight.stride()
