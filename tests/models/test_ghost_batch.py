"""Several groups in one pass give what each gives alone, dropout and stochastic depth included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models.adapt import freeze
from efficientnetv2.models.blocks import DropPath
from efficientnetv2.models.factory import create
from efficientnetv2.models.ghost_batch import ghost_batches, supports_ghost_batches
from efficientnetv2.models.wrappers import WrappedModel

SMALL = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=4, kernel=3), 1, 8, 3),
        Stage(mbconv(expand=4, kernel=3, se=0.25), 2, 16, 3),
    ),
    head_channels=512,
)
IMAGES = 4
SEEDS = [11, 12, 13]


def network(**rates):
    torch.manual_seed(0)
    return create(SMALL, num_classes=3, **({"dropout": 0.4, "drop_path": 0.6} | rates)).train()


def pictures():
    return torch.randn(len(SEEDS) * IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_three_microbatches_are_each_group_alone():
    net = network()
    with ghost_batches(net, images=IMAGES, seeds=SEEDS):
        together = net(pictures())
    alone = []
    for part, seed in zip(pictures().chunk(3), SEEDS, strict=True):
        with ghost_batches(net, images=IMAGES, seeds=[seed]):
            alone.append(net(part))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_a_groups_draws_follow_its_seed_and_nothing_else():
    net = network()
    part = pictures()[:IMAGES]

    def answer(seed):
        torch.rand(7)  # somebody else draws meanwhile
        with ghost_batches(net, images=IMAGES, seeds=[seed]):
            return net(part)

    assert torch.equal(answer(1), answer(1))
    assert not torch.equal(answer(1), answer(2))


def test_what_is_dropped_is_the_rates_share_and_the_rest_is_scaled_up():
    """20,000 draws at 0.4: the share dropped is within 4 standard errors (0.014), what is kept is 1 / 0.6."""
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


def test_afterwards_the_network_is_as_it_was():
    """It draws by itself again and takes batches of any size."""
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


def test_frozen_parts_draw_nothing():
    net = network()
    freeze(net, stages=2, statistics=True)
    net.train()
    with ghost_batches(net, images=IMAGES, seeds=SEEDS):
        assert all(module.kept is None for module in net.modules() if isinstance(module, DropPath))
        assert net.dropout.kept is not None


def test_other_networks_run_one_group_at_a_time_from_its_seed():
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


def test_statistics_shared_in_another_way_run_one_group_at_a_time():
    """What a synchronised batch-norm shares, one pass must not split."""
    assert not supports_ghost_batches(nn.SyncBatchNorm.convert_sync_batchnorm(network()))
