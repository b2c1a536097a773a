"""The pieces: squeeze-excite by its parts, stochastic depth by counting, fresh weights."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from efficientnetv2.models.blocks import DropPath, SqueezeExcite
from efficientnetv2.models.factory import create


def test_squeeze_excite_is_a_gate_from_means():
    """Only the means matter, and the gate lies between 0 and 1: weights 0 give one half everywhere."""
    gate = SqueezeExcite(6, 2)
    x = torch.rand(2, 6, 5, 7) + 0.5
    shuffled = x.flatten(2)[:, :, torch.randperm(35)].view_as(x)
    torch.testing.assert_close((gate(x) / x)[..., 0, 0], (gate(shuffled) / shuffled)[..., 0, 0])
    for parameter in gate.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(gate(x), x / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (1, 1), (7, 3)])
def test_a_gate_in_training_is_the_plain_one(dtype, height, width):
    """Its means are sums, divided, for speed alone: to the bit, but for one rounding of 16 bits by 21."""
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


def test_the_gradient_of_a_gates_means_takes_no_memory():
    """That of a mean would be laid out, and added value by value to one in another order."""
    gate = SqueezeExcite(8, 2)
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autograd.profiler.profile() as profile:
        gate(x).sum().backward()
    operations = {event.name for event in profile.function_events}
    assert "SumBackward1" in operations
    assert "MeanBackward1" not in operations


def test_the_means_of_16_bits_do_not_run_over():
    x = torch.full((1, 8, 128, 128), 10.0, dtype=torch.float16).requires_grad_()
    assert SqueezeExcite(8, 2).half()(x).isfinite().all()


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
