"""Several ghost batches in one pass equal separate passes, including dropout and stochastic depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models.adapt import freeze
from efficientnetv2.models.blocks import BatchNorm2d, DropPath
from efficientnetv2.models.factory import create
from efficientnetv2.models.ghost_batch import ghost_batches, supports_ghost_batches
from efficientnetv2.models.wrapped_model import WrappedModel

SMALL = Architecture(
    stem_channels=8,
    stages=(Stage(fused_mbconv(expand=4, kernel=3), 1, 8, 3), Stage(mbconv(expand=4, kernel=3, se=0.25), 2, 16, 3)),
    head_channels=512,
)
IMAGES = 4
SEEDS = [11, 12, 13]


def network(**rates):
    torch.manual_seed(0)
    return create(SMALL, num_classes=3, **({"dropout": 0.4, "drop_path": 0.6} | rates)).train()


def pictures():
    return torch.randn(len(SEEDS) * IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_three_ghost_batches_equal_separate_passes():
    net = network()
    with ghost_batches(net, images=IMAGES, seeds=SEEDS):
        together = net(pictures())
    alone = []
    for part, seed in zip(pictures().chunk(3), SEEDS, strict=True):
        with ghost_batches(net, images=IMAGES, seeds=[seed]):
            alone.append(net(part))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_dropout_of_a_ghost_batch_depends_only_on_its_seed():
    net = network()
    part = pictures()[:IMAGES]

    def answer(seed):
        torch.rand(7)  # other random draws do not matter
        with ghost_batches(net, images=IMAGES, seeds=[seed]):
            return net(part)

    assert torch.equal(answer(1), answer(1))
    assert not torch.equal(answer(1), answer(2))


def test_dropped_fraction_is_the_rate_and_the_rest_is_scaled():
    """20,000 draws at 0.4: the fraction is within 4 standard errors (0.014), the rest is scaled by 1 / 0.6."""
    net = network()
    with ghost_batches(net, images=20_000 // 512 + 1, seeds=[5]):
        kept = net.dropout.kept
        assert kept.shape == (40, 512)
        assert (kept == 0).float().mean().item() == pytest.approx(0.4, abs=0.014)
        assert kept.unique().tolist() == pytest.approx([0, 1 / 0.6])
    with ghost_batches(net, images=20_000, seeds=[5]):
        deepest = [module for module in net.modules() if isinstance(module, DropPath)][-1]
        assert (deepest.kept == 0).float().mean().item() == pytest.approx(deepest.rate, abs=0.014)
        drops = [module for module in net.modules() if isinstance(module, DropPath) and module.rate > 0]
        paths = [module.kept.flatten() for module in drops]
        assert abs(torch.corrcoef(torch.stack(paths))[0, 1]) < 0.05, "blocks draw independently"


def test_model_is_restored_afterwards():
    """It draws its own random values again and accepts any batch size."""
    net = network()
    with pytest.raises(ZeroDivisionError), ghost_batches(net, images=IMAGES, seeds=SEEDS):
        raise ZeroDivisionError
    assert net(pictures()[:5]).shape == (5, 3)
    torch.manual_seed(3)
    one = net(pictures())
    torch.manual_seed(4)
    assert not torch.equal(one, net(pictures()))
    for module in net.modules():
        assert getattr(module, "groups", 1) == 1 or isinstance(module, nn.Conv2d)


def test_frozen_layers_draw_no_random_values():
    net = network()
    freeze(net, stages=2, statistics=True)
    net.train()
    with ghost_batches(net, images=IMAGES, seeds=SEEDS):
        assert all(module.kept is None for module in net.modules() if isinstance(module, DropPath))
        assert net.dropout.kept is not None


def test_wrapped_models_run_one_ghost_batch_from_its_seed():
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inner.append(nn.Dropout(0.5)).append(nn.Linear(8, 3))
    other = WrappedModel(inner).train()
    assert not supports_ghost_batches(other)
    assert supports_ghost_batches(network())

    def answer(seed):
        with ghost_batches(other, images=IMAGES, seeds=[seed]):
            return other(pictures()[:IMAGES])

    assert torch.equal(answer(1), answer(1))
    assert not torch.equal(answer(1), answer(2))


def test_sync_batch_norm_runs_one_ghost_batch_per_pass():
    """One pass must not split statistics that processes share."""
    assert not supports_ghost_batches(nn.SyncBatchNorm.convert_sync_batchnorm(network()))


GROUPS, MAPS, CHANNELS = 3, 4, 5


def pair(momentum):
    ours, theirs = BatchNorm2d(CHANNELS, epsilon=1e-3), nn.BatchNorm2d(CHANNELS, eps=1e-3)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        ours.bias.normal_()
        ours.running_mean.normal_()
    theirs.load_state_dict(ours.state_dict())
    ours.momentum = theirs.momentum = momentum
    return ours.train(), theirs.train()


def maps():
    """Ghost batches with very different values, so that mixed statistics would be detected."""
    torch.manual_seed(0)
    x = torch.randn(GROUPS, MAPS, CHANNELS, 6, 6) * torch.tensor([1.0, 5.0, 0.2]).view(-1, 1, 1, 1, 1)
    return (x + torch.tensor([0.0, 10.0, -3.0]).view(-1, 1, 1, 1, 1)).flatten(0, 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_ghost_batch_is_normalized_as_in_pytorch(layout):
    ours, theirs = pair(momentum=1.0)
    x = maps().contiguous(memory_format=layout)
    weights = torch.randn_like(x)
    ours.groups = GROUPS
    together = x.clone().requires_grad_()
    (ours(together) * weights).sum().backward()
    alone = x.clone().requires_grad_()
    parts = [theirs(part) for part in alone.chunk(GROUPS)]
    (torch.cat(parts) * weights).sum().backward()
    torch.testing.assert_close(ours(x), torch.cat([theirs(part) for part in x.chunk(GROUPS)]))
    torch.testing.assert_close(together.grad, alone.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    assert ours(x).is_contiguous(memory_format=layout)


def test_running_statistics_move_towards_the_mean_over_ghost_batches():
    """Momentum 0.25: 0.75 of the old value and 0.25 of the mean over ghost batches."""
    ours, _ = pair(momentum=0.25)
    x = maps()
    before_mean, before_variance = ours.running_mean.clone(), ours.running_var.clone()
    ours.groups = GROUPS
    ours(x)
    means = torch.stack([part.mean((0, 2, 3)) for part in x.chunk(GROUPS)])
    variances = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in x.chunk(GROUPS)])
    torch.testing.assert_close(ours.running_mean, 0.75 * before_mean + 0.25 * means.mean(0))
    torch.testing.assert_close(ours.running_var, 0.75 * before_variance + 0.25 * variances.mean(0))


def test_evaluation_and_single_ghost_batch_equal_pytorch():
    ours, theirs = pair(momentum=0.1)
    x = maps()
    assert torch.equal(ours(x), theirs(x))
    ours.groups = GROUPS
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert set(ours.state_dict()) == set(theirs.state_dict())
